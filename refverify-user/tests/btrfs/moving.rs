//! File systems that change under the reader: every range is exact at its generation.

use std::collections::{BTreeMap, BTreeSet};

use refverify_user::btrfs::{
    format::{ReadFailure, SUPERBLOCK_OFFSET},
    reader::ExtentReader,
};

use crate::{
    image::{ALL, Told, drive, drive_moving},
    living::{Extents, Living, Random},
    synthetic::Device,
};

/// Every range that was told must be what the file system had at that generation.
pub(crate) fn assert_exact_per_range(told: &Told, at_generation: impl Fn(u64) -> Extents) {
    assert_eq!((&told.failed, &told.findings[..]), (&None, &[][..]));
    assert!(told.done.is_some());
    assert_eq!(told.ranges.last().map(|(range, _)| range.end), Some(ALL.end));
    let mut from_ranges = 0;
    for (range, generation) in &told.ranges {
        let extents = at_generation(*generation);
        let expected: Vec<_> = extents.range(range.clone()).map(|(_, extent)| extent).collect();
        let actual: Vec<_> =
            told.extents.iter().filter(|extent| range.contains(&extent.bytenr)).collect();
        assert_eq!(actual, expected, "{range:?} at generation {generation}");
        from_ranges += actual.len();
    }
    assert_eq!(from_ranges, told.extents.len());
}

fn assert_living_exact(seed: u64, reads_per_step: u64, move_on_every: u64) -> Told {
    let mut living = Living::new(seed);
    let mut random = Random(!seed);
    let mut reader = ExtentReader::new(ALL, 0);
    let told = drive_moving(&mut reader, move_on_every, |read| {
        if random.below(reads_per_step) == 0 {
            living.step();
        }
        living.device.read(read)
    });
    assert_exact_per_range(&told, |generation| living.history[&generation].clone());
    told
}

#[test]
fn a_tree_that_is_overwritten_while_it_is_read_is_exact_per_range() {
    let mut generations = 0;
    for seed in 0..20 {
        for reads_per_step in [6, 12, 30] {
            generations += assert_living_exact(seed, reads_per_step, u64::MAX).generations.len();
        }
    }
    assert!(generations > 200, "only {generations} generations in all");
}

#[test]
fn a_reader_that_moves_on_is_exact_per_range() {
    let mut generations = 0;
    for seed in 100..110 {
        for move_on_every in [1, 7] {
            generations += assert_living_exact(seed, 30, move_on_every).generations.len();
        }
    }
    assert!(generations > 80, "only {generations} generations in all");
}

/// Reads while asking to move on all the time; no block may be read twice.
fn move_on_always(living: &mut Living, mut before_read: impl FnMut(&mut Living, u64)) -> Told {
    let mut seen = BTreeSet::new();
    let mut reads = 0;
    drive_moving(&mut ExtentReader::new(ALL, 0), 1, |read| {
        reads += 1;
        before_read(living, reads);
        let is_new = seen.insert(read.offset);
        assert!(is_new || read.offset == SUPERBLOCK_OFFSET, "{} is read twice", read.offset);
        living.device.read(read)
    })
}

#[test]
fn moving_on_without_a_commit_costs_one_superblock() {
    let mut living = Living::new(1);
    let still = drive(&mut ExtentReader::new(ALL, 0), |read| living.device.read(read));
    let told = move_on_always(&mut living, |_, _| {});
    assert_eq!(told.extents, still.extents);
    assert_eq!(told.generations, still.generations);
    assert!(told.reads > still.reads + 10, "it never read the superblock again");
}

#[test]
fn a_commit_that_left_the_extent_tree_alone_costs_superblock_and_root_tree() {
    let mut living = Living::new(1);
    let still = drive(&mut ExtentReader::new(ALL, 0), |read| living.device.read(read));
    let told = move_on_always(&mut living, |living, reads| {
        if reads == 40 {
            living.commit_unchanged();
        }
    });
    assert_eq!(told.extents, still.extents);
    assert_eq!(told.generations.len(), 2);
}

#[test]
fn a_block_that_stays_bad_ends_in_an_error_however_often_the_superblock_moves() {
    let mut living = Living::new(3);
    let mut reader = ExtentReader::new(ALL, 0);
    let bad = living.leaf_bytenr(30);
    let told = drive(&mut reader, |read| {
        living.commit_unchanged();
        living.device.edit_block(bad, |block| block[80] ^= 0xff);
        let data = living.device.read(read);
        living.device.edit_block(bad, |block| block[80] ^= 0xff);
        data
    });
    let failed = told.failed.expect("a bad block").to_string();
    assert!(failed.contains(&bad.to_string()), "{failed}");
    assert!(!told.extents.is_empty(), "what lies before the bad block is told");
    assert!(told.ranges.iter().all(|(range, _)| range.end <= 31 << 20));
}

#[test]
fn a_device_that_stumbles_now_and_then_is_read_to_the_end() {
    let living = Living::new(5);
    // Each of these leaves stumbles until one more superblock was read than for the one before:
    // more stumbling than one block is allowed, but never twice without progress.
    let stumbling: BTreeMap<u64, u32> = [10, 20, 30, 40, 50]
        .into_iter()
        .zip(2..)
        .flat_map(|(leaf, superblocks)| {
            Device::places(living.leaf_bytenr(leaf)).map(|at| (at as u64, superblocks))
        })
        .collect();
    let mut superblocks = 0;
    let told = drive(&mut ExtentReader::new(ALL, 0), |read| {
        superblocks += u32::from(read.offset == SUPERBLOCK_OFFSET);
        match stumbling.get(&read.offset) {
            Some(&enough) if superblocks < enough => Err(ReadFailure::new("stumbled")),
            _ => living.device.read(read),
        }
    });
    assert_eq!(superblocks, 6);
    assert_exact_per_range(&told, |generation| living.history[&generation].clone());
}

#[test]
fn leaves_read_ahead_are_used_again_at_the_next_generation() {
    let mut living = Living::new(6);
    let mut reads = BTreeMap::new();
    let mut answered = 0;
    let told = drive_moving(&mut ExtentReader::new(ALL, 0), 74, |read| {
        answered += 1;
        if answered == 74 {
            living.commit_one_change();
        }
        *reads.entry(read.offset).or_insert(0) += 1;
        living.device.read(read)
    });
    assert_eq!(told.generations.len(), 2);
    assert_exact_per_range(&told, |generation| living.history[&generation].clone());
    reads.remove(&SUPERBLOCK_OFFSET);
    let twice = reads.values().filter(|&&times| times > 1).count();
    assert!(twice < 20, "{twice} blocks were read twice, for one change");
}
