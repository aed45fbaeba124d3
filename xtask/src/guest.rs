//! Process 1 of a test VM: mounts what programs expect, loads the modules, runs the scenario
//! that the kernel's command line names, prints a verdict, and powers off.

use std::{
    ffi::CStr,
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

use crate::{
    live,
    vm::agreement::{
        BEGUN, MINUTES_PARAMETER, MODULES, MONITOR, SCENARIO_PARAMETER, Verdict, verdict_line,
    },
};

/// The scratch disk.
const DISK: &str = "/dev/vda";

/// What makes `null_blk` a zoned device of 3 GiB, which takes memory only as it is written to.
const ZONED_DEVICE: &CStr = c"nr_devices=1 gb=3 memory_backed=1 zoned=1 zone_size=64";

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
    println!("{BEGUN}");
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
        let is_null_blk = file.to_string_lossy().contains("null_blk");
        let parameters = if is_null_blk { ZONED_DEVICE } else { c"" };
        match finit_module(File::open(&file)?, parameters, 0) {
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
    let parameter = |name: &str| {
        let mut words = command_line.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let scenario = parameter(SCENARIO_PARAMETER)
        .with_context(|| format!("no {SCENARIO_PARAMETER}= on the kernel's command line"))?;
    // A child, not a call: its panic must not be the kernel's.
    let status = Command::new("/init")
        .args(["live", scenario, "--monitor", MONITOR, "--device", DISK])
        .args(parameter(MINUTES_PARAMETER).into_iter().flat_map(|minutes| ["--minutes", minutes]))
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:/lib/systemd")
        .status()
        .context("cannot start the scenario")?;
    Ok(match status.code() {
        Some(0) => Verdict::Passed,
        Some(live::SKIPPED) => Verdict::Skipped("said above".to_owned()),
        _ => Verdict::Failed(format!("the scenario ended with {status}")),
    })
}
