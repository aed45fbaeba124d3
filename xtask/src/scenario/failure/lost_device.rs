//! The device goes while it is mounted: nothing of it can be read or written any more. Later it is
//! there again, as it was before.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{
    Disk, Outcome, Place, Scratch, begin, end, mounted_again, work, work_and_sync,
    work_until_read_only,
};
use crate::scenario::{
    field::sync,
    monitor::{Monitor, STATUS_COVERAGE_LOST},
};

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let disk = Disk::new(place.dir().join("image"))?;
    came_back(place, &disk)?;
    gone_at_the_end(place, &disk)?;
    Ok(Outcome::Passed)
}

/// The device goes, and is there again at the next mount.
fn came_back(place: &Place, disk: &Disk) -> Result<()> {
    let mut watched = begin(place, &disk.device, "")?;
    let copy = place.dir().join("copy");
    disk.copy_to(&copy)?;
    disk.cut_off(4096)?;
    work_until_read_only(&watched.scratch)?;
    println!("{}", watched.monitor.wait_for("aborted")?);
    let blind = watched.monitor.wait_for("blind")?;
    println!("{blind}");
    ensure!(blind["source"] == "no_superblock", "{blind}");
    watched.unmount()?;

    disk.restore(&copy)?;
    mounted_again(&mut watched)?;
    let ended = end(watched.monitor, STATUS_COVERAGE_LOST, 0)?;
    let coverage = ended.coverage()?;
    println!("{coverage}");
    ensure!(coverage["blind"][0]["source"] == "no_superblock", "{coverage}");
    Ok(())
}

/// The device is gone when the monitor ends, with the file system still mounted.
fn gone_at_the_end(place: &Place, disk: &Disk) -> Result<()> {
    let mut scratch = Scratch::on(place, &disk.device)?;
    scratch.mount()?;
    let mut monitor = Monitor::start(place, disk.name(), &[])?;
    work_and_sync(&scratch, 4)?;
    monitor.wait_for("seeded")?;
    disk.cut_off(4096)?;
    let _ = work(&scratch, 5);
    let _ = sync(&scratch);
    monitor.wait_for("aborted")?;
    monitor.wait_for("blind")?;
    let start = Instant::now();
    end(monitor, STATUS_COVERAGE_LOST, 0)?;
    println!("the monitor ended in {:.1} s", start.elapsed().as_secs_f64());
    scratch.unmount()
}
