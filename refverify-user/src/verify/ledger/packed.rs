//! The packed ledger: every extent, as it is now, in [`Blocks`]; what is pending in the
//! [`Journal`]; and the histories of what is durable in [`Runs`].
//!
//! A change looks its extent up, is judged, and is made in place; a commit only turns journal
//! into history. The state as of an earlier generation is had by taking back what is pending.

mod reading;

use std::{
    collections::BTreeMap,
    ops::{Range, RangeBounds},
};

use super::{
    Extent, Judged, Kept, Ledger, Limits, RefChange, Violation,
    blocks::{Blocks, Place},
    bytenr_of, crossing,
    group::{Grave, Group},
    journal::{Happened, Journal},
    run::RunBuilder,
    runs::Runs,
    sort::sort_roughly,
};
use crate::{
    btrfs::DiskExtent,
    feed::Event,
    verify::{ExtentDump, history, rules},
};

/// All that is known of one file system's extents, in little room.
#[derive(Default)]
pub struct PackedLedger {
    limits: Limits,
    blocks: Blocks,
    journal: Journal,
    runs: Runs,
    live: u64,
    /// Serves again for each change.
    extent: Extent,
}

/// How many extents of a batch are brought near at once: more than memory can be asked for at
/// a time, and few enough that all stay near until their turn.
const NEAR: usize = 64;

/// Brings events near, all of them at once: by bytenr they are anywhere in their batch.
fn bring_near(events: &[Event], some: &[(u64, u32)]) {
    let mut touched = 0;
    for &(_, place) in some {
        let event = &events[place as usize];
        touched ^= event.transid ^ u64::from(event.comm.0[0]) ^ event.stack.len() as u64;
    }
    std::hint::black_box(touched);
}

/// What an extent was as of a generation, and what its history gains up to there.
struct Settled {
    base: Option<Extent>,
    group: Group,
}

impl PackedLedger {
    /// A ledger that knows nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// What is left of an extent that is not in use.
    fn tombstone(&self, bytenr: u64) -> Option<Extent> {
        match self.journal.happened(bytenr).last() {
            Some(Happened::Removal(_)) => None,
            Some(&Happened::Change(number)) => {
                self.journal.grave_after(number).map(|(grave, done)| grave.extent(done))
            }
            None => {
                let past = self.runs.past(bytenr)?;
                past.grave.map(|grave| grave.extent(past.done))
            }
        }
    }

    #[cold]
    fn violation(&mut self, change: &RefChange) -> Option<Box<Violation>> {
        self.journal.sort();
        let known = self.blocks.get(change.bytenr).or_else(|| self.tombstone(change.bytenr));
        let view = known.map(|extent| extent.view(&change.key));
        let kind = rules::judge(view, change.action, &change.key).err()?;
        Some(Box::new(Violation { kind, extent: self.dump(change.bytenr) }))
    }

    /// Judges a change of the extent at a place, and makes it when it is in order.
    fn apply_at(
        &mut self,
        place: Option<&Place>,
        change: &RefChange,
        event: &Event,
    ) -> Result<(), Box<Violation>> {
        let bytenr = change.bytenr;
        let extent = &mut self.extent;
        let is_known = place.is_some_and(|place| self.blocks.read(bytenr, place, extent));
        let view = is_known.then(|| extent.view(&change.key));
        if rules::judge(view, change.action, &change.key).is_err() {
            return self.violation(change).map_or(Ok(()), Err);
        }
        let was_live = is_known && extent.is_live();
        self.journal.make(change, event, extent, is_known);
        let is_live = extent.is_live();
        self.live = self.live + u64::from(is_live) - u64::from(was_live);
        match place {
            Some(place) if !is_live => self.blocks.delete_at(place, bytenr),
            place => self.blocks.put_at(place, bytenr, extent),
        }
        Ok(())
    }

    /// Judges the events at some places of a batch. Only the order of events on one extent
    /// matters; roughly by bytenr they are quicker to look up and to turn into history.
    pub(super) fn apply_places(
        &mut self,
        events: &[Event],
        places: impl Iterator<Item = usize>,
    ) -> Judged {
        let by_bytenr = |place: usize| Some((bytenr_of(&events[place])?, place as u32));
        let mut order: Vec<(u64, u32)> = places.filter_map(by_bytenr).collect();
        sort_roughly(&mut order);
        let mut judged = Judged::default();
        for some in order.chunks(NEAR) {
            self.apply_some(events, some, &mut judged);
        }
        self.fit();
        judged
    }

