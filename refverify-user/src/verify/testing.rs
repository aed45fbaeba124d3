//! Values that the unit tests of this part share.

use std::sync::Arc;

use crate::{
    btrfs::{Action, ExtentKind, RefKey},
    feed::{Change, Comm, Event, FsSlot},
};

/// A change of a data reference of inode 257 in root 5, at file offset `offset`.
pub(crate) fn data_event(action: Action, bytenr: u64, offset: u64, transid: u64) -> Event {
    event(
        transid,
        Change::Ref {
            action,
            kind: ExtentKind::Data,
            bytenr,
            len_bytes: 4096,
            key: RefKey::data(5, 0, 257, offset),
            owning_root: 0,
        },
    )
}

/// An event by thread 77.
pub(crate) fn event(transid: u64, change: Change) -> Event {
    Event {
        fs: FsSlot(0),
        transid,
        time_ns: transid * 1000,
        cpu: 0,
        pid: 77,
        tid: 77,
        comm: Comm::default(),
        stack: Arc::from([]),
        change,
    }
}
