//! The watched devices: found and checked.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use refverify_common::DeviceName;
use rustix::fs::{major, minor};
use uuid::Uuid;

use super::{members::Members, sysfs};
use crate::btrfs::{
    self, ChunkTreeError,
    format::{self, Piece, ReadFailure, Superblock, SuperblockError, Unsupported},
};

/// Offsets in the superblock (kernel: `struct btrfs_super_block`, same since 2.6.29).
const SUPER_MAGIC_AT: usize = 0x40;
const SUPER_GENERATION_AT: usize = 0x48;
const SUPER_LOG_ROOT_AT: usize = 0x60;
const SUPER_MAGIC: &[u8; 8] = b"_BHRfS_M";

/// A device cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It cannot be opened or looked at.
    #[error("cannot open {path}: {source}", path = path.display())]
    Open {
        /// As the user gave it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is neither a block device nor the mount point of a btrfs", path = path.display())]
    NotBlockDevice {
        /// As the user gave it.
        path: PathBuf,
    },
    /// It has no btrfs.
    #[error("{path} has no btrfs on it: there is no superblock at 64 KiB", path = path.display())]
    NotBtrfs {
        /// As the user gave it.
        path: PathBuf,
    },
    /// Its file system uses what this program cannot read.
    #[error("{path} cannot be watched: {reason}", path = path.display())]
    Unsupported {
        /// As the user gave it.
        path: PathBuf,
        /// What it uses.
        reason: Unsupported,
    },
    /// The same file system twice.
    #[error("{path} and an earlier argument are devices of the same file system", path = path.display())]
    Twice {
        /// As the user gave it.
        path: PathBuf,
    },
}

/// A watched device, and with it the file system that it is part of.
#[derive(Debug)]
pub(super) struct Device {
    /// As the user gave it.
    pub given: PathBuf,
    /// The block device.
    pub path: PathBuf,
    /// The kernel's name of it, as in `/sys/fs/btrfs/<fsid>/devices/`.
    pub kname: String,
    /// It and the other devices of its file system.
    members: Members,
}

/// The parts of a superblock that say where the file system stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SuperState {
    /// The last durable transaction.
    pub generation: u64,
    /// Whether a log waits to be replayed, or is in use.
    pub has_log: bool,
}

