//! The superblock.

use std::sync::Arc;

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{
    BlockFormat, BlockPointer, ChecksumType, ChunkError, ChunkMap, DeviceItem, LEVELS_MAX,
    Unsupported, device_item::DiskDeviceItem,
};
use crate::btrfs::objectid;

/// Where the primary superblock is on each device.
pub const SUPERBLOCK_OFFSET: u64 = 64 << 10;

/// A superblock's length (kernel: `BTRFS_SUPER_INFO_SIZE`).
pub const SUPERBLOCK_LEN_BYTES: u32 = 4096;

/// The largest node and sector (kernel: `BTRFS_MAX_METADATA_BLOCKSIZE`).
const NODESIZE_MAX: u32 = 64 << 10;

const MAGIC: [u8; 8] = *b"_BHRfS_M";

/// `BTRFS_FEATURE_INCOMPAT_METADATA_UUID`.
const METADATA_UUID: u64 = 1 << 10;

/// `BTRFS_FEATURE_INCOMPAT_SKINNY_METADATA`.
const SKINNY_METADATA: u64 = 1 << 8;

/// `BTRFS_FEATURE_INCOMPAT_SIMPLE_QUOTA`.
const SIMPLE_QUOTA: u64 = 1 << 16;

/// `struct btrfs_super_block`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskSuperblock {
    csum: [u8; 32],
    fsid: [u8; 16],
    bytenr: U64,
    flags: U64,
    magic: [u8; 8],
    generation: U64,
    root: U64,
    chunk_root: U64,
    log_root: U64,
    log_root_transid: U64,
    total_bytes: U64,
    bytes_used: U64,
    root_dir_objectid: U64,
    num_devices: U64,
    sectorsize: U32,
    nodesize: U32,
    leafsize: U32,
    stripesize: U32,
    sys_chunk_array_size: U32,
    chunk_root_generation: U64,
    compat_flags: U64,
    compat_ro_flags: U64,
    incompat_flags: U64,
    csum_type: U16,
    root_level: u8,
    chunk_root_level: u8,
    log_root_level: u8,
    dev_item: DiskDeviceItem,
    label: [u8; 256],
    cache_generation: U64,
    uuid_tree_generation: U64,
    metadata_uuid: [u8; 16],
    nr_global_roots: U64,
    reserved: [U64; 27],
    sys_chunk_array: [u8; 2048],
    super_roots: [u8; 4 * 168],
    padding: [u8; 565],
}

const _: () = assert!(size_of::<DiskSuperblock>() == SUPERBLOCK_LEN_BYTES as usize);

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The file system's id, as users see it.
    pub fsid: Uuid,
    /// The id in its tree blocks; other than `fsid` only with the feature `METADATA_UUID`.
    pub metadata_uuid: Uuid,
    /// The transaction that wrote it. An fsync writes it again with the same generation.
    pub generation: u64,
    /// Logical address of the root of the tree of roots.
    pub root: u64,
    /// That block's level.
    pub root_level: u8,
    /// Logical address of the root of the chunk tree.
    pub chunk_root: u64,
    /// That block's level.
    pub chunk_root_level: u8,
    /// The transaction that wrote that block.
    pub chunk_root_generation: u64,
    /// Logical address of the log tree's root; 0 when there is nothing to replay.
    pub log_root: u64,
    /// Length of a sector.
    pub sectorsize: u32,
    /// Length of a tree block.
    pub nodesize: u32,
    /// The algorithm of all checksums of metadata.
    pub csum_type: ChecksumType,
    /// Incompatible features (`BTRFS_FEATURE_INCOMPAT_*`).
    pub incompat_flags: u64,
    /// `BTRFS_SUPER_FLAG_*` and some of `BTRFS_HEADER_FLAG_*`.
    pub super_flags: u64,
    /// The device that this superblock is on.
    pub device: DeviceItem,
    /// How many devices the file system has.
    pub num_devices: u64,
    /// Where the chunk tree itself is.
    pub sys_chunks: ChunkMap,
    /// The label as it is on disk, up to its first NUL. Not trusted to be text.
    pub label: Vec<u8>,
}

/// `BTRFS_SUPER_FLAG_SEEDING`.
const SEEDING: u64 = 1 << 32;

impl Superblock {
    /// Whether others are based on the file system, which is never written itself.
    pub const fn is_seed(&self) -> bool {
        self.super_flags & SEEDING != 0
    }

