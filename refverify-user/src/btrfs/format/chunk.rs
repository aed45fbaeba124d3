//! Chunks: where on which device a logical address is.

use std::collections::BTreeMap;

use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{
    Unsupported,
    key::{DiskKey, Key, item_type},
    placement::{Placement, STRIPE_LEN_BYTES, Stripe},
    profile::Profile,
};
use crate::btrfs::objectid;

/// `struct btrfs_chunk` without its stripes.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskChunk {
    length: U64,
    owner: U64,
    stripe_len: U64,
    /// `type` in the kernel's words.
    flags: U64,
    io_align: U32,
    io_width: U32,
    sector_size: U32,
    num_stripes: U16,
    sub_stripes: U16,
}

/// `struct btrfs_stripe`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskStripe {
    devid: U64,
    offset: U64,
    dev_uuid: [u8; 16],
}

impl From<&DiskStripe> for Stripe {
    fn from(disk: &DiskStripe) -> Self {
        Self { devid: disk.devid.get(), offset: disk.offset.get() }
    }
}

/// `BTRFS_BLOCK_GROUP_SYSTEM | BTRFS_BLOCK_GROUP_METADATA`: what holds tree blocks.
const HOLDS_TREE_BLOCKS: u64 = 1 << 1 | 1 << 2;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chunk {
    len_bytes: u64,
    /// `BTRFS_BLOCK_GROUP_*`.
    flags: u64,
    /// Or the name of one that cannot be mapped.
    profile: Result<Profile, &'static str>,
    stripes: Vec<Stripe>,
}

/// Why a chunk item cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The item ends within its fields or stripes.
    #[error("the chunk item at {logical} is cut off")]
    CutOff {
        /// Where the chunk begins.
        logical: u64,
    },
    /// Not a chunk's key in the superblock's array.
    #[error("unexpected key {key}")]
    UnexpectedKey {
        /// The key.
        key: Key,
    },
    /// A length, address or number of stripes that no kernel would write.
    #[error(
        "the chunk at {logical} of {len_bytes} bytes with {num_stripes} stripes makes no sense"
    )]
    Nonsense {
        /// Where the chunk begins.
        logical: u64,
        /// Its length.
        len_bytes: u64,
        /// How many stripes it has.
        num_stripes: u16,
    },
    /// It shares addresses with another chunk.
    #[error("the chunk at {logical} overlaps the one at {other}")]
    Overlap {
        /// Where the chunk begins.
        logical: u64,
        /// Where the other begins.
        other: u64,
    },
}

/// The chunks of a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkMap {
    chunks: BTreeMap<u64, Chunk>,
}

impl ChunkMap {
    /// Reads the superblock's array: keys and chunk items, packed (kernel:
    /// `btrfs_read_sys_array`).
    pub(super) fn from_sys_array(mut bytes: &[u8], sectorsize: u32) -> Result<Self, ChunkError> {
        let mut map = Self::default();
        while !bytes.is_empty() {
            let Ok((key, rest)) = DiskKey::ref_from_prefix(bytes) else {
                return Err(ChunkError::CutOff { logical: 0 });
            };
            let key = Key::from(*key);
            let item_len = chunk_item_len(key.offset, rest)?;
            map.insert(key, &rest[..item_len], sectorsize)?;
            bytes = &rest[item_len..];
        }
        Ok(map)
    }

    /// Adds a `CHUNK_ITEM`.
    ///
    /// # Errors
    ///
    /// Refuses what the kernel's `btrfs_check_chunk_valid` (`tree-checker.c`, 6.12) refuses, as
    /// far as mapping depends on it.
    pub fn insert(&mut self, key: Key, item: &[u8], sectorsize: u32) -> Result<(), ChunkError> {
        let logical = key.offset;
        if key.item_type != item_type::CHUNK_ITEM || key.objectid != objectid::FIRST_CHUNK_TREE {
            return Err(ChunkError::UnexpectedKey { key });
        }
        let item_len = chunk_item_len(logical, item)?;
        let chunk = parse_chunk(logical, &item[..item_len], sectorsize)?;
        let end = logical + chunk.len_bytes;
        let before = self.chunks.range(..end).next_back();
        if let Some((&other, _)) =
            before.filter(|(start, other)| *start + other.len_bytes > logical)
        {
            return Err(ChunkError::Overlap { logical, other });
        }
        self.chunks.insert(logical, chunk);
        Ok(())
    }