impl Device {
    /// Opens the device that `given` is, or that is mounted there, and checks that it has a
    /// btrfs.
    pub(super) fn open(given: &Path) -> Result<Self, DeviceError> {
        let failed = |source| DeviceError::Open { path: given.to_owned(), source };
        let path = block_device(given)?;
        let members = Members::open(&path, &[]).map_err(|(_, source)| failed(source))?;
        let not_block_device = || DeviceError::NotBlockDevice { path: given.to_owned() };
        let rdev = members.named().rdev().ok_or_else(not_block_device)?;
        let kname = sysfs::kernel_name(rdev).map_err(failed)?;
        let device = Self { given: given.to_owned(), path, kname, members };
        match device.super_state() {
            Ok(Some(_)) => device.check_supported().map(|()| device),
            Ok(None) => Err(DeviceError::NotBtrfs { path: given.to_owned() }),
            // Too short for a superblock.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(DeviceError::NotBtrfs { path: given.to_owned() })
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// A device that is a file with a superblock.
    #[cfg(test)]
    pub(super) fn fake(path: &Path, kname: &str, generation: u64, log_root: u64) -> Self {
        let mut block = vec![0; 4096];
        block[SUPER_MAGIC_AT..][..8].copy_from_slice(SUPER_MAGIC);
        block[SUPER_GENERATION_AT..][..8].copy_from_slice(&generation.to_le_bytes());
        block[SUPER_LOG_ROOT_AT..][..8].copy_from_slice(&log_root.to_le_bytes());
        let mut image = vec![0; 64 << 10];
        image.extend(block);
        fs::write(path, image).expect("written");
        let (given, path) = (path.to_owned(), path.to_owned());
        let members = Members::open(&path, &[]).expect("readable");
        Self { given, path, kname: kname.to_owned(), members }
    }

    /// Refuses a file system that the verifier would refuse once it reads it: the user who
    /// starts this can still do something about it.
    fn check_supported(&self) -> Result<(), DeviceError> {
        let failed = |source| DeviceError::Open { path: self.given.clone(), source };
        let block = self.members.named().superblock_bytes().map_err(failed)?;
        let unsupported = match Superblock::parse(&block) {
            Ok(superblock) => format::check(&superblock).err(),
            Err(SuperblockError::Unsupported(reason)) => Some(reason),
            // Perhaps it is being written; the verifier reads it again.
            Err(_) => None,
        };
        unsupported.map_or(Ok(()), |reason| {
            Err(DeviceError::Unsupported { path: self.given.clone(), reason })
        })
    }

    /// What the kernel calls the devices of its file system, as far as they can be found now; its
    /// own is one of them.
    pub(super) fn keys(&self) -> Vec<DeviceKey> {
        self.members.block_devices().iter().map(DeviceKey::new).collect()
    }

    /// It and the other devices of its file system.
    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// The chunk tree's UUID of the file system that is on it now.
    pub(super) fn chunk_tree_uuid(&self) -> Result<Uuid, ChunkTreeError> {
        btrfs::chunk_tree_uuid(|piece| {
            let Piece { devid, offset, len_bytes } = *piece;
            self.members.read(devid, offset, len_bytes).map_err(ReadFailure::new)
        })
    }

    /// The directory under `btrfs`, where sysfs has it, of the mounted file system that it is of.
    pub(super) fn mounted_dir(&self, btrfs: &Path) -> Option<PathBuf> {
        let own = sysfs::mounted_dir(btrfs, &self.kname);
        own.or_else(|| self.members.mounted_dir_in(btrfs))
    }

    /// The state in the primary superblock; none if there is no btrfs.
    pub(super) fn super_state(&self) -> io::Result<Option<SuperState>> {
        Ok(super_state(&self.members.current().superblock_bytes()?))
    }
}

/// What the kernel calls a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceKey {
    /// Its number as the kernel keeps it (`MKDEV`: 12 bits of major, 20 of minor).
    pub(super) number: u32,
    /// Its name as the kernel writes it into `super_block.s_id` (`"%pg"`, of which sysfs changes
    /// `/` to `!`); none if it is too long to be written there whole.
    pub(super) name: Option<DeviceName>,
}

impl DeviceKey {
    fn new((rdev, kname): &(u64, String)) -> Self {
        let number = (major(*rdev) << 20) | (minor(*rdev) & 0xf_ffff);
        Self { number, name: kernel_name(kname) }
    }
}

fn kernel_name(kname: &str) -> Option<DeviceName> {
    let mut name = DeviceName::default();
    let (filled, end) = name.split_at_mut_checked(kname.len())?;
    filled.copy_from_slice(kname.replace('!', "/").as_bytes());
    (!end.is_empty()).then_some(name)
}

fn super_state(block: &[u8]) -> Option<SuperState> {
    let magic = block.get(SUPER_MAGIC_AT..)?.get(..SUPER_MAGIC.len())?;
    let u64_at = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(block.get(at..at + 8)?.try_into().ok()?))
    };
    (magic == SUPER_MAGIC).then_some(SuperState {
        generation: u64_at(SUPER_GENERATION_AT)?,
        has_log: u64_at(SUPER_LOG_ROOT_AT)? != 0,
    })
}

/// The block device that the user means: the path itself, or what is mounted there.
pub(super) fn block_device(given: &Path) -> Result<PathBuf, DeviceError> {
    let failed = |source| DeviceError::Open { path: given.to_owned(), source };
    let kind = fs::metadata(given).map_err(failed)?.file_type();
    if kind.is_block_device() {
        return Ok(given.to_owned());
    }
    let not_block_device = || DeviceError::NotBlockDevice { path: given.to_owned() };
    if !kind.is_dir() {
        return Err(not_block_device());
    }
    let mount_point = fs::canonicalize(given).map_err(failed)?;
    let mountinfo = fs::read("/proc/self/mountinfo").map_err(failed)?;
    let source =
        super::mountinfo::btrfs_source(&mountinfo, &mount_point).ok_or_else(not_block_device)?;
    match fs::metadata(&source) {
        Ok(metadata) if metadata.file_type().is_block_device() => Ok(source),
        _ => Err(not_block_device()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_without_the_magic_is_no_superblock() {
        let mut block = vec![0; 4096];
        assert_eq!(super_state(&block), None);
        block[SUPER_MAGIC_AT..SUPER_MAGIC_AT + 8].copy_from_slice(SUPER_MAGIC);
        block[SUPER_GENERATION_AT] = 42;
        let quiet = SuperState { generation: 42, has_log: false };
        assert_eq!(super_state(&block), Some(quiet));
        block[SUPER_LOG_ROOT_AT + 2] = 1;
        assert_eq!(super_state(&block), Some(SuperState { has_log: true, ..quiet }));
        assert_eq!(super_state(&block[..0x60]), None);
    }

    #[test]
    fn a_character_device_is_named_as_what_it_is_not() {
        let error = Device::open(Path::new("/dev/null")).expect_err("no block device");
        assert!(error.to_string().contains("/dev/null is neither a block device nor"), "{error}");
    }
}
