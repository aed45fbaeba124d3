//! The model: which extents should be in the extent tree, and which references each should
//! have.
//!
//! This is the plain ledger, maps of maps, meant to be obviously right.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use super::{ActionRecord, ExtentDump, FindingKind, history::History, rules};
use crate::{
    btrfs::{Action, DiskExtent, ExtentKind, RefKey},
    feed::Event,
};

/// One extent.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// Its length.
    pub(crate) len_bytes: u64,
    /// Data or tree block.
    pub(crate) kind: ExtentKind,
    /// How many references it has. 0 is a tombstone: who freed it is what a finding is read
    /// for.
    pub(crate) total_refs: u64,
    /// Its references and how often each is held. A count that comes down to 0 goes; from
    /// disk a 0 may come.
    pub(crate) refs: BTreeMap<RefKey, u64>,
    from_disk: Option<u64>,
    history: History,
}

/// All extents of one file system.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    extents: BTreeMap<u64, Extent>,
    /// Extents in use, kept so that asking costs nothing.
    live: u64,
    /// See [`Ledger::entries`].
    entries: u64,
    /// Bytenrs whose extent reached 0 references, oldest first; the bound on tombstones.
    tombstones: VecDeque<u64>,
}

/// One change of a reference, as the ledger takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RefChange {
    /// Add or drop.
    pub(crate) action: Action,
    /// Data or tree block.
    pub(crate) kind: ExtentKind,
    /// The extent.
    pub(crate) bytenr: u64,
    /// Its length.
    pub(crate) len_bytes: u64,
    /// The reference.
    pub(crate) key: RefKey,
}

/// A rule was broken.
#[derive(Debug)]
pub(crate) struct Violation {
    /// Which.
    pub(crate) kind: FindingKind,
    /// The extent before the change.
    pub(crate) extent: Option<ExtentDump>,
}

impl Ledger {
    /// How many tombstones are kept. The oldest go first.
    const TOMBSTONES_MAX: usize = 1 << 20;

    /// Judges a change and, when it is in order, makes it. What is out of order changes
    /// nothing: the caller distrusts the extent and reads it afresh.
    pub(crate) fn apply(
        &mut self,
        change: &RefChange,
        event: &Event,
    ) -> Result<(), Box<Violation>> {
        let extent = self.extents.get(&change.bytenr);
        if let Err(kind) = rules::judge(extent, change.action, &change.key) {
            let extent = extent.map(|extent| extent.dump(change.bytenr));
            return Err(Box::new(Violation { kind, extent }));
        }
        self.make(change, ActionRecord::of(change, event));
        Ok(())
    }

    fn make(&mut self, change: &RefChange, record: ActionRecord) {
        match change.action {
            Action::AddExtent => self.allocate(change, record),
            Action::AddRef => {
                self.with_extent(change.bytenr, |extent| extent.add(change.key, record));
            }
            Action::DropRef => {
                self.with_extent(change.bytenr, |extent| extent.drop_one(change.key, record));
                self.bury_if_unreferenced(change.bytenr);
            }
        }
    }

    fn allocate(&mut self, change: &RefChange, record: ActionRecord) {
        let extent = Extent {
            len_bytes: change.len_bytes,
            kind: change.kind,
            total_refs: 1,
            refs: BTreeMap::from([(change.key, 1)]),
            from_disk: None,
            history: History::starting_with(record),
        };
        self.insert(change.bytenr, extent);
    }

    fn insert(&mut self, bytenr: u64, extent: Extent) {
        self.live += u64::from(extent.total_refs != 0);
        self.entries += extent.entries();
        if let Some(old) = self.extents.insert(bytenr, extent) {
            self.uncount(&old);
        }
    }

    fn take_out(&mut self, bytenr: u64) {
        if let Some(extent) = self.extents.remove(&bytenr) {
            self.uncount(&extent);
        }
    }

    fn uncount(&mut self, gone: &Extent) {
        self.live -= u64::from(gone.total_refs != 0);
        self.entries -= gone.entries();
    }

    fn with_extent(&mut self, bytenr: u64, change: impl FnOnce(&mut Extent)) {
        if let Some(extent) = self.extents.get_mut(&bytenr) {
            self.entries -= extent.entries();
            change(extent);
            self.entries += extent.entries();
        }
    }

    fn bury_if_unreferenced(&mut self, bytenr: u64) {
        if self.extents.get(&bytenr).is_none_or(|extent| extent.total_refs != 0) {
            return;
        }
        self.live -= 1;
        self.tombstones.push_back(bytenr);
        if self.tombstones.len() > Self::TOMBSTONES_MAX {
            self.give_up_oldest_tombstone();
        }
    }

