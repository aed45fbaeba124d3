//! The packed ledger beside the plain one: the same changes, honest and dishonest, must bring
//! the same findings, the same dumps and the same contents, whenever commits, aborts, readings
//! and removed block groups come between.

#[path = "../benches/ledger/workload.rs"]
mod workload;

use std::{ops::Range, sync::Arc};

use proptest::prelude::*;
use refverify_user::{
    btrfs::{Action, DiskExtent, ExtentKind, RefKey},
    feed::{Change, Comm, Event, FsSlot},
    verify::ledger::{Extent, Ledger, Limits, PackedLedger, PlainLedger, ShardedLedger},
};

use workload::{Disk, Events, Mix, Places};

/// What is done to both ledgers. Numbers are places in lists, so that they shrink well.
#[derive(Clone, Debug)]
enum Step {
    /// Whatever comes.
    Change {
        action: Action,
        place: usize,
        key: usize,
        kind: usize,
        len: usize,
        ahead: i8,
    },
    /// An allocation where there is room, in one of the shapes that btrfs has.
    Allocate {
        place: usize,
        key: usize,
        len: usize,
    },
    /// One reference more.
    Share {
        place: usize,
        key: usize,
    },
    /// One of the references that there are, fewer.
    Drop {
        place: usize,
        nth: usize,
    },
    Commit {
        behind: u64,
    },
    Transaction,
    /// The range is read, and the disk has what it should have.
    ReadHonest {
        range: (usize, usize),
        behind: u64,
    },
    /// The range is read, and the disk has something else.
    ReadOther {
        range: (usize, usize),
        behind: u64,
        extents: Vec<(usize, usize, usize, u32, u64)>,
    },
    Remove {
        range: (usize, usize),
    },
    UndoAbove {
        behind: u64,
    },
}

fn bytenr(place: usize) -> u64 {
    // Adjacent, near, far, unaligned, and at both ends of the range.
    const PLACES: [u64; 14] = [
        0,
        4096,
        8192,
        8193,
        13_631_488,
        13_647_872,
        13_664_256,
        30_408_704,
        1 << 30,
        (1 << 30) + 65536,
        1 << 45,
        u64::MAX - 65535,
        u64::MAX - 4095,
        u64::MAX,
    ];
    PLACES[place % PLACES.len()]
}

fn key(number: usize, place: usize) -> RefKey {
    let minus = |value: u64| value.wrapping_neg();
    let keys = [
        RefKey::data(5, 0, 257, 0),
        RefKey::data(5, 0, 257, 4096),
        // An extent's offset beyond the file's wraps.
        RefKey::data(5, 0, 258, minus(4096)),
        RefKey::data(257, 0, 300_000, 1 << 40),
        // Relocation's inodes, the old inode cache, free space inodes of the root tree.
        RefKey::data(minus(9), 0, 257, 0),
        RefKey::data(5, 0, minus(12), 0),
        RefKey::data(1, 0, 256, 3),
        RefKey::data(0, 30_408_704, 0, 0),
        RefKey::data(0, u64::MAX, 0, 0),
        RefKey::tree(5, 0, 0),
        RefKey::tree(2, 0, 1),
        RefKey::tree(minus(9), 0, 0),
        RefKey::tree(0, 30_408_704, 0),
        // The root of a relocation tree names itself as parent.
        RefKey::tree(minus(8), bytenr(place), 7),
        // What is nowhere in btrfs.
        RefKey::data(0, 0, 257, 0),
        RefKey { root: 7, parent: 8, owner: 9, offset: 10 },
        RefKey { root: u64::MAX, parent: 0, owner: u64::MAX, offset: u64::MAX },
    ];
    keys[number % keys.len()]
}

fn kind(number: usize) -> ExtentKind {
    match number % 4 {
        0 | 1 => ExtentKind::Data,
        2 => ExtentKind::TreeBlock { level: 0 },
        _ => ExtentKind::TreeBlock { level: 7 },
    }
}

