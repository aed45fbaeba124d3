//! The extent tree as `btrfs inspect-internal dump-tree` prints it, and the monitor's ledger
//! as it dumps it, brought into one form and compared reference by reference.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result, bail, ensure};

/// root, parent, owner, offset, normalised as the ledger's dump has them.
pub(crate) type RefKey = [u64; 4];

/// An extent and its references, with their counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) len_bytes: u64,
    /// `None` is data.
    pub(crate) level: Option<u64>,
    pub(crate) total_refs: u64,
    pub(crate) refs: BTreeMap<RefKey, u64>,
}

/// By bytenr.
pub(crate) type Extents = BTreeMap<u64, Extent>;

/// One file system of a ledger's dump.
pub(crate) struct Ledger {
    pub(crate) state: String,
    pub(crate) generation: u64,
    pub(crate) extents: Extents,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level {
            None => write!(f, "data")?,
            Some(level) => write!(f, "tree level {level}")?,
        }
        write!(f, " len {} refs {}", self.len_bytes, self.total_refs)?;
        for ([root, parent, owner, offset], count) in &self.refs {
            write!(f, " [root {root} parent {parent} owner {owner} offset {offset} x{count}]")?;
        }
        Ok(())
    }
}

/// Parses the extent tree's dump. `node_len_bytes`: what a skinny item leaves unsaid.
pub(crate) fn parse_dump_tree(text: &str, node_len_bytes: u64) -> Result<Extents> {
    let mut dump = DumpTree { node_len_bytes, key: None, extents: BTreeMap::new() };
    for (number, line) in text.lines().enumerate() {
        dump.line(line).with_context(|| format!("dump-tree line {}: {line}", number + 1))?;
    }
    ensure!(!dump.extents.is_empty(), "dump-tree printed no extent");
    Ok(dump.extents)
}

struct DumpTree {
    node_len_bytes: u64,
    /// The item that the lines now belong to: bytenr and the key's offset.
    key: Option<(u64, u64)>,
    extents: Extents,
}

impl DumpTree {
    fn line(&mut self, line: &str) -> Result<()> {
        if let Some((_, key)) = line.split_once(" key (").filter(|(head, _)| head.contains("item "))
        {
            return self.item(key);
        }
        let Some((bytenr, key_offset)) = self.key else { return Ok(()) };
        let words: Vec<&str> = line.split_whitespace().collect();
        let value = |name: &str| {
            let at = words.iter().position(|word| *word == name);
            at.and_then(|at| words.get(at + 1)).map(|word| number(word)).transpose()
        };
        let needed = |name: &str| value(name)?.with_context(|| format!("no {name}"));
        let extent = self.extents.get_mut(&bytenr).context("a reference without an extent item")?;
        if words.first() == Some(&"refs") {
            extent.total_refs = needed("refs")?;
            return Ok(());
        }
        if line.contains("tree block") && !line.contains("backref") {
            extent.level = Some(needed("level")?);
            return Ok(());
        }
        let level = || extent.level.context("a tree block's reference to data");
        let (key, count) = if line.contains("tree block backref") {
            // A keyed reference says its root in the key alone.
            ([value("root")?.unwrap_or(key_offset), 0, level()?, 0], 1)
        } else if line.contains("shared block backref") {
            ([0, value("parent")?.unwrap_or(key_offset), level()?, 0], 1)
        } else if line.contains("extent data backref") {
            ([needed("root")?, 0, needed("objectid")?, needed("offset")?], needed("count")?)
        } else if line.contains("shared data backref") {
            ([0, value("parent")?.unwrap_or(key_offset), 0, 0], needed("count")?)
        } else if line.contains("extent owner") || line.starts_with("total bytes") {
            return Ok(());
        } else if line.starts_with("\t\t") {
            bail!("a line that is not known");
        } else {
            // A new leaf's heading.
            self.key = None;
            return Ok(());
        };
        *extent.refs.entry(key).or_default() += count;
        Ok(())
    }

