//! How long a finding is held back: from the change in the kernel to the line that tells of it, with
//! all that lies between (the ring buffer, the judgement, the gate, the names of the stack).
//!
//! Wrong changes are made up beside real work, a few dozen a second, each of an extent of its own.
//! Each must be told, unless events were lost meanwhile.

use std::{
    fs::{self, File},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::fs::ioctl_ficlone;
use serde_json::Value;

use super::{
    Outcome, Place,
    burst::{Kind, Producer},
    monitor::{Monitor, STATUS_COVERAGE_LOST, STATUS_FINDINGS, of_type},
    scratch::Scratch,
    workload::{Balances, Workload},
};

/// Wrong changes a second.
const WRONG_PER_SECOND: u64 = 50;

/// How many are waited for; of the first thousand of a kind none is withheld.
const FINDINGS: usize = 800;

/// How long they are waited for: a machine that does not keep up tells fewer.
const LIMIT: Duration = Duration::from_mins(1);

/// What goes on meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// As little as there can be: at each change of the kernel's a wrong one may be made up.
    Idle,
    /// Writers, snapshots and balances, as fast as they can.
    Work,
    /// The same, and so many honest changes a second made up beside it.
    WorkAnd(u64),
}

/// One row of the table.
struct Row {
    name: &'static str,
    options: &'static [&'static str],
    load: Load,
}

const ROWS: [Row; 3] = [
    Row { name: "a clone each 5 ms", options: &[], load: Load::Idle },
    Row { name: "writers, snapshots, balances", options: &[], load: Load::Work },
    Row {
        name: "the same, and 500,000 events/s without stacks",
        options: &["--no-stacks"],
        load: Load::WorkAnd(500_000),
    },
];

pub(super) fn run(place: &Place) -> Result<Outcome> {
    println!("| meanwhile | findings | p50 [ms] | p99 [ms] | longest [ms] | events lost |");
    println!("|---|---|---|---|---|---|");
    for row in &ROWS {
        let name = row.name;
        let (mut held_ms, lost) = measure(&place.another()?, row).context(name)?;
        held_ms.sort_by(f64::total_cmp);
        let at = |hundredths: usize| held_ms[(held_ms.len() - 1) * hundredths / 100];
        let (median, most, longest) = (at(50), at(99), at(100));
        let told = held_ms.len();
        println!("| {name} | {told} | {median:.1} | {most:.1} | {longest:.1} | {lost} |");
    }
    Ok(Outcome::Passed)
}

/// Times of all findings, in milliseconds; and how many events were lost.
fn measure(place: &Place, row: &Row) -> Result<(Vec<f64>, u64)> {
    let mut scratch = Scratch::new(place, 3 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let mut monitor = Monitor::start(place, scratch.device_name(), row.options)?;
    monitor.wait_for("seeded")?;
    let made = plant(place, &scratch, &monitor, row.load)?;
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    let ended = monitor.stop()?;
    let lost = ended.events_lost()?;
    let findings = of_type(&ended.lines, "finding");
    let told = findings.len() as u64;
    ensure!(told > 0 && (lost > 0 || told == made), "{made} wrong changes, {told} findings");
    let status = STATUS_FINDINGS | if lost > 0 { STATUS_COVERAGE_LOST } else { 0 };
    ensure!(ended.status == status, "exit status {}", ended.status);
    Ok((findings.iter().map(held_ms).collect::<Result<_>>()?, lost))
}

/// Makes up wrong changes until enough are found; how many that were.
fn plant(place: &Place, scratch: &Scratch, monitor: &Monitor, load: Load) -> Result<u64> {
    let mut wrong = Producer::start(place, monitor, Kind::Wrong)?;
    let mut honest = Producer::start(&place.another()?, monitor, Kind::Honest)?;
    let mut workload = None;
    if load != Load::Idle {
        workload = Some(Workload::start(&scratch.mount_point, 7, Balances::Running)?);
    }
    if let Load::WorkAnd(rate) = load {
        honest.at_rate(rate)?;
    }
    wrong.at_rate(WRONG_PER_SECOND)?;
    wait_for_findings(scratch, monitor, load)?;
    let made = wrong.at_rate(0)?;
    honest.at_rate(0)?;
    workload.map(Workload::stop).transpose()?;
    Ok(made.made)
}

/// Works until there are enough, or time is up.
fn wait_for_findings(scratch: &Scratch, monitor: &Monitor, load: Load) -> Result<()> {
    let source = scratch.path("source");
    fs::write(&source, [1; 64 << 10])?;
    let (source, target) = (File::open(source)?, File::create(scratch.path("target"))?);
    let end = Instant::now() + LIMIT;
    while monitor.count_of("finding") < FINDINGS && Instant::now() < end {
        if load == Load::Idle {
            ioctl_ficlone(&target, &source)?;
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn held_ms(finding: &Value) -> Result<f64> {
    let (made, heard) = (finding["time_ns"].as_u64(), finding["heard_ns"].as_u64());
    let (made, heard) = made.zip(heard).context("a finding without times")?;
    let held = heard.checked_sub(made).context("a finding heard before it was made")?;
    Ok(Duration::from_nanos(held).as_secs_f64() * 1000.0)
}
