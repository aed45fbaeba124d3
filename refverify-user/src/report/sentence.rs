//! One sentence for each kind of finding.
//!
//! A sentence states every fact that the kernel's checker states where it stops
//! (`btrfs_ref_tree_mod`, `btrfs_free_ref_tree_range` and `dump_ref_action` in
//! `fs/btrfs/ref-verify.c`, read in 6.12): the action, the extent, the reference, the
//! transaction and who did it.

use crate::{
    btrfs::{Action, DiskFinding, ExtentKind, RefKey},
    feed::{Change, Event},
    verify::{Cause, ExtentDump, Finding, FindingKind},
};

/// What is wrong, in one sentence without a line break.
pub(super) fn sentence(finding: &Finding) -> String {
    match &finding.cause {
        Cause::Event(event) => of_event(finding.kind, event, finding.extent.as_ref()),
        Cause::Disk { generation, finding } => of_disk(*generation, finding),
        Cause::Audit { generation, bytenr, on_disk } => {
            of_audit(*generation, *bytenr, finding.extent.as_ref(), on_disk.as_ref())
        }
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
        // Not made from events; here so that a new kind is not forgotten.
        FindingKind::DiskDiffers => "the extent tree differs".to_owned(),
        FindingKind::Disk(kind) => format!("the rule {} is broken", kind.name()),
    }
}

/// What is wrong on disk.
pub(super) fn of_disk(generation: u64, found: &DiskFinding) -> String {
    let DiskFinding { fault, bytenr, leaf, slot } = found;
    format!(
        "In the extent tree of generation {generation}, extent {bytenr} (leaf {leaf}, slot \
         {slot}): {fault}."
    )
}

fn of_audit(
    generation: u64,
    bytenr: u64,
    expected: Option<&ExtentDump>,
    on_disk: Option<&ExtentDump>,
) -> String {
    let words = |dump: &ExtentDump| {
        let refs = counted(dump.total_refs, "reference");
        format!("{}, {} bytes, {refs}", kind_words(dump.kind), dump.len_bytes)
    };
    let on_disk = on_disk.map_or_else(
        || "has no such extent".to_owned(),
        |dump| format!("has it ({})", words(dump)),
    );
    let expected = match expected.filter(|dump| dump.total_refs > 0) {
        Some(dump) => format!("lead to another state of it ({})", words(dump)),
        None => "lead to none".to_owned(),
    };
    format!(
        "The extent tree of generation {generation} {on_disk} at {bytenr}, but the changes seen \
         {expected}."
    )
}

/// `1 reference`, `2 references`.
pub(super) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// `data`, or `tree level 0`.
pub(super) fn kind_words(kind: ExtentKind) -> String {
    match kind {
        ExtentKind::Data => "data".to_owned(),
        ExtentKind::TreeBlock { level } => format!("tree level {level}"),
    }
}
