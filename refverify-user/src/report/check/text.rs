//! As text for people.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{BAD_TREE_BLOCK, BadBlock, Checked};
use crate::{
    btrfs::{DiskFinding, SignedRoot, Tally},
    report::{
        printable::Printable,
        sentence::{counted, of_disk},
    },
};

/// So many roots have a line each.
const ROOTS_SHOWN: usize = 40;

/// One line, with its break.
pub(super) fn finding(generation: u64, finding: &DiskFinding) -> String {
    let kind = finding.kind().map_or("note", |kind| kind.name());
    format!("{kind}: {}\n", of_disk(generation, finding))
}

/// One line, with its break.
pub(super) fn bad_block(bad: &BadBlock) -> String {
    let kind = if bad.is_violation() { BAD_TREE_BLOCK } else { "unreadable" };
    let BadBlock { generation, pointer, .. } = bad;
    let faults = super::json::faults(bad).join("; ");
    let faults = Printable(&faults);
    format!(
        "{kind}: At generation {generation}, {pointer} is bad on every mirror: {faults}. What \
         lies below it was not read.\n"
    )
}

/// What the tree holds and what was found, some lines.
pub(super) fn end(
    device: &str,
    checked: &Checked,
    findings: &BTreeMap<&'static str, u64>,
) -> String {
    let mut out = String::new();
    let device = Printable(device);
    if let Some(superblock) = &checked.superblock {
        let _ = writeln!(out, "{device}: btrfs {}", superblock.fsid);
        let _ = writeln!(out, "  extent tree: {}", extent_tree(checked));
        tally(&mut out, &checked.tally);
    }
    for (kind, &count) in findings {
        let _ = writeln!(out, "{kind}: {}", counted(count, "finding"));
    }
    if let Some(failed) = &checked.failed {
        let _ = writeln!(out, "reading ended early: {}", Printable(failed));
    }
    let found = match findings.values().sum() {
        0 => "no violation was seen".to_owned(),
        count => counted(count, "finding"),
    };
    let gaps = if checked.is_whole() { "" } else { ", and not everything could be read" };
    let _ = writeln!(out, "verdict: {found}{gaps}");
    out
}

fn extent_tree(checked: &Checked) -> String {
    let generations = || checked.read.iter().map(|(_, generation)| *generation);
    let generation = match (generations().min(), generations().max()) {
        (Some(first), Some(last)) if first == last => format!("read at generation {first}"),
        (Some(first), Some(last)) => {
            let ranges = checked.read.len();
            format!("read in {ranges} ranges, at generations {first} to {last}")
        }
        _ => "nothing was read".to_owned(),
    };
    match checked.unread.len() as u64 {
        0 => generation,
        count => format!("{generation}; {} could not be read", counted(count, "range")),
    }
}

fn tally(out: &mut String, tally: &Tally) {
    let Tally { data, data_direct, data_shared, tree_direct, tree_shared, .. } = tally;
    let tree_bytes: u64 = tally.tree_blocks.iter().map(|level| level.len_bytes).sum();
    let data_extents = counted(data.count, "extent");
    let _ = writeln!(out, "  data: {data_extents}, {} bytes", data.len_bytes);
    let tree_extents = counted(tally.extents() - data.count, "block");
    let _ = writeln!(out, "  trees: {tree_extents}, {tree_bytes} bytes");
    for (level, blocks) in tally.tree_blocks.iter().enumerate().filter(|(_, l)| l.count > 0) {
        let _ = writeln!(out, "    level {level}: {}", counted(blocks.count, "block"));
    }
    if let Some((first, last)) = tally.allocated {
        let _ = writeln!(out, "  allocated in: transactions {first} to {last}");
    }
    let _ = writeln!(
        out,
        "  data refs: {} direct, {} shared",
        shown(*data_direct),
        shown(*data_shared)
    );
    let _ = writeln!(out, "  tree refs: {} direct, {} shared", tree_direct.keys, tree_shared.keys);
    if tally.owners > 0 {
        let _ = writeln!(out, "  with a quota owner: {}", counted(tally.owners, "extent"));
    }
    for (&root, count) in tally.roots.iter().take(ROOTS_SHOWN) {
        let _ = writeln!(out, "  root {}: {}", SignedRoot(root), counted(*count, "direct ref"));
    }
    let more = tally.roots.len().saturating_sub(ROOTS_SHOWN) as u64;
    if more > 0 || tally.other_roots > 0 {
        let _ = writeln!(out, "  and {}", counted(more, "more root"));
    }
}

/// A reference may count more than once.
fn shown(refs: crate::btrfs::Refs) -> String {
    if refs.count == refs.keys {
        refs.keys.to_string()
    } else {
        format!("{} (counting {})", refs.keys, refs.count)
    }
}
