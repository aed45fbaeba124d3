//! How long a finding is held back: from the change in the kernel to the line that tells of it, with
//! all that lies between (the ring buffer, the judgement, the gate, the names of the stack).
//!
//! Wrong changes are made up beside real work, a few dozen a second, each of an extent of its own.

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
    monitor::{Monitor, STATUS_FINDINGS, of_type},
    scratch::Scratch,
    workload::{Balances, Workload},
};

/// Wrong changes a second.
const WRONG_PER_SECOND: u64 = 50;

/// How many are waited for; of the first thousand of a kind none is withheld.
const FINDINGS: usize = 800;

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
    println!("| meanwhile | findings | p50 [ms] | p99 [ms] | longest [ms] |");
    println!("|---|---|---|---|---|");
    for row in &ROWS {
        let name = row.name;
        let mut held_ms = measure(&place.another()?, row).context(name)?;
        held_ms.sort_by(f64::total_cmp);
        let at = |hundredths: usize| held_ms[(held_ms.len() - 1) * hundredths / 100];
        let (median, most, longest) = (at(50), at(99), at(100));
        println!("| {name} | {} | {median:.1} | {most:.1} | {longest:.1} |", held_ms.len());
    }
    Ok(Outcome::Passed)
}

/// Times of all findings, in milliseconds.
fn measure(place: &Place, row: &Row) -> Result<Vec<f64>> {
    let Row { options, load, .. } = *row;
    let mut scratch = Scratch::new(place, 3 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let mut monitor = Monitor::start(place, scratch.device_name(), options)?;
    monitor.wait_for("seeded")?;
    let mut wrong = Producer::start(place, &monitor, Kind::Wrong)?;
    let honest_place = place.another()?;
    let mut honest = Producer::start(&honest_place, &monitor, Kind::Honest)?;
    let mut workload = None;
    if load != Load::Idle {
        workload = Some(Workload::start(&scratch.mount_point, 7, Balances::Running)?);
    }
    if let Load::WorkAnd(rate) = load {
        honest.at_rate(rate)?;
    }
    wrong.at_rate(WRONG_PER_SECOND)?;
    wait_for_findings(&scratch, &monitor, load)?;
    let made = wrong.at_rate(0)?;
    honest.at_rate(0)?;
    workload.map(Workload::stop).transpose()?;
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    let ended = monitor.stop()?;
    ensure!(ended.status == STATUS_FINDINGS, "exit status {}; was something lost?", ended.status);
    let findings = of_type(&ended.lines, "finding");
    let told = findings.len();
    ensure!(
        told as u64 == made.made,
        "{} wrong changes, {told} findings; {}",
        made.made,
        ended.coverage()?
    );
    findings.iter().map(held_ms).collect()
}

/// Works until there are enough.
fn wait_for_findings(scratch: &Scratch, monitor: &Monitor, load: Load) -> Result<()> {
    let source = scratch.path("source");
    fs::write(&source, [1; 64 << 10])?;
    let (source, target) = (File::open(source)?, File::create(scratch.path("target"))?);
    let end = Instant::now() + Duration::from_mins(5);
    while monitor.count_of("finding") < FINDINGS {
        ensure!(Instant::now() < end, "too few findings in five minutes");
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
