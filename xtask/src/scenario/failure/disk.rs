//! A loop device whose image can be copied, put back and cut off.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::LEN_BYTES;
use crate::{
    command::run,
    scenario::{
        compare::flush,
        scratch::{attach, loop_device},
    },
};

/// How much is copied at a time; a hole is as long.
const PIECE_BYTES: usize = 64 << 10;

/// An image and its loop device, detached when dropped.
pub(super) struct Disk {
    pub(super) image: PathBuf,
    pub(super) device: PathBuf,
}

impl Disk {
    /// A new, empty one.
    pub(super) fn new(image: PathBuf) -> Result<Self> {
        let device = loop_device(&image, LEN_BYTES)?;
        Ok(Self { image, device })
    }

    /// One that has contents already; its image may be a block device.
    pub(super) fn of(image: PathBuf) -> Result<Self> {
        let device = attach(&image)?;
        Ok(Self { image, device })
    }

    /// Its device's path as text.
    pub(super) fn name(&self) -> &str {
        self.device.to_str().expect("losetup prints ASCII")
    }

    /// Copies the image as it is at this moment. What was not flushed to the device is not in it.
    pub(super) fn copy_to(&self, to: &Path) -> Result<()> {
        copy(&self.image, &File::create(to)?)
    }

    /// Gives the image the contents of a copy. It must not be mounted.
    pub(super) fn restore(&self, from: &Path) -> Result<()> {
        let image = File::options().write(true).open(&self.image)?;
        image.set_len(0)?;
        copy(from, &image)?;
        self.resized()?;
        flush(&self.device)
    }

    /// Cuts it off behind `len_bytes`: what lies there can be neither read nor written.
    pub(super) fn cut_off(&self, len_bytes: u64) -> Result<()> {
        File::options().write(true).open(&self.image)?.set_len(len_bytes)?;
        self.resized()
    }

    fn resized(&self) -> Result<()> {
        run("losetup", &["--set-capacity", self.name()]).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", self.name()]);
    }
}

/// Copies what is not zero.
fn copy(from: &Path, to: &File) -> Result<()> {
    let mut from = File::open(from)?;
    to.set_len(from.metadata()?.len())?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        let len = read_full(&mut from, &mut piece)?;
        if len == 0 {
            return Ok(());
        }
        if piece[..len].iter().any(|&byte| byte != 0) {
            to.write_all_at(&piece[..len], at)?;
        }
        at += len as u64;
    }
}

fn read_full(from: &mut File, piece: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    while len < piece.len() {
        match from.read(&mut piece[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

/// A tmpfs of its own, unmounted when dropped: it can be full without harm to anything else.
pub(super) struct SmallTmpfs {
    pub(super) dir: PathBuf,
}

impl SmallTmpfs {
    pub(super) fn mount(dir: PathBuf, len_bytes: u64) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let options = std::ffi::CString::new(format!("size={len_bytes}"))?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &dir, "tmpfs", flags, Some(options.as_c_str()))
            .context("cannot mount a tmpfs")?;
        Ok(Self { dir })
    }

    /// Writes a file until there is no room.
    pub(super) fn fill(&self) -> Result<PathBuf> {
        let filler = self.dir.join("filler");
        let file = File::create(&filler)?;
        let mut at = 0;
        for piece in [PIECE_BYTES, 4096] {
            while file.write_at(&vec![1; piece], at).is_ok_and(|len| len == piece) {
                at += piece as u64;
            }
        }
        Ok(filler)
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
    }
}
