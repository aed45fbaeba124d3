//! The key that orders every tree.

use std::fmt;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned, little_endian::U64};

/// The item types that occur on the way to the extent tree and in it
/// (kernel: `include/uapi/linux/btrfs_tree.h`).
pub mod item_type {
    /// Where a tree's root is.
    pub const ROOT_ITEM: u8 = 132;
    /// An extent; the key's offset is its length.
    pub const EXTENT_ITEM: u8 = 168;
    /// A tree block; the key's offset is its level (`SKINNY_METADATA`).
    pub const METADATA_ITEM: u8 = 169;
    /// The simple-quota owner; inline only.
    pub const EXTENT_OWNER_REF: u8 = 172;
    /// A tree block's reference by the root of its tree.
    pub const TREE_BLOCK_REF: u8 = 176;
    /// A data extent's reference by root, inode and offset.
    pub const EXTENT_DATA_REF: u8 = 178;
    /// The format of before 2009, which kernels since 6.6 do not know.
    pub const EXTENT_REF_V0: u8 = 180;
    /// A tree block's reference by its parent block.
    pub const SHARED_BLOCK_REF: u8 = 182;
    /// A data extent's reference by the leaf that holds it.
    pub const SHARED_DATA_REF: u8 = 184;
    /// A block group: no extent, but kept in the same tree.
    pub const BLOCK_GROUP_ITEM: u8 = 192;
    /// A device, in the chunk tree.
    pub const DEV_ITEM: u8 = 216;
    /// A chunk, in the chunk tree.
    pub const CHUNK_ITEM: u8 = 228;
}

/// A key; ordered as the trees are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// In the extent tree: the extent's bytenr.
    pub objectid: u64,
    /// One of [`item_type`].
    pub item_type: u8,
    /// Means what the type says.
    pub offset: u64,
}

impl Key {
    /// The smallest key of an object.
    pub const fn first_of(objectid: u64) -> Self {
        Self { objectid, item_type: 0, offset: 0 }
    }
}

impl fmt::Display for Key {
    /// As the kernel's messages and btrfs-progs write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} {} {})", self.objectid, self.item_type, self.offset)
    }
}

/// `struct btrfs_disk_key`.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct DiskKey {
    objectid: U64,
    item_type: u8,
    offset: U64,
}

impl From<DiskKey> for Key {
    fn from(disk: DiskKey) -> Self {
        Self { objectid: disk.objectid.get(), item_type: disk.item_type, offset: disk.offset.get() }
    }
}
