//! The packed ledger: extents at rest in [`Blocks`], what was touched since the last commit in
//! the [`Overlay`], and the histories of what is durable in [`Runs`].
//!
//! Blocks hold every extent as of the last durable superblock, and change only when there is
//! a newer one, or when a range is read from disk.

use std::ops::{Range, RangeBounds};

use super::{
    Extent, Kept, Ledger, Limits, RefChange, Violation,
    blocks::Blocks,
    crossing,
    origins::Numbering,
    overlay::{Happened, Overlay, Removal, Slot},
    runs::{Act, Grave, Group, RunBuilder, Runs},
};
use crate::{
    btrfs::{Action, DiskExtent},
    feed::Event,
    verify::{ExtentDump, history, rules},
};

/// All that is known of one file system's extents, in little room.
#[derive(Default)]
pub struct PackedLedger {
    limits: Limits,
    blocks: Blocks,
    overlay: Overlay,
    runs: Runs,
    live: u64,
}

/// What a slot's changes come to when those up to a generation are durable.
struct Settled {
    base: Option<Extent>,
    group: Group,
}

impl PackedLedger {
    /// A ledger that knows nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The slot of an extent; one is made where the extent is at rest, or is about to be
    /// allocated.
    fn slot_for(&mut self, change: &RefChange) -> Option<u32> {
        let bytenr = change.bytenr;
        if let Some(number) = self.overlay.find(bytenr) {
            return Some(number);
        }
        let is_removed = self.overlay.is_removed(bytenr, u64::MAX);
        let spare = self.overlay.spare();
        let is_at_rest = !is_removed && self.blocks.get(bytenr, &mut spare.extent);
        if is_at_rest || change.action == Action::AddExtent {
            Some(self.overlay.adopt(bytenr, is_at_rest))
        } else {
            None
        }
    }

    /// The tombstone of an extent of which nothing else is known.
    fn tombstone(&self, bytenr: u64) -> Option<Extent> {
        if self.overlay.is_removed(bytenr, u64::MAX) {
            return None;
        }
        let past = self.runs.past(bytenr)?;
        past.grave.map(|grave| grave.extent(past.done))
    }

    #[cold]
    fn violation(&self, change: &RefChange, slot: Option<u32>) -> Option<Box<Violation>> {
        let slot = slot.map(|number| self.overlay.slot(number));
        let view = match slot.filter(|slot| slot.is_known) {
            Some(slot) => Some(slot.extent.view(&change.key)),
            None => self.tombstone(change.bytenr).map(|extent| extent.view(&change.key)),
        };
        let kind = rules::judge(view, change.action, &change.key).err()?;
        Some(Box::new(Violation { kind, extent: self.dump(change.bytenr) }))
    }

    fn read_base(&self, bytenr: u64) -> Option<Extent> {
        let mut extent = Extent::default();
        self.blocks.get(bytenr, &mut extent).then_some(extent)
    }

    /// Shows everything known in a range, as it is now, whether in use or not. The slots are
    /// those of the range, in order.
    fn visit_range(
        &self,
        range: impl RangeBounds<u64>,
        slots: &[u32],
        mut each: impl FnMut(u64, &Extent),
    ) {
        let mut slots = slots.iter().map(|&number| self.overlay.slot(number)).peekable();
        self.blocks.visit(range, |bytenr, extent| {
            while let Some(slot) = slots.next_if(|slot| slot.bytenr < bytenr) {
                show(slot, &mut each);
            }
            if let Some(slot) = slots.next_if(|slot| slot.bytenr == bytenr) {
                show(slot, &mut each);
            } else if !self.overlay.is_removed(bytenr, u64::MAX) {
                each(bytenr, extent);
            }
        });
        for slot in slots {
            show(slot, &mut each);
        }
    }

    fn live_in(&self, range: impl RangeBounds<u64>, slots: &[u32]) -> u64 {
        let mut live = 0;
        self.visit_range(range, slots, |_, extent| live += u64::from(extent.is_live()));
        live
    }

