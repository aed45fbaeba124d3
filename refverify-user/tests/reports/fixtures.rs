//! Notices made by hand, and golden files to compare their reports with.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use refverify_user::{
    btrfs::{
        Action, DiskFault, DiskFinding, DiskFindingKind, ExtentKind, RefKey, format::ItemError,
        objectid,
    },
    feed::{Change, Comm, Event, FsSlot, Hello, HookMode, Loss, LossSource, Stack},
    verify::{
        ActionRecord, BlindCause, BlindSpan, Cause, Coverage, Disorder, ExtentDump, Finding,
        FindingKind, FsState, GaveUp, Notice, Span, Summary, Symbols,
    },
};
use uuid::Uuid;

/// Compares with `tests/golden/NAME`, or writes it when `UPDATE_GOLDEN=1`.
pub(crate) fn assert_golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::write(&path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{name} differs from what is reported now; see what changed, and if it is meant run \
         the test with UPDATE_GOLDEN=1\n--- golden\n{expected}\n--- now\n{actual}"
    );
}

pub(crate) const FSID: Uuid = Uuid::from_u128(0x6f0c_6d0e_13a5_4b4b_9b5c_3fd1_4b8e_22a7);

const ADD_FRAME: u64 = 0xffff_ffff_c0a1_0010;
const FREE_FRAME: u64 = 0xffff_ffff_c0a2_0020;
const SYSCALL_FRAME: u64 = 0xffff_ffff_8120_0030;
const UNKNOWN_FRAME: u64 = 0xffff_ffff_8120_0040;

fn symbols() -> Symbols {
    let texts = [
        (ADD_FRAME, "btrfs_add_delayed_data_ref+0x1a/0x2b0 [btrfs]"),
        (FREE_FRAME, "__btrfs_free_extent_item\x1b[31m+0x5/0x10 [btrfs]"),
        (SYSCALL_FRAME, "do_syscall_64+0x5b/0x90"),
    ];
    Symbols(texts.into_iter().map(|(address, text)| (address, Arc::from(text))).collect())
}

fn stack(addresses: &[u64]) -> Stack {
    addresses.into()
}

pub(crate) fn comm(name: &[u8]) -> Comm {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name);
    Comm(bytes)
}

fn event(change: Change) -> Event {
    Event {
        fs: FsSlot(0),
        transid: 42,
        time_ns: 5_123_000_000_042,
        cpu: 3,
        pid: 4711,
        tid: 4712,
        comm: comm(b"fsstress"),
        stack: stack(&[ADD_FRAME, SYSCALL_FRAME]),
        change,
    }
}

fn data_change(action: Action, key: RefKey) -> Change {
    Change::Ref {
        action,
        kind: ExtentKind::Data,
        bytenr: 13_631_488,
        len_bytes: 131_072,
        key,
        owning_root: 0,
    }
}

fn tree_change(action: Action, key: RefKey) -> Change {
    Change::Ref {
        action,
        kind: ExtentKind::TreeBlock { level: 1 },
        bytenr: 30_408_704,
        len_bytes: 16_384,
        key,
        owning_root: 5,
    }
}

fn data_extent(total_refs: u64, refs: Vec<(RefKey, u64)>) -> ExtentDump {
    let direct = refs.iter().filter(|(key, _)| !key.is_shared());
    let mut roots = BTreeMap::new();
    for (key, count) in direct {
        *roots.entry(key.root).or_insert(0) += count;
    }
    ExtentDump {
        bytenr: 13_631_488,
        len_bytes: 131_072,
        kind: ExtentKind::Data,
        total_refs,
        from_disk: Some(40),
        refs,
        roots: roots.into_iter().collect(),
        actions: Vec::new(),
        actions_given_up: 0,
    }
}

fn tree_extent(refs: Vec<(RefKey, u64)>) -> ExtentDump {
    let data = data_extent(refs.len() as u64, refs);
    ExtentDump {
        bytenr: 30_408_704,
        len_bytes: 16_384,
        kind: ExtentKind::TreeBlock { level: 1 },
        from_disk: None,
        ..data
    }
}

