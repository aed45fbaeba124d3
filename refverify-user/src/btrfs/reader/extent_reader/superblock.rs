//! Which superblock to read at.

use std::sync::Arc;

use bytes::Bytes;

use super::{ExtentReader, Stage};
use crate::btrfs::{
    format::{self, ReadFailure, Superblock, SuperblockError},
    reader::{ReaderError, ReaderStep, reads::NAMED_DEVICE},
};

/// How often in a row a superblock may be unreadable or torn.
const SUPERBLOCK_TRIES: u32 = 8;

impl ExtentReader {
    pub(super) fn read_superblock(&mut self) {
        self.stage = Stage::Superblock { tries: 0 };
        self.reads.request_superblock(self.superblock_devid);
    }

    pub(super) fn take_superblock(&mut self, data: Result<Bytes, ReadFailure>) {
        let Stage::Superblock { tries } = self.stage else { return };
        let superblock = match data {
            Err(failure) => Err(ReaderError::SuperblockUnreadable(failure)),
            Ok(data) => Superblock::parse(&data).map_err(ReaderError::Superblock),
        };
        let devid = self.found.superblock_device(self.superblock_devid, tries);
        let tries_max = SUPERBLOCK_TRIES + u32::try_from(self.found.devices.len()).unwrap_or(0);
        match superblock {
            // Another device than the one that was named may have missed the last commits.
            Ok(superblock) if devid == NAMED_DEVICE || self.is_current(&superblock) => {
                self.superblock_devid = devid;
                if let Err(error) = self.choose(superblock) {
                    self.fail(error);
                }
            }
            Err(error @ ReaderError::Superblock(_))
                if devid == NAMED_DEVICE
                    && error != ReaderError::Superblock(SuperblockError::Checksum) =>
            {
                self.fail(error);
            }
            // The kernel may be writing it at this very moment, or the device is gone.
            _ if tries < tries_max => {
                let tries = tries + 1;
                self.stage = Stage::Superblock { tries };
                let devid = self.found.superblock_device(self.superblock_devid, tries);
                self.reads.request_superblock(devid);
            }
            Err(error) => self.fail(error),
            Ok(_) => {
                let reason = ReadFailure::new("no device has one of this file system any more");
                self.fail(ReaderError::SuperblockUnreadable(reason));
            }
        }
    }

    /// Whether it is a superblock of the file system that is being read, and no older.
    fn is_current(&self, superblock: &Superblock) -> bool {
        self.found.superblock.as_ref().is_some_and(|before| {
            before.fsid == superblock.fsid && before.generation <= superblock.generation
        })
    }

    /// Decides whether reading can go on at this superblock, and goes on.
    fn choose(&mut self, superblock: Superblock) -> Result<(), ReaderError> {
        if let Some(before) = &self.found.superblock {
            if before.fsid != superblock.fsid {
                let (before, now) = (before.fsid, superblock.fsid);
                return Err(ReaderError::OtherFileSystem { before, now });
            }
            if before.generation > superblock.generation {
                let (before, now) = (before.generation, superblock.generation);
                return Err(ReaderError::WentBack { before, now });
            }
        }
        format::check(&superblock)?;
        self.move_on = false;
        if superblock.generation < self.min_generation {
            self.stage = Stage::TooOld;
            self.steps.push_back(ReaderStep::TooOld { generation: superblock.generation });
            return Ok(());
        }
        self.found.superblock = Some(Arc::new(superblock));
        self.go_on();
        Ok(())
    }
}
