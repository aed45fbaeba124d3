//! Reads what `btrfs inspect-internal dump-tree -t extent` prints: a second opinion on every
//! extent and reference, from a program that shares no code with this one.

use refverify_user::btrfs::{DiskExtent, ExtentKind, RefKey};

/// Every extent in the dump, in its order.
///
/// # Errors
///
/// The line that was not understood: an oracle that skips what it does not know is none.
pub(crate) fn parse(dump: &str, nodesize: u64) -> Result<Vec<DiskExtent>, String> {
    let mut extents: Vec<DiskExtent> = Vec::new();
    // The offset in the key of the keyed reference that the next line belongs to.
    let mut key_offset = None;
    for line in dump.lines() {
        let words: Vec<&str> = line
            .split(|c: char| c.is_whitespace() || "()".contains(c))
            .filter(|w| !w.is_empty())
            .collect();
        read_line(&words, nodesize, &mut extents, &mut key_offset)
            .ok_or_else(|| format!("dump-tree printed a line that is not understood: {line:?}"))?;
    }
    Ok(extents)
}

fn read_line(
    words: &[&str],
    nodesize: u64,
    extents: &mut Vec<DiskExtent>,
    key_offset: &mut Option<u64>,
) -> Option<()> {
    match words {
        ["item", _, "key", bytenr, "EXTENT_ITEM", len_bytes, ..] => {
            extents.push(new_extent(bytenr.parse().ok()?, len_bytes.parse().ok()?));
        }
        ["item", _, "key", bytenr, "METADATA_ITEM", _, ..] => {
            extents.push(new_extent(bytenr.parse().ok()?, nodesize));
        }
        [
            "item",
            _,
            "key",
            bytenr,
            "TREE_BLOCK_REF" | "EXTENT_DATA_REF" | "SHARED_BLOCK_REF" | "SHARED_DATA_REF",
            offset,
            ..,
        ] => {
            (extents.last()?.bytenr == number(bytenr)?).then_some(())?;
            *key_offset = Some(tree_id(offset)?);
        }
        ["refs", refs, "gen", generation, "flags", flags] => {
            let extent = extents.last_mut()?;
            extent.total_refs = refs.parse().ok()?;
            extent.generation = generation.parse().ok()?;
            extent.kind = match flags.split('|').next()? {
                "DATA" => ExtentKind::Data,
                // The level is on the next line.
                "TREE_BLOCK" => ExtentKind::TreeBlock { level: u8::MAX },
                _ => return None,
            };
        }
        ["tree", "block", "skinny", "level", level]
        | ["tree", "block", "key", .., "level", level] => {
            extents.last_mut()?.kind = ExtentKind::TreeBlock { level: level.parse().ok()? };
        }
        ["tree", "block", "backref"] => {
            push_tree_ref(extents, key_offset.take()?, 0)?;
        }
        ["tree", "block", "backref", "root", root] => push_tree_ref(extents, tree_id(root)?, 0)?,
        ["shared", "block", "backref", "parent", parent] => {
            push_tree_ref(extents, 0, parent.parse().ok()?)?;
        }
        ["shared", "block", "backref"] => push_tree_ref(extents, 0, key_offset.take()?)?,
        [
            "extent",
            "data",
            "backref",
            "root",
            root,
            "objectid",
            objectid,
            "offset",
            offset,
            "count",
            count,
        ] => {
            let key = RefKey::data(tree_id(root)?, 0, number(objectid)?, number(offset)?);
            extents.last_mut()?.refs.push((key, count.parse().ok()?));
        }
        ["shared", "data", "backref", "parent", parent, "count", count] => {
            let key = RefKey::data(0, parent.parse().ok()?, 0, 0);
            extents.last_mut()?.refs.push((key, count.parse().ok()?));
        }
        ["shared", "data", "backref", "count", count] => {
            let key = RefKey::data(0, key_offset.take()?, 0, 0);
            extents.last_mut()?.refs.push((key, count.parse().ok()?));
        }
        ["extent", "owner", "root", root] => {
            extents.last_mut()?.owner_root = Some(tree_id(root)?);
        }
        // Block groups; headers of the dump, of its nodes and leaves; pointers.
        []
        | ["item", _, "key", _, "BLOCK_GROUP_ITEM", ..]
        | [
            "btrfs-progs" | "extent" | "node" | "leaf" | "fs" | "chunk" | "key" | "block" | "total"
            | "bytes" | "uuid",
            ..,
        ] => {}
        _ => return None,
    }
    Some(())
}

fn new_extent(bytenr: u64, len_bytes: u64) -> DiskExtent {
    DiskExtent {
        bytenr,
        len_bytes,
        kind: ExtentKind::Data,
        total_refs: 0,
        generation: 0,
        owner_root: None,
        refs: Vec::new(),
    }
}

fn push_tree_ref(extents: &mut [DiskExtent], root: u64, parent: u64) -> Option<()> {
    let extent = extents.last_mut()?;
    let ExtentKind::TreeBlock { level } = extent.kind else { return None };
    extent.refs.push((RefKey::tree(root, parent, level), 1));
    Some(())
}

/// A number; the largest are printed as negative ones in places.
fn number(word: &str) -> Option<u64> {
    word.parse().ok().or_else(|| word.parse::<i64>().ok().map(i64::cast_unsigned))
}

/// A tree's id, printed by name where btrfs-progs knows one.
fn tree_id(word: &str) -> Option<u64> {
    let signed: i64 = match word {
        "ROOT_TREE" => 1,
        "EXTENT_TREE" => 2,
        "CHUNK_TREE" => 3,
        "DEV_TREE" => 4,
        "FS_TREE" => 5,
        "CSUM_TREE" => 7,
        "QUOTA_TREE" => 8,
        "UUID_TREE" => 9,
        "FREE_SPACE_TREE" => 10,
        "BLOCK_GROUP_TREE" => 11,
        "RAID_STRIPE_TREE" => 12,
        "DATA_RELOC_TREE" => -9,
        "TREE_RELOC" => -8,
        _ => return number(word),
    };
    Some(signed.cast_unsigned())
}
