//! A zoned device, which only a VM has: `null_blk` plays one in memory.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::Result;
use rustix::fs::ioctl_ficlone;

use super::{
    Outcome, Place,
    compare::{compare, is_zoned},
    monitor::Monitor,
    scratch::Scratch,
    workload::Random,
};
use crate::command::{run, text};

/// As the init of a VM has loaded it.
const DEVICE: &str = "/dev/nullb0";

/// Times that ledger and disk are compared.
const ROUNDS: u64 = 3;

/// The superblock moves with each commit, and the ledger equals the disk all the same.
pub(super) fn run_zoned(place: &Place) -> Result<Outcome> {
    if !is_zoned(Path::new(DEVICE)) {
        return Ok(Outcome::Skipped(format!("{DEVICE} is no zoned device")));
    }
    let systems = fs::read_dir("/sys/fs/btrfs/features")?;
    let mut features = systems.flatten().map(|entry| entry.file_name());
    if !features.any(|feature| feature == "zoned") {
        return Ok(Outcome::Skipped("this kernel's btrfs does not know zones".to_owned()));
    }
    let mut scratch = Scratch::on(place, Path::new(DEVICE))?;
    run("mkfs.btrfs", &["-q", "-f", "-O", "zoned", "-m", "single", "-d", "single", DEVICE])?;
    scratch.mount()?;
    work(&scratch, 0)?;
    let mut monitor = Monitor::start(place, DEVICE, &[])?;
    println!("{}", monitor.wait_for("seeded")?);
    for round in 1..=ROUNDS {
        work(&scratch, round)?;
        let extents = compare(&scratch, &mut monitor)?;
        println!("comparison {round}: all {extents} extents are equal");
    }
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    monitor.stop()?.expect_clean()?;
    Ok(Outcome::Passed)
}

/// Files, clones, a snapshot and deletions. Nothing is preallocated: zones cannot be.
fn work(scratch: &Scratch, round: u64) -> Result<()> {
    let mut random = Random(round + 1);
    for number in 0..60 {
        let path = scratch.path(format!("file{}", (round * 40 + number) % 100));
        let mut bytes = vec![0; usize::try_from(4096 + number * 1000)?];
        random.fill(&mut bytes);
        fs::write(&path, bytes)?;
        let source = File::open(&path)?;
        if number % 3 == 0 {
            source.sync_all()?;
        }
        ioctl_ficlone(File::create(scratch.path(format!("clone{number}")))?, &source)?;
    }
    let snapshot = scratch.path(format!("snapshot{round}"));
    let snapshot = text(&snapshot)?;
    run("btrfs", &["subvolume", "snapshot", scratch.mount_name(), snapshot])?;
    for number in (0..60).step_by(4) {
        fs::remove_file(scratch.path(format!("clone{number}")))?;
    }
    Ok(())
}