    /// What a slot's changes up to `generation` come to; they are no longer pending.
    fn settle(&mut self, number: u32, generation: u64) -> Settled {
        let slot = self.overlay.slot(number);
        let bytenr = slot.bytenr;
        let mut settled = Settled { base: None, group: Group { bytenr, ..Group::default() } };
        let mut durable = Vec::new();
        if slot.newest_transid <= generation && self.overlay.removals().is_empty() {
            // All of it is durable: its base is what it is now.
            settled.base = slot.is_known.then(|| slot.extent.clone());
            for happened in self.overlay.happened(slot) {
                if let Happened::Change(number, pending) = happened {
                    settled.group.remember(&pending.act);
                    durable.push(number);
                }
            }
        } else {
            settled.base = self.read_base(bytenr);
            for happened in self.overlay.happened(slot) {
                if happened.transid() > generation {
                    continue;
                }
                match happened {
                    Happened::Change(number, pending) => {
                        if Extent::replay(&mut settled.base, &pending.change(bytenr)) {
                            settled.group.remember(&pending.act);
                        }
                        durable.push(number);
                    }
                    Happened::Removal(_) => {
                        settled.base = None;
                        settled.group.begin_anew();
                    }
                }
            }
        }
        for number in durable {
            self.overlay.settle(number);
        }
        settled.group.done = settled.base.as_ref().map_or(0, |base| base.actions);
        settled
    }

    /// A slot's state from what is still pending; changes that rested on what is gone go.
    /// How many are in use is the caller's to keep.
    fn replay(&mut self, number: u32) {
        let slot = self.overlay.slot(number);
        let bytenr = slot.bytenr;
        let mut extent = self.read_base(bytenr);
        let is_at_rest = extent.is_some();
        let mut void = Vec::new();
        for happened in self.overlay.happened(slot) {
            match happened {
                Happened::Change(number, pending) => {
                    if !Extent::replay(&mut extent, &pending.change(bytenr)) {
                        void.push(number);
                    }
                }
                Happened::Removal(_) => extent = None,
            }
        }
        for number in void {
            self.overlay.settle(number);
        }
        let slot = self.overlay.slot_mut(number);
        slot.is_at_rest = is_at_rest;
        slot.set(extent);
    }

    fn replay_and_count(&mut self, number: u32) {
        let was_live = self.overlay.slot(number).live().is_some();
        self.replay(number);
        let is_live = self.overlay.slot(number).live().is_some();
        self.live = self.live + u64::from(is_live) - u64::from(was_live);
    }

    /// Writes a base to rest. An extent without references rests as a tombstone.
    fn rest(&mut self, run: &mut RunBuilder, mut settled: Settled, is_at_rest: bool) {
        let bytenr = settled.group.bytenr;
        let has_changed = settled.group.has_happened();
        match &settled.base {
            Some(base) if base.is_live() => self.blocks.put(bytenr, base),
            Some(base) if has_changed => {
                settled.group.grave = Some(Grave::of(base));
                if is_at_rest {
                    self.blocks.delete(bytenr);
                }
            }
            // The disk has it without references, and nothing happened to it.
            Some(_) => {}
            None if is_at_rest => self.blocks.delete(bytenr),
            None => {}
        }
        if has_changed && settled.base.is_some() {
            run.push(&mut settled.group);
        }
    }

    /// Keeps the promise of the ceiling.
    fn fit(&mut self) {
        let in_use = self.blocks.bytes() + self.overlay.bytes();
        let ceiling = usize::try_from(self.limits.memory_bytes).unwrap_or(usize::MAX);
        let history = usize::try_from(self.limits.history_bytes).unwrap_or(usize::MAX);
        let limit = history.min(ceiling.saturating_sub(in_use));
        self.runs.fit(limit, self.limits.history_per_extent);
    }

