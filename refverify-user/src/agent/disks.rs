//! The devices of one file system, for reading it without watching it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender},
};

use super::{
    device::{self, DeviceError},
    members::Members,
    reads::{Reads, Wanted},
};
use crate::{
    btrfs::format::{DeviceItem, Superblock, SuperblockError},
    feed::{BlockAnswer, BlockError, BlockRequest},
};

/// The devices cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// One cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The first has a superblock that makes no sense.
    #[error("{path} cannot be read: {reason}", path = path.display())]
    Superblock {
        /// As the user gave it.
        path: PathBuf,
        /// What is wrong with it.
        reason: SuperblockError,
    },
    /// Reads cannot be started.
    #[error("cannot start to read: {0}")]
    Reads(io::Error),
}

/// The devices of one file system, open for reading.
#[derive(Debug)]
pub struct Disks(Members);

impl Disks {
    /// Opens a device: a block device, a mount point that stands for its device, or an image
    /// file. `others` are further images of the same file system.
    ///
    /// # Errors
    ///
    /// One cannot be opened, or the first has no btrfs.
    pub fn open(given: &Path, others: &[PathBuf]) -> Result<Self, DisksError> {
        let failed = |(path, source)| DeviceError::Open { path, source };
        let metadata = fs::metadata(given).map_err(|error| failed((given.to_owned(), error)))?;
        let path = if metadata.is_file() { given.to_owned() } else { device::block_device(given)? };
        let mut members = Members::open(&path, others).map_err(failed)?;
        match members.named().superblock_bytes() {
            Ok(block) => check_superblock(given, &block)?,
            // Too short for one.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(DeviceError::NotBtrfs { path: given.to_owned() }.into());
            }
            Err(error) => return Err(failed((given.to_owned(), error)).into()),
        }
        members.prefer_newest();
        Ok(Self(members))
    }

    /// Takes in what the chunk tree says of the devices.
    pub fn expect(&self, items: &BTreeMap<u64, DeviceItem>) {
        self.0.expect(items);
    }

    /// Answers requests, in whatever order the devices do, until nobody asks any more or nobody
    /// listens. Reads no more than `limit_bytes` a second, where it is given. Blocks.
    ///
    /// # Errors
    ///
    /// Reads cannot be started.
    pub fn serve(
        &self,
        requests: &Receiver<Vec<BlockRequest>>,
        answers: &Sender<Vec<BlockAnswer>>,
        limit_bytes: Option<u64>,
    ) -> Result<(), DisksError> {
        let mut reads = Reads::new(limit_bytes).map_err(DisksError::Reads)?;
        loop {
            let asked = if reads.is_idle() { requests.recv().ok() } else { None };
            if asked.is_none() && reads.is_idle() {
                return Ok(());
            }
            let mut answered = Vec::new();
            for request in asked.into_iter().chain(requests.try_iter()).flatten() {
                match locate(&self.0, request) {
                    Ok(wanted) => reads.want(wanted),
                    Err(error) => answered.push(answer(&request, Err(error))),
                }
            }
            answered.extend(reads.wait().into_iter().map(|(request, data)| answer(&request, data)));
            if answers.send(answered).is_err() {
                return Ok(());
            }
        }
    }
}

/// The part of a device that is asked for, if it may be read.
pub(super) fn locate(
    members: &Members,
    request: BlockRequest,
) -> Result<Wanted<BlockRequest>, BlockError> {
    let BlockRequest { offset, len_bytes, devid, .. } = request;
    let member = members.member(devid)?;
    let offset = member.locate(offset, len_bytes)?;
    Ok(Wanted { member, offset, len_bytes, tag: request })
}

fn answer(request: &BlockRequest, data: Result<bytes::Bytes, BlockError>) -> BlockAnswer {
    BlockAnswer { fs: request.fs, id: request.id, data }
}

fn check_superblock(given: &Path, block: &[u8]) -> Result<(), DisksError> {
    let path = given.to_owned();
    Err(match Superblock::parse(block) {
        // One whose checksum is wrong may be being written now; the reader tries it again.
        Ok(_) | Err(SuperblockError::Checksum) => return Ok(()),
        Err(SuperblockError::NotBtrfs) => DeviceError::NotBtrfs { path }.into(),
        Err(SuperblockError::Unsupported(reason)) => {
            DeviceError::Unsupported { path, reason }.into()
        }
        Err(reason) => DisksError::Superblock { path, reason },
    })
}
