//! As JSON, one object on one line for each report. The structs are the schema.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{BAD_TREE_BLOCK, BadBlock, Checked};
use crate::{
    btrfs::{DiskFinding, Refs, reader::MirrorFault},
    report::sentence::of_disk,
};

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Finding(Box<Finding>),
    Note(Box<Finding>),
    BadTreeBlock(Bad),
    MirrorFailed(Mirror),
    Check(Box<End<'a>>),
}

#[derive(Serialize)]
struct Finding {
    kind: Option<&'static str>,
    message: String,
    generation: u64,
    bytenr: u64,
    leaf: u64,
    slot: u32,
    detail: String,
}

#[derive(Serialize)]
struct Bad {
    /// `null` if the device gave no bytes.
    kind: Option<&'static str>,
    generation: u64,
    tree: u64,
    bytenr: u64,
    level: u8,
    block_generation: u64,
    faults: Vec<String>,
}

#[derive(Serialize)]
struct Mirror {
    devid: u64,
    tree: u64,
    bytenr: u64,
    fault: String,
}

#[derive(Serialize)]
struct End<'a> {
    device: &'a str,
    fsid: Option<String>,
    nodesize: Option<u32>,
    sectorsize: Option<u32>,
    /// The newest that was read.
    generation: Option<u64>,
    /// Whether all of the extent tree was read.
    whole: bool,
    error: Option<&'a str>,
    read: Vec<Read>,
    unread: Vec<Range>,
    data: Extents,
    tree_blocks: Vec<Extents>,
    refs: AllRefs,
    quota_owners: u64,
    roots: Vec<Root>,
    other_roots_refs: u64,
    allocated_first: Option<u64>,
    allocated_last: Option<u64>,
    findings: &'a BTreeMap<&'static str, u64>,
}

/// To the end where it is 2^64 - 1.
#[derive(Serialize)]
struct Range {
    from_bytenr: u64,
    upto_bytenr: u64,
}

#[derive(Serialize)]
struct Read {
    #[serde(flatten)]
    range: Range,
    generation: u64,
}

#[derive(Serialize)]
struct Extents {
    extents: u64,
    len_bytes: u64,
}

#[derive(Serialize)]
struct AllRefs {
    data_direct: RefCounts,
    data_shared: RefCounts,
    tree_direct: RefCounts,
    tree_shared: RefCounts,
}

#[derive(Serialize)]
struct RefCounts {
    keys: u64,
    count: u64,
}

#[derive(Serialize)]
struct Root {
    root: u64,
    count: u64,
}

impl From<std::ops::Range<u64>> for Range {
    fn from(range: std::ops::Range<u64>) -> Self {
        Self { from_bytenr: range.start, upto_bytenr: range.end }
    }
}

impl From<crate::btrfs::Extents> for Extents {
    fn from(extents: crate::btrfs::Extents) -> Self {
        Self { extents: extents.count, len_bytes: extents.len_bytes }
    }
}

impl From<Refs> for RefCounts {
    fn from(Refs { keys, count }: Refs) -> Self {
        Self { keys, count }
    }
}

/// The line, with its break.
pub(super) fn finding(generation: u64, finding: &DiskFinding) -> String {
    let kind = finding.kind().map(crate::btrfs::DiskFindingKind::name);
    let found = Box::new(Finding {
        kind,
        message: of_disk(generation, finding),
        generation,
        bytenr: finding.bytenr,
        leaf: finding.leaf,
        slot: finding.slot,
        detail: finding.fault.to_string(),
    });
    line(&if kind.is_some() { Line::Finding(found) } else { Line::Note(found) })
}

/// The line, with its break.
pub(super) fn bad_block(bad: &BadBlock) -> String {
    let pointer = bad.pointer;
    line(&Line::BadTreeBlock(Bad {
        kind: bad.is_violation().then_some(BAD_TREE_BLOCK),
        generation: bad.generation,
        tree: pointer.tree,
        bytenr: pointer.bytenr,
        level: pointer.level,
        block_generation: pointer.generation,
        faults: faults(bad),
    }))
}

/// The line, with its break.
pub(super) fn mirror_failed(failed: &MirrorFault) -> String {
    let MirrorFault { devid, pointer, fault } = failed;
    line(&Line::MirrorFailed(Mirror {
        devid: *devid,
        tree: pointer.tree,
        bytenr: pointer.bytenr,
        fault: fault.to_string(),
    }))
}

/// What is wrong, mirror by mirror.
pub(super) fn faults(bad: &BadBlock) -> Vec<String> {
    bad.faults.iter().map(ToString::to_string).collect()
}

/// The line, with its break.
pub(super) fn end(
    device: &str,
    checked: &Checked,
    findings: &BTreeMap<&'static str, u64>,
) -> String {
    let superblock = checked.superblock.as_deref();
    let tally = &checked.tally;
    let read = |(range, generation): &(std::ops::Range<u64>, u64)| Read {
        range: range.clone().into(),
        generation: *generation,
    };
    line(&Line::Check(Box::new(End {
        device,
        fsid: superblock.map(|superblock| superblock.fsid.to_string()),
        nodesize: superblock.map(|superblock| superblock.nodesize),
        sectorsize: superblock.map(|superblock| superblock.sectorsize),
        generation: superblock.map(|superblock| superblock.generation),
        whole: checked.is_whole(),
        error: checked.failed.as_deref(),
        read: checked.read.iter().map(read).collect(),
        unread: checked.unread.iter().cloned().map(Range::from).collect(),
        data: tally.data.into(),
        tree_blocks: tally.tree_blocks.iter().copied().map(Extents::from).collect(),
        refs: AllRefs {
            data_direct: tally.data_direct.into(),
            data_shared: tally.data_shared.into(),
            tree_direct: tally.tree_direct.into(),
            tree_shared: tally.tree_shared.into(),
        },
        quota_owners: tally.owners,
        roots: tally.roots.iter().map(|(&root, &count)| Root { root, count }).collect(),
        other_roots_refs: tally.other_roots,
        allocated_first: tally.allocated.map(|(first, _)| first),
        allocated_last: tally.allocated.map(|(_, last)| last),
        findings,
    })))
}

fn line(line: &Line) -> String {
    let line = serde_json::to_string(line);
    line.expect("structs of numbers, strings and lists always serialise") + "\n"
}