    /// Judges no more than [`NEAR`] events, told by bytenr and place.
    fn apply_some(&mut self, events: &[Event], some: &[(u64, u32)], judged: &mut Judged) {
        bring_near(events, some);
        self.blocks.bring_near(some.iter().map(|&(bytenr, _)| bytenr));
        for (number, &(bytenr, place)) in some.iter().enumerate() {
            let place = place as usize;
            let event = &events[place];
            let Some(change) = &RefChange::of(event) else { continue };
            if judged.leaves(place, event) {
                continue;
            }
            let at = self.blocks.find_near(number, bytenr);
            let verdict = self.apply_at(at.as_ref(), change, event);
            judged.take(place, event, verdict);
        }
    }

    /// The last extent in use that begins before `edge`.
    pub(super) fn last_live_before(&self, edge: u64) -> Option<u64> {
        let last = self.blocks.last_before(edge, |_, extent| extent.is_live());
        last.map(|(bytenr, _)| bytenr)
    }

    /// The first extent that begins at `bytenr` or behind it.
    pub(super) fn first_from(&self, bytenr: u64) -> Option<u64> {
        self.blocks.first_from(bytenr)
    }

    /// Puts the changes that are pending in order.
    pub(super) fn arrange(&mut self) {
        self.journal.sort();
    }

    /// Shows each extent in use in a range, in order.
    pub(super) fn visit_in(
        &self,
        range: impl RangeBounds<u64>,
        each: &mut dyn FnMut(u64, &Extent),
    ) {
        self.blocks.visit(range, |bytenr, extent| {
            if extent.is_live() {
                each(bytenr, extent);
            }
        });
    }

    /// How many changes are pending.
    pub(super) fn pending(&self) -> usize {
        self.journal.entries().len()
    }

    fn live_in(&self, range: impl RangeBounds<u64>) -> u64 {
        let mut live = 0;
        self.blocks.visit(range, |_, extent| live += u64::from(extent.is_live()));
        live
    }

    /// The extent as of the last durable superblock.
    fn base(&self, bytenr: u64, happened: &[Happened]) -> Option<Extent> {
        let mut extent = self.blocks.get(bytenr);
        for &happened in happened.iter().rev() {
            self.journal.unwind(happened, bytenr, &mut extent);
        }
        extent
    }

    /// Takes what happened to an extent up to `generation` out of what is pending.
    fn settle(&mut self, bytenr: u64, generation: u64) -> Settled {
        let happened = self.journal.happened(bytenr);
        let mut base = self.base(bytenr, &happened);
        let mut group = Group { bytenr, ..Group::default() };
        group.done = base.as_ref().map_or(0, |base| base.actions);
        for happened in happened {
            if self.journal.transid(happened) > generation {
                continue;
            }
            let Happened::Change(number) = happened else {
                base = None;
                group.begin_anew();
                continue;
            };
            let entry = self.journal.entry(number);
            if Extent::replay(&mut base, &entry.change()) {
                group.remember(&entry.act);
                group.done = base.as_ref().map_or(0, |base| base.actions);
            }
            self.journal.void(&[(bytenr, number)]);
        }
        group.grave = base.as_ref().filter(|base| !base.is_live()).map(Grave::of);
        Settled { base, group }
    }

    /// An extent as of the last durable superblock is `base`: what is pending is made anew,
    /// and what is not in order any more goes. How many are in use is kept.
    fn rebuild(&mut self, bytenr: u64, base: Option<Extent>) {
        let mut extent = base;
        for happened in self.journal.happened(bytenr) {
            match happened {
                Happened::Change(number) => self.journal.replay(number, &mut extent),
                Happened::Removal(at) => self.journal.hold(at, bytenr, extent.take()),
            }
        }
        let was_live = self.blocks.get(bytenr).is_some_and(|extent| extent.is_live());
        let is_live = extent.as_ref().is_some_and(Extent::is_live);
        self.live = self.live + u64::from(is_live) - u64::from(was_live);
        // An extent that was freed is known by what freed it.
        match extent.filter(|extent| extent.is_live() || !self.is_freed(bytenr)) {
            Some(extent) => self.blocks.put(bytenr, &extent),
            None => self.blocks.delete(bytenr),
        }
    }