    /// Undoes the changes that are to be undone. Returns whether there were any.
    fn undo(&mut self, is_undone: impl Fn(&Slot, &Act) -> bool) -> bool {
        let undone: Vec<(u32, u64)> = self
            .overlay
            .all_pending()
            .filter(|(_, slot, pending)| is_undone(slot, &pending.act))
            .map(|(number, slot, _)| (number, slot.bytenr))
            .collect();
        for &(number, _) in &undone {
            self.overlay.settle(number);
        }
        let mut bytenrs: Vec<u64> = undone.iter().map(|&(_, bytenr)| bytenr).collect();
        bytenrs.sort_unstable();
        bytenrs.dedup();
        for bytenr in bytenrs {
            if let Some(slot) = self.overlay.find(bytenr) {
                self.replay_and_count(slot);
            }
        }
        self.overlay.compact();
        !undone.is_empty()
    }

    /// The slot's actions since its last allocation, and whether that is among them.
    fn slot_actions(&self, slot: &Slot) -> Group {
        let mut group = Group::default();
        for happened in self.overlay.happened(slot) {
            match happened {
                Happened::Change(_, pending) => group.remember(&pending.act),
                Happened::Removal(_) => group.begin_anew(),
            }
        }
        group
    }

    fn dump_extent(&self, bytenr: u64, extent: &Extent, recent: &Group) -> ExtentDump {
        let mut dump = extent.dump(bytenr);
        if !recent.begins_anew && extent.actions > recent.actions.len() as u64 {
            dump.actions = self.runs.past(bytenr).map(|past| past.actions).unwrap_or_default();
        }
        let origins = self.overlay.numbering().origins();
        dump.actions.extend(recent.actions.iter().filter_map(|act| act.record(origins)));
        let max = self.limits.history_per_extent;
        dump.actions_given_up = history::bound_and_count(&mut dump.actions, max, extent.actions);
        dump
    }

    fn last_live_before(&self, edge: u64) -> Option<ExtentDump> {
        let at_rest = self.blocks.last_before(edge, |bytenr, extent| {
            extent.is_live()
                && self.overlay.find(bytenr).is_none()
                && !self.overlay.is_removed(bytenr, u64::MAX)
        });
        let touched = self.overlay.last_live_before(edge).map(|slot| slot.bytenr);
        self.dump(at_rest.map(|(bytenr, _)| bytenr).max(touched)?)
    }
}

impl Group {
    fn remember(&mut self, act: &Act) {
        if act.action == Action::AddExtent {
            self.begin_anew();
        }
        self.actions.push(*act);
    }

    fn begin_anew(&mut self) {
        self.begins_anew = true;
        self.actions.clear();
    }

    fn has_happened(&self) -> bool {
        self.begins_anew || !self.actions.is_empty()
    }
}

impl Ledger for PackedLedger {
    fn apply(&mut self, change: &RefChange, event: &Event) -> Result<(), Box<Violation>> {
        let slot = self.slot_for(change);
        let known = slot.map(|number| self.overlay.slot(number)).filter(|slot| slot.is_known);
        let view = known.map(|slot| slot.extent.view(&change.key));
        let was_live = known.is_some_and(|slot| slot.extent.is_live());
        let verdict = rules::judge(view, change.action, &change.key);
        let (Some(number), Ok(())) = (slot, verdict) else {
            return self.violation(change, slot).map_or(Ok(()), Err);
        };
        self.overlay.make(number, change, event);
        let is_live = self.overlay.slot(number).extent.is_live();
        self.live = self.live + u64::from(is_live) - u64::from(was_live);
        Ok(())
    }

    fn read(&mut self, range: Range<u64>, generation: u64, extents: &[DiskExtent]) {
        let slots = self.overlay.in_range(&range);
        let is_new = slots.is_empty()
            && self.overlay.removals().is_empty()
            && self.blocks.is_empty_in(&range);
        if is_new {
            self.live += self.replace(range, generation, extents, &[]);
            return;
        }
        let beside = self.live - self.live_in(range.clone(), &slots);
        let known = self.settle_range(&range, &slots, generation, extents);
        self.replace(range.clone(), generation, extents, &known);
        for &number in &slots {
            self.replay(number);
        }
        self.overlay.compact();
        let slots = self.overlay.in_range(&range);
        self.live = beside + self.live_in(range, &slots);
    }

    fn remove(&mut self, range: Range<u64>, transid: u64) {
        let slots = self.overlay.in_range(&range);
        self.live -= self.live_in(range.clone(), &slots);
        self.overlay.remove(range, transid);
    }

