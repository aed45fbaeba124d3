//! The device does not take what is written: its image lies in a tmpfs that is full. The kernel
//! aborts, and the superblock on disk decides what is undone.

use std::fs;

use anyhow::Result;

use super::{
    Disk, Outcome, Place, begin, disk::SmallTmpfs, end, expect_undone, mounted_again,
    work_until_read_only,
};

/// Enough for the file system as it is at first, and not for much more.
const ROOM_BYTES: u64 = 96 << 20;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let room = SmallTmpfs::mount(place.dir().join("room"), ROOM_BYTES)?;
    let disk = Disk::new(room.dir.join("image"))?;
    let mut watched = begin(place, &disk.device, "nodiscard")?;
    let filler = room.fill()?;
    work_until_read_only(&watched.scratch)?;
    fs::remove_file(filler)?;
    expect_undone(&mut watched)?;
    watched.unmount()?;
    mounted_again(&mut watched)?;
    end(watched.monitor, 0, 0)?;
    Ok(Outcome::Passed)
}
