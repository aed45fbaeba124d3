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
    mem,
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

impl AuditConfig {
    /// Every so many seconds, or at every commit.
    pub fn every(seconds: u32) -> Self {
        Self { interval_ns: u64::from(seconds) * 1_000_000_000 }
    }
}

/// The audits of one file system.
#[derive(Debug)]
pub(crate) struct Audit {
    config: AuditConfig,
    due_ns: u64,
    /// Whether one has begun and not ended.
    is_busy: bool,
    /// What was touched since the last one began.
    touched: Touched,
    /// What the one that is under way looks at.
    looked_at: Touched,
    /// The generation at which it reads now, or a later one; `None` when it does not read.
    reading_at: Option<u64>,
    /// What was read and is still to be compared, in order.
    read: VecDeque<Part>,
    done: u64,
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
    /// After one that could not be brought to its end, the next is not begun earlier than this.
    const RETRY_NS: u64 = 10_000_000_000;

    /// None has been made yet.
    pub(crate) fn new(config: AuditConfig) -> Self {
        Self {
            config,
            due_ns: 0,
            is_busy: false,
            touched: Touched::default(),
            looked_at: Touched::default(),
            reading_at: None,
            read: VecDeque::new(),
            done: 0,
        }
    }

    /// An event was applied.
    pub(crate) fn touch(&mut self, bytenr: u64) {
        self.touched.add(bytenr);
    }

    /// Whether one may begin.
    pub(crate) fn is_due(&self, time_ns: u64) -> bool {
        !self.is_busy && time_ns >= self.due_ns
    }

    /// Whether one is under way.
    pub(crate) const fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Whether everything was read and compared, and only [`Audit::end`] is missing.
    pub(crate) fn is_compared(&self) -> bool {
        self.is_busy && self.reading_at.is_none() && self.read.is_empty()
    }

    /// Whether its reading is under way.
    pub(crate) const fn is_reading(&self) -> bool {
        self.reading_at.is_some()
    }

    /// One begins, at superblock `generation` or a later one. Returns where to look even if nothing
    /// has changed on disk; `None` is everywhere.
    pub(crate) fn begin(&mut self, generation: u64) -> Option<BTreeSet<u64>> {
        self.is_busy = true;
        self.reading_at = Some(generation);
        self.looked_at = mem::take(&mut self.touched);
        self.looked_at.places()
    }

    /// Reading goes on at this generation.
    pub(crate) fn reading_at(&mut self, generation: u64) {
        self.reading_at = Some(generation);
    }

    /// A part was read.
    pub(crate) fn take(&mut self, part: Part) {
        self.read.push_back(part);
    }

    /// Everything was read.
    pub(crate) fn all_read(&mut self) {
        self.reading_at = None;
    }

    /// Everything was read and compared.
    pub(crate) fn end(&mut self, time_ns: u64) {
        self.is_busy = false;
        self.looked_at = Touched::default();
        self.due_ns = time_ns.saturating_add(self.config.interval_ns);
        self.done += 1;
    }

    /// It cannot be brought to its end; what it was to look at stays to be looked at.
    pub(crate) fn give_up(&mut self, time_ns: u64) {
        if mem::take(&mut self.is_busy) {
            self.touched.join(mem::take(&mut self.looked_at));
            self.reading_at = None;
            self.read.clear();
            let pause_ns = self.config.interval_ns.max(Self::RETRY_NS);
            self.due_ns = time_ns.saturating_add(pause_ns);
        }
    }

    /// The next part that can be compared when all events up to `known_upto` have come.
    pub(crate) fn next_part(&mut self, known_upto: u64) -> Option<Part> {
        self.read.pop_front_if(|part| part.generation <= known_upto)
    }

    /// The newest generation that may become the ledger's base.
    pub(crate) fn base_max(&self) -> u64 {
        let read = self.read.front().map(|part| part.generation);
        self.reading_at.into_iter().chain(read).min().unwrap_or(u64::MAX)
    }

    /// How many were made.
    pub(crate) const fn done(&self) -> u64 {
        self.done
    }
}

/// The extents that events touched.
#[derive(Debug, Default)]
struct Touched {
    bytenrs: BTreeSet<u64>,
    /// More were touched than are kept.
    is_everywhere: bool,
}

impl Touched {
    /// With more it is no dearer to look everywhere.
    const MAX: usize = 1 << 20;

    fn add(&mut self, bytenr: u64) {
        if self.is_everywhere {
            return;
        }
        self.bytenrs.insert(bytenr);
        if self.bytenrs.len() > Self::MAX {
            self.bytenrs.clear();
            self.is_everywhere = true;
        }
    }

    fn join(&mut self, other: Self) {
        self.is_everywhere |= other.is_everywhere;
        for bytenr in other.bytenrs {
            self.add(bytenr);
        }
    }

    fn places(&self) -> Option<BTreeSet<u64>> {
        (!self.is_everywhere).then(|| self.bytenrs.clone())
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
