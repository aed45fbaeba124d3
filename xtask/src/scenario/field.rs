//! A file system to plant faults in: a few files, each with extents of a kind of its own.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{ioctl_ficlone, syncfs};

use super::{Place, compare::read_disk, oracle::Extents, scratch::Scratch};
use crate::command::run;

/// The top-level subvolume, where all the files here are.
pub(super) const FS_TREE: u64 = 5;

/// A file, and the extent that its data are in.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) inode: u64,
    pub(super) bytenr: u64,
}

/// A file system with files to plant faults at, unmounted.
pub(super) struct Field {
    pub(super) scratch: Scratch,
    /// Its data are shared by `clone`.
    pub(super) origin: Target,
    pub(super) clone: Target,
    /// Files whose data are nobody else's.
    pub(super) single: Target,
    /// Its extent is referenced twice at the same offset: the middle was overwritten.
    pub(super) split: Target,
    /// A subvolume that exists.
    pub(super) other_root: u64,
}

impl Field {
    /// Makes it, on a new device.
    pub(super) fn new(place: &Place) -> Result<Self> {
        let mut scratch = Scratch::new(place, 1 << 30)?;
        scratch.mkfs(&[])?;
        scratch.mount()?;
        let other = scratch.path("other");
        run("btrfs", &["subvolume", "create", &other.to_string_lossy()])?;
        // The first subvolume's id.
        let other_root = 256;
        // Neighbours, so that no target is the first item of its leaf.
        for number in 0..50 {
            fs::write(scratch.path(format!("neighbour{number}")), [9; 8192])?;
        }
        sync(&scratch)?;
        for name in ["origin", "single", "split"] {
            fs::write(scratch.path(name), vec![7; 128 << 10])?;
        }
        sync(&scratch)?;
        let clone = File::create(scratch.path("clone"))?;
        ioctl_ficlone(&clone, File::open(scratch.path("origin"))?)?;
        let split = File::options().write(true).open(scratch.path("split"))?;
        split.write_all_at(&[8; 4096], 64 << 10)?;
        sync(&scratch)?;
        let inode = |name: &str| Ok::<_, anyhow::Error>(fs::metadata(scratch.path(name))?.ino());
        let inodes = [inode("origin")?, inode("clone")?, inode("single")?, inode("split")?];
        drop((clone, split));
        scratch.unmount()?;
        let extents = read_disk(&scratch.device)?.extents;
        let [origin, clone, single, split] = inodes.map(|inode| Target::find(&extents, inode));
        Ok(Self {
            scratch,
            origin: origin?,
            clone: clone?,
            single: single?,
            split: split?,
            other_root,
        })
    }
}

impl Target {
    /// The extent that the inode's first byte is in.
    fn find(extents: &Extents, inode: u64) -> Result<Self> {
        let key = [FS_TREE, 0, inode, 0];
        for (&bytenr, extent) in extents {
            if extent.level.is_none() && extent.refs.contains_key(&key) {
                return Ok(Self { inode, bytenr });
            }
        }
        bail!("no extent holds the data of inode {inode}")
    }
}

/// Has the kernel commit.
pub(super) fn sync(scratch: &Scratch) -> Result<()> {
    syncfs(File::open(&scratch.mount_point)?).context("cannot sync")
}