    /// Whether every chunk that holds tree blocks can be mapped.
    ///
    /// # Errors
    ///
    /// The first profile that is not supported.
    pub fn check_profiles(&self) -> Result<(), Unsupported> {
        for (&logical, chunk) in &self.chunks {
            if let Err(profile) = chunk.profile
                && chunk.flags & HOLDS_TREE_BLOCKS != 0
            {
                return Err(Unsupported::Profile { logical, profile });
            }
        }
        Ok(())
    }

    /// Where a tree block is; nowhere if no chunk that can be mapped holds the whole of it.
    pub fn place(&self, logical: u64, len_bytes: u32) -> Placement {
        let Some((start, chunk)) = self.chunks.range(..=logical).next_back() else {
            return Placement::default();
        };
        let within = logical - start;
        let fits = within.checked_add(len_bytes.into()).is_some_and(|end| end <= chunk.len_bytes);
        match chunk.profile {
            Ok(profile) if fits => Placement::new(profile, &chunk.stripes, within, len_bytes),
            _ => Placement::default(),
        }
    }

    /// How many bytes of logical addresses within `range` belong to a chunk.
    pub fn len_bytes_within(&self, range: &std::ops::Range<u64>) -> u64 {
        let within = |(start, chunk): (&u64, &Chunk)| {
            let end = (start + chunk.len_bytes).min(range.end);
            end.saturating_sub(*start.max(&range.start))
        };
        self.chunks.iter().map(within).sum()
    }
}

/// The length of the chunk item that `bytes` begins with.
fn chunk_item_len(logical: u64, bytes: &[u8]) -> Result<usize, ChunkError> {
    let (chunk, _) =
        DiskChunk::ref_from_prefix(bytes).map_err(|_| ChunkError::CutOff { logical })?;
    let stripes_len = usize::from(chunk.num_stripes.get()) * size_of::<DiskStripe>();
    let len = size_of::<DiskChunk>() + stripes_len;
    if bytes.len() < len { Err(ChunkError::CutOff { logical }) } else { Ok(len) }
}

fn parse_chunk(logical: u64, item: &[u8], sectorsize: u32) -> Result<Chunk, ChunkError> {
    let cut_off = || ChunkError::CutOff { logical };
    let (disk, stripes) = DiskChunk::ref_from_prefix(item).map_err(|_| cut_off())?;
    let stripes = <[DiskStripe]>::ref_from_bytes(stripes).map_err(|_| cut_off())?;
    let len_bytes = disk.length.get();
    let aligned = |value: u64| value.is_multiple_of(sectorsize.into());
    let ends = |start: u64| start.checked_add(len_bytes).is_some();
    let flags = disk.flags.get();
    let profile = Profile::from_flags(flags);
    let (num_stripes, sub_stripes) = (disk.num_stripes.get(), disk.sub_stripes.get());
    let sound = len_bytes != 0
        && aligned(len_bytes)
        && aligned(logical)
        && ends(logical)
        && disk.stripe_len.get() == STRIPE_LEN_BYTES
        && !stripes.is_empty()
        && profile.map_or(true, |profile| profile.can_have(num_stripes, sub_stripes))
        && stripes.iter().all(|stripe| ends(stripe.offset.get()));
    if !sound {
        return Err(ChunkError::Nonsense { logical, len_bytes, num_stripes });
    }
    Ok(Chunk { len_bytes, flags, profile, stripes: stripes.iter().map(Stripe::from).collect() })
}
