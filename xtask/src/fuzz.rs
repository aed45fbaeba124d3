//! `cargo xtask fuzz`: gives each fuzz target arbitrary bytes for a while.
//!
//! What a target has learned stays in `target/fuzz/corpus`, and the next run goes on from there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    build::cargo,
    command::{self, show_and_run},
    setup, workspace,
};

/// What a build may take beyond the time of the run itself.
const BUILD_LIMIT: Duration = Duration::from_mins(15);

/// More than what the targets hold at the most; libFuzzer calls it a fault when they take more.
const MEMORY_MIB: &str = "-rss_limit_mb=2048";

/// An input that takes longer than this is a fault.
const INPUT_TIMEOUT: &str = "-timeout=10";

/// Arguments of the verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each target runs, in seconds
    #[arg(default_value_t = 60)]
    seconds: u32,
    /// Only this target; may be given more than once
    #[arg(long = "target", value_name = "NAME")]
    targets: Vec<String>,
    /// So many targets at a time
    #[arg(long, default_value_t = processors())]
    jobs: usize,
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Runs them; fails when one found a fault.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::run()?;
    setup::CARGO_FUZZ.install()?;
    Ok(if are_well(args)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all of them for so many seconds each; whether none found a fault.
pub(crate) fn all_are_well(seconds: u32) -> Result<bool> {
    are_well(&Args { seconds, targets: Vec::new(), jobs: processors() })
}

fn are_well(args: &Args) -> Result<bool> {
    let targets = if args.targets.is_empty() { all_targets()? } else { args.targets.clone() };
    // The first time takes a minute or two: all dependencies are instrumented.
    match &*args.targets {
        [] => show_and_run(&mut cargo_fuzz(&["build"]))?,
        targets => targets
            .iter()
            .try_for_each(|target| show_and_run(&mut cargo_fuzz(&["build", target])))?,
    }
    let results = at_a_time(args.jobs, &targets, |target| fuzz(target, args.seconds))?;
    println!();
    for (target, result) in targets.iter().zip(&results) {
        println!("{target:24} {result}");
    }
    Ok(results.iter().all(|result| matches!(result, Fuzzed::Well { .. })))
}

/// What comes of each target, in their order; so many are worked on at a time.
fn at_a_time<R: Send>(
    jobs: usize,
    targets: &[String],
    work: impl Fn(&str) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let left = Mutex::new(targets.iter().enumerate());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some((index, target)) = next() {
                    let result = work(target);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// How a target's run ended.
enum Fuzzed {
    Well { executions: String },
    Fault { input: String },
}

impl std::fmt::Display for Fuzzed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Well { executions } => write!(f, "{executions} executions, no fault"),
            Self::Fault { input } => write!(f, "FAULT, by the input {input}"),
        }
    }
}

fn fuzz(target: &str, seconds: u32) -> Result<Fuzzed> {
    println!("{target} for {seconds} s");
    let corpus = own_dir("corpus", target)?;
    let faults = own_dir("faults", target)?;
    let mut fuzz = cargo_fuzz(&["run", target]);
    fuzz.arg(&corpus);
    // Inputs that are kept with the sources: what arbitrary bytes hardly come to.
    let seeds = dir().join("seeds").join(target);
    if seeds.is_dir() {
        fuzz.arg(seeds);
    }
    fuzz.args(["--", MEMORY_MIB, INPUT_TIMEOUT, "-print_final_stats=1"])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", faults.display()));
    let limit = BUILD_LIMIT + Duration::from_secs(u64::from(seconds));
    let done = command::finish(&mut fuzz, limit)?;
    let said = |what: &str| {
        let line = done.stderr.lines().find_map(|line| line.split_once(what));
        line.map(|(_, rest)| rest.trim().to_owned())
    };
    if done.status.success() {
        let executions = said("stat::number_of_executed_units:");
        let executions = executions.context("libFuzzer did not say how many it ran")?;
        return Ok(Fuzzed::Well { executions });
    }
    let lines: Vec<&str> = done.stderr.lines().collect();
    println!("{target}:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    match said("Test unit written to ") {
        Some(input) => Ok(Fuzzed::Fault { input }),
        None => bail!("`cargo fuzz run {target}` ended with {}", done.status),
    }
}

/// Its own build directory: libFuzzer's instrumentation fits nothing else. No sanitizer: the
/// targets and what they reach are safe Rust, which panics where it goes out of bounds.
fn cargo_fuzz(args: &[&str]) -> std::process::Command {
    let (verb, rest) = args.split_first().expect("a verb");
    let nightly = format!("+{}", setup::NIGHTLY);
    let mut command = cargo(&[&nightly, "fuzz", verb, "--fuzz-dir"]);
    command.arg(dir()).arg("--target-dir").arg(workspace::target().join("fuzz"));
    // Of itself cargo-fuzz compiles a crate in one unit, on one processor.
    command.args(["--sanitizer", "none", "--codegen-units", "4"]).args(rest);
    command
}

fn dir() -> PathBuf {
    workspace::root().join("refverify-user/fuzz")
}

/// Those that there is a source of.
fn all_targets() -> Result<Vec<String>> {
    let sources = dir().join("fuzz_targets");
    let entries =
        fs::read_dir(&sources).with_context(|| format!("cannot list {}", sources.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            targets.push(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

fn own_dir(kind: &str, target: &str) -> Result<PathBuf> {
    let dir: &Path = &workspace::target().join("fuzz").join(kind).join(target);
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir.to_owned())
}
