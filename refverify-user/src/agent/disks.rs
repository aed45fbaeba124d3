//! The devices of one file system, block devices or image files, for reading it without
//! watching it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, Sender},
    },
};

use uuid::Uuid;

use super::{
    device::{self, DeviceError},
    reads::{self, Reads, Wanted},
};
use crate::{
    btrfs::format::{SUPERBLOCK_LEN_BYTES, SUPERBLOCK_OFFSET, Superblock, SuperblockError},
    feed::{BlockAnswer, BlockError, BlockRequest},
};

/// The devices cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// One cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// One has a superblock that makes no sense.
    #[error("{path} cannot be read: {reason}", path = path.display())]
    Superblock {
        /// As the user gave it.
        path: PathBuf,
        /// What is wrong with it.
        reason: SuperblockError,
    },
    /// Two are no devices of one file system.
    #[error("{path} is of the file system {fsid}, and the first device of {first}", path = path.display())]
    OtherFileSystem {
        /// As the user gave it.
        path: PathBuf,
        /// Its file system.
        fsid: Uuid,
        /// The first device's.
        first: Uuid,
    },
    /// Reads cannot be started.
    #[error("cannot start to read: {0}")]
    Reads(io::Error),
}

/// One of them.
#[derive(Debug)]
struct Disk {
    path: PathBuf,
    file: Arc<File>,
    len_bytes: u64,
}

/// The devices of one file system, open for reading.
#[derive(Debug)]
pub struct Disks {
    first: u64,
    by_devid: BTreeMap<u64, Disk>,
}

impl Disks {
    /// Opens devices: block devices, mount points that stand for theirs, or image files.
    ///
    /// # Errors
    ///
    /// One cannot be opened, has no btrfs, or one of another file system than the first.
    pub fn open(given: &[PathBuf]) -> Result<Self, DisksError> {
        let mut disks = Self { first: 0, by_devid: BTreeMap::new() };
        let mut first: Option<Uuid> = None;
        for path in given {
            let (disk, superblock) = open(path)?;
            let first_fsid = *first.get_or_insert_with(|| {
                disks.first = superblock.devid;
                superblock.fsid
            });
            if superblock.fsid != first_fsid {
                let (path, fsid) = (path.clone(), superblock.fsid);
                return Err(DisksError::OtherFileSystem { path, fsid, first: first_fsid });
            }
            if disks.by_devid.insert(superblock.devid, disk).is_some() {
                return Err(DeviceError::Twice { path: path.clone() }.into());
            }
        }
        Ok(disks)
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
                match self.locate(&request) {
                    Ok(wanted) => reads.want(wanted),
                    Err(error) => answered.push(answer(&request, Err(error))),
                }
            }
            for (request, read) in reads.wait() {
                let data = read.map_err(|error| self.io_error(&request, &error));
                answered.push(answer(&request, data));
            }
            if answers.send(answered).is_err() {
                return Ok(());
            }
        }
    }

    fn disk(&self, devid: u64) -> Option<&Disk> {
        self.by_devid.get(if devid == 0 { &self.first } else { &devid })
    }

    fn locate(&self, request: &BlockRequest) -> Result<Wanted<BlockRequest>, BlockError> {
        let BlockRequest { offset, len_bytes, devid, .. } = *request;
        let disk = self.disk(devid).ok_or(BlockError::NoDevice { devid })?;
        if !device::is_allowed(offset, len_bytes, disk.len_bytes) {
            return Err(BlockError::Refused { offset, len_bytes });
        }
        Ok(Wanted { file: Arc::clone(&disk.file), offset, len_bytes, tag: *request })
    }

    fn io_error(&self, request: &BlockRequest, error: &io::Error) -> BlockError {
        let BlockRequest { offset, len_bytes, devid, .. } = *request;
        let device =
            self.disk(devid).map_or_else(String::new, |disk| disk.path.display().to_string());
        BlockError::Io { device, offset, len_bytes, reason: error.to_string() }
    }
}

fn answer(request: &BlockRequest, data: Result<bytes::Bytes, BlockError>) -> BlockAnswer {
    BlockAnswer { fs: request.fs, id: request.id, data }
}

fn open(given: &Path) -> Result<(Disk, Superblock), DisksError> {
    let failed = |source| DeviceError::Open { path: given.to_owned(), source };
    let is_file = fs::metadata(given).map_err(failed)?.file_type().is_file();
    let path = if is_file { given.to_owned() } else { device::block_device(given)? };
    let file = match device::open_direct(&path) {
        // Some file systems that an image may be on cannot read directly.
        Err(error) if is_file && error.kind() == io::ErrorKind::InvalidInput => File::open(&path),
        opened => opened,
    };
    let file = file.map_err(failed)?;
    let len_bytes = device::size_of(&file).map_err(failed)?;
    let not_btrfs = || DeviceError::NotBtrfs { path: given.to_owned() };
    let block = match reads::read_now(&file, SUPERBLOCK_OFFSET, SUPERBLOCK_LEN_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(not_btrfs().into());
        }
        read => read.map_err(failed)?,
    };
    let superblock = Superblock::parse(&block).map_err(|reason| match reason {
        SuperblockError::NotBtrfs => not_btrfs().into(),
        SuperblockError::Unsupported(reason) => {
            DeviceError::Unsupported { path: given.to_owned(), reason }.into()
        }
        reason => DisksError::Superblock { path: given.to_owned(), reason },
    })?;
    Ok((Disk { path, file: Arc::new(file), len_bytes }, superblock))
}