    /// `13631488 EXTENT_ITEM 8388608) itemoff 16230 itemsize 53`
    fn item(&mut self, key: &str) -> Result<()> {
        let words: Vec<&str> = key.split([' ', ')']).collect();
        let [bytenr, kind, offset, ..] = words[..] else { bail!("no key") };
        let (bytenr, offset) = (number(bytenr)?, number(offset)?);
        self.key = Some((bytenr, offset));
        let (len_bytes, level) = match kind {
            "EXTENT_ITEM" => (offset, None),
            "METADATA_ITEM" => (self.node_len_bytes, Some(offset)),
            "TREE_BLOCK_REF" | "SHARED_BLOCK_REF" | "EXTENT_DATA_REF" | "SHARED_DATA_REF" => {
                return Ok(());
            }
            _ => {
                self.key = None;
                return Ok(());
            }
        };
        let extent = Extent { len_bytes, level, total_refs: 0, refs: BTreeMap::new() };
        ensure!(self.extents.insert(bytenr, extent).is_none(), "two items of one extent");
        Ok(())
    }
}

/// A number as btrfs-progs prints it: by name for well-known trees, perhaps below 0.
fn number(word: &str) -> Result<u64> {
    let known = match word {
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
        "TREE_LOG" => -6,
        "TREE_RELOC" => -8,
        "DATA_RELOC_TREE" => -9,
        _ => {
            let value = word.parse::<u64>().or_else(|_| word.parse().map(i64::cast_unsigned));
            return value.with_context(|| format!("{word} is no number"));
        }
    };
    Ok(i64::cast_unsigned(known))
}

/// Parses the first file system of the monitor's ledger dump.
pub(crate) fn parse_ledger(text: &str) -> Result<Ledger> {
    parse_ledger_of(text, 0)
}

/// The same of the file system with that place in the command line.
pub(crate) fn parse_ledger_of(text: &str, slot: usize) -> Result<Ledger> {
    ensure!(text.lines().last() == Some("end"), "the ledger's dump is cut off");
    let begin = format!("fs {slot} ");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&begin));
    let header = words(lines.next().unwrap_or_default());
    let ["fs", _, "device", _, "state", state, "generation", generation] = header[..] else {
        bail!("file system {slot} begins in the ledger's dump with: {header:?}");
    };
    let mut ledger = Ledger {
        state: state.to_owned(),
        generation: generation.parse()?,
        extents: BTreeMap::new(),
    };
    let mut extent = None;
    for line in lines.take_while(|line| *line != "end" && !line.starts_with("fs ")) {
        ledger_line(line, &mut ledger.extents, &mut extent)
            .with_context(|| format!("ledger's dump: {line}"))?;
    }
    Ok(ledger)
}

