//! Readings that pass over what has not changed since an earlier one.

use std::collections::BTreeSet;

use refverify_user::btrfs::reader::{ExtentReader, Known};

use crate::{
    image::{ALL, Told, drive_moving},
    living::{Extents, Living, Random},
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
fn assert_exact(told: &Told, since: &Extents, living: &Living) -> usize {
    let mut passed = 0;
    for (range, generation) in &told.unchanged {
        let now = living.history[generation].range(range.clone());
        let before = since.range(range.clone());
        passed += before.clone().count();
        assert!(now.eq(before), "{range:?} has changed before generation {generation}");
    }
    let mut read = 0;
    for (range, generation) in &told.ranges {
        let now: Vec<_> = living.history[generation].range(range.clone()).map(|(_, e)| e).collect();
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
            passed += assert_exact(&told, &since, &living);
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
    assert_exact(&told, &all, &living);
    let read: BTreeSet<u64> = told.extents.iter().map(|extent| extent.bytenr).collect();
    assert!(wanted.is_subset(&read));
    assert!(read.len() < all.len(), "all was read");
}