    fn commit(&mut self, generation: u64) {
        let removals = self.overlay.removals().to_vec();
        for removal in removals.iter().filter(|removal| removal.transid <= generation) {
            self.blocks.replace_range(removal.range.clone(), |_| None);
            self.runs.hide(removal.range.clone());
        }
        let mut run = RunBuilder::new(self.limits.history_per_extent);
        run.reserve(self.overlay.pending_len());
        let mut later = Vec::new();
        for number in self.overlay.all() {
            let Slot { newest_transid, is_at_rest, .. } = *self.overlay.slot(number);
            if !self.overlay.slot(number).is_changed() {
                continue;
            }
            let settled = self.settle(number, generation);
            self.rest(&mut run, settled, is_at_rest);
            if newest_transid > generation || !removals.is_empty() {
                later.push(number);
            }
        }
        self.overlay.take_removals(|removal| removal.transid <= generation);
        for number in later {
            self.replay_and_count(number);
        }
        if !run.is_empty() {
            self.runs.push(run, self.overlay.numbering().origins().clone());
        }
        self.overlay.compact();
        self.fit();
    }

    fn undo_above(&mut self, transid: u64) {
        let removals = self.overlay.take_removals(|removal| removal.transid > transid);
        self.undo(|_, act| act.transid > transid);
        if !removals.is_empty() {
            for slot in self.overlay.all() {
                self.replay(slot);
            }
            self.overlay.compact();
            let slots = self.overlay.all();
            self.live = self.live_in(.., &slots);
        }
    }

    fn undo_one(&mut self, bytenr: u64, tid: u32, time_ns: u64) -> bool {
        let tasks = self.overlay.numbering().origins().tasks_of_thread(tid);
        self.undo(|slot, act| {
            slot.bytenr == bytenr && act.time_ns == time_ns && tasks.contains(&act.task)
        })
    }

    fn as_of(&self, bytenr: u64, generation: u64) -> Option<Extent> {
        let mut extent = self.read_base(bytenr);
        match self.overlay.find(bytenr) {
            Some(number) => {
                for happened in self.overlay.happened(self.overlay.slot(number)) {
                    match happened {
                        _ if happened.transid() > generation => {}
                        Happened::Change(_, pending) => {
                            Extent::replay(&mut extent, &pending.change(bytenr));
                        }
                        Happened::Removal(_) => extent = None,
                    }
                }
            }
            None if self.overlay.is_removed(bytenr, generation) => extent = None,
            None => {}
        }
        extent.filter(Extent::is_live)
    }

    fn touched(&self, generation: u64) -> Vec<u64> {
        let pending = self.overlay.all_pending();
        let up_to = pending.filter(|(_, _, pending)| pending.act.transid <= generation);
        let mut touched: Vec<u64> = up_to.map(|(_, slot, _)| slot.bytenr).collect();
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    fn crossing(&self, range: &Range<u64>) -> Vec<ExtentDump> {
        crossing(range, |edge| self.last_live_before(edge))
    }

    fn live(&self) -> u64 {
        self.live
    }

    fn visit(&self, each: &mut dyn FnMut(u64, &Extent)) {
        let slots = self.overlay.in_range_now(&..);
        self.visit_range(.., &slots, |bytenr, extent| {
            if extent.is_live() {
                each(bytenr, extent);
            }
        });
    }

    fn dump(&self, bytenr: u64) -> Option<ExtentDump> {
        let slot = self.overlay.find(bytenr).map(|number| self.overlay.slot(number));
        if let Some(slot) = slot.filter(|slot| slot.is_known) {
            return Some(self.dump_extent(bytenr, &slot.extent, &self.slot_actions(slot)));
        }
        let extent = match slot {
            None if !self.overlay.is_removed(bytenr, u64::MAX) => self.read_base(bytenr),
            _ => None,
        };
        let extent = extent.or_else(|| self.tombstone(bytenr))?;
        Some(self.dump_extent(bytenr, &extent, &Group::default()))
    }

    fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        self.runs.tell(&mut kept);
        let in_use = (self.blocks.bytes() + self.overlay.bytes()) as u64;
        kept.total_bytes = in_use + kept.history_bytes;
        kept.over_ceiling = in_use > self.limits.memory_bytes;
        kept
    }
}

