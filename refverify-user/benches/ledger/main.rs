//! Measures the ledger: `cargo bench -p refverify-user --bench ledger`.
//!
//! Each measurement runs in a process of its own, so that the resident memory it reports is
//! its own and no allocator's leftovers. `--extents N` (10 million) and `--events N` choose the size;
//! a measurement's name chooses it alone.

mod kernel;
mod workload;

use std::{
    env, fs,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use kernel::KernelLedger;
use refverify_user::{
    feed::Event,
    verify::ledger::{Ledger, Limits, PackedLedger, PlainLedger},
};
use workload::{Disk, Events, Mix, Places};

/// Events between two commits.
const FOLD: usize = 50_000;
/// Events that one drain of the ring buffer brings.
const DRAIN: usize = 4096;
/// Extents in one leaf of the extent tree, about.
const LEAF: usize = 150;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |name: &str, default: usize| {
        let at = args.iter().position(|arg| arg == name);
        at.and_then(|at| args.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let extents = number("--extents", 10_000_000);
    let events = number("--events", 5_000_000);
    let known = measurements();
    let chosen: Vec<_> =
        known.iter().filter(|(name, _)| args.contains(&(*name).to_string())).collect();
    if let [(_, measure)] = chosen[..] {
        measure(extents, events);
        return ExitCode::SUCCESS;
    }
    let Ok(this) = env::current_exe() else { return ExitCode::FAILURE };
    for (name, _) in if chosen.is_empty() { known.iter().collect() } else { chosen } {
        let (extents, events) = (extents.to_string(), events.to_string());
        let status =
            Command::new(&this).args([*name, "--extents", &extents, "--events", &events]).status();
        if !status.is_ok_and(|status| status.success()) {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

type Measure = fn(usize, usize);

fn measurements() -> Vec<(&'static str, Measure)> {
    vec![
        ("rest-single", |n, _| rest(Mix::Single, n)),
        ("rest-aged", |n, _| rest(Mix::Aged, n)),
        ("rest-snapshots", |n, _| rest(Mix::Snapshots, n)),
        ("rest-metadata", |n, _| rest(Mix::Metadata, n)),
        ("bulk", |n, _| bulk(n)),
        ("random", |n, events| packed(Places::Random, n, events)),
        ("local", |n, events| packed(Places::Local, n, events)),
        ("plain-random", |n, events| plain(Places::Random, n, events)),
        ("kernel-random", |n, events| kernel(Places::Random, n, events)),
        ("kernel-local", |n, events| kernel(Places::Local, n, events)),
        ("latency", latency),
        ("churn", |n, events| churn(n, events.max(50_000_000))),
    ]
}

/// Resident memory of this process.
fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0)
        * 4096
}

/// The time that this thread has run: others on the machine do not count.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ran_ns = stat.split_whitespace().next().and_then(|ran| ran.parse().ok());
    Duration::from_nanos(ran_ns.unwrap_or(0))
}

fn seed(ledger: &mut dyn Ledger, disk: &mut Disk, count: usize) -> Duration {
    let mut took = Duration::ZERO;
    let leaves = count / LEAF;
    let mut made: Vec<_> = (0..64).map(|_| (0..0, Vec::new())).collect();
    for first in (0..leaves).step_by(made.len()) {
        let some = made.len().min(leaves - first);
        for (range, leaf) in &mut made[..some] {
            *range = disk.next_leaf(LEAF, leaf);
        }
        let begin = cpu_time();
        for (range, leaf) in &made[..some] {
            ledger.read(range.clone(), 42, leaf);
        }
        took += cpu_time() - begin;
    }
    took
}

fn per(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64() / 1e6
}

fn rest(mix: Mix, count: usize) {
    let before = resident_bytes();
    let mut ledger = PackedLedger::new(Limits::default());
    let took = seed(&mut ledger, &mut Disk::new(mix), count);
    let resident = resident_bytes() - before;
    let live = ledger.live() as usize;
    println!(
        "at rest, {:<34} {:>11} extents  {:>6.2} B per extent resident  ({:.2} B counted, {:.1} M/s seeded)",
        name_of(mix),
        live,
        resident as f64 / live as f64,
        ledger.kept().total_bytes as f64 / live as f64,
        per(live, took),
    );
}

fn bulk(count: usize) {
    let mut ledger = PackedLedger::new(Limits::default());
    let took = seed(&mut ledger, &mut Disk::new(Mix::Single), count);
    println!("bulk construction {:>40} extents  {:>6.2} M extents/s", count, per(count, took));
}

/// Applies events in batches that are made beforehand; returns the time that the ledger took.
fn run(
    events: &mut Events,
    count: usize,
    first_transid: u64,
    mut batch: impl FnMut(&[Event], u64),
) -> Duration {
    let mut took = Duration::ZERO;
    for (transid, _) in (first_transid..).zip((0..count).step_by(FOLD)) {
        let made: Vec<_> = (0..FOLD).map(|_| events.next(transid)).collect();
        let begin = cpu_time();
        batch(&made, transid);
        took += cpu_time() - begin;
    }
    took
}

fn packed(places: Places, extents: usize, count: usize) {
    let mut ledger = PackedLedger::new(Limits::default());
    seed(&mut ledger, &mut Disk::new(Mix::Single), extents);
    let mut events = Events::new(places, &mut Disk::new(Mix::Single), extents / LEAF * LEAF);
    let mut folding = Duration::ZERO;
    let took = run(&mut events, count, 43, |batch, transid| {
        for some in batch.chunks(DRAIN) {
            assert!(ledger.apply_all(some).wrong.is_empty(), "honest events are in order");
        }
        let begin = cpu_time();
        ledger.commit(transid);
        folding += cpu_time() - begin;
    });
    println!(
        "{places:?} events {:>40} extents  {:>6.3} M events/s  ({:.0} % of it folding)",
        extents,
        per(count, took),
        100.0 * folding.as_secs_f64() / took.as_secs_f64()
    );
}

fn plain(places: Places, extents: usize, count: usize) {
    let mut ledger = PlainLedger::new(Limits::default());
    let before = resident_bytes();
    seed(&mut ledger, &mut Disk::new(Mix::Single), extents);
    let resident = resident_bytes() - before;
    let mut events = Events::new(places, &mut Disk::new(Mix::Single), extents / LEAF * LEAF);
    let count = count.min(500_000);
    let took = run(&mut events, count, 43, |batch, _| {
        for event in batch {
            assert!(ledger.apply(event).is_ok(), "an honest event is in order");
        }
    });
    println!(
        "{places:?} events, plain ledger, no folding {:>16} extents  {:>6.3} M events/s  {:>6.2} B per extent",
        extents,
        per(count, took),
        resident as f64 / extents as f64
    );
}

fn kernel(places: Places, extents: usize, count: usize) {
    let mut ledger = KernelLedger::default();
    let mut disk = Disk::new(Mix::Single);
    let before = resident_bytes();
    for _ in 0..extents {
        ledger.seed(&disk.next_extent());
    }
    let resident = resident_bytes() - before;
    let mut events = Events::new(places, &mut Disk::new(Mix::Single), extents);
    let count = count.min(2_000_000);
    let took = run(&mut events, count, 43, |batch, _| {
        for event in batch {
            assert!(ledger.apply(event).is_ok(), "an honest event is in order");
        }
    });
    println!(
        "{places:?} events, the kernel's algorithm {:>18} extents  {:>6.3} M events/s  {:>6.2} B per extent",
        extents,
        per(count, took),
        resident as f64 / extents as f64
    );
    // Giving it all back one by one is no part of this.
    std::mem::forget(ledger);
}

fn latency(extents: usize, count: usize) {
    let mut ledger = PackedLedger::new(Limits::default());
    seed(&mut ledger, &mut Disk::new(Mix::Single), extents);
    let mut events =
        Events::new(Places::Random, &mut Disk::new(Mix::Single), extents / LEAF * LEAF);
    let mut took = Vec::with_capacity(count);
    run(&mut events, count, 43, |batch, transid| {
        for (at, event) in batch.iter().enumerate() {
            let begin = Instant::now();
            let verdict = ledger.apply(event);
            if at + 1 == batch.len() {
                ledger.commit(transid);
            }
            took.push(begin.elapsed());
            assert!(verdict.is_ok(), "an honest event is in order");
        }
    });
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!(
        "one event {:>48} extents  median {:?}  p99 {:?}  p99.9 {:?}  worst {:?} (that one folds)",
        extents,
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

fn churn(extents: usize, count: usize) {
    let mut events =
        Events::new(Places::Random, &mut Disk::new(Mix::Single), extents / LEAF * LEAF);
    let before = resident_bytes();
    let mut ledger = PackedLedger::new(Limits::default());
    seed(&mut ledger, &mut Disk::new(Mix::Single), extents);
    let seeded = resident_bytes() - before;
    let mut peak = 0;
    let mut done = 0;
    let took = run(&mut events, count, 43, |batch, transid| {
        for event in batch {
            assert!(ledger.apply(event).is_ok(), "an honest event is in order");
        }
        peak = peak.max(resident_bytes() - before);
        ledger.commit(transid);
        done += batch.len();
        if done % (count / 10) < FOLD {
            let kept = ledger.kept();
            println!(
                "  after {:>9} events: {:>5} MB resident, {:>5} MB counted, {:>4} MB of it history; tombstones after {}",
                done,
                (resident_bytes() - before) >> 20,
                kept.total_bytes >> 20,
                kept.history_bytes >> 20,
                kept.tombstones_after
            );
        }
    });
    println!(
        "churn, {count} events over {extents} extents: {} MB seeded, peak {} MB, {:.3} M events/s",
        seeded >> 20,
        peak >> 20,
        per(count, took)
    );
}

fn name_of(mix: Mix) -> &'static str {
    match mix {
        Mix::Single => "single data refs, files in order",
        Mix::Aged => "single data refs, files anywhere",
        Mix::Snapshots => "30 % with 2 to 8 refs",
        Mix::Metadata => "half tree blocks",
    }
}
