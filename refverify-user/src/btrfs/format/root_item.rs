//! `ROOT_ITEM`: where a tree's root is.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned, little_endian::U64};

use super::{BlockPointer, LEVELS_MAX};

/// The part of `struct btrfs_root_item` that every version has.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskRootItem {
    inode: [u8; 160],
    generation: U64,
    root_dirid: U64,
    bytenr: U64,
    byte_limit: U64,
    bytes_used: U64,
    last_snapshot: U64,
    flags: U64,
    refs: [u8; 4],
    drop_progress: [u8; 17],
    drop_level: u8,
    level: u8,
}

/// Why a root item cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootItemError {
    /// The item ends within its fields.
    #[error("the root item has only {len_bytes} bytes")]
    CutOff {
        /// Its length.
        len_bytes: usize,
    },
    /// No tree block can be there.
    #[error("the root item points to level {level} at {bytenr}")]
    Nonsense {
        /// Where the root block should be.
        bytenr: u64,
        /// The level it should have.
        level: u8,
    },
}

/// Reads where the tree `tree` begins.
///
/// # Errors
///
/// Says what is wrong with the item.
pub fn parse_root_item(
    tree: u64,
    item: &[u8],
    sectorsize: u32,
) -> Result<BlockPointer, RootItemError> {
    let (disk, _) = DiskRootItem::ref_from_prefix(item)
        .map_err(|_| RootItemError::CutOff { len_bytes: item.len() })?;
    let bytenr = disk.bytenr.get();
    let level = disk.level;
    if bytenr == 0 || !bytenr.is_multiple_of(sectorsize.into()) || level >= LEVELS_MAX {
        return Err(RootItemError::Nonsense { bytenr, level });
    }
    Ok(BlockPointer::to_root(tree, bytenr, disk.generation.get(), level))
}
