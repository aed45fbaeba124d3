//! The ledger: which extents should be in the extent tree, which references each should have,
//! and what was done to it.
//!
//! There are two, behind one trait. [`PlainLedger`] is maps of maps, meant to be obviously
//! right; tests hold it beside the other. [`PackedLedger`] is what runs: a few bytes for each
//! extent at rest, and full form only for what was touched since the last commit.
//!
//! Both hold two states of an extent. Its *base* is what the last durable superblock contains.
//! The changes made by later transactions are *pending*: its state now is the base with them
//! applied. So a state as of any later generation can be had, and changes can be undone, by
//! applying only some of them; nothing is ever computed backwards.
//!
//! `docs/ledger.md` tells the form of the packed ledger and what it costs.

mod arena;
mod blocks;
mod codec;
mod extent;
mod hash;
mod index;
mod journal;
mod origins;
mod packed;
mod page;
mod plain;
mod runs;
mod sort;
mod stops;
mod varint;

use std::ops::Range;

pub use extent::{Extent, Refs, View};
pub use packed::PackedLedger;
pub use plain::PlainLedger;

use super::{ActionRecord, ExtentDump, FindingKind};
use crate::{
    btrfs::{Action, DiskExtent, ExtentKind, RefKey},
    feed::Event,
};

/// One change of a reference, as the ledger takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefChange {
    /// Add or drop.
    pub action: Action,
    /// Data or tree block.
    pub kind: ExtentKind,
    /// The extent.
    pub bytenr: u64,
    /// Its length.
    pub len_bytes: u64,
    /// The reference.
    pub key: RefKey,
}

/// A rule was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub kind: FindingKind,
    /// The extent before the change; `None` where nothing is known at this bytenr.
    pub extent: Option<ExtentDump>,
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

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 4 << 30, history_bytes: 256 << 20, history_per_extent: 32 }
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
    /// Judges a change and, when it is in order, makes it. What is out of order changes
    /// nothing: the caller distrusts the extent and reads it afresh.
    ///
    /// # Errors
    ///
    /// The rule that is broken, with the extent as it is.
    fn apply(&mut self, change: &RefChange, event: &Event) -> Result<(), Box<Violation>>;

    /// Judges changes one after the other, as [`Ledger::apply`] does. What is wrong is added
    /// to `found`, with its place in the batch.
    fn apply_all(
        &mut self,
        batch: &[(RefChange, &Event)],
        found: &mut Vec<(usize, Box<Violation>)>,
    ) {
        for (place, (change, event)) in batch.iter().enumerate() {
            if let Err(violation) = self.apply(change, event) {
                found.push((place, violation));
            }
        }
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

    /// Undoes one change: the one that thread `tid` made at `time_ns`. Returns whether it was
    /// there; what is durable can no longer be undone. Changes that rested on it go with it.
    fn undo_one(&mut self, bytenr: u64, tid: u32, time_ns: u64) -> bool;

    /// The extent as of a generation at or above the durable one, when it is in use there.
    fn as_of(&self, bytenr: u64, generation: u64) -> Option<Extent>;

    /// The extents that transactions above the durable one and up to `generation` changed,
    /// sorted.
    fn touched(&self, generation: u64) -> Vec<u64>;

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
