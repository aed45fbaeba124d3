//! Honest file systems: nothing is found, nothing lost, and the ledger equals the disk.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;

use super::{
    Outcome, Place,
    compare::{Frozen, compare, read_disk},
    monitor::Monitor,
    oracle,
    scratch::Scratch,
    workload::{Balances, Workload},
};
use crate::command::{output, run, text};

/// Times that ledger and disk are compared.
const COMPARISONS: u64 = 4;

/// The same in a VM, where the balance that runs holds off each of them for most of a minute.
const COMPARISONS_IN_VM: u64 = 2;

/// Operations of the workload before each comparison.
const OPERATIONS: u64 = 800;

/// Events that a run must have seen to count.
const EVENTS_MIN: u64 = 50_000;

/// How long the operations before one comparison may take, under emulation too.
const LIMIT: Duration = Duration::from_secs(400);

/// The monitor is there before the mount.
pub(super) fn attached_before(place: &Place) -> Result<Outcome> {
    let mut scratch = Scratch::new(place, 3 << 30)?;
    scratch.mkfs(&[])?;
    let mut monitor = Monitor::start(place, scratch.device_name(), &[])?;
    scratch.mount()?;
    monitor.wait_for("mounted")?;
    let workload = Workload::start(&scratch.mount_point, 1, Balances::Running)?;
    watch(place, monitor, &mut scratch, workload)?;
    Ok(Outcome::Passed)
}

/// The monitor comes in the middle of the work.
pub(super) fn attached_midway(place: &Place) -> Result<Outcome> {
    let mut scratch = Scratch::new(place, 3 << 30)?;
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let mut workload = Workload::start(&scratch.mount_point, 2, Balances::Running)?;
    workload.work(OPERATIONS, LIMIT)?;
    let monitor = Monitor::start(place, scratch.device_name(), &[])?;
    watch(place, monitor, &mut scratch, workload)?;
    Ok(Outcome::Passed)
}

/// The same on two devices, of which the second is named; the kernel knows the file system by the
/// first.
pub(super) fn on_two_devices(place: &Place) -> Result<Outcome> {
    let Some(mut scratch) = Scratch::pair(place, 3 << 30)? else {
        return Ok(Outcome::Skipped("there is one disk only".to_owned()));
    };
    scratch.mkfs(&[])?;
    scratch.mount()?;
    let mut workload = Workload::start(&scratch.mount_point, 3, Balances::Running)?;
    workload.work(OPERATIONS, LIMIT)?;
    let named = scratch.devices().last().and_then(Path::to_str).context("no second device")?;
    let monitor = Monitor::start(place, named, &[])?;
    watch(place, monitor, &mut scratch, workload)?;
    Ok(Outcome::Passed)
}

/// A device joins the watched file system, which is then mounted by that device: the kernel names
/// it by the one with the lowest number.
pub(super) fn on_a_new_device(place: &Place) -> Result<Outcome> {
    let Some(mut scratch) = Scratch::pair(place, 3 << 30)? else {
        return Ok(Outcome::Skipped("there is one disk only".to_owned()));
    };
    scratch.mkfs(&[])?;
    let named = scratch.devices().last().map(Path::to_owned).context("no second device")?;
    let named = text(&named)?;
    let mut monitor = Monitor::start(place, named, &[])?;
    scratch.mount()?;
    monitor.wait_for("seeded")?;
    scratch.replace_first(place, 3 << 30)?;
    // The monitor looks at a file system's devices every second.
    thread::sleep(Duration::from_secs(3));
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    scratch.mount()?;
    let by = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(by.contains(scratch.device_name()), "not mounted by the new device: {by}");
    let workload = Workload::start(&scratch.mount_point, 4, Balances::Running)?;
    monitor.wait_for_nth("seeded", 2)?;
    watch(place, monitor, &mut scratch, workload)?;
    Ok(Outcome::Passed)
}

