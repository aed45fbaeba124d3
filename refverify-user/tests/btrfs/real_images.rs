//! The reader finds in real images what btrfs-progs finds in them.

use refverify_user::btrfs::{DiskExtent, reader::ExtentReader};
use tempfile::TempDir;

use crate::image::{ALL, ImageFile, drive, read_all};

pub(crate) const MIB: u64 = 1 << 20;

/// A directory of so many files of differing lengths.
fn many_files(count: usize) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for i in 0..count {
        let content = vec![u8::try_from(i % 251).expect("below 251"); 4096 + i * 7 % 30_000];
        std::fs::write(dir.path().join(format!("file-{i}")), content).expect("a file");
    }
    dir
}

pub(crate) fn assert_exact(image: &ImageFile) -> Vec<DiskExtent> {
    let told = read_all(&image.load());
    assert_eq!(told.failed, None);
    assert_eq!(told.findings, []);
    let dumped = image.dumped_extents();
    assert!(!dumped.is_empty());
    for (ours, theirs) in told.extents.iter().zip(&dumped) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(told.extents.len(), dumped.len());
    dumped
}

fn assert_mkfs_exact(options: &[&str], count: usize) {
    let files = many_files(count);
    let image = ImageFile::mkfs(256 * MIB, options, Some(files.path()));
    let extents = assert_exact(&image);
    assert!(extents.len() > count, "{} extents of {count} files", extents.len());
}

#[test]
fn nodes_of_4_kib_in_a_tree_of_three_levels_are_read_exactly() {
    assert_mkfs_exact(&["--nodesize", "4096"], 6000);
}

#[test]
fn nodes_of_16_kib_are_read_exactly() {
    assert_mkfs_exact(&["--nodesize", "16384"], 1500);
}

#[test]
fn nodes_of_64_kib_are_read_exactly() {
    assert_mkfs_exact(&["--nodesize", "65536"], 1500);
}

#[test]
fn single_metadata_is_read_exactly() {
    assert_mkfs_exact(&["-m", "single", "-d", "single"], 300);
}

#[test]
fn dup_metadata_and_data_are_read_exactly() {
    assert_mkfs_exact(&["-m", "dup", "-d", "dup"], 300);
}

#[test]
fn mixed_groups_are_read_exactly() {
    assert_mkfs_exact(&["--mixed", "--nodesize", "4096"], 300);
}

#[test]
fn tree_blocks_without_skinny_items_are_read_exactly() {
    assert_mkfs_exact(&["-O", "^skinny-metadata"], 300);
    assert_mkfs_exact(&["-O", "^skinny-metadata", "--nodesize", "4096"], 2000);
}

#[test]
fn an_empty_file_system_is_read_exactly() {
    assert_exact(&ImageFile::mkfs(256 * MIB, &[], None));
}

#[test]
fn a_range_gives_the_extents_that_begin_in_it() {
    let files = many_files(2000);
    let image = ImageFile::mkfs(256 * MIB, &["--nodesize", "4096"], Some(files.path()));
    let all = image.dumped_extents();
    let loaded = image.load();
    let mut reader = ExtentReader::new(ALL, 0);
    for wanted in all.iter().step_by(97) {
        reader.restart(wanted.bytenr..wanted.bytenr + 1, 0);
        let told = drive(&mut reader, |read| loaded.read(read));
        assert_eq!(told.extents, std::slice::from_ref(wanted));
        reader.restart(wanted.bytenr + 1..wanted.bytenr + 2, 0);
        let told = drive(&mut reader, |read| loaded.read(read));
        assert_eq!(told.extents, []);
        assert!(told.reads <= 4, "a path cost {} reads", told.reads);
    }
    let (from, upto) = (all[300].bytenr, all[900].bytenr);
    let told = drive(&mut ExtentReader::new(from..upto, 0), |read| loaded.read(read));
    assert_eq!(told.extents, all[300..900]);
}

#[test]
fn a_superblock_that_is_too_old_is_waited_for() {
    let image = ImageFile::mkfs(256 * MIB, &[], None).load();
    let generation = image.superblock().generation;
    let mut reader = ExtentReader::new(ALL, generation + 1);
    let told = drive(&mut reader, |read| image.read(read));
    assert_eq!((told.too_old, told.extents.len()), (Some(generation), 0));
    reader.retry();
    let told = drive(&mut reader, |read| image.read(read));
    assert_eq!((told.too_old, told.done), (Some(generation), None));
    let told = drive(&mut ExtentReader::new(ALL, generation), |read| image.read(read));
    assert_eq!(told.done, Some(generation));
}
