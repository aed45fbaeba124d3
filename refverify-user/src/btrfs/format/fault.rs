//! What can be wrong with a tree block.

use std::fmt;

use uuid::Uuid;

use super::Key;

/// Why the device gave no bytes; in the words of whoever read it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReadFailure(String);

impl ReadFailure {
    /// Takes over any error's message.
    pub fn new(cause: impl fmt::Display) -> Self {
        Self(cause.to_string())
    }
}

/// Why a block is not the one that its pointer speaks of.
///
/// On a live file system each of these, save [`BlockFault::Unreadable`], usually means that
/// the block was freed and used again; only the superblock can tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockFault {
    /// The device gave an error.
    #[error("{0}")]
    Unreadable(#[from] ReadFailure),
    /// On RAID5 and RAID6: no choice of bad stripes gives a good block.
    #[error("it cannot be computed from parity: {given} of {wanted} other parts could be read")]
    NotRebuilt {
        /// How many parts of its rows were read.
        given: usize,
        /// How many there are.
        wanted: usize,
    },
    /// No chunk holds its address.
    #[error("no chunk holds its address")]
    NotMapped,
    /// Not a whole block.
    #[error("only {len_bytes} bytes were read")]
    Short {
        /// How many.
        len_bytes: usize,
    },
    /// The header names another address.
    #[error("its header says bytenr {found}")]
    Bytenr {
        /// What the header says.
        found: u64,
    },
    /// The header names another file system.
    #[error("its header says fsid {found}")]
    Fsid {
        /// What the header says.
        found: Uuid,
    },
    /// The checksum does not match.
    #[error("its checksum does not match")]
    Checksum,
    /// The header names another level.
    #[error("its header says level {found}")]
    Level {
        /// What the header says.
        found: u8,
    },
    /// The header names another transaction.
    #[error("its header says generation {found}")]
    Generation {
        /// What the header says.
        found: u64,
    },
    /// The header names another tree.
    #[error("its header says owner {found}")]
    Owner {
        /// What the header says.
        found: u64,
    },
    /// None, or more than fit into a block.
    #[error("its header says {found} items, where 1 to {max} are possible")]
    ItemCount {
        /// What the header says.
        found: u32,
        /// How many fit.
        max: usize,
    },
    /// The first key is not the one in the parent.
    #[error("its first key is {found}")]
    FirstKey {
        /// The block's first key.
        found: Key,
    },
    /// A key is not above the one before it.
    #[error("the key in slot {slot} is not above the one before it")]
    KeyOrder {
        /// The place in the block.
        slot: usize,
    },
    /// A key that belongs to the right of this block.
    #[error("its last key {found} lies beyond what the parent allows")]
    LastKey {
        /// The block's last key.
        found: Key,
    },
    /// Items' bodies overlap, leave holes or lie outside.
    #[error("the item in slot {slot} is misplaced")]
    ItemPlace {
        /// The place in the block.
        slot: usize,
    },
    /// No block can be where the pointer says.
    #[error("the pointer in slot {slot} to {bytenr} makes no sense")]
    Pointer {
        /// The place in the block.
        slot: usize,
        /// Where it points.
        bytenr: u64,
    },
}
