//! What is told contradicts what was told before: it is noticed, it counts as a loss, nothing false
//! is found, and after a reading the ledger is exact again.

use refverify_user::{
    feed::{LossSource, ToVerifier},
    verify::{Disorder, FsState, Notice},
};

use super::{
    assert_ledger_equals_the_file_system, seeds,
    support::world::{FS, World},
    watched_world,
};

/// Goes on after the lie; it was told once, was counted, and left nothing behind.
fn assert_noticed(mut world: World, seed: u64, expected: impl Fn(Disorder) -> bool) {
    for _ in 0..100 {
        world.step();
    }
    assert_ledger_equals_the_file_system(&mut world, seed);
    let told: Vec<Disorder> = world.notices.iter().filter_map(disorder).collect();
    assert!(matches!(told[..], [one] if expected(one)), "seed {seed}: {told:?}");
    let summary = world.finish();
    assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
    let lost: Vec<_> = summary.losses.iter().map(|loss| (loss.source, loss.fs)).collect();
    assert_eq!(lost, [(LossSource::OutOfOrder, Some(FS))], "seed {seed}");
    assert_eq!(summary.coverage[0].blind.len(), 1, "seed {seed}: {:?}", summary.coverage);
    assert!(summary.has_gaps(), "seed {seed}");
}

fn disorder(notice: &Notice) -> Option<Disorder> {
    match notice {
        Notice::OutOfOrder { disorder, .. } => Some(*disorder),
        _ => None,
    }
}

/// A world that is watched and at rest, with a commit behind it that was signalled.
fn world_at_rest(seed: u64) -> World {
    let mut world = watched_world(seed);
    world.settle();
    assert_eq!(world.ledger().0, FsState::Live);
    world
}

#[test]
fn an_event_of_an_older_transaction_than_the_last_is_noticed() {
    let mut noticed = 0;
    for seed in seeds() {
        let mut world = world_at_rest(seed);
        let Some(event) = world.model.step(&mut world.rng) else { continue };
        let ahead = event.transid + 1;
        let mut early = event.clone();
        early.transid = ahead;
        // Its change is told, with the wrong transaction; what follows goes back.
        world.emit(early);
        world.change();
        world.drain();
        let is_it =
            |disorder| matches!(disorder, Disorder::EventGoesBack { after, .. } if after == ahead);
        if world.notices.iter().any(|notice| disorder(notice).is_some()) {
            assert_noticed(world, seed, is_it);
            noticed += 1;
        }
    }
    assert!(noticed > 0, "nothing came after the lie");
}

#[test]
fn an_event_of_a_transaction_that_is_on_disk_is_noticed() {
    for seed in seeds() {
        let mut world = world_at_rest(seed);
        let Some(mut event) = world.model.step(&mut world.rng) else { continue };
        event.transid -= 1;
        let late = event.transid;
        world.emit(event);
        world.drain();
        let is_it = |disorder| matches!(disorder, Disorder::EventIsDurable { transid, .. } if transid == late);
        assert_noticed(world, seed, is_it);
    }
}

#[test]
fn a_commit_that_was_not_signalled_is_noticed() {
    for seed in seeds() {
        let mut world = world_at_rest(seed);
        world.commit_now();
        world.lose_commit();
        world.commit_now();
        world.drain();
        assert_noticed(world, seed, |disorder| {
            matches!(disorder, Disorder::CommitOutOfTurn { .. })
        });
    }
}

#[test]
fn a_commit_that_is_signalled_twice_is_noticed() {
    for seed in seeds() {
        let mut world = world_at_rest(seed);
        let transid = world.model.transid - 1;
        world.push(ToVerifier::Commit { fs: FS, transid });
        world.drain();
        assert_noticed(world, seed, |disorder| {
            disorder == Disorder::CommitOutOfTurn { transid, after: transid }
        });
    }
}
