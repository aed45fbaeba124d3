//! Reads under way: ids, copies, parity, and which answer is for what.

use std::collections::HashMap;

use bytes::Bytes;

use super::BlockRead;
use crate::btrfs::format::{
    BlockFault, BlockFormat, BlockPointer, Parity, Piece, Placement, ReadFailure,
    SUPERBLOCK_LEN_BYTES, SUPERBLOCK_OFFSET, TreeBlock,
};

/// The btrfs device id that stands for the device that the user named.
pub const NAMED_DEVICE: u64 = 0;

/// A tree block being read: from one copy, or from all that parity needs.
#[derive(Debug)]
struct Gathering {
    pointer: BlockPointer,
    format: BlockFormat,
    copies_left: std::vec::IntoIter<Vec<Piece>>,
    /// The last resort.
    parity_left: Option<Parity>,
    bad_copies: Vec<BadCopy>,
    source: Source,
    /// In the order of the source's pieces.
    parts: Vec<Option<Result<Bytes, ReadFailure>>>,
    parts_missing: usize,
}

/// Where a block's parts are read from now.
#[derive(Debug)]
enum Source {
    /// A copy, whose first part is on this device.
    Copy {
        devid: u64,
    },
    Parity(Parity),
}

/// What was wrong with a copy.
#[derive(Debug)]
pub(super) struct BadCopy {
    /// The device; `None` where all that was left was to compute it.
    pub(super) devid: Option<u64>,
    pub(super) fault: BlockFault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InFlight {
    Superblock,
    /// The superblock, only to learn whether it is still the same.
    Confirmation,
    Part {
        gathering: u64,
        index: usize,
    },
}

/// A tree block, checked, or nothing; and the copies that were no good.
#[derive(Debug)]
pub(super) struct ReadBlock {
    pub(super) pointer: BlockPointer,
    pub(super) block: Option<TreeBlock>,
    pub(super) bad_copies: Vec<BadCopy>,
}

/// What an answer turned out to be.
#[expect(clippy::large_enum_variant, reason = "made once for each read, and taken apart at once")]
pub(super) enum Answer {
    /// Nobody waits for it any more, or more is needed.
    Nothing,
    /// The bytes of a superblock.
    Superblock(Result<Bytes, ReadFailure>),
    /// The bytes of one that was asked for as a confirmation.
    Confirmation(Result<Bytes, ReadFailure>),
    /// A tree block.
    Block(ReadBlock),
}

/// All reads of one reader.
#[derive(Debug, Default)]
pub(super) struct Reads {
    next_id: u64,
    in_flight: HashMap<u64, InFlight>,
    gatherings: HashMap<u64, Gathering>,
    outbox: Vec<BlockRead>,
}

impl Reads {
    /// The requests that have not been handed out yet.
    pub(super) fn take_outbox(&mut self) -> Vec<BlockRead> {
        std::mem::take(&mut self.outbox)
    }

    pub(super) fn request_superblock(&mut self, devid: u64) {
        self.request(superblock_of(devid), InFlight::Superblock);
    }

    pub(super) fn request_confirmation(&mut self, devid: u64) {
        self.request(superblock_of(devid), InFlight::Confirmation);
    }

    /// Asks for a tree block, copy by copy. A block without any is bad at once.
    pub(super) fn request_block(
        &mut self,
        pointer: BlockPointer,
        format: BlockFormat,
        placement: Placement,
    ) -> Answer {
        let Placement { copies, parity } = placement;
        let mut bad_copies = Vec::new();
        if copies.is_empty() {
            bad_copies.push(BadCopy { devid: None, fault: BlockFault::NotMapped });
        }
        self.try_next_source(Gathering {
            pointer,
            format,
            copies_left: copies.into_iter(),
            parity_left: parity,
            bad_copies,
            source: Source::Copy { devid: NAMED_DEVICE },
            parts: Vec::new(),
            parts_missing: 0,
        })
    }

    /// Forgets all reads of one tree: their answers no longer matter.
    pub(super) fn forget_tree(&mut self, tree: u64) {
        self.gatherings.retain(|_, gathering| gathering.pointer.tree != tree);
        self.in_flight.retain(|_, read| match read {
            InFlight::Part { gathering, .. } => self.gatherings.contains_key(gathering),
            _ => true,
        });
        self.outbox.retain(|read| self.in_flight.contains_key(&read.id));
    }

