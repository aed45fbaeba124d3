//! The reader finds in real images what btrfs-progs finds in them.

use refverify_user::btrfs::{DiskExtent, ExtentKind, RefKey, reader::ExtentReader};
use tempfile::TempDir;

use crate::image::{ALL, ImageFile, drive, read_all, run};

const MIB: u64 = 1 << 20;

/// A directory of so many files of differing lengths.
fn many_files(count: usize) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for i in 0..count {
        let content = vec![u8::try_from(i % 251).expect("below 251"); 4096 + i * 7 % 30_000];
        std::fs::write(dir.path().join(format!("file-{i}")), content).expect("a file");
    }
    dir
}

fn assert_exact(image: &ImageFile) -> Vec<DiskExtent> {
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

/// A loop mount of an image; undone when it goes.
struct Mounted<'image> {
    image: &'image ImageFile,
    device: String,
}

impl<'image> Mounted<'image> {
    /// `None`, and a loud word, where this user may not mount.
    fn new(image: &'image ImageFile) -> Option<Self> {
        if run("id", &["-u"]).trim() != "0" {
            eprintln!("SKIPPED: mounting images needs root");
            return None;
        }
        let path = image.path();
        let device = run("losetup", &["--find", "--show", path.to_str().expect("UTF-8")]);
        // Commits every second, and with them the cleaner that deletes subvolumes.
        let mounted = Self { image, device: device.trim().to_owned() };
        std::fs::create_dir_all(mounted.path()).expect("a mount point");
        run(
            "mount",
            &[
                "-t",
                "btrfs",
                "-o",
                "commit=1",
                &mounted.device,
                mounted.path().to_str().expect("UTF-8"),
            ],
        );
        Some(mounted)
    }

    fn path(&self) -> std::path::PathBuf {
        self.image.dir().join("mnt")
    }

    /// Runs a script in the mounted file system.
    fn sh(&self, script: &str) {
        let script = format!("set -e; cd {}; {script}", self.path().display());
        run("bash", &["-c", &script]);
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Not asserted: this may run while a test fails already.
        let _ = std::process::Command::new("umount").arg(self.path()).status();
        let _ = std::process::Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// Reflinks of one extent from many inodes (keyed references over several leaves), holes
/// punched into shared extents, subvolumes of three levels, and snapshots with changes of
/// their own.
const SHARE: &str = "
    btrfs -q subvolume create s
    for i in $(seq 150); do head -c 20000 /dev/urandom > s/f$i; done
    for i in $(seq 600); do head -c 1500 /dev/zero > s/i$i; done
    sync
    for i in $(seq 400); do cp --reflink=always s/f1 s/r$i; done
    for i in $(seq 30); do fallocate -p -o 4096 -l 4096 s/r$i; done
    for i in 1 2 3; do
        btrfs -q subvolume snapshot s snap$i
        for j in $(seq $i 60); do echo x >> snap$i/f$j; done
        touch s/i$i
        sync
    done
";

/// Shared references: the subvolume that the others were taken from goes, and all moves.
const DELETE_AND_BALANCE: &str = "
    btrfs -q subvolume delete snap2 s
    sync
    btrfs -q subvolume sync .
    btrfs -q balance start --full-balance .
    sync
";

/// Every extent after the last script; `None` where this user may not mount.
fn privileged_exact(options: &[&str], scripts: &[&str]) -> Option<Vec<DiskExtent>> {
    let image = ImageFile::mkfs(512 * MIB, options, None);
    let mut extents = Vec::new();
    for script in scripts {
        let mounted = Mounted::new(&image)?;
        mounted.sh(script);
        drop(mounted);
        extents = assert_exact(&image);
    }
    Some(extents)
}

fn refs(extents: &[DiskExtent], kind: fn(&ExtentKind) -> bool) -> impl Iterator<Item = RefKey> {
    let of_kind = extents.iter().filter(move |extent| kind(&extent.kind));
    of_kind.flat_map(|extent| extent.refs.iter().map(|(key, _)| *key))
}

#[test]
fn privileged_keyed_refs_in_later_leaves_belong_to_their_extent() {
    let Some(extents) = privileged_exact(&["--nodesize", "4096"], &[SHARE]) else { return };
    let most = extents.iter().map(|extent| extent.refs.len()).max();
    assert!(most > Some(300), "no extent has keyed refs in many leaves: {most:?}");
}

#[test]
fn privileged_shared_refs_after_a_balance_are_read_exactly() {
    for features in ["skinny-metadata", "^skinny-metadata"] {
        let options = ["--nodesize", "4096", "-O", features];
        let Some(extents) = privileged_exact(&options, &[SHARE, DELETE_AND_BALANCE]) else {
            return;
        };
        let shared = |kind| refs(&extents, kind).filter(RefKey::is_shared).count();
        let (data, tree) =
            (shared(|kind| *kind == ExtentKind::Data), shared(|kind| *kind != ExtentKind::Data));
        assert!(data > 100 && tree > 10, "{data} and {tree} shared refs");
    }
}
