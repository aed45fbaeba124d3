//! One device of a file system, open for reading; an image in a regular file is one too. Never
//! written.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{direct, zones};
use crate::{
    btrfs::format::{SUPERBLOCK_LEN_BYTES, SUPERBLOCK_OFFSET, Superblock},
    feed::BlockError,
};

/// A block device or an image, open for reading.
#[derive(Debug)]
pub struct Member {
    path: PathBuf,
    file: File,
    /// Its number as user space writes it; `None` for an image.
    rdev: Option<u64>,
    /// Whether its superblock is in a log.
    is_zoned: bool,
}

impl Member {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// What the operating system says; `InvalidInput` if it is neither a block device nor a
    /// regular file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let kind = fs::metadata(path)?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = match direct::open(path) {
            // Not all file systems that an image can be in know direct reads. Nobody writes an
            // image past their cache.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && kind.is_file() => {
                File::open(path)?
            }
            other => other?,
        };
        // Of what was opened, whatever the path may name by now.
        let opened = file.metadata()?;
        let rdev = opened.file_type().is_block_device().then(|| opened.rdev());
        let is_zoned = rdev.is_some_and(zones::is_zoned);
        Ok(Self { path: path.to_owned(), file, rdev, is_zoned })
    }

    /// As it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file: for those who read in another way than [`Member::read`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its number as user space writes it; `None` for an image.
    pub(super) fn rdev(&self) -> Option<u64> {
        self.rdev
    }

    /// The bytes of its superblock.
    pub(super) fn superblock_bytes(&self) -> io::Result<Bytes> {
        direct::read(&self.file, self.superblock_offset()?, SUPERBLOCK_LEN_BYTES)
    }

    /// Where its newest primary superblock is.
    fn superblock_offset(&self) -> io::Result<u64> {
        if !self.is_zoned {
            return Ok(SUPERBLOCK_OFFSET);
        }
        zones::superblock_offset(&self.file, |offset| {
            let block = direct::read(&self.file, offset, SUPERBLOCK_LEN_BYTES).ok()?;
            Superblock::parse(&block).ok().map(|superblock| superblock.generation)
        })
    }

    /// Its superblock, if it has one that makes sense.
    pub(super) fn superblock(&self) -> Option<Superblock> {
        Superblock::parse(&self.superblock_bytes().ok()?).ok()
    }

    /// Reads a part of it.
    ///
    /// # Errors
    ///
    /// If the part is not aligned to 4096 bytes, too long or outside of the device, or if it
    /// cannot be read.
    pub fn read(&self, offset: u64, len_bytes: u32) -> Result<Bytes, BlockError> {
        let offset = self.locate(offset, len_bytes)?;
        direct::read(&self.file, offset, len_bytes)
            .map_err(|error| self.failed(offset, len_bytes, error.to_string()))
    }

    /// Refuses what [`Member::read`] refuses, without reading. Gives the offset to read at: on a
    /// zoned device it is another one for the superblock.
    pub(super) fn locate(&self, offset: u64, len_bytes: u32) -> Result<u64, BlockError> {
        let failed = |reason| self.failed(offset, len_bytes, reason);
        if !self.is_still_there() {
            return Err(failed("the path names another device now".to_owned()));
        }
        let size = direct::size_of(&self.file).map_err(|error| failed(error.to_string()))?;
        if !direct::is_allowed(offset, len_bytes, size) {
            return Err(BlockError::Refused { offset, len_bytes });
        }
        if (offset, len_bytes) == (SUPERBLOCK_OFFSET, SUPERBLOCK_LEN_BYTES) {
            return self.superblock_offset().map_err(|error| failed(error.to_string()));
        }
        Ok(offset)
    }

    /// That a part of it could not be read.
    pub(super) fn failed(&self, offset: u64, len_bytes: u32, reason: String) -> BlockError {
        BlockError::Io { device: self.path.display().to_string(), offset, len_bytes, reason }
    }

    /// Whether the path still names the device that is open.
    fn is_still_there(&self) -> bool {
        let Some(rdev) = self.rdev else { return true };
        fs::metadata(&self.path).is_ok_and(|now| now.rdev() == rdev)
    }
}
