//! Records well and badly formed.

use proptest::prelude::*;
use refverify_common::{Layout, PAYLOAD_MAX_BYTES, SLOT_UNKNOWN};
use zerocopy::IntoBytes;

use super::*;

const fn field(offset: u32, len_bytes: u32) -> Field {
    Field { offset, len_bytes }
}

/// The layout of 6.10 to 7.3 with kprobes.
fn layout() -> KernelLayout {
    let tree = RefFields {
        bytenr: field(8, 8),
        len_bytes: field(16, 8),
        root: field(32, 8),
        parent: field(40, 8),
        owner: field(48, 4),
        offset: None,
        action: Some(field(1, 1)),
        owning_root: Some(field(24, 8)),
    };
    let data = RefFields { owner: field(48, 8), offset: Some(field(56, 8)), ..tree };
    KernelLayout { ebpf: Layout::UNKNOWN, group_bound: None, tree, data }
}

const TRACING: Range<u64> = 0xffff_0000..0xffff_1000;

fn decoder() -> Decoder {
    Decoder::new(&layout(), 2, vec![TRACING])
}

/// A `struct btrfs_ref` of 6.10 to 7.3: action, then bytenr, length, owning root, root,
/// parent, owner, offset.
fn payload(action: u8, words: [u64; 7]) -> [u8; PAYLOAD_MAX_BYTES] {
    let mut payload = [0xee; PAYLOAD_MAX_BYTES];
    payload[1] = action;
    payload[8..64].copy_from_slice(words.as_bytes());
    payload
}

fn change(kind: RecordKind, payload: [u8; PAYLOAD_MAX_BYTES]) -> RawChange {
    let comm = *b"fsstress\0\0\0\0\0\0\0\0";
    RawChange {
        kind: kind as u32,
        slot: 1,
        time_ns: 5,
        transid: 7,
        cpu: 3,
        pid: 100,
        tid: 101,
        action: 0,
        comm,
        payload,
    }
}

fn with_stack(change: RawChange, frames: &[u64], stack_len_bytes: i64) -> ChangeWithStack {
    let mut stack = [0xdead; FRAMES_MAX];
    stack[..frames.len()].copy_from_slice(frames);
    ChangeWithStack { change, stack_len_bytes, stack }
}

fn event(record: Result<Record, Malformed>) -> Event {
    match record {
        Ok(Record::Event(event)) => event,
        other => panic!("no event: {other:?}"),
    }
}

#[test]
fn a_tree_ref_is_normalised_and_only_as_many_bytes_as_the_level_has_are_read() {
    // The upper half of the level's word is garbage: the field has 4 bytes.
    let words = [30_408_704, 16384, 9, 5, 0, 0xdead_beef_0000_0001, 0];
    let raw = change(RecordKind::TreeRef, payload(3, words));
    let event = event(decoder().decode(raw.as_bytes()));
    assert_eq!((event.fs, event.transid, event.tid), (FsSlot(1), 7, 101));
    assert_eq!(event.comm.to_string(), "fsstress");
    let expected = Change::Ref {
        action: Action::AddExtent,
        kind: ExtentKind::TreeBlock { level: 1 },
        bytenr: 30_408_704,
        len_bytes: 16384,
        key: RefKey::tree(5, 0, 1),
        owning_root: 9,
    };
    assert_eq!(event.change, expected);
}

#[test]
fn a_shared_data_ref_has_neither_root_nor_owner_nor_offset() {
    let words = [13_631_488, 4096, 0, 5, 30_474_240, 257, 8192];
    let raw = change(RecordKind::DataRef, payload(2, words));
    let Change::Ref { action, key, .. } = event(decoder().decode(raw.as_bytes())).change else {
        panic!("no reference");
    };
    assert_eq!(action, Action::DropRef);
    assert_eq!(key, RefKey { root: 0, parent: 30_474_240, owner: 0, offset: 0 });
}

#[test]
fn a_replayed_extent_is_an_allocation_of_its_file() {
    let mut bytes = [0; PAYLOAD_MAX_BYTES];
    let extent = LoggedExtent { bytenr: 4096, len_bytes: 8192, root: 5, owner: 257, offset: 3 };
    bytes[..40].copy_from_slice(extent.as_bytes());
    let raw = change(RecordKind::LoggedExtent, bytes);
    let Change::Ref { action, bytenr, len_bytes, key, .. } =
        event(decoder().decode(raw.as_bytes())).change
    else {
        panic!("no reference");
    };
    assert_eq!((action, bytenr, len_bytes), (Action::AddExtent, 4096, 8192));
    assert_eq!(key, RefKey::data(5, 0, 257, 3));
}

