//! Reads under way: ids, mirrors, and which answer is for what.

use std::collections::HashMap;

use bytes::Bytes;

use super::BlockRead;
use crate::btrfs::format::{
    BlockFault, BlockFormat, BlockPointer, Physical, ReadFailure, SUPERBLOCK_LEN_BYTES,
    SUPERBLOCK_OFFSET, TreeBlock,
};

/// The btrfs device id that stands for the device that the user named.
const NAMED_DEVICE: u64 = 0;

/// A tree block being read: the mirrors that are left, and what was wrong with the others.
#[derive(Debug)]
struct BlockInFlight {
    pointer: BlockPointer,
    format: BlockFormat,
    mirrors_left: std::vec::IntoIter<Physical>,
    faults: Vec<BlockFault>,
}

#[derive(Debug)]
enum InFlight {
    Superblock,
    Block(BlockInFlight),
}

/// What an answer turned out to be.
pub(super) enum Answer {
    /// Nobody waits for it any more, or the next mirror was asked for.
    Nothing,
    /// The bytes of a superblock.
    Superblock(Result<Bytes, ReadFailure>),
    /// A tree block, checked; or what was wrong with each of its mirrors.
    Block(BlockPointer, Result<TreeBlock, Vec<BlockFault>>),
}

/// All reads of one reader.
#[derive(Debug, Default)]
pub(super) struct Reads {
    next_id: u64,
    in_flight: HashMap<u64, InFlight>,
    outbox: Vec<BlockRead>,
}

impl Reads {
    /// The requests that have not been handed out yet.
    pub(super) fn take_outbox(&mut self) -> Vec<BlockRead> {
        std::mem::take(&mut self.outbox)
    }

    pub(super) fn request_superblock(&mut self) {
        let place = Physical { devid: NAMED_DEVICE, offset: SUPERBLOCK_OFFSET };
        self.request(place, SUPERBLOCK_LEN_BYTES, InFlight::Superblock);
    }

    /// Asks for a tree block, mirror by mirror. A block without any is bad at once.
    pub(super) fn request_block(
        &mut self,
        pointer: BlockPointer,
        format: BlockFormat,
        mirrors: Vec<Physical>,
    ) -> Answer {
        if mirrors.is_empty() {
            return Answer::Block(pointer, Err(vec![BlockFault::NotMapped]));
        }
        let mirrors_left = mirrors.into_iter();
        self.try_next_mirror(BlockInFlight { pointer, format, mirrors_left, faults: Vec::new() })
    }

    /// Forgets all reads of one tree: their answers no longer matter.
    pub(super) fn forget_tree(&mut self, tree: u64) {
        let is_of_tree =
            |read: &InFlight| matches!(read, InFlight::Block(block) if block.pointer.tree == tree);
        self.in_flight.retain(|_, read| !is_of_tree(read));
        self.outbox.retain(|read| self.in_flight.contains_key(&read.id));
    }

    /// Forgets all reads.
    pub(super) fn forget_all(&mut self) {
        self.in_flight.clear();
        self.outbox.clear();
    }

    pub(super) fn answer(&mut self, id: u64, data: Result<Bytes, ReadFailure>) -> Answer {
        match self.in_flight.remove(&id) {
            None => Answer::Nothing,
            Some(InFlight::Superblock) => Answer::Superblock(data),
            Some(InFlight::Block(mut block)) => {
                let checked = data
                    .map_err(BlockFault::from)
                    .and_then(|data| TreeBlock::check(data, &block.pointer, &block.format));
                match checked {
                    Ok(tree_block) => Answer::Block(block.pointer, Ok(tree_block)),
                    Err(fault) => {
                        block.faults.push(fault);
                        self.try_next_mirror(block)
                    }
                }
            }
        }
    }

    fn try_next_mirror(&mut self, mut block: BlockInFlight) -> Answer {
        match block.mirrors_left.next() {
            None => Answer::Block(block.pointer, Err(block.faults)),
            Some(place) => {
                self.request(place, block.format.nodesize, InFlight::Block(block));
                Answer::Nothing
            }
        }
    }

    fn request(&mut self, place: Physical, len_bytes: u32, read: InFlight) {
        let Physical { devid, offset } = place;
        self.next_id += 1;
        self.in_flight.insert(self.next_id, read);
        self.outbox.push(BlockRead { id: self.next_id, devid, offset, len_bytes });
    }
}
