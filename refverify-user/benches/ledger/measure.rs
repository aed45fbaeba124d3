//! The measurements. Each prints one line, or some.

use std::{
    fs,
    time::{Duration, Instant},
};

use refverify_user::{
    feed::Event,
    verify::ledger::{Ledger, Limits, PackedLedger, PlainLedger, ShardedLedger},
};

use super::{
    kernel::KernelLedger,
    workload::{Disk, Events, Mix, Places},
};

/// Events between two commits.
const FOLD: usize = 50_000;
/// Events that one message of the agent brings when it is busy.
const BATCH: usize = 4096;
/// Extents in one leaf of the extent tree, about.
const LEAF: usize = 150;

/// Resident memory of this process.
fn resident_bytes() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0)
        * 4096
}

/// The time that this thread has run: others on the machine do not count, but for what they
/// take of caches and memory.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ran_ns = stat.split_whitespace().next().and_then(|ran| ran.parse().ok());
    Duration::from_nanos(ran_ns.unwrap_or(0))
}

fn cpu_time_since(begin: Duration) -> Duration {
    cpu_time().saturating_sub(begin)
}

/// Millions per second.
fn per(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64() / 1e6
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
        took += cpu_time_since(begin);
    }
    took
}

fn kernel_seed(extents: usize) -> KernelLedger {
    let mut ledger = KernelLedger::default();
    let mut disk = Disk::new(Mix::Single);
    for _ in 0..extents {
        ledger.seed(&disk.next_extent());
    }
    ledger
}

fn events(places: Places, extents: usize) -> Events {
    Events::new(places, &mut Disk::new(Mix::Single), extents / LEAF * LEAF)
}

fn name_of(mix: Mix) -> &'static str {
    match mix {
        Mix::Single => "single data refs, files in order",
        Mix::Aged => "single data refs, files anywhere",
        Mix::Snapshots => "30 % with 2 to 8 refs",
        Mix::Metadata => "half tree blocks",
    }
}

fn show_rest(what: &str, extents: usize, resident: usize) {
    let each = resident as f64 / extents as f64;
    println!("at rest, {what:<34} {extents:>11} extents {each:>8.2} B per extent resident");
}

fn show_events(places: Places, whose: &str, extents: usize, rate: f64, note: &str) {
    println!("{places:?} events, {whose:<27} {extents:>12} extents {rate:>8.3} M events/s{note}");
}

pub(crate) fn rest(mix: Mix, count: usize) {
    let before = resident_bytes();
    let mut ledger = PackedLedger::new(Limits::default());
    seed(&mut ledger, &mut Disk::new(mix), count);
    show_rest(name_of(mix), ledger.live() as usize, resident_bytes() - before);
}

pub(crate) fn plain_at_rest(count: usize) {
    let before = resident_bytes();
    let mut ledger = PlainLedger::new(Limits::default());
    seed(&mut ledger, &mut Disk::new(Mix::Single), count);
    show_rest("single data refs, plain ledger", ledger.live() as usize, resident_bytes() - before);
}

pub(crate) fn kernel_at_rest(count: usize) {
    let before = resident_bytes();
    let ledger = kernel_seed(count);
    show_rest("single data refs, the kernel's way", count, resident_bytes() - before);
    // Giving it all back one by one is no part of this.
    std::mem::forget(ledger);
}

pub(crate) fn bulk(count: usize) {
    let mut ledger = PackedLedger::new(Limits::default());
    let took = seed(&mut ledger, &mut Disk::new(Mix::Single), count);
    println!("bulk construction {count:>37} extents {:>8.2} M extents/s", per(count, took));
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
        took += cpu_time_since(begin);
    }
    took
}

pub(crate) fn packed(places: Places, extents: usize, count: usize) {
    let mut ledger = PackedLedger::new(Limits::default());
    seed(&mut ledger, &mut Disk::new(Mix::Single), extents);
    let mut folding = Duration::ZERO;
    let took = run(&mut events(places, extents), count, 43, |batch, transid| {
        for some in batch.chunks(BATCH) {
            assert!(ledger.apply_all(some).wrong.is_empty(), "honest events are in order");
        }
        let begin = cpu_time();
        ledger.commit(transid);
        folding += cpu_time_since(begin);
    });
    let share = 100.0 * folding.as_secs_f64() / took.as_secs_f64();
    let note = format!(" ({share:.0} % of it folding)");
    show_events(places, "packed ledger", extents, per(count, took), &note);
}

