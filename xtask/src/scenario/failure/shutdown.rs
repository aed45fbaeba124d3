//! A user shuts the file system down. Kernels before 6.19 refuse it, and so do later ones that were
//! built without `CONFIG_BTRFS_EXPERIMENTAL`: no kernel that is tested here takes it. That they
//! refuse is looked at each time, so that the first one which does not runs what follows.

use std::fs::File;

use anyhow::{Context, Result};
use rustix::{
    io::Errno,
    ioctl::{Opcode, Setter, ioctl, opcode},
};

use super::{Disk, Outcome, Place, begin, compare_at_rest, end, mounted_again, work};
use crate::scenario::field::sync;

/// `FS_IOC_SHUTDOWN`, which xfs had first (kernel 6.19: `include/uapi/linux/fs.h`,
/// `btrfs_ioctl_shutdown`).
const SHUTDOWN: Opcode = opcode::read::<u32>(b'X', 125);

/// `FS_SHUTDOWN_FLAGS_NOLOGFLUSH`: at once, as if the device had gone.
const AT_ONCE: u32 = 2;

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let disk = Disk::new(place.dir().join("image"))?;
    let mut watched = begin(place, &disk.device, "")?;
    work(&watched.scratch, 2)?;
    if !is_shut_down(&File::open(&watched.scratch.mount_point)?)? {
        watched.compare("what was not shut down")?;
        watched.end()?;
        return Ok(Outcome::Skipped("this kernel's btrfs cannot be shut down".to_owned()));
    }
    let _ = work(&watched.scratch, 3);
    let _ = sync(&watched.scratch);
    watched.unmount()?;
    compare_at_rest(&mut watched, "unmounted", "after it was shut down")?;
    mounted_again(&mut watched)?;
    end(watched.monitor, 0, 0)?;
    Ok(Outcome::Passed)
}

/// False if the kernel does not know how.
fn is_shut_down(root: &File) -> Result<bool> {
    // SAFETY: the request reads four bytes, which are there.
    match unsafe { ioctl(root, Setter::<SHUTDOWN, u32>::new(AT_ONCE)) } {
        Ok(()) => Ok(true),
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error).context("cannot shut it down"),
    }
}
