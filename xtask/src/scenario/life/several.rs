//! Several devices under one monitor.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Outcome, Place, Scratch, churn::churn};
use crate::scenario::{
    compare::compare_nth,
    monitor::{Monitor, of_type},
};

/// Rounds of work on each.
const ROUNDS: u64 = 6;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let mut both =
        [Scratch::named(place, "first", 1 << 30)?, Scratch::named(place, "second", 1 << 30)?];
    // One is mounted before the monitor comes, the other after.
    for scratch in &both {
        scratch.mkfs(&[])?;
    }
    both[0].mount()?;
    churn(&both[0].mount_point, 0)?;
    let names = both.each_ref().map(|scratch| scratch.device_name().to_owned());
    let mut monitor = Monitor::start_with(place, &[&names[0], &names[1]])?;
    both[1].mount()?;
    for nth in 1..=2 {
        monitor.wait_for_nth("seeded", nth)?;
    }
    for round in 1..=ROUNDS {
        // Twice as much on the second: the coverage of each is its own.
        churn(&both[0].mount_point, round)?;
        churn(&both[1].mount_point, 2 * round)?;
        churn(&both[1].mount_point, 2 * round + 1)?;
    }
    for (slot, scratch) in both.iter().enumerate() {
        expect_equal(scratch, &mut monitor, slot, &format!("device {slot} of two"))?;
    }
    both[0].unmount()?;
    monitor.wait_for("unmounted")?;
    churn(&both[1].mount_point, 2 * ROUNDS + 2)?;
    expect_equal(&both[1], &mut monitor, 1, "the second after the first was unmounted")?;
    both[1].unmount()?;
    monitor.wait_for_nth("unmounted", 2)?;
    let ended = monitor.stop()?;
    ended.expect_clean()?;
    let summary = of_type(&ended.lines, "summary").pop().context("it printed no summary")?;
    each_has_its_own(&summary["file_systems"], &names)
}

fn expect_equal(scratch: &Scratch, monitor: &mut Monitor, slot: usize, what: &str) -> Result<()> {
    let extents = compare_nth(scratch, monitor, slot).with_context(|| what.to_owned())?;
    ensure!(monitor.findings().is_empty(), "{what}: found {:?}", monitor.findings());
    println!("{what}: all {extents} extents are equal");
    Ok(())
}

fn each_has_its_own(coverage: &Value, names: &[String; 2]) -> Result<Outcome> {
    println!("{coverage}");
    let seen = |slot: usize| coverage[slot]["events_seen"].as_u64().context("no events_seen");
    for (slot, name) in names.iter().enumerate() {
        ensure!(coverage[slot]["device"] == **name, "device {slot} is not {name}: {coverage}");
        let verified = coverage[slot]["verified"].as_array().context("no spans")?;
        ensure!(!verified.is_empty(), "nothing was verified of {name}: {coverage}");
    }
    ensure!(coverage[0]["fsid"] != coverage[1]["fsid"], "one fsid for both: {coverage}");
    ensure!(seen(1)? > seen(0)?, "the busier one has no more events: {coverage}");
    Ok(Outcome::Passed)
}
