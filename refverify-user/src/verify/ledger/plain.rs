//! The plain ledger: maps of maps, meant to be obviously right. Tests hold it beside the
//! packed one, and the bench measures the packed one against it. It gives nothing up.

use std::{collections::BTreeMap, ops::Range};

use super::{Extent, Kept, Ledger, Limits, RefChange, Violation, crossing};
use crate::{
    btrfs::DiskExtent,
    feed::Event,
    verify::{ActionRecord, ExtentDump, history, rules},
};

/// All that is known of one file system's extents.
#[derive(Debug, Default)]
pub struct PlainLedger {
    limits: Limits,
    durable: u64,
    extents: BTreeMap<u64, Known>,
    /// The block groups that went by transactions that are not durable.
    removals: Vec<(Range<u64>, u64)>,
}

/// What is known at one bytenr.
#[derive(Clone, Debug, Default)]
struct Known {
    /// As of the last durable superblock. An extent at 0 is a tombstone.
    base: Option<Extent>,
    /// As it is now: the base with what is pending.
    now: Option<Extent>,
    /// What durable transactions did since its last allocation.
    history: Vec<ActionRecord>,
    /// What later transactions did, in order.
    pending: Vec<Pending>,
}

#[derive(Clone, Debug)]
enum Pending {
    Change(RefChange, ActionRecord),
    /// The block group went.
    Removal {
        transid: u64,
    },
}

impl Pending {
    const fn transid(&self) -> u64 {
        match self {
            Self::Change(_, record) => record.transid,
            Self::Removal { transid } => *transid,
        }
    }

    /// Does to an extent what was done. Returns whether it was in order.
    fn replay(&self, extent: &mut Option<Extent>) -> bool {
        match self {
            Self::Change(change, _) => Extent::replay(extent, change),
            Self::Removal { .. } => {
                *extent = None;
                true
            }
        }
    }
}

impl Known {
    /// A bytenr of which nothing was known but that its block group went.
    fn new(bytenr: u64, removals: &[(Range<u64>, u64)], generation: u64) -> Self {
        let later = removals
            .iter()
            .filter(|(range, transid)| *transid > generation && range.contains(&bytenr));
        let pending = later.map(|&(_, transid)| Pending::Removal { transid }).collect();
        Self { pending, ..Self::default() }
    }

    /// Its state from what is left of the changes; those that rested on one that is gone go.
    fn replay(&mut self) {
        self.now = self.base.clone();
        let now = &mut self.now;
        self.pending.retain(|pending| pending.replay(now));
    }

    /// Its state as of a generation.
    fn as_of(&self, generation: u64) -> Option<Extent> {
        let mut extent = self.base.clone();
        for pending in self.pending.iter().filter(|pending| pending.transid() <= generation) {
            pending.replay(&mut extent);
        }
        extent
    }

    /// Every change up to `generation` becomes history. Returns whether that changes the base.
    fn settle(&mut self, generation: u64) {
        let (durable, later): (Vec<_>, _) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.transid() <= generation);
        self.pending = later;
        for pending in durable {
            if pending.replay(&mut self.base) {
                self.remember(pending);
            }
        }
    }

    fn remember(&mut self, pending: Pending) {
        match pending {
            Pending::Change(change, record) => {
                if change.action == crate::btrfs::Action::AddExtent {
                    self.history.clear();
                }
                self.history.push(record);
            }
            Pending::Removal { .. } => self.history.clear(),
        }
    }

    /// What was done since its last allocation.
    fn actions(&self) -> Vec<ActionRecord> {
        let mut all = Self { history: self.history.clone(), ..Self::default() };
        for pending in &self.pending {
            all.remember(pending.clone());
        }
        all.history
    }

    /// A base that disk no longer has is a tombstone where anything was done to it.
    fn gone(&mut self) {
        let Some(base) = &mut self.base else { return };
        base.total_refs = 0;
        base.refs = super::Refs::default();
        if base.actions == 0 {
            self.base = None;
        }
    }

    fn is_empty(&self) -> bool {
        let is_change = |pending: &Pending| matches!(pending, Pending::Change(..));
        self.base.is_none() && !self.pending.iter().any(is_change)
    }

    fn live(&self) -> Option<&Extent> {
        self.now.as_ref().filter(|extent| extent.is_live())
    }
}

impl PlainLedger {
    /// A ledger that knows nothing yet. Of the limits it heeds how many actions of an extent
    /// are shown.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A range was read: removals up to `generation` are no longer pending there.
    fn narrow_removals(&mut self, range: &Range<u64>, generation: u64) {
        let removals = std::mem::take(&mut self.removals);
        for (removed, transid) in removals {
            if transid > generation {
                self.removals.push((removed, transid));
                continue;
            }
            let below = removed.start..removed.end.min(range.start);
            let above = removed.start.max(range.end)..removed.end;
            self.removals.extend([(below, transid), (above, transid)]);
        }
    }

