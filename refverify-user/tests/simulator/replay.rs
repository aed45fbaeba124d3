//! A recording leads the verifier to the same again.

use refverify_user::{
    btrfs::Action,
    feed::{
        ToVerifier,
        recording::{End, Player, Recorder},
    },
    verify::{Notice, Outbox, Verifier, VerifierConfig},
};

use crate::support::world::World;

/// A run with a fault, a loss and dumps in it, and its recording.
fn recorded_run(seed: u64) -> (Vec<Notice>, Vec<u8>) {
    let mut world = World::new(seed);
    world.recorder = Some(Recorder::new(Vec::new(), None, None).unwrap());
    for _ in 0..100 {
        world.step();
    }
    world.attach();
    for _ in 0..300 {
        world.step();
    }
    world.settle();
    if let Some((bytenr, mut key)) = world.shared_data_extent() {
        key.root = 999;
        key.parent = 0;
        let extent = world.model.extents[&bytenr].clone();
        let wrong = world.model.event(Action::DropRef, bytenr, extent.kind, extent.len_bytes, key);
        world.emit(wrong);
    }
    world.settle();
    world.tell(ToVerifier::DumpWanted);
    for _ in 0..30 {
        world.change();
    }
    world.lose(10);
    world.settle();
    world.tell(ToVerifier::DumpWanted);
    world.finish();
    let recorder = world.recorder.take().unwrap();
    (world.notices, recorder.finish().unwrap())
}

fn replayed(recording: &[u8]) -> (Vec<Notice>, End) {
    let mut player = Player::new(recording).unwrap();
    let mut verifier = Verifier::new(VerifierConfig::default());
    let mut out = Outbox::default();
    while let Some(message) = player.next_message().unwrap() {
        verifier.handle(message, &mut out);
    }
    (out.notices, player.end().unwrap().clone())
}

#[test]
fn a_replay_tells_the_same_in_the_same_order() {
    let mut findings = 0;
    for seed in 0..20 {
        let (notices, recording) = recorded_run(seed);
        let (again, end) = replayed(&recording);
        assert_eq!(end, End::Whole);
        assert!(again == notices, "seed {seed}: {again:#?}");
        let dumps = notices.iter().filter(|n| matches!(n, Notice::Dump(text) if text.len() > 1000));
        assert_eq!(dumps.count(), 2, "seed {seed}: the ledgers were compared");
        findings += notices.iter().filter(|n| matches!(n, Notice::Finding(_))).count();
    }
    assert!(findings > 10, "only {findings} findings were compared");
}

#[test]
fn a_recording_cut_off_tells_the_same_up_to_the_cut() {
    let (notices, recording) = recorded_run(3);
    for cut in (100..recording.len()).step_by(recording.len() / 20) {
        let (again, end) = replayed(&recording[..cut]);
        assert!(matches!(end, End::Cut { .. }));
        assert!(again[..] == notices[..again.len()], "cut at {cut}");
    }
}