fn ledger_line(line: &str, extents: &mut Extents, current: &mut Option<u64>) -> Result<()> {
    let words = words(line);
    let mut add = |bytenr: &str, len: &str, level: Option<u64>, total: &str| -> Result<()> {
        let (len_bytes, total_refs) = (len.parse()?, total.parse()?);
        let extent = Extent { len_bytes, level, total_refs, refs: BTreeMap::new() };
        let bytenr = bytenr.parse()?;
        *current = Some(bytenr);
        ensure!(extents.insert(bytenr, extent).is_none(), "two of one extent");
        Ok(())
    };
    match words[..] {
        ["extent", bytenr, "len", len, "data", "refs", total] => add(bytenr, len, None, total),
        ["extent", bytenr, "len", len, "tree", "level", level, "refs", total] => {
            add(bytenr, len, Some(level.parse()?), total)
        }
        [
            "ref",
            "root",
            root,
            "parent",
            parent,
            "owner",
            owner,
            "offset",
            offset,
            "count",
            count,
        ] => {
            let key = [root.parse()?, parent.parse()?, owner.parse()?, offset.parse()?];
            let extent = current.and_then(|bytenr| extents.get_mut(&bytenr));
            let extent = extent.context("a reference before any extent")?;
            ensure!(extent.refs.insert(key, count.parse()?).is_none(), "two of one reference");
            Ok(())
        }
        _ => bail!("not known"),
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Every extent that is not equal on both sides, one line each.
pub(crate) fn differences(disk: &Extents, ledger: &Extents) -> Vec<String> {
    let mut lines = Vec::new();
    for (bytenr, on_disk) in disk {
        match ledger.get(bytenr) {
            None => lines.push(format!("{bytenr}: only on disk: {on_disk}")),
            Some(known) if known != on_disk => {
                lines.push(format!("{bytenr}: on disk: {on_disk}; in the ledger: {known}"));
            }
            Some(_) => {}
        }
    }
    for (bytenr, known) in ledger {
        if !disk.contains_key(bytenr) {
            lines.push(format!("{bytenr}: only in the ledger: {known}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "btrfs-progs v6.2\n\
        extent tree key (EXTENT_TREE ROOT_ITEM 0) \n\
        leaf 30572544 items 5 free space 15000 generation 10 owner EXTENT_TREE\n\
        fs uuid eef84a8b-53b6-489d-abec-6c0b92b90757\n\
        \titem 0 key (13631488 EXTENT_ITEM 131072) itemoff 16217 itemsize 66\n\
        \t\trefs 5 gen 7 flags DATA\n\
        \t\textent data backref root FS_TREE objectid 257 offset 0 count 1\n\
        \t\tshared data backref parent 30474240 count 2\n\
        \titem 1 key (13631488 EXTENT_DATA_REF 99966215335888094) itemoff 1 itemsize 28\n\
        \t\textent data backref root 256 objectid 258 offset 18446744073709547520 count 2\n\
        \titem 2 key (13631488 BLOCK_GROUP_ITEM 8388608) itemoff 1 itemsize 24\n\
        \t\tblock group used 131072 chunk_objectid 256 flags DATA|single\n\
        leaf 30588928 items 2 free space 15000 generation 10 owner EXTENT_TREE\n\
        \titem 0 key (30408704 METADATA_ITEM 1) itemoff 16250 itemsize 33\n\
        \t\trefs 2 gen 5 flags TREE_BLOCK|FULL_BACKREF\n\
        \t\ttree block skinny level 1\n\
        \t\ttree block backref root DATA_RELOC_TREE\n\
        \titem 1 key (30408704 TREE_BLOCK_REF 428) itemoff 16250 itemsize 0\n\
        \t\ttree block backref\n\
        \titem 2 key (30425088 EXTENT_ITEM 16384) itemoff 16250 itemsize 51\n\
        \t\trefs 1 gen 5 flags TREE_BLOCK\n\
        \t\ttree block key (256 INODE_ITEM 0) level 0\n\
        \t\tshared block backref parent 30441472\n\
        total bytes 1073741824\n";

    const LEDGER: &str = "fs 0 device /dev/loop0 state live generation 10\n\
        extent 13631488 len 131072 data refs 5\n\
        ref root 0 parent 30474240 owner 0 offset 0 count 2\n\
        ref root 5 parent 0 owner 257 offset 0 count 1\n\
        ref root 256 parent 0 owner 258 offset 18446744073709547520 count 2\n\
        extent 30408704 len 16384 tree level 1 refs 2\n\
        ref root 428 parent 0 owner 1 offset 0 count 1\n\
        ref root 18446744073709551607 parent 0 owner 1 offset 0 count 1\n\
        extent 30425088 len 16384 tree level 0 refs 1\n\
        ref root 0 parent 30441472 owner 0 offset 0 count 1\n\
        end\n";

    #[test]
    fn every_form_of_reference_is_the_same_in_both_dumps() {
        let disk = parse_dump_tree(DUMP, 16384).unwrap();
        let ledger = parse_ledger(LEDGER).unwrap();
        assert_eq!(ledger.generation, 10);
        assert_eq!(ledger.state, "live");
        assert_eq!(disk.len(), 3);
        assert_eq!(differences(&disk, &ledger.extents), Vec::<String>::new());
    }

    #[test]
    fn any_number_that_differs_is_a_difference() {
        let disk = parse_dump_tree(DUMP, 16384).unwrap();
        for (was, is) in [
            ("data refs 5", "data refs 4"),
            ("len 131072", "len 131073"),
            ("tree level 1", "tree level 0"),
            ("owner 257", "owner 259"),
            ("count 2\nref root 5", "count 1\nref root 5"),
            ("extent 30425088", "extent 30441472"),
            ("ref root 428 parent 0 owner 1 offset 0 count 1\n", ""),
        ] {
            assert!(LEDGER.contains(was));
            let ledger = parse_ledger(&LEDGER.replace(was, is)).unwrap();
            assert!(!differences(&disk, &ledger.extents).is_empty(), "{was} -> {is}");
        }
    }

    #[test]
    fn a_dump_that_is_cut_off_or_strange_is_an_error() {
        assert!(parse_ledger(LEDGER.strip_suffix("end\n").unwrap()).is_err());
        assert!(parse_ledger("end\n").is_err());
        assert!(parse_dump_tree("btrfs-progs v6.2\n", 16384).is_err());
        let strange = DUMP.replace("shared block backref parent", "new kind of backref");
        assert!(parse_dump_tree(&strange, 16384).is_err());
    }
}
