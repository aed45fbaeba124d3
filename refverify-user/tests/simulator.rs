//! A seeded simulator of a file system drives the verifier. Honest histories must leave no
//! finding and a ledger that equals the file system; planted faults must be found.
//!
//! `SIM_SEEDS` sets how many seeds are run; a failure names its seed.

#[path = "simulator/replay.rs"]
mod replay;
mod support;

use refverify_user::{
    btrfs::Action,
    feed::{Change, Event, ToVerifier},
    verify::{FindingKind, FsState, Notice, Share},
};
use support::world::World;

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    0..count
}

/// Attaches in the middle of things and lets the world go on for a while.
fn watched_world(seed: u64) -> World {
    let mut world = World::new(seed);
    let before = world.rng.below(200);
    for _ in 0..before {
        world.step();
    }
    world.attach();
    for _ in 0..600 {
        world.step();
    }
    world
}

fn assert_ledger_equals_the_file_system(world: &mut World, seed: u64) {
    world.settle();
    let (state, ledger) = world.ledger();
    assert_eq!(state, FsState::Live, "seed {seed}: not live; {:?}", world.notices.last());
    let model = world.model.dump();
    let differ = ledger.lines().zip(model.lines()).find(|(a, b)| a != b);
    assert!(ledger == model, "seed {seed}: the ledger differs: {differ:?}");
}

