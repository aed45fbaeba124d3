//! Readings that pass over what has not changed since an earlier one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use refverify_user::btrfs::{
    DiskExtent, ExtentKind, RefKey,
    reader::{ExtentReader, Known},
};

use crate::{
    image::{ALL, Told, drive, drive_moving},
    living::{Extents, Living, Random},
    written::{self, NODE_BYTES},
};

/// Reads while the file system commits now and then, and remembers the tree.
fn read(living: &mut Living, known: Known, random: &mut Random, per_step: u64) -> (Told, Known) {
    let mut reader = ExtentReader::since(ALL, 0, known);
    let told = drive_moving(&mut reader, 40, |read| {
        if random.below(per_step) == 0 {
            living.step();
        }
        living.device.read(read)
    });
    assert_eq!((&told.failed, &told.findings[..]), (&None, &[][..]));
    (told, Known { tree: reader.into_known().expect("asked for"), ..Known::default() })
}

/// What is passed over must be now what it was at `since`, and what is read must be what it is.
/// Returns how many extents were passed over.
fn assert_exact(told: &Told, since: &Extents, history: &BTreeMap<u64, Extents>) -> usize {
    let mut passed = 0;
    for (range, generation) in &told.unchanged {
        let now = history[generation].range(range.clone());
        let before = since.range(range.clone());
        passed += before.clone().count();
        assert!(now.eq(before), "{range:?} has changed before generation {generation}");
    }
    let mut read = 0;
    for (range, generation) in &told.ranges {
        let now: Vec<_> = history[generation].range(range.clone()).map(|(_, e)| e).collect();
        let told: Vec<_> = told.extents.iter().filter(|e| range.contains(&e.bytenr)).collect();
        assert_eq!(told, now, "{range:?} at generation {generation}");
        read += now.len();
    }
    assert_eq!(read, told.extents.len());
    let mut all: Vec<_> = told.ranges.iter().chain(&told.unchanged).map(|(it, _)| it).collect();
    all.sort_by_key(|range| range.start);
    let upto = all.iter().fold(ALL.start, |upto, range| {
        assert_eq!(upto, range.start, "neither read nor passed over, or both");
        range.end
    });
    assert_eq!(upto, ALL.end);
    passed
}

fn advance(living: &mut Living, commits: u64) {
    let upto = living.generation + commits;
    while living.generation < upto {
        living.step();
    }
}

#[test]
fn what_is_passed_over_has_not_changed_and_what_is_read_is_exact() {
    let mut passed = 0;
    for seed in 0..40 {
        let mut living = Living::with_leaves_that_go(seed);
        let mut random = Random(!seed);
        let (_, mut known) = read(&mut living, Known::default(), &mut random, 20);
        for round in 0..6 {
            advance(&mut living, 1 + random.below(3));
            known.since = living.generation;
            let since = living.history[&living.generation].clone();
            advance(&mut living, random.below(4));
            let per_step = [10, 30, u64::MAX][round % 3];
            let (told, known_then) = read(&mut living, known, &mut random, per_step);
            passed += assert_exact(&told, &since, &living.history);
            known = known_then;
        }
    }
    assert!(passed > 5_000, "only {passed} extents were passed over");
}

#[test]
fn reading_again_costs_what_has_changed() {
    let mut living = Living::with_leaves_that_go(1);
    let mut random = Random(1);
    let (whole, mut known) = read(&mut living, Known::default(), &mut random, u64::MAX);
    known.since = living.generation;
    living.commit_one_change();
    let (told, _) = read(&mut living, known, &mut random, u64::MAX);
    assert!(told.reads * 3 < whole.reads, "{} of {} reads", told.reads, whole.reads);
}

