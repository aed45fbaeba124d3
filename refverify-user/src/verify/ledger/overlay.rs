//! What was touched since the last commit: extents in full form, and the changes that are
//! pending.
//!
//! Both live in arrays that are emptied at each commit and serve again, so that a change that
//! is in order allocates nothing.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    ops::{Range, RangeBounds},
};

use super::{
    Extent, RefChange,
    blocks::{first_of, is_beyond},
    origins::Numbering,
    runs::Act,
};
use crate::{btrfs::ExtentKind, feed::Event};

/// No slot, no change: the end of a chain.
const NONE: u32 = u32::MAX;

/// An extent that was looked at since the last commit.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) bytenr: u64,
    /// Whether `extent` is anything; else nothing is there, or a tombstone at rest.
    pub(super) is_known: bool,
    /// The extent now.
    pub(super) extent: Extent,
    /// Whether the extent is at rest too, as of the last durable superblock.
    pub(super) is_at_rest: bool,
    /// The highest transid among its changes.
    pub(super) newest_transid: u64,
    first: u32,
    last: u32,
}

impl Slot {
    /// The extent, when it is in use.
    pub(super) fn live(&self) -> Option<&Extent> {
        (self.is_known && self.extent.is_live()).then_some(&self.extent)
    }

    /// Whether changes of it are pending.
    pub(super) const fn is_changed(&self) -> bool {
        self.first != NONE
    }

    /// Makes it what `extent` is.
    pub(super) fn set(&mut self, extent: Option<Extent>) {
        self.is_known = extent.is_some();
        self.extent = extent.unwrap_or_default();
    }
}

/// A change whose transaction is not durable.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) act: Act,
    kind: ExtentKind,
    len_bytes: u64,
    /// Its extent's; `NONE` once it is no longer pending.
    slot: u32,
    next: u32,
}

impl Pending {
    /// The change, as it was judged.
    pub(super) const fn change(&self, bytenr: u64) -> RefChange {
        let Self { act, kind, len_bytes, .. } = *self;
        RefChange { action: act.action, kind, bytenr, len_bytes, key: act.key }
    }
}

/// A block group that went by a transaction that is not durable.
#[derive(Clone, Debug)]
pub(super) struct Removal {
    pub(super) range: Range<u64>,
    pub(super) transid: u64,
    /// How many changes came before it.
    pub(super) at: u32,
}

/// What happened to an extent since the last commit, in order.
pub(super) enum Happened<'a> {
    /// A change, with its number.
    Change(u32, &'a Pending),
    /// Its block group went.
    Removal(&'a Removal),
}

impl Happened<'_> {
    pub(super) const fn transid(&self) -> u64 {
        match self {
            Self::Change(_, pending) => pending.act.transid,
            Self::Removal(removal) => removal.transid,
        }
    }
}

/// The extents that were touched, and the changes that are pending.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    by_bytenr: HashMap<u64, u32, BuildHasherDefault<BytenrHasher>>,
    /// Those beyond `used` are spare: what they have allocated serves again.
    slots: Vec<Slot>,
    used: usize,
    pending: Vec<Pending>,
    removals: Vec<Removal>,
    numbering: Numbering,
    /// The slots that there were when they were last put in order, by bytenr.
    sorted: Vec<(u64, u32)>,
}

impl Overlay {
    /// How many slots may be out of order before they are put in order.
    const UNSORTED_MAX: usize = 256;

    /// The slot of an extent, when it has been looked at.
    pub(super) fn find(&self, bytenr: u64) -> Option<u32> {
        self.by_bytenr.get(&bytenr).copied()
    }

    pub(super) fn slot(&self, number: u32) -> &Slot {
        &self.slots[number as usize]
    }

    pub(super) fn slot_mut(&mut self, number: u32) -> &mut Slot {
        &mut self.slots[number as usize]
    }

    /// A spare slot, to be filled; [`Self::adopt`] takes it into use.
    pub(super) fn spare(&mut self) -> &mut Slot {
        if self.used == self.slots.len() {
            self.slots.push(Slot::default());
        }
        &mut self.slots[self.used]
    }

    /// Takes the spare slot into use for an extent that has none.
    pub(super) fn adopt(&mut self, bytenr: u64, is_known: bool) -> u32 {
        let number = self.used as u32;
        let slot = &mut self.slots[self.used];
        slot.bytenr = bytenr;
        slot.is_known = is_known;
        slot.is_at_rest = is_known;
        slot.newest_transid = 0;
        slot.first = NONE;
        slot.last = NONE;
        self.used += 1;
        self.by_bytenr.insert(bytenr, number);
        number
    }