    /// The bytenr may have been allocated again since: then there is no tombstone to give up.
    fn give_up_oldest_tombstone(&mut self) {
        let Some(bytenr) = self.tombstones.pop_front() else { return };
        if self.extents.get(&bytenr).is_some_and(|extent| extent.total_refs == 0) {
            self.take_out(bytenr);
        }
    }

    /// Takes an extent as the disk has it. What is known of its history stays: it explains
    /// the finding for which the extent was read again.
    pub(crate) fn take_from_disk(&mut self, disk: &DiskExtent, generation: u64) {
        let mut refs = BTreeMap::new();
        for &(key, count) in &disk.refs {
            *refs.entry(key).or_insert(0) += u64::from(count);
        }
        let history =
            self.extents.get(&disk.bytenr).map(|known| known.history.clone()).unwrap_or_default();
        let extent = Extent {
            len_bytes: disk.len_bytes,
            kind: disk.kind,
            total_refs: disk.total_refs,
            refs,
            from_disk: Some(generation),
            history,
        };
        self.insert(disk.bytenr, extent);
    }

    /// Forgets that anything in the range is in use, before the disk says what is. The
    /// histories stay, as tombstones.
    pub(crate) fn clear(&mut self, range: Range<u64>) {
        for (&bytenr, extent) in self.extents.range_mut(range) {
            if extent.total_refs != 0 {
                self.live -= 1;
                self.tombstones.push_back(bytenr);
            }
            extent.total_refs = 0;
            self.entries -= extent.refs.len() as u64;
            extent.refs.clear();
        }
        while self.tombstones.len() > Self::TOMBSTONES_MAX {
            self.give_up_oldest_tombstone();
        }
    }

    /// Removes everything that begins in the range; a block group has gone.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        let gone: Vec<u64> = self.extents.range(range).map(|(&bytenr, _)| bytenr).collect();
        for bytenr in gone {
            self.take_out(bytenr);
        }
    }

    /// The extents in use that lie across an edge of the range.
    pub(crate) fn crossing(&self, range: &Range<u64>) -> Vec<ExtentDump> {
        [range.start, range.end].into_iter().filter_map(|edge| self.crossing_at(edge)).collect()
    }

    fn crossing_at(&self, edge: u64) -> Option<ExtentDump> {
        let (&bytenr, extent) =
            self.extents.range(..edge).rev().find(|(_, extent)| extent.total_refs != 0)?;
        (bytenr.saturating_add(extent.len_bytes) > edge).then(|| extent.dump(bytenr))
    }

    /// How many extents are in use.
    pub(crate) const fn live(&self) -> u64 {
        self.live
    }

    /// What is held of all extents, those of tombstones too: extents, references and actions,
    /// each at some 200 bytes.
    pub(crate) const fn entries(&self) -> u64 {
        self.entries
    }

    /// The extents in use, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Extent)> {
        self.extents
            .iter()
            .filter(|(_, extent)| extent.total_refs != 0)
            .map(|(&bytenr, extent)| (bytenr, extent))
    }

    /// One extent, for a report.
    pub(crate) fn dump(&self, bytenr: u64) -> Option<ExtentDump> {
        self.extents.get(&bytenr).map(|extent| extent.dump(bytenr))
    }
}

impl Extent {
    fn entries(&self) -> u64 {
        1 + self.refs.len() as u64 + self.history.len()
    }

    fn add(&mut self, key: RefKey, record: ActionRecord) {
        *self.refs.entry(key).or_insert(0) += 1;
        // The disk may have said any number.
        self.total_refs = self.total_refs.saturating_add(1);
        self.history.push(record);
    }