#[test]
fn what_is_to_be_looked_at_is_read_though_it_has_not_changed() {
    let mut living = Living::with_leaves_that_go(2);
    let mut random = Random(2);
    let (_, mut known) = read(&mut living, Known::default(), &mut random, u64::MAX);
    let all = living.history[&living.generation].clone();
    known.since = living.generation;
    known.look_at = all.keys().copied().step_by(7).collect::<BTreeSet<u64>>();
    let wanted = known.look_at.clone();
    let (told, _) = read(&mut living, known, &mut random, u64::MAX);
    assert_exact(&told, &all, &living.history);
    let read: BTreeSet<u64> = told.extents.iter().map(|extent| extent.bytenr).collect();
    assert!(wanted.is_subset(&read));
    assert!(read.len() < all.len(), "all was read");
}

/// A tree whose leaves are far more than a reader reads ahead.
struct Large {
    image: written::Image,
    extents: BTreeMap<u64, written::Extent>,
    history: BTreeMap<u64, Extents>,
}

impl Large {
    const EXTENTS: u64 = 70_000;

    fn new() -> Self {
        let refs = |n| BTreeMap::from([(RefKey::data(5, 0, 257 + n, 0), 1)]);
        let extent = |n| written::Extent {
            len_bytes: 4096,
            kind: ExtentKind::Data,
            refs: refs(n),
            total_error: 0,
        };
        let extents = (0..Self::EXTENTS).map(|n| (Self::bytenr(n), extent(n))).collect();
        Self { image: written::Image::new(), extents, history: BTreeMap::new() }
    }

    fn bytenr(extent: u64) -> u64 {
        (1 << 30) + extent * 8192
    }

    fn commit(&mut self, generation: u64) {
        let trees = self.image.write_trees(generation, &self.extents);
        self.image.write_superblock(&trees);
        let on_disk = |(&bytenr, extent): (&u64, &written::Extent)| {
            let refs: Vec<_> = extent.refs.iter().map(|(key, count)| (*key, *count)).collect();
            let total_refs = refs.iter().map(|(_, count)| u64::from(*count)).sum();
            let (len_bytes, kind) = (extent.len_bytes, extent.kind);
            // The generation is the one that all items of such an image have.
            let (generation, owner_root) = (1, None);
            let extent =
                DiskExtent { bytenr, len_bytes, kind, total_refs, generation, owner_root, refs };
            (bytenr, extent)
        };
        self.history.insert(generation, self.extents.iter().map(on_disk).collect());
    }

    fn read(&self, known: Known) -> (Told, Known) {
        let mut reader = ExtentReader::since(ALL, 0, known);
        let told = drive(&mut reader, |read| {
            let len = usize::try_from(read.len_bytes).expect("small");
            assert!(len <= NODE_BYTES);
            Ok(Bytes::from(self.image.read(read.offset, len)))
        });
        assert_eq!((&told.failed, &told.findings[..]), (&None, &[][..]));
        (told, Known { tree: reader.into_known().expect("asked for"), ..Known::default() })
    }
}

#[test]
fn reading_thousands_of_leaves_again_costs_what_has_changed_wherever_that_is() {
    let mut large = Large::new();
    large.commit(7);
    let (whole, mut known) = large.read(Known::default());
    assert!(whole.reads > 1100, "only {} blocks, which a reader reads ahead", whole.reads);
    for (generation, changes) in [(8, 0), (9, 1), (10, 3), (11, 30)] {
        known.since = generation - 1;
        for change in 0..changes {
            // Spread from the first leaf to the last one.
            let place = change * (Large::EXTENTS - 1) / u64::max(changes - 1, 1);
            let place = if changes == 1 { Large::EXTENTS - 1 } else { place };
            let extent = large.extents.get_mut(&Large::bytenr(place)).expect("it is there");
            extent.refs.values_mut().for_each(|count| *count += 1);
        }
        large.commit(generation);
        let (told, known_then) = large.read(known);
        let passed = assert_exact(&told, &large.history[&(generation - 1)], &large.history);
        assert!(passed > 60_000, "{passed} extents were passed over");
        // Superblock, chunk tree, root tree and the extent tree's root; then, for each change, a
        // leaf and what is between. A leaf whose border moved has its neighbour read.
        let most = 4 + changes * 3;
        assert!(told.reads <= most, "{} reads for {changes} changes", told.reads);
        known = known_then;
    }
}
