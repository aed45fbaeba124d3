//! The machine works, and so do the tests' own tools: an honest workload runs on a scratch
//! btrfs without the monitor, and what the oracle reads of it adds up.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    Outcome, Place,
    compare::{Frozen, OnDisk, read_disk},
    journal::{self, Journal},
    scratch::Scratch,
    workload::{Balances, Workload},
};
use crate::{command, machine};

const OPERATIONS: u64 = 2_000;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    println!("hello from Linux {}", machine::kernel_release());
    let mut scratch = Scratch::new(place, 3 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let start = Instant::now();
    let mut workload = Workload::start(&scratch.mount_point, 1, Balances::Running)?;
    workload.work(OPERATIONS, Duration::from_mins(5))?;
    workload.pause_balance()?;
    let frozen = Frozen::freeze(&scratch)?;
    let disk = read_disk(&scratch.device)?;
    drop(frozen);
    workload.resume_balance();
    let done = workload.stop()?;
    println!(
        "{} operations, {} balances, {} snapshots in {:.1} s",
        done.operations,
        done.balances,
        done.snapshots,
        start.elapsed().as_secs_f64()
    );
    adds_up(&disk)?;
    scratch.unmount()?;
    adds_up(&read_disk(&scratch.device)?)?;
    command::run("btrfs", &["check", "--readonly", scratch.device_name()])?;
    journal_takes_and_gives()?;
    Ok(Outcome::Passed)
}

/// An entry sent to the journal can be read back by its fields, and no other one is.
fn journal_takes_and_gives() -> Result<()> {
    let _journal = Journal::start()?;
    let pid = std::process::id();
    journal::send("first", "hello-first")?;
    journal::send("second", "hello-second")?;
    let entry = journal::wait_for(pid, &[("REFVERIFY_KIND", "hello-second".to_owned())])?;
    ensure!(entry["MESSAGE"] == "second", "the journal gave {entry}");
    println!("the journal takes entries and gives them back");
    Ok(())
}

/// Every extent's references sum up to the total that its item states.
fn adds_up(disk: &OnDisk) -> Result<()> {
    println!("generation {}: {} extents", disk.generation, disk.extents.len());
    for (bytenr, extent) in &disk.extents {
        let sum: u64 = extent.refs.values().sum();
        ensure!(sum == extent.total_refs, "extent {bytenr} does not add up: {extent}");
    }
    Ok(())
}
