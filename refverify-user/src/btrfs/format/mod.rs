//! The on-disk format, as far as the extent tree needs it: superblock, chunks, tree blocks and
//! the items of the extent tree.
//!
//! Everything here takes bytes that may be hostile and gives values or a named refusal. Layouts
//! are those of `include/uapi/linux/btrfs_tree.h` and `fs/btrfs/accessors.h`; they have not
//! changed from 5.10 to 7.3.

mod chunk;
mod csum;
mod device_item;
mod extent_item;
mod fault;
mod features;
mod key;
mod node;
mod parity;
mod placement;
mod profile;
mod root_item;
mod superblock;

pub use chunk::{ChunkError, ChunkMap};
pub use csum::ChecksumType;
pub use device_item::DeviceItem;
pub use extent_item::{
    BackRef, ExtentItem, InlineRefs, ItemError, extent_data_ref_hash, parse_keyed_ref,
};
pub use fault::{BlockFault, ReadFailure};
pub use features::{Unsupported, check};
pub use key::{Key, item_type};
pub use node::{BlockFormat, BlockPointer, Interior, Item, Leaf, TreeBlock};
pub use parity::Parity;
pub use placement::{Piece, Placement};
pub use root_item::{RootItemError, parse_root_item};
pub use superblock::{SUPERBLOCK_LEN_BYTES, SUPERBLOCK_OFFSET, Superblock, SuperblockError};

/// Tree blocks have levels 0 (leaf) to 7 (kernel: `BTRFS_MAX_LEVEL`).
pub const LEVELS_MAX: u8 = 8;