fn kind_of(key: &RefKey) -> ExtentKind {
    match key.owner {
        level @ 0..8 if key.offset == 0 => {
            ExtentKind::TreeBlock { level: level.try_into().unwrap() }
        }
        _ => ExtentKind::Data,
    }
}

fn len_bytes(number: usize) -> u64 {
    const LENGTHS: [u64; 8] = [4096, 4096, 16384, 65536, 128 << 20, 2048, 0, u64::MAX];
    LENGTHS[number % LENGTHS.len()]
}

/// Both ledgers, and the clock.
struct Pair {
    plain: PlainLedger,
    packed: PackedLedger,
    sharded: ShardedLedger,
    running: u64,
    durable: u64,
    newest_read: u64,
    time_ns: u64,
    stacks: Vec<Arc<[u64]>>,
}

impl Pair {
    fn new() -> Self {
        let limits = Limits { history_per_extent: 5, ..Limits::default() };
        Self {
            plain: PlainLedger::new(limits),
            packed: PackedLedger::new(limits),
            sharded: ShardedLedger::new(limits, 3),
            running: 8,
            durable: 7,
            newest_read: 0,
            time_ns: 1_000_000,
            stacks: (0..3)
                .map(|n| (0..n).map(|frame| 0xffff_ffff_8100_0000 + frame).collect())
                .collect(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Change { action, place, key: number, kind: kind_number, len, ahead } => {
                let transid = self.running.saturating_add_signed(i64::from(*ahead));
                let key = key(*number, *place);
                self.change(*action, *place, key, kind(*kind_number), len_bytes(*len), transid);
            }
            Step::Allocate { place, key: number, len } => {
                let key = key(*number, *place);
                self.change(
                    Action::AddExtent,
                    *place,
                    key,
                    kind_of(&key),
                    len_bytes(*len),
                    self.running,
                );
            }
            Step::Share { place, key: number } => {
                let key = key(*number, *place);
                self.change(Action::AddRef, *place, key, kind_of(&key), 4096, self.running);
            }
            Step::Drop { place, nth } => self.drop_one(*place, *nth),
            Step::Commit { behind } => {
                self.durable = self.durable.max(self.running.saturating_sub(*behind));
                self.plain.commit(self.durable);
                self.packed.commit(self.durable);
                self.sharded.commit(self.durable);
            }
            Step::Transaction => self.running += 1,
            Step::ReadHonest { range, behind } => self.read_honest(&range_of(range), *behind),
            Step::ReadOther { range, behind, extents } => {
                let range = range_of(range);
                let generation = self.readable(*behind);
                self.read(&range, generation, &disk(&range, extents));
            }
            Step::Remove { range } => {
                let range = range_of(range);
                let crossing = self.plain.crossing(&range);
                assert_eq!(self.packed.crossing(&range), crossing);
                assert_eq!(self.sharded.crossing(&range), crossing);
                self.plain.remove(range.clone(), self.running);
                self.packed.remove(range.clone(), self.running);
                self.sharded.remove(range, self.running);
            }
            Step::UndoAbove { behind } => {
                let transid = self.running.saturating_sub(*behind).max(self.durable);
                self.plain.undo_above(transid);
                self.packed.undo_above(transid);
                self.sharded.undo_above(transid);
            }
        }
    }

    fn change(
        &mut self,
        action: Action,
        place: usize,
        key: RefKey,
        kind: ExtentKind,
        len_bytes: u64,
        transid: u64,
    ) {
        let bytenr = bytenr(place);
        self.time_ns += 1000;
        let tid = 70 + (self.time_ns / 1000 % 3) as u32;
        let event = Event {
            fs: FsSlot(0),
            transid,
            time_ns: self.time_ns,
            cpu: 0,
            pid: 70,
            tid,
            comm: Comm(*b"kworker/u8:1\0\0\0\0"),
            stack: self.stacks[place % 3].clone(),
            change: Change::Ref { action, kind, bytenr, len_bytes, key, owning_root: 0 },
        };
        let judged = self.plain.apply(&event);
        assert_eq!(self.packed.apply(&event), judged);
        assert_eq!(self.sharded.apply(&event), judged);
    }

    fn drop_one(&mut self, place: usize, nth: usize) {
        let Some(extent) = self.plain.dump(bytenr(place)) else { return };
        if extent.refs.is_empty() {
            return;
        }
        let (key, _) = extent.refs[nth % extent.refs.len()];
        self.change(Action::DropRef, place, key, extent.kind, extent.len_bytes, self.running);
    }

    /// The disk never goes back.
    fn readable(&mut self, behind: u64) -> u64 {
        self.newest_read =
            self.running.saturating_sub(behind).max(self.durable).max(self.newest_read);
        self.newest_read
    }

    fn read_honest(&mut self, range: &Range<u64>, behind: u64) {
        let generation = self.readable(behind);
        let mut on_disk = Vec::new();
        for place in 0..14 {
            let bytenr = bytenr(place);
            let extent = self.plain.as_of(bytenr, generation);
            if let Some(extent) = extent.filter(|_| range.contains(&bytenr)) {
                on_disk.push(DiskExtent {
                    bytenr,
                    len_bytes: extent.len_bytes,
                    kind: extent.kind,
                    total_refs: extent.total_refs,
                    generation: 3,
                    owner_root: None,
                    refs: extent
                        .refs
                        .iter()
                        .map(|(key, count)| (key, count.try_into().unwrap_or(u32::MAX)))
                        .collect(),
                });
            }
        }
        self.read(range, generation, &on_disk);
    }

    fn read(&mut self, range: &Range<u64>, generation: u64, extents: &[DiskExtent]) {
        self.plain.read(range.clone(), generation, extents);
        self.packed.read(range.clone(), generation, extents);
        self.sharded.read(range.clone(), generation, extents);
    }

    /// Everything that can be asked is answered alike.
    fn compare(&self) {
        for ledger in [&self.packed as &dyn Ledger, &self.sharded] {
            assert_eq!(ledger.live(), self.plain.live());
            assert_eq!(contents(ledger), contents(&self.plain));
            for place in 0..14 {
                let bytenr = bytenr(place);
                assert_eq!(ledger.dump(bytenr), self.plain.dump(bytenr));
                for generation in self.durable..=self.running + 2 {
                    let as_of = self.plain.as_of(bytenr, generation);
                    let found = ledger.as_of(bytenr, generation);
                    assert_eq!(found, as_of, "{bytenr} as of {generation}");
                }
            }
            for generation in self.durable..=self.running + 2 {
                assert_eq!(ledger.touched(generation), self.plain.touched(generation));
            }
        }
    }
}

fn contents(ledger: &dyn Ledger) -> Vec<(u64, Extent)> {
    let mut all = Vec::new();
    ledger.visit(&mut |bytenr, extent| all.push((bytenr, extent.clone())));
    all
}

fn range_of(&(from, to): &(usize, usize)) -> Range<u64> {
    let (from, to) = (bytenr(from), bytenr(to));
    from.min(to)..from.max(to)
}

fn disk(range: &Range<u64>, extents: &[(usize, usize, usize, u32, u64)]) -> Vec<DiskExtent> {
    let mut all: Vec<DiskExtent> = extents
        .iter()
        .map(|&(place, number, len, count, surplus)| {
            let first = key(number, place);
            let second = key(number + 1, place);
            DiskExtent {
                bytenr: bytenr(place),
                len_bytes: len_bytes(len),
                kind: kind_of(&first),
                total_refs: u64::from(count).wrapping_add(surplus),
                generation: 3,
                owner_root: None,
                refs: vec![(first, count), (second, count / 2), (first, 1)],
            }
        })
        .filter(|extent| range.contains(&extent.bytenr))
        .collect();
    all.sort_by_key(|extent| extent.bytenr);
    all.dedup_by_key(|extent| extent.bytenr);
    all
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::AddRef), Just(Action::DropRef), Just(Action::AddExtent)]
}

