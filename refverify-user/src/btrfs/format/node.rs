//! Tree blocks: when to believe one, and what is in it.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::{
    BlockFault, ChecksumType, LEVELS_MAX,
    key::{DiskKey, Key},
};

/// `struct btrfs_header`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskHeader {
    csum: [u8; 32],
    fsid: [u8; 16],
    bytenr: U64,
    flags: U64,
    chunk_tree_uuid: [u8; 16],
    generation: U64,
    owner: U64,
    nritems: U32,
    level: u8,
}

/// `struct btrfs_key_ptr`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskKeyPointer {
    key: DiskKey,
    bytenr: U64,
    generation: U64,
}

/// `struct btrfs_item`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskItem {
    key: DiskKey,
    /// From the end of the header.
    offset: U32,
    size: U32,
}

const HEADER_LEN: usize = size_of::<DiskHeader>();

/// What is the same for all tree blocks of a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockFormat {
    /// Length of a tree block.
    pub nodesize: u32,
    /// Addresses are multiples of it.
    pub sectorsize: u32,
    /// The ids that a header may have: the `metadata_uuid`, then those of the seeds that the file
    /// system is based on (kernel: `check_tree_block_fsid`).
    pub fsids: Arc<[Uuid]>,
    /// The algorithm of the checksum.
    pub csum_type: ChecksumType,
}

/// A pointer to a tree block, with all that the block must then say of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPointer {
    /// The tree that it belongs to.
    pub tree: u64,
    /// Its logical address.
    pub bytenr: u64,
    /// The transaction that wrote it.
    pub generation: u64,
    /// Its level.
    pub level: u8,
    /// Its first key, as the parent has it; `None` for a root.
    pub first_key: Option<Key>,
    /// What all of its keys are below; `None` at the right edge of the tree.
    pub end_key: Option<Key>,
}

impl BlockPointer {
    /// A pointer to a tree's root.
    pub const fn to_root(tree: u64, bytenr: u64, generation: u64, level: u8) -> Self {
        Self { tree, bytenr, generation, level, first_key: None, end_key: None }
    }

    /// Whether both point to the same block, whatever its neighbours are.
    pub fn is_same_block(&self, other: &Self) -> bool {
        let identity = |pointer: &Self| (pointer.tree, pointer.bytenr, pointer.generation);
        identity(self) == identity(other)
    }
}

impl fmt::Display for BlockPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tree, bytenr, generation, level, .. } = self;
        write!(f, "block {bytenr} of tree {tree}, level {level}, generation {generation}")
    }
}

/// A tree block that has passed every check.
#[derive(Clone, Debug)]
pub enum TreeBlock {
    /// Level 1 and above.
    Interior(Interior),
    /// Level 0.
    Leaf(Leaf),
}

impl TreeBlock {
    /// Checks everything that a block says of itself against the pointer that led to it.
    ///
    /// The header is checked as the kernel does in `btrfs_validate_extent_buffer` (6.12
    /// `disk-io.c`), with the owner, the first key (`btrfs_verify_level_key`) and the layout
    /// (`btrfs_check_leaf`, `btrfs_check_node`) besides: a block that was freed and used again
    /// has a valid checksum too.
    ///
    /// # Errors
    ///
    /// The first thing that does not fit.
    pub fn check(
        data: Bytes,
        pointer: &BlockPointer,
        format: &BlockFormat,
    ) -> Result<Self, BlockFault> {
        if data.len() != format.nodesize as usize {
            return Err(BlockFault::Short { len_bytes: data.len() });
        }
        let (header, body) = DiskHeader::ref_from_prefix(&data)
            .map_err(|_| BlockFault::Short { len_bytes: data.len() })?;
        header.check(&data, pointer, format)?;
        let count = header.nritems.get();
        if pointer.level == 0 {
            let items = entries::<DiskItem>(body, count)?;
            check_keys(items.iter().map(|item| item.key), pointer)?;
            check_places(items, body.len())?;
            let owner = pointer.tree;
            Ok(Self::Leaf(Leaf { bytenr: pointer.bytenr, owner, count: items.len(), data }))
        } else {
            let pointers = entries::<DiskKeyPointer>(body, count)?;
            check_keys(pointers.iter().map(|pointer| pointer.key), pointer)?;
            check_pointers(pointers, format)?;
            Ok(Self::Interior(Interior { pointer: *pointer, count: pointers.len(), data }))
        }
    }

    /// The chunk tree's UUID, which mkfs chooses and every tree block carries (kernel:
    /// `btrfs_header.chunk_tree_uuid`; `open_ctree` keeps it in `btrfs_fs_info.chunk_tree_uuid`,
    /// the first member in 5.10 to 7.3).
    pub fn chunk_tree_uuid(&self) -> Uuid {
        let (Self::Interior(Interior { data, .. }) | Self::Leaf(Leaf { data, .. })) = self;
        let header = DiskHeader::ref_from_prefix(data);
        // `check` has seen to the length.
        header.map_or(Uuid::nil(), |(header, _)| Uuid::from_bytes(header.chunk_tree_uuid))
    }
}

