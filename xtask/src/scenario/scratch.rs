//! A scratch btrfs: made by mkfs.btrfs on a loop device or on a VM's disk, and taken down
//! when dropped.

use std::{
    ffi::CString,
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
    /// The second device of a file system of two.
    second: Option<PathBuf>,
    /// Where the file system is mounted, when it is.
    pub(crate) mount_point: PathBuf,
    mounted: bool,
    is_loop: bool,
}

impl Scratch {
    /// An empty device of `len_bytes` (a VM's disk has its own length).
    pub(crate) fn new(place: &Place, len_bytes: u64) -> Result<Self> {
        if let Some(device) = &place.device {
            return Self::on(place, device);
        }
        let mut scratch = Self::on(place, &loop_device(&place.dir().join("image"), len_bytes)?)?;
        scratch.is_loop = true;
        Ok(scratch)
    }

    /// A block device that is there already.
    pub(crate) fn on(place: &Place, device: &Path) -> Result<Self> {
        let mount_point = place.dir().join("mnt");
        fs::create_dir_all(&mount_point)?;
        let device = device.to_owned();
        Ok(Self { device, second: None, mount_point, mounted: false, is_loop: false })
    }

    /// Two empty devices of `len_bytes` each; `None` in a VM, which has one disk.
    pub(crate) fn pair(place: &Place, len_bytes: u64) -> Result<Option<Self>> {
        if place.device.is_some() {
            return Ok(None);
        }
        let mut scratch = Self::new(place, len_bytes)?;
        scratch.second = Some(loop_device(&place.dir().join("second-image"), len_bytes)?);
        Ok(Some(scratch))
    }

    /// A copy with the same fsid, unmounted, to be mounted elsewhere; not of a VM's disk.
    pub(crate) fn copied(&self, place: &Place) -> Result<Self> {
        let image = place.dir().join("copied-image");
        run("blockdev", &["--flushbufs", self.device_name()])?;
        run("cp", &["--sparse=always", text(&place.dir().join("image"))?, text(&image)?])?;
        let mount_point = place.dir().join("copied-mnt");
        fs::create_dir_all(&mount_point)?;
        let device = attach(&image)?;
        Ok(Self { device, second: None, mount_point, mounted: false, is_loop: true })
    }

    /// Gives the place of the first device, and its number in the file system, to a new one.
    pub(crate) fn replace_first(&mut self, place: &Place, len_bytes: u64) -> Result<()> {
        let new = loop_device(&place.dir().join("new-image"), len_bytes)?;
        let old = std::mem::replace(&mut self.device, new);
        let old = old.to_str().context("device names are ASCII")?;
        let args = ["replace", "start", "-B", "-f", old, self.device_name(), self.mount_name()];
        run("btrfs", &args)?;
        run("losetup", &["--detach", old]).map(drop)
    }

    /// All its devices.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.device).chain(&self.second).map(PathBuf::as_path)
    }

    /// The device's path as text.
    pub(crate) fn device_name(&self) -> &str {
        self.device.to_str().expect("device names are ASCII")
    }

    /// The mount point's path as text.
    pub(crate) fn mount_name(&self) -> &str {
        self.mount_point.to_str().expect("made from a temporary directory's name")
    }

    /// Makes a file system: metadata twice (DUP; RAID1 on two devices), crc32c; `options` are
    /// added.
    pub(crate) fn mkfs(&self, options: &[&str]) -> Result<()> {
        let metadata = if self.second.is_some() { "raid1" } else { "dup" };
        let mut args = vec!["-q", "-f", "-m", metadata, "-d", "single"];
        args.extend(options);
        args.extend(self.devices().map(|device| device.to_str().expect("device names are ASCII")));
        run("mkfs.btrfs", &args).map(drop)
    }

    /// Mounts it. A commit every two seconds: generations pass quickly in a test.
    pub(crate) fn mount(&mut self) -> Result<()> {
        if self.mounted {
            bail!("{} is mounted already", self.device_name());
        }
        // The kernel is told of the other device here: there is no udev in a container.
        let second = self.second.iter().map(|device| format!(",device={}", device.display()));
        let options = CString::new(format!("commit=2{}", second.collect::<String>()))?;
        let options = Some(options.as_c_str());
        mount(&self.device, &self.mount_point, "btrfs", MountFlags::empty(), options)
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
            for device in self.devices().filter_map(Path::to_str) {
                let _ = run("losetup", &["--detach", device]);
            }
        }
    }
}

/// A loop device of a new sparse file.
fn loop_device(image: &Path, len_bytes: u64) -> Result<PathBuf> {
    File::create(image)?.set_len(len_bytes)?;
    attach(image)
}

fn attach(image: &Path) -> Result<PathBuf> {
    let device = run("losetup", &["--find", "--show", text(image)?])?;
    Ok(PathBuf::from(device.trim()))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the working directory's path is not UTF-8")
}
