//! Histories of what is durable: what each commit brought is one run, sorted by bytenr, and
//! never changed. What happened to one extent is gathered from the runs, newest first, when a
//! report needs it; nothing is looked up to judge.
//!
//! An extent that was freed is only here: the action that freed it is its tombstone.
//!
//! Where memory is short, the oldest runs give up first what explains least: of each extent
//! all but the allocation, the drop to zero and the newest; then all but tombstones; then
//! these.

use std::{collections::VecDeque, ops::Range};

use super::{
    Kept,
    group::{Grave, Group},
    origins::{Numbering, Origins},
    run::{Run, RunBuilder, Stage},
};
use crate::verify::{ActionRecord, history};

/// What is known of the past of one extent.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The actions, oldest first.
    pub(super) actions: Vec<ActionRecord>,
    /// How many there were, kept or not.
    pub(super) done: u64,
    /// Set when it has no reference left.
    pub(super) grave: Option<Grave>,
}

/// All runs, oldest first.
#[derive(Debug, Default)]
pub(super) struct Runs {
    list: VecDeque<Run>,
    next_number: u64,
    bytes: usize,
    /// Ranges whose older runs are void: their block groups went.
    hidden: Vec<Hidden>,
    history_after: u64,
    tombstones_after: u64,
}

#[derive(Clone, Debug)]
struct Hidden {
    range: Range<u64>,
    before: u64,
}

impl Runs {
    /// Small runs, as quick commits bring them, are merged up to this size.
    const MERGED_MAX_BYTES: usize = 256 << 10;

    /// Says what has been given up.
    pub(super) const fn tell(&self, kept: &mut Kept) {
        kept.history_bytes = self.bytes as u64;
        kept.history_after = self.history_after;
        kept.tombstones_after = self.tombstones_after;
    }

    /// Takes what a commit brought.
    pub(super) fn push(&mut self, builder: RunBuilder, origins: Origins) {
        if builder.is_empty() {
            return;
        }
        let per_extent = builder.per_extent;
        let run = builder.finish(origins, self.next_number, 0, Stage::Whole);
        self.next_number += 1;
        self.bytes += run.bytes();
        self.list.push_back(run);
        while self.should_merge() {
            self.merge_newest(per_extent);
        }
    }

    fn should_merge(&self) -> bool {
        let mut newest = self.list.iter().rev().map(Run::bytes);
        let (Some(newer), Some(older)) = (newest.next(), newest.next()) else { return false };
        older < 2 * newer && older + newer <= Self::MERGED_MAX_BYTES
    }

    fn merge_newest(&mut self, per_extent: usize) {
        let (Some(newer), Some(older)) = (self.list.pop_back(), self.list.pop_back()) else {
            return;
        };
        self.bytes -= newer.bytes() + older.bytes();
        let merged = self.merge(&older, &newer, per_extent);
        self.bytes += merged.bytes();
        self.list.push_back(merged);
    }

    fn merge(&self, older: &Run, newer: &Run, per_extent: usize) -> Run {
        let mut numbering = Numbering::default();
        let mut builder = RunBuilder::new(per_extent);
        let mut old = self.visible(older).peekable();
        for mut group in self.visible(newer) {
            while let Some(mut before) = old.next_if(|old| old.bytenr < group.bytenr) {
                before.renumber(&mut numbering, &older.origins);
                builder.push(&mut before);
            }
            group.renumber(&mut numbering, &newer.origins);
            if let Some(mut before) = old.next_if(|old| old.bytenr == group.bytenr)
                && !group.begins_anew
            {
                before.renumber(&mut numbering, &older.origins);
                before.actions.append(&mut group.actions);
                group.actions = before.actions;
                group.begins_anew = before.begins_anew;
            }
            builder.push(&mut group);
        }
        for mut before in old {
            before.renumber(&mut numbering, &older.origins);
            builder.push(&mut before);
        }
        let newest = older.newest_transid.max(newer.newest_transid);
        let stage = older.stage.max(newer.stage);
        builder.finish(numbering.into_origins(), newer.number, newest, stage)
    }

