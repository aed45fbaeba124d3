//! What is recorded is told again; what is damaged is told up to the damage.

use std::{io::Cursor, sync::Arc};

use super::*;
use crate::{
    btrfs::{Action, ExtentKind, RefKey},
    feed::{Change, Comm, Event, FsSlot, Tee, ToVerifier},
};

fn event(n: u64) -> Event {
    Event {
        fs: FsSlot(0),
        transid: 7 + n / 1000,
        time_ns: 5_000_000_000 + n * 1000,
        cpu: 0,
        pid: 1,
        tid: 1,
        comm: Comm::default(),
        stack: Arc::from([n % 100, 2, 3]),
        change: Change::Ref {
            action: Action::AddRef,
            kind: ExtentKind::Data,
            bytenr: n * 4096,
            len_bytes: 4096,
            key: RefKey::data(5, 0, n.wrapping_mul(0x9e37_79b9_7f4a_7c15), 0),
            owning_root: 0,
        },
    }
}

/// Ten ticks a second, with so many events before each.
fn messages(ticks: u64, events: u64) -> Vec<ToVerifier> {
    let tick = |n| ToVerifier::Tick { time_ns: n * 100_000_000 };
    let events = |n| ToVerifier::Events((n * events..(n + 1) * events).map(event).collect());
    (0..ticks).flat_map(|n| [events(n), tick(n)]).chain([ToVerifier::Bye]).collect()
}

fn recorded(messages: &[ToVerifier]) -> Vec<u8> {
    let mut recorder = Recorder::new(Vec::new(), Some("testvm"), Some(0)).unwrap();
    for message in messages {
        recorder.record(message).unwrap();
    }
    recorder.finish().unwrap()
}

fn played(file: &[u8]) -> (Vec<ToVerifier>, End) {
    let mut player = Player::new(file).unwrap();
    let mut messages = Vec::new();
    while let Some(message) = player.next_message().unwrap() {
        messages.push(message);
    }
    (messages, player.end().unwrap().clone())
}

#[test]
fn what_is_recorded_is_told_again() {
    let messages = messages(50, 1000);
    let file = recorded(&messages);
    assert_eq!(Player::new(&file[..]).unwrap().header().vm.as_deref(), Some("testvm"));
    let (again, end) = played(&file);
    assert!(again == messages);
    assert_eq!(end, End::Whole);
}

#[test]
fn an_empty_recording_is_whole() {
    assert_eq!(played(&recorded(&[])), (Vec::new(), End::Whole));
}

#[test]
fn a_recording_cut_anywhere_is_told_up_to_the_cut() {
    let messages = messages(30, 20);
    let file = recorded(&messages);
    let header_len = file.windows(4).position(|bytes| bytes == b"RVB\n").unwrap();
    let mut told_before = 0;
    // Every place near the start and the end, and some between.
    let places = (header_len..header_len + 200)
        .chain((header_len..file.len()).step_by(997))
        .chain(file.len() - 200..file.len());
    for cut in places {
        let (told, end) = played(&file[..cut]);
        assert!(told[..] == messages[..told.len()], "cut at {cut}");
        assert!(told.len() >= told_before, "cut at {cut}");
        told_before = told.len();
        let End::Cut { offset, .. } = end else { panic!("cut at {cut} and whole?") };
        assert!(offset <= cut as u64);
    }
    assert_eq!(told_before, messages.len(), "only the mark of the end was missing");
}

#[test]
fn a_recording_cut_within_its_header_is_too_short() {
    let file = recorded(&[]);
    for cut in 0..20 {
        let error = Player::new(&file[..cut]).map(|_| ()).unwrap_err();
        assert!(matches!(error, PlayerError::TooShort), "{error}");
    }
}

#[test]
fn a_changed_byte_ends_the_replay_there_and_never_changes_a_message() {
    let messages = messages(30, 20);
    let file = recorded(&messages);
    let header_len = file.windows(4).position(|bytes| bytes == b"RVB\n").unwrap();
    for at in (header_len..header_len + 100).chain((header_len..file.len()).step_by(199)) {
        let mut damaged = file.clone();
        damaged[at] ^= 0x40;
        let (told, end) = played(&damaged);
        assert!(told[..] == messages[..told.len()], "changed at {at}");
        assert!(matches!(end, End::Cut { .. }), "changed at {at}: {end:?}");
    }
}

#[test]
fn a_block_that_claims_to_unpack_to_4_gib_is_refused_before_room_is_made() {
    let mut file = recorded(&messages(1, 1));
    let at = file.windows(4).position(|bytes| bytes == b"RVB\n").unwrap();
    let head = BlockHead { packed_len: 10, len: u32::MAX, messages: 1, ..BlockHead::EMPTY };
    file.splice(at..at + block::HEAD_LEN, head.to_bytes());
    let End::Cut { reason, .. } = played(&file).1 else { panic!("whole?") };
    assert_eq!(reason, "a block that is too long");
}

#[test]
fn something_else_is_no_recording() {
    let error = Player::new(&b"#!/bin/sh\necho"[..]).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("begins with \"#\""), "{error}");
}

#[test]
fn the_index_says_what_is_in_each_block() {
    let file = recorded(&messages(200, 1000));
    let heads = index(Cursor::new(&file)).unwrap();
    assert!(heads.len() > 5, "{}", heads.len());
    assert_eq!(heads.iter().map(|(_, head)| head.events).sum::<u32>(), 200_000);
    let mut next_bytenr = 0;
    for (offset, head) in &heads {
        let at = usize::try_from(*offset).unwrap();
        assert_eq!(&file[at..at + 4], b"RVB\n");
        assert_eq!(head.bytes.min, next_bytenr);
        assert_eq!(head.bytes.max % 4096, 4095);
        next_bytenr = head.bytes.max + 1;
        assert_eq!(head.transid.min, 7 + head.bytes.min / 4096 / 1000);
    }
    let (cut, _) = heads[3];
    let cut = usize::try_from(cut).unwrap();
    assert_eq!(index(Cursor::new(&file[..cut + 100])).unwrap(), heads[..3], "of a cut recording");
}

#[test]
fn a_crash_costs_no_more_than_the_last_second() {
    let mut recorder = Recorder::new(Vec::new(), Some("testvm"), Some(0)).unwrap();
    for n in 0..100 {
        recorder.record(&ToVerifier::Tick { time_ns: n * 100_000_000 }).unwrap();
    }
    let (told, _) = played(&recorder.into_file_as_it_is());
    assert!(told.len() > 88, "{} of 100 ticks are in the file", told.len());
}

#[test]
fn the_file_is_its_owners_alone_and_never_takes_anothers_place() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    let file = create_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let error = create_file(&path).unwrap_err().to_string();
    assert!(error.contains("name a file that does not exist yet"), "{error}");
}

/// A disk that is full.
struct Full;

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > 40 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_ends_the_recording_and_not_the_watching() {
    let (to_tee, from_agent) = tokio::sync::mpsc::channel(1000);
    let (to_verifier, mut from_tee) = tokio::sync::mpsc::channel(1000);
    let messages = messages(30, 20);
    for message in &messages {
        to_tee.blocking_send(message.clone()).unwrap();
    }
    drop(to_tee);
    let recorder = Some(Recorder::new(Full, None, None).unwrap());
    let tee = Tee { recorder, namer: None, recent: None };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let end = runtime.block_on(tee.run(from_agent, to_verifier));
    assert!(matches!(end.recorded, Err(RecorderError::Io(_))), "{end:?}");
    let mut told = Vec::new();
    while let Some(message) = from_tee.blocking_recv() {
        told.push(message);
    }
    assert!(told == messages);
}
