//! The comparison that everything here rests on: the file system is frozen, which commits,
//! and the ledger must then equal the extent tree on disk, reference by reference.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    monitor::{Monitor, of_type},
    oracle::{self, Extents, Ledger},
    scratch::Scratch,
};
use crate::command::{run, text};

/// Differences that an error message shows, at most.
const SHOWN_MAX: usize = 20;

/// A frozen file system; thawed when dropped.
pub(crate) struct Frozen<'a> {
    mount_name: &'a str,
}

impl<'a> Frozen<'a> {
    /// Freezes it. No balance may be running: its ioctl holds off a freeze.
    pub(crate) fn freeze(scratch: &'a Scratch) -> Result<Self> {
        run("fsfreeze", &["--freeze", scratch.mount_name()])?;
        Ok(Self { mount_name: scratch.mount_name() })
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = run("fsfreeze", &["--unfreeze", self.mount_name]) {
            println!("cannot thaw: {error:#}");
        }
    }
}

/// What is on the device: the superblock's generation and the extent tree.
pub(crate) struct OnDisk {
    pub(crate) generation: u64,
    pub(crate) extents: Extents,
}

/// What is on the device, as btrfs-progs writes it.
pub(crate) struct Raw {
    pub(crate) generation: u64,
    pub(crate) node_len_bytes: u64,
    pub(crate) dump: String,
}

/// Reads a device whose file system is frozen or unmounted.
pub(crate) fn read_disk(device: &Path) -> Result<OnDisk> {
    read_disk_by(Path::new("btrfs"), device)
}

fn read_disk_by(btrfs: &Path, device: &Path) -> Result<OnDisk> {
    let Raw { generation, node_len_bytes, dump } = read_raw_by(btrfs, device)?;
    Ok(OnDisk { generation, extents: oracle::parse_dump_tree(&dump, node_len_bytes)? })
}

/// Generation and length of a node in the first line, then the dump.
pub(crate) fn parse_raw(text: &str) -> Result<OnDisk> {
    let (first, dump) = text.split_once('\n').context("no first line")?;
    let (generation, node_len_bytes) = first.split_once(' ').context("two numbers")?;
    let extents = oracle::parse_dump_tree(dump, node_len_bytes.parse()?)?;
    Ok(OnDisk { generation: generation.parse()?, extents })
}

/// The same, not taken apart.
pub(crate) fn read_raw(device: &Path) -> Result<Raw> {
    read_raw_by(Path::new("btrfs"), device)
}

fn read_raw_by(btrfs: &Path, device: &Path) -> Result<Raw> {
    let btrfs = text(btrfs)?;
    let name = text(device)?;
    flush(device)?;
    let Superblock { generation, node_len_bytes } = superblock(device)?;
    let dump = run(btrfs, &["inspect-internal", "dump-tree", "-t", "extent", name])?;
    Ok(Raw { generation, node_len_bytes, dump })
}

/// Empties the page cache of a device, past which the kernel writes, and through which all readers
/// here go.
pub(crate) fn flush(device: &Path) -> Result<()> {
    let name = text(device)?;
    run("blockdev", &["--flushbufs", name]).map(drop)
}

/// What a superblock says, as far as it is needed to read a dump.
pub(crate) struct Superblock {
    pub(crate) generation: u64,
    pub(crate) node_len_bytes: u64,
}

/// Reads the primary superblock. On a zoned device it is in a log, where btrfs-progs finds it.
pub(crate) fn superblock(device: &Path) -> Result<Superblock> {
    if is_zoned(device) {
        let name = text(device)?;
        let dump = run("btrfs", &["inspect-internal", "dump-super", name])?;
        let field = |field: &str| -> Result<u64> {
            let mut lines = dump.lines().map(str::split_whitespace);
            let value =
                lines.find_map(|mut words| (words.next() == Some(field)).then(|| words.next()));
            Ok(value.flatten().with_context(|| format!("no {field} in: {dump}"))?.parse()?)
        };
        let (generation, node_len_bytes) = (field("generation")?, field("nodesize")?);
        return Ok(Superblock { generation, node_len_bytes });
    }
    let mut superblock = [0; 4096];
    File::open(device)?.read_exact_at(&mut superblock, 64 << 10)?;
    let generation = u64::from_le_bytes(superblock[72..80].try_into()?);
    let node_len_bytes = u32::from_le_bytes(superblock[148..152].try_into()?);
    Ok(Superblock { generation, node_len_bytes: node_len_bytes.into() })
}

/// Whether a block device has to be written zone by zone.
pub(crate) fn is_zoned(device: &Path) -> bool {
    let name = device.file_name().unwrap_or_default();
    let zoned = fs::read_to_string(Path::new("/sys/class/block").join(name).join("queue/zoned"));
    zoned.is_ok_and(|zoned| zoned.trim() != "none")
}

/// Freezes the file system and compares. Gives the number of extents.
pub(crate) fn compare(scratch: &Scratch, monitor: &mut Monitor) -> Result<usize> {
    compare_nth(scratch, monitor, 0)
}

/// The same of the file system with that place in the monitor's command line.
pub(crate) fn compare_nth(scratch: &Scratch, monitor: &mut Monitor, slot: usize) -> Result<usize> {
    let _frozen = Frozen::freeze(scratch)?;
    let ledger = oracle::parse_ledger_of(&monitor.dump_ledger()?, slot)?;
    ensure!(
        ledger.state == "live",
        "the ledger's state is {}; the monitor said: {:?}",
        ledger.state,
        of_type(&monitor.lines(), &ledger.state)
    );
    compare_with(&ledger, scratch)
}

/// The same; nothing while the monitor does not judge events.
pub(crate) fn compare_if_live(scratch: &Scratch, monitor: &mut Monitor) -> Result<Option<usize>> {
    let _frozen = Frozen::freeze(scratch)?;
    let ledger = oracle::parse_ledger(&monitor.dump_ledger()?)?;
    if ledger.state == "live" { compare_with(&ledger, scratch).map(Some) } else { Ok(None) }
}

/// Compares a ledger that was dumped while nothing changed.
pub(crate) fn compare_with(ledger: &Ledger, scratch: &Scratch) -> Result<usize> {
    for device in scratch.devices() {
        flush(device)?;
    }
    let disk = read_disk_by(&scratch.btrfs, &scratch.device)?;
    ensure!(
        ledger.generation == disk.generation,
        "the ledger's generation is {}, the superblock's {}",
        ledger.generation,
        disk.generation
    );
    let differences = oracle::differences(&disk.extents, &ledger.extents);
    if !differences.is_empty() {
        let shown = &differences[..differences.len().min(SHOWN_MAX)];
        bail!(
            "at generation {}, {} of {} extents differ:\n  {}",
            disk.generation,
            differences.len(),
            disk.extents.len(),
            shown.join("\n  ")
        );
    }
    Ok(disk.extents.len())
}
