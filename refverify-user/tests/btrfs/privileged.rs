//! Images that a real kernel wrote to: they need root, and say so where they have to be
//! skipped.

use std::{collections::BTreeMap, os::unix::fs::FileExt, path::PathBuf, time::Duration};

use bytes::Bytes;
use refverify_user::btrfs::{
    DiskExtent, ExtentKind, RefKey,
    format::ReadFailure,
    reader::{BlockRead, ExtentReader},
};

use crate::{
    image::{ALL, Image, ImageFile, drive, drive_moving, run},
    moving::assert_exact_per_range,
    real_images::{MIB, assert_exact},
};

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

    fn path(&self) -> PathBuf {
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

/// Many commits, each with changes all over the trees.
fn load(rounds: u32) -> String {
    format!(
        "for n in $(seq {rounds}); do
            cp --reflink=always s/f$n s/n$n
            for file in s/i*; do echo $n >> $file; done
            btrfs -q subvolume snapshot s load; sync
            btrfs -q subvolume delete load; sync
        done"
    )
}

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

/// The extents of an image, as btrfs-progs sees them, and the image.
fn freeze(image: &ImageFile) -> (Image, BTreeMap<u64, DiskExtent>) {
    let dumped = image.dumped_extents();
    (image.load(), dumped.into_iter().map(|extent| (extent.bytenr, extent)).collect())
}

#[test]
fn privileged_an_image_that_becomes_a_later_one_is_exact_per_range() {
    // Small, so that freed blocks are soon used again.
    let image = ImageFile::mkfs(128 * MIB, &["--nodesize", "4096"], None);
    let Some(mounted) = Mounted::new(&image) else { return };
    mounted.sh(SHARE);
    drop(mounted);
    let (early, early_extents) = freeze(&image);
    let Some(mounted) = Mounted::new(&image) else { return };
    mounted.sh(&load(40));
    drop(mounted);
    let (late, late_extents) = freeze(&image);
    let (early_at, late_at) = (early.superblock().generation, late.superblock().generation);
    let of_generation = |generation| match generation {
        _ if generation == early_at => early_extents.clone(),
        _ if generation == late_at => late_extents.clone(),
        other => panic!("there is no generation {other}"),
    };
    let mut of_both = 0;
    for switch_at in 0..60 {
        let mut reads = 0;
        let told = drive(&mut ExtentReader::new(ALL, 0), |read| {
            reads += 1;
            if reads > switch_at { late.read(read) } else { early.read(read) }
        });
        assert_exact_per_range(&told, of_generation);
        let generations: Vec<_> = told.ranges.iter().map(|(_, generation)| *generation).collect();
        of_both += u64::from(generations.contains(&early_at) && generations.contains(&late_at));
    }
    assert!(of_both > 10, "only {of_both} walks were of both generations");
}

/// Reads a device past the page cache.
struct DirectDevice(std::fs::File);

impl DirectDevice {
    fn open(path: &str) -> Self {
        use std::os::unix::fs::OpenOptionsExt;
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let file = std::fs::OpenOptions::new().read(true).custom_flags(direct).open(path);
        Self(file.expect("the device can be opened"))
    }

    fn read(&self, read: &BlockRead) -> Result<Bytes, ReadFailure> {
        const ALIGN: usize = 4096;
        let len = read.len_bytes as usize;
        let mut space = vec![0; len + ALIGN];
        let start = space.as_ptr().align_offset(ALIGN);
        let buffer = &mut space[start..start + len];
        self.0.read_exact_at(buffer, read.offset).map_err(ReadFailure::new)?;
        Ok(Bytes::copy_from_slice(buffer))
    }
}

#[test]
fn privileged_a_file_system_under_load_is_read_to_the_end() {
    let image = ImageFile::mkfs(1024 * MIB, &["--nodesize", "4096"], None);
    let Some(mounted) = Mounted::new(&image) else { return };
    mounted.sh(SHARE);
    let device = DirectDevice::open(&mounted.device);
    let mut moved = 0;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| mounted.sh(&load(20)));
        let mut reader = ExtentReader::new(ALL, 0);
        while !load.is_finished() {
            let told = drive_moving(&mut reader, 10, |read| {
                // A walk of this small tree is to last over several commits.
                std::thread::sleep(Duration::from_millis(3));
                device.read(read)
            });
            assert_eq!((&told.failed, &told.findings[..]), (&None, &[][..]));
            assert!(told.extents.len() > 400, "{} extents", told.extents.len());
            moved += told.generations.len() - 1;
            reader.restart(ALL, 0);
        }
    });
    assert!(moved > 5, "the tree moved only {moved} times while it was read");
}
