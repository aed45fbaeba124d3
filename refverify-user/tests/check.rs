//! `refverify-monitor check` on image files, compared with golden files; `UPDATE_GOLDEN=1`
//! writes them anew.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Output},
};

use image::{Extent, Image, METADATA_LEN_BYTES, METADATA_START, NODE_BYTES};
use refverify_user::btrfs::{ExtentKind, RefKey};

#[path = "support/image.rs"]
mod image;

/// Runs in the directory of the image, so that reports name it alike wherever that is.
fn check(dir: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_refverify-monitor");
    let mut command = Command::new(program);
    command.arg("check").args(arguments).current_dir(dir).env_remove("JOURNAL_STREAM");
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "differs from tests/golden/{name}:\n{text}");
}

const DATA_START: u64 = 1 << 30;
const DATA_LEN: u64 = 8192;

fn data(refs: &[(RefKey, u32)]) -> Extent {
    let refs = refs.iter().copied().collect();
    Extent { len_bytes: DATA_LEN, kind: ExtentKind::Data, refs, total_error: 0 }
}

/// Enough for two levels: data of two roots and of one leaf, and a tree block.
fn extents() -> BTreeMap<u64, Extent> {
    let mut extents: BTreeMap<u64, Extent> = (0..200)
        .map(|n| {
            let root = if n % 3 == 0 { 256 } else { 5 };
            (DATA_START + n * 3 * 4096, data(&[(RefKey::data(root, 0, 257 + n, 0), 1)]))
        })
        .collect();
    let many: Vec<_> = (0..8).map(|n| (RefKey::data(5, 0, 300, n * 4096), 2)).collect();
    extents.insert(DATA_START + (1 << 20) * 9, data(&many));
    let shared = (RefKey::data(0, METADATA_START, 0, 0), 3);
    extents.insert(DATA_START + (1 << 20) * 10, data(&[shared]));
    let kind = ExtentKind::TreeBlock { level: 1 };
    let refs =
        BTreeMap::from([(RefKey::tree(5, 0, 1), 1), (RefKey::tree(0, METADATA_START, 1), 1)]);
    let len_bytes = NODE_BYTES as u64;
    extents.insert(METADATA_START, Extent { len_bytes, kind, refs, total_error: 0 });
    extents
}

/// A directory with the file `image` in it.
fn image_of(extents: &BTreeMap<u64, Extent>) -> tempfile::TempDir {
    let mut image = Image::new();
    let trees = image.write_trees(7, extents);
    image.write_superblock(&trees);
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("image")).unwrap();
    file.set_len(METADATA_START + METADATA_LEN_BYTES).unwrap();
    let step = 1 << 20;
    for at in (0..METADATA_START + METADATA_LEN_BYTES).step_by(step) {
        let bytes = image.read(at, step);
        if bytes.iter().any(|&byte| byte != 0) {
            file.write_all_at(&bytes, at).unwrap();
        }
    }
    dir
}