impl DiskHeader {
    fn check(
        &self,
        block: &[u8],
        pointer: &BlockPointer,
        format: &BlockFormat,
    ) -> Result<(), BlockFault> {
        if self.bytenr.get() != pointer.bytenr {
            return Err(BlockFault::Bytenr { found: self.bytenr.get() });
        }
        let fsid = Uuid::from_bytes(self.fsid);
        if !format.fsids.contains(&fsid) {
            return Err(BlockFault::Fsid { found: fsid });
        }
        if !format.csum_type.matches(block) {
            return Err(BlockFault::Checksum);
        }
        if self.level != pointer.level || self.level >= LEVELS_MAX {
            return Err(BlockFault::Level { found: self.level });
        }
        if self.generation.get() != pointer.generation {
            return Err(BlockFault::Generation { found: self.generation.get() });
        }
        if self.owner.get() != pointer.tree {
            return Err(BlockFault::Owner { found: self.owner.get() });
        }
        Ok(())
    }
}

/// The array of items or pointers behind the header. No tree that is read here is ever empty.
fn entries<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    body: &[u8],
    count: u32,
) -> Result<&[T], BlockFault> {
    let max = body.len() / size_of::<T>();
    let (all, _) = <[T]>::ref_from_prefix_with_elems(body, max)
        .map_err(|_| BlockFault::ItemCount { found: count, max })?;
    all.get(..count as usize)
        .filter(|entries| !entries.is_empty())
        .ok_or(BlockFault::ItemCount { found: count, max })
}

fn check_keys(
    keys: impl Iterator<Item = DiskKey>,
    pointer: &BlockPointer,
) -> Result<(), BlockFault> {
    let mut last: Option<Key> = None;
    for (slot, key) in keys.map(Key::from).enumerate() {
        match last {
            None if pointer.first_key.is_some_and(|first| first != key) => {
                return Err(BlockFault::FirstKey { found: key });
            }
            Some(last) if last >= key => return Err(BlockFault::KeyOrder { slot }),
            _ => last = Some(key),
        }
    }
    match (last, pointer.end_key) {
        (Some(found), Some(end)) if found >= end => Err(BlockFault::LastKey { found }),
        _ => Ok(()),
    }
}

/// Bodies are packed from the end of the leaf, the first item's last, without holes.
fn check_places(items: &[DiskItem], body_len: usize) -> Result<(), BlockFault> {
    let headers_end = size_of_val(items) as u64;
    let mut end = body_len as u64;
    for (slot, item) in items.iter().enumerate() {
        let (offset, size) = (u64::from(item.offset.get()), u64::from(item.size.get()));
        if offset < headers_end || offset + size != end {
            return Err(BlockFault::ItemPlace { slot });
        }
        end = offset;
    }
    Ok(())
}

fn check_pointers(pointers: &[DiskKeyPointer], format: &BlockFormat) -> Result<(), BlockFault> {
    for (slot, pointer) in pointers.iter().enumerate() {
        let bytenr = pointer.bytenr.get();
        if bytenr == 0 || !bytenr.is_multiple_of(format.sectorsize.into()) {
            return Err(BlockFault::Pointer { slot, bytenr });
        }
    }
    Ok(())
}

/// A checked block of level 1 or above.
#[derive(Clone, Debug)]
pub struct Interior {
    pointer: BlockPointer,
    count: usize,
    data: Bytes,
}

impl Interior {
    /// The blocks below it, from left to right.
    pub fn children(&self) -> impl Iterator<Item = BlockPointer> + '_ {
        let pointers = entries_of::<DiskKeyPointer>(&self.data, self.count);
        let starts = pointers.iter().map(|pointer| Key::from(pointer.key));
        let ends = starts.clone().skip(1).map(Some).chain([self.pointer.end_key]);
        pointers.iter().zip(starts.zip(ends)).map(|(pointer, (first_key, end_key))| BlockPointer {
            tree: self.pointer.tree,
            bytenr: pointer.bytenr.get(),
            generation: pointer.generation.get(),
            // Not 0: a block of level 0 is a leaf.
            level: self.pointer.level - 1,
            first_key: Some(first_key),
            end_key,
        })
    }
}

/// A checked leaf.
#[derive(Clone, Debug)]
pub struct Leaf {
    bytenr: u64,
    owner: u64,
    count: usize,
    data: Bytes,
}

/// An item of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'leaf> {
    /// Its place in the leaf.
    pub slot: u32,
    /// Its key.
    pub key: Key,
    /// Its body.
    pub body: &'leaf [u8],
}

impl Leaf {
    /// Its logical address.
    pub fn bytenr(&self) -> u64 {
        self.bytenr
    }

    /// The tree that it belongs to.
    pub fn owner(&self) -> u64 {
        self.owner
    }

    /// The whole block.
    pub fn into_bytes(self) -> Bytes {
        self.data
    }

    /// Its items, in the order of their keys.
    pub fn items(&self) -> impl Iterator<Item = Item<'_>> {
        let items = entries_of::<DiskItem>(&self.data, self.count);
        items.iter().zip(0..).map(|(item, slot)| {
            let start = HEADER_LEN + item.offset.get() as usize;
            let end = start + item.size.get() as usize;
            // `check_places` has seen that it lies within; an empty body would be refused by
            // every parser, should that ever be wrong.
            let body = self.data.get(start..end).unwrap_or_default();
            Item { slot, key: item.key.into(), body }
        })
    }
}

/// The entries of a block that was checked before.
fn entries_of<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    block: &[u8],
    count: usize,
) -> &[T] {
    let body = block.get(HEADER_LEN..).unwrap_or_default();
    <[T]>::ref_from_prefix_with_elems(body, count).map_or(&[], |(entries, _)| entries)
}
