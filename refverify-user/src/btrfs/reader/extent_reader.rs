//! The state machine that reads the extent tree.

mod leaf;
mod superblock;
mod suspect;

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;

use suspect::Suspect;

use super::{
    BlockRead, ReaderError, ReaderStep,
    assemble::Assembler,
    found::Found,
    known::{Known, KnownTree},
    mirrors::Mirrors,
    reads::{Answer, NAMED_DEVICE, ReadBlock, Reads},
    walk::{Next, TreeWalk},
};
use crate::btrfs::{
    DiskExtent,
    checks::CheckContext,
    format::{
        BlockPointer, ChunkMap, DeviceItem, Key, ReadFailure, Superblock, TreeBlock, item_type,
    },
    objectid,
};

/// Where the root tree says where the extent tree is.
const EXTENT_ROOT_KEY: Key =
    Key { objectid: objectid::EXTENT_TREE, item_type: item_type::ROOT_ITEM, offset: 0 };

/// What the reader is busy with.
#[derive(Debug)]
enum Stage {
    /// Waiting for a superblock; so many were bad.
    Superblock { tries: u32 },
    /// The superblock is too old: waiting for [`ExtentReader::retry`].
    TooOld,
    /// Reading the chunk tree.
    Chunks { walk: TreeWalk, chunks: ChunkMap },
    /// Looking for the extent tree in the root tree.
    Root { walk: TreeWalk },
    /// Reading the extent tree.
    Extents,
    /// Nothing more to do.
    Ended,
}

/// A reader of the extent tree; see [the module](super).
#[derive(Debug)]
pub struct ExtentReader {
    range: Range<u64>,
    min_generation: u64,
    stage: Stage,
    reads: Reads,
    mirrors: Mirrors,
    found: Found,
    /// The device that gave the superblock last.
    superblock_devid: u64,
    /// The walk over the extent tree; it goes on when a newer superblock has the same tree.
    extents: Option<TreeWalk>,
    assembler: Option<Assembler>,
    /// Everything of the range below has been told.
    complete_upto: u64,
    /// The generation that was told last.
    told_generation: Option<u64>,
    suspect: Option<Suspect>,
    move_on: bool,
    known: Option<Known>,
    steps: VecDeque<ReaderStep>,
}

impl ExtentReader {
    /// A reader of the extents that begin in `range` (of bytenr), at generation
    /// `min_generation` or above.
    pub fn new(range: Range<u64>, min_generation: u64) -> Self {
        let mut reader = Self {
            complete_upto: range.start,
            range,
            min_generation,
            stage: Stage::Ended,
            reads: Reads::default(),
            mirrors: Mirrors::default(),
            found: Found::default(),
            superblock_devid: NAMED_DEVICE,
            extents: None,
            assembler: None,
            told_generation: None,
            suspect: None,
            move_on: false,
            known: None,
            steps: VecDeque::new(),
        };
        reader.read_superblock();
        reader
    }

    /// The same, which passes over what has not changed since an earlier reading of the whole
    /// tree, and tells where.
    pub fn since(range: Range<u64>, min_generation: u64, known: Known) -> Self {
        Self { known: Some(known), ..Self::new(range, min_generation) }
    }

    /// The blocks of the tree that were met, now and before, for a later reading; `None` from a
    /// reader that was not made for that.
    pub fn into_known(self) -> Option<KnownTree> {
        self.known.map(|known| known.tree)
    }

    /// Begins anew with another range. What was read of superblock, chunk tree and root tree
    /// serves again if it is still current: then this costs one superblock and one path.
    pub fn restart(&mut self, range: Range<u64>, min_generation: u64) {
        let fresh = Self::new(range, min_generation);
        // Ids go on counting: an answer that is still under way must not be mistaken.
        let mut reads = std::mem::take(&mut self.reads);
        let found = std::mem::take(&mut self.found);
        let mut mirrors = std::mem::take(&mut self.mirrors);
        reads.forget_all();
        mirrors.confirm(None);
        *self = Self { reads, mirrors, found, ..fresh };
        self.read_superblock();
    }

    /// The reads that have become wanted since the last call. No more than a window of blocks
    /// is wanted at a time, however large the tree.
    ///
    /// Wait for answers only once [`ExtentReader::next_step`] has said `None` and what this
    /// returns is being read: then there is always a read under way, save after the end and
    /// after [`ReaderStep::TooOld`].
    pub fn poll_requests(&mut self) -> Vec<BlockRead> {
        self.reads.take_outbox()
    }

    /// Takes the answer to a read. Answers that nobody waits for are ignored.
    pub fn answer(&mut self, id: u64, data: Result<Bytes, ReadFailure>) {
        let answer = self.reads.answer(id, data);
        self.take_answer(answer);
    }