    /// Makes a change that was judged to be in order, and keeps it as pending.
    pub(super) fn make(&mut self, number: u32, change: &RefChange, event: &Event) {
        let (task, stack) = self.numbering.of_event(event);
        let RefChange { action, kind, len_bytes, key, .. } = *change;
        let act = Act { action, key, transid: event.transid, time_ns: event.time_ns, task, stack };
        let slot = &mut self.slots[number as usize];
        slot.extent.make(change);
        slot.is_known = true;
        slot.newest_transid = slot.newest_transid.max(event.transid);
        link(slot, &mut self.pending, Pending { act, kind, len_bytes, slot: number, next: NONE });
    }

    /// Notes that a block group went.
    pub(super) fn remove(&mut self, range: Range<u64>, transid: u64) {
        for number in self.in_range(&range) {
            self.slots[number as usize].set(None);
        }
        let at = self.pending.len() as u32;
        self.removals.push(Removal { range, transid, at });
    }

    /// The block groups that went.
    pub(super) fn removals(&self) -> &[Removal] {
        &self.removals
    }

    /// Whether an extent's block group went, by a transaction up to `transid`.
    pub(super) fn is_removed(&self, bytenr: u64, transid: u64) -> bool {
        let mut up_to = self.removals.iter().filter(|removal| removal.transid <= transid);
        up_to.any(|removal| removal.range.contains(&bytenr))
    }

    /// Takes out the removals that are durable.
    pub(super) fn take_removals(
        &mut self,
        mut is_taken: impl FnMut(&Removal) -> bool,
    ) -> Vec<Removal> {
        let all = std::mem::take(&mut self.removals);
        let (taken, kept) = all.into_iter().partition(|removal| is_taken(removal));
        self.removals = kept;
        taken
    }

    /// Adds a removal that is a part of one that was taken out.
    pub(super) fn put_removal_back(&mut self, removal: Removal) {
        let at = self.removals.partition_point(|other| other.at <= removal.at);
        self.removals.insert(at, removal);
    }