#[test]
fn impossible_actions_levels_kinds_and_slots_are_refused_with_their_file_system() {
    let good = [4096, 4096, 0, 5, 0, 0, 0];
    let mut bad_slot = change(RecordKind::TreeRef, payload(1, good));
    bad_slot.slot = 2;
    let mut bad_kind = change(RecordKind::TreeRef, payload(1, good));
    bad_kind.kind = 99;
    let mut is_signal = change(RecordKind::TreeRef, payload(1, good));
    is_signal.kind = RecordKind::Commit as u32;
    let cases = [
        (change(RecordKind::TreeRef, payload(0, good)), Some(FsSlot(1)), "action"),
        (change(RecordKind::TreeRef, payload(4, good)), Some(FsSlot(1)), "action"),
        (
            change(RecordKind::TreeRef, payload(1, [4096, 4096, 0, 5, 0, 8, 0])),
            Some(FsSlot(1)),
            "level",
        ),
        (bad_slot, None, "slot"),
        (bad_kind, Some(FsSlot(1)), "kind"),
        (is_signal, Some(FsSlot(1)), "kind"),
    ];
    for (raw, fs, what) in cases {
        let error = decoder().decode(raw.as_bytes()).expect_err(what);
        assert_eq!(error.fs, fs);
        assert!(error.what.contains(what), "{error}");
    }
}

#[test]
fn a_stack_ends_where_the_kernel_says_and_nowhere_else() {
    let raw = change(RecordKind::TreeRef, payload(1, [4096, 4096, 0, 5, 0, 0, 0]));
    let stack = |len_bytes| {
        let record = with_stack(raw, &[1, 2, 3], len_bytes);
        event(decoder().decode(record.as_bytes())).stack.to_vec()
    };
    assert_eq!(stack(16), [1, 2]);
    assert!(stack(0).is_empty());
    assert!(stack(-14).is_empty());
    assert_eq!(stack(i64::MAX).len(), FRAMES_MAX);
}

#[test]
fn frames_of_the_tracing_are_no_part_of_a_stack() {
    let raw = change(RecordKind::TreeRef, payload(1, [4096, 4096, 0, 5, 0, 0, 0]));
    let record = with_stack(raw, &[TRACING.start + 1, 2, TRACING.start], 24);
    assert_eq!(*event(decoder().decode(record.as_bytes())).stack, [2, TRACING.start]);
}

#[test]
fn equal_stacks_share_memory_and_different_ones_are_never_mixed_up() {
    let mut cache = StackCache::new();
    let one = cache.share(&[1, 2, 3]);
    assert!(Arc::ptr_eq(&one, &cache.share(&[1, 2, 3])));
    for i in 0..10_000 {
        assert_eq!(*cache.share(&[i, 2]), [i, 2]);
    }
    assert_eq!(*one, [1, 2, 3]);
    assert_eq!(*cache.share(&[1, 2, 3]), [1, 2, 3]);
}

#[test]
fn a_retraction_without_a_file_system_is_not_blamed_on_one() {
    let mut raw = RawSignal {
        kind: RecordKind::Retraction as u32,
        slot: SLOT_UNKNOWN,
        time_ns: 1,
        value: 0,
        errno: -12,
        tid: 9,
    };
    let retraction = Signal::Retraction { fs: None, tid: 9, errno: -12 };
    assert_eq!(decoder().decode(raw.as_bytes()), Ok(Record::Signal(retraction)));
    raw.kind = RecordKind::Commit as u32;
    assert!(decoder().decode(raw.as_bytes()).is_err(), "a commit of nobody");
}

proptest! {
    #[test]
    fn hostile_bytes_are_refused_or_decoded_but_never_a_panic(
        words in prop::collection::vec(any::<u64>(), 0..64),
        kind in 0_u32..12,
        slot in 0_u32..3,
    ) {
        // Records are aligned to 8, as words are; the first word decides the path.
        let mut words = words;
        if let Some(first) = words.first_mut() {
            *first = u64::from(kind) | u64::from(slot) << 32;
        }
        for len in [words.len(), words.len().min(4), words.len().min(16), words.len().min(49)] {
            let _ = decoder().decode(words[..len].as_bytes());
        }
    }

    #[test]
    fn a_field_outside_of_the_payload_is_none(offset in any::<u32>(), len_bytes in any::<u32>()) {
        let payload = [1; PAYLOAD_MAX_BYTES];
        let found = read(&payload, Field { offset, len_bytes });
        let end = u64::from(offset) + u64::from(len_bytes);
        let inside = end <= PAYLOAD_MAX_BYTES as u64;
        prop_assert_eq!(found.is_some(), inside && [1, 2, 4, 8].contains(&len_bytes));
    }
}
