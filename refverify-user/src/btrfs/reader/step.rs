//! What the reader asks for and what it tells.

use std::{fmt, ops::Range, sync::Arc};

use uuid::Uuid;

use crate::btrfs::{
    DiskExtent,
    checks::DiskFinding,
    format::{
        BlockFault, BlockPointer, ChunkError, ReadFailure, RootItemError, Superblock,
        SuperblockError, Unsupported,
    },
};

/// A part of a device that the reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRead {
    /// Chosen by the reader; the answer carries it.
    pub id: u64,
    /// The btrfs device id; 0 is the device that the user named.
    pub devid: u64,
    /// Byte offset on the device.
    pub offset: u64,
    /// How much: a superblock's length, or that of a tree block or of the part of it that is
    /// on the device.
    pub len_bytes: u32,
}

/// A device that did not give what another one did, or what parity says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorFault {
    /// The btrfs device id.
    pub devid: u64,
    /// The first block that it failed to give.
    pub pointer: BlockPointer,
    /// What was wrong with its copy.
    pub fault: BlockFault,
}

impl fmt::Display for MirrorFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { devid, pointer, fault } = self;
        write!(f, "device {devid} has no good copy of {pointer}: {fault}; another one was used")
    }
}

/// What the reader has to say, in order.
///
/// The [`ReaderStep::Extent`]s and their findings are in the order of their bytenr, and each
/// bytenr is told once. A [`ReaderStep::Generation`] begins where the last
/// [`ReaderStep::Complete`] ended.
///
/// What is rare and large is boxed: there is a step for each extent, and it is moved a few times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReaderStep {
    /// Everything from `from_bytenr` on will be read at this generation or a newer one.
    Generation {
        /// The superblock's generation.
        generation: u64,
        /// Where reading goes on: nothing at or above has been told yet.
        from_bytenr: u64,
        /// All that the superblock says.
        superblock: Arc<Superblock>,
    },
    /// An extent with all its references.
    Extent(DiskExtent),
    /// Something is wrong on disk. It follows its extent, where that could be read at all.
    Finding(DiskFinding),
    /// Everything below `upto_bytenr` (down to where the range or the generation began) has
    /// been told, as it is at this generation.
    Complete {
        /// The first bytenr of which more may come.
        upto_bytenr: u64,
        /// The generation.
        generation: u64,
    },
    /// Between these bytenrs nothing has changed since [`Known::since`](super::Known::since), down
    /// from this generation. Everything below has been told.
    Unchanged {
        /// Where.
        range: Range<u64>,
        /// The generation.
        generation: u64,
    },
    /// A device failed to give a block that could be had all the same. A warning, told once for
    /// each device; it means nothing for what was read.
    MirrorFailed(Box<MirrorFault>),
    /// The superblock is older than wanted: wait for a commit, then [`ExtentReader::retry`](super::ExtentReader::retry).
    TooOld {
        /// The superblock's generation.
        generation: u64,
    },
    /// Reading has ended before its time. Nothing follows.
    Failed(Box<ReaderError>),
    /// The whole range has been read. Nothing follows.
    Done {
        /// The generation at which its last part was read.
        generation: u64,
    },
}

// One more word than its most frequent variant.
const _: () = assert!(size_of::<ReaderStep>() <= size_of::<DiskExtent>() + 8);

/// Why a file system's extent tree cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReaderError {
    /// The device gave no superblock.
    #[error("the superblock cannot be read: {0}")]
    SuperblockUnreadable(ReadFailure),
    /// What it gave is none, or none that makes sense.
    #[error(transparent)]
    Superblock(SuperblockError),
    /// The file system has a feature that this program cannot read.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The device holds another file system than before.
    #[error("the device held the file system {before} and now holds {now}")]
    OtherFileSystem {
        /// The fsid at first.
        before: Uuid,
        /// The fsid now.
        now: Uuid,
    },
    /// The superblock is older than the one read before: writes were lost or undone.
    #[error("the superblock went back from generation {before} to {now}")]
    WentBack {
        /// The generation at first.
        before: u64,
        /// The generation now.
        now: u64,
    },
    /// The chunk tree holds a device that makes no sense.
    #[error("the chunk tree at generation {generation}: the item of device {devid} is cut off")]
    Device {
        /// The superblock's generation.
        generation: u64,
        /// The device.
        devid: u64,
    },
    /// A tree block stays bad although the superblock still leads to it.
    #[error("{pointer} is bad on every mirror: {}", list(.faults))]
    BadBlock {
        /// What should be there.
        pointer: BlockPointer,
        /// What is wrong, mirror by mirror.
        faults: Vec<BlockFault>,
    },
    /// The chunk tree holds a chunk that makes no sense.
    #[error("the chunk tree at generation {generation}: {reason}")]
    Chunk {
        /// The superblock's generation.
        generation: u64,
        /// What is wrong.
        reason: ChunkError,
    },
    /// The root tree does not say where the extent tree is.
    #[error("the root tree at generation {generation} has no item for the extent tree")]
    NoExtentTree {
        /// The superblock's generation.
        generation: u64,
    },
    /// What it says makes no sense.
    #[error("the root tree at generation {generation}, item of the extent tree: {reason}")]
    RootItem {
        /// The superblock's generation.
        generation: u64,
        /// What is wrong.
        reason: RootItemError,
    },
}

fn list(faults: &[BlockFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
