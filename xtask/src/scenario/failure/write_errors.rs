//! The device does not take what is written: its image lies in a tmpfs that is full. The kernel
//! aborts, and the superblock on disk decides what is undone.

use std::fs;

use anyhow::{Result, ensure};

use super::{
    Disk, Outcome, Place, Scratch, compare_at_rest, compare_frozen, disk::SmallTmpfs, end,
    is_read_only, number, work, work_and_sync,
};
use crate::scenario::{compare::superblock, field::sync, monitor::Monitor};

/// Enough for the file system as it is at first, and not for much more.
const ROOM_BYTES: u64 = 96 << 20;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let room = SmallTmpfs::mount(place.dir().join("room"), ROOM_BYTES)?;
    let disk = Disk::new(room.dir.join("image"))?;
    let mut scratch = Scratch::on(place, &disk.device)?;
    scratch.mkfs(&[])?;
    let mut monitor = Monitor::start(place, disk.name(), &[])?;
    scratch.mount_with("nodiscard")?;
    monitor.wait_for("seeded")?;
    work_and_sync(&scratch, 1)?;
    compare_frozen(&scratch, &mut monitor, "before")?;

    let filler = room.fill()?;
    let mut round = 2;
    while !is_read_only(&scratch)? {
        ensure!(round < 20, "the kernel does not notice that writes fail");
        // Fails sooner or later.
        let _ = work(&scratch, round);
        let _ = sync(&scratch);
        round += 1;
    }
    fs::remove_file(filler)?;
    let aborted = monitor.wait_for("aborted")?;
    let undone = monitor.wait_for("undone")?;
    println!("{aborted}\n{undone}");
    let on_disk = superblock(&scratch.device)?.generation;
    ensure!(number(&undone, "on_disk")? == on_disk, "the superblock is of {on_disk}: {undone}");
    compare_at_rest(&scratch, &mut monitor, "aborted", "after the abort")?;
    scratch.unmount()?;
    monitor.wait_for("unmounted")?;

    scratch.mount()?;
    monitor.wait_for_nth("seeded", 2)?;
    work_and_sync(&scratch, 3)?;
    compare_frozen(&scratch, &mut monitor, "mounted again")?;
    scratch.unmount()?;
    monitor.wait_for_nth("unmounted", 2)?;
    end(monitor, 0, 0)?;
    Ok(Outcome::Passed)
}
