//! Reads one range of the extent tree over the feed.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use crate::{
    btrfs::{
        DiskExtent, DiskFinding,
        format::{ReadFailure, Superblock},
        reader::{BlockRead, ExtentReader, Known, KnownTree, MirrorFault, ReaderError, ReaderStep},
    },
    feed::{BlockError, BlockRequest, FsSlot},
};

/// A range being read, leaf by leaf.
pub(crate) struct Seeder {
    reader: ExtentReader,
    range: Range<u64>,
    /// Everything of the range below is done.
    position: u64,
    /// Extents at or above the position, complete, whose leaf is not.
    ahead: Vec<DiskExtent>,
    waits_for_commit: bool,
    /// What is read now.
    generation: u64,
}

/// What reading led to.
pub(crate) enum Progress {
    /// A superblock was chosen; reading goes on at its generation, from the range's start.
    At { generation: u64, superblock: Arc<Superblock>, rest: Range<u64> },
    /// This range has been read whole, and these are its extents.
    Read { range: Range<u64>, generation: u64, extents: Vec<DiskExtent> },
    /// Nothing has changed in this range since the generation that was asked for.
    Unchanged { range: Range<u64>, generation: u64 },
    /// Something in the tree is wrong.
    Wrong { generation: u64, finding: DiskFinding },
    /// A device failed to give what could be had elsewhere.
    MirrorFailed(Box<MirrorFault>),
    /// The disk is at `durable`, which is too old: the next commit is waited for.
    Waits { durable: u64 },
    /// The superblock went back to an older generation.
    WentBack { before: u64, now: u64 },
    /// It cannot be read; the sentence says why. Whether another commit may mend that.
    Failed { reason: String, may_pass: bool },
    /// All of the range is read.
    Done { generation: u64 },
}

impl Seeder {
    /// Begins to read a range at `min_generation` or later.
    pub(crate) fn new(range: Range<u64>, min_generation: u64) -> Self {
        Self::with(ExtentReader::new(range.clone(), min_generation), range)
    }

    /// The same for the whole tree, as far as it has changed.
    pub(crate) fn since(min_generation: u64, known: Known) -> Self {
        let range = 0..u64::MAX;
        Self::with(ExtentReader::since(range.clone(), min_generation, known), range)
    }

    fn with(reader: ExtentReader, range: Range<u64>) -> Self {
        Self {
            reader,
            position: range.start,
            range,
            ahead: Vec::new(),
            waits_for_commit: false,
            generation: 0,
        }
    }

    /// The reads that are wanted now; ids are the reader's own.
    pub(crate) fn requests(&mut self, fs: FsSlot) -> Vec<BlockRequest> {
        let wanted = self.reader.poll_requests();
        let request = |read: BlockRead| BlockRequest {
            fs,
            id: read.id,
            devid: read.devid,
            offset: read.offset,
            len_bytes: read.len_bytes,
        };
        wanted.into_iter().map(request).collect()
    }

    /// Takes the answer to a request.
    pub(crate) fn answer(&mut self, id: u64, data: Result<Bytes, BlockError>) {
        self.reader.answer(id, data.map_err(ReadFailure::new));
    }

    /// Takes back what was read and is of no more use: what comes next takes its memory.
    pub(crate) fn reuse(&mut self, mut extents: Vec<DiskExtent>) {
        extents.drain(..).for_each(|extent| self.reader.reuse(extent));
        if self.ahead.capacity() == 0 {
            self.ahead = extents;
        }
    }

    /// A superblock newer than the last one is on disk.
    pub(crate) fn committed(&mut self) {
        if self.waits_for_commit {
            self.waits_for_commit = false;
            self.reader.retry();
        }
    }

    /// Goes on at a newer generation, at the next border between leaves.
    pub(crate) fn move_on(&mut self) {
        self.reader.move_on();
    }

    /// How much of the key space is read, in thousandths.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share between 0 and 1"
    )]
    pub(crate) fn done_permille(&self) -> u32 {
        (self.reader.progress() * 1000.0) as u32
    }

    /// The devices of the file system, by their numbers.
    pub(crate) fn devids(&self) -> Vec<u64> {
        self.reader.devices().keys().copied().collect()
    }

    /// The blocks that were met, if it was to read the whole tree.
    pub(crate) fn into_known(self) -> Option<KnownTree> {
        self.reader.into_known()
    }

    /// The next thing that reading led to; `None` when answers are waited for.
    pub(crate) fn next(&mut self) -> Option<Progress> {
        loop {
            let step = self.reader.next_step()?;
            if let Some(progress) = self.take(step) {
                return Some(progress);
            }
        }
    }

    fn take(&mut self, step: ReaderStep) -> Option<Progress> {
        match step {
            ReaderStep::Extent(extent) => {
                self.ahead.push(extent);
                None
            }
            ReaderStep::Generation { generation, superblock, .. } => {
                self.ahead.clear();
                self.generation = generation;
                let rest = self.position..self.range.end;
                Some(Progress::At { generation, superblock, rest })
            }
            ReaderStep::Complete { upto_bytenr, generation } => {
                self.complete(upto_bytenr, generation)
            }
            ReaderStep::Unchanged { range, generation } => {
                self.position = range.end;
                Some(Progress::Unchanged { range, generation })
            }
            ReaderStep::Finding(finding) => {
                Some(Progress::Wrong { generation: self.generation, finding })
            }
            ReaderStep::MirrorFailed(fault) => Some(Progress::MirrorFailed(fault)),
            ReaderStep::TooOld { generation } => {
                self.waits_for_commit = true;
                Some(Progress::Waits { durable: generation })
            }
            ReaderStep::Failed(error) => Some(failed(&error)),
            ReaderStep::Done { generation } => Some(Progress::Done { generation }),
        }
    }

    fn complete(&mut self, upto: u64, generation: u64) -> Option<Progress> {
        let upto = upto.min(self.range.end);
        if upto <= self.position {
            return None;
        }
        let range = self.position..upto;
        self.position = upto;
        let extents = std::mem::take(&mut self.ahead);
        Some(Progress::Read { range, generation, extents })
    }
}

/// What the reader's last word means.
fn failed(error: &ReaderError) -> Progress {
    match error {
        ReaderError::WentBack { before, now } => Progress::WentBack { before: *before, now: *now },
        error => {
            let may_pass = matches!(
                error,
                ReaderError::BadBlock { .. } | ReaderError::SuperblockUnreadable(_)
            );
            Progress::Failed { reason: error.to_string(), may_pass }
        }
    }
}