    /// Whether the last that happened to an extent left it without references.
    fn is_freed(&self, bytenr: u64) -> bool {
        match self.journal.happened(bytenr).last() {
            Some(&Happened::Change(number)) => self.journal.grave_after(number).is_some(),
            _ => false,
        }
    }

    /// Keeps the promise of the ceiling. In the middle of a transaction too: what is pending
    /// may be much.
    fn fit(&mut self) {
        let in_use = self.blocks.bytes() + self.journal.bytes();
        let ceiling = usize::try_from(self.limits.memory_bytes).unwrap_or(usize::MAX);
        let history = usize::try_from(self.limits.history_bytes).unwrap_or(usize::MAX);
        let limit = history.min(ceiling.saturating_sub(in_use));
        self.runs.fit(limit, self.limits.history_per_extent);
    }

    /// The extent's actions that are pending, since its last allocation.
    fn recent(&self, bytenr: u64) -> Group {
        let mut group = Group::default();
        for happened in self.journal.happened(bytenr) {
            match happened {
                Happened::Change(number) => group.remember(&self.journal.entry(number).act),
                Happened::Removal(_) => group.begin_anew(),
            }
        }
        group
    }

    /// Turns what is durable into history. Returns the extents that are to be rebuilt, with
    /// their bases.
    fn remember(&mut self, generation: u64, run: &mut RunBuilder) -> Vec<(u64, Option<Extent>)> {
        let changes = self.journal.by_bytenr();
        let mut group = Group::default();
        let mut bases = Vec::new();
        let mut near = 0;
        let mut done = 0;
        for changes_of_one in changes.chunk_by(|(one, _), (other, _)| one == other) {
            done += changes_of_one.len();
            if done > near {
                let upto = (done + NEAR).min(changes.len());
                self.journal.bring_near(&changes[near..upto]);
                near = upto;
            }
            let bytenr = changes_of_one[0].0;
            if let Some(durable) = self.journal.gather(changes_of_one, generation, &mut group) {
                if durable > 0 {
                    run.push(&mut group);
                }
                self.journal.void(&changes_of_one[..durable]);
                continue;
            }
            let Settled { base, mut group } = self.settle(bytenr, generation);
            // What was freed is known by its grave.
            let is_grave = group.has_actions() && group.grave.is_some();
            if base.is_some() && group.has_actions() {
                run.push(&mut group);
            }
            bases.push((bytenr, base.filter(|_| !is_grave)));
        }
        bases
    }
}

impl Ledger for PackedLedger {
    fn apply(&mut self, event: &Event) -> Result<(), Box<Violation>> {
        let Some(change) = &RefChange::of(event) else { return Ok(()) };
        let place = self.blocks.find(change.bytenr);
        self.apply_at(place.as_ref(), change, event)
    }

    fn apply_all(&mut self, events: &[Event]) -> Judged {
        Judged::join([self.apply_places(events, 0..events.len())])
    }

    fn read(&mut self, range: Range<u64>, generation: u64, extents: &[DiskExtent]) {
        let in_range = extents.iter().filter(|disk| range.contains(&disk.bytenr));
        self.read_these(range.clone(), generation, &in_range.collect::<Vec<_>>());
    }

    fn remove(&mut self, range: Range<u64>, transid: u64) {
        let mut held = BTreeMap::new();
        self.blocks.visit(range.clone(), |bytenr, extent| {
            held.insert(bytenr, extent.clone());
        });
        self.live -= held.values().filter(|extent| extent.is_live()).count() as u64;
        if !held.is_empty() {
            self.blocks.replace_range(range.clone(), |_| None);
        }
        self.journal.remove(range, transid, held);
    }

