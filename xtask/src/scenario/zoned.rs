//! A zoned device, which only a VM has: `null_blk` plays one in memory.

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::{
    Outcome, Place,
    compare::{Frozen, compare, is_zoned},
    monitor::Monitor,
    scratch::Scratch,
    workload::{Balances, Workload},
};
use crate::command::run;

/// As the init of a VM has loaded it.
const DEVICE: &str = "/dev/nullb0";

/// Times that ledger and disk are compared, and operations before each.
const COMPARISONS: u64 = 3;
const OPERATIONS: u64 = 200;

/// How long the operations before one comparison may take, under emulation.
const LIMIT: Duration = Duration::from_secs(400);

/// The superblock moves with each commit, and the ledger equals the disk all the same.
pub(super) fn run_zoned(place: &Place) -> Result<Outcome> {
    if !is_zoned(Path::new(DEVICE)) {
        return Ok(Outcome::Skipped(format!("{DEVICE} is no zoned device")));
    }
    let systems = std::fs::read_dir("/sys/fs/btrfs/features")?;
    let mut features = systems.flatten().map(|entry| entry.file_name());
    if !features.any(|feature| feature == "zoned") {
        return Ok(Outcome::Skipped("this kernel's btrfs does not know zones".to_owned()));
    }
    let mut scratch = Scratch::on(place, Path::new(DEVICE))?;
    run("mkfs.btrfs", &["-q", "-f", "-O", "zoned", "-m", "single", "-d", "single", DEVICE])?;
    scratch.mount()?;
    let mut workload = Workload::start(&scratch.mount_point, 5, Balances::None)?;
    workload.work(OPERATIONS, LIMIT)?;
    let mut monitor = Monitor::start(place, DEVICE, &[])?;
    println!("{}", monitor.wait_for("seeded")?);
    for number in 1..=COMPARISONS {
        workload.work(OPERATIONS, LIMIT)?;
        let frozen = Frozen::freeze(&scratch)?;
        let extents = compare(&scratch, &mut monitor)?;
        drop(frozen);
        println!("comparison {number}: all {extents} extents are equal");
    }
    workload.stop()?;
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    monitor.stop()?.expect_clean()?;
    Ok(Outcome::Passed)
}