impl PackedLedger {
    /// Before a range is replaced by what the disk has: everything durable in it becomes
    /// history. Returns how much was done to each extent known there, sorted by bytenr.
    fn settle_range(
        &mut self,
        range: &Range<u64>,
        slots: &[u32],
        generation: u64,
        disk: &[DiskExtent],
    ) -> Vec<(u64, u64)> {
        let mut known = self.settle_each(range, slots, generation);
        for removal in self.overlay.take_removals(|removal| removal.transid <= generation) {
            self.narrow(removal, range);
        }
        let mut numbering = Numbering::default();
        let mut run = RunBuilder::new(self.limits.history_per_extent);
        let is_on_disk = |bytenr| disk.binary_search_by_key(&bytenr, |disk| disk.bytenr).is_ok();
        for settled in &mut known {
            let Some(base) = &settled.base else { continue };
            let is_gone = !is_on_disk(settled.group.bytenr);
            settled.group.grave = is_gone.then(|| Grave::of(base));
            if settled.group.has_happened() || is_gone && base.actions > 0 {
                let origins = self.overlay.numbering().origins();
                numbering.renumber(&mut settled.group.actions, origins);
                run.push(&mut settled.group);
            }
        }
        self.runs.push(run, numbering.into_origins());
        let done = |settled: Settled| Some((settled.group.bytenr, settled.base?.actions));
        known.into_iter().filter_map(done).collect()
    }

    /// What each extent of a range comes to as of `generation`, in order.
    fn settle_each(&mut self, range: &Range<u64>, slots: &[u32], generation: u64) -> Vec<Settled> {
        let mut known = Vec::new();
        self.blocks.visit(range.clone(), |bytenr, extent| {
            if self.overlay.find(bytenr).is_none() && !self.overlay.is_removed(bytenr, generation) {
                let group = Group { bytenr, done: extent.actions, ..Group::default() };
                known.push(Settled { base: Some(extent.clone()), group });
            }
        });
        for &number in slots {
            known.push(self.settle(number, generation));
        }
        known.sort_by_key(|settled| settled.group.bytenr);
        known
    }

    /// A removal is in what was read of a range: it is no longer pending there.
    fn narrow(&mut self, removal: Removal, range: &Range<u64>) {
        let start = removal.range.start.max(range.start);
        let end = removal.range.end.min(range.end);
        if start >= end {
            self.overlay.put_removal_back(removal);
            return;
        }
        self.runs.hide(start..end);
        for rest in [removal.range.start..start, end..removal.range.end] {
            if !rest.is_empty() {
                self.overlay.put_removal_back(Removal { range: rest, ..removal });
            }
        }
    }

    /// Puts what the disk has in a range at rest. Returns how much of it is in use.
    fn replace(
        &mut self,
        range: Range<u64>,
        generation: u64,
        extents: &[DiskExtent],
        known: &[(u64, u64)],
    ) -> u64 {
        let mut extents = extents.iter().filter(|disk| range.contains(&disk.bytenr));
        let mut known = known.iter().copied().peekable();
        let runs = &self.runs;
        let mut live = 0;
        let has_past = runs.has_any_in(&range);
        self.blocks.replace_range(range.clone(), |out| {
            let disk = extents.next()?;
            while known.next_if(|&(bytenr, _)| bytenr < disk.bytenr).is_some() {}
            let actions = match known.next_if(|&(bytenr, _)| bytenr == disk.bytenr) {
                Some((_, actions)) => actions,
                None if has_past => runs.past(disk.bytenr).map_or(0, |past| past.done),
                None => 0,
            };
            out.set_from_disk(disk, generation, actions);
            live += u64::from(out.is_live());
            Some(disk.bytenr)
        });
        live
    }
}

fn show(slot: &Slot, each: &mut impl FnMut(u64, &Extent)) {
    if slot.is_known {
        each(slot.bytenr, &slot.extent);
    }
}
