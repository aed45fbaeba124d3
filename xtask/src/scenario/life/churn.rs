//! A short piece of work that leaves references of all kinds behind: for between two events in a
//! file system's life. What goes on at the same time as one is the `Workload`'s.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result};
use rustix::fs::{ioctl_ficlone, syncfs};

use crate::{
    command::{run, text},
    scenario::workload::Random,
};

/// Files in one round.
const FILES: u64 = 24;

/// Rounds whose files are kept.
const KEPT: u64 = 3;

/// Round `number` of work in the file system mounted at `root`: files with data, clones,
/// overwritten parts, a snapshot; what an earlier round left is deleted. It ends with a commit.
pub(super) fn churn(root: &Path, number: u64) -> Result<()> {
    let mut random = Random(number + 1);
    let dir = root.join(format!("round{number}"));
    let name = text(&dir)?;
    run("btrfs", &["subvolume", "create", name])?;
    for file in 0..FILES {
        let path = dir.join(format!("file{file}"));
        let mut data = vec![0; usize::try_from((1 + random.below(40)) * 4096)?];
        random.fill(&mut data);
        fs::write(&path, data)?;
        if file % 2 == 0 {
            // Short ones are inline, where there is no extent to share.
            ioctl_ficlone(File::create(dir.join(format!("clone{file}")))?, File::open(&path)?)?;
        }
        if file % 5 == 0 {
            File::open(&path)?.sync_all()?;
        }
    }
    run("btrfs", &["subvolume", "snapshot", name, &format!("{name}-snapshot")])?;
    for file in (0..FILES).step_by(3) {
        let path = dir.join(format!("file{file}"));
        OpenOptions::new().write(true).open(path)?.write_all_at(&[3; 4096], 0)?;
    }
    for file in (0..FILES).step_by(4) {
        fs::remove_file(dir.join(format!("file{file}")))?;
    }
    if let Some(old) = number.checked_sub(KEPT) {
        delete(root, old)?;
    }
    syncfs(File::open(root)?).context("cannot sync")
}

/// Deletes what a round left, if it is there.
fn delete(root: &Path, number: u64) -> Result<()> {
    for name in [format!("round{number}"), format!("round{number}-snapshot")] {
        let path = root.join(name);
        if path.exists() {
            run("btrfs", &["subvolume", "delete", text(&path)?])?;
        }
    }
    Ok(())
}