fn step() -> impl Strategy<Value = Step> {
    let place = || 0_usize..14;
    let range = || (place(), place());
    let counts = prop_oneof![0_u32..3, Just(u32::MAX)];
    let surplus = prop_oneof![4 => Just(1_u64), 1 => Just(0), 1 => any::<u64>()];
    let extents = prop::collection::vec((place(), 0_usize..17, 0_usize..8, counts, surplus), 0..6);
    prop_oneof![
        2 => (action(), place(), 0_usize..17, 0_usize..4, 0_usize..8, -2_i8..3).prop_map(
            |(action, place, key, kind, len, ahead)| Step::Change { action, place, key, kind, len, ahead }
        ),
        6 => (place(), 0_usize..14, 0_usize..8)
            .prop_map(|(place, key, len)| Step::Allocate { place, key, len }),
        6 => (place(), 0_usize..14).prop_map(|(place, key)| Step::Share { place, key }),
        8 => (place(), 0_usize..4).prop_map(|(place, nth)| Step::Drop { place, nth }),
        2 => (0_u64..3).prop_map(|behind| Step::Commit { behind }),
        3 => Just(Step::Transaction),
        1 => (range(), 0_u64..3).prop_map(|(range, behind)| Step::ReadHonest { range, behind }),
        1 => (range(), 0_u64..3, extents)
            .prop_map(|(range, behind, extents)| Step::ReadOther { range, behind, extents }),
        1 => range().prop_map(|range| Step::Remove { range }),
        1 => (0_u64..3).prop_map(|behind| Step::UndoAbove { behind }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_packed_ledger_answers_as_the_plain_one_does(steps in prop::collection::vec(step(), 1..80)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.step(step);
            pair.compare();
        }
        // At rest, after all of it is durable.
        pair.step(&Step::Transaction);
        pair.step(&Step::Commit { behind: 0 });
        pair.compare();
    }
}

/// Many extents, so that pages fill, split and go: changes come in batches, as they do from the
/// kernel, one in a hundred of them wrong.
#[test]
fn many_extents_are_judged_alike_in_batches() {
    for round in 0..4 {
        let limits = Limits { history_per_extent: 4, ..Limits::default() };
        let mut plain = PlainLedger::new(limits);
        let mut packed = PackedLedger::new(limits);
        let mut sharded = ShardedLedger::new(limits, 2);
        let mix = [Mix::Single, Mix::Aged][round % 2];
        let places = [Places::Random, Places::Local][round / 2];
        let mut disk = Disk::new(mix);
        let mut leaf = Vec::new();
        for _ in 0..20 {
            let range = disk.next_leaf(150, &mut leaf);
            plain.read(range.clone(), 42, &leaf);
            packed.read(range.clone(), 42, &leaf);
            sharded.read(range, 42, &leaf);
        }
        let mut events = Events::new(places, &mut Disk::new(mix), 3000);
        for transid in 43..49 {
            let mut batch: Vec<Event> = (0..6000).map(|_| events.next(transid)).collect();
            for at in (0..batch.len()).step_by(97) {
                if let Change::Ref { key, .. } = &mut batch[at].change {
                    key.offset ^= 4096;
                }
            }
            let expected = plain.apply_all(&batch);
            assert!(!expected.wrong.is_empty() && !expected.left.is_empty());
            for judged in [packed.apply_all(&batch), sharded.apply_all(&batch)] {
                assert_eq!(judged.wrong, expected.wrong);
                assert_eq!(judged.left, expected.left);
            }
            for ledger in [&mut plain as &mut dyn Ledger, &mut packed, &mut sharded] {
                ledger.commit(transid - 1);
            }
            assert_eq!(contents(&packed), contents(&plain));
            assert_eq!(contents(&sharded), contents(&plain));
        }
        for (bytenr, _) in contents(&plain) {
            assert_eq!(packed.dump(bytenr), plain.dump(bytenr));
        }
    }
}
