//! The rules of one extent, after the kernel's own checker (`btrfs_ref_tree_mod` in
//! `fs/btrfs/ref-verify.c`, read in 6.12).
//!
//! Where that checker errs it is not followed: a re-allocation takes over length and kind
//! anew, and root 0 is looked at before anything is counted for it.

use super::{FindingKind, ledger::Extent};
use crate::{
    btrfs::{Action, ExtentKind, RefKey},
    verify::FindingKind as Kind,
};

/// Judges one change of a reference against what is known of its extent. `None` for the
/// extent means that none is known at this bytenr.
pub(crate) fn judge(
    extent: Option<&Extent>,
    action: Action,
    key: &RefKey,
) -> Result<(), FindingKind> {
    match action {
        Action::AddExtent => judge_allocation(extent)?,
        Action::AddRef => judge_add(referenced(extent)?, key)?,
        Action::DropRef => judge_drop(referenced(extent)?, key)?,
    }
    if key.root == 0 && key.parent == 0 { Err(Kind::MissingRoot) } else { Ok(()) }
}

fn judge_allocation(extent: Option<&Extent>) -> Result<(), FindingKind> {
    match extent {
        Some(extent) if extent.total_refs != 0 => Err(Kind::ReallocatedWithRefs),
        _ => Ok(()),
    }
}

/// Whatever is not an allocation needs an extent that is in use.
fn referenced(extent: Option<&Extent>) -> Result<&Extent, FindingKind> {
    let extent = extent.ok_or(Kind::NoEntry)?;
    if extent.total_refs == 0 { Err(Kind::ZeroRefs) } else { Ok(extent) }
}

/// Data may be referenced many times from one place; a tree block only once.
fn judge_add(extent: &Extent, key: &RefKey) -> Result<(), FindingKind> {
    let again = extent.refs.contains_key(key);
    match extent.kind {
        ExtentKind::TreeBlock { .. } if again => Err(Kind::DuplicateTreeRef),
        _ => Ok(()),
    }
}

fn judge_drop(extent: &Extent, key: &RefKey) -> Result<(), FindingKind> {
    match extent.refs.get(key) {
        None => Err(Kind::DropMissingRef),
        // Only the disk can bring a count of 0: the ledger removes what it counts down to it.
        Some(0) => Err(Kind::DropExhaustedRef),
        Some(_) => Ok(()),
    }
}
