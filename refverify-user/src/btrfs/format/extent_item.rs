//! The items of the extent tree: extents and the references to them.

use serde::Serialize;
use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::key::{DiskKey, Key, item_type};
use crate::btrfs::{ExtentKind, RefKey};

/// `BTRFS_EXTENT_FLAG_DATA`.
const FLAG_DATA: u64 = 1 << 0;
/// `BTRFS_EXTENT_FLAG_TREE_BLOCK`.
const FLAG_TREE_BLOCK: u64 = 1 << 1;
/// `BTRFS_BLOCK_FLAG_FULL_BACKREF`: what a tree block points to is referenced by its parent.
const FLAG_FULL_BACKREF: u64 = 1 << 8;

/// `struct btrfs_extent_item`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskExtentItem {
    refs: U64,
    generation: U64,
    flags: U64,
}

/// `struct btrfs_tree_block_info`, between item and references of a non-skinny tree block.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskTreeBlockInfo {
    key: DiskKey,
    level: u8,
}

/// `struct btrfs_extent_data_ref`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskDataRef {
    root: U64,
    objectid: U64,
    offset: U64,
    count: U32,
}

/// A shared data reference, inline: `struct btrfs_extent_inline_ref` less its type, then
/// `struct btrfs_shared_data_ref`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskInlineSharedDataRef {
    parent: U64,
    count: U32,
}

/// A reference as an item states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackRef {
    /// `EXTENT_OWNER_REF`: not a reference, and not counted.
    Owner {
        /// The tree that pays for the extent.
        root: u64,
    },
    /// `TREE_BLOCK_REF`.
    TreeBlock {
        /// The tree.
        root: u64,
    },
    /// `SHARED_BLOCK_REF`.
    SharedBlock {
        /// The block that points to it.
        parent: u64,
    },
    /// `EXTENT_DATA_REF`.
    Data {
        /// The tree.
        root: u64,
        /// The inode.
        objectid: u64,
        /// File offset less extent offset.
        offset: u64,
        /// How often.
        count: u32,
    },
    /// `SHARED_DATA_REF`.
    SharedData {
        /// The leaf that points to it.
        parent: u64,
        /// How often.
        count: u32,
    },
}

impl BackRef {
    /// Its item type.
    pub fn item_type(&self) -> u8 {
        match self {
            Self::Owner { .. } => item_type::EXTENT_OWNER_REF,
            Self::TreeBlock { .. } => item_type::TREE_BLOCK_REF,
            Self::SharedBlock { .. } => item_type::SHARED_BLOCK_REF,
            Self::Data { .. } => item_type::EXTENT_DATA_REF,
            Self::SharedData { .. } => item_type::SHARED_DATA_REF,
        }
    }

    /// What orders references of one type within an item, downwards (kernel:
    /// `btrfs_check_extent_item`'s `last_seq`).
    pub fn sequence(&self) -> u64 {
        match *self {
            Self::Owner { root } | Self::TreeBlock { root } => root,
            Self::SharedBlock { parent } | Self::SharedData { parent, .. } => parent,
            Self::Data { root, objectid, offset, .. } => {
                extent_data_ref_hash(root, objectid, offset)
            }
        }
    }

    /// Its identity and count, if an extent of this kind can have such a reference; nothing
    /// otherwise, and nothing for an owner.
    pub fn of_kind(&self, kind: ExtentKind) -> Option<(RefKey, u32)> {
        match (*self, kind) {
            (Self::TreeBlock { root }, ExtentKind::TreeBlock { level }) => {
                Some((RefKey::tree(root, 0, level), 1))
            }
            (Self::SharedBlock { parent }, ExtentKind::TreeBlock { level }) => {
                Some((RefKey::tree(0, parent, level), 1))
            }
            (Self::Data { root, objectid, offset, count }, ExtentKind::Data) => {
                Some((RefKey::data(root, 0, objectid, offset), count))
            }
            (Self::SharedData { parent, count }, ExtentKind::Data) => {
                Some((RefKey::data(0, parent, 0, 0), count))
            }
            _ => None,
        }
    }
}

/// Why an item cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum ItemError {
    /// The item ends within its fields.
    #[error("the item has {len_bytes} bytes, too few for its fields")]
    CutOff {
        /// Its length.
        len_bytes: usize,
    },
    /// Neither or both of data and tree block, or not what the key's type says.
    #[error("its flags {flags:#x} do not say what it is")]
    Flags {
        /// What the item says.
        flags: u64,
    },
    /// No tree is so high.
    #[error("level {level} is impossible")]
    Level {
        /// What the item or its key says.
        level: u64,
    },
    /// The list of inline references breaks off or holds an unknown type.
    #[error("inline reference of type {ref_type} at byte {at} of the list is unknown or cut off")]
    InlineRef {
        /// Its type.
        ref_type: u8,
        /// Where in the list.
        at: usize,
    },
    /// A keyed reference's body has not the length that its type has.
    #[error("a reference of type {ref_type} cannot have a body of {len_bytes} bytes")]
    KeyedLen {
        /// The key's type.
        ref_type: u8,
        /// The body's length.
        len_bytes: usize,
    },
}

/// `EXTENT_ITEM` or `METADATA_ITEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentItem<'leaf> {
    /// Data or tree block.
    pub kind: ExtentKind,
    /// The length in the key; the node size for a `METADATA_ITEM`.
    pub len_bytes: u64,
    /// How many references it claims to have.
    pub total_refs: u64,
    /// The transaction that allocated it.
    pub generation: u64,
    /// Whether what it points to is referenced by its address; tree blocks only.
    pub has_full_backref: bool,
    /// The references in the item.
    pub inline: InlineRefs<'leaf>,
}

