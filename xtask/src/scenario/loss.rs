//! Events are lost: the monitor says so, finds nothing that is not there, and is exact again after
//! it has read what changed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    Outcome, Place,
    compare::compare_if_live,
    monitor::{Monitor, STATUS_COVERAGE_LOST, of_type},
    scratch::Scratch,
    workload::{Balances, Workload},
};

/// How often events are lost.
const LOSSES: usize = 4;

/// Operations between them.
const OPERATIONS: u64 = 600;

/// How long these may take, under emulation too.
const LIMIT: Duration = Duration::from_secs(400);

/// How long the monitor stands still: its small buffer is full before.
const STILL: Duration = Duration::from_secs(3);

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let mut scratch = Scratch::new(place, 3 << 30)?;
    scratch.mkfs(&[])?;
    let options = ["--ring-mib", "8", "--audit"];
    let mut monitor = Monitor::start(place, scratch.device_name(), &options)?;
    scratch.mount()?;
    let mut workload = Workload::start(&scratch.mount_point, 5, Balances::Running)?;
    workload.work(OPERATIONS, LIMIT)?;
    for number in 1..=LOSSES {
        monitor.stand_still(STILL)?;
        monitor.wait_for_nth("blind", number).context("nothing was lost")?;
        let extents = compare_when_live(&scratch, &mut monitor, &mut workload)
            .with_context(|| format!("after loss {number} of {LOSSES}"))?;
        println!("after loss {number}: all {extents} extents are equal");
    }
    workload.stop()?;
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    let ended = monitor.stop()?;
    let findings = of_type(&ended.lines, "finding");
    ensure!(findings.is_empty(), "an honest file system made the monitor say: {findings:?}");
    ensure!(ended.status == STATUS_COVERAGE_LOST, "exit status {}", ended.status);
    let coverage = ended.coverage()?;
    println!("{coverage}");
    let blind = coverage["blind"].as_array().context("no blind spans")?;
    ensure!(blind.len() >= LOSSES, "not every loss has a blind span: {blind:?}");
    Ok(Outcome::Passed)
}

/// The small buffer may be full again by itself: then there is one more reading to wait for.
pub(super) fn compare_when_live(
    scratch: &Scratch,
    monitor: &mut Monitor,
    workload: &mut Workload,
) -> Result<usize> {
    let end = Instant::now() + LIMIT;
    loop {
        ensure!(Instant::now() < end, "it did not come back to verifying");
        workload.work(OPERATIONS, LIMIT)?;
        workload.pause_balance()?;
        let extents = compare_if_live(scratch, monitor)?;
        workload.resume_balance();
        if let Some(extents) = extents {
            return Ok(extents);
        }
    }
}
