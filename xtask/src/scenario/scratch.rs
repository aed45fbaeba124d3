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
use crate::command::{run, text};

/// A block device of ours, perhaps with a mounted btrfs on it.
pub(crate) struct Scratch {
    /// The block device.
    pub(crate) device: PathBuf,
    /// The other devices of a file system of several.
    pub(crate) others: Vec<PathBuf>,
    /// The program that shows what is on it.
    pub(crate) btrfs: PathBuf,
    /// Where the file system is mounted, when it is.
    pub(crate) mount_point: PathBuf,
    mounted: bool,
    /// Loop devices of ours, to be detached.
    loops: Vec<PathBuf>,
}

impl Scratch {
    /// An empty device of `len_bytes` (a VM's disk has its own length).
    pub(crate) fn new(place: &Place, len_bytes: u64) -> Result<Self> {
        match &place.device {
            Some(device) => Self::on(place, device),
            None => Self::named(place, "scratch", len_bytes),
        }
    }

    /// A loop device of `len_bytes`, of which there can be several, each with a mount point of its
    /// own.
    pub(crate) fn named(place: &Place, name: &str, len_bytes: u64) -> Result<Self> {
        Self::of_loop(place, loop_device(&place.dir().join(name), len_bytes)?, name)
    }

    fn of_loop(place: &Place, device: PathBuf, name: &str) -> Result<Self> {
        let mut scratch = Self::on(place, &device)?;
        scratch.loops.push(device);
        scratch.mount_point = place.dir().join(format!("{name}-mnt"));
        fs::create_dir_all(&scratch.mount_point)?;
        Ok(scratch)
    }

    /// A block device that is there already.
    pub(crate) fn on(place: &Place, device: &Path) -> Result<Self> {
        let mount_point = place.dir().join("mnt");
        fs::create_dir_all(&mount_point)?;
        let device = device.to_owned();
        Ok(Self {
            device,
            others: Vec::new(),
            btrfs: PathBuf::from("btrfs"),
            mount_point,
            mounted: false,
            loops: Vec::new(),
        })
    }

    /// Two empty devices of `len_bytes` each; `None` in a VM, which has one disk.
    pub(crate) fn pair(place: &Place, len_bytes: u64) -> Result<Option<Self>> {
        if place.device.is_some() {
            return Ok(None);
        }
        let mut scratch = Self::new(place, len_bytes)?;
        let second = scratch.add_loop(place, "second", len_bytes)?;
        scratch.others.push(second);
        Ok(Some(scratch))
    }

    /// A copy with the same fsid, unmounted, to be mounted elsewhere; not of a VM's disk.
    pub(crate) fn copied(&self, place: &Place) -> Result<Self> {
        let image = place.dir().join("copied");
        run("blockdev", &["--flushbufs", self.device_name()])?;
        run("cp", &["--sparse=always", text(&place.dir().join("scratch"))?, text(&image)?])?;
        Self::of_loop(place, attach(&image)?, "copied")
    }

    /// One more loop device of a new image, not yet of the file system; detached with the others.
    pub(crate) fn add_loop(
        &mut self,
        place: &Place,
        name: &str,
        len_bytes: u64,
    ) -> Result<PathBuf> {
        let device = loop_device(&place.dir().join(name), len_bytes)?;
        self.loops.push(device.clone());
        Ok(device)
    }

    /// Gives the place of the first device, and its number in the file system, to a new one.
    pub(crate) fn replace_first(&mut self, place: &Place, len_bytes: u64) -> Result<()> {
        let new = self.add_loop(place, "new-image", len_bytes)?;
        let old = std::mem::replace(&mut self.device, new);
        self.loops.retain(|device| *device != old);
        let old = text(&old)?;
        let args = ["replace", "start", "-B", "-f", old, self.device_name(), self.mount_name()];
        run("btrfs", &args)?;
        run("losetup", &["--detach", old]).map(drop)
    }

    /// All its devices.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.device).chain(&self.others).map(PathBuf::as_path)
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
        let metadata = if self.others.is_empty() { "dup" } else { "raid1" };
        let mut args = vec!["-q", "-f", "-m", metadata, "-d", "single"];
        args.extend(options);
        args.extend(self.devices().map(|device| device.to_str().expect("device names are ASCII")));
        run("mkfs.btrfs", &args).map(drop)
    }

    /// Mounts it. A commit every two seconds: generations pass quickly in a test.
    pub(crate) fn mount(&mut self) -> Result<()> {
        self.mount_with("")
    }

    /// The same, with more options.
    pub(crate) fn mount_with(&mut self, options: &str) -> Result<()> {
        if self.mounted {
            bail!("{} is mounted already", self.device_name());
        }
        let mut all = vec!["commit=2".to_owned()];
        // The kernel is told of the other devices here: there is no udev in a container.
        all.extend(self.others.iter().map(|device| format!("device={}", device.display())));
        all.extend(options.split_terminator(',').map(str::to_owned));
        let options = CString::new(all.join(","))?;
        let options = Some(options.as_c_str());
        mount(&self.device, &self.mount_point, "btrfs", MountFlags::empty(), options)
            .with_context(|| format!("cannot mount {}", self.device_name()))?;
        self.mounted = true;
        Ok(())
    }

    /// Whether it is mounted.
    pub(crate) fn is_mounted(&self) -> bool {
        self.mounted
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
        for device in self.loops.iter().filter_map(|device| device.to_str()) {
            let _ = run("losetup", &["--detach", device]);
        }
    }
}

/// A loop device of a new sparse file.
pub(crate) fn loop_device(image: &Path, len_bytes: u64) -> Result<PathBuf> {
    File::create(image)?.set_len(len_bytes)?;
    attach(image)
}

/// A loop device of a file that is there, which may itself be a block device.
pub(crate) fn attach(image: &Path) -> Result<PathBuf> {
    let device = run("losetup", &["--find", "--show", text(image)?])?;
    Ok(PathBuf::from(device.trim()))
}
