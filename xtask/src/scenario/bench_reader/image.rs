//! The image that readers are measured on: more than two million extents, made once by the
//! kernel that runs and kept in the build directory.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{FallocateFlags, SeekFrom, fallocate, ioctl_ficlone, seek, syncfs},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use super::synthetic;
use crate::{
    command::{run, text},
    scenario::scratch::attach,
    workspace,
};

/// Of the sparse file; what is written of it is metadata, about 1 GiB.
const LEN_BYTES: u64 = 24 << 30;

const FILES: u64 = 1100;
const EXTENTS_PER_FILE: u64 = 2000;

/// Commits that each change parts all over the extent tree, so that its blocks come to lie
/// where an old file system has them: in no order.
const ROUNDS: u64 = 12;
const CLONES_PER_ROUND: u64 = 60;

const SECTOR: u64 = 4096;

/// A part of the image that holds metadata, without holes.
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
}

/// The image, made if it is not there yet.
pub(super) fn cached() -> Result<PathBuf> {
    let dir = workspace::target().join("bench");
    let image = dir.join("reader-1.img");
    if image.exists() {
        return Ok(image);
    }
    fs::create_dir_all(&dir)?;
    let unfinished = dir.join("reader.unfinished");
    println!("making {} (once)", image.display());
    let start = Instant::now();
    let file = File::create(&unfinished)?;
    file.set_len(LEN_BYTES)?;
    fill(&unfinished)?;
    let file = File::options().read(true).write(true).open(&unfinished)?;
    for region in metadata(&unfinished)? {
        write_holes(&file, &region)?;
    }
    file.sync_all()?;
    fs::rename(&unfinished, &image)?;
    println!("made in {:.0} s", start.elapsed().as_secs_f64());
    Ok(image)
}

/// An image of so many extents that no kernel wrote, made if it is not there yet.
pub(super) fn written(extents: u64) -> Result<PathBuf> {
    let dir = workspace::target().join("bench");
    let image = dir.join(format!("written-{extents}.img"));
    if !image.exists() {
        fs::create_dir_all(&dir)?;
        let unfinished = image.with_extension("unfinished");
        synthetic::write(&unfinished, extents)?;
        fs::rename(&unfinished, &image)?;
    }
    Ok(image)
}

fn fill(image: &Path) -> Result<()> {
    let mount_point = tempfile::tempdir()?;
    let device = attach(image)?;
    let device = text(&device)?;
    let filled = run("mkfs.btrfs", &["-q", "-f", "-m", "single", "-d", "single", device])
        .and_then(|_| fill_device(device, mount_point.path()));
    run("losetup", &["--detach", device])?;
    filled
}

fn fill_device(device: &str, mount_point: &Path) -> Result<()> {
    mount(device, mount_point, "btrfs", MountFlags::empty(), Some(c"commit=300"))
        .with_context(|| format!("cannot mount {device}"))?;
    let worked = work(mount_point);
    unmount(mount_point, UnmountFlags::empty())?;
    worked
}

fn work(dir: &Path) -> Result<()> {
    let name = |file: u64| dir.join(format!("file{file}"));
    for file in 0..FILES {
        let file = File::create(name(file))?;
        for extent in 0..EXTENTS_PER_FILE {
            // Each call allocates an extent of its own, and writes nothing.
            fallocate(&file, FallocateFlags::empty(), extent * 2 * SECTOR, SECTOR)?;
        }
    }
    let all = File::open(dir)?;
    syncfs(&all)?;
    let mut random = 1_u64;
    for round in 0..ROUNDS {
        for clone in 0..CLONES_PER_ROUND {
            // Knuth's multiplier; good enough to spread work.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let source = File::open(name((random >> 33) % FILES))?;
            ioctl_ficlone(File::create(dir.join(format!("clone{round}-{clone}")))?, &source)?;
        }
        syncfs(&all)?;
    }
    Ok(())
}

/// Where the chunks that hold metadata lie.
pub(super) fn metadata(image: &Path) -> Result<Vec<Region>> {
    let dump = run("btrfs", &["inspect-internal", "dump-tree", "-t", "chunk", text(image)?])?;
    let mut regions = Vec::new();
    let mut len_bytes = None;
    for line in dump.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["length", len, "owner", _, "stripe_len", _, "type", kind] => {
                len_bytes = kind.starts_with("METADATA").then(|| len.parse()).transpose()?;
            }
            ["stripe", _, "devid", _, "offset", offset] => {
                if let Some(len_bytes) = len_bytes.take() {
                    regions.push(Region { offset: offset.parse()?, len_bytes });
                }
            }
            _ => {}
        }
    }
    ensure!(!regions.is_empty(), "no chunk of metadata was understood in:\n{dump}");
    Ok(regions)
}

/// Writes zeros where nothing was ever written: a hole is read without the device.
fn write_holes(file: &File, region: &Region) -> Result<()> {
    let end = region.offset + region.len_bytes;
    let zeros = vec![0; 1 << 20];
    let mut at = seek(file, SeekFrom::Hole(region.offset))?;
    while at < end {
        // There is none behind the last data of the file.
        let data = seek(file, SeekFrom::Data(at)).unwrap_or(end).min(end);
        while at < data {
            let len = zeros.len().min(usize::try_from(data - at)?);
            file.write_all_at(&zeros[..len], at)?;
            at += len as u64;
        }
        at = seek(file, SeekFrom::Hole(at))?;
    }
    Ok(())
}

/// Has the image's own file system read where all of the image lies.
pub(super) fn read_map(image: &Path) -> Result<()> {
    let file = File::open(image)?;
    let mut at = 0;
    while let Ok(data) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(data))?;
    }
    Ok(())
}
