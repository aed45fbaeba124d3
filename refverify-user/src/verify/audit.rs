//! The audit: what a commit put on disk, held against the ledger as of that commit.
//!
//! It finds right events that were wrongly carried out, which no rule about events can see. What
//! has not changed on disk since it was read last was right then, so only two kinds of places are
//! looked at: those that changed, and those that an event touched. A change that was never carried
//! out moves no leaf.
//!
//! While an audit is under way nothing newer than what it reads may become the ledger's base:
//! then the ledger can no longer tell how it was.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
};

use super::{ExtentDump, ledger::Extent, ledger::Ledger};
use crate::btrfs::DiskExtent;

/// When audits are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// Between the end of one and the beginning of the next, at least; 0 is at every commit that
    /// comes while none is under way.
    pub interval_ns: u64,
}

/// The audits of one file system.
#[derive(Debug)]
pub(crate) struct Audit {
    config: AuditConfig,
    due_ns: u64,
    touched: Touched,
    running: Option<Running>,
    /// What was read and is still to be compared, in order.
    read: VecDeque<Part>,
    done: u64,
}

/// One reading.
#[derive(Debug)]
struct Running {
    /// The generation at which its first part was read.
    first_generation: Option<u64>,
    /// The generation at which it reads now, or a later one.
    generation: u64,
}

/// A range, as the disk had it.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    pub(crate) generation: u64,
    pub(crate) extents: Vec<DiskExtent>,
}

/// An extent that ledger and disk do not agree about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) bytenr: u64,
    /// As of the generation; `None` is not in use.
    pub(crate) expected: Option<Extent>,
    /// What there is.
    pub(crate) on_disk: Option<ExtentDump>,
}

impl Audit {
    /// None has been made yet.
    pub(crate) fn new(config: AuditConfig) -> Self {
        Self {
            config,
            due_ns: 0,
            touched: Touched::default(),
            running: None,
            read: VecDeque::new(),
            done: 0,
        }
    }

    /// An event was applied.
    pub(crate) fn touch(&mut self, bytenr: u64, transid: u64) {
        self.touched.add(bytenr, transid);
    }

    /// Whether one may begin.
    pub(crate) fn is_due(&self, time_ns: u64) -> bool {
        !self.is_busy() && time_ns >= self.due_ns
    }

    /// Whether one is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.running.is_some() || !self.read.is_empty()
    }

    /// Whether its reading is under way.
    pub(crate) const fn is_reading(&self) -> bool {
        self.running.is_some()
    }

    /// One begins, at superblock `generation` or a later one. Returns where to look even if nothing
    /// has changed on disk; `None` is everywhere.
    pub(crate) fn begin(&mut self, generation: u64) -> Option<BTreeSet<u64>> {
        self.running = Some(Running { first_generation: None, generation });
        self.touched.places()
    }

    /// Reading goes on at this generation.
    pub(crate) fn reading_at(&mut self, generation: u64) {
        if let Some(running) = &mut self.running {
            running.first_generation.get_or_insert(generation);
            running.generation = generation;
        }
    }

    /// A part was read.
    pub(crate) fn take(&mut self, part: Part) {
        self.read.push_back(part);
    }

    /// Everything was read.
    pub(crate) fn end(&mut self, time_ns: u64) {
        let first = self.running.take().and_then(|running| running.first_generation);
        self.touched.forget(first.unwrap_or(0));
        self.due_ns = time_ns.saturating_add(self.config.interval_ns);
        self.done += 1;
    }

    /// It cannot be brought to its end; what it was to look at stays to be looked at.
    pub(crate) fn give_up(&mut self) {
        self.running = None;
        self.read.clear();
    }

    /// The next part that can be compared when all events up to `known_upto` have come.
    pub(crate) fn next_part(&mut self, known_upto: u64) -> Option<Part> {
        self.read.pop_front_if(|part| part.generation <= known_upto)
    }

    /// The newest generation that may become the ledger's base.
    pub(crate) fn base_max(&self) -> u64 {
        let reading = self.running.as_ref().map(|running| running.generation);
        let read = self.read.front().map(|part| part.generation);
        reading.into_iter().chain(read).min().unwrap_or(u64::MAX)
    }

    /// How many were made.
    pub(crate) const fn done(&self) -> u64 {
        self.done
    }
}

/// The extents that events touched, each with its newest transid.
#[derive(Debug, Default)]
struct Touched {
    newest: BTreeMap<u64, u64>,
    /// More were touched than are kept, the newest of them by this transaction.
    overflowed: Option<u64>,
}

impl Touched {
    /// With more it is no dearer to look everywhere.
    const MAX: usize = 1 << 20;

    fn add(&mut self, bytenr: u64, transid: u64) {
        if let Some(newest) = &mut self.overflowed {
            *newest = transid.max(*newest);
            return;
        }
        let newest = self.newest.entry(bytenr).or_insert(transid);
        *newest = transid.max(*newest);
        if self.newest.len() > Self::MAX {
            self.overflowed = self.newest.values().copied().max();
            self.newest.clear();
        }
    }

    fn places(&self) -> Option<BTreeSet<u64>> {
        self.overflowed.is_none().then(|| self.newest.keys().copied().collect())
    }

    /// What was touched up to `generation` has been looked at.
    fn forget(&mut self, generation: u64) {
        self.newest.retain(|_, newest| *newest > generation);
        if self.overflowed.is_some_and(|newest| newest <= generation) {
            self.overflowed = None;
        }
    }
}

/// Where the ledger as of a part's generation is not what the disk has.
pub(crate) fn differences(ledger: &impl Ledger, part: &Part) -> Vec<Difference> {
    let on_disk: BTreeMap<u64, Extent> = part
        .extents
        .iter()
        .map(|disk| (disk.bytenr, Extent::of_disk(disk, part.generation, 0)))
        .filter(|(_, extent)| extent.is_live())
        .collect();
    let mut places: BTreeSet<u64> = ledger.bytenrs_in(part.range.clone()).into_iter().collect();
    places.extend(on_disk.keys());
    let differs = |bytenr: u64| {
        let expected = ledger.as_of(bytenr, part.generation);
        let on_disk = on_disk.get(&bytenr);
        let is_same = match (&expected, on_disk) {
            (Some(expected), Some(on_disk)) => expected.is_same_on_disk(on_disk),
            (None, None) => true,
            _ => false,
        };
        let on_disk = on_disk.map(|extent| extent.dump(bytenr));
        (!is_same).then_some(Difference { bytenr, expected, on_disk })
    };
    places.into_iter().filter_map(differs).collect()
}
