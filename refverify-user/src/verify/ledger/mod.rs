//! The ledger: which extents should be in the extent tree, which references each should have,
//! and what was done to it.
//!
//! There are three, behind one trait. [`PlainLedger`] is maps of maps, meant to be obviously
//! right; tests hold it beside the others. [`PackedLedger`] has a few bytes for each extent, changed
//! in place, and a journal that takes back what is not durable yet. [`ShardedLedger`] is what runs:
//! packed ledgers, each for its stripes of the bytenrs.
//!
//! All know two states of an extent. Its *base* is what the last durable superblock contains.
//! The changes made by later transactions are *pending*. So a state as of any later generation can
//! be had, and changes can be undone.
//!
//! `docs/ledger.md` tells the form of the packed ledger and what it costs.

#![expect(
    clippy::cast_possible_truncation,
    reason = "places in pages, arenas and journals are kept in u32 and less so that they stay \
              small: four thousand million pages or pending changes are beyond any memory"
)]

mod arena;
mod blocks;
mod codec;
mod codes;
mod context;
mod extent;
mod group;
mod hash;
mod index;
mod journal;
mod origins;
mod packed;
mod page;
mod plain;
mod references;
mod run;
mod runs;
mod shards;
mod sort;
mod varint;

use std::{collections::HashSet, ops::Range};

pub use extent::{Extent, Refs};
pub use packed::PackedLedger;
pub use plain::PlainLedger;
pub use shards::ShardedLedger;

use super::{ActionRecord, ExtentDump, FindingKind};
use crate::{
    btrfs::{Action, DiskExtent, ExtentKind, RefKey},
    feed::{Change, Event},
};

/// One change of a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RefChange {
    action: Action,
    kind: ExtentKind,
    bytenr: u64,
    len_bytes: u64,
    key: RefKey,
}

impl RefChange {
    const fn of(event: &Event) -> Option<Self> {
        match event.change {
            Change::Ref { action, kind, bytenr, len_bytes, key, .. } => {
                Some(Self { action, kind, bytenr, len_bytes, key })
            }
            Change::RemoveGroup { .. } => None,
        }
    }
}

/// A rule was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub kind: FindingKind,
    /// The extent before the change; `None` where nothing is known at this bytenr.
    pub extent: Option<ExtentDump>,
}

/// What came of a batch.
#[derive(Debug, Default)]
pub struct Judged {
    /// The events that are out of order, by their places.
    pub wrong: Vec<(usize, Box<Violation>)>,
    /// The places of events that were not judged: something was wrong with their extent
    /// before.
    pub left: Vec<usize>,
    distrusted: HashSet<u64>,
}

impl Judged {
    /// Leaves an event whose extent is distrusted.
    fn leaves(&mut self, place: usize, event: &Event) -> bool {
        if self.distrusted.is_empty() {
            return false;
        }
        let is_left = bytenr_of(event).is_some_and(|bytenr| self.distrusted.contains(&bytenr));
        if is_left {
            self.left.push(place);
        }
        is_left
    }

    /// What came of the shares of one batch.
    fn join(shares: impl IntoIterator<Item = Self>) -> Self {
        let mut joined = Self::default();
        for mut share in shares {
            joined.wrong.append(&mut share.wrong);
            joined.left.append(&mut share.left);
        }
        joined.wrong.sort_by_key(|&(place, _)| place);
        joined.left.sort_unstable();
        joined
    }

    fn take(&mut self, place: usize, event: &Event, verdict: Result<(), Box<Violation>>) {
        if let Err(violation) = verdict {
            self.distrusted.extend(bytenr_of(event));
            self.wrong.push((place, violation));
        }
    }
}

fn bytenr_of(event: &Event) -> Option<u64> {
    match event.change {
        Change::Ref { bytenr, .. } => Some(bytenr),
        Change::RemoveGroup { .. } => None,
    }
}

/// How much is kept of what is not needed to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The ceiling for all that the ledger holds. Where it is reached, histories are given up,
    /// oldest first, then tombstones; never an extent in use.
    pub memory_bytes: u64,
    /// The most that histories and tombstones take together.
    pub history_bytes: u64,
    /// How many actions of one extent are shown and kept: the first, and the newest.
    pub history_per_extent: usize,
}

impl Limits {
    /// Bounds for a ceiling: histories and tombstones may take an eighth of it.
    pub const fn new(memory_bytes: u64, history_per_extent: usize) -> Self {
        Self { memory_bytes, history_bytes: memory_bytes / 8, history_per_extent }
    }

