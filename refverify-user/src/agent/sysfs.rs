//! What sysfs tells of block devices and of mounted btrfs. Unlike mountinfo it does not depend on
//! the mount namespace.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{major, makedev, minor};

/// Where btrfs shows its mounted file systems.
pub(super) const BTRFS: &str = "/sys/fs/btrfs";

/// Where the kernel lists its block devices, partitions too.
const BLOCK: &str = "/sys/class/block";

/// The directory under `btrfs` of the mounted file system that has the device.
pub(super) fn mounted_dir(btrfs: &Path, kname: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(btrfs).ok()?.flatten();
    // A device link dangles for a moment at mount; its presence is what counts.
    let has_device = |dir: &PathBuf| dir.join("devices").join(kname).symlink_metadata().is_ok();
    entries.map(|entry| entry.path()).find(has_device)
}

/// The kernel's names of the devices of a mounted file system, those of its seeds too (kernel:
/// `btrfs_sysfs_add_fs_devices`).
pub(super) fn devices_of_mounted(dir: &Path) -> Vec<String> {
    names_in(&dir.join("devices"))
}

/// The kernel's names of all block devices that nothing else is stacked on: a file system on
/// device-mapper or on md is to be read through those.
pub(super) fn unstacked_devices() -> Vec<String> {
    let is_unstacked =
        |name: &String| names_in(&Path::new(BLOCK).join(name).join("holders")).is_empty();
    names_in(Path::new(BLOCK)).into_iter().filter(is_unstacked).collect()
}

/// The kernel's names of all devices that are stacked on one, directly or through others: those of
/// device-mapper and md, and loop devices. A file system on it may be mounted by any of them.
pub(super) fn stacked_on(kname: &str) -> Vec<String> {
    let loops = loops_on_devices();
    let mut stacked: Vec<String> = Vec::new();
    let mut next = Some(kname.to_owned());
    let mut looked_at = 0;
    while let Some(below) = next {
        let number = device_number(&below);
        let on_it = loops.iter().filter(|(_, on)| number == Some(*on)).map(|(name, _)| name);
        let holders = names_in(&Path::new(BLOCK).join(&below).join("holders"));
        for above in holders.iter().chain(on_it) {
            if above != kname && !stacked.contains(above) {
                stacked.push(above.clone());
            }
        }
        next = stacked.get(looked_at).cloned();
        looked_at += 1;
    }
    stacked
}

/// The kernel's names of the devices that one is stacked on, directly or through others, as far as
/// they are as long as it is: those show the same file system when it is gone.
pub(super) fn same_below(kname: &str) -> Vec<String> {
    let loops = loops_on_devices();
    let mut below: Vec<String> = Vec::new();
    let mut next = Some(kname.to_owned());
    while let Some(above) = next {
        let on_it = loops.iter().filter(|(name, _)| *name == above);
        let under_loop = on_it.filter_map(|(_, number)| kernel_name(*number).ok());
        let slaves = names_in(&Path::new(BLOCK).join(&above).join("slaves")).into_iter();
        let same = |it: &String| length_of(it).is_some() && length_of(it) == length_of(&above);
        next = slaves.chain(under_loop).find(|it| same(it) && it != kname && !below.contains(it));
        below.extend(next.clone());
    }
    below
}

/// The length of a block device, as sysfs writes it.
fn length_of(kname: &str) -> Option<String> {
    fs::read_to_string(Path::new(BLOCK).join(kname).join("size")).ok()
}

/// Loop devices that are not on a file but on another device: name, and that device's number.
fn loops_on_devices() -> Vec<(String, u64)> {
    let names = names_in(Path::new(BLOCK)).into_iter().filter(|name| name.starts_with("loop"));
    let on_device = |name: String| {
        let file = Path::new(BLOCK).join(&name).join("loop/backing_file");
        let below = fs::metadata(fs::read_to_string(file).ok()?.trim_end()).ok()?;
        (below.rdev() != 0).then_some((name, below.rdev()))
    };
    names.filter_map(on_device).collect()
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// The kernel's name of a block device: the last part of where
/// `/sys/dev/block/<major>:<minor>` points to.
pub(super) fn kernel_name(rdev: u64) -> io::Result<String> {
    let link = format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev));
    let target = fs::read_link(link)?;
    let name = target.file_name().and_then(|name| name.to_str());
    Ok(name.ok_or(io::ErrorKind::InvalidData)?.to_owned())
}

/// The number of the block device with that name.
pub(super) fn device_number(kname: &str) -> Option<u64> {
    let text = fs::read_to_string(Path::new(BLOCK).join(kname).join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Where to open the block device with that name; sysfs writes `!` for `/`.
pub(super) fn device_path(kname: &str) -> PathBuf {
    Path::new("/dev").join(kname.replace('!', "/"))
}
