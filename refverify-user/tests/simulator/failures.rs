//! Failures in the life of a file system: what the superblock on disk says is what counts.

use refverify_user::{
    btrfs::{Action, RefKey},
    feed::{FsSlot, ToVerifier},
    verify::{BlindCause, Notice, Span},
};

use super::{assert_ledger_equals_the_file_system, seeds, support::world::World, watched_world};

fn undone(world: &World) -> Vec<Span> {
    let span = |notice: &Notice| match notice {
        Notice::Undone { undone, .. } => Some(*undone),
        _ => None,
    };
    world.notices.iter().filter_map(span).collect()
}

/// The causes of blindness that were told.
fn blind(world: &World) -> Vec<BlindCause> {
    let cause = |notice: &Notice| match notice {
        Notice::Blind { cause, .. } => Some(cause.clone()),
        _ => None,
    };
    world.notices.iter().filter_map(cause).collect()
}

/// The ledger's body and generation, whatever its state.
fn ledger_and_generation(world: &mut World) -> (String, u64) {
    world.tell(ToVerifier::DumpWanted);
    let Some(Notice::Dump(text)) = world.notices.pop() else { panic!("a dump was asked for") };
    let (header, body) = text.split_once('\n').expect("a header line");
    let generation = header.rsplit(' ').next().and_then(|word| word.parse().ok());
    (body.strip_suffix("end\n").expect("a last line").to_owned(), generation.expect("a number"))
}