    fn visible<'a>(&'a self, run: &'a Run) -> impl Iterator<Item = Group> + 'a {
        run.groups().filter(|group| !self.is_hidden(run.number, group.bytenr))
    }

    fn is_hidden(&self, number: u64, bytenr: u64) -> bool {
        self.hidden.iter().any(|hidden| number < hidden.before && hidden.range.contains(&bytenr))
    }

    /// Everything known of the range up to now is void.
    pub(super) fn hide(&mut self, range: Range<u64>) {
        if !self.list.is_empty() && !range.is_empty() {
            self.hidden.push(Hidden { range, before: self.next_number });
        }
    }

    /// Whether anything is known in a range.
    pub(super) fn has_any_in(&self, range: &Range<u64>) -> bool {
        self.list.iter().any(|run| run.has_any_in(range))
    }

    /// What is known of an extent, if anything is.
    pub(super) fn past(&self, bytenr: u64) -> Option<Past> {
        let mut past: Option<Past> = None;
        for run in self.list.iter().rev() {
            if self.is_hidden(run.number, bytenr) {
                break;
            }
            let Some(group) = run.find(bytenr) else { continue };
            let past = past.get_or_insert_with(|| Past {
                done: group.done,
                grave: group.grave,
                ..Past::default()
            });
            let records = group.actions.iter().filter_map(|act| act.record(&run.origins));
            past.actions.splice(0..0, records);
            if group.begins_anew {
                break;
            }
        }
        past
    }

    /// Gives up the oldest until no more than `limit_bytes` are held.
    pub(super) fn fit(&mut self, limit_bytes: usize, per_extent: usize) {
        while self.bytes > limit_bytes && !self.list.is_empty() {
            self.give_up_some(per_extent);
        }
        let oldest = self.list.front().map_or(self.next_number, |run| run.number);
        self.hidden.retain(|hidden| hidden.before > oldest);
    }

    fn give_up_some(&mut self, per_extent: usize) {
        let whole = self.list.iter().position(|run| run.stage == Stage::Whole);
        let essential = self.list.iter().position(|run| run.stage == Stage::Essential);
        match (whole, essential) {
            (Some(at), _) if self.list[at].has_surplus() => {
                self.thin(at, Stage::Essential, per_extent);
            }
            (Some(at), _) | (None, Some(at)) => self.thin(at, Stage::Tombstones, per_extent),
            (None, None) => self.give_up_oldest(),
        }
    }

    fn give_up_oldest(&mut self) {
        let Some(run) = self.list.pop_front() else { return };
        self.bytes -= run.bytes();
        self.history_after = self.history_after.max(run.newest_transid);
        self.tombstones_after = self.tombstones_after.max(run.newest_transid);
    }

    fn thin(&mut self, at: usize, stage: Stage, per_extent: usize) {
        let run = &self.list[at];
        let mut numbering = Numbering::default();
        let mut builder = RunBuilder::new(per_extent);
        for mut group in self.visible(run) {
            keep(&mut group, stage);
            if stage == Stage::Essential || group.begins_anew || group.grave.is_some() {
                group.renumber(&mut numbering, &run.origins);
                builder.push(&mut group);
            }
        }
        let thinned =
            builder.finish(numbering.into_origins(), run.number, run.newest_transid, stage);
        self.bytes = self.bytes - run.bytes() + thinned.bytes();
        self.history_after = self.history_after.max(run.newest_transid);
        self.list[at] = thinned;
    }
}

/// Gives up what a stage no longer has.
fn keep(group: &mut Group, stage: Stage) {
    match stage {
        Stage::Whole => {}
        // The drop to zero is the newest of its life.
        Stage::Essential => history::bound(&mut group.actions, 2),
        Stage::Tombstones if group.grave.is_some() => {
            let surplus = group.actions.len().saturating_sub(1);
            group.actions.drain(..surplus);
        }
        Stage::Tombstones => group.actions.clear(),
    }
}
