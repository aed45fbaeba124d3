//! The rules, and what a ledger remembers: one set of tests for every ledger.

use std::sync::Arc;

use refverify_user::{
    btrfs::{Action, DiskExtent, ExtentKind, RefKey},
    feed::{Change, Comm, Event, FsSlot},
    verify::{
        FindingKind,
        ledger::{Ledger, Limits, PackedLedger, PlainLedger},
    },
};

const BYTENR: u64 = 13_631_488;

/// Runs a test with each ledger, with the changes pending and with all of them at rest.
fn each(test: impl Fn(&mut Tried)) {
    let limits = Limits::default();
    for commits in [false, true] {
        test(&mut Tried::new(Box::new(PlainLedger::new(limits)), commits));
        test(&mut Tried::new(Box::new(PackedLedger::new(limits)), commits));
    }
}

struct Tried {
    ledger: Box<dyn Ledger>,
    commits: bool,
    transid: u64,
}

impl Tried {
    fn new(ledger: Box<dyn Ledger>, commits: bool) -> Self {
        Self { ledger, commits, transid: 9 }
    }

    fn apply(&mut self, action: Action, kind: ExtentKind, key: RefKey) -> Result<(), FindingKind> {
        let len_bytes = if kind == ExtentKind::Data { 4096 } else { 16384 };
        self.apply_at(BYTENR, action, kind, len_bytes, key)
    }

    fn apply_at(
        &mut self,
        bytenr: u64,
        action: Action,
        kind: ExtentKind,
        len_bytes: u64,
        key: RefKey,
    ) -> Result<(), FindingKind> {
        let event = Event {
            fs: FsSlot(0),
            transid: self.transid,
            time_ns: self.transid * 1000,
            cpu: 0,
            pid: 77,
            tid: 78,
            comm: Comm::default(),
            stack: Arc::from([]),
            change: Change::Ref { action, kind, bytenr, len_bytes, key, owning_root: 0 },
        };
        let verdict = self.ledger.apply(&event);
        if self.commits {
            self.ledger.commit(self.transid);
        }
        self.transid += 1;
        verdict.map_err(|violation| violation.kind)
    }

    fn data(&mut self, action: Action, offset: u64) -> Result<(), FindingKind> {
        self.apply(action, ExtentKind::Data, RefKey::data(5, 0, 257, offset))
    }

    fn tree(&mut self, action: Action, key: RefKey) -> Result<(), FindingKind> {
        self.apply(action, ExtentKind::TreeBlock { level: 0 }, key)
    }

    /// The disk has this one extent where it is.
    fn read(&mut self, refs: Vec<(RefKey, u32)>) {
        let disk = DiskExtent {
            bytenr: BYTENR,
            len_bytes: 4096,
            kind: ExtentKind::Data,
            total_refs: refs.iter().map(|&(_, count)| u64::from(count)).sum(),
            generation: 7,
            owner_root: None,
            refs,
        };
        self.ledger.read(BYTENR..BYTENR + 1, self.transid, &[disk]);
    }
}

#[test]
fn an_extent_in_use_is_not_allocated_again() {
    each(|tried| {
        assert_eq!(tried.data(Action::AddExtent, 0), Ok(()));
        assert_eq!(tried.data(Action::AddExtent, 0), Err(FindingKind::ReallocatedWithRefs));
    });
}

#[test]
fn a_freed_extent_may_be_allocated_again_and_takes_kind_and_length_anew() {
    each(|tried| {
        tried.tree(Action::AddExtent, RefKey::tree(5, 0, 0)).unwrap();
        tried.tree(Action::DropRef, RefKey::tree(5, 0, 0)).unwrap();
        tried.data(Action::AddExtent, 0).unwrap();
        // A second reference from the same place is in order for data, and only for data.
        assert_eq!(tried.data(Action::AddRef, 0), Ok(()));
        let dump = tried.ledger.dump(BYTENR).unwrap();
        assert_eq!((dump.len_bytes, dump.actions.len()), (4096, 2));
    });
}

#[test]
fn nothing_is_added_to_or_dropped_from_an_unknown_extent() {
    each(|tried| {
        assert_eq!(tried.data(Action::AddRef, 0), Err(FindingKind::NoEntry));
        assert_eq!(tried.data(Action::DropRef, 0), Err(FindingKind::NoEntry));
    });
}

#[test]
fn nothing_is_added_to_or_dropped_from_an_extent_at_zero() {
    each(|tried| {
        tried.data(Action::AddExtent, 0).unwrap();
        tried.data(Action::DropRef, 0).unwrap();
        assert_eq!(tried.data(Action::AddRef, 0), Err(FindingKind::ZeroRefs));
        assert_eq!(tried.data(Action::DropRef, 0), Err(FindingKind::ZeroRefs));
        // The tombstone says who freed it.
        assert_eq!(tried.ledger.dump(BYTENR).unwrap().actions.len(), 2);
    });
}

#[test]
fn a_reference_is_not_dropped_that_is_not_there() {
    each(|tried| {
        tried.data(Action::AddExtent, 0).unwrap();
        assert_eq!(tried.data(Action::DropRef, 4096), Err(FindingKind::DropMissingRef));
    });
}

#[test]
fn a_reference_whose_count_on_disk_is_zero_is_not_dropped() {
    each(|tried| {
        tried.read(vec![(RefKey::data(5, 0, 257, 0), 0), (RefKey::data(5, 0, 258, 0), 1)]);
        assert_eq!(tried.data(Action::DropRef, 0), Err(FindingKind::DropExhaustedRef));
    });
}