fn record(action: Action, key: RefKey, transid: u64) -> ActionRecord {
    ActionRecord {
        action,
        key,
        transid,
        time_ns: 5_100_000_000_000 + transid,
        pid: 812,
        tid: 812,
        comm: comm(b"btrfs-cleaner"),
        stack: stack(&[FREE_FRAME, UNKNOWN_FRAME, SYSCALL_FRAME]),
    }
}

fn finding(kind: FindingKind, change: Change, extent: Option<ExtentDump>) -> Finding {
    Finding {
        kind,
        fs: FsSlot(0),
        cause: Cause::Event(event(change)),
        extent,
        symbols: symbols(),
        withheld: 0,
    }
}

fn disk_finding(fault: DiskFault) -> Finding {
    let kind = fault.kind().expect("a violation");
    let finding = DiskFinding { fault, bytenr: 13_631_488, leaf: 30_490_624, slot: 17 };
    Finding {
        kind: FindingKind::Disk(kind),
        fs: FsSlot(0),
        cause: Cause::Disk { generation: 40, finding },
        extent: None,
        symbols: Symbols::default(),
        withheld: 0,
    }
}

/// One that is not on disk, or should not be there.
fn disk_differs(expected: Option<ExtentDump>) -> Finding {
    let on_disk = match expected {
        Some(_) => None,
        None => Some(ExtentDump { from_disk: Some(40), ..data_extent(2, Vec::new()) }),
    };
    Finding {
        kind: FindingKind::DiskDiffers,
        fs: FsSlot(0),
        cause: Cause::Audit { generation: 40, bytenr: 13_631_488, on_disk },
        extent: expected,
        symbols: Symbols::default(),
        withheld: 0,
    }
}

/// A data extent with a history, part of which was given up.
pub(crate) fn drop_missing_ref() -> Finding {
    let missing = RefKey::data(objectid::DATA_RELOC_TREE, 0, 257, 4096_u64.wrapping_neg());
    let direct = RefKey::data(5, 0, 257, 0);
    let shared = RefKey::data(0, 30_474_240, 0, 0);
    let mut extent = data_extent(3, vec![(shared, 1), (direct, 2)]);
    extent.actions = vec![record(Action::AddRef, direct, 41), record(Action::DropRef, shared, 42)];
    extent.actions_given_up = 6;
    finding(FindingKind::DropMissingRef, data_change(Action::DropRef, missing), Some(extent))
}

/// Nothing is known of the extent, and the task's name is an attack on the terminal.
pub(crate) fn no_entry_by_a_hostile_task() -> Finding {
    let key = RefKey::data(5, 0, 257, 0);
    let mut finding = finding(FindingKind::NoEntry, data_change(Action::AddRef, key), None);
    if let Cause::Event(event) = &mut finding.cause {
        event.comm = comm(b"\x1b[2J\n\"\xff\\");
        event.stack = stack(&[]);
    }
    finding
}

/// A tree block with a shared reference.
pub(crate) fn duplicate_tree_ref() -> Finding {
    let key = RefKey::tree(0, 30_900_224, 1);
    let mut extent = tree_extent(vec![(key, 1), (RefKey::tree(2, 0, 1), 1)]);
    extent.actions = vec![record(Action::AddExtent, key, 41)];
    finding(FindingKind::DuplicateTreeRef, tree_change(Action::AddRef, key), Some(extent))
}

/// One found while reading.
pub(crate) fn duplicate_on_disk() -> Finding {
    disk_finding(DiskFault::DuplicateRef { key: RefKey::data(5, 0, 257, 0) })
}

