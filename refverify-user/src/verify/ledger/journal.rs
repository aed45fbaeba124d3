//! The changes whose transactions are not durable, in the order in which they came, with what
//! it takes to take each one back.
//!
//! Nearly every change can be taken back from what it says itself. For the others the extent
//! as it was before is kept.

use std::{
    collections::BTreeMap,
    ops::{Range, RangeBounds},
};

use super::{
    Extent, RefChange,
    blocks::{first_of, is_beyond},
    group::{Act, Grave, Group},
    origins::Numbering,
    sort::sort_by_bytenr,
};
use crate::{
    btrfs::{Action, ExtentKind},
    feed::Event,
};

/// One change that is pending.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) bytenr: u64,
    pub(super) act: Act,
    /// Of an allocation: what it says. Of a drop to zero: what the extent was.
    len_bytes: u64,
    kind: ExtentKind,
    /// It left the extent without references.
    frees: bool,
    /// Whether it is to be dropped at the next chance.
    is_void: bool,
    /// Of a drop to zero: whether the extent was read from disk, and at which generation.
    is_from_disk: bool,
    from_disk: u64,
    /// How many actions there were since the extent's allocation, with this one.
    ordinal: u32,
}

impl Entry {
    /// The change, as it was judged.
    pub(super) const fn change(&self) -> RefChange {
        let Self { bytenr, act, len_bytes, kind, .. } = *self;
        RefChange { action: act.action, kind, bytenr, len_bytes, key: act.key }
    }
}

/// A block group that went by a transaction that is not durable.
#[derive(Clone, Debug)]
pub(super) struct Removal {
    pub(super) range: Range<u64>,
    pub(super) transid: u64,
    /// How many changes came before it.
    at: u32,
    /// What was in it, by bytenr. In an honest history that is nothing.
    pub(super) held: BTreeMap<u64, Extent>,
}

impl Removal {
    /// The same, for a part of its range.
    fn part(&self, range: Range<u64>) -> Self {
        let held = self.held.range(range.clone());
        let held = held.map(|(&bytenr, extent)| (bytenr, extent.clone())).collect();
        Self { range, held, transid: self.transid, at: self.at }
    }
}

/// What happened to an extent, by its number in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    Change(u32),
    /// Its block group went.
    Removal(usize),
}

/// All that is pending.
#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: Vec<Entry>,
    /// Extents as they were before a change that does not tell it, by its number.
    before: BTreeMap<u32, Option<Extent>>,
    removals: Vec<Removal>,
    numbering: Numbering,
    /// The changes that there were when they were last put in order, in stretches that are each in
    /// order of bytenr.
    sorted: Vec<(u64, u32)>,
    /// Where each stretch begins. Each is more than twice as long as the one behind it: so they are
    /// few, and of a million changes not all are moved for the sake of the last thousand.
    stretches: Vec<usize>,
    /// How many are to be dropped at the next chance.
    voided: usize,
}

impl Journal {
    /// How many changes may be out of order before they are put in order.
    const UNSORTED_MAX: usize = 512;

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.removals.is_empty()
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn entry(&self, number: u32) -> &Entry {
        &self.entries[number as usize]
    }

    pub(super) fn removals(&self) -> &[Removal] {
        &self.removals
    }

    pub(super) const fn numbering(&self) -> &Numbering {
        &self.numbering
    }

    pub(super) fn transid(&self, happened: Happened) -> u64 {
        match happened {
            Happened::Change(number) => self.entry(number).act.transid,
            Happened::Removal(at) => self.removals[at].transid,
        }
    }

    /// Makes a change that was judged to be in order to `extent`, which is nothing where
    /// `is_known` is not set, and keeps it as pending.
    pub(super) fn make(
        &mut self,
        change: &RefChange,
        event: &Event,
        extent: &mut Extent,
        is_known: bool,
    ) {
        let (task, stack) = self.numbering.of_event(event);
        let RefChange { action, key, bytenr, len_bytes, kind } = *change;
        let act = Act { action, key, transid: event.transid, time_ns: event.time_ns, task, stack };
        let number = self.entries.len() as u32;
        self.entries.push(Entry {
            bytenr,
            act,
            len_bytes,
            kind,
            frees: false,
            is_void: false,
            is_from_disk: false,
            from_disk: 0,
            ordinal: 0,
        });
        self.make_again(number, extent, is_known);
    }

