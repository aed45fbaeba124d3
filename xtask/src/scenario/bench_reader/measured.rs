//! What a program costs.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::{command::show, scenario::bench_path::processor_seconds};

/// Long enough for `btrfs check` on the image.
pub(super) const LIMIT: Duration = Duration::from_mins(10);

/// Between two looks at the memory of a program that runs.
const PERIOD: Duration = Duration::from_millis(5);

pub(super) struct Measured {
    pub(super) seconds: f64,
    /// User and system time.
    pub(super) cpu_seconds: f64,
    /// The most memory that it held.
    pub(super) peak_bytes: f64,
}

/// Runs a program to its end, without its output.
pub(super) fn measure(command: &mut Command) -> Result<Measured> {
    let shown = show(command);
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let pid = Pid::from_child(&child);
    let mut peak_bytes = 0.0_f64;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while waitid(WaitId::Pid(pid), options)?.is_none() {
        if start.elapsed() > LIMIT {
            child.kill()?;
        }
        peak_bytes = peak_bytes.max(high_water_mark(child.id()).unwrap_or_default());
        thread::sleep(PERIOD);
    }
    let seconds = start.elapsed().as_secs_f64();
    // A zombie still knows its times.
    let cpu_seconds = processor_seconds(child.id())?;
    let status = child.wait()?;
    ensure!(status.success(), "`{shown}` ended with {status}");
    Ok(Measured { seconds, cpu_seconds, peak_bytes })
}

/// The most memory so far (man 5 `proc_pid_status`, `VmHWM`).
fn high_water_mark(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0)
}