/// A finding of each kind.
pub(crate) fn one_of_each_kind() -> Vec<Finding> {
    let direct = RefKey::data(5, 0, 257, 0);
    let live = || Some(data_extent(1, vec![(direct, 1)]));
    let dead = || Some(data_extent(0, vec![(direct, 0)]));
    let group = Change::RemoveGroup { start: 13_697_024, len_bytes: 8_388_608 };
    let from_no_root = RefKey::data(0, 0, 257, 0);
    vec![
        finding(FindingKind::ReallocatedWithRefs, data_change(Action::AddExtent, direct), live()),
        no_entry_by_a_hostile_task(),
        finding(FindingKind::ZeroRefs, data_change(Action::DropRef, direct), dead()),
        finding(FindingKind::DropExhaustedRef, data_change(Action::DropRef, direct), live()),
        drop_missing_ref(),
        duplicate_tree_ref(),
        finding(FindingKind::MissingRoot, data_change(Action::AddRef, from_no_root), live()),
        finding(FindingKind::BlockGroupOverlap, group, live()),
        disk_differs(live()),
        disk_differs(None),
        duplicate_on_disk(),
        disk_finding(DiskFault::BadInlineRef {
            reason: ItemError::InlineRef { ref_type: 180, at: 9 },
        }),
        disk_finding(DiskFault::BadKeyedRef {
            reason: ItemError::KeyedLen { ref_type: 178, len_bytes: 4 },
        }),
        disk_finding(DiskFault::KeyedRefWithoutExtent { ref_type: 184 }),
        disk_finding(DiskFault::MissingRoot { key: from_no_root }),
        disk_finding(DiskFault::ImplausibleDataRef { key: RefKey::data(7, 0, 257, 0) }),
        disk_finding(DiskFault::ZeroCount { key: direct }),
        disk_finding(DiskFault::TotalDiffers { sum: 2, total: 3 }),
        disk_finding(DiskFault::BadExtentItem { reason: ItemError::Flags { flags: 3 } }),
        disk_finding(DiskFault::OverlapsPrevious {
            previous: 13_500_416,
            previous_len_bytes: 262_144,
        }),
    ]
}

pub(crate) fn hello() -> Hello {
    Hello {
        kernel_release: "6.12.1-amd64".to_owned(),
        mode: HookMode::Tracepoints,
        hooks: vec![
            "raw_tracepoint:add_delayed_tree_ref".to_owned(),
            "raw_tracepoint:add_delayed_data_ref".to_owned(),
        ],
        unseen: vec![
            "A call that fails is not taken back.".to_owned(),
            "Extents that log replay\nallocates are not seen.".to_owned(),
        ],
        devices: vec!["/dev/sdb".to_owned(), "/dev/mapper/a\x1bb".to_owned()],
    }
}

pub(crate) fn seeding(done_permille: u32) -> Notice {
    Notice::Seeding {
        fs: FsSlot(0),
        fsid: FSID,
        generation: 40 + u64::from(done_permille / 100),
        done_permille,
        extents: u64::from(done_permille) * 10,
        events_waiting: 12,
    }
}