    fn drop_one(&mut self, key: RefKey, record: ActionRecord) {
        if let Some(count) = self.refs.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.refs.remove(&key);
            }
        }
        self.total_refs -= 1;
        self.history.push(record);
    }

    fn dump(&self, bytenr: u64) -> ExtentDump {
        ExtentDump {
            bytenr,
            len_bytes: self.len_bytes,
            kind: self.kind,
            total_refs: self.total_refs,
            from_disk: self.from_disk,
            refs: self.refs.iter().map(|(&key, &count)| (key, count)).collect(),
            roots: self.direct_refs_per_root().into_iter().collect(),
            actions: self.history.to_vec(),
            actions_given_up: self.history.given_up(),
        }
    }

    fn direct_refs_per_root(&self) -> BTreeMap<u64, u64> {
        let mut roots = BTreeMap::new();
        for (key, count) in self.refs.iter().filter(|(key, _)| !key.is_shared()) {
            *roots.entry(key.root).or_insert(0) += count;
        }
        roots
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        feed::Change,
        verify::testing::{data_event, event},
    };

    const BYTENR: u64 = 13_631_488;

    fn apply(ledger: &mut Ledger, event: &Event) -> Result<(), FindingKind> {
        let Change::Ref { action, kind, bytenr, len_bytes, key, .. } = event.change else {
            unreachable!("only references are applied")
        };
        let change = RefChange { action, kind, bytenr, len_bytes, key };
        ledger.apply(&change, event).map_err(|violation| violation.kind)
    }

    fn data(ledger: &mut Ledger, action: Action, offset: u64) -> Result<(), FindingKind> {
        apply(ledger, &data_event(action, BYTENR, offset, 9))
    }

    fn tree(ledger: &mut Ledger, action: Action, key: RefKey) -> Result<(), FindingKind> {
        let change = Change::Ref {
            action,
            kind: ExtentKind::TreeBlock { level: 0 },
            bytenr: BYTENR,
            len_bytes: 16384,
            key,
            owning_root: 0,
        };
        apply(ledger, &event(9, change))
    }

    #[test]
    fn an_extent_in_use_is_not_allocated_again() {
        let mut ledger = Ledger::default();
        assert_eq!(data(&mut ledger, Action::AddExtent, 0), Ok(()));
        let again = data(&mut ledger, Action::AddExtent, 0);
        assert_eq!(again, Err(FindingKind::ReallocatedWithRefs));
    }

    #[test]
    fn a_freed_extent_may_be_allocated_again_and_takes_kind_and_length_anew() {
        let mut ledger = Ledger::default();
        tree(&mut ledger, Action::AddExtent, RefKey::tree(5, 0, 0)).unwrap();
        tree(&mut ledger, Action::DropRef, RefKey::tree(5, 0, 0)).unwrap();
        data(&mut ledger, Action::AddExtent, 0).unwrap();
        // A second reference from the same place is in order for data, and only for data.
        assert_eq!(data(&mut ledger, Action::AddRef, 0), Ok(()));
        assert_eq!(ledger.dump(BYTENR).unwrap().len_bytes, 4096);
    }

    #[test]
    fn nothing_is_added_to_or_dropped_from_an_unknown_extent() {
        let mut ledger = Ledger::default();
        assert_eq!(data(&mut ledger, Action::AddRef, 0), Err(FindingKind::NoEntry));
        assert_eq!(data(&mut ledger, Action::DropRef, 0), Err(FindingKind::NoEntry));
    }

    #[test]
    fn nothing_is_added_to_or_dropped_from_an_extent_at_zero() {
        let mut ledger = Ledger::default();
        data(&mut ledger, Action::AddExtent, 0).unwrap();
        data(&mut ledger, Action::DropRef, 0).unwrap();
        assert_eq!(data(&mut ledger, Action::AddRef, 0), Err(FindingKind::ZeroRefs));
        assert_eq!(data(&mut ledger, Action::DropRef, 0), Err(FindingKind::ZeroRefs));
        // The tombstone says who freed it.
        assert_eq!(ledger.dump(BYTENR).unwrap().actions.len(), 2);
    }

    #[test]
    fn a_reference_is_not_dropped_that_is_not_there() {
        let mut ledger = Ledger::default();
        data(&mut ledger, Action::AddExtent, 0).unwrap();
        assert_eq!(data(&mut ledger, Action::DropRef, 4096), Err(FindingKind::DropMissingRef));
    }

    #[test]
    fn a_reference_whose_count_on_disk_is_zero_is_not_dropped() {
        let mut ledger = Ledger::default();
        let refs = vec![(RefKey::data(5, 0, 257, 0), 0), (RefKey::data(5, 0, 258, 0), 1)];
        ledger.take_from_disk(&disk(refs), 8);
        assert_eq!(data(&mut ledger, Action::DropRef, 0), Err(FindingKind::DropExhaustedRef));
    }

    #[test]
    fn a_tree_block_has_each_reference_once() {
        let mut ledger = Ledger::default();
        tree(&mut ledger, Action::AddExtent, RefKey::tree(5, 0, 0)).unwrap();
        tree(&mut ledger, Action::AddRef, RefKey::tree(257, 0, 0)).unwrap();
        tree(&mut ledger, Action::AddRef, RefKey::tree(0, 30_408_704, 0)).unwrap();
        let again = tree(&mut ledger, Action::AddRef, RefKey::tree(257, 0, 0));
        assert_eq!(again, Err(FindingKind::DuplicateTreeRef));
    }

    #[test]
    fn a_direct_reference_from_root_zero_is_wrong() {
        let mut ledger = Ledger::default();
        let root_0 = RefKey::tree(0, 0, 0);
        assert_eq!(tree(&mut ledger, Action::AddExtent, root_0), Err(FindingKind::MissingRoot));
    }

    #[test]
    fn what_is_wrong_changes_nothing() {
        let mut ledger = Ledger::default();
        data(&mut ledger, Action::AddExtent, 0).unwrap();
        let before = ledger.dump(BYTENR);
        data(&mut ledger, Action::DropRef, 4096).unwrap_err();
        assert_eq!(ledger.dump(BYTENR), before);
    }

    #[test]
    fn history_keeps_the_allocation_and_the_newest_and_counts_what_it_gave_up() {
        let mut ledger = Ledger::default();
        data(&mut ledger, Action::AddExtent, 0).unwrap();
        for offset in 1..=100 {
            data(&mut ledger, Action::AddRef, offset * 4096).unwrap();
        }
        let dump = ledger.dump(BYTENR).unwrap();
        assert_eq!(dump.actions.len() as u64 + dump.actions_given_up, 101);
        assert_eq!(dump.actions[0].action, Action::AddExtent);
        assert_eq!(dump.actions.last().unwrap().key.offset, 100 * 4096);
    }

    #[test]
    fn an_extent_across_the_edge_of_a_removed_group_is_seen_and_one_beside_it_is_not() {
        let mut ledger = Ledger::default();
        data(&mut ledger, Action::AddExtent, 0).unwrap();
        assert_eq!(ledger.crossing(&(BYTENR + 1..BYTENR + 100_000)).len(), 1);
        assert_eq!(ledger.crossing(&(0..BYTENR + 4095)).len(), 1);
        assert_eq!(ledger.crossing(&(BYTENR..BYTENR + 4096)).len(), 0);
        assert_eq!(ledger.crossing(&(BYTENR + 4096..BYTENR + 100_000)).len(), 0);
    }

    #[test]
    fn reading_an_extent_again_keeps_its_history() {
        let mut ledger = Ledger::default();
        data(&mut ledger, Action::AddExtent, 0).unwrap();
        ledger.clear(BYTENR..BYTENR + 1);
        assert_eq!(ledger.live(), 0);
        ledger.take_from_disk(&disk(vec![(RefKey::data(5, 0, 257, 0), 1)]), 10);
        let dump = ledger.dump(BYTENR).unwrap();
        assert_eq!((dump.actions.len(), dump.from_disk, ledger.live()), (1, Some(10), 1));
    }

    #[test]
    fn whatever_is_held_is_counted_and_is_given_back() {
        let mut ledger = Ledger::default();
        data(&mut ledger, Action::AddExtent, 0).unwrap();
        data(&mut ledger, Action::AddRef, 4096).unwrap();
        assert_eq!(ledger.entries(), 1 + 2 + 2);
        data(&mut ledger, Action::DropRef, 4096).unwrap();
        assert_eq!(ledger.entries(), 1 + 1 + 3);
        ledger.take_from_disk(&disk(vec![(RefKey::data(5, 0, 257, 0), 1)]), 10);
        assert_eq!(ledger.entries(), 1 + 1 + 3);
        ledger.clear(0..u64::MAX);
        assert_eq!(ledger.entries(), 1 + 3);
        ledger.remove(0..u64::MAX);
        assert_eq!((ledger.entries(), ledger.live()), (0, 0));
    }

    #[test]
    fn a_count_on_disk_that_no_number_is_above_is_no_panic() {
        let mut ledger = Ledger::default();
        let total_refs = u64::MAX;
        ledger.take_from_disk(&DiskExtent { total_refs, ..disk(Vec::new()) }, 8);
        assert_eq!(data(&mut ledger, Action::AddRef, 0), Ok(()));
    }

    #[test]
    fn refs_per_root_count_direct_references_the_first_included() {
        let mut ledger = Ledger::default();
        data(&mut ledger, Action::AddExtent, 0).unwrap();
        data(&mut ledger, Action::AddRef, 4096).unwrap();
        let shared = RefKey::data(0, 30_408_704, 0, 0);
        let change = Change::Ref {
            action: Action::AddRef,
            kind: ExtentKind::Data,
            bytenr: BYTENR,
            len_bytes: 4096,
            key: shared,
            owning_root: 0,
        };
        apply(&mut ledger, &event(9, change)).unwrap();
        assert_eq!(ledger.dump(BYTENR).unwrap().roots, [(5, 2)]);
    }

    fn disk(refs: Vec<(RefKey, u32)>) -> DiskExtent {
        DiskExtent {
            bytenr: BYTENR,
            len_bytes: 4096,
            kind: ExtentKind::Data,
            total_refs: refs.iter().map(|&(_, count)| u64::from(count)).sum(),
            generation: 7,
            owner_root: None,
            refs,
        }
    }
}