    fn commit(&mut self, generation: u64) {
        for removal in self.journal.removals() {
            if removal.transid <= generation {
                self.runs.hide(removal.range.clone());
            }
        }
        let mut run = RunBuilder::new(self.limits.history_per_extent);
        let bases = self.remember(generation, &mut run);
        self.journal.take_removals(|removal| removal.transid <= generation);
        for (bytenr, base) in bases {
            self.rebuild(bytenr, base);
        }
        if !run.is_empty() {
            self.runs.push(run, self.journal.numbering().origins().clone());
        }
        self.journal.compact();
        self.fit();
    }

    fn undo_above(&mut self, transid: u64) {
        let numbered = (0_u32..).zip(self.journal.entries());
        let undone: Vec<(u64, u32)> = numbered
            .filter(|(_, entry)| entry.act.transid > transid)
            .map(|(number, entry)| (entry.bytenr, number))
            .collect();
        let removals = self.journal.removals().iter();
        let removals = removals.filter(|removal| removal.transid > transid);
        let mut bytenrs: Vec<u64> =
            removals.flat_map(|removal| removal.held.keys().copied()).collect();
        bytenrs.extend(undone.iter().map(|&(bytenr, _)| bytenr));
        bytenrs.sort_unstable();
        bytenrs.dedup();
        self.journal.sort();
        let base = |&bytenr: &u64| (bytenr, self.base(bytenr, &self.journal.happened(bytenr)));
        let bases: Vec<_> = bytenrs.iter().map(base).collect();
        self.journal.void(&undone);
        self.journal.take_removals(|removal| removal.transid > transid);
        for (bytenr, base) in bases {
            self.rebuild(bytenr, base);
        }
        self.journal.compact();
    }

    fn as_of(&self, bytenr: u64, generation: u64) -> Option<Extent> {
        let happened = self.journal.happened(bytenr);
        let mut extent = self.base(bytenr, &happened);
        for happened in happened {
            match happened {
                _ if self.journal.transid(happened) > generation => {}
                Happened::Change(number) => {
                    Extent::replay(&mut extent, &self.journal.entry(number).change());
                }
                Happened::Removal(_) => extent = None,
            }
        }
        extent.filter(Extent::is_live)
    }

    fn touched(&self, generation: u64) -> Vec<u64> {
        let entries = self.journal.entries().iter();
        let touched = entries.filter(|entry| entry.act.transid <= generation);
        let mut touched: Vec<u64> = touched.map(|entry| entry.bytenr).collect();
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    fn crossing(&self, range: &Range<u64>) -> Vec<ExtentDump> {
        crossing(range, |edge| self.dump(self.last_live_before(edge)?))
    }

    fn bytenrs_in(&self, range: Range<u64>) -> Vec<u64> {
        let mut all = Vec::new();
        self.visit_in(range.clone(), &mut |bytenr, _| all.push(bytenr));
        all.extend(self.journal.numbers_in(&range).into_iter().map(|(bytenr, _)| bytenr));
        for removal in self.journal.removals() {
            all.extend(removal.held.range(range.clone()).map(|(&bytenr, _)| bytenr));
        }
        all.sort_unstable();
        all
    }

    fn live(&self) -> u64 {
        self.live
    }

    fn visit(&self, each: &mut dyn FnMut(u64, &Extent)) {
        self.visit_in(.., each);
    }

    fn dump(&self, bytenr: u64) -> Option<ExtentDump> {
        let extent = self.blocks.get(bytenr).or_else(|| self.tombstone(bytenr))?;
        let recent = self.recent(bytenr);
        let mut dump = extent.dump(bytenr);
        if !recent.begins_anew && extent.actions > recent.actions.len() as u64 {
            dump.actions = self.runs.past(bytenr).map(|past| past.actions).unwrap_or_default();
        }
        let origins = self.journal.numbering().origins();
        dump.actions.extend(recent.actions.iter().filter_map(|act| act.record(origins)));
        let max = self.limits.history_per_extent;
        dump.actions_given_up = history::bound_and_count(&mut dump.actions, max, extent.actions);
        Some(dump)
    }

    fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        self.runs.tell(&mut kept);
        let in_use = (self.blocks.bytes() + self.journal.bytes()) as u64;
        kept.total_bytes = in_use + kept.history_bytes;
        kept.over_ceiling = in_use > self.limits.memory_bytes;
        kept
    }
}
