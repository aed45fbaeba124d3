//! What an extent and a reference are, in the form in which the extent tree stores them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Well-known object ids (kernel: `include/uapi/linux/btrfs_tree.h`).
pub mod objectid {
    /// The tree of tree roots.
    pub const ROOT_TREE: u64 = 1;
    /// The extent tree.
    pub const EXTENT_TREE: u64 = 2;
    /// The chunk tree.
    pub const CHUNK_TREE: u64 = 3;
    /// The top-level subvolume.
    pub const FS_TREE: u64 = 5;
    /// The directory of the tree of roots: no tree.
    pub const ROOT_TREE_DIR: u64 = 6;
    /// The first id that a subvolume or an inode can have.
    pub const FIRST_FREE: u64 = 256;
    /// The chunk items' object id in the chunk tree.
    pub const FIRST_CHUNK_TREE: u64 = 256;
    /// Log trees (-6): their blocks are never counted in the extent tree.
    pub const TREE_LOG: u64 = (-6_i64).cast_unsigned();
    /// Relocation trees (-8).
    pub const TREE_RELOC: u64 = (-8_i64).cast_unsigned();
    /// The inode tree that relocation moves data through (-9).
    pub const DATA_RELOC_TREE: u64 = (-9_i64).cast_unsigned();
    /// The last id that a subvolume or an inode can have.
    pub const LAST_FREE: u64 = (-256_i64).cast_unsigned();
}

/// What a delayed reference asks for (kernel: `enum btrfs_delayed_ref_action`; the values
/// are the same in 5.10 to 7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// `BTRFS_ADD_DELAYED_REF` (1): one more reference to an extent that exists.
    AddRef,
    /// `BTRFS_DROP_DELAYED_REF` (2): one reference fewer.
    DropRef,
    /// `BTRFS_ADD_DELAYED_EXTENT` (3): the first reference to an extent just allocated.
    AddExtent,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddRef => "ADD_REF",
            Self::DropRef => "DROP_REF",
            Self::AddExtent => "ADD_EXTENT",
        })
    }
}

/// Whether an extent holds file data or a node of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ExtentKind {
    /// File data.
    Data,
    /// A tree block.
    TreeBlock {
        /// Its level: 0 is a leaf; below 8.
        level: u8,
    },
}

/// The identity of a reference, normalised as the extent tree keeps it, so that an event and
/// an item on disk that mean the same reference are equal.
///
/// Four shapes exist, made by the four constructors:
///
/// | on disk | root | parent | owner | offset |
/// |---|---|---|---|---|
/// | `TREE_BLOCK_REF` | root | 0 | level | 0 |
/// | `SHARED_BLOCK_REF` | 0 | parent | level | 0 |
/// | `EXTENT_DATA_REF` | root | 0 | inode | file offset - extent offset |
/// | `SHARED_DATA_REF` | 0 | parent | 0 | 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RefKey {
    /// The tree that holds the reference; 0 when `parent` is given.
    pub root: u64,
    /// The bytenr of the tree block that holds the reference; 0 for a direct reference.
    pub parent: u64,
    /// Level of a tree block, or inode number of a direct data reference.
    pub owner: u64,
    /// File offset less extent offset of a direct data reference; wraps below 0 as u64.
    pub offset: u64,
}

impl RefKey {
    /// A reference to a tree block: shared when `parent` is not 0, else direct from `root`.
    pub const fn tree(root: u64, parent: u64, level: u8) -> Self {
        let root = if parent == 0 { root } else { 0 };
        Self { root, parent, owner: level as u64, offset: 0 }
    }

    /// A reference to data: shared when `parent` is not 0, else direct from an inode.
    pub const fn data(root: u64, parent: u64, objectid: u64, offset: u64) -> Self {
        if parent == 0 {
            Self { root, parent: 0, owner: objectid, offset }
        } else {
            Self { root: 0, parent, owner: 0, offset: 0 }
        }
    }

    /// Whether the reference names a parent block instead of a root.
    pub const fn is_shared(&self) -> bool {
        self.parent != 0
    }
}

impl fmt::Display for RefKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { root, parent, owner, offset } = self;
        // Roots such as -9 read better as the kernel's headers write them.
        write!(f, "root {} parent {parent} owner {owner} offset {offset}", SignedRoot(*root))
    }
}

/// Shows the ids at the top of the range as the negative numbers that the headers use.
#[derive(Clone, Copy, Debug)]
pub struct SignedRoot(pub u64);

impl fmt::Display for SignedRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.cast_signed() {
            signed @ -256..=-1 => write!(f, "{signed}"),
            _ => write!(f, "{}", self.0),
        }
    }
}

/// An extent as the extent tree of one generation has it: the item, and every reference to
/// it, inline or keyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskExtent {
    /// Logical address of its first byte.
    pub bytenr: u64,
    /// Its length; the node size for a tree block.
    pub len_bytes: u64,
    /// Data or tree block.
    pub kind: ExtentKind,
    /// The total that the item states (`btrfs_extent_item.refs`).
    pub total_refs: u64,
    /// The transaction that allocated it (`btrfs_extent_item.generation`).
    pub generation: u64,
    /// The simple-quota owner (`EXTENT_OWNER_REF`), where the item has one.
    pub owner_root: Option<u64>,
    /// The references with their counts, in the order of the disk, as the disk has them:
    /// duplicates and zero counts are kept for the rules to see.
    pub refs: Vec<(RefKey, u32)>,
}
