//! Device-mapper below the file system: it drops writes, fails them, and logs them. The monitor is
//! given the device below, or the mapped one.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{
    Disk, LEN_BYTES, Outcome, Place, Scratch, Watched, begin, end, expect_undone, is_read_only,
    mounted_again, number, work, work_and_sync,
};
use crate::{
    command::run,
    scenario::{compare::superblock, field::sync, monitor::STATUS_COVERAGE_LOST},
};

/// Length of the device, in sectors of 512 bytes.
const SECTORS: u64 = LEN_BYTES / 512;

/// The primary superblock.
const SUPERBLOCK_SECTOR: u64 = 128;

/// Its length.
const SUPERBLOCK_SECTORS: u64 = 8;

pub(super) fn run_all(place: &Place) -> Result<Outcome> {
    // Its node may be there without it.
    if File::open("/dev/mapper/control").is_err() {
        return Ok(Outcome::Skipped("this kernel has no device-mapper".to_owned()));
    }
    drop_writes(place).context("writes that are dropped")?;
    failed_super_write(place).context("a superblock that cannot be written")?;
    given_the_one_below(place).context("a device under dm-flakey and dm-log-writes")?;
    Ok(Outcome::Passed)
}

/// A mapped device, removed when dropped.
struct Mapped {
    name: &'static str,
    path: PathBuf,
}

impl Mapped {
    fn new(name: &'static str, table: &str) -> Result<Self> {
        dmsetup(&["create", name, "--table", table])?;
        // There is no udev in a VM to name it in /dev/mapper.
        let minor = run("dmsetup", &["info", "--columns", "--noheadings", "-o", "minor", name])?;
        Ok(Self { name, path: PathBuf::from(format!("/dev/dm-{}", minor.trim())) })
    }

    /// Puts another table in force. Without `--noflush` what is under way ends first.
    fn swap(&self, table: &str) -> Result<()> {
        dmsetup(&["suspend", "--nolockfs", self.name])?;
        dmsetup(&["load", self.name, "--table", table])?;
        dmsetup(&["resume", self.name])
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = dmsetup(&["remove", "--retry", self.name]);
    }
}

/// Without udev, there is nobody to wait for.
fn dmsetup(args: &[&str]) -> Result<()> {
    run("dmsetup", &[&["--noudevrules", "--noudevsync"], args].concat()).map(drop)
}

/// A table that is always as it should be (dm-flakey: seconds up, seconds down).
fn up(below: &str) -> String {
    format!("0 {SECTORS} flakey {below} 0 180 0")
}

/// One that drops all writes, silently.
fn dropping(below: &str) -> String {
    format!("0 {SECTORS} flakey {below} 0 0 180 1 drop_writes")
}

/// One that fails writes of the primary superblock, and takes all others.
fn without_superblock(below: &str) -> String {
    let after = SUPERBLOCK_SECTOR + SUPERBLOCK_SECTORS;
    format!(
        "0 {SUPERBLOCK_SECTOR} linear {below} 0\n\
         {SUPERBLOCK_SECTOR} {SUPERBLOCK_SECTORS} flakey {below} {SUPERBLOCK_SECTOR} 0 180 1 \
         error_writes\n\
         {after} {} linear {below} {after}\n",
        SECTORS - after
    )
}

/// Writes are dropped: the file system is blind from there, and what was committed after it never
/// was, once it is mounted again.
fn drop_writes(place: &Place) -> Result<()> {
    let disk = Disk::new(place.dir().join("dropping"))?;
    let flakey = Mapped::new("flakey", &up(disk.name()))?;
    let mut watched = begin(place, &flakey.path, "")?;
    let before = superblock(&flakey.path)?.generation;

    flakey.swap(&dropping(disk.name()))?;
    work_and_sync(&watched.scratch, 2)?;
    let blind = watched.monitor.wait_for("blind")?;
    println!("{blind}");
    ensure!(blind["source"] == "writes_dropped", "{blind}");
    ensure!(number(&blind, "on_disk")? == before, "the superblock is of {before}: {blind}");
    // What is dropped may be read back: then the kernel gives up.
    let _ = work(&watched.scratch, 3);
    let _ = sync(&watched.scratch);
    watched.unmount()?;
    let undone = watched.monitor.wait_for("undone")?;
    println!("{undone}");
    ensure!(number(&undone, "on_disk")? == before, "the superblock is of {before}: {undone}");

    flakey.swap(&up(disk.name()))?;
    mounted_again(&mut watched)?;
    let ended = end(watched.monitor, STATUS_COVERAGE_LOST, 0)?;
    let coverage = ended.coverage()?;
    println!("{coverage}");
    ensure!(coverage["blind"][0]["first"] == before + 1, "{coverage}");
    ensure!(coverage["undone"][0]["first"] == before + 1, "{coverage}");
    Ok(())
}

/// All trees of a transaction are written, but not its superblock: then it never was.
fn failed_super_write(place: &Place) -> Result<()> {
    let disk = Disk::new(place.dir().join("superless"))?;
    let flakey = Mapped::new("flakey", &up(disk.name()))?;
    let mut watched = begin(place, &flakey.path, "")?;
    let before = superblock(&flakey.path)?.generation;

    flakey.swap(&without_superblock(disk.name()))?;
    let _ = work(&watched.scratch, 2);
    let _ = sync(&watched.scratch);
    ensure!(is_read_only(&watched.scratch)?, "the kernel did not notice");
    let (_, undone) = expect_undone(&mut watched)?;
    ensure!(number(&undone, "on_disk")? == before, "the superblock is of {before}: {undone}");
    watched.unmount()?;

    flakey.swap(&up(disk.name()))?;
    mounted_again(&mut watched)?;
    end(watched.monitor, 0, 0)?;
    Ok(())
}

/// As fstests does: the monitor is given the device, and between mounts devices are put on it.
fn given_the_one_below(place: &Place) -> Result<()> {
    let disk = Disk::new(place.dir().join("below"))?;
    let log = Disk::new(place.dir().join("log"))?;
    let mut watched = Watched::new(place, Scratch::on(place, &disk.device)?)?;
    for (round, table) in [
        String::new(),
        up(disk.name()),
        format!("0 {SECTORS} log-writes {} {}", disk.name(), log.name()),
    ]
    .into_iter()
    .enumerate()
    {
        let mapped = if table.is_empty() { None } else { Some(Mapped::new("stacked", &table)?) };
        let device = mapped.as_ref().map_or(&disk.device, |mapped| &mapped.path).clone();
        mounted_by(&mut watched, &device, round as u64)?;
    }
    watched.end().map(drop)
}

/// Mounts by a device, works, compares, and unmounts.
pub(super) fn mounted_by(watched: &mut Watched, device: &Path, round: u64) -> Result<()> {
    device.clone_into(&mut watched.scratch.device);
    let seen = watched.said("seeded").len();
    watched.scratch.mount()?;
    work_and_sync(&watched.scratch, round)?;
    watched.monitor.wait_for_nth("seeded", seen + 1)?;
    work_and_sync(&watched.scratch, round + 10)?;
    watched.compare(&format!("mounted by {}", device.display()))?;
    watched.unmount()
}
