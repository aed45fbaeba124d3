//! docs/journal.md and the catalog call things what the program calls them.

use std::{fs, path::Path};

use refverify_user::{
    report::{Label, finding_message_id},
    verify::Notice,
};

use crate::fixtures::{clean_summary, life_cycle, one_of_each_kind};

/// Each name a user sees, with the `MESSAGE_ID` that goes with it.
fn names_and_ids() -> Vec<(&'static str, String)> {
    let steps = life_cycle().into_iter().chain([Notice::Summary(clean_summary())]);
    let steps = steps.filter_map(|notice| Label::of(&notice));
    let steps = steps.map(|label| (label.name, label.message_id));
    let kinds = one_of_each_kind().into_iter().map(|finding| finding.kind);
    let kinds = kinds.map(|kind| (kind.name(), finding_message_id(kind)));
    steps.chain(kinds).map(|(name, id)| (name, id.simple().to_string())).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

#[test]
fn the_page_gives_each_name_its_own_id() {
    let page = read("docs/journal.md");
    for (name, id) in names_and_ids() {
        let row = page.lines().find(|line| line.contains(&id));
        let row = row.unwrap_or_else(|| panic!("no row for {name} {id}"));
        assert!(row.contains(&format!("`{name}`")), "{name}: {row}");
    }
}

#[test]
fn the_catalog_gives_each_finding_its_own_text() {
    let catalog = read("packaging/refverify-monitor.catalog");
    for finding in one_of_each_kind() {
        let id = finding_message_id(finding.kind).simple().to_string();
        let (_, entry) = catalog.split_once(&format!("-- {id}\n")).unwrap();
        let entry = entry.split("\n-- ").next().unwrap();
        let link = format!("docs/findings.md#{}", finding.kind);
        assert!(entry.contains(&link), "{}: {entry}", finding.kind);
    }
}
