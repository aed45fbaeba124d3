//! The device goes while it is mounted: nothing of it can be read or written any more. Later it is
//! there again, as it was before.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{
    Disk, Outcome, Place, Scratch, compare_frozen, end, is_read_only, work, work_and_sync,
};
use crate::scenario::{
    field::sync,
    monitor::{Monitor, STATUS_COVERAGE_LOST},
};

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let disk = Disk::new(place.dir().join("image"))?;
    let mut scratch = Scratch::on(place, &disk.device)?;
    scratch.mkfs(&[])?;
    let mut monitor = Monitor::start(place, disk.name(), &[])?;
    scratch.mount()?;
    monitor.wait_for("seeded")?;
    work_and_sync(&scratch, 1)?;
    compare_frozen(&scratch, &mut monitor, "before")?;
    let copy = place.dir().join("copy");
    disk.copy_to(&copy)?;

    disk.cut_off(4096)?;
    let mut round = 2;
    while !is_read_only(&scratch)? {
        ensure!(round < 20, "the kernel does not notice that its device is gone");
        let _ = work(&scratch, round);
        let _ = sync(&scratch);
        round += 1;
    }
    println!("{}", monitor.wait_for("aborted")?);
    let blind = monitor.wait_for("blind")?;
    println!("{blind}");
    ensure!(blind["source"] == "no_superblock", "{blind}");
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;

    disk.restore(&copy)?;
    scratch.mount()?;
    monitor.wait_for_nth("seeded", 2)?;
    work_and_sync(&scratch, 3)?;
    compare_frozen(&scratch, &mut monitor, "the device is there again")?;
    scratch.unmount()?;
    monitor.wait_for_nth("unmounted", 2)?;
    let ended = end(monitor, STATUS_COVERAGE_LOST, 0)?;
    let coverage = ended.coverage()?;
    println!("{coverage}");
    ensure!(coverage["blind"][0]["source"] == "no_superblock", "{coverage}");

    gone_at_the_end(place, &disk, scratch)?;
    Ok(Outcome::Passed)
}

/// The device is gone when the monitor ends, with the file system still mounted.
fn gone_at_the_end(place: &Place, disk: &Disk, mut scratch: Scratch) -> Result<()> {
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