    /// What happened to an extent, in order.
    pub(super) fn happened(&self, slot: &Slot) -> impl Iterator<Item = Happened<'_>> {
        let bytenr = slot.bytenr;
        let mut removals =
            self.removals.iter().filter(move |removal| removal.range.contains(&bytenr)).peekable();
        let mut next = slot.first;
        std::iter::from_fn(move || {
            if let Some(removal) = removals.next_if(|removal| removal.at <= next) {
                return Some(Happened::Removal(removal));
            }
            let number = next;
            let pending = self.pending.get(number as usize)?;
            next = pending.next;
            Some(Happened::Change(number, pending))
        })
        .filter(
            |happened| !matches!(happened, Happened::Change(_, pending) if pending.slot == NONE),
        )
    }

    /// All pending changes, with their extents and numbers.
    pub(super) fn all_pending(&self) -> impl Iterator<Item = (u32, &Slot, &Pending)> {
        let numbered = (0_u32..).zip(&self.pending);
        numbered
            .filter(|(_, pending)| pending.slot != NONE)
            .map(|(number, pending)| (number, &self.slots[pending.slot as usize], pending))
    }

    pub(super) fn pending_len(&self) -> usize {
        self.pending.len()
    }

    pub(super) const fn numbering(&self) -> &Numbering {
        &self.numbering
    }

    /// A change is no longer pending.
    pub(super) fn settle(&mut self, number: u32) {
        self.pending[number as usize].slot = NONE;
    }

    /// Drops the changes that are no longer pending, and the extents that have no others.
    pub(super) fn compact(&mut self) {
        let is_empty = self.pending.iter().all(|pending| pending.slot == NONE);
        let busy = self.used;
        if is_empty {
            self.pending.clear();
            self.by_bytenr.clear();
            self.used = 0;
            self.numbering.reset();
            for removal in &mut self.removals {
                removal.at = 0;
            }
        } else {
            self.compact_pending();
        }
        self.sorted.clear();
        self.shrink(busy);
    }

    fn compact_pending(&mut self) {
        for slot in &mut self.slots[..self.used] {
            slot.first = NONE;
            slot.last = NONE;
            slot.newest_transid = 0;
        }
        let old = std::mem::take(&mut self.pending);
        let mut kept_before = 0;
        let mut removals = self.removals.iter_mut().peekable();
        let mut kept = Vec::with_capacity(old.len());
        for (number, pending) in (0_u32..).zip(old) {
            while let Some(removal) = removals.next_if(|removal| removal.at <= number) {
                removal.at = kept_before;
            }
            if pending.slot != NONE {
                let slot = &mut self.slots[pending.slot as usize];
                slot.newest_transid = slot.newest_transid.max(pending.act.transid);
                link(slot, &mut kept, pending);
                kept_before += 1;
            }
        }
        for removal in removals {
            removal.at = kept_before;
        }
        self.pending = kept;
        self.drop_unchanged_slots();
    }

    fn drop_unchanged_slots(&mut self) {
        self.by_bytenr.clear();
        let mut kept = 0;
        for number in 0..self.used {
            if !self.slots[number].is_changed() {
                continue;
            }
            self.slots.swap(kept, number);
            let slot = &self.slots[kept];
            self.by_bytenr.insert(slot.bytenr, kept as u32);
            let mut next = slot.first;
            while let Some(pending) = self.pending.get_mut(next as usize) {
                pending.slot = kept as u32;
                next = pending.next;
            }
            kept += 1;
        }
        self.used = kept;
    }

    /// After a commit far smaller than what is held, most of that goes back.
    fn shrink(&mut self, busy: usize) {
        let enough = (busy * 2).max(4096);
        if self.slots.len() > enough * 2 {
            self.slots.truncate(enough);
            self.slots.shrink_to_fit();
            self.by_bytenr.shrink_to(enough);
            self.pending.shrink_to(enough);
            self.sorted = Vec::new();
        }
    }

    /// Puts the slots in order, where too many are not.
    fn sort(&mut self) {
        if self.used - self.sorted.len() > Self::UNSORTED_MAX {
            let from = self.sorted.len();
            let unsorted = (from as u32..).zip(&self.slots[from..self.used]);
            self.sorted.extend(unsorted.map(|(number, slot)| (slot.bytenr, number)));
            self.sorted.sort_unstable();
        }
    }

    /// All slots in order of bytenr.
    pub(super) fn all(&mut self) -> Vec<u32> {
        self.in_range(&..)
    }

    /// The slots of a range, in order of bytenr.
    pub(super) fn in_range(&mut self, range: &impl RangeBounds<u64>) -> Vec<u32> {
        self.sort();
        self.in_range_now(range)
    }

    /// As [`Self::in_range`], without putting them in order first.
    pub(super) fn in_range_now(&self, range: &impl RangeBounds<u64>) -> Vec<u32> {
        let begin = self.sorted.partition_point(|&(bytenr, _)| bytenr < first_of(range));
        let sorted = self.sorted[begin..].iter();
        let sorted = sorted.take_while(|&&(bytenr, _)| !is_beyond(bytenr, range));
        let from = self.sorted.len();
        let unsorted = (from as u32..).zip(&self.slots[from..self.used]);
        let unsorted = unsorted.map(|(number, slot)| (slot.bytenr, number));
        let unsorted = unsorted.filter(|(bytenr, _)| range.contains(bytenr));
        let mut found: Vec<(u64, u32)> = sorted.copied().chain(unsorted).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, number)| number).collect()
    }

    /// The last extent in use before `edge` that has a slot.
    pub(super) fn last_live_before(&self, edge: u64) -> Option<&Slot> {
        let end = self.sorted.partition_point(|&(bytenr, _)| bytenr < edge);
        let sorted = self.sorted[..end].iter().rev().map(|&(_, number)| self.slot(number));
        let unsorted = self.slots[self.sorted.len()..self.used].iter();
        let unsorted = unsorted.filter(|slot| slot.bytenr < edge && slot.live().is_some());
        let last_sorted = sorted.into_iter().find(|slot| slot.live().is_some());
        unsorted.chain(last_sorted).max_by_key(|slot| slot.bytenr)
    }

    /// Bytes allocated, about.
    pub(super) fn bytes(&self) -> usize {
        let of_slot = size_of::<Slot>() + 2 * size_of::<(crate::btrfs::RefKey, u64)>();
        self.slots.capacity() * of_slot
            + self.by_bytenr.capacity() * 2 * size_of::<(u64, u32)>()
            + self.pending.capacity() * size_of::<Pending>()
            + self.sorted.capacity() * size_of::<(u64, u32)>()
            + self.numbering.origins().bytes()
    }
}

fn link(slot: &mut Slot, pending: &mut Vec<Pending>, mut change: Pending) {
    let number = pending.len() as u32;
    match pending.get_mut(slot.last as usize) {
        Some(last) => last.next = number,
        None => slot.first = number,
    }
    slot.last = number;
    change.next = NONE;
    pending.push(change);
}

/// Bytenrs are multiples of 4096 that lie near each other: one multiplication spreads them.
/// They come from the kernel, not from someone who would want them to collide.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BytenrHasher(u64);

impl Hasher for BytenrHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}
