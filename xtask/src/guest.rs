//! Process 1 of a test VM: mounts what programs expect, loads the modules, runs the scenario
//! that the kernel's command line names, prints a verdict, and powers off.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result};
use rustix::{
    fs::sync,
    io::Errno,
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
};

use crate::{live, vm::Verdict};

/// Directories that the image holds for mounting.
pub(crate) const MOUNT_POINTS: [&str; 7] =
    ["/proc", "/sys", "/dev", "/tmp", "/run", "/var/tmp", "/var/log/journal"];

/// Where the image holds the kernel's modules, to be loaded in the order of their names.
pub(crate) const MODULES: &str = "/modules";

/// Where the image holds the monitor.
pub(crate) const MONITOR: &str = "/bin/refverify-monitor";

/// What on the kernel's command line names the scenario.
pub(crate) const SCENARIO_PARAMETER: &str = "refverify.scenario";

/// Length of the scratch disk.
pub(crate) const DISK_LEN_BYTES: u64 = 3 << 30;

/// The scratch disk.
const DISK: &str = "/dev/vda";

/// What begins the console's verdict line.
const VERDICT: &str = "guest verdict: ";

/// File systems, in order: what, where. Those of debugging may be missing.
const MOUNTS: [(&str, &str, bool); 8] = [
    ("proc", "/proc", true),
    ("sysfs", "/sys", true),
    ("devtmpfs", "/dev", true),
    ("tmpfs", "/tmp", true),
    ("tmpfs", "/run", true),
    // systemd-journald does not start without it.
    ("cgroup2", "/sys/fs/cgroup", true),
    ("debugfs", "/sys/kernel/debug", false),
    ("tracefs", "/sys/kernel/tracing", false),
];

/// The whole of user space. Never returns: a process 1 that ends is a kernel panic.
pub(crate) fn main() -> ! {
    let verdict = match prepare().and_then(|()| run()) {
        Ok(verdict) => verdict,
        Err(error) => Verdict::Failed(format!("init: {error:#}")),
    };
    println!("{}", verdict_line(&verdict));
    sync();
    let stopped = reboot(RebootCommand::PowerOff);
    println!("cannot power off: {stopped:?}");
    loop {
        std::thread::park();
    }
}

fn prepare() -> Result<()> {
    for (kind, place, needed) in MOUNTS {
        let done = mount(kind, place, kind, MountFlags::empty(), None);
        if needed {
            done.with_context(|| format!("cannot mount {kind} at {place}"))?;
        }
    }
    load_modules()
}

fn load_modules() -> Result<()> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(MODULES)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    for file in files {
        match finit_module(File::open(&file)?, c"", 0) {
            // An accelerated checksum says NODEV where the CPU lacks the instruction.
            Ok(()) | Err(Errno::EXIST | Errno::NODEV) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot load {}", file.display()));
            }
        }
    }
    Ok(())
}

fn run() -> Result<Verdict> {
    let command_line = fs::read_to_string("/proc/cmdline")?;
    let scenario = command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(SCENARIO_PARAMETER)?.strip_prefix('='))
        .with_context(|| format!("no {SCENARIO_PARAMETER}= on the kernel's command line"))?;
    // A child, not a call: its panic must not be the kernel's.
    let status = Command::new("/init")
        .args(["live", scenario, "--monitor", MONITOR, "--device", DISK])
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:/lib/systemd")
        .status()
        .context("cannot start the scenario")?;
    Ok(match status.code() {
        Some(0) => Verdict::Passed,
        Some(live::SKIPPED) => Verdict::Skipped("said above".to_owned()),
        _ => Verdict::Failed(format!("the scenario ended with {status}")),
    })
}

fn verdict_line(verdict: &Verdict) -> String {
    format!("{VERDICT}{verdict}")
}

/// The verdict, if `line` is the verdict line.
pub(crate) fn parse_verdict(line: &str) -> Option<Verdict> {
    let (_, text) = line.split_once(VERDICT)?;
    Some(match text.split_once(": ") {
        None if text == "passed" => Verdict::Passed,
        Some(("SKIPPED", why)) => Verdict::Skipped(why.to_owned()),
        _ => Verdict::Failed(text.trim_start_matches("FAILED: ").to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_crosses_the_console_and_nothing_else_is_one() {
        for verdict in [
            Verdict::Passed,
            Verdict::Skipped("no kprobes".to_owned()),
            Verdict::Failed("status 1".to_owned()),
        ] {
            assert_eq!(parse_verdict(&verdict_line(&verdict)), Some(verdict));
        }
        assert_eq!(parse_verdict("[    1.0] btrfs: passed"), None);
        let cut_off = parse_verdict("guest verdict: pass");
        assert!(matches!(cut_off, Some(Verdict::Failed(_))), "{cut_off:?}");
    }
}
