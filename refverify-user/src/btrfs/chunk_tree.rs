//! The chunk tree's UUID, by which a mounted file system can be told from others: `open_ctree`
//! copies it from the root block of the chunk tree into `btrfs_fs_info`.

use bytes::Bytes;
use uuid::Uuid;

use super::format::{
    BlockFault, BlockPointer, Piece, ReadFailure, SUPERBLOCK_LEN_BYTES, SUPERBLOCK_OFFSET,
    Superblock, SuperblockError, TreeBlock,
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
    /// No copy of the chunk tree's root is good.
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

/// Reads the chunk tree's UUID of a file system; `read` gives the bytes at an offset of the device
/// with a btrfs device id, and the user's for id 0.
///
/// The file system may be mounted: a root that is overwritten between the reads is an error, and
/// trying again helps.
///
/// # Errors
///
/// What kept it from being read.
pub fn chunk_tree_uuid(
    read: impl Fn(&Piece) -> Result<Bytes, ReadFailure>,
) -> Result<Uuid, ChunkTreeError> {
    let place = Piece { devid: 0, offset: SUPERBLOCK_OFFSET, len_bytes: SUPERBLOCK_LEN_BYTES };
    let block = read(&place).map_err(ChunkTreeError::SuperblockUnreadable)?;
    let superblock = Superblock::parse(&block)?;
    let (pointer, format) = (superblock.chunk_root_pointer(), superblock.block_format());
    let placement = superblock.sys_chunks.place(pointer.bytenr, format.nodesize);
    let mut fault = BlockFault::NotMapped;
    for copy in placement.copies {
        match read_copy(&copy, &read).and_then(|data| TreeBlock::check(data, &pointer, &format)) {
            Ok(root) if root.chunk_tree_uuid().is_nil() => return Err(ChunkTreeError::Zero),
            Ok(root) => return Ok(root.chunk_tree_uuid()),
            Err(found) => fault = found,
        }
    }
    Err(ChunkTreeError::Root { pointer: Box::new(pointer), fault })
}

fn read_copy(
    copy: &[Piece],
    read: impl Fn(&Piece) -> Result<Bytes, ReadFailure>,
) -> Result<Bytes, BlockFault> {
    let parts: Vec<Bytes> = copy.iter().map(read).collect::<Result<_, _>>()?;
    Ok(parts.concat().into())
}