/// The notices of a run in which everything happens, without findings and summary.
pub(crate) fn life_cycle() -> Vec<Notice> {
    let fs = FsSlot(0);
    let loss = Loss { fs: Some(fs), source: LossSource::RingBuffer, count: 12 };
    vec![
        Notice::Started(hello()),
        Notice::WaitingForMount { fs },
        Notice::Mounted { fs, armed_before: true },
        Notice::Mounted { fs: FsSlot(1), armed_before: false },
        Notice::WaitingForCommit { fs: FsSlot(1), generation: 9 },
        seeding(0),
        seeding(50),
        seeding(600),
        Notice::Named { fs, fsid: FSID },
        Notice::Seeded { fs, first_generation: 40, generation: 46, extents: 1 },
        Notice::Blind { fs, cause: BlindCause::Lost(loss), verified_upto: 97 },
        Notice::Blind { fs, cause: WRITES_DROPPED, verified_upto: 97 },
        Notice::Blind { fs, cause: BlindCause::NoSuperblock, verified_upto: 97 },
        Notice::OutOfOrder { fs, disorder: Disorder::CommitOutOfTurn { transid: 99, after: 97 } },
        Notice::Aborted { fs, transid: 99, errno: -5 },
        Notice::Undone { fs, on_disk: 98, undone: Span { first: 99, last: 99 }, findings: 1 },
        Notice::Undone { fs, on_disk: 97, undone: Span { first: 98, last: 99 }, findings: 0 },
        Notice::GaveUp { fs, what: GaveUp::Histories { upto: 70 } },
        Notice::GaveUp { fs, what: GaveUp::FreedExtents { upto: 60 } },
        Notice::GaveUp { fs, what: GaveUp::Everything { in_use_bytes: 3 << 30 } },
        Notice::MirrorFailed {
            fs: FsSlot(0),
            devid: 2,
            reason:
                "device 2 has no good copy of block 30408704 of tree 2, level 0, generation 9: \
                     its checksum does not match; another one was used"
                    .to_owned(),
        },
        Notice::Refused { fs: FsSlot(1), reason: "incompat feature REMAP_TREE\nset".to_owned() },
        Notice::Unmounted { fs },
        Notice::Dump("end\n".to_owned()),
    ]
}

const WRITES_DROPPED: BlindCause = BlindCause::WritesDropped { signalled: 99, on_disk: 97 };

pub(crate) fn clean_summary() -> Summary {
    let coverage = Coverage {
        fs: FsSlot(0),
        device: "/dev/dm-3".to_owned(),
        fsid: Some(FSID),
        state: FsState::Live,
        verified: vec![Span { first: 41, last: 97 }],
        blind: Vec::new(),
        undone: Vec::new(),
        events_seen: 5000,
        events_applied: 4900,
        events_on_disk: 99,
        events_retracted: 1,
        mounts_unverified: 0,
        audits: 3,
        extents: 1234,
        histories_given_up: None,
        freed_given_up: None,
    };
    Summary {
        coverage: vec![coverage],
        findings: BTreeMap::new(),
        withheld: BTreeMap::new(),
        losses: Vec::new(),
    }
}

/// Everything that a summary can say.
pub(crate) fn bad_summary() -> Summary {
    let mut summary = clean_summary();
    let fs = &mut summary.coverage[0];
    fs.state = FsState::Blind;
    fs.verified.push(Span { first: 120, last: 120 });
    let lost = Loss { fs: Some(FsSlot(0)), source: LossSource::RingBuffer, count: 12 };
    let blind =
        |first, last, cause| BlindSpan { span: Span { first, last }, cause, then: FsState::Live };
    fs.blind.push(blind(98, 119, BlindCause::Lost(lost)));
    fs.blind.push(blind(121, 122, WRITES_DROPPED));
    fs.undone.push(Span { first: 122, last: 123 });
    fs.histories_given_up = Some(90);
    fs.freed_given_up = Some(45);
    summary.coverage.push(Coverage {
        fs: FsSlot(1),
        device: "/dev/mapper/a\x1bb".to_owned(),
        fsid: None,
        state: FsState::Refused,
        verified: Vec::new(),
        blind: Vec::new(),
        undone: Vec::new(),
        events_seen: 0,
        events_applied: 0,
        events_on_disk: 0,
        events_retracted: 0,
        mounts_unverified: 2,
        audits: 0,
        extents: 0,
        histories_given_up: None,
        freed_given_up: None,
    });
    summary.findings.insert(FindingKind::NoEntry, 200);
    summary.withheld.insert(FindingKind::NoEntry, 192);
    summary.findings.insert(FindingKind::Disk(DiskFindingKind::ZeroRefCount), 1);
    summary.losses.push(Loss { fs: Some(FsSlot(0)), source: LossSource::RingBuffer, count: 12 });
    summary.losses.push(Loss { fs: None, source: LossSource::ProgramMissed, count: 1 });
    summary
}
