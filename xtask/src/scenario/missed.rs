//! Kprobes are missed without a word: all of the kernel's are switched off for a moment behind the
//! monitor's back, in the middle of a transaction. The second count shows it: the monitor says so
//! before the commit, finds nothing that is not there, and is exact again afterwards.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Outcome, Place,
    compare::{compare_if_live, flush, superblock},
    field::sync,
    monitor::{Monitor, STATUS_COVERAGE_LOST, of_type},
    scratch::Scratch,
};

/// Where the kernel's kprobes are switched off and on, all at once.
const SWITCH: &str = "/sys/kernel/debug/kprobes/enabled";

/// How often they are missed.
const MISSES: usize = 2;

/// How long it may take to be exact again, under emulation too.
const LIMIT: Duration = Duration::from_mins(2);

/// Kprobes are off as long as this lives.
struct SwitchedOff;

impl SwitchedOff {
    fn new() -> Result<Self> {
        fs::write(SWITCH, "0").context("cannot switch kprobes off")?;
        Ok(Self)
    }
}

impl Drop for SwitchedOff {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, "1") {
            println!("cannot switch kprobes on again: {error}");
        }
    }
}

pub(super) fn run(place: &Place) -> Result<Outcome> {
    if !fs::exists(SWITCH)? {
        return Ok(Outcome::Skipped("this kernel has no kprobes".to_owned()));
    }
    let mut scratch = Scratch::new(place, 1 << 30)?;
    scratch.mkfs(&[])?;
    let mut monitor = Monitor::start(place, scratch.device_name(), &[])?;
    // No commit by itself while they are off: that of its own would be missed, and noticed by the
    // next one.
    scratch.mount_with("commit=300")?;
    for number in 1..=MISSES {
        // Two transactions: the one in which a file system is met proves nothing.
        worked_on(&scratch)?;
        worked_on(&scratch)?;
        monitor.wait_for("seeded")?;
        flush(&scratch.device)?;
        let before = superblock(&scratch.device)?.generation;
        let off = SwitchedOff::new()?;
        fs::create_dir(scratch.path(format!("missed{number}")))?;
        drop(off);
        let blind = monitor.wait_for_nth("blind", number).context("no miss was noticed")?;
        println!("{blind}");
        ensure!(blind["source"] == "program_missed", "another cause: {blind}");
        let verified_upto = blind["verified_upto"].as_u64().context("no transid")?;
        ensure!(verified_upto <= before, "missed above {before}, and verified: {blind}");
        let extents = compare_when_live(&scratch, &mut monitor)
            .with_context(|| format!("after miss {number} of {MISSES}"))?;
        println!("after miss {number}: all {extents} extents are equal");
    }
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    let ended = monitor.stop()?;
    let findings = of_type(&ended.lines, "finding");
    ensure!(findings.is_empty(), "an honest file system made the monitor say: {findings:?}");
    ensure!(ended.status == STATUS_COVERAGE_LOST, "exit status {}", ended.status);
    let coverage = ended.coverage()?;
    println!("{coverage}");
    let blind = coverage["blind"].as_array().context("no blind spans")?;
    ensure!(blind.len() == MISSES, "not a blind span for each miss: {blind:?}");
    Ok(Outcome::Passed)
}

/// A transaction of honest work: files, written anew each time.
fn worked_on(scratch: &Scratch) -> Result<()> {
    for number in 0..10 {
        fs::write(scratch.path(format!("file{number}")), vec![7; 64 << 10])?;
    }
    sync(scratch)
}

/// Only honest work: a second miss would be seen as one blind span too many.
fn compare_when_live(scratch: &Scratch, monitor: &mut Monitor) -> Result<usize> {
    let end = Instant::now() + LIMIT;
    loop {
        ensure!(Instant::now() < end, "it did not come back to verifying");
        worked_on(scratch)?;
        if let Some(extents) = compare_if_live(scratch, monitor)? {
            return Ok(extents);
        }
    }
}
