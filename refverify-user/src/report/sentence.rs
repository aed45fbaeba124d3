//! One sentence for each kind of finding.
//!
//! A sentence states every fact that the kernel's checker states where it stops
//! (`btrfs_ref_tree_mod`, `btrfs_free_ref_tree_range` and `dump_ref_action` in
//! `fs/btrfs/ref-verify.c`, read in 6.12): the action, the extent, the reference, the
//! transaction and who did it.

use super::printable::Printable;
use crate::{
    btrfs::{Action, DiskFinding, DiskFindingKind, ExtentKind, RefKey},
    feed::{Change, Event},
    verify::{Cause, ExtentDump, Finding, FindingKind},
};

/// What is wrong, in one sentence without a line break.
pub(super) fn sentence(finding: &Finding) -> String {
    match &finding.cause {
        Cause::Event(event) => of_event(finding.kind, event, finding.extent.as_ref()),
        Cause::Disk { generation, finding: found } => of_disk(finding.kind, *generation, found),
    }
}

fn of_event(kind: FindingKind, event: &Event, extent: Option<&ExtentDump>) -> String {
    let Event { transid, pid, comm, .. } = event;
    let deed = match event.change {
        Change::Ref { action, kind, bytenr, len_bytes, key, .. } => {
            ref_change(action, kind, bytenr, len_bytes, &key)
        }
        Change::RemoveGroup { start, len_bytes } => {
            format!("removes block group {start} ({len_bytes} bytes)")
        }
    };
    let wrong = wrong_with_event(kind, extent);
    format!("In transaction {transid}, {comm}[{pid}] {deed}, but {wrong}.")
}

fn ref_change(
    action: Action,
    kind: ExtentKind,
    bytenr: u64,
    len_bytes: u64,
    key: &RefKey,
) -> String {
    let extent = match kind {
        ExtentKind::Data => format!("data extent {bytenr} ({len_bytes} bytes)"),
        ExtentKind::TreeBlock { level } => {
            format!("tree block {bytenr} ({len_bytes} bytes, level {level})")
        }
    };
    match action {
        Action::AddExtent => format!("allocates {extent} with its first reference ({key})"),
        Action::AddRef => format!("adds a reference ({key}) to {extent}"),
        Action::DropRef => format!("drops a reference ({key}) to {extent}"),
    }
}

fn wrong_with_event(kind: FindingKind, extent: Option<&ExtentDump>) -> String {
    match kind {
        FindingKind::ReallocatedWithRefs => match extent {
            Some(extent) => format!(
                "the extent that is there still has {}",
                counted(extent.total_refs, "reference")
            ),
            None => "the extent that is there still has references".to_owned(),
        },
        FindingKind::NoEntry => "no extent is known there".to_owned(),
        FindingKind::ZeroRefs => "that extent has no references left".to_owned(),
        FindingKind::DropExhaustedRef => {
            "that reference has been dropped as often as it was added".to_owned()
        }
        FindingKind::DropMissingRef => "the extent does not have that reference".to_owned(),
        FindingKind::DuplicateTreeRef => "the tree block has that reference already".to_owned(),
        FindingKind::MissingRoot => {
            "a reference without a parent has to name a root, and 0 is none".to_owned()
        }
        FindingKind::BlockGroupOverlap => match extent {
            Some(extent) => format!(
                "extent {} ({} bytes, {}) crosses its edge",
                extent.bytenr,
                extent.len_bytes,
                counted(extent.total_refs, "reference")
            ),
            None => "an extent crosses its edge".to_owned(),
        },
        FindingKind::Disk(kind) => wrong_on_disk(kind).to_owned(),
    }
}

fn of_disk(kind: FindingKind, generation: u64, found: &DiskFinding) -> String {
    let DiskFinding { bytenr, leaf, slot, detail, .. } = found;
    let wrong = match kind {
        FindingKind::Disk(kind) => wrong_on_disk(kind).to_owned(),
        kind => wrong_with_event(kind, None),
    };
    let detail = Printable(detail);
    format!(
        "In the extent tree of generation {generation}, leaf {leaf} slot {slot}, at extent \
         {bytenr}, {wrong}: {detail}."
    )
}

fn wrong_on_disk(kind: DiskFindingKind) -> &'static str {
    match kind {
        DiskFindingKind::DuplicateRefOnDisk => "the same reference stands twice",
        DiskFindingKind::BadInlineRef => "an inline reference cannot be read",
        DiskFindingKind::KeyedRefWithoutExtent => "a keyed reference stands without an extent item",
        DiskFindingKind::MissingRootOnDisk => {
            "a reference without a parent has to name a root, and 0 is none"
        }
        DiskFindingKind::RefCountMismatch => {
            "the references do not add up to the count that the extent item states"
        }
        DiskFindingKind::ZeroRefCount => "a reference has a count of 0",
        DiskFindingKind::BadExtentItem => "the extent item makes no sense",
    }
}

/// `1 reference`, `2 references`.
pub(super) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