pub(crate) fn plain(places: Places, extents: usize, count: usize) {
    let mut ledger = PlainLedger::new(Limits::default());
    seed(&mut ledger, &mut Disk::new(Mix::Single), extents);
    let count = count.min(500_000);
    let took = run(&mut events(places, extents), count, 43, |batch, _| {
        for event in batch {
            assert!(ledger.apply(event).is_ok(), "an honest event is in order");
        }
    });
    show_events(places, "plain ledger, not folding", extents, per(count, took), "");
}

pub(crate) fn kernel(places: Places, extents: usize, count: usize) {
    let mut ledger = kernel_seed(extents);
    let count = count.min(2_000_000);
    let took = run(&mut events(places, extents), count, 43, |batch, _| {
        for event in batch {
            assert!(ledger.apply(event).is_ok(), "an honest event is in order");
        }
    });
    show_events(places, "the kernel's algorithm", extents, per(count, took), "");
    std::mem::forget(ledger);
}

/// By the clock, as several threads work: others on the machine do count here.
pub(crate) fn cores(extents: usize, count: usize) {
    let mut alone = Duration::ZERO;
    for cores in [1, 2] {
        let mut ledger = ShardedLedger::new(Limits::default(), cores);
        seed(&mut ledger, &mut Disk::new(Mix::Single), extents);
        let mut took = Duration::ZERO;
        run(&mut events(Places::Random, extents), count, 43, |batch, transid| {
            let begin = Instant::now();
            for some in batch.chunks(BATCH) {
                assert!(ledger.apply_all(some).wrong.is_empty(), "honest events are in order");
            }
            ledger.commit(transid);
            took += begin.elapsed();
        });
        let note = match cores {
            1 => String::new(),
            _ => format!(" ({:.2} times one)", alone.as_secs_f64() / took.as_secs_f64()),
        };
        alone = took;
        let whose = format!("{cores} shards, by the clock");
        show_events(Places::Random, &whose, extents, per(count, took), &note);
    }
}

pub(crate) fn latency(extents: usize, count: usize) {
    let mut ledger = PackedLedger::new(Limits::default());
    seed(&mut ledger, &mut Disk::new(Mix::Single), extents);
    let mut took = Vec::with_capacity(count);
    run(&mut events(Places::Random, extents), count, 43, |batch, transid| {
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
        "one event alone {extents:>39} extents, median {:?}, p99 {:?}, worst {:?} (that one folds)",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

pub(crate) fn churn(extents: usize, count: usize) {
    let mut events = events(Places::Random, extents);
    let before = resident_bytes();
    let mut ledger = PackedLedger::new(Limits::default());
    seed(&mut ledger, &mut Disk::new(Mix::Single), extents);
    let seeded = resident_bytes() - before;
    let mut peak = 0;
    let mut done = 0;
    run(&mut events, count, 43, |batch, transid| {
        for some in batch.chunks(BATCH) {
            assert!(ledger.apply_all(some).wrong.is_empty(), "honest events are in order");
        }
        let before_folding = resident_bytes() - before;
        peak = peak.max(before_folding);
        ledger.commit(transid);
        done += batch.len();
        if done % (count / 10) < FOLD {
            let kept = ledger.kept();
            println!(
                "churn, after {done:>9} events: {:>5} MiB before folding, {:>5} MiB after; \
                 {:>4} MiB history, {:>4} MiB for {} extents; freed ones known since \
                 transaction {}",
                before_folding >> 20,
                (resident_bytes() - before) >> 20,
                kept.history_bytes >> 20,
                (kept.total_bytes - kept.history_bytes) >> 20,
                ledger.live(),
                kept.tombstones_after + 1
            );
        }
    });
    println!(
        "churn, {count} events over {extents} extents: {} MiB seeded, peak {} MiB",
        seeded >> 20,
        peak >> 20
    );
}
