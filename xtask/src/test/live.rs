//! A scenario on this machine's own kernel: a process of its own, as root.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::tally::{Outcome, Skip};
use crate::{
    command,
    live::SKIPPED,
    machine::{self, as_root},
    scenario::Scenario,
    workspace,
};

/// How long a scenario may take.
const LIMIT: Duration = Duration::from_mins(10);

/// Lines of a failed scenario's output that are shown.
const SHOWN_LINES: usize = 15;

/// Runs it; its output is kept.
pub(super) fn run(scenario: &Scenario, monitor: &Path) -> Result<Outcome> {
    if let Some(skip) = obstacle() {
        return Ok(Outcome::Skipped(skip));
    }
    let mut command = as_root(env::current_exe()?);
    command.args(["live", scenario.name, "--monitor"]).arg(monitor);
    let done = command::finish(command.env("PATH", machine::path_with_system_dirs()), LIMIT)?;
    let output = format!("{}{}", done.stdout, done.stderr);
    let log = log_path(scenario)?;
    fs::write(&log, &output)?;
    Ok(match done.status.code() {
        Some(0) => Outcome::Passed,
        Some(SKIPPED) => {
            let reason = output.lines().last().unwrap_or_default();
            Outcome::Skipped(Skip::cannot_run(reason))
        }
        _ => {
            let lines: Vec<&str> = output.lines().collect();
            let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            // The summary repeats only the first line, which has to say what was wrong.
            let error = lines.iter().rfind(|line| line.starts_with("error: "));
            let why = error.map_or_else(|| done.status.to_string(), ToString::to_string);
            Outcome::Failed(format!("{why}\n{shown}\n(all of it: {})", log.display()))
        }
    })
}

fn log_path(scenario: &Scenario) -> Result<PathBuf> {
    let dir = workspace::target().join("live");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir.join(format!("{}.log", scenario.name)))
}

/// Why this machine's kernel cannot be tested on.
fn obstacle() -> Option<Skip> {
    if !machine::is_root() {
        let sudo = Command::new("sudo").arg("true").status();
        if !sudo.is_ok_and(|status| status.success()) {
            return Some(Skip::could_run("it needs root, and sudo does not give it"));
        }
    }
    // Loads the module where there is one.
    let _ = command::finish(as_root("modprobe").arg("btrfs"), command::LIMIT);
    let systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !systems.lines().any(|line| line.trim() == "btrfs") {
        return Some(Skip::cannot_run("this kernel has no btrfs"));
    }
    for (path, what) in
        [("/sys/kernel/btf/vmlinux", "no BTF"), ("/dev/loop-control", "no loop devices")]
    {
        if !Path::new(path).exists() {
            return Some(Skip::cannot_run(format!("this kernel has {what}")));
        }
    }
    None
}
