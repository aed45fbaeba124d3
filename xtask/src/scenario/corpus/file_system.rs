//! A file system on several loop devices of our own.

use std::{
    ffi::CString,
    fs::{self, File},
    path::PathBuf,
};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    command::{run, text},
    scenario::scratch::attach,
};

/// Images, the loop devices that they are attached to, and where it is mounted. All of it is
/// taken down when dropped.
pub(super) struct FileSystem {
    dir: PathBuf,
    /// By devid less 1; `None` is detached.
    pub(super) loops: Vec<Option<PathBuf>>,
    mounted: bool,
}

impl FileSystem {
    /// So many empty devices of so many bytes, in a directory of their own.
    pub(super) fn new(dir: PathBuf, devices: usize, len_bytes: u64) -> Result<Self> {
        fs::create_dir_all(dir.join("mnt"))?;
        let mut file_system = Self { dir, loops: Vec::new(), mounted: false };
        for _ in 0..devices {
            file_system.add_device(len_bytes)?;
        }
        Ok(file_system)
    }

    /// One more device.
    pub(super) fn add_device(&mut self, len_bytes: u64) -> Result<()> {
        self.loops.push(None);
        let index = self.loops.len() - 1;
        File::create(self.image(index))?.set_len(len_bytes)?;
        self.attach(index)
    }

    pub(super) fn attach(&mut self, index: usize) -> Result<()> {
        self.loops[index] = Some(attach(&self.image(index))?);
        Ok(())
    }

    pub(super) fn detach(&mut self, index: usize) -> Result<()> {
        if let Some(device) = self.loops[index].take() {
            run("losetup", &["--detach", text(&device)?])?;
        }
        Ok(())
    }

    pub(super) fn image(&self, index: usize) -> PathBuf {
        self.dir.join(format!("device{}", index + 1))
    }

    /// The devices that are attached.
    pub(super) fn devices(&self) -> Result<Vec<&str>> {
        self.loops.iter().flatten().map(|device| text(device)).collect()
    }

    pub(super) fn mount_point(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    pub(super) fn mount(&mut self, options: &str) -> Result<()> {
        let devices = self.devices()?;
        // The kernel is told of all devices here: there is no udev in a container.
        let all: Vec<String> = devices.iter().map(|device| format!("device={device}")).collect();
        let all = [&all[..], &["commit=5".to_owned()]].concat().join(",");
        let options = if options.is_empty() { all } else { format!("{all},{options}") };
        mount(
            *devices.first().context("no device to mount")?,
            self.mount_point(),
            "btrfs",
            MountFlags::empty(),
            Some(CString::new(options)?.as_c_str()),
        )
        .context("cannot mount")?;
        self.mounted = true;
        Ok(())
    }

    pub(super) fn unmount(&mut self) -> Result<()> {
        if self.mounted {
            unmount(self.mount_point(), UnmountFlags::empty()).context("cannot unmount")?;
            self.mounted = false;
        }
        Ok(())
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // A detached mount goes when its last user does, so that nothing is left behind even
        // where a test failed half way.
        if self.mounted {
            let _ = unmount(self.mount_point(), UnmountFlags::DETACH);
        }
        for index in 0..self.loops.len() {
            let _ = self.detach(index);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
