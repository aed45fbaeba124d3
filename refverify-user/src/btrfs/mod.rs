//! btrfs: the vocabulary that every other part speaks, and the on-disk format.
//!
//! Nothing here knows of events, files or sockets: bytes go in, values come out.

mod vocabulary;

pub use vocabulary::{
    Action, DiskExtent, DiskFinding, DiskFindingKind, ExtentKind, RefKey, objectid,
};