#[test]
fn a_sound_tree_is_told_in_numbers() {
    let dir = image_of(&extents());
    let output = check(dir.path(), &["image"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_golden("check-sound.txt", &text(&output));
    let output = check(dir.path(), &["--json", "image"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_golden("check-sound.jsonl", &text(&output));
}

#[test]
fn what_is_wrong_has_a_name_a_place_and_a_status() {
    let mut extents = extents();
    extents.get_mut(&DATA_START).unwrap().total_error = 1;
    extents.get_mut(&DATA_START).unwrap().len_bytes = 5 * 4096;
    extents.get_mut(&(DATA_START + (1 << 20) * 10)).unwrap().refs =
        BTreeMap::from([(RefKey::data(0, METADATA_START + 512, 0, 0), 0)]);
    let dir = image_of(&extents);
    let output = check(dir.path(), &["image"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_golden("check-findings.txt", &text(&output));
    let output = check(dir.path(), &["--json", "image"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_golden("check-findings.jsonl", &text(&output));
}

#[test]
fn the_dump_has_every_extent_and_reference() {
    let extents = extents();
    let dir = image_of(&extents);
    let output = check(dir.path(), &["--dump", "dump", "image"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut expected = "fs 0 device image state read generation 7\n".to_owned();
    for (bytenr, extent) in &extents {
        let total: u32 = extent.refs.values().sum();
        let kind = match extent.kind {
            ExtentKind::Data => "data".to_owned(),
            ExtentKind::TreeBlock { level } => format!("tree level {level}"),
        };
        let _ = writeln!(expected, "extent {bytenr} len {} {kind} refs {total}", extent.len_bytes);
        for (RefKey { root, parent, owner, offset }, count) in &extent.refs {
            let _ = writeln!(
                expected,
                "ref root {root} parent {parent} owner {owner} offset {offset} count {count}"
            );
        }
    }
    expected += "end\n";
    let dump = fs::read_to_string(dir.path().join("dump")).unwrap();
    assert!(dump == expected, "the dump is\n{dump}\ninstead of\n{expected}");
}

/// The tree blocks of the image that belong to the extent tree, as `(offset, level)`.
fn extent_tree_blocks(dir: &Path) -> Vec<(u64, u8)> {
    let bytes = fs::read(dir.join("image")).unwrap();
    let metadata = usize::try_from(METADATA_START).unwrap();
    let blocks = bytes.chunks(NODE_BYTES).enumerate().skip(metadata / NODE_BYTES);
    let of_extent_tree = blocks.filter(|(_, block)| block[88..96] == 2_u64.to_le_bytes());
    of_extent_tree.map(|(index, block)| ((index * NODE_BYTES) as u64, block[100])).collect()
}

#[test]
fn what_lies_beside_a_bad_tree_block_is_read_all_the_same() {
    let dir = image_of(&extents());
    let blocks = extent_tree_blocks(dir.path());
    let leaves: Vec<u64> =
        blocks.iter().filter(|(_, level)| *level == 0).map(|(at, _)| *at).collect();
    assert!(leaves.len() >= 4, "{leaves:?}");
    let file = File::options().write(true).open(dir.path().join("image")).unwrap();
    // Leaves lie in falling order. The last but one in key order, and the first.
    for leaf in [leaves[1], leaves[leaves.len() - 1]] {
        file.write_all_at(&[0xa5; NODE_BYTES], leaf).unwrap();
    }
    let output = check(dir.path(), &["image"]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert_golden("check-bad-blocks.txt", &text(&output));
}

#[test]
fn a_bad_root_ends_with_a_name_and_not_in_an_endless_loop() {
    let dir = image_of(&extents());
    let blocks = extent_tree_blocks(dir.path());
    let (root, _) = blocks.iter().max_by_key(|(_, level)| *level).unwrap();
    let file = File::options().write(true).open(dir.path().join("image")).unwrap();
    file.write_all_at(&[0; NODE_BYTES], *root).unwrap();
    let output = check(dir.path(), &["image"]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let text = text(&output);
    assert!(text.starts_with("bad-tree-block: At generation 7, block "), "{text}");
}

/// What a mistake leads to: nothing on stdout, status 1, one line on stderr.
fn mistake(dir: &Path, arguments: &[&str]) -> String {
    let output = check(dir, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn what_cannot_be_checked_is_one_sentence() {
    let dir = image_of(&extents());
    fs::write(dir.path().join("zeros"), vec![0; 1 << 20]).unwrap();
    fs::write(dir.path().join("short"), b"nothing").unwrap();
    for file in ["zeros", "short"] {
        let said = mistake(dir.path(), &[file]);
        assert!(said.contains(&format!("{file} has no btrfs on it")), "{said}");
    }
    let said = mistake(dir.path(), &["/nonexistent"]);
    assert!(said.contains("cannot open /nonexistent"), "{said}");
    for rate in ["0", "-1", "", "10X", "99999999999999999999", "99999999999G"] {
        let said = mistake(dir.path(), &[&format!("--io-limit={rate}"), "image"]);
        assert!(said.contains("not a number of bytes"), "{rate}: {said}");
    }
}
