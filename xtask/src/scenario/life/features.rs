//! What can be switched on and off in a mounted file system, and files that btrfs treats in
//! another way than the rest.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::fs::syncfs;

use super::{Living, Outcome, Place};
use crate::{
    command::{run, text},
    scenario::progs::Progs,
};

/// The length of the files with something special.
const FILE_BYTES: usize = 4 << 20;

pub(super) fn run_all(place: &Place) -> Result<Outcome> {
    let mut living = Living::new(place, 1 << 30)?;
    living.watched.mount("discard=async")?;
    living.discards()?;
    living.no_copy_on_write()?;
    living.quotas("quotas", &["quota", "enable"])?;
    if Path::new("/sys/fs/btrfs/features/simple_quota").exists() {
        // Those of Debian 12 do not know them.
        living.watched.scratch.btrfs = Progs::fetch(place.dir())?.btrfs();
        living.quotas("simple quotas", &["quota", "enable", "--simple"])?;
    } else {
        println!("simple quotas: this kernel does not know them");
    }
    living.swap()?;
    living.watched.unmount()?;
    living.watched.mount("nodatacow,discard=sync")?;
    living.on("mounted with nodatacow and discard=sync")?;
    living.watched.end()
}

impl Living {
    fn discards(&mut self) -> Result<()> {
        self.on("discard=async")?;
        run("fstrim", &[self.watched.scratch.mount_name()])?;
        self.on("fstrim")
    }

    /// Written in place, except where a snapshot shares it.
    fn no_copy_on_write(&mut self) -> Result<()> {
        let file = new_file(&self.watched.scratch.path("nocow"), false)?;
        for at in [0, 1 << 20, 2 << 20] {
            file.write_all_at(&vec![2; 64 << 10], at)?;
            syncfs(&file)?;
        }
        let (root, snapshot) = (self.watched.scratch.mount_name(), "nocow-snapshot");
        let snapshot = self.watched.scratch.path(snapshot);
        run("btrfs", &["subvolume", "snapshot", root, text(&snapshot)?])?;
        file.write_all_at(&vec![4; 64 << 10], 1 << 20)?;
        drop(file);
        self.on("a nodatacow file, written in place and in a snapshot")?;
        run("btrfs", &["subvolume", "delete", text(&snapshot)?])?;
        self.on("its snapshot deleted")
    }

    /// On and off, and on and off again.
    fn quotas(&mut self, name: &str, enable: &[&str]) -> Result<()> {
        for time in ["", " again"] {
            self.btrfs(enable)?;
            self.on(&format!("{name} on{time}"))?;
            self.btrfs(&["quota", "disable"])?;
            self.on(&format!("{name} off{time}"))?;
        }
        Ok(())
    }

    /// Runs `btrfs` with these words and the mount point.
    fn btrfs(&self, words: &[&str]) -> Result<()> {
        let words = [words, &[self.watched.scratch.mount_name()]].concat();
        run(text(&self.watched.scratch.btrfs)?, &words).map(drop)
    }

    fn swap(&mut self) -> Result<()> {
        let path = self.watched.scratch.path("swap");
        drop(new_file(&path, true)?);
        let swap = Swap::on(path)?;
        self.on("a swap file in use")?;
        let path = swap.off()?;
        fs::remove_file(path)?;
        self.on("a swap file removed")
    }
}

/// A file that is written in place (`chattr +C`), filled.
fn new_file(path: &Path, is_swap: bool) -> Result<File> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    run("chattr", &["+C", text(path)?])?;
    file.write_all_at(&vec![1; FILE_BYTES], 0)?;
    file.sync_all()?;
    if is_swap {
        run("mkswap", &["-q", text(path)?])?;
    }
    Ok(file)
}

/// A file that the kernel swaps to; let go when dropped.
struct Swap(Option<PathBuf>);

impl Swap {
    fn on(path: PathBuf) -> Result<Self> {
        run("swapon", &[text(&path)?])?;
        Ok(Self(Some(path)))
    }

    fn off(mut self) -> Result<PathBuf> {
        let path = self.0.take().context("it is on")?;
        run("swapoff", &[text(&path)?])?;
        Ok(path)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Some(path) = self.0.as_deref().and_then(Path::to_str) {
            let _ = run("swapoff", &[path]);
        }
    }
}
