//! The watched devices: found, checked, and read with `O_DIRECT`. Never written.
//!
//! btrfs writes metadata past the block device's page cache, so a buffered read of a mounted
//! device goes stale as soon as a block's address is used again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use refverify_common::DeviceName;
use rustix::fs::{OFlags, major, minor};
use uuid::Uuid;

use crate::{
    btrfs::{
        self, ChunkTreeError,
        format::{self, ReadFailure, Superblock, SuperblockError, Unsupported},
    },
    feed::{BlockError, BlockRequest},
};

/// What offsets, lengths and memory of a read are aligned to: enough for all block sizes that
/// btrfs runs on.
const ALIGN: usize = 4096;

/// Where the primary superblock lies, and how long it is.
const SUPER_OFFSET: u64 = 65536;
/// Offsets in the superblock (kernel: `struct btrfs_super_block`, same since 2.6.29).
const SUPER_MAGIC_AT: usize = 0x40;
const SUPER_GENERATION_AT: usize = 0x48;
const SUPER_LOG_ROOT_AT: usize = 0x60;
const SUPER_DEVID_AT: usize = 0xc9;
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
    /// The same device twice.
    #[error("{path} and an earlier argument are the same device", path = path.display())]
    Twice {
        /// As the user gave it.
        path: PathBuf,
    },
}

/// A block device, open for reading.
#[derive(Debug)]
pub(super) struct Device {
    /// As the user gave it.
    pub given: PathBuf,
    /// The block device.
    pub path: PathBuf,
    /// The kernel's name of it, as in `/sys/fs/btrfs/<fsid>/devices/`.
    pub kname: String,
    /// Its number as user space writes it.
    rdev: u64,
    /// Its `dev_item.devid` as last read; it changes when the device is formatted again.
    devid: AtomicU64,
    file: File,
}

/// The parts of a superblock that say where the file system stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SuperState {
    /// The last durable transaction.
    pub generation: u64,
    /// Whether a log waits to be replayed, or is in use.
    pub has_log: bool,
    /// The device's number in its file system.
    pub devid: u64,
}

impl Device {
    /// Opens the device that `given` is, or that is mounted there, and checks that it has a
    /// btrfs.
    pub(super) fn open(given: &Path) -> Result<Self, DeviceError> {
        let failed = |source| DeviceError::Open { path: given.to_owned(), source };
        let path = block_device(given)?;
        let rdev = fs::metadata(&path).map_err(failed)?.rdev();
        let kname = kernel_name(rdev).map_err(failed)?;
        let file = open_direct(&path).map_err(failed)?;
        let devid = AtomicU64::new(0);
        let device = Self { given: given.to_owned(), path, kname, rdev, devid, file };
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
        let mut image = vec![0; usize::try_from(SUPER_OFFSET).expect("small")];
        image.extend(block);
        fs::write(path, image).expect("written");
        let (given, path) = (path.to_owned(), path.to_owned());
        let file = File::open(&path).expect("readable");
        Self { given, path, kname: kname.to_owned(), rdev: 0, devid: AtomicU64::new(0), file }
    }

    /// Refuses a file system that the verifier would refuse once it reads it: the user who
    /// starts this can still do something about it.
    fn check_supported(&self) -> Result<(), DeviceError> {
        let failed = |source| DeviceError::Open { path: self.given.clone(), source };
        let block = read_direct(&self.file, SUPER_OFFSET, 4096).map_err(failed)?;
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

    /// Its number as the kernel keeps it (`MKDEV`: 12 bits of major, 20 of minor).
    pub(super) fn kernel_dev(&self) -> u32 {
        (major(self.rdev) << 20) | (minor(self.rdev) & 0xf_ffff)
    }

    /// Its name as the kernel writes it into `super_block.s_id` (`"%pg"`, of which sysfs changes
    /// `/` to `!`); none if it is too long to be written there whole.
    pub(super) fn kernel_name(&self) -> Option<DeviceName> {
        let mut name = DeviceName::default();
        let (filled, end) = name.split_at_mut_checked(self.kname.len())?;
        filled.copy_from_slice(self.kname.replace('!', "/").as_bytes());
        (!end.is_empty()).then_some(name)
    }

    /// Whether the path still names the device that is open.
    fn is_still_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|now| now.rdev() == self.rdev)
    }

    /// Answers a request of the verifier.
    pub(super) fn read(&self, request: &BlockRequest) -> Result<Bytes, BlockError> {
        let BlockRequest { offset, len_bytes, devid, .. } = *request;
        let failed = |reason: String| BlockError::Io {
            device: self.path.display().to_string(),
            offset,
            len_bytes,
            reason,
        };
        if !self.is_devid(devid) {
            return Err(BlockError::NoDevice { devid });
        }
        if !self.is_still_there() {
            return Err(failed("the path names another device now".to_owned()));
        }
        let size = size_of(&self.file).map_err(|error| failed(error.to_string()))?;
        if !is_allowed(offset, len_bytes, size) {
            return Err(BlockError::Refused { offset, len_bytes });
        }
        read_direct(&self.file, offset, len_bytes).map_err(|error| failed(error.to_string()))
    }

    /// Whether `devid` means this device: 0 always does.
    fn is_devid(&self, devid: u64) -> bool {
        if devid == 0 || devid == self.devid.load(Ordering::Relaxed) {
            return true;
        }
        let now = self.super_state().ok().flatten().map_or(0, |state| state.devid);
        self.devid.store(now, Ordering::Relaxed);
        devid == now
    }

    /// The chunk tree's UUID of the file system that is on it now.
    pub(super) fn chunk_tree_uuid(&self) -> Result<Uuid, ChunkTreeError> {
        btrfs::chunk_tree_uuid(|offset, len_bytes| {
            read_direct(&self.file, offset, len_bytes).map_err(ReadFailure::new)
        })
    }

    /// The state in the primary superblock; none if there is no btrfs.
    pub(super) fn super_state(&self) -> io::Result<Option<SuperState>> {
        let block = read_direct(&self.file, SUPER_OFFSET, 4096)?;
        Ok(super_state(&block))
    }
}

