//! The chunk tree's UUID, by which a mounted file system can be told from others: `open_ctree`
//! copies it from the root block of the chunk tree into `btrfs_fs_info`.

use bytes::Bytes;
use uuid::Uuid;

use super::format::{
    BlockFault, BlockPointer, ReadFailure, SUPERBLOCK_LEN_BYTES, SUPERBLOCK_OFFSET, Superblock,
    SuperblockError, TreeBlock,
};

/// Why the UUID cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkTreeError {
    /// The device gave no superblock.
    #[error("the superblock cannot be read: {0}")]
    SuperblockUnreadable(ReadFailure),
    /// What it gave is none that makes sense.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// No copy of the chunk tree's root on this device is good.
    #[error("{pointer}: {fault}")]
    Root {
        /// What should be there.
        pointer: Box<BlockPointer>,
        /// What is wrong with the last copy.
        fault: BlockFault,
    },
    /// mkfs never writes zeros, and the kernel has them while it does not know the UUID.
    #[error("the chunk tree's UUID is zero")]
    Zero,
}

/// Reads the chunk tree's UUID of the file system on a device; `read` gives the bytes at an
/// offset of that device.
///
/// The file system may be mounted: a root that is overwritten between the reads is an error, and
/// trying again helps.
///
/// # Errors
///
/// What kept it from being read.
pub fn chunk_tree_uuid(
    read: impl Fn(u64, u32) -> Result<Bytes, ReadFailure>,
) -> Result<Uuid, ChunkTreeError> {
    let block = read(SUPERBLOCK_OFFSET, SUPERBLOCK_LEN_BYTES)
        .map_err(ChunkTreeError::SuperblockUnreadable)?;
    let superblock = Superblock::parse(&block)?;
    let (pointer, format) = (superblock.chunk_root_pointer(), superblock.block_format());
    let copies = superblock.sys_chunks.copies(pointer.bytenr, format.nodesize);
    let mut fault = BlockFault::NotMapped;
    for copy in copies.into_iter().filter(|copy| copy.devid == superblock.devid) {
        let data = read(copy.offset, format.nodesize).map_err(BlockFault::from);
        match data.and_then(|data| TreeBlock::check(data, &pointer, &format)) {
            Ok(root) if root.chunk_tree_uuid().is_nil() => return Err(ChunkTreeError::Zero),
            Ok(root) => return Ok(root.chunk_tree_uuid()),
            Err(found) => fault = found,
        }
    }
    Err(ChunkTreeError::Root { pointer: Box::new(pointer), fault })
}
