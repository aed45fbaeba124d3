//! What needs no root and no VM: format, lints, documentation, dependencies, cargo's tests.

use std::{process::Command, time::Duration};

use anyhow::Result;

use super::tally::{Outcome, Skip, Tally};
use crate::{
    build::cargo,
    command::{self, Finished},
    fuzz, setup,
};

/// The longest: a first build of everything.
const LIMIT: Duration = Duration::from_mins(20);

/// How long each fuzz target runs.
const FUZZ_SECONDS: u32 = 30;

/// Lines of a failed command's output that are shown.
const SHOWN_LINES: usize = 60;

pub(super) fn run(tally: &mut Tally) {
    println!("\n== checks");
    tally.run("cargo fmt", || passes(&mut cargo(&["fmt", "--all", "--check"])));
    tally.run("cargo clippy", || {
        let args =
            ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
        passes(&mut cargo(&args))
    });
    tally.run("cargo doc", || {
        let args = ["doc", "--quiet", "--workspace", "--no-deps"];
        passes(cargo(&args).env("RUSTDOCFLAGS", "--deny warnings"))
    });
    tally.run("cargo deny", deny);
    tally.run("cargo test", unit_tests);
    tally.run("cargo fuzz", fuzz_targets);
}

fn passes(command: &mut Command) -> Result<Outcome> {
    let done = command::finish(command, LIMIT)?;
    Ok(if done.status.success() { Outcome::Passed } else { Outcome::Failed(tail(&done)) })
}

/// Licences, sources and banned crates (`deny.toml`). Advisories need a download and are left to
/// people.
fn deny() -> Result<Outcome> {
    if let Err(error) = setup::CARGO_DENY.install() {
        return Ok(Outcome::Skipped(Skip::could_run(format!("no cargo-deny: {error:#}"))));
    }
    passes(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]))
}

/// Not to find much in that time, but to see that the targets still work.
fn fuzz_targets() -> Result<Outcome> {
    if let Err(error) = setup::CARGO_FUZZ.install() {
        return Ok(Outcome::Skipped(Skip::could_run(format!("no cargo-fuzz: {error:#}"))));
    }
    let are_well = fuzz::all_are_well(FUZZ_SECONDS)?;
    let failed = || Outcome::Failed("a target found a fault; it is shown above".to_owned());
    Ok(if are_well { Outcome::Passed } else { failed() })
}

fn unit_tests() -> Result<Outcome> {
    let done = command::finish(&mut cargo(&["test", "--quiet", "--no-fail-fast"]), LIMIT)?;
    let (passed, failed, ignored) = counts(&done.stdout);
    if done.status.success() == (failed == 0) && passed > 0 {
        if failed > 0 {
            println!("\n{}", tail(&done));
        }
        return Ok(Outcome::Counted(passed, failed, ignored));
    }
    Ok(Outcome::Failed(tail(&done)))
}

/// Sums up the lines `test result: ok. 10 passed; 0 failed; 0 ignored; ...`.
fn counts(output: &str) -> (u64, u64, u64) {
    let mut sums = (0, 0, 0);
    for line in output.lines().filter(|line| line.starts_with("test result:")) {
        let words: Vec<&str> =
            line.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => sums.0 += count,
                "failed" => sums.1 += count,
                "ignored" => sums.2 += count,
                _ => {}
            }
        }
    }
    sums
}

fn tail(done: &Finished) -> String {
    let all = format!("{}{}", done.stdout, done.stderr);
    let lines: Vec<&str> = all.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_test_binaries_are_summed_up() {
        let output = "running 2 tests\n..\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; in 0.1s\n\
            test result: FAILED. 9 passed; 3 failed; 0 ignored; 0 measured; 5 filtered out\n";
        assert_eq!(counts(output), (11, 3, 1));
        assert_eq!(counts("error: could not compile"), (0, 0, 0));
    }
}