#[test]
fn of_an_aborted_transaction_nothing_is_left_but_what_the_superblock_says() {
    for seed in seeds().step_by(6) {
        let mut world = watched_world(seed);
        world.settle();
        let steps = world.rng.below(60);
        for _ in 0..steps {
            world.step();
        }
        world.change();
        world.change();
        world.change();
        let both_die = seed % 4 == 0;
        let aborted = world.abort(both_die);
        world.drain();
        world.answer_all();
        world.crash();
        let disk = world.disk();
        let newest = undone(&world);
        assert_eq!(newest.len(), 1, "seed {seed}: {newest:?}");
        assert_eq!(newest[0], Span { first: disk.generation + 1, last: aborted }, "seed {seed}");
        assert_eq!(disk.generation, aborted - if both_die { 2 } else { 1 }, "seed {seed}");
        let (ledger, generation) = ledger_and_generation(&mut world);
        assert_eq!(generation, disk.generation, "seed {seed}");
        world.mount(disk);
        assert!(ledger == world.model.dump(), "seed {seed}: the ledger is not what is on disk");
        for _ in 0..200 {
            world.step();
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
        assert!(!summary.has_gaps(), "seed {seed}: {summary:?}");
        assert_eq!(summary.coverage[0].undone, newest, "seed {seed}");
        let verified = summary.coverage[0].verified[0];
        assert!(verified.last < newest[0].first, "seed {seed}: {verified:?} {newest:?}");
    }
}

#[test]
fn a_finding_of_a_transaction_that_is_undone_stays_and_is_counted() {
    let mut world = watched_world(5);
    world.settle();
    let (bytenr, mut key) = world.shared_data_extent().expect("there are many");
    key.root = 999;
    key.parent = 0;
    let extent = world.model.extents[&bytenr].clone();
    let wrong = world.model.event(Action::DropRef, bytenr, extent.kind, extent.len_bytes, key);
    world.emit(wrong);
    world.abort(true);
    world.drain();
    world.drain();
    world.crash();
    let told = world.notices.iter().find_map(|notice| match notice {
        Notice::Undone { findings, .. } => Some(*findings),
        _ => None,
    });
    assert_eq!((told, world.findings().len()), (Some(1), 1));
}

#[test]
fn writes_that_are_dropped_make_blind_until_they_reach_the_disk_again() {
    for seed in seeds().step_by(6) {
        let mut world = watched_world(seed);
        world.settle();
        world.drops_writes = true;
        let before = world.disk().generation;
        for _ in 0..300 {
            world.step();
        }
        world.settle();
        let causes = blind(&world);
        let [BlindCause::WritesDropped { signalled, on_disk }] = causes[..] else {
            panic!("seed {seed}: {causes:?}")
        };
        assert!(on_disk == before && signalled > before, "seed {seed}: {causes:?}");
        world.drops_writes = false;
        assert_ledger_equals_the_file_system(&mut world, seed);
        for _ in 0..200 {
            world.step();
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
        let blind = &summary.coverage[0].blind;
        assert_eq!(blind.len(), 1, "seed {seed}: {blind:?}");
        assert_eq!(blind[0].span.first, before + 1, "seed {seed}");
    }
}

#[test]
fn writes_that_were_dropped_up_to_the_end_are_undone() {
    for seed in seeds().step_by(10) {
        let mut world = watched_world(seed);
        world.settle();
        world.drops_writes = true;
        for _ in 0..100 {
            world.step();
        }
        // The superblock is looked at once a second, as long as it is mounted.
        for _ in 0..3 {
            world.settle();
        }
        world.crash();
        let disk = world.disk();
        assert_eq!(undone(&world).len(), 1, "seed {seed}");
        assert_eq!(undone(&world)[0].first, disk.generation + 1, "seed {seed}");
        world.mount(disk);
        for _ in 0..200 {
            world.step();
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
        assert!(summary.has_gaps(), "seed {seed}");
    }
}

/// What is on disk after an unmount is no longer the kernel's.
#[test]
fn an_image_that_is_put_back_at_once_after_the_unmount_is_not_taken_for_dropped_writes() {
    let mut world = watched_world(2);
    world.settle();
    let old = world.disk();
    for _ in 0..100 {
        world.step();
    }
    world.settle();
    world.push(ToVerifier::Unmount { fs: FsSlot(0) });
    world.drain();
    world.mount(old);
    world.answer_all();
    world.settle();
    assert_eq!((undone(&world), blind(&world)), (Vec::new(), Vec::new()));
}

#[test]
fn an_older_file_system_that_comes_back_is_read_whole() {
    for seed in seeds().step_by(6) {
        let mut world = watched_world(seed);
        world.settle();
        let old = world.disk();
        for _ in 0..400 {
            world.step();
        }
        world.settle();
        world.crash();
        assert!(undone(&world).is_empty(), "seed {seed}: everything had been committed");
        world.mount(old);
        for _ in 0..300 {
            world.step();
        }
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
        assert!(!summary.has_gaps(), "seed {seed}: {summary:?}");
    }
}

/// The mount is told before any device has said what became of the last transaction.
#[test]
fn what_a_crash_undid_is_not_known_in_the_mount_that_follows_at_once() {
    for seed in seeds().step_by(10) {
        let mut world = watched_world(seed);
        world.settle();
        for _ in 0..100 {
            world.change();
        }
        world.drain();
        world.unmount();
        let disk = world.disk();
        world.mount(disk);
        world.drain();
        // All of it is read before the transaction of the same number commits.
        world.answer_all();
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
    }
}

/// From one image two histories go on, with a leaf of the same place and generation that is not the
/// same.
#[test]
fn what_was_met_in_one_mount_is_not_taken_for_unchanged_in_the_next() {
    for seed in seeds().step_by(10) {
        let mut world = watched_world(seed);
        world.settle();
        let old = world.disk();
        let (bytenr, _) = world.shared_data_extent().expect("there are many");
        let here = world.model.add_ref(bytenr, RefKey::data(5, 0, 998, 0));
        world.emit(here);
        // After the loss the leaf is read, and remembered.
        world.lose(1);
        world.settle();
        // In the midst of a transaction: nothing is kept for a mount that goes on from there.
        for _ in 0..10 {
            world.change();
        }
        world.drain();
        world.crash();
        let elsewhere = world.worked_on_elsewhere(old, |world| {
            world.model.add_ref(bytenr, RefKey::data(5, 0, 999, 0));
        });
        world.mount(elsewhere);
        assert_ledger_equals_the_file_system(&mut world, seed);
        let summary = world.finish();
        assert!(!summary.has_findings(), "seed {seed}: {:?}", world.findings());
    }
}
