//! Everything at once, at the rate that the machine gives, with an audit of every commit: nothing
//! is found, and the ledger equals the disk at frozen points on the way and at the end.
//!
//! Three minutes here and one in a VM, unless `cargo xtask soak` was told otherwise.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, mount_remount};
use serde_json::Value;

use super::{
    Outcome, Place,
    compare::{compare_if_live, superblock},
    monitor::{Ended, Monitor, STATUS_COVERAGE_LOST, of_type},
    scratch::Scratch,
    used::Used,
    workload::{Balances, Workload},
};
use jobs::Jobs;

mod dedupe;
mod jobs;

/// How long it works here, and under emulation.
const MINUTES: u64 = 3;
const MINUTES_IN_VM: u64 = 1;

/// Frozen points on the way.
const POINTS: u32 = 5;

/// Audits that a run must have made to count.
const AUDITS_MIN: u64 = 10;

/// How long the monitor may take to be exact again after a loss.
const LIVE_LIMIT: Duration = Duration::from_mins(2);

/// Between two looks at what the monitor said.
const LOOK: Duration = Duration::from_millis(500);

/// The device here. Both profiles of data must find room while one is made the other, also where
/// block groups that are empty already wait for a commit to be given up: with 8 GiB, and so chunks
/// of 800 MiB, a run on 6.18 got no space.
const LEN_BYTES: u64 = 24 << 30;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let default = if place.has_device() { MINUTES_IN_VM } else { MINUTES };
    let time = Duration::from_mins(place.minutes.unwrap_or(default));
    let mut scratch = Scratch::new(place, LEN_BYTES)?;
    scratch.mkfs(&[])?;
    let mut monitor = Monitor::start(place, scratch.device_name(), &["--audit"])?;
    scratch.mount()?;
    mount_remount(&scratch.mount_point, MountFlags::empty(), c"commit=1")?;
    monitor.wait_for("seeded")?;
    let first_generation = superblock(&scratch.device)?.generation;
    let workload = Workload::start(&scratch.mount_point, 11, Balances::Converting)?;
    let jobs = Jobs::start(&scratch.mount_point, &workload);
    let mut soak = Soak { start: Instant::now(), comparisons: 0, monitor, workload, jobs };
    if let Err(error) = soak.work(&scratch, time) {
        // What the monitor says of it is what one wants to know then.
        let said = soak.monitor.lines();
        let said = ["finding", "blind", "aborted", "refused"].map(|kind| of_type(&said, kind));
        for line in said.concat() {
            println!("the monitor said: {line}");
        }
        return Err(error);
    }
    let (seconds, comparisons) = (soak.start.elapsed().as_secs_f64(), soak.comparisons);
    let done = soak.workload.stop()?;
    ensure!(done.balances > 0, "no balance ended: the workload did not do its part");
    println!("{} operations of the writers, {} conversions", done.operations, done.balances);
    scratch.unmount()?;
    let commits = superblock(&scratch.device)?.generation - first_generation;
    soak.monitor.wait_for("unmounted")?;
    let ended = soak.monitor.stop()?;
    expect_honest(&ended)?;
    tell(&ended, &Told { seconds, commits, comparisons })?;
    Ok(Outcome::Passed)
}

/// What goes on.
struct Soak {
    start: Instant,
    comparisons: u64,
    // In the order in which they are to be let go after a failure.
    jobs: Jobs,
    workload: Workload,
    monitor: Monitor,
}

impl Soak {
    /// Works, and compares at frozen points and at the end.
    fn work(&mut self, scratch: &Scratch, time: Duration) -> Result<()> {
        for point in 1..=POINTS {
            self.work_until(time * point / (POINTS + 1))?;
            self.compare(scratch).with_context(|| format!("frozen point {point} of {POINTS}"))?;
        }
        self.work_until(time)?;
        self.jobs.stop()?;
        self.compare(scratch).context("at the end")
    }

    /// Lets the work go on until `time` has passed since its start.
    fn work_until(&mut self, time: Duration) -> Result<()> {
        while self.start.elapsed() < time {
            thread::sleep(LOOK);
            self.workload.check()?;
            self.jobs.check()?;
            let said = self.monitor.lines();
            for kind in ["finding", "aborted", "refused"] {
                let bad = of_type(&said, kind);
                ensure!(bad.is_empty(), "an honest file system made the monitor say: {bad:?}");
            }
        }
        Ok(())
    }

    /// After a loss there is a reading to wait for, with the file system thawed.
    fn compare(&mut self, scratch: &Scratch) -> Result<()> {
        let end = Instant::now() + LIVE_LIMIT;
        loop {
            self.workload.pause_balance()?;
            let compared = compare_if_live(scratch, &mut self.monitor);
            self.workload.resume_balance();
            if let Some(extents) = compared? {
                self.comparisons += 1;
                self.tell_equal(extents);
                return Ok(());
            }
            if Instant::now() > end {
                bail!("the monitor did not come back to verifying");
            }
            thread::sleep(LOOK);
        }
    }

    fn tell_equal(&self, extents: usize) {
        let seconds = self.start.elapsed().as_secs();
        let resident = Used::by(self.monitor.pid()).map_or(0, |used| used.memory_kib);
        println!("after {seconds} s: all {extents} extents are equal; {resident} KiB resident");
    }
}

/// No finding; a loss only if it ended, and was said.
fn expect_honest(ended: &Ended) -> Result<()> {
    let said = |kind| of_type(&ended.lines, kind);
    let findings = said("finding");
    ensure!(findings.is_empty(), "an honest file system made the monitor say: {findings:?}");
    let coverage = ended.coverage()?;
    let losses = said("summary")[0]["losses"].as_array().map_or(0, Vec::len);
    let blind = coverage["blind"].as_array().context("no blind spans")?.len();
    let status = if losses == 0 { 0 } else { STATUS_COVERAGE_LOST };
    ensure!(ended.status == status, "exit status {}: {}", ended.status, ended.stderr.trim());
    ensure!((losses == 0) == (blind == 0), "{losses} losses, but {blind} blind spans");
    ensure!(said("seeded").len() == blind + 1, "not every loss was followed by a reading");
    Ok(())
}

/// What the monitor does not know.
struct Told {
    seconds: f64,
    commits: u64,
    comparisons: u64,
}

fn tell(ended: &Ended, told: &Told) -> Result<()> {
    let coverage = ended.coverage()?;
    println!("{coverage}");
    let number =
        |name: &str| coverage[name].as_u64().with_context(|| format!("no {name} in the summary"));
    let events = number("events_seen")?;
    let summary = of_type(&ended.lines, "summary").pop().unwrap_or_default();
    let lost = |loss: &Value| loss["events_lost"].as_u64().unwrap_or(0);
    let losses: u64 = summary["losses"].as_array().into_iter().flatten().map(lost).sum();
    let Told { seconds, commits, comparisons } = told;
    #[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
    let rate = events as f64 / seconds;
    let (audits, blind) = (number("audits")?, &coverage["blind"]);
    println!(
        "soak: {seconds:.0} s, {events} events ({rate:.0} a second), {commits} commits, \
         {audits} audits, {losses} events lost, blind spans {blind}, {comparisons} comparisons"
    );
    ensure!(audits >= AUDITS_MIN, "only {audits} audits");
    Ok(())
}