#[test]
fn an_honest_history_leaves_no_finding_and_an_exact_ledger() {
    for seed in seeds() {
        let mut world = watched_world(seed);
        assert_ledger_equals_the_file_system(&mut world, seed);
        for _ in 0..400 {
            world.step();
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
        assert!(!summary.has_gaps(), "seed {seed}: {summary:?}");
        assert!(summary.coverage[0].events_applied > 0, "seed {seed}: nothing was judged");
    }
}

#[test]
fn seeding_meets_blocks_that_are_overwritten_while_it_reads() {
    // Otherwise the simulator proves nothing about reading a live tree.
    let moved = seeds().filter(|&seed| {
        let world = watched_world(seed);
        let mut generations: Vec<u64> = world.notices.iter().filter_map(read_at).collect();
        generations.dedup();
        generations.len() > 2
    });
    let moved = moved.count();
    assert!(moved >= 10, "only {moved} seeds were read at three generations or more");
}

fn read_at(notice: &Notice) -> Option<u64> {
    match notice {
        Notice::Seeding { generation, .. } => Some(*generation),
        _ => None,
    }
}

#[test]
fn a_reference_missing_on_disk_is_found_when_it_is_dropped() {
    let mut planted = 0;
    for seed in seeds() {
        let mut world = World::new(seed);
        let Some((bytenr, key)) = world.shared_data_extent() else { continue };
        world.missing_on_disk = Some((bytenr, key));
        world.commit_now();
        world.attach();
        world.settle();
        let mut event = world.model.drop_ref(bytenr, key);
        while world.model.extents.get(&bytenr).is_some_and(|e| e.refs.contains_key(&key)) {
            world.emit(event);
            event = world.model.drop_ref(bytenr, key);
        }
        world.emit(event);
        world.missing_on_disk = None;
        world.drain();
        world.drain();
        let found: Vec<_> = world.findings().iter().map(|f| (f.kind, f.bytenr())).collect();
        assert_eq!(found, [(FindingKind::DropMissingRef, bytenr)], "seed {seed}");
        assert_ledger_equals_the_file_system(&mut world, seed);
        planted += 1;
    }
    assert!(planted >= 10, "only {planted} seeds had an extent to plant in");
}

#[test]
fn one_wrong_event_gives_one_finding_and_the_disk_heals_the_ledger() {
    let mut planted = 0;
    for seed in seeds() {
        let mut world = watched_world(seed);
        world.settle();
        let Some((bytenr, mut key)) = world.shared_data_extent() else { continue };
        key.root = 999;
        key.parent = 0;
        let extent = world.model.extents[&bytenr].clone();
        let wrong = world.model.event(Action::DropRef, bytenr, extent.kind, extent.len_bytes, key);
        world.emit(wrong.clone());
        world.emit(wrong);
        for _ in 0..200 {
            world.step();
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let found: Vec<_> = world.findings().iter().map(|f| (f.kind, f.bytenr())).collect();
        assert_eq!(found, [(FindingKind::DropMissingRef, bytenr)], "seed {seed}");
        planted += 1;
    }
    assert!(planted >= 10, "only {planted} seeds had an extent to plant in");
}

#[test]
fn a_failed_call_leaves_no_finding_and_an_exact_ledger() {
    for seed in seeds() {
        let mut world = watched_world(seed);
        world.settle();
        let Some((bytenr, key)) = world.shared_data_extent() else { continue };
        let extent = world.model.extents[&bytenr].clone();
        // The call is recorded, fails for want of memory, and its space is given to another.
        let failed =
            world.model.event(Action::AddExtent, bytenr, extent.kind, extent.len_bytes, key);
        let tid = failed.tid;
        world.emit(failed);
        if world.rng.one_in(2) {
            world.drain();
        }
        world.push(ToVerifier::Retraction { tid, errno: -12 });
        for _ in 0..100 {
            world.step();
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
        assert_eq!(summary.coverage[0].events_retracted, 1, "seed {seed}");
    }
}

#[test]
fn a_mount_that_changes_and_goes_before_its_tree_is_read_is_a_gap() {
    let mut world = World::new(1);
    world.attach();
    world.change();
    world.change();
    world.change();
    world.drain();
    world.unmount();
    assert!(world.finish().has_gaps());
}

#[test]
fn a_failed_call_whose_event_is_not_known_makes_blind() {
    let mut world = watched_world(1);
    world.settle();
    world.push(ToVerifier::Retraction { tid: 4711, errno: -12 });
    for _ in 0..50 {
        world.step();
    }
    assert_ledger_equals_the_file_system(&mut world, 1);
    let summary = world.finish();
    assert!(!summary.has_findings());
    assert!(!summary.coverage[0].blind.is_empty());
}

#[test]
fn loss_makes_blind_until_the_tree_is_read_again_and_never_a_finding() {
    for seed in seeds() {
        let mut world = watched_world(seed);
        for _ in 0..30 {
            world.change();
        }
        world.lose(20);
        for _ in 0..300 {
            world.step();
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
        assert!(summary.has_gaps(), "seed {seed}: the loss was not told");
        assert!(!summary.coverage[0].blind.is_empty(), "seed {seed}: no blind span");
    }
}

#[test]
fn an_agent_that_goes_before_it_tells_a_loss_leaves_no_false_finding() {
    for seed in seeds() {
        let mut world = watched_world(seed);
        world.settle();
        for _ in 0..30 {
            world.change();
        }
        world.lose(20);
        for _ in 0..30 {
            world.change();
        }
        let summary = world.agent_goes();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
    }
}

#[test]
fn findings_without_end_and_without_a_drain_are_not_piled_up() {
    let mut world = World::new(1);
    world.limit(Share { entries_max: 1 << 20, waiting_max: 100 });
    world.attach();
    world.settle();
    assert_eq!(world.ledger().0, FsState::Live);
    let mut honest = std::iter::repeat_with(|| world.model.step(&mut world.rng)).flatten();
    let event = honest.next().expect("the model goes on");
    drop(honest);
    // A group that begins and ends within an extent, again and again: that reads nothing anew.
    let &within = world.model.extents.keys().next().expect("it has extents");
    let change = Change::RemoveGroup { start: within + 1, len_bytes: 1 };
    for _ in 0..200 {
        world.tell(ToVerifier::Events(vec![Event { change, ..event.clone() }]));
    }
    let refused = world.notices.iter().find_map(|notice| match notice {
        Notice::Refused { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(refused.as_deref(), Some("102 findings that wait are more than its share"));
    assert!(!world.finish().has_findings());
}

#[test]
fn a_loss_that_is_not_told_would_be_seen_as_a_finding_or_a_wrong_ledger() {
    // What the tests above rest on: lost events do make a difference.
    let differs = seeds().filter(|&seed| {
        let mut world = watched_world(seed);
        world.settle();
        let unseen = world.model.step(&mut world.rng);
        world.drain();
        unseen.is_some_and(|event| matches!(event.change, Change::Ref { .. }))
            && world.ledger().1 != world.model.dump()
    });
    assert!(differs.count() > 10);
}