fn super_state(block: &[u8]) -> Option<SuperState> {
    let magic = block.get(SUPER_MAGIC_AT..)?.get(..SUPER_MAGIC.len())?;
    let u64_at = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(block.get(at..at + 8)?.try_into().ok()?))
    };
    (magic == SUPER_MAGIC).then_some(SuperState {
        generation: u64_at(SUPER_GENERATION_AT)?,
        has_log: u64_at(SUPER_LOG_ROOT_AT)? != 0,
        devid: u64_at(SUPER_DEVID_AT)?,
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

/// The last part of where `/sys/dev/block/<major>:<minor>` points to.
fn kernel_name(rdev: u64) -> io::Result<String> {
    let link = format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev));
    let target = fs::read_link(link)?;
    let name = target.file_name().and_then(|name| name.to_str());
    Ok(name.ok_or(io::ErrorKind::InvalidData)?.to_owned())
}

pub(super) fn open_direct(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

pub(super) fn size_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

pub(super) fn is_allowed(offset: u64, len_bytes: u32, size: u64) -> bool {
    let align = ALIGN as u64;
    let len = u64::from(len_bytes);
    let end = offset.checked_add(len);
    len_bytes > 0
        && len_bytes <= BlockRequest::LEN_MAX_BYTES
        && offset.is_multiple_of(align)
        && len.is_multiple_of(align)
        && end.is_some_and(|end| end <= size)
}

/// Reads into memory that is aligned as direct reads want it: a longer vector, of which the
/// aligned part is used.
fn read_direct(file: &File, offset: u64, len_bytes: u32) -> io::Result<Bytes> {
    let len = usize::try_from(len_bytes).map_err(io::Error::other)?;
    let mut buffer = vec![0; len + ALIGN];
    let start = buffer.as_ptr().align_offset(ALIGN);
    let aligned = buffer.get_mut(start..start + len).ok_or(io::ErrorKind::OutOfMemory)?;
    file.read_exact_at(aligned, offset)?;
    Ok(Bytes::from(buffer).slice(start..start + len))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn number_at(offset: usize) -> u8 {
        u8::try_from(offset / 512 % 251).expect("below 256")
    }

    /// A file of numbered bytes on a file system that takes direct reads, or none.
    fn numbered_file(len: usize) -> Option<(tempfile::TempPath, File)> {
        // The build directory is on a disk, where /tmp may be in memory.
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).ok()?;
        let bytes: Vec<u8> = (0..len).map(number_at).collect();
        file.write_all(&bytes).ok()?;
        file.as_file().sync_all().ok()?;
        let path = file.into_temp_path();
        let direct = open_direct(&path).ok()?;
        Some((path, direct))
    }

    #[test]
    fn a_direct_read_lands_aligned_and_returns_exactly_the_bytes_asked_for() {
        let Some((_path, file)) = numbered_file(1 << 18) else {
            eprintln!(
                "SKIPPED: no file system with direct reads under {}",
                env!("CARGO_MANIFEST_DIR")
            );
            return;
        };
        for (offset, len) in [(0, 4096), (65536, 4096), (4096, 16384), (131_072, 131_072)] {
            let bytes = read_direct(&file, offset, len).expect("readable");
            assert_eq!(bytes.len(), len as usize);
            assert_eq!(bytes.as_ptr().align_offset(ALIGN), 0);
            assert_eq!(bytes[0], number_at(usize::try_from(offset).expect("small")));
        }
    }

    #[test]
    fn a_read_past_the_end_is_an_error_not_a_short_answer() {
        let Some((_path, file)) = numbered_file(8192) else { return };
        assert!(read_direct(&file, 4096, 8192).is_err());
    }

    #[test]
    fn requests_that_are_unaligned_too_long_or_outside_are_refused() {
        let size = 1 << 30;
        assert!(is_allowed(0, 4096, size));
        assert!(is_allowed(size - 4096, 4096, size));
        for (offset, len) in [
            (1, 4096),
            (512, 4096),
            (0, 0),
            (0, 512),
            (0, BlockRequest::LEN_MAX_BYTES + 4096),
            (size, 4096),
            (size - 4096, 8192),
            (u64::MAX - 4095, 4096),
        ] {
            assert!(!is_allowed(offset, len, size), "{offset} {len}");
        }
    }

    #[test]
    fn a_block_without_the_magic_is_no_superblock() {
        let mut block = vec![0; 4096];
        assert_eq!(super_state(&block), None);
        block[SUPER_MAGIC_AT..SUPER_MAGIC_AT + 8].copy_from_slice(SUPER_MAGIC);
        block[SUPER_GENERATION_AT] = 42;
        block[SUPER_DEVID_AT] = 1;
        let quiet = SuperState { generation: 42, has_log: false, devid: 1 };
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
