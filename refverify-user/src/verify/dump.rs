//! The ledger as text, one line for each extent and each reference.

use std::fmt::Write as _;

use super::{FsState, ledger::Ledger};
use crate::{btrfs::ExtentKind, feed::FsSlot};

/// Appends one file system. `docs/ledger-dump.md` describes the form.
pub(crate) fn write(
    out: &mut String,
    fs: FsSlot,
    device: &str,
    state: FsState,
    generation: u64,
    ledger: &Ledger,
) {
    let state = state.name();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "fs {} device {device} state {state} generation {generation}", fs.0);
    for (bytenr, extent) in ledger.iter() {
        let (len, refs) = (extent.len_bytes, extent.total_refs);
        let _ = match extent.kind {
            ExtentKind::Data => writeln!(out, "extent {bytenr} len {len} data refs {refs}"),
            ExtentKind::TreeBlock { level } => {
                writeln!(out, "extent {bytenr} len {len} tree level {level} refs {refs}")
            }
        };
        for (key, count) in &extent.refs {
            let (root, parent, owner, offset) = (key.root, key.parent, key.owner, key.offset);
            let _ = writeln!(
                out,
                "ref root {root} parent {parent} owner {owner} offset {offset} count {count}"
            );
        }
    }
}
