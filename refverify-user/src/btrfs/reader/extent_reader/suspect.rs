//! Blocks that are not what they should be: freed and used again, or bad.

use super::{ExtentReader, Stage};
use crate::btrfs::{
    format::{BlockFault, BlockPointer},
    reader::ReaderError,
};

/// How often in a row a block may be bad while every superblock still leads to it.
const BLOCK_TRIES: u32 = 3;

/// The block that was bad last.
#[derive(Debug)]
pub(super) struct Suspect {
    pointer: BlockPointer,
    /// The superblock's generation when it was bad.
    generation: u64,
    /// How often something was bad, without a sign that it was only stale.
    tries: u32,
}

impl ExtentReader {
    /// A block is not what its pointer says. If it was freed and used again, then there is a
    /// newer superblock, and it no longer leads to that block.
    pub(super) fn take_bad(
        &mut self,
        pointer: BlockPointer,
        faults: Vec<BlockFault>,
    ) -> Result<(), ReaderError> {
        if matches!(self.stage, Stage::Chunks { .. }) && self.is_of_seed(&faults) {
            self.go_on();
            return Ok(());
        }
        let generation = self.found.generation();
        let tries = match &self.suspect {
            Some(last) if last.generation == generation || last.pointer.is_same_block(&pointer) => {
                last.tries + 1
            }
            _ => 1,
        };
        if tries > BLOCK_TRIES {
            return Err(ReaderError::BadBlock { pointer, faults });
        }
        self.suspect = Some(Suspect { pointer, generation, tries });
        if let Some(walk) = &mut self.extents {
            walk.retry_bad();
        }
        self.read_superblock();
        Ok(())
    }

    /// Whether a block was refused only because the seed that it is from was not known yet.
    fn is_of_seed(&self, faults: &[BlockFault]) -> bool {
        let is_of_seed = |fault: &BlockFault| matches!(fault, BlockFault::Fsid { found } if self.found.is_seed(*found));
        faults.iter().any(is_of_seed)
    }
}