    /// Reads a superblock from the bytes at [`SUPERBLOCK_OFFSET`] of a device.
    ///
    /// Features are not judged here: see [`check`](super::check).
    ///
    /// # Errors
    ///
    /// Says why these bytes are no superblock that can be read.
    pub fn parse(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let (disk, _) = DiskSuperblock::ref_from_prefix(bytes)
            .map_err(|_| SuperblockError::Short { len_bytes: bytes.len() })?;
        if disk.magic != MAGIC {
            return Err(SuperblockError::NotBtrfs);
        }
        let csum_type = ChecksumType::from_disk(disk.csum_type.get())?;
        if !csum_type.matches(&bytes[..size_of::<DiskSuperblock>()]) {
            return Err(SuperblockError::Checksum);
        }
        disk.check_geometry()?;
        let sectorsize = disk.sectorsize.get();
        let label_len = disk.label.iter().position(|&b| b == 0).unwrap_or(disk.label.len());
        let incompat_flags = disk.incompat_flags.get();
        let fsid = Uuid::from_bytes(disk.fsid);
        Ok(Self {
            fsid,
            metadata_uuid: match incompat_flags & METADATA_UUID {
                0 => fsid,
                _ => Uuid::from_bytes(disk.metadata_uuid),
            },
            generation: disk.generation.get(),
            root: disk.root.get(),
            root_level: disk.root_level,
            chunk_root: disk.chunk_root.get(),
            chunk_root_level: disk.chunk_root_level,
            chunk_root_generation: disk.chunk_root_generation.get(),
            log_root: disk.log_root.get(),
            sectorsize,
            nodesize: disk.nodesize.get(),
            csum_type,
            incompat_flags,
            super_flags: disk.flags.get(),
            device: (&disk.dev_item).into(),
            num_devices: disk.num_devices.get(),
            sys_chunks: ChunkMap::from_sys_array(disk.sys_chunk_array()?, sectorsize)?,
            label: disk.label[..label_len].to_vec(),
        })
    }

    /// What every tree block that this file system itself wrote must look like.
    pub fn block_format(&self) -> BlockFormat {
        BlockFormat {
            nodesize: self.nodesize,
            sectorsize: self.sectorsize,
            fsids: Arc::from([self.metadata_uuid]),
            csum_type: self.csum_type,
        }
    }

    /// Where the tree of roots begins.
    pub fn root_pointer(&self) -> BlockPointer {
        BlockPointer::to_root(objectid::ROOT_TREE, self.root, self.generation, self.root_level)
    }

    /// Where the chunk tree begins.
    pub fn chunk_root_pointer(&self) -> BlockPointer {
        BlockPointer::to_root(
            objectid::CHUNK_TREE,
            self.chunk_root,
            self.chunk_root_generation,
            self.chunk_root_level,
        )
    }

    /// Whether tree blocks may have items of the short form.
    pub fn has_skinny_metadata(&self) -> bool {
        self.incompat_flags & SKINNY_METADATA != 0
    }

    /// Whether simple quotas are, or once were, in use: only then are there owner refs.
    pub fn has_simple_quota(&self) -> bool {
        self.incompat_flags & SIMPLE_QUOTA != 0
    }
}

impl DiskSuperblock {
    /// What the kernel's `btrfs_validate_super` refuses, as far as reading depends on it.
    fn check_geometry(&self) -> Result<(), SuperblockError> {
        let sectorsize = self.sectorsize.get();
        let nodesize = self.nodesize.get();
        let nonsense = |field, value| Err(SuperblockError::Nonsense { field, value });
        if self.bytenr.get() != SUPERBLOCK_OFFSET {
            return nonsense("bytenr", self.bytenr.get());
        }
        if !sectorsize.is_power_of_two() || !(2048..=NODESIZE_MAX).contains(&sectorsize) {
            return nonsense("sectorsize", sectorsize.into());
        }
        if !nodesize.is_power_of_two() || !(sectorsize..=NODESIZE_MAX).contains(&nodesize) {
            return nonsense("nodesize", nodesize.into());
        }
        for (field, bytenr) in [("root", self.root), ("chunk_root", self.chunk_root)] {
            if bytenr.get() == 0 || !bytenr.get().is_multiple_of(sectorsize.into()) {
                return nonsense(field, bytenr.get());
            }
        }
        for (field, level) in
            [("root_level", self.root_level), ("chunk_root_level", self.chunk_root_level)]
        {
            if level >= LEVELS_MAX {
                return nonsense(field, level.into());
            }
        }
        if self.generation.get() < self.chunk_root_generation.get() {
            return nonsense("chunk_root_generation", self.chunk_root_generation.get());
        }
        Ok(())
    }

    fn sys_chunk_array(&self) -> Result<&[u8], SuperblockError> {
        let len = self.sys_chunk_array_size.get();
        self.sys_chunk_array
            .get(..len as usize)
            .ok_or(SuperblockError::Nonsense { field: "sys_chunk_array_size", value: len.into() })
    }
}

/// Why bytes are no superblock that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Too few bytes.
    #[error("a superblock has {SUPERBLOCK_LEN_BYTES} bytes, and there are only {len_bytes}")]
    Short {
        /// How many there are.
        len_bytes: usize,
    },
    /// The magic number is missing.
    #[error("not btrfs: no magic number in the superblock at offset {SUPERBLOCK_OFFSET}")]
    NotBtrfs,
    /// Torn while being written, or corrupt.
    #[error("the superblock at offset {SUPERBLOCK_OFFSET} does not match its checksum")]
    Checksum,
    /// A field that no kernel would accept.
    #[error("the superblock's {field} makes no sense: {value}")]
    Nonsense {
        /// The field's name.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// The array of system chunks cannot be read.
    #[error("the superblock's array of system chunks: {0}")]
    SystemChunk(#[from] ChunkError),
    /// It cannot even be checked.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}
