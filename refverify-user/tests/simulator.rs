//! A seeded simulator of a file system drives the verifier. Honest histories must leave no
//! finding and a ledger that equals the file system; planted faults must be found.
//!
//! `SIM_SEEDS` sets how many seeds are run; a failure names its seed.

#[path = "simulator/failures.rs"]
mod failures;
#[path = "simulator/order.rs"]
mod order;
#[path = "simulator/replay.rs"]
mod replay;
mod support;

use refverify_user::{
    btrfs::{Action, RefKey},
    feed::{Change, Event, ToVerifier},
    verify::{
        AuditConfig, Coverage, FindingKind, FsState, GaveUp, Notice, Share, VerifierConfig,
        ledger::Limits,
    },
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
fn a_storm_of_wrong_events_is_told_in_part_and_counted_whole() {
    let mut world = watched_world(5);
    world.settle();
    let (bytenr, mut key) = world.shared_data_extent().expect("this seed has one");
    key.root = 999;
    key.parent = 0;
    for _ in 0..100 {
        let extent = world.model.extents[&bytenr].clone();
        let wrong = world.model.event(Action::DropRef, bytenr, extent.kind, extent.len_bytes, key);
        world.emit(wrong);
        world.settle();
    }
    let told: Vec<u64> = world.findings().iter().map(|finding| finding.withheld).collect();
    assert_eq!(told, [0, 0, 1, 3, 7, 15, 31]);
    let summary = world.finish();
    assert_eq!(summary.findings[&FindingKind::DropMissingRef], 100);
    assert_eq!(summary.withheld[&FindingKind::DropMissingRef], 93);
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
fn a_memory_bound_that_is_reached_is_told_and_changes_no_verdict() {
    let tight = Limits { memory_bytes: 1 << 30, history_bytes: 256, history_per_extent: 2 };
    let none = Limits::new(1 << 10, 2);
    let mut seeds_that_gave_up = 0;
    for (limits, over_ceiling) in [(tight, false), (none, true)] {
        for seed in 0..10 {
            let config = VerifierConfig { limits, ..VerifierConfig::default() };
            let mut world = World::with(seed, config);
            world.attach();
            for _ in 0..1500 {
                world.step();
            }
            assert_ledger_equals_the_file_system(&mut world, seed);
            let summary = world.finish();
            assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
            assert!(!summary.has_gaps(), "seed {seed}: {summary:?}");
            let told = |wanted: fn(&GaveUp) -> bool| {
                let gave_up = |notice: &&Notice| matches!(notice, Notice::GaveUp { what, .. } if wanted(what));
                world.notices.iter().filter(gave_up).count()
            };
            let histories = told(|what| matches!(what, GaveUp::Histories { .. }));
            let freed = told(|what| matches!(what, GaveUp::FreedExtents { .. }));
            assert!(histories <= 1 && freed <= 1, "seed {seed}: told again and again");
            let Coverage { histories_given_up, freed_given_up, .. } = &summary.coverage[0];
            assert_eq!(histories_given_up.is_some(), histories == 1, "seed {seed}");
            assert_eq!(freed_given_up.is_some(), freed == 1, "seed {seed}");
            assert!(histories_given_up >= freed_given_up);
            seeds_that_gave_up += freed;
            let everything = told(|what| matches!(what, GaveUp::Everything { .. }));
            assert_eq!(everything, usize::from(over_ceiling), "seed {seed}");
        }
    }
    assert!(seeds_that_gave_up > 10, "only {seeds_that_gave_up} of 20 gave anything up");
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
fn losses_again_and_again_leave_an_exact_ledger_and_never_a_finding() {
    for seed in seeds().step_by(4) {
        let mut world = watched_world(seed);
        for round in 0..8 {
            for _ in 0..60 + 40 * (round % 3) {
                world.step();
            }
            world.lose(1 + round);
            if round % 4 == 3 {
                assert_ledger_equals_the_file_system(&mut world, seed);
            }
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
    }
}

#[test]
fn what_a_loss_costs_grows_with_what_changed_and_not_with_the_file_system() {
    for seed in seeds().take(3) {
        let mut world = World::new(seed);
        for _ in 0..20_000 {
            world.change();
        }
        world.commit_now();
        world.attach();
        world.settle();
        let whole = world.blocks_read;
        world.change();
        world.change();
        world.lose(1);
        assert_ledger_equals_the_file_system(&mut world, seed);
        let again = world.blocks_read - whole;
        assert!(again * 3 < whole, "seed {seed}: {again} blocks after {whole}");
    }
}

fn audited_world(seed: u64) -> World {
    let audit = Some(AuditConfig { interval_ns: 0 });
    let mut world = World::with(seed, VerifierConfig { audit, ..VerifierConfig::default() });
    world.attach();
    world
}

#[test]
fn audits_of_an_honest_file_system_find_nothing_whatever_is_lost() {
    let mut audits = 0;
    for seed in seeds() {
        let mut world = audited_world(seed);
        for round in 0..4 {
            for _ in 0..400 {
                world.step();
            }
            if round % 2 == 1 && seed % 3 == 0 {
                world.lose(3);
            }
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
        audits += summary.coverage[0].audits;
    }
    assert!(audits > 2 * seeds().count() as u64, "only {audits} audits");
}

/// A right event that is not carried out: no event says so, and no leaf moves.
#[test]
fn a_reference_that_never_reaches_the_disk_is_found_by_the_audit_of_its_commit() {
    for seed in seeds() {
        let mut world = audited_world(seed);
        world.settle();
        let (bytenr, _) = world.shared_data_extent().expect("there are many");
        let key = RefKey::data(5, 0, 1 << 40, 0);
        let event = world.model.add_ref(bytenr, key);
        world.emit(event);
        world.missing_on_disk = Some((bytenr, key));
        world.settle();
        let found: Vec<_> = world.findings().into_iter().map(|it| (it.kind, it.bytenr())).collect();
        assert_eq!(found, [(FindingKind::DiskDiffers, bytenr)], "seed {seed}");
    }
}

#[test]
fn a_file_system_that_is_not_watched_is_not_read_and_never_becomes_live() {
    let mut world = World::new(3);
    world.greet();
    world.drain();
    world.drain();
    assert_eq!(world.blocks_wanted(), 0, "it is not mounted");
    world.attach();
    world.settle();
    world.unmount();
    world.drain();
    world.answer_all();
    assert_eq!(world.blocks_wanted(), 0, "it was unmounted");
}

#[test]
fn a_file_system_that_was_refused_stays_so() {
    let mut world = World::new(4);
    world.spoil_reads(true);
    world.attach();
    world.settle();
    assert_eq!(world.refusals(), 1);
    world.spoil_reads(false);
    world.settle();
    assert_eq!((world.refusals(), world.blocks_wanted()), (1, 0));
    let summary = world.finish();
    assert_eq!(summary.coverage[0].state, FsState::Refused);
    assert_eq!(summary.coverage[0].mounts_unverified, 1);
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
    world.limit(Share { memory_max_bytes: 1 << 30, waiting_max: 100 });
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
