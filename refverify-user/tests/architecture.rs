//! Keeps ARCHITECTURE.md and the lists in docs/ true, by reading the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each room of the library may use of the others. `btrfs ◀ feed ◀ {agent, verify} ◀
/// report ◀ the rest`; `verify` and `agent` do not know of each other.
const MAY_USE: [(&str, &[&str]); 5] = [
    ("btrfs", &[]),
    ("feed", &["btrfs"]),
    ("agent", &["btrfs", "feed"]),
    ("verify", &["btrfs", "feed"]),
    ("report", &["btrfs", "feed", "verify"]),
];

/// The files that tie the rooms together and may use all of them.
const TIES: [&str; 10] =
    ["attach", "check", "cli", "command", "explain", "lib", "main", "run", "serve", "session"];

/// Rooms that turn values into values: what they may not even name.
const PURE: [&str; 2] = ["btrfs", "verify"];
const WORLD: [&str; 9] = [
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "aya",
    "rustix",
    "tokio",
    "Instant",
];
/// The one exception: threads that share a batch and end with it, so that what comes out does
/// not depend on them.
const SHARES_A_BATCH: (&str, &str) = ("verify/ledger/shards.rs", "std::thread");

struct Source {
    /// Relative to `src`.
    path: PathBuf,
    /// The lines without comments.
    code: String,
}

impl Source {
    /// The first part of the path: `verify` of `verify/rules.rs`, `cli` of `cli.rs`.
    fn room(&self) -> String {
        let first = self.path.components().next().unwrap();
        let first = Path::new(first.as_os_str());
        first.file_stem().unwrap().to_str().unwrap().to_owned()
    }

    /// How many `super::` lead out of the room.
    fn depth(&self) -> usize {
        let parts = self.path.components().count();
        if self.path.ends_with("mod.rs") { parts - 1 } else { parts }
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    let path = workspace().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources() -> Vec<Source> {
    let root = workspace().join("refverify-user/src");
    let mut unread = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(dir) = unread.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                unread.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let code = code.collect::<Vec<_>>().join("\n");
                found.push(Source { path: path.strip_prefix(&root).unwrap().to_owned(), code });
            }
        }
    }
    found
}

/// The modules that follow each `prefix` in the code: one name, or the names at the first
/// level of braces.
fn named_after(prefix: &str, code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(first_level(group)),
            None => names.extend(identifier(rest)),
        }
    }
    names
}

fn identifier(code: &str) -> Option<String> {
    let name: String =
        code.trim_start().chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn first_level(group: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut depth = 0;
    let mut item = String::new();
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(identifier(&std::mem::take(&mut item))),
            c if depth == 0 => item.push(c),
            _ => {}
        }
    }
    names.extend(identifier(&item));
    names
}

/// The rooms that a source uses, by any of the ways to name them.
fn used(source: &Source, rooms: &BTreeSet<String>) -> BTreeSet<String> {
    let mut used = named_after("crate::", &source.code);
    used.extend(named_after("refverify_user::", &source.code));
    for supers in source.depth()..source.depth() + 3 {
        used.extend(named_after(&"super::".repeat(supers), &source.code));
    }
    used.intersection(rooms).filter(|room| **room != source.room()).cloned().collect()
}

#[test]
fn arrows_of_use_point_one_way() {
    let may_use: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let sources = sources();
    let rooms: BTreeSet<String> = sources.iter().map(Source::room).collect();
    let mut wrong = Vec::new();
    for source in &sources {
        let room = source.room();
        if TIES.contains(&room.as_str()) {
            continue;
        }
        let Some(allowed) = may_use.get(room.as_str()) else {
            wrong.push(format!("{}: this test does not know the room", source.path.display()));
            continue;
        };
        for other in used(source, &rooms) {
            if !allowed.contains(&other.as_str()) {
                wrong.push(format!("{} uses {other}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let used_by_report = sources.iter().filter(|source| source.room() == "report");
    let seen: BTreeSet<String> = used_by_report.flat_map(|source| used(source, &rooms)).collect();
    assert!(seen.contains("verify"), "the arrows that exist are seen: {seen:?}");
}

#[test]
fn what_judges_and_what_parses_cannot_reach_the_world() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| PURE.contains(&source.room().as_str())) {
        for name in WORLD {
            let path = format!("{name}::");
            let (crates, item) = name.split_once("::").unwrap_or((name, ""));
            let group = format!("{crates}::");
            let by_group = !item.is_empty() && named_after(&group, &source.code).contains(item);
            let by_path = source.code.match_indices(&path).any(|(at, _)| {
                !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            });
            let is_known =
                (source.path.as_path(), name) == (Path::new(SHARES_A_BATCH.0), SHARES_A_BATCH.1);
            if (by_group || by_path) && !is_known {
                wrong.push(format!("{} names {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The names of all kinds of findings, as the sources spell them.
fn kinds() -> BTreeSet<String> {
    let mut kinds = BTreeSet::new();
    for file in ["verify/finding.rs", "btrfs/checks/faults.rs"] {
        let code = read(&format!("refverify-user/src/{file}"));
        let quoted = code.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next());
        let is_kind = |name: &&str| {
            name.contains('-') && name.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        };
        kinds.extend(quoted.filter(is_kind).map(str::to_owned));
    }
    assert!(kinds.len() >= 18, "{kinds:?}");
    kinds
}

#[test]
fn each_kind_of_finding_is_explained() {
    let page = read("docs/findings.md");
    for kind in kinds() {
        assert!(page.contains(&format!("\n## {kind}\n")), "docs/findings.md lacks {kind}");
    }
}

#[test]
fn each_kind_of_finding_has_a_sentence_that_is_tested() {
    let sentences = read("refverify-user/tests/golden/sentences.txt");
    for kind in kinds() {
        let named = sentences.lines().any(|line| line == kind);
        assert!(named, "tests/golden/sentences.txt lacks {kind}");
    }
}

#[test]
fn each_message_id_is_listed_and_has_a_catalog_entry() {
    let code = read("refverify-user/src/report/label.rs");
    let ids: Vec<String> = code.split("uuid!(\"").skip(1).filter_map(identifier).collect();
    assert!(ids.iter().all(|id| id.len() == 32), "{ids:?}");
    let distinct: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "two messages share an id");
    assert_eq!(ids.len(), kinds().len() + 16, "one for each kind and for each step of a run");

    let page = read("docs/journal.md");
    let catalog = read("packaging/refverify-monitor.catalog");
    for id in &ids {
        assert!(page.contains(&format!("`{id}`")), "docs/journal.md lacks {id}");
        assert!(catalog.contains(&format!("\n-- {id}\n")), "the catalog lacks {id}");
    }
    let entries = catalog.lines().filter(|line| line.starts_with("-- ")).count();
    assert_eq!(entries, ids.len(), "the catalog has entries that nothing sends");
}
