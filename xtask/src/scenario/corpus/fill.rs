//! What a file system of the corpus is filled with: all that makes extents and references of
//! different kinds. The same in each.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, copy_file_range, fallocate, ioctl_ficlone};

use crate::{
    command::text,
    scenario::{progs::Progs, workload::Random},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Clones of one file: more references than an item has room for, over many leaves.
const CLONES: u32 = 2500;

/// Fills the file system, whose trees are then on disk.
pub(super) fn fill(progs: &Progs, mount_point: &Path, balance: bool) -> Result<()> {
    let btrfs = |args: &[&str]| progs.run("btrfs", args).map(drop);
    let path = |name: &str| mount_point.join(name);
    let source = path("source");
    btrfs(&["subvolume", "create", text(&source)?])?;
    files(&source)?;
    compressed(progs, &source)?;
    sync(mount_point)?;
    shared(&source)?;
    sync(mount_point)?;
    for number in 1..=3 {
        let snapshot = path(&format!("snapshot{number}"));
        btrfs(&["subvolume", "snapshot", text(&source)?, text(&snapshot)?])?;
        change(&snapshot, number)?;
        sync(mount_point)?;
    }
    // What the others were taken from goes: references by root become references by parent.
    btrfs(&["subvolume", "delete", text(&path("snapshot2"))?, text(&source)?])?;
    sync(mount_point)?;
    btrfs(&["subvolume", "sync", text(mount_point)?])?;
    if balance {
        let args = ["balance", "start", "--full-balance", text(mount_point)?];
        // What cannot be moved for want of space on all devices stays where it is.
        if let Err(why) = progs.try_run("btrfs", &args)? {
            ensure!(why.contains("No space left"), "the balance failed: {why}");
        }
        change(&path("snapshot3"), 4)?;
    }
    sync(mount_point)
}

/// Files of many lengths: inline, small, huge, preallocated and half written, sparse.
fn files(dir: &Path) -> Result<()> {
    let mut random = Random(7);
    for number in 0..300 {
        write(&dir.join(format!("inline{number}")), 104 + number * 8, &mut random)?;
        write(&dir.join(format!("small{number}")), 4 * KIB + number * 200, &mut random)?;
    }
    write(&dir.join("huge"), 24 * MIB, &mut random)?;
    let preallocated = File::create(dir.join("preallocated"))?;
    fallocate(&preallocated, FallocateFlags::empty(), 0, 4 * MIB)?;
    preallocated.write_all_at(&vec![1; 64 << 10], MIB)?;
    let sparse = File::create(dir.join("sparse"))?;
    for number in 0..64 {
        sparse.write_all_at(&[2; 4096], number * 16 * MIB)?;
    }
    Ok(())
}

fn compressed(progs: &Progs, dir: &Path) -> Result<()> {
    let dir = dir.join("compressed");
    fs::create_dir(&dir)?;
    progs.run("btrfs", &["property", "set", text(&dir)?, "compression", "zstd"])?;
    for number in 0..40_u8 {
        fs::write(dir.join(format!("text{number}")), vec![number; 300 << 10])?;
    }
    Ok(())
}

/// One extent with thousands of references from as many inodes, and one with hundreds from a
/// single inode; holes in some of them.
fn shared(dir: &Path) -> Result<()> {
    let source = File::open(dir.join("small200"))?;
    for number in 0..CLONES {
        let clone = File::create(dir.join(format!("clone{number}")))?;
        ioctl_ficlone(&clone, &source).context("cannot clone")?;
        if number % 20 == 0 {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&clone, punch, 4 * KIB, 4 * KIB)?;
        }
    }
    let repeated = File::create(dir.join("repeated"))?;
    for number in 0..300 {
        let (mut from, mut to) = (0, number * 64 * KIB);
        copy_file_range(&source, Some(&mut from), &repeated, Some(&mut to), 16 << 10)?;
    }
    Ok(())
}

/// Changes of a snapshot's own.
fn change(dir: &Path, number: u64) -> Result<()> {
    let mut random = Random(number);
    for file in (number..300).step_by(7) {
        write(&dir.join(format!("small{file}")), 8 * KIB, &mut random)?;
        write(&dir.join(format!("inline{file}")), 50, &mut random)?;
    }
    let huge = OpenOptions::new().write(true).open(dir.join("huge"))?;
    huge.write_all_at(&[3; 4096], number * MIB)?;
    fs::remove_file(dir.join(format!("clone{number}")))?;
    Ok(())
}

fn write(path: &Path, len_bytes: u64, random: &mut Random) -> Result<()> {
    let mut bytes = vec![0; usize::try_from(len_bytes)?];
    random.fill(&mut bytes);
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Commits.
fn sync(mount_point: &Path) -> Result<()> {
    rustix::fs::syncfs(File::open(mount_point)?).context("cannot sync")
}
