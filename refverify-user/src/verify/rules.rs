//! The rules of one extent, after the kernel's own checker (`btrfs_ref_tree_mod` in
//! `fs/btrfs/ref-verify.c`, read in 6.12).
//!
//! Where that checker errs it is not followed: a re-allocation takes over length and kind
//! anew, and root 0 is looked at before anything is counted for it.

use super::FindingKind;
use crate::btrfs::{Action, ExtentKind, RefKey};

/// What a rule needs to know of an extent: no more, so that every form of a ledger can show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Data or tree block.
    pub(crate) kind: ExtentKind,
    /// How many references it has.
    pub(crate) total_refs: u64,
    /// How often the reference in question is held; `None` where the extent does not have it.
    pub(crate) count: Option<u64>,
}

/// Judges one change of a reference against what is known of its extent. `None` for the
/// extent means that none is known at this bytenr.
pub(crate) fn judge(extent: Option<View>, action: Action, key: &RefKey) -> Result<(), FindingKind> {
    match action {
        Action::AddExtent => judge_allocation(extent)?,
        Action::AddRef => judge_add(&referenced(extent)?)?,
        Action::DropRef => judge_drop(&referenced(extent)?)?,
    }
    if key.root == 0 && key.parent == 0 { Err(FindingKind::MissingRoot) } else { Ok(()) }
}

fn judge_allocation(extent: Option<View>) -> Result<(), FindingKind> {
    match extent {
        Some(extent) if extent.total_refs != 0 => Err(FindingKind::ReallocatedWithRefs),
        _ => Ok(()),
    }
}

/// Whatever is not an allocation needs an extent that is in use.
fn referenced(extent: Option<View>) -> Result<View, FindingKind> {
    let extent = extent.ok_or(FindingKind::NoEntry)?;
    if extent.total_refs == 0 { Err(FindingKind::ZeroRefs) } else { Ok(extent) }
}

/// Data may be referenced many times from one place; a tree block only once.
fn judge_add(extent: &View) -> Result<(), FindingKind> {
    match extent.kind {
        ExtentKind::TreeBlock { .. } if extent.count.is_some() => {
            Err(FindingKind::DuplicateTreeRef)
        }
        _ => Ok(()),
    }
}

fn judge_drop(extent: &View) -> Result<(), FindingKind> {
    match extent.count {
        None => Err(FindingKind::DropMissingRef),
        // Only the disk can bring a count of 0: the ledger removes what it counts down to it.
        Some(0) => Err(FindingKind::DropExhaustedRef),
        Some(_) => Ok(()),
    }
}