    /// The same for each of so many.
    pub(super) fn shared_by(self, count: usize) -> Self {
        let share = |bytes: u64| bytes / count.max(1) as u64;
        Self {
            memory_bytes: share(self.memory_bytes),
            history_bytes: share(self.history_bytes),
            ..self
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(2 << 30, 32)
    }
}

/// What a ledger holds, and how far back what it can give up still reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Bytes of everything, as allocated.
    pub total_bytes: u64,
    /// Bytes of histories and tombstones among them.
    pub history_bytes: u64,
    /// The actions of transactions after this one are all kept, but for what the bound on
    /// each extent took.
    pub history_after: u64,
    /// An extent that was freed by a transaction after this one is known to have been freed.
    pub tombstones_after: u64,
    /// The extents in use alone need more than the ceiling.
    pub over_ceiling: bool,
}

/// What judges changes and answers for the extents of one file system.
pub trait Ledger {
    /// Judges the change of a reference and, when it is in order, makes it. What is out of order
    /// changes nothing: the caller distrusts the extent and reads it afresh. An event that
    /// changes no reference is nothing to judge.
    ///
    /// # Errors
    ///
    /// The rule that is broken, with the extent as it is.
    fn apply(&mut self, event: &Event) -> Result<(), Box<Violation>>;

    /// Judges changes one after the other, as [`Ledger::apply`] does, but for those that come
    /// after something wrong with the same extent: they are left to the caller.
    fn apply_all(&mut self, events: &[Event]) -> Judged {
        let mut judged = Judged::default();
        for (place, event) in events.iter().enumerate() {
            if !judged.leaves(place, event) {
                judged.take(place, event, self.apply(event));
            }
        }
        judged
    }

    /// The disk at `generation` has exactly `extents`, sorted by bytenr, in the range, and never goes back. What is
    /// known of their histories stays, and so do the changes of later transactions. An extent
    /// that is gone is a tombstone where anything was done to it, and else unknown.
    fn read(&mut self, range: Range<u64>, generation: u64, extents: &[DiskExtent]);

    /// Removes everything that begins in the range, histories too: transaction `transid`
    /// removes a block group.
    fn remove(&mut self, range: Range<u64>, transid: u64);

    /// Superblock `generation` is durable, and every change of the transactions up to it has
    /// been applied: they can no longer be undone.
    fn commit(&mut self, generation: u64);

    /// Undoes every change of the transactions above `transid`, which is not below the durable one.
    fn undo_above(&mut self, transid: u64);

    /// The extent as of a generation at or above the durable one, when it is in use there.
    fn as_of(&self, bytenr: u64, generation: u64) -> Option<Extent>;

    /// The extents that transactions above the durable one and up to `generation` changed,
    /// sorted.
    fn touched(&self, generation: u64) -> Vec<u64>;

    /// Where in a range an extent is in use, or was before the changes of transactions above the
    /// durable one; sorted, and maybe more than once.
    fn bytenrs_in(&self, range: Range<u64>) -> Vec<u64>;

    /// The extents in use that lie across an edge of the range, as they are now.
    fn crossing(&self, range: &Range<u64>) -> Vec<ExtentDump>;

    /// How many extents are in use.
    fn live(&self) -> u64;

    /// Shows each extent in use, in order of bytenr.
    fn visit(&self, each: &mut dyn FnMut(u64, &Extent));

    /// One extent with its history, or its tombstone, for a report.
    fn dump(&self, bytenr: u64) -> Option<ExtentDump>;

    /// What is held, and what has been given up.
    fn kept(&self) -> Kept;
}

/// For fuzzing: reads the bytes as whatever the ledger writes. Nothing may panic, and an extent
/// that is read must come back when it is written again.
///
/// # Panics
///
/// Where that is not so.
pub fn read_anything(bytes: &[u8]) {
    codec::read_anything(bytes);
    group::read_anything(bytes);
}

impl ActionRecord {
    fn of(change: &RefChange, event: &Event) -> Self {
        Self {
            action: change.action,
            key: change.key,
            transid: event.transid,
            time_ns: event.time_ns,
            pid: event.pid,
            tid: event.tid,
            comm: event.comm,
            stack: event.stack.clone(),
        }
    }
}

/// The extents across the edges of a range, where `before` gives the last one in use that
/// begins before a bytenr.
fn crossing(range: &Range<u64>, before: impl Fn(u64) -> Option<ExtentDump>) -> Vec<ExtentDump> {
    let crosses = |edge: u64| {
        before(edge).filter(|extent| extent.bytenr.saturating_add(extent.len_bytes) > edge)
    };
    [range.start, range.end].into_iter().filter_map(crosses).collect()
}
