//! Older generations come back, with other contents than those that were seen of later
//! transactions.

use anyhow::{Context, Result, ensure};

use super::{Disk, Outcome, Place, Scratch, Watched, end, number, work_and_sync};
use crate::{
    plant::spoil_tree_root,
    scenario::{
        compare::superblock,
        monitor::{Monitor, STATUS_COVERAGE_LOST},
    },
};

pub(super) fn run(place: &Place) -> Result<Outcome> {
    restored_image(place)?;
    use_backup_root(place)?;
    Ok(Outcome::Passed)
}

/// Between two mounts an older image takes the device's place, and other work is done from there.
fn restored_image(place: &Place) -> Result<()> {
    let disk = Disk::new(place.dir().join("image"))?;
    let mut watched = Watched::new(place, Scratch::on(place, &disk.device)?)?;
    let old = place.dir().join("old");
    let mut generations = Vec::new();
    for round in 1..=4 {
        match round {
            2 => disk.copy_to(&old)?,
            4 => disk.restore(&old)?,
            _ => {}
        }
        watched.mount("")?;
        let seeded = watched.said("seeded").pop().context("it was not read")?;
        generations.push(number(&seeded, "generation")?);
        // Not the same work as before, so that the same generations are not alike.
        work_and_sync(&watched.scratch, round)?;
        watched.compare(&format!("mount {round}"))?;
        watched.unmount()?;
    }
    println!("restored image: seeded at generations {generations:?}");
    ensure!(generations[3] < generations[2], "the old image is not older: {generations:?}");
    watched.end().map(drop)
}

/// The root of the newest superblock cannot be read, and the kernel takes an older one. Until the
/// next commit the superblock leads nowhere.
fn use_backup_root(place: &Place) -> Result<()> {
    let disk = Disk::new(place.dir().join("backup-root"))?;
    let mut scratch = Scratch::on(place, &disk.device)?;
    scratch.mkfs(&[])?;
    // What the older root leads to is to stay.
    scratch.mount_with("nodiscard")?;
    for round in 1..=3 {
        work_and_sync(&scratch, round)?;
    }
    scratch.unmount()?;
    let before = superblock(&disk.device)?.generation;
    spoil_tree_root(&disk.device)?;

    let monitor = Monitor::start(place, disk.name(), &[])?;
    scratch.mount_with("nodiscard,rescue=usebackuproot").context("with usebackuproot")?;
    let mut watched = Watched { monitor, scratch };
    println!("{}", watched.monitor.wait_for("refused")?);
    let mut round = 4;
    while watched.said("seeded").is_empty() {
        ensure!(round < 40, "it is not tried again: {:?}", watched.monitor.lines());
        work_and_sync(&watched.scratch, round)?;
        std::thread::sleep(std::time::Duration::from_millis(300));
        round += 1;
    }
    let seeded = watched.monitor.wait_for("seeded")?;
    println!("usebackuproot: generation {before}, then {seeded}");
    work_and_sync(&watched.scratch, round)?;
    watched.compare("after usebackuproot")?;
    watched.unmount()?;
    end(watched.monitor, STATUS_COVERAGE_LOST, 0)?;
    Ok(())
}