    /// Makes a change that is in the journal.
    fn make_again(&mut self, number: u32, extent: &mut Extent, is_known: bool) {
        let entry = &mut self.entries[number as usize];
        let change = entry.change();
        if !tells_what_was(&change, extent, is_known) {
            self.before.insert(number, is_known.then(|| extent.clone()));
        }
        let from_disk = extent.from_disk;
        extent.make(&change);
        entry.ordinal = extent.actions.try_into().unwrap_or(u32::MAX);
        entry.frees = !extent.is_live();
        if entry.frees {
            entry.len_bytes = extent.len_bytes;
            entry.kind = extent.kind;
            entry.is_from_disk = from_disk.is_some();
            entry.from_disk = from_disk.unwrap_or(0);
        }
    }

    /// Judges a change that is in the journal against what the extent is without what was
    /// undone, and makes it; one that is no longer in order is void.
    pub(super) fn replay(&mut self, number: u32, known: &mut Option<Extent>) {
        self.before.remove(&number);
        let change = self.entry(number).change();
        if !Extent::is_in_order(known.as_ref(), &change) {
            self.void(&[(change.bytenr, number)]);
            return;
        }
        let is_known = known.is_some();
        self.make_again(number, known.get_or_insert_default(), is_known);
    }

    /// Takes back what happened.
    pub(super) fn unwind(&self, happened: Happened, bytenr: u64, known: &mut Option<Extent>) {
        let number = match happened {
            Happened::Removal(at) => {
                *known = self.removals[at].held.get(&bytenr).cloned();
                return;
            }
            Happened::Change(number) => number,
        };
        let entry = self.entry(number);
        if let Some(before) = self.before.get(&number) {
            known.clone_from(before);
        } else if entry.act.action == Action::AddExtent {
            *known = None;
        } else if entry.frees {
            let mut extent = self.grave(number).extent(u64::from(entry.ordinal) - 1);
            extent.total_refs = 1;
            extent.refs.add(entry.act.key, 1);
            *known = Some(extent);
        } else if let Some(extent) = known {
            extent.take_back(entry.act.action, &entry.act.key);
        }
    }

    /// What an extent was that a change freed.
    pub(super) fn grave(&self, number: u32) -> Grave {
        let entry = self.entry(number);
        let from_disk = entry.is_from_disk.then_some(entry.from_disk);
        Grave { kind: entry.kind, len_bytes: entry.len_bytes, from_disk }
    }

    /// The grave that a change left, and how many actions led to it.
    pub(super) fn grave_after(&self, number: u32) -> Option<(Grave, u64)> {
        let entry = self.entry(number);
        entry.frees.then(|| (self.grave(number), u64::from(entry.ordinal)))
    }

    /// What happened to an extent, in order.
    pub(super) fn happened(&self, bytenr: u64) -> Vec<Happened> {
        let numbers = self.numbers_in(&(bytenr..=bytenr));
        let mut all: Vec<Happened> =
            numbers.into_iter().map(|(_, number)| Happened::Change(number)).collect();
        for (at, removal) in self.removals.iter().enumerate().rev() {
            if removal.range.contains(&bytenr) {
                let place = all.partition_point(|happened| match happened {
                    Happened::Change(number) => *number < removal.at,
                    Happened::Removal(_) => false,
                });
                all.insert(place, Happened::Removal(at));
            }
        }
        all
    }

