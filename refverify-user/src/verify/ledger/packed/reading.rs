//! What was read from disk takes the place of what was known of its range.

use std::ops::Range;

use super::{PackedLedger, Settled};
use crate::{
    btrfs::DiskExtent,
    verify::ledger::{group::Grave, origins::Numbering, run::RunBuilder},
};

impl PackedLedger {
    /// As [`Ledger::read`](super::super::Ledger::read), where all the extents are in the range.
    pub(in super::super) fn read_these(
        &mut self,
        range: Range<u64>,
        generation: u64,
        extents: &[&DiskExtent],
    ) {
        self.journal.sort();
        let changes = self.journal.numbers_in(&range);
        let is_new = changes.is_empty()
            && self.journal.removals().is_empty()
            && self.blocks.is_empty_in(&range);
        if is_new {
            self.live += self.replace(range, generation, extents, &[]);
            return;
        }
        self.live -= self.live_in(range.clone());
        let known = self.settle_range(&range, changes, generation, extents);
        self.live += self.replace(range.clone(), generation, extents, &known);
        self.rebuild_range(&range);
        self.journal.compact();
    }

    /// Before a range is replaced by what the disk has: everything durable in it becomes
    /// history. Returns how much was done to each extent known there, sorted by bytenr.
    fn settle_range(
        &mut self,
        range: &Range<u64>,
        changes: Vec<(u64, u32)>,
        generation: u64,
        disk: &[&DiskExtent],
    ) -> Vec<(u64, u64)> {
        let mut bytenrs: Vec<u64> = changes.into_iter().map(|(bytenr, _)| bytenr).collect();
        self.blocks.visit(range.clone(), |bytenr, _| bytenrs.push(bytenr));
        for removal in self.journal.removals() {
            bytenrs.extend(removal.held.range(range.clone()).map(|(&bytenr, _)| bytenr));
        }
        bytenrs.sort_unstable();
        bytenrs.dedup();
        let known: Vec<Settled> =
            bytenrs.into_iter().map(|bytenr| self.settle(bytenr, generation)).collect();
        for gone in self.journal.narrow_removals(range, generation) {
            self.runs.hide(gone);
        }
        self.remember_settled(known, disk)
    }

    fn remember_settled(&mut self, known: Vec<Settled>, disk: &[&DiskExtent]) -> Vec<(u64, u64)> {
        let mut numbering = Numbering::default();
        let mut run = RunBuilder::new(self.limits.history_per_extent);
        let mut done = Vec::with_capacity(known.len());
        for Settled { base, mut group } in known {
            let Some(base) = base else { continue };
            let is_gone = disk.binary_search_by_key(&group.bytenr, |disk| disk.bytenr).is_err();
            group.grave = is_gone.then(|| Grave::of(&base));
            if group.has_actions() || is_gone && base.actions > 0 {
                group.renumber(&mut numbering, self.journal.numbering().origins());
                run.push(&mut group);
            }
            done.push((group.bytenr, base.actions));
        }
        self.runs.push(run, numbering.into_origins());
        done
    }

    /// Puts what the disk has in a range in. Returns how much of it is in use.
    fn replace(
        &mut self,
        range: Range<u64>,
        generation: u64,
        extents: &[&DiskExtent],
        known: &[(u64, u64)],
    ) -> u64 {
        let mut extents = extents.iter();
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

    /// Makes what is still pending in a range anew on what was read of it.
    fn rebuild_range(&mut self, range: &Range<u64>) {
        self.journal.forget_held_in(range);
        let mut bytenrs: Vec<u64> =
            self.journal.numbers_in(range).into_iter().map(|(bytenr, _)| bytenr).collect();
        for removal in self.journal.removals() {
            let removed = Range {
                start: removal.range.start.max(range.start),
                end: removal.range.end.min(range.end),
            };
            self.blocks.visit(removed, |bytenr, _| bytenrs.push(bytenr));
        }
        bytenrs.sort_unstable();
        bytenrs.dedup();
        for bytenr in bytenrs {
            let base = self.blocks.get(bytenr);
            self.rebuild(bytenr, base);
        }
    }
}