/// A clone of a file system that is mounted and worked on too: for as long as it is mounted, the
/// kernel gives the clone another fsid than the one on disk.
pub(super) fn on_a_clone(place: &Place) -> Result<Outcome> {
    if place.has_device() {
        return Ok(Outcome::Skipped("there is one disk only".to_owned()));
    }
    let mut origin = Scratch::new(place, 3 << 30)?;
    origin.mkfs(&[])?;
    origin.mount()?;
    for number in 0..500 {
        fs::write(origin.path(format!("of-both{number}")), vec![3; 4096 * (1 + number % 5)])?;
    }
    origin.unmount()?;
    let mut clone = origin.copied(place)?;
    origin.mount()?;
    let others_work = Workload::start(&origin.mount_point, 5, Balances::None)?;
    // What the kernel remembers of an earlier file system on this loop device is in its way.
    run("btrfs", &["device", "scan", "--forget"])?;
    match clone.mount() {
        Err(error) if error.downcast_ref() == Some(&Errno::EXIST) => {
            return Ok(Outcome::Skipped("this kernel is older than 6.7".to_owned()));
        }
        mounted => mounted?,
    }
    ensure!(has_temporary_fsid(&clone.device)?, "the clone was mounted by its own fsid");
    let workload = Workload::start(&clone.mount_point, 6, Balances::Running)?;
    workload.pause_balance()?;
    let frozen = Frozen::freeze(&clone)?;
    let extents = check_equals_disk(place, &clone.device)?;
    drop(frozen);
    workload.resume_balance();
    println!("check: all {extents} extents are equal");
    let monitor = Monitor::start(place, clone.device_name(), &[])?;
    watch(place, monitor, &mut clone, workload)?;
    others_work.stop()?;
    Ok(Outcome::Passed)
}

/// Whether the file system on a device is mounted by another fsid than the disk's.
fn has_temporary_fsid(device: &Path) -> Result<bool> {
    let name = device.file_name().context("a device has a name")?;
    for entry in fs::read_dir("/sys/fs/btrfs")? {
        let dir = entry?.path();
        if dir.join("devices").join(name).exists() {
            return Ok(fs::read_to_string(dir.join("temp_fsid"))?.trim() == "1");
        }
    }
    bail!("no mounted btrfs is on {}", device.display())
}

/// What `check` reads, against the extent tree of a frozen file system. Gives the number of
/// extents.
fn check_equals_disk(place: &Place, device: &Path) -> Result<usize> {
    let dump = place.dir().join("checked");
    let mut check = Command::new(&place.monitor);
    output(check.arg("check").arg("--dump").arg(&dump).arg(device), LIMIT)?;
    let read = oracle::parse_ledger(&fs::read_to_string(&dump)?)?;
    let disk = read_disk(device)?;
    ensure!(read.generation == disk.generation, "read at another generation than the disk's");
    let differences = oracle::differences(&disk.extents, &read.extents);
    ensure!(differences.is_empty(), "{} extents differ: {}", differences.len(), differences[0]);
    Ok(disk.extents.len())
}

fn watch(
    place: &Place,
    mut monitor: Monitor,
    scratch: &mut Scratch,
    mut workload: Workload,
) -> Result<()> {
    let comparisons = if place.has_device() { COMPARISONS_IN_VM } else { COMPARISONS };
    let start = Instant::now();
    let seeded = monitor.wait_for("seeded")?;
    println!("seeded after {:.1} s: {seeded}", start.elapsed().as_secs_f64());
    for number in 1..=comparisons {
        workload.work(OPERATIONS, LIMIT)?;
        workload.pause_balance()?;
        let extents = compare(scratch, &mut monitor)
            .with_context(|| format!("comparison {number} of {comparisons}"))?;
        workload.resume_balance();
        println!("comparison {number}: all {extents} extents are equal");
    }
    let done = workload.stop()?;
    println!(
        "{} operations, {} full balances and {} snapshots in {:.1} s",
        done.operations,
        done.balances,
        done.snapshots,
        start.elapsed().as_secs_f64()
    );
    ensure!(done.balances > 0, "no full balance ended: the workload did not do its part");
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;
    let ended = monitor.stop()?;
    ended.expect_clean()?;
    let coverage = ended.coverage()?;
    println!("{coverage}");
    let seen = coverage["events_seen"].as_u64().context("no events_seen in the summary")?;
    ensure!(seen >= EVENTS_MIN, "only {seen} events: too few to show anything");
    Ok(())
}
