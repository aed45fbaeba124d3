//! Round trips, hostile bytes, and the bytes of version 1 as they must stay.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, option, prelude::*};

use super::{
    limits::{STACK_DEPTH_MAX, STACKS_MAX, SYMBOL_LEN_MAX},
    *,
};
use crate::{
    btrfs::{Action, ExtentKind, RefKey},
    feed::{
        BlockAnswer, BlockError, BlockRequest, Change, Comm, Event, FsSlot, Hello, HookMode, Loss,
        LossSource, Mount, Stack,
    },
};

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..40).prop_map(|chars| chars.into_iter().collect())
}

fn fs() -> impl Strategy<Value = FsSlot> {
    prop_oneof![(0_u32..3), any::<u32>()].prop_map(FsSlot)
}

/// Few enough that events of a batch share some.
fn stack() -> impl Strategy<Value = Stack> {
    let address = prop_oneof![0xffff_ffff_8100_0000_u64..0xffff_ffff_8100_0010, any::<u64>()];
    prop_oneof![
        (0_u64..5).prop_map(|n| (0..n).map(|i| 0xffff_ffff_c000_0000 + i * n).collect()),
        vec(address, 0..=STACK_DEPTH_MAX).prop_map(Stack::from),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let action = prop_oneof![Just(Action::AddRef), Just(Action::DropRef), Just(Action::AddExtent)];
    let kind = prop_oneof![
        Just(ExtentKind::Data),
        any::<u8>().prop_map(|level| ExtentKind::TreeBlock { level })
    ];
    let key = any::<[u64; 4]>().prop_map(|[root, parent, owner, offset]| RefKey {
        root,
        parent,
        owner,
        offset,
    });
    let owning_root = prop_oneof![Just(0), any::<u64>()];
    prop_oneof![
        4 => (action, kind, any::<[u64; 2]>(), key, owning_root).prop_map(
            |(action, kind, [bytenr, len_bytes], key, owning_root)| Change::Ref {
                action, kind, bytenr, len_bytes, key, owning_root,
            }
        ),
        1 => any::<[u64; 2]>().prop_map(|[start, len_bytes]| Change::RemoveGroup { start, len_bytes }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let task = prop_oneof![
        Just((1, 2, Comm(*b"fsstress\0\0\0\0\0\0\0\0"))),
        any::<(u32, u32, [u8; 16])>().prop_map(|(pid, tid, comm)| (pid, tid, Comm(comm))),
    ];
    let cpu = prop_oneof![Just(3), any::<u32>()];
    let transid = prop_oneof![Just(7), any::<u64>()];
    (fs(), transid, any::<u64>(), cpu, task, stack(), change()).prop_map(
        |(fs, transid, time_ns, cpu, (pid, tid, comm), stack, change)| Event {
            fs,
            transid,
            time_ns,
            cpu,
            pid,
            tid,
            comm,
            stack,
            change,
        },
    )
}

fn hello() -> impl Strategy<Value = Hello> {
    let mode = prop_oneof![Just(HookMode::Kprobes), Just(HookMode::Tracepoints)];
    let list = || vec(text(), 0..5);
    (text(), mode, list(), list(), list()).prop_map(
        |(kernel_release, mode, hooks, unseen, devices)| Hello {
            kernel_release,
            mode,
            hooks,
            unseen,
            devices,
        },
    )
}

fn block() -> impl Strategy<Value = BlockAnswer> {
    let error = prop_oneof![
        (text(), any::<u64>(), any::<u32>(), text()).prop_map(
            |(device, offset, len_bytes, reason)| BlockError::Io {
                device,
                offset,
                len_bytes,
                reason,
            }
        ),
        any::<u64>().prop_map(|devid| BlockError::NoDevice { devid }),
        any::<(u64, u32)>()
            .prop_map(|(offset, len_bytes)| BlockError::Refused { offset, len_bytes }),
    ];
    let data = prop_oneof![
        vec(any::<u8>(), 0..5000).prop_map(|b| Ok(Bytes::from(b))),
        error.prop_map(Err)
    ];
    (fs(), any::<u64>(), data).prop_map(|(fs, id, data)| BlockAnswer { fs, id, data })
}

fn loss() -> impl Strategy<Value = Loss> {
    let source = prop_oneof![
        Just(LossSource::RingBuffer),
        Just(LossSource::ProgramMissed),
        Just(LossSource::Unreadable)
    ];
    (option::of(fs()), source, any::<u64>()).prop_map(|(fs, source, count)| Loss {
        fs,
        source,
        count,
    })
}

fn to_verifier() -> impl Strategy<Value = ToVerifier> {
    let symbol = (any::<u64>(), text()).prop_map(|(address, text)| (address, Arc::from(text)));
    prop_oneof![
        hello().prop_map(ToVerifier::Hello),
        (fs(), text(), any::<u64>()).prop_map(|(fs, device, first_usable_generation)| {
            ToVerifier::Mount(Mount { fs, device, first_usable_generation })
        }),
        vec(event(), 0..20).prop_map(ToVerifier::Events),
        Just(ToVerifier::Drained),
        any::<(u32, i32)>().prop_map(|(tid, errno)| ToVerifier::Retraction { tid, errno }),
        loss().prop_map(ToVerifier::Loss),
        (fs(), any::<u64>()).prop_map(|(fs, transid)| ToVerifier::Commit { fs, transid }),
        (fs(), any::<u64>(), any::<i32>()).prop_map(|(fs, transid, errno)| ToVerifier::Abort {
            fs,
            transid,
            errno
        }),
        fs().prop_map(|fs| ToVerifier::Unmount { fs }),
        block().prop_map(ToVerifier::Block),
        vec(symbol, 0..20).prop_map(ToVerifier::Symbols),
        Just(ToVerifier::DumpWanted),
        any::<u64>().prop_map(|time_ns| ToVerifier::Tick { time_ns }),
        Just(ToVerifier::Bye),
    ]
}

fn to_agent() -> impl Strategy<Value = ToAgent> {
    prop_oneof![
        (fs(), any::<[u64; 3]>(), any::<u32>()).prop_map(|(fs, [id, devid, offset], len_bytes)| {
            ToAgent::Read(BlockRequest { fs, id, devid, offset, len_bytes })
        }),
        vec(any::<u64>(), 0..50).prop_map(ToAgent::Symbolise),
        Just(ToAgent::Stop),
        Just(ToAgent::Dump),
    ]
}

fn encoded<M: Message>(messages: &[M]) -> BytesMut {
    let mut encoder = Encoder::default();
    let mut out = BytesMut::new();
    for message in messages {
        encoder.encode(message, &mut out).unwrap();
    }
    out
}

/// Decodes as the bytes come, `step` at a time.
fn decoded<M: Message>(bytes: &[u8], step: usize) -> Result<Vec<M>, DecodeError> {
    let mut decoder = Decoder::new(0);
    let mut buffer = BytesMut::new();
    let mut messages = Vec::new();
    for part in bytes.chunks(step) {
        buffer.extend_from_slice(part);
        while let Some(message) = decoder.decode(&mut buffer)? {
            messages.push(message);
        }
    }
    assert_eq!(decoder.offset() + buffer.len() as u64, bytes.len() as u64);
    Ok(messages)
}

proptest! {
    #[test]
    fn what_is_encoded_for_the_verifier_is_decoded(
        messages in vec(to_verifier(), 0..12),
        step in 1_usize..5000,
    ) {
        prop_assert_eq!(decoded(&encoded(&messages), step), Ok(messages));
    }

    #[test]
    fn what_is_encoded_for_the_agent_is_decoded(
        messages in vec(to_agent(), 0..12),
        step in 1_usize..500,
    ) {
        prop_assert_eq!(decoded(&encoded(&messages), step), Ok(messages));
    }

    #[test]
    fn random_bytes_end_in_an_error_or_in_messages_and_never_in_a_panic(
        bytes in vec(any::<u8>(), 0..3000),
    ) {
        let _ = decoded::<ToVerifier>(&bytes, 100);
        let _ = decoded::<ToAgent>(&bytes, 100);
        for direction in [Direction::ToVerifier, Direction::ToAgent] {
            let _ = Header::decode(Carrier::Stream, direction, &mut BytesMut::from(&bytes[..]));
        }
    }

    /// Random bytes hardly get past the first length; these are nearly right.
    #[test]
    fn a_frame_with_some_bytes_changed_never_ends_in_a_panic(
        messages in vec(to_verifier(), 1..4),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&messages);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Err(error) = decoded::<ToVerifier>(&bytes, 1000) {
            prop_assert!(error.offset <= bytes.len() as u64, "{} of {}", error.offset, bytes.len());
        }
    }

    #[test]
    fn a_header_is_read_back_and_what_follows_it_is_left(version in "[ -~]{0,127}", cut in 0_usize..300) {
        let header = Header {
            direction: Direction::ToAgent,
            product_version: version,
            kernel_release: "6.18.0-1-amd64".into(),
            vm: (cut % 2 == 0).then(|| "testvm".into()),
            audit_seconds: (cut % 3 == 0).then_some(30),
        };
        let mut whole = BytesMut::new();
        header.encode(Carrier::Stream, &mut whole).unwrap();
        let len = whole.len();
        let mut part = BytesMut::from(&whole[..cut.min(len - 1)]);
        prop_assert_eq!(Header::decode(Carrier::Stream, Direction::ToAgent, &mut part), Ok(None));
        whole.extend_from_slice(b"rest");
        let read = Header::decode(Carrier::Stream, Direction::ToAgent, &mut whole);
        prop_assert_eq!(read, Ok(Some((header, len as u64))));
        prop_assert_eq!(&whole[..], b"rest");
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn refusal(bytes: &[u8]) -> String {
    decoded::<ToVerifier>(bytes, 1 << 20).unwrap_err().to_string()
}

#[test]
fn a_frame_of_4_gib_is_refused_by_its_length_alone() {
    let mut buffer = BytesMut::from(&[0xff; 4][..]);
    let error = Decoder::<ToVerifier>::new(39).decode(&mut buffer).unwrap_err();
    assert_eq!(
        error.to_string(),
        "4294967295 bytes of a frame are more than the 2097152 that are allowed, at byte 39"
    );
}

#[test]
fn a_list_that_the_frame_cannot_hold_is_refused_before_room_is_made() {
    // 1,000 events in 3 bytes.
    let text = refusal(&frame(&[3, 0xe8, 0x07, 0, 0, 0]));
    assert_eq!(text, "1000 events are more than the 0 that are allowed, at byte 5");
}

#[test]
fn hostile_frames_are_refused_with_the_place_and_the_reason() {
    let cases: &[(&[u8], &str)] = &[
        (&[], "the frame ends within a message's kind, at byte 4"),
        (&[99], "99 is no message to a verifier, at byte 4"),
        (&[67], "67 is no message to a verifier, at byte 4"),
        (&[4, 0], "1 bytes follow the message in its frame, at byte 5"),
        (&[13], "the frame ends within time, at byte 5"),
        (&[13, 0x80], "the frame ends within time, at byte 6"),
        (
            &[13, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
            "time does not fit into 64 bits, at byte 5",
        ),
        (
            &[9, 255, 255, 255, 255, 31],
            "a file system's number does not fit into 32 bits, at byte 5",
        ),
        (&[6, 0, 9, 0], "9 is no source of loss, at byte 6"),
        (&[2, 0, 2, 0xff, 0xfe, 0], "bytes of a device's path is not UTF-8, at byte 7"),
        // An event that refers to a stack nobody sent.
        (&[3, 1, 0b1101_1000, 0, 3, 0, 0], "0 is no place in the list of stacks, at byte 9"),
        // A block group's removal that says it is a tree block.
        (&[3, 1, 0b1011_1100, 0, 0, 0], "188 is no combination of an event's flags, at byte 8"),
    ];
    for (payload, wanted) in cases {
        assert_eq!(refusal(&frame(payload)), *wanted, "{payload:?}");
    }
}

#[test]
fn what_else_may_speak_at_the_other_end_is_named() {
    let refused = |bytes: &[u8]| {
        let mut buffer = BytesMut::from(bytes);
        Header::decode(Carrier::Stream, Direction::ToVerifier, &mut buffer).unwrap_err().to_string()
    };
    assert!(refused(b"W").contains("begins with \"W\""), "{}", refused(b"W"));
    assert!(refused(b"Welcome to \x1b[1mtestvm").contains("Welcome to \\x1b[1mtestvm"));
    assert!(refused(b"\x89RVS\r\n\x1a\n\x01\x00").contains("format version 1 cannot be read"));
    assert!(
        refused(b"\x89RVS\r\n\x1a\n\x02\x00\x02")
            .contains("messages to an agent come where messages to a verifier belong")
    );
    // A recording is no stream.
    assert!(refused(b"\x89RVR\r\n\x1a\n").contains("not what refverify-monitor writes"));
}

fn an_event() -> Event {
    Event {
        fs: FsSlot(0),
        transid: 300,
        time_ns: 1_000_000,
        cpu: 1,
        pid: 200,
        tid: 201,
        comm: Comm(*b"fsstress\0\0\0\0\0\0\0\0"),
        stack: Arc::from([0xffff_ffff_8100_0010, 0xffff_ffff_8100_0000]),
        change: Change::Ref {
            action: Action::DropRef,
            kind: ExtentKind::Data,
            bytenr: 13_631_488,
            len_bytes: 131_072,
            key: RefKey::data(5, 0, 257, 0_u64.wrapping_sub(4096)),
            owning_root: 5,
        },
    }
}

#[test]
fn the_bytes_of_version_2_stay_as_they_are() {
    let tree = Event {
        time_ns: 999_999,
        stack: Arc::from([]),
        change: Change::Ref {
            action: Action::AddExtent,
            kind: ExtentKind::TreeBlock { level: 1 },
            bytenr: 30_408_704,
            len_bytes: 16_384,
            key: RefKey::tree(0_u64.wrapping_sub(9), 0, 1),
            owning_root: 0,
        },
        ..an_event()
    };
    let group =
        Event { change: Change::RemoveGroup { start: 1 << 30, len_bytes: 1 << 20 }, ..an_event() };
    let io = BlockError::Io { device: "/d".into(), offset: 1, len_bytes: 2, reason: "r".into() };
    let answer = |data| ToVerifier::Block(BlockAnswer { fs: FsSlot(1), id: 300, data });
    let messages = [
        ToVerifier::Hello(Hello {
            kernel_release: "6.1".into(),
            mode: HookMode::Tracepoints,
            hooks: vec!["h".into()],
            unseen: vec![],
            devices: vec!["/d".into(), "/e".into()],
        }),
        ToVerifier::Mount(Mount { fs: FsSlot(1), device: "/d".into(), first_usable_generation: 9 }),
        ToVerifier::Events(vec![an_event(), an_event(), tree, group]),
        ToVerifier::Drained,
        ToVerifier::Retraction { tid: 201, errno: -12 },
        ToVerifier::Loss(Loss { fs: None, source: LossSource::RingBuffer, count: 1 }),
        ToVerifier::Loss(Loss { fs: Some(FsSlot(0)), source: LossSource::Unreadable, count: 2 }),
        ToVerifier::Commit { fs: FsSlot(0), transid: 300 },
        ToVerifier::Abort { fs: FsSlot(0), transid: 300, errno: -5 },
        ToVerifier::Unmount { fs: FsSlot(0) },
        answer(Ok(Bytes::from_static(b"data"))),
        answer(Err(io)),
        answer(Err(BlockError::NoDevice { devid: 2 })),
        answer(Err(BlockError::Refused { offset: 1, len_bytes: 2 })),
        ToVerifier::Symbols(vec![(0xffff_ffff_8100_0000, "a+0x0/0x1".into()), (1, "b".into())]),
        ToVerifier::DumpWanted,
        ToVerifier::Tick { time_ns: 1_000_000_000 },
        ToVerifier::Bye,
    ];
    let requests = [
        ToAgent::Read(BlockRequest {
            fs: FsSlot(0),
            id: 1,
            devid: 0,
            offset: 65_536,
            len_bytes: 4096,
        }),
        ToAgent::Symbolise(vec![0xffff_ffff_8100_0000, 0xffff_ffff_8100_0010]),
        ToAgent::Stop,
        ToAgent::Dump,
    ];
    let mut header = BytesMut::new();
    let written = Header {
        direction: Direction::ToVerifier,
        product_version: "0.1.0".into(),
        kernel_release: "6.1".into(),
        vm: Some("vm".into()),
        audit_seconds: Some(30),
    };
    written.encode(Carrier::Stream, &mut header).unwrap();
    let mut text = format!("header {}\n", hex(&header));
    text.extend(frames(&encoded(&messages)).map(|frame| format!("to verifier {frame}\n")));
    text.extend(frames(&encoded(&requests)).map(|frame| format!("to agent {frame}\n")));
    assert_eq!(text, include_str!("version_2.txt"), "the format changed: raise FORMAT_VERSION");
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn frames(mut bytes: &[u8]) -> impl Iterator<Item = String> {
    std::iter::from_fn(move || {
        let prefix = *bytes.first_chunk::<4>()?;
        let (frame, rest) = bytes.split_at(4 + u32::from_le_bytes(prefix) as usize);
        bytes = rest;
        Some(format!("{} {}", hex(&frame[..4]), hex(&frame[4..])))
    })
}

#[test]
fn a_stack_crosses_once() {
    let first = encoded(&[ToVerifier::Events(vec![an_event()])]).len();
    let deep = Event { stack: (0..32).collect(), ..an_event() };
    let other = Event { stack: (1..33).collect(), ..an_event() };
    let events = ToVerifier::Events(vec![deep.clone(), other.clone(), deep, other]);
    let both = encoded(std::slice::from_ref(&events)).len();
    let twice = encoded(&[events.clone(), events]).len();
    assert!(twice - both < both - 2 * 30, "{first} {both} {twice}");
}

#[test]
fn a_full_list_of_stacks_begins_anew_on_both_ends() {
    let stack = |n: usize| -> Stack { Arc::from([n as u64 + 1]) };
    let event = |n| Event { stack: stack(n), ..an_event() };
    let many = STACKS_MAX + 10;
    let mut messages: Vec<ToVerifier> =
        (0..many).map(|n| ToVerifier::Events(vec![event(n)])).collect();
    // The first again, which has been forgotten, and the last, which has not.
    messages.push(ToVerifier::Events(vec![event(0), event(many - 1)]));
    assert_eq!(decoded::<ToVerifier>(&encoded(&messages), 1 << 20).unwrap(), messages);
}

#[test]
fn long_lists_cross_as_several_messages_that_mean_the_same() {
    let events: Vec<Event> =
        (0..=EVENTS_MAX as u64 * 2).map(|time_ns| Event { time_ns, ..an_event() }).collect();
    let bytes = encoded(&[ToVerifier::Events(events.clone())]);
    let parts = decoded::<ToVerifier>(&bytes, 1 << 20).unwrap();
    assert_eq!(parts.len(), 3);
    let whole: Vec<Event> = parts
        .into_iter()
        .flat_map(|part| match part {
            ToVerifier::Events(events) => events,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(whole, events);
}

/// The limits promise it: see `limits`.
#[test]
fn the_longest_list_of_the_longest_events_fits_into_one_frame() {
    let zigzag_worst = u64::MAX / 2 + 1;
    let longest = |n: u64| Event {
        fs: FsSlot(u32::MAX - (n % 2) as u32),
        transid: u64::MAX,
        time_ns: n.wrapping_mul(zigzag_worst),
        cpu: u32::MAX - (n % 2) as u32,
        pid: u32::MAX,
        tid: u32::MAX - (n % 2) as u32,
        comm: Comm([0xff; 16]),
        stack: (1..=STACK_DEPTH_MAX as u64).map(|i| i.wrapping_mul(zigzag_worst) + n).collect(),
        change: Change::Ref {
            action: Action::AddRef,
            kind: ExtentKind::TreeBlock { level: 255 },
            bytenr: u64::MAX,
            len_bytes: u64::MAX,
            key: RefKey {
                root: zigzag_worst,
                parent: u64::MAX,
                owner: u64::MAX,
                offset: zigzag_worst,
            },
            owning_root: zigzag_worst,
        },
    };
    let events = (0..EVENTS_MAX as u64).map(longest).collect();
    let bytes = encoded(&[ToVerifier::Events(events)]);
    assert_eq!(decoded::<ToVerifier>(&bytes, 1 << 20).unwrap().len(), 1);
    assert!(bytes.len() > 1400 * EVENTS_MAX, "{} is not the longest", bytes.len());
    let text: Arc<str> = "s".repeat(SYMBOL_LEN_MAX).into();
    let symbols = vec![(1, text); SYMBOLS_MAX];
    assert_eq!(
        decoded::<ToVerifier>(&encoded(&[ToVerifier::Symbols(symbols)]), 1 << 20).unwrap().len(),
        1
    );
}

#[test]
fn a_message_that_does_not_fit_leaves_the_stream_as_it_was() {
    let mut encoder = Encoder::default();
    let mut out = BytesMut::new();
    let good = ToVerifier::Events(vec![an_event()]);
    let deep: Stack = vec![1; STACK_DEPTH_MAX + 1].into();
    let bad = ToVerifier::Events(vec![
        Event { stack: Arc::from([5]), ..an_event() },
        Event { stack: deep, ..an_event() },
    ]);
    let after = ToVerifier::Events(vec![Event { stack: Arc::from([5]), ..an_event() }]);
    encoder.encode(&good, &mut out).unwrap();
    let len = out.len();
    let error = encoder.encode(&bad, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "129 addresses of a stack do not fit into one message, only 128");
    assert_eq!(out.len(), len);
    encoder.encode(&after, &mut out).unwrap();
    encoder.encode(&good, &mut out).unwrap();
    assert_eq!(decoded::<ToVerifier>(&out, 1 << 20).unwrap(), [good.clone(), after, good]);
}

#[test]
fn each_table_of_the_format_is_in_its_document() {
    let stream = include_str!("../../../../docs/stream.md");
    let recording = include_str!("../../../../docs/recording.md");
    let sources = [
        (include_str!("header.rs"), stream),
        (include_str!("wire.rs"), stream),
        (include_str!("stacks.rs"), stream),
        (include_str!("event.rs"), stream),
        (include_str!("message.rs"), stream),
        (include_str!("../recording/block.rs"), recording),
    ];
    for (source, document) in sources {
        let rows: Vec<&str> = source
            .lines()
            .filter_map(|line| line.strip_prefix("//! "))
            .filter(|row| row.starts_with('|'))
            .collect();
        assert!(rows.len() > 3, "{rows:?}");
        for row in rows {
            assert!(document.lines().any(|line| line == row), "docs/ lack the row {row}");
        }
    }
}
