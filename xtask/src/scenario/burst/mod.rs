//! More events than any file system makes: real work goes on, and beside it changes are made up,
//! honest ones, straight into the monitor's ring buffer. Nothing may be found, what finds no room
//! must be told and covered by a blind span, and the ledger must equal the disk after each burst.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Outcome, Place,
    bench_path::{self, processor_seconds},
    loss::compare_when_live,
    monitor::{Ended, Monitor, STATUS_COVERAGE_LOST, of_type},
    scratch::Scratch,
    workload::{Balances, Workload},
};

mod producer;

use producer::Made;
pub(super) use producer::{Kind, Producer, obstacle};

/// How long a burst lasts.
const SECONDS: u64 = 5;

/// Clones by which it is measured how many events this machine's btrfs makes at most.
const CLONES: u64 = 100;

/// One way to be flooded.
struct Case {
    name: &'static str,
    options: &'static [&'static str],
    rate: Rate,
    bursts: usize,
    /// Whether more comes than can be taken.
    loses: bool,
}

/// Records a second.
#[derive(Clone, Copy)]
enum Rate {
    Of(u64),
    /// As many times what btrfs itself makes in the densest work.
    TimesReal(u64),
    Unlimited,
}

const CASES: [Case; 3] = [
    Case {
        name: "500,000 a second without stacks",
        options: &["--no-stacks"],
        rate: Rate::Of(500_000),
        bursts: 1,
        loses: false,
    },
    Case {
        name: "three times the densest real work, with stacks",
        options: &[],
        rate: Rate::TimesReal(3),
        bursts: 1,
        loses: false,
    },
    Case {
        name: "all that the processor makes, into the smallest buffer",
        options: &["--no-stacks", "--ring-mib", "1"],
        rate: Rate::Unlimited,
        bursts: 2,
        loses: true,
    },
];

pub(super) fn run(place: &Place) -> Result<Outcome> {
    if let Some(why) = obstacle() {
        return Ok(Outcome::Skipped(why));
    }
    for case in &CASES {
        println!("{}:", case.name);
        flood(place, case).context(case.name)?;
    }
    Ok(Outcome::Passed)
}

fn flood(place: &Place, case: &Case) -> Result<()> {
    let place = place.another()?;
    let mut scratch = Scratch::new(&place, 3 << 30)?;
    scratch.mkfs(&[])?;
    let mut monitor = Monitor::start(&place, scratch.device_name(), case.options)?;
    let mut producer = Producer::start(&place, &monitor, Kind::Honest)?;
    scratch.mount()?;
    monitor.wait_for("seeded")?;
    let rate = records_per_second(case.rate, &scratch, &mut producer)?;
    let mut workload = Workload::start(&scratch.mount_point, 7, Balances::Running)?;
    for _ in 0..case.bursts {
        burst(&place, rate, &mut monitor, &mut producer, &mut workload)?;
        let extents = compare_when_live(&scratch, &mut monitor, &mut workload)?;
        println!("  after it all {extents} extents are equal");
    }
    let made = producer.at_rate(0)?;
    workload.stop()?;
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    drop(producer);
    judge(case, &made, &monitor.stop()?)
}

fn records_per_second(rate: Rate, scratch: &Scratch, producer: &mut Producer) -> Result<u64> {
    let times = match rate {
        Rate::Of(rate) => return Ok(rate),
        Rate::Unlimited => return Ok(u64::MAX),
        Rate::TimesReal(times) => times,
    };
    bench_path::prepare(scratch)?;
    let before = producer.at_rate(0)?;
    bench_path::work(scratch, CLONES)?;
    let (real, _) = producer.at_rate(0)?.rates_since(&before);
    println!("  the densest real work makes {real} a second");
    Ok(real * times)
}

fn burst(
    place: &Place,
    rate: u64,
    monitor: &mut Monitor,
    producer: &mut Producer,
    workload: &mut Workload,
) -> Result<()> {
    let time = Duration::from_secs(place.minutes.map_or(SECONDS, |minutes| minutes * 60));
    let (before, processor) = (producer.at_rate(rate)?, processor_seconds(monitor.pid())?);
    let start = Instant::now();
    while start.elapsed() < time {
        workload.check()?;
        thread::sleep(Duration::from_millis(50));
    }
    let (real, made) = producer.at_rate(0)?.rates_since(&before);
    ensure!(made > 0, "nothing was made up");
    let behind = Instant::now();
    // All that was sent is judged before the dump is written.
    monitor.dump_ledger()?;
    let used = processor_seconds(monitor.pid())? - processor;
    println!(
        "  {made} a second made up beside {real} real ones, for {} s; the monitor used {used:.2} s \
         of processor time, and had judged all {:.2} s later",
        time.as_secs(),
        behind.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Nothing was found, nothing has vanished, and what was lost lies in blind spans.
fn judge(case: &Case, made: &Made, ended: &Ended) -> Result<()> {
    let findings = of_type(&ended.lines, "finding");
    ensure!(findings.is_empty(), "honest changes made the monitor say: {findings:?}");
    let coverage = ended.coverage()?;
    let lost = ended.events_lost()?;
    let seen = coverage["events_seen"].as_u64().context("no events_seen")?;
    println!("  of {} records {seen} were seen and {lost} lost", made.met + made.records);
    ensure!(
        seen + lost >= made.met + made.records,
        "{} records were made, but {seen} seen and {lost} told as lost",
        made.met + made.records
    );
    if lost == 0 {
        ensure!(!case.loses, "nothing was lost, however much was made");
        return ended.expect_clean();
    }
    ensure!(ended.status == STATUS_COVERAGE_LOST, "exit status {}", ended.status);
    let (verified, blind) = (spans(&coverage["verified"])?, spans(&coverage["blind"])?);
    println!("  verified {verified:?}, blind {blind:?}");
    let is_in = |spans: &[Span], transid| spans.iter().any(|&(a, b)| a <= transid && transid <= b);
    for &transid in &made.lost_in {
        ensure!(
            is_in(&blind, transid) && !is_in(&verified, transid),
            "transaction {transid} lost events, and is not told as blind: {coverage}"
        );
    }
    // The work itself may fill the smallest buffer once more, until it is unmounted.
    let last_lost = made.lost_in.iter().max().copied().unwrap_or(0);
    ensure!(
        verified.last().is_some_and(|last| last.1 > last_lost),
        "nothing is verified after the last burst: {coverage}"
    );
    Ok(())
}

/// First and last transid.
type Span = (u64, u64);

fn spans(value: &Value) -> Result<Vec<Span>> {
    let span = |span: &Value| Some((span["first"].as_u64()?, span["last"].as_u64()?));
    let spans = value.as_array().context("no spans")?;
    spans.iter().map(|value| span(value).context("no span")).collect()
}