    fn dump_known(&self, bytenr: u64, known: &Known) -> Option<ExtentDump> {
        let extent = known.now.as_ref()?;
        let mut dump = extent.dump(bytenr);
        dump.actions = known.actions();
        dump.actions_given_up = history::bound_and_count(
            &mut dump.actions,
            self.limits.history_per_extent,
            extent.actions,
        );
        Some(dump)
    }
}

impl Ledger for PlainLedger {
    fn apply(&mut self, event: &Event) -> Result<(), Box<Violation>> {
        let Some(change) = &RefChange::of(event) else { return Ok(()) };
        let now = self.extents.get(&change.bytenr).and_then(|known| known.now.as_ref());
        let view = now.map(|extent| extent.view(&change.key));
        if let Err(kind) = rules::judge(view, change.action, &change.key) {
            return Err(Box::new(Violation { kind, extent: self.dump(change.bytenr) }));
        }
        let new = || Known::new(change.bytenr, &self.removals, self.durable);
        let known = self.extents.entry(change.bytenr).or_insert_with(new);
        known.now.get_or_insert_default().make(change);
        known.pending.push(Pending::Change(*change, ActionRecord::of(change, event)));
        Ok(())
    }

    fn read(&mut self, range: Range<u64>, generation: u64, extents: &[DiskExtent]) {
        for (_, known) in self.extents.range_mut(range.clone()) {
            known.settle(generation);
            known.gone();
        }
        self.narrow_removals(&range, generation);
        for disk in extents.iter().filter(|disk| range.contains(&disk.bytenr)) {
            let new = || Known::new(disk.bytenr, &self.removals, generation);
            let known = self.extents.entry(disk.bytenr).or_insert_with(new);
            let actions = known.base.as_ref().map_or(0, |base| base.actions);
            known.base = Some(Extent::of_disk(disk, generation, actions));
        }
        for (_, known) in self.extents.range_mut(range.clone()) {
            known.replay();
        }
        self.extents.extract_if(range, |_, known| known.is_empty()).for_each(drop);
    }

    fn remove(&mut self, range: Range<u64>, transid: u64) {
        for (_, known) in self.extents.range_mut(range.clone()) {
            known.now = None;
            known.pending.push(Pending::Removal { transid });
        }
        self.removals.push((range, transid));
    }

    fn commit(&mut self, generation: u64) {
        self.durable = self.durable.max(generation);
        for known in self.extents.values_mut().filter(|known| !known.pending.is_empty()) {
            known.settle(generation);
            known.replay();
        }
        self.extents.retain(|_, known| !known.is_empty());
        self.removals.retain(|&(_, transid)| transid > generation);
    }

    fn undo_above(&mut self, transid: u64) {
        self.removals.retain(|&(_, of)| of <= transid);
        for known in self.extents.values_mut() {
            let before = known.pending.len();
            known.pending.retain(|pending| pending.transid() <= transid);
            if known.pending.len() != before {
                known.replay();
            }
        }
        self.extents.retain(|_, known| !known.is_empty());
    }

    fn as_of(&self, bytenr: u64, generation: u64) -> Option<Extent> {
        self.extents.get(&bytenr)?.as_of(generation).filter(Extent::is_live)
    }

    fn touched(&self, generation: u64) -> Vec<u64> {
        let is_change = |pending: &Pending| {
            matches!(pending, Pending::Change(..)) && pending.transid() <= generation
        };
        let touched = self.extents.iter().filter(|(_, known)| known.pending.iter().any(is_change));
        touched.map(|(&bytenr, _)| bytenr).collect()
    }

    fn crossing(&self, range: &Range<u64>) -> Vec<ExtentDump> {
        crossing(range, |edge| {
            let mut before = self.extents.range(..edge).rev();
            let (&bytenr, known) = before.find(|(_, known)| known.live().is_some())?;
            self.dump_known(bytenr, known)
        })
    }

    fn bytenrs_in(&self, range: Range<u64>) -> Vec<u64> {
        let is_in_use = |extent: &Option<Extent>| extent.as_ref().is_some_and(Extent::is_live);
        let known = self.extents.range(range);
        known
            .filter(|(_, it)| !it.pending.is_empty() || is_in_use(&it.base) || is_in_use(&it.now))
            .map(|(&bytenr, _)| bytenr)
            .collect()
    }

    fn live(&self) -> u64 {
        self.extents.values().filter(|known| known.live().is_some()).count() as u64
    }

    fn visit(&self, each: &mut dyn FnMut(u64, &Extent)) {
        for (&bytenr, known) in &self.extents {
            if let Some(extent) = known.live() {
                each(bytenr, extent);
            }
        }
    }

    fn dump(&self, bytenr: u64) -> Option<ExtentDump> {
        self.dump_known(bytenr, self.extents.get(&bytenr)?)
    }

    fn kept(&self) -> Kept {
        Kept::default()
    }
}
