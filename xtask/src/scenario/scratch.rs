//! A scratch btrfs: made by mkfs.btrfs on a loop device or on a VM's disk, and taken down
//! when dropped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::Place;
use crate::command::run;

/// A block device of ours, perhaps with a mounted btrfs on it.
pub(crate) struct Scratch {
    /// The block device.
    pub(crate) device: PathBuf,
    /// Where the file system is mounted, when it is.
    pub(crate) mount_point: PathBuf,
    mounted: bool,
    is_loop: bool,
}

impl Scratch {
    /// An empty device of `len_bytes` (a VM's disk has its own length).
    pub(crate) fn new(place: &Place, len_bytes: u64) -> Result<Self> {
        let mount_point = place.dir().join("mnt");
        fs::create_dir_all(&mount_point)?;
        if let Some(device) = &place.device {
            return Ok(Self {
                device: device.clone(),
                mount_point,
                mounted: false,
                is_loop: false,
            });
        }
        let image = place.dir().join("image");
        File::create(&image)?.set_len(len_bytes)?;
        let image = image.to_str().context("the working directory's path is not UTF-8")?;
        let device = run("losetup", &["--find", "--show", image])?;
        let device = PathBuf::from(device.trim());
        Ok(Self { device, mount_point, mounted: false, is_loop: true })
    }

    /// The device's path as text.
    pub(crate) fn device_name(&self) -> &str {
        self.device.to_str().expect("device names are ASCII")
    }

    /// The mount point's path as text.
    pub(crate) fn mount_name(&self) -> &str {
        self.mount_point.to_str().expect("made from a temporary directory's name")
    }

    /// Makes a file system: one device, metadata twice (DUP), crc32c; `options` are added.
    pub(crate) fn mkfs(&self, options: &[&str]) -> Result<()> {
        let mut args = vec!["-q", "-f", "-m", "dup", "-d", "single"];
        args.extend(options);
        args.push(self.device_name());
        run("mkfs.btrfs", &args).map(drop)
    }

    /// Mounts it. A commit every two seconds: generations pass quickly in a test.
    pub(crate) fn mount(&mut self) -> Result<()> {
        if self.mounted {
            bail!("{} is mounted already", self.device_name());
        }
        mount(&self.device, &self.mount_point, "btrfs", MountFlags::empty(), Some(c"commit=2"))
            .with_context(|| format!("cannot mount {}", self.device_name()))?;
        self.mounted = true;
        Ok(())
    }

    /// Unmounts it.
    pub(crate) fn unmount(&mut self) -> Result<()> {
        if !self.mounted {
            return Ok(());
        }
        unmount(&self.mount_point, UnmountFlags::empty())
            .with_context(|| format!("cannot unmount {}", self.device_name()))?;
        self.mounted = false;
        Ok(())
    }

    /// A path in the file system.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount_point.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A detached mount goes when its last user does, so that nothing is left behind
        // even where a test failed half way.
        if self.mounted {
            let _ = unmount(&self.mount_point, UnmountFlags::DETACH);
        }
        if self.is_loop {
            let _ = run("losetup", &["--detach", self.device_name()]);
        }
    }
}
