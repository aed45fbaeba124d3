//! btrfs: the vocabulary that every other part speaks, and the on-disk format.
//!
//! Nothing here knows of events, files or sockets: bytes go in, values come out.
//!
//! * `vocabulary` names what an extent and a reference are;
//! * [`mod@format`] turns the bytes of the disk into values;
//! * [`checks`] says what is wrong with an extent on disk;
//! * [`Tally`] sums up what an extent tree holds;
//! * [`reader`] reads the extent tree of a file system while it is being written to;
//! * [`chunk_tree_uuid`] reads what tells a mounted file system from others.

pub mod checks;
mod chunk_tree;
pub mod format;
pub mod reader;
mod tally;
mod vocabulary;

pub use checks::{DiskFault, DiskFinding, DiskFindingKind};
pub use chunk_tree::{ChunkTreeError, chunk_tree_uuid};
pub use tally::{Extents, Refs, Tally};
pub use vocabulary::{Action, DiskExtent, ExtentKind, RefKey, SignedRoot, objectid};