    /// Takes back an extent that was told and is of no more use: the next ones take its memory.
    pub fn reuse(&mut self, extent: DiskExtent) {
        if let Some(assembler) = &mut self.assembler {
            assembler.reuse(extent);
        }
    }

    /// What came of the answers so far; `None` until more of them come, and after the end.
    pub fn next_step(&mut self) -> Option<ReaderStep> {
        while self.steps.is_empty() {
            self.request_wanted();
            if !self.advance() {
                break;
            }
        }
        self.steps.pop_front()
    }

    /// Whether nothing more will come until [`ExtentReader::restart`].
    pub fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended) && self.steps.is_empty()
    }

    /// Asks for the superblock to be read again at the next border between leaves, and for
    /// reading to go on at its generation if that is newer.
    pub fn move_on(&mut self) {
        self.move_on = true;
    }

    /// Reads the superblock again after [`ReaderStep::TooOld`].
    pub fn retry(&mut self) {
        if matches!(self.stage, Stage::TooOld) {
            self.read_superblock();
        }
    }

    /// The devices of the file system by their ids, as far as the chunk tree has been read.
    pub fn devices(&self) -> &BTreeMap<u64, DeviceItem> {
        &self.found.devices
    }

    /// The share of the range that is complete, 0 to 1, by the bytes of chunks.
    #[expect(clippy::cast_precision_loss, reason = "a share needs no 64 bits")]
    pub fn progress(&self) -> f64 {
        let Some((_, chunks)) = &self.found.chunks else { return 0.0 };
        let all = chunks.len_bytes_within(&self.range);
        let complete = chunks.len_bytes_within(&(self.range.start..self.complete_upto));
        if all == 0 { 0.0 } else { complete as f64 / all as f64 }
    }

    fn request_wanted(&mut self) {
        let (Some(superblock), Some(format)) = (&self.found.superblock, self.found.block_format())
        else {
            return;
        };
        let generation = superblock.generation;
        let is_extents = matches!(self.stage, Stage::Extents);
        let (walk, chunks) = match &mut self.stage {
            // The chunk tree itself is found through the superblock's own chunks.
            Stage::Chunks { walk, .. } => (walk, &superblock.sys_chunks),
            Stage::Root { walk } => match &self.found.chunks {
                Some((_, chunks)) => (walk, chunks),
                None => return,
            },
            Stage::Extents => match (&mut self.extents, &self.found.chunks) {
                (Some(walk), Some((_, chunks))) => (walk, chunks),
                _ => return,
            },
            Stage::Superblock { .. } | Stage::TooOld | Stage::Ended => return,
        };
        for pointer in walk.take_wanted(format.nodesize) {
            let known = self.known.as_mut().filter(|_| is_extents);
            let known = known.map(|known| (known, generation));
            let kept = walk.take_kept(&pointer);
            if let Some(Ok(block)) = kept.map(|data| TreeBlock::check(data, &pointer, &format)) {
                walk.accept(&pointer, Ok(block), known);
                continue;
            }
            let placement = chunks.place(pointer.bytenr, format.nodesize);
            if let Answer::Block(ReadBlock { pointer, block, bad_copies }) =
                self.reads.request_block(pointer, format.clone(), placement)
            {
                let faults = || bad_copies.into_iter().map(|bad| bad.fault).collect();
                walk.accept(&pointer, block.ok_or_else(faults), known);
            }
        }
    }

    fn take_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Nothing => {}
            Answer::Superblock(data) => self.take_superblock(data),
            Answer::Confirmation(data) => {
                let superblock = data.ok().and_then(|data| Superblock::parse(&data).ok());
                let confirmed = self.mirrors.confirm(superblock.map(|it| it.generation));
                self.steps
                    .extend(confirmed.into_iter().map(Box::new).map(ReaderStep::MirrorFailed));
            }
            Answer::Block(read) => self.take_block(read),
        }
        if self.mirrors.take_question() {
            self.reads.request_confirmation(self.superblock_devid);
        }
    }

    fn take_block(&mut self, read: ReadBlock) {
        let ReadBlock { pointer, block, bad_copies } = read;
        let block = match block {
            Some(block) => {
                self.mirrors.suspect(self.found.generation(), pointer, bad_copies);
                Ok(block)
            }
            None => Err(bad_copies.into_iter().map(|bad| bad.fault).collect()),
        };
        match (&mut self.stage, &mut self.extents) {
            (_, Some(walk)) if pointer.tree == objectid::EXTENT_TREE => {
                let generation = self.told_generation.unwrap_or(0);
                walk.accept(&pointer, block, self.known.as_mut().map(|it| (it, generation)));
            }
            (Stage::Chunks { walk, .. } | Stage::Root { walk }, _) => {
                walk.accept(&pointer, block, None);
            }
            _ => {}
        }
    }

    /// Enters the first stage whose outcome the chosen superblock does not share with the one
    /// before: copy-on-write means that an equal pointer leads to an equal tree.
    fn go_on(&mut self) {
        let Some(superblock) = self.found.superblock.clone() else { return };
        let chunk_root = superblock.chunk_root_pointer();
        if self.found.chunks.as_ref().is_none_or(|(root, _)| *root != chunk_root) {
            self.reads.forget_tree(objectid::CHUNK_TREE);
            let all = Key::first_of(0)..Key { objectid: u64::MAX, item_type: 0, offset: 0 };
            let walk = TreeWalk::new(chunk_root, all);
            self.stage = Stage::Chunks { walk, chunks: ChunkMap::default() };
            return;
        }
        let root = superblock.root_pointer();
        match self.found.extent_root {
            Some((found_in, extent_root)) if found_in == root => {
                self.go_on_with_extents(superblock, extent_root);
            }
            _ => {
                self.reads.forget_tree(objectid::ROOT_TREE);
                let after = Key { offset: 1, ..EXTENT_ROOT_KEY };
                self.stage = Stage::Root { walk: TreeWalk::new(root, EXTENT_ROOT_KEY..after) };
            }
        }
    }

    fn go_on_with_extents(&mut self, superblock: Arc<Superblock>, root: BlockPointer) {
        let context = CheckContext::from(&*superblock);
        let assembler = self.assembler.get_or_insert_with(|| Assembler::new(context));
        if self.extents.as_ref().is_some_and(|walk| walk.root() == root) {
            assembler.keep_on(context);
        } else {
            assembler.move_on(context);
            self.reads.forget_tree(objectid::EXTENT_TREE);
            let unread = Key::first_of(self.complete_upto)..Key::first_of(self.range.end);
            self.extents = Some(TreeWalk::after(self.extents.take(), root, unread));
        }
        self.stage = Stage::Extents;
        let generation = superblock.generation;
        if self.told_generation.replace(generation) != Some(generation) {
            let from_bytenr = self.complete_upto;
            self.steps.push_back(ReaderStep::Generation { generation, from_bytenr, superblock });
        }
    }

    /// Takes the next block from left to right. False when there is none yet.
    fn advance(&mut self) -> bool {
        if matches!(self.stage, Stage::Extents) && self.move_on {
            self.read_superblock();
        }
        let next = match (&mut self.stage, &mut self.extents) {
            (Stage::Chunks { walk, .. } | Stage::Root { walk }, _)
            | (Stage::Extents, Some(walk)) => walk.next(),
            _ => return false,
        };
        let taken = match next {
            Next::Waiting => return false,
            // The last word is for the devices that failed.
            Next::End if matches!(self.stage, Stage::Extents) && !self.mirrors.is_settled() => {
                return false;
            }
            Next::Leaf(leaf) => self.take_leaf(&leaf),
            Next::Unchanged(keys) => {
                self.pass_over(&keys);
                Ok(())
            }
            Next::Bad(pointer, faults) => self.take_bad(pointer, faults),
            Next::End => self.take_end(),
        };
        if let Err(error) = taken {
            self.fail(error);
        }
        true
    }

    fn take_end(&mut self) -> Result<(), ReaderError> {
        let generation = self.found.generation();
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Chunks { walk, chunks } => {
                chunks.check_profiles()?;
                self.found.chunks = Some((walk.root(), chunks));
                self.go_on();
            }
            Stage::Root { walk } => {
                let found = self.found.extent_root.filter(|(found_in, _)| *found_in == walk.root());
                found.ok_or(ReaderError::NoExtentTree { generation })?;
                self.go_on();
            }
            Stage::Extents => {
                if let Some(assembler) = &mut self.assembler {
                    assembler.close(&mut self.steps);
                }
                let upto_bytenr = self.range.end;
                // What is passed over at the right edge is all there is.
                if self.complete_upto < upto_bytenr {
                    self.complete_upto = upto_bytenr;
                    self.steps.push_back(ReaderStep::Complete { upto_bytenr, generation });
                }
                self.steps.push_back(ReaderStep::Done { generation });
            }
            Stage::Superblock { .. } | Stage::TooOld | Stage::Ended => {}
        }
        Ok(())
    }

    fn fail(&mut self, error: ReaderError) {
        self.stage = Stage::Ended;
        self.reads.forget_all();
        self.steps.push_back(ReaderStep::Failed(Box::new(error)));
    }
}