impl<'leaf> ExtentItem<'leaf> {
    /// Reads the item with the key `key`, whose type has to be one of the two.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn parse(key: Key, body: &'leaf [u8], nodesize: u32) -> Result<Self, ItemError> {
        let cut_off = || ItemError::CutOff { len_bytes: body.len() };
        let (item, rest) = DiskExtentItem::ref_from_prefix(body).map_err(|_| cut_off())?;
        let flags = item.flags.get();
        let skinny = key.item_type == item_type::METADATA_ITEM;
        let (kind, rest) = match (flags & (FLAG_DATA | FLAG_TREE_BLOCK), skinny) {
            (FLAG_DATA, false) => (ExtentKind::Data, rest),
            (FLAG_TREE_BLOCK, true) => (tree_block(key.offset)?, rest),
            (FLAG_TREE_BLOCK, false) => {
                let (info, rest) =
                    DiskTreeBlockInfo::ref_from_prefix(rest).map_err(|_| cut_off())?;
                (tree_block(info.level.into())?, rest)
            }
            _ => return Err(ItemError::Flags { flags }),
        };
        Ok(Self {
            kind,
            len_bytes: if skinny { nodesize.into() } else { key.offset },
            total_refs: item.refs.get(),
            generation: item.generation.get(),
            has_full_backref: flags & FLAG_FULL_BACKREF != 0,
            inline: InlineRefs { list: rest, at: 0 },
        })
    }
}

fn tree_block(level: u64) -> Result<ExtentKind, ItemError> {
    match u8::try_from(level) {
        Ok(level) if level < super::LEVELS_MAX => Ok(ExtentKind::TreeBlock { level }),
        _ => Err(ItemError::Level { level }),
    }
}

/// The list of inline references. After an error there is nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineRefs<'leaf> {
    list: &'leaf [u8],
    at: usize,
}

impl Iterator for InlineRefs<'_> {
    type Item = Result<BackRef, ItemError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&ref_type, body) = self.list.get(self.at..)?.split_first()?;
        if let Some((back_ref, len)) = parse_inline_ref(ref_type, body) {
            self.at += 1 + len;
            Some(Ok(back_ref))
        } else {
            let at = std::mem::replace(&mut self.at, self.list.len());
            Some(Err(ItemError::InlineRef { ref_type, at }))
        }
    }
}

/// The reference that `body` begins with, and its length; `None` if the type is unknown (the
/// old format's 180 is) or the body too short.
fn parse_inline_ref(ref_type: u8, body: &[u8]) -> Option<(BackRef, usize)> {
    let number = || Some(U64::ref_from_prefix(body).ok()?.0.get());
    Some(match ref_type {
        item_type::EXTENT_OWNER_REF => (BackRef::Owner { root: number()? }, 8),
        item_type::TREE_BLOCK_REF => (BackRef::TreeBlock { root: number()? }, 8),
        item_type::SHARED_BLOCK_REF => (BackRef::SharedBlock { parent: number()? }, 8),
        item_type::EXTENT_DATA_REF => {
            let (data, _) = DiskDataRef::ref_from_prefix(body).ok()?;
            (data.into(), size_of::<DiskDataRef>())
        }
        item_type::SHARED_DATA_REF => {
            let (shared, _) = DiskInlineSharedDataRef::ref_from_prefix(body).ok()?;
            let (parent, count) = (shared.parent.get(), shared.count.get());
            (BackRef::SharedData { parent, count }, size_of::<DiskInlineSharedDataRef>())
        }
        _ => return None,
    })
}

/// Reads an item that is a reference by itself; `None` if the key's type is none of a
/// reference.
pub fn parse_keyed_ref(key: Key, body: &[u8]) -> Option<Result<BackRef, ItemError>> {
    let wrong_len = || ItemError::KeyedLen { ref_type: key.item_type, len_bytes: body.len() };
    let empty = |back_ref| if body.is_empty() { Ok(back_ref) } else { Err(wrong_len()) };
    Some(match key.item_type {
        item_type::TREE_BLOCK_REF => empty(BackRef::TreeBlock { root: key.offset }),
        item_type::SHARED_BLOCK_REF => empty(BackRef::SharedBlock { parent: key.offset }),
        item_type::EXTENT_DATA_REF => {
            DiskDataRef::ref_from_bytes(body).map(BackRef::from).map_err(|_| wrong_len())
        }
        item_type::SHARED_DATA_REF => U32::ref_from_bytes(body)
            .map(|count| BackRef::SharedData { parent: key.offset, count: count.get() })
            .map_err(|_| wrong_len()),
        _ => return None,
    })
}

impl From<&DiskDataRef> for BackRef {
    fn from(disk: &DiskDataRef) -> Self {
        Self::Data {
            root: disk.root.get(),
            objectid: disk.objectid.get(),
            offset: disk.offset.get(),
            count: disk.count.get(),
        }
    }
}

/// The key's offset of a keyed data reference, and what orders inline ones (kernel:
/// `hash_extent_data_ref` in `extent-tree.c`). Its CRCs start from all ones and are not
/// inverted at the end.
pub fn extent_data_ref_hash(root: u64, objectid: u64, offset: u64) -> u64 {
    let high = !crc32c::crc32c(&root.to_le_bytes());
    // One call for both, which costs more than what it does.
    let low = !crc32c::crc32c([objectid.to_le_bytes(), offset.to_le_bytes()].as_flattened());
    (u64::from(high) << 31) ^ u64::from(low)
}