#[test]
fn a_tree_block_has_each_reference_once() {
    each(|tried| {
        tried.tree(Action::AddExtent, RefKey::tree(5, 0, 0)).unwrap();
        tried.tree(Action::AddRef, RefKey::tree(257, 0, 0)).unwrap();
        tried.tree(Action::AddRef, RefKey::tree(0, 30_408_704, 0)).unwrap();
        let again = tried.tree(Action::AddRef, RefKey::tree(257, 0, 0));
        assert_eq!(again, Err(FindingKind::DuplicateTreeRef));
    });
}

#[test]
fn a_direct_reference_from_root_zero_is_wrong() {
    each(|tried| {
        let root_0 = RefKey::tree(0, 0, 0);
        assert_eq!(tried.tree(Action::AddExtent, root_0), Err(FindingKind::MissingRoot));
    });
}

#[test]
fn what_is_wrong_changes_nothing() {
    each(|tried| {
        tried.data(Action::AddExtent, 0).unwrap();
        let before = tried.ledger.dump(BYTENR);
        tried.data(Action::DropRef, 4096).unwrap_err();
        assert_eq!(tried.ledger.dump(BYTENR), before);
    });
}

#[test]
fn history_keeps_the_allocation_and_the_newest_and_counts_what_it_gave_up() {
    each(|tried| {
        tried.data(Action::AddExtent, 0).unwrap();
        for offset in 1..=100 {
            tried.data(Action::AddRef, offset * 4096).unwrap();
        }
        let dump = tried.ledger.dump(BYTENR).unwrap();
        assert_eq!(dump.actions.len(), Limits::default().history_per_extent);
        assert_eq!(dump.actions.len() as u64 + dump.actions_given_up, 101);
        assert_eq!(dump.actions[0].action, Action::AddExtent);
        assert_eq!(dump.actions.last().unwrap().key.offset, 100 * 4096);
    });
}

#[test]
fn an_extent_across_the_edge_of_a_removed_group_is_seen_and_one_beside_it_is_not() {
    each(|tried| {
        tried.data(Action::AddExtent, 0).unwrap();
        let crossing = |from, to| tried.ledger.crossing(&(from..to)).len();
        assert_eq!(crossing(BYTENR + 1, BYTENR + 100_000), 1);
        assert_eq!(crossing(0, BYTENR + 4095), 1);
        assert_eq!(crossing(BYTENR, BYTENR + 4096), 0);
        assert_eq!(crossing(BYTENR + 4096, BYTENR + 100_000), 0);
    });
}

#[test]
fn a_removed_group_takes_its_extents_and_their_tombstones_along() {
    each(|tried| {
        tried.data(Action::AddExtent, 0).unwrap();
        tried.data(Action::DropRef, 0).unwrap();
        tried.ledger.remove(BYTENR..BYTENR + (1 << 30), tried.transid);
        assert_eq!(tried.data(Action::AddRef, 0), Err(FindingKind::NoEntry));
        assert_eq!(tried.ledger.dump(BYTENR), None);
    });
}

#[test]
fn reading_an_extent_again_keeps_its_history() {
    each(|tried| {
        tried.data(Action::AddExtent, 0).unwrap();
        tried.ledger.read(BYTENR..BYTENR + 1, tried.transid, &[]);
        assert_eq!(tried.ledger.live(), 0);
        tried.read(vec![(RefKey::data(5, 0, 257, 0), 1)]);
        let dump = tried.ledger.dump(BYTENR).unwrap();
        let from_disk = Some(tried.transid);
        assert_eq!((dump.actions.len(), dump.from_disk, tried.ledger.live()), (1, from_disk, 1));
    });
}

#[test]
fn refs_per_root_count_direct_references_the_first_included() {
    each(|tried| {
        tried.data(Action::AddExtent, 0).unwrap();
        tried.data(Action::AddRef, 4096).unwrap();
        let shared = RefKey::data(0, 30_408_704, 0, 0);
        tried.apply(Action::AddRef, ExtentKind::Data, shared).unwrap();
        assert_eq!(tried.ledger.dump(BYTENR).unwrap().roots, [(5, 2)]);
    });
}

#[test]
fn an_aborted_transaction_leaves_what_was_before_it() {
    each(|tried| {
        tried.data(Action::AddExtent, 0).unwrap();
        tried.ledger.commit(tried.transid - 1);
        let durable = tried.ledger.dump(BYTENR);
        tried.commits = false;
        tried.data(Action::AddRef, 4096).unwrap();
        tried.data(Action::DropRef, 0).unwrap();
        assert_eq!(tried.ledger.touched(u64::MAX), [BYTENR]);
        tried.ledger.undo_above(tried.transid - 3);
        assert_eq!(tried.ledger.dump(BYTENR), durable);
        assert_eq!(tried.ledger.touched(u64::MAX), Vec::<u64>::new());
    });
}

#[test]
fn an_extent_can_be_seen_as_of_every_generation_that_is_not_durable_yet() {
    each(|tried| {
        tried.commits = false;
        let first = tried.transid;
        tried.data(Action::AddExtent, 0).unwrap();
        tried.data(Action::AddRef, 4096).unwrap();
        tried.data(Action::DropRef, 0).unwrap();
        tried.data(Action::DropRef, 4096).unwrap();
        let total = |generation| Some(tried.ledger.as_of(BYTENR, generation)?.total_refs);
        let totals: Vec<_> = (first - 1..first + 5).map(total).collect();
        assert_eq!(totals, [None, Some(1), Some(2), Some(1), None, None]);
    });
}