    /// Forgets all reads.
    pub(super) fn forget_all(&mut self) {
        self.in_flight.clear();
        self.gatherings.clear();
        self.outbox.clear();
    }

    pub(super) fn answer(&mut self, id: u64, data: Result<Bytes, ReadFailure>) -> Answer {
        match self.in_flight.remove(&id) {
            None => Answer::Nothing,
            Some(InFlight::Superblock) => Answer::Superblock(data),
            Some(InFlight::Confirmation) => Answer::Confirmation(data),
            Some(InFlight::Part { gathering, index }) => self.take_part(gathering, index, data),
        }
    }

    fn take_part(&mut self, id: u64, index: usize, data: Result<Bytes, ReadFailure>) -> Answer {
        let Some(gathering) = self.gatherings.get_mut(&id) else { return Answer::Nothing };
        if let Some(part) = gathering.parts.get_mut(index) {
            *part = Some(data);
        }
        gathering.parts_missing = gathering.parts_missing.saturating_sub(1);
        if gathering.parts_missing > 0 {
            return Answer::Nothing;
        }
        let Some(mut gathering) = self.gatherings.remove(&id) else { return Answer::Nothing };
        match gathering.finish() {
            Ok(block) => Answer::Block(ReadBlock {
                pointer: gathering.pointer,
                block: Some(block),
                bad_copies: gathering.bad_copies,
            }),
            Err(bad_copy) => {
                gathering.bad_copies.push(bad_copy);
                self.try_next_source(gathering)
            }
        }
    }

    fn try_next_source(&mut self, mut gathering: Gathering) -> Answer {
        let (source, pieces) = if let Some(copy) = gathering.copies_left.next() {
            let devid = copy.first().map_or(NAMED_DEVICE, |piece| piece.devid);
            (Source::Copy { devid }, copy)
        } else if let Some(parity) = gathering.parity_left.take() {
            let pieces = parity.pieces().collect();
            (Source::Parity(parity), pieces)
        } else {
            let Gathering { pointer, bad_copies, .. } = gathering;
            return Answer::Block(ReadBlock { pointer, block: None, bad_copies });
        };
        gathering.source = source;
        gathering.parts = vec![None; pieces.len()];
        gathering.parts_missing = pieces.len();
        self.next_id += 1;
        let id = self.next_id;
        self.gatherings.insert(id, gathering);
        for (index, piece) in pieces.into_iter().enumerate() {
            self.request(piece, InFlight::Part { gathering: id, index });
        }
        Answer::Nothing
    }

    fn request(&mut self, piece: Piece, read: InFlight) {
        let Piece { devid, offset, len_bytes } = piece;
        self.next_id += 1;
        self.in_flight.insert(self.next_id, read);
        self.outbox.push(BlockRead { id: self.next_id, devid, offset, len_bytes });
    }
}

impl Gathering {
    /// Puts the parts together, which are all there.
    fn finish(&mut self) -> Result<TreeBlock, BadCopy> {
        let parts = std::mem::take(&mut self.parts).into_iter().flatten();
        match &self.source {
            Source::Copy { devid } => join(parts)
                .map_err(BlockFault::from)
                .and_then(|data| TreeBlock::check(data, &self.pointer, &self.format))
                .map_err(|fault| BadCopy { devid: Some(*devid), fault }),
            Source::Parity(parity) => {
                let parts: Vec<_> = parts.map(Result::ok).collect();
                let check = |data| TreeBlock::check(data, &self.pointer, &self.format).ok();
                let (given, wanted) = (parts.iter().flatten().count(), parts.len());
                let fault = BlockFault::NotRebuilt { given, wanted };
                let rebuilt = parity.rebuild(&parts).find_map(check);
                rebuilt.ok_or(BadCopy { devid: None, fault })
            }
        }
    }
}

/// One part needs no copying.
fn join(mut parts: impl Iterator<Item = Result<Bytes, ReadFailure>>) -> Result<Bytes, ReadFailure> {
    let first = parts.next().unwrap_or(Ok(Bytes::new()))?;
    let Some(second) = parts.next() else { return Ok(first) };
    let mut whole = first.to_vec();
    whole.extend(second?);
    for part in parts {
        whole.extend(part?);
    }
    Ok(whole.into())
}

fn superblock_of(devid: u64) -> Piece {
    Piece { devid, offset: SUPERBLOCK_OFFSET, len_bytes: SUPERBLOCK_LEN_BYTES }
}
