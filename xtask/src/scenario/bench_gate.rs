//! How long a finding is held back: from the change in the kernel to the line that tells of it, with
//! all that lies between (the ring buffer, the judgement, the gate, the names of the stack).
//!
//! Wrong changes are made up beside real work, a few dozen a second, each of an extent of its own.
//! Each must be told, unless events were lost meanwhile. A thread that does nothing but sleep shows
//! how much of it is the machine's: on the way from the kernel to the line five threads wake up.

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
    burst::{Kind, Producer, obstacle},
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

/// How long is slept between two looks, and two clones.
const STEP: Duration = Duration::from_millis(5);

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
    if let Some(why) = obstacle() {
        return Ok(Outcome::Skipped(why));
    }
    println!(
        "| meanwhile | findings | held, p50 / p99 / longest [ms] | a sleeper wakes late | events lost |"
    );
    println!("|---|---|---|---|---|");
    for row in &ROWS {
        let Measured { held_ms, late_ms, lost } =
            measure(&place.another()?, row).context(row.name)?;
        let told = held_ms.len();
        println!("| {} | {told} | {} | {} | {lost} |", row.name, show(held_ms), show(late_ms));
    }
    Ok(Outcome::Passed)
}

/// What one row shows.
struct Measured {
    /// How long each finding took, in milliseconds.
    held_ms: Vec<f64>,
    /// How late a sleeping thread woke each time.
    late_ms: Vec<f64>,
    /// Events.
    lost: u64,
}

/// Median, 99 of 100, and the longest.
fn show(mut times_ms: Vec<f64>) -> String {
    times_ms.sort_by(f64::total_cmp);
    let at = |hundredths: usize| {
        let last = times_ms.len().saturating_sub(1);
        times_ms.get(last * hundredths / 100).copied().unwrap_or(f64::NAN)
    };
    format!("{:.1} / {:.1} / {:.1}", at(50), at(99), at(100))
}

fn measure(place: &Place, row: &Row) -> Result<Measured> {
    let mut scratch = Scratch::new(place, 3 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let mut monitor = Monitor::start(place, scratch.device_name(), row.options)?;
    monitor.wait_for("seeded")?;
    let (made, late_ms) = plant(place, &scratch, &monitor, row.load)?;
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    let ended = monitor.stop()?;
    let lost = ended.events_lost()?;
    let findings = of_type(&ended.lines, "finding");
    let told = findings.len() as u64;
    ensure!(told > 0 && (lost > 0 || told == made), "{made} wrong changes, {told} findings");
    let status = STATUS_FINDINGS | if lost > 0 { STATUS_COVERAGE_LOST } else { 0 };
    ensure!(ended.status == status, "exit status {}", ended.status);
    let held_ms = findings.iter().map(held_ms).collect::<Result<_>>()?;
    Ok(Measured { held_ms, late_ms, lost })
}

/// Makes up wrong changes until enough are found: how many that were, and how late this thread woke
/// meanwhile.
fn plant(
    place: &Place,
    scratch: &Scratch,
    monitor: &Monitor,
    load: Load,
) -> Result<(u64, Vec<f64>)> {
    let place_of_honest = place.another()?;
    let mut wrong = Producer::start(place, monitor, Kind::Wrong)?;
    let mut honest = Producer::start(&place_of_honest, monitor, Kind::Honest)?;
    let mut workload = None;
    if load != Load::Idle {
        workload = Some(Workload::start(&scratch.mount_point, 7, Balances::Running)?);
    }
    if let Load::WorkAnd(rate) = load {
        honest.at_rate(rate)?;
    }
    wrong.at_rate(WRONG_PER_SECOND)?;
    let late_ms = wait_for_findings(scratch, monitor, load)?;
    let made = wrong.at_rate(0)?;
    honest.at_rate(0)?;
    workload.map(Workload::stop).transpose()?;
    Ok((made.records, late_ms))
}

/// Works until there are enough, or time is up.
fn wait_for_findings(scratch: &Scratch, monitor: &Monitor, load: Load) -> Result<Vec<f64>> {
    let source = scratch.path("source");
    fs::write(&source, vec![1; 64 << 10])?;
    let (source, target) = (File::open(source)?, File::create(scratch.path("target"))?);
    let mut late_ms = Vec::new();
    let end = Instant::now() + LIMIT;
    while monitor.count_of("finding") < FINDINGS && Instant::now() < end {
        if load == Load::Idle {
            ioctl_ficlone(&target, &source)?;
        }
        let asleep = Instant::now();
        thread::sleep(STEP);
        late_ms.push(asleep.elapsed().saturating_sub(STEP).as_secs_f64() * 1000.0);
    }
    Ok(late_ms)
}

fn held_ms(finding: &Value) -> Result<f64> {
    let (made, heard) = (finding["time_ns"].as_u64(), finding["heard_ns"].as_u64());
    let (made, heard) = made.zip(heard).context("a finding without times")?;
    let held = heard.checked_sub(made).context("a finding heard before it was made")?;
    Ok(Duration::from_nanos(held).as_secs_f64() * 1000.0)
}