    /// The changes of the extents in a range, by bytenr and then in order.
    pub(super) fn numbers_in(&self, range: &impl RangeBounds<u64>) -> Vec<(u64, u32)> {
        let ends = self.stretches.iter().skip(1).copied().chain([self.sorted.len()]);
        let stretches =
            self.stretches.iter().zip(ends).map(|(&begin, end)| &self.sorted[begin..end]);
        let sorted = stretches.flat_map(|stretch| {
            let begin = stretch.partition_point(|&(bytenr, _)| bytenr < first_of(range));
            let from_there = stretch[begin..].iter();
            from_there.take_while(|&&(bytenr, _)| !is_beyond(bytenr, range)).copied()
        });
        let from = self.sorted.len();
        let unsorted = (from as u32..).zip(&self.entries[from..]);
        let unsorted = unsorted.map(|(number, entry)| (entry.bytenr, number));
        let unsorted = unsorted.filter(|(bytenr, _)| range.contains(bytenr));
        let mut all: Vec<_> = sorted.chain(unsorted).collect();
        all.retain(|&(_, number)| !self.entry(number).is_void);
        all.sort_unstable();
        all
    }

    /// Puts the changes in order of bytenr, where too many are not.
    #[expect(
        clippy::stable_sort_primitive,
        reason = "the stable one makes use of stretches that are in order already"
    )]
    pub(super) fn sort(&mut self) {
        let mut begin = self.sorted.len();
        if self.entries.len() - begin <= Self::UNSORTED_MAX {
            return;
        }
        let unsorted = (begin as u32..).zip(&self.entries[begin..]);
        self.sorted.extend(unsorted.map(|(number, entry)| (entry.bytenr, number)));
        while let Some(before) =
            self.stretches.pop_if(|before| begin - *before <= 2 * (self.sorted.len() - begin))
        {
            begin = before;
        }
        self.sorted[begin..].sort();
        self.stretches.push(begin);
    }

    /// All changes, by bytenr and then in order.
    pub(super) fn by_bytenr(&self) -> Vec<(u64, u32)> {
        let numbered = (0_u32..).zip(&self.entries);
        let mut all: Vec<_> = numbered.map(|(number, entry)| (entry.bytenr, number)).collect();
        sort_by_bytenr(&mut all);
        all
    }

    /// Brings changes near, all of them at once.
    pub(super) fn bring_near(&self, changes: &[(u64, u32)]) {
        let mut touched = 0;
        for &(_, number) in changes {
            let entry = self.entry(number);
            touched ^= entry.bytenr ^ u64::from(entry.act.stack);
        }
        std::hint::black_box(touched);
    }

    /// Notes that a block group went, with what was in it.
    pub(super) fn remove(&mut self, range: Range<u64>, transid: u64, held: BTreeMap<u64, Extent>) {
        let at = self.entries.len() as u32;
        self.removals.push(Removal { range, transid, at, held });
    }

    /// What a removal takes is kept, so that it can be given back.
    pub(super) fn hold(&mut self, at: usize, bytenr: u64, extent: Option<Extent>) {
        let held = &mut self.removals[at].held;
        match extent {
            Some(extent) => held.insert(bytenr, extent),
            None => held.remove(&bytenr),
        };
    }

    /// What removals took from a range has been read anew.
    pub(super) fn forget_held_in(&mut self, range: &Range<u64>) {
        for removal in &mut self.removals {
            removal.held.retain(|bytenr, _| !range.contains(bytenr));
        }
    }

    /// Changes are no longer pending.
    pub(super) fn void(&mut self, changes: &[(u64, u32)]) {
        for &(_, number) in changes {
            let entry = &mut self.entries[number as usize];
            self.voided += usize::from(!entry.is_void);
            entry.is_void = true;
        }
    }

    /// Takes removals out.
    pub(super) fn take_removals(
        &mut self,
        is_taken: impl FnMut(&mut Removal) -> bool,
    ) -> Vec<Removal> {
        self.removals.extract_if(.., is_taken).collect()
    }

    /// A range was read at `generation`: removals that are in it are no longer pending there.
    /// Returns where that is.
    pub(super) fn narrow_removals(
        &mut self,
        range: &Range<u64>,
        generation: u64,
    ) -> Vec<Range<u64>> {
        let mut narrowed = Vec::new();
        let removals = std::mem::take(&mut self.removals);
        for removal in removals {
            let start = removal.range.start.max(range.start);
            let end = removal.range.end.min(range.end);
            if removal.transid > generation || start >= end {
                self.removals.push(removal);
                continue;
            }
            narrowed.push(start..end);
            let rest = [removal.range.start..start, end..removal.range.end];
            let rest = rest.into_iter().filter(|rest| !rest.is_empty());
            self.removals.extend(rest.map(|rest| removal.part(rest)));
        }
        narrowed
    }

    /// Drops the changes that are no longer pending. All numbers change, unless there are none.
    pub(super) fn compact(&mut self) {
        if self.voided == 0 && !self.entries.is_empty() {
            return;
        }
        self.voided = 0;
        let busy = self.entries.len();
        let mut kept_before = Vec::new();
        if self.entries.iter().all(|entry| entry.is_void) {
            self.entries.clear();
            self.before.clear();
            for removal in &mut self.removals {
                removal.at = 0;
            }
        } else {
            let mut kept = 0;
            kept_before.extend(self.entries.iter().map(|entry| {
                let before = kept;
                kept += u32::from(!entry.is_void);
                before
            }));
            self.renumber(&kept_before, kept);
        }
        if self.is_empty() {
            self.numbering.reset();
        }
        self.sorted.clear();
        self.stretches.clear();
        self.shrink(busy);
    }

    fn renumber(&mut self, kept_before: &[u32], kept: u32) {
        let new = |number: u32| kept_before.get(number as usize).copied().unwrap_or(kept);
        let is_void = |number: u32| self.entries[number as usize].is_void;
        let before = std::mem::take(&mut self.before);
        let before = before.into_iter().filter(|&(number, _)| !is_void(number));
        self.before = before.map(|(number, extent)| (new(number), extent)).collect();
        for removal in &mut self.removals {
            removal.at = new(removal.at);
        }
        self.entries.retain(|entry| !entry.is_void);
    }

    /// After a commit far smaller than what is held, most of that goes back.
    fn shrink(&mut self, busy: usize) {
        let enough = (busy * 2).max(4096);
        if self.entries.capacity() > enough * 2 {
            self.entries.shrink_to(enough);
            self.sorted.shrink_to(enough);
        }
    }

    /// Gathers the changes of one extent up to `generation` for a run, where they are the first
    /// of them, and nothing else happened to it: then its base is what it was after the last
    /// of these. Returns how many they are.
    pub(super) fn gather(
        &self,
        changes: &[(u64, u32)],
        generation: u64,
        group: &mut Group,
    ) -> Option<usize> {
        let bytenr = changes[0].0;
        group.begin_anew();
        group.bytenr = bytenr;
        group.begins_anew = false;
        let mut durable = 0;
        for (place, &(_, number)) in changes.iter().enumerate() {
            let entry = self.entry(number);
            if entry.act.transid > generation {
                continue;
            }
            if durable < place {
                return None;
            }
            durable = place + 1;
            group.remember(&entry.act);
            group.done = u64::from(entry.ordinal);
            group.grave = entry.frees.then(|| self.grave(number));
        }
        let is_removed = self.removals.iter().any(|removal| removal.range.contains(&bytenr));
        (!is_removed).then_some(durable)
    }

    /// Bytes allocated, about.
    pub(super) fn bytes(&self) -> usize {
        let held: usize = self.removals.iter().map(|removal| removal.held.len()).sum();
        self.entries.capacity() * size_of::<Entry>()
            + self.sorted.capacity() * size_of::<(u64, u32)>()
            + (self.before.len() + held) * 2 * size_of::<Extent>()
            + self.numbering.origins().bytes()
    }
}

/// Whether a change, by itself, tells what the extent was before it.
fn tells_what_was(change: &RefChange, extent: &Extent, is_known: bool) -> bool {
    let is_usual = extent.total_refs < u64::MAX;
    match change.action {
        Action::AddExtent => !is_known,
        Action::AddRef => is_usual && extent.refs.get(&change.key) != Some(0),
        Action::DropRef if extent.total_refs > 1 => is_usual,
        // The last reference, and nothing that should not have been there.
        Action::DropRef => extent.refs.len() == 1 && extent.refs.get(&change.key) == Some(1),
    }
}
