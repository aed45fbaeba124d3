//! Finds and writes nodes on a device: superblock, chunks, root tree, extent tree (kernel:
//! `include/uapi/linux/btrfs_tree.h`, `btrfs_super_block`, `btrfs_chunk`, `btrfs_root_item`).

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    EXTENT_ITEM, get_u32, get_u64,
    leaf::{self, Key, Leaf},
};
use crate::command::run;

const SUPERBLOCK_AT: u64 = 64 << 10;
const MAGIC: &[u8] = b"_BHRfS_M";
const ROOT_ITEM: u8 = 132;
const CHUNK_ITEM: u8 = 228;
const EXTENT_TREE: u64 = 2;
const FIRST_CHUNK_TREE: u64 = 256;

/// Levels of a tree, at most (kernel: `BTRFS_MAX_LEVEL`).
const LEVELS_MAX: usize = 8;

/// Chunk types that keep whole copies on the one device: none of RAID0, 10, 5, 6.
const STRIPED: u64 = 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8;

/// A mapping of logical addresses: one copy at each of `stripes`.
struct Chunk {
    start: u64,
    len_bytes: u64,
    stripes: Vec<u64>,
}

/// An unmounted btrfs on one device.
pub(super) struct Image {
    file: File,
    node_len: usize,
    root_tree: u64,
    chunks: Vec<Chunk>,
}

impl Image {
    pub(super) fn open(device: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(device)
            .with_context(|| format!("cannot open {}", device.display()))?;
        // The kernel wrote metadata past the device's page cache, which may be stale.
        run("blockdev", &["--flushbufs", &device.to_string_lossy()])?;
        let mut superblock = vec![0; 4096];
        file.read_exact_at(&mut superblock, SUPERBLOCK_AT)?;
        ensure!(&superblock[64..72] == MAGIC, "{} is not btrfs", device.display());
        ensure!(superblock[196..198] == [0, 0], "checksums other than crc32c");
        ensure!(get_u64(&superblock, 136) == 1, "more than one device");
        ensure!(get_u64(&superblock, 96) == 0, "a log tree waits to be replayed");
        let mut image = Self {
            file,
            node_len: get_u32(&superblock, 148) as usize,
            root_tree: get_u64(&superblock, 80),
            chunks: system_chunks(&superblock)?,
        };
        image.chunks = image.all_chunks(get_u64(&superblock, 88))?;
        Ok(image)
    }

    /// The leaf of the extent tree that holds the data extent at `bytenr`.
    pub(super) fn extent_leaf(&self, bytenr: u64) -> Result<Leaf> {
        let root_key = Key { objectid: EXTENT_TREE, kind: ROOT_ITEM, offset: 0 };
        let root_leaf = self.search(self.root_tree, root_key)?;
        let root = root_leaf.items.iter().find(|(key, _)| *key == root_key);
        let (_, root) = root.context("the root tree has no extent tree")?;
        self.search(
            get_u64(root, 176),
            Key { objectid: bytenr, kind: EXTENT_ITEM, offset: u64::MAX },
        )
    }

    /// Writes a leaf back to where it came from, on every copy.
    pub(super) fn write(&self, leaf: Leaf) -> Result<()> {
        let bytenr = leaf.bytenr();
        let node = leaf.into_bytes()?;
        for offset in self.copies(bytenr)? {
            self.file.write_all_at(&node, offset)?;
        }
        self.file.sync_all().context("cannot write the leaf to the device")
    }

    /// Overwrites the checksum of the tree of roots' root, on every copy.
    pub(super) fn spoil_tree_root(&self) -> Result<()> {
        for offset in self.copies(self.root_tree)? {
            self.file.write_all_at(&[0; 32], offset)?;
        }
        self.file.sync_all().context("cannot write to the device")
    }

    fn search(&self, root: u64, key: Key) -> Result<Leaf> {
        let mut bytenr = root;
        for _ in 0..LEVELS_MAX {
            let node = self.node(bytenr)?;
            if leaf::header(&node)?.level == 0 {
                return Leaf::parse(&node);
            }
            bytenr = leaf::child(&node, key)?;
        }
        bail!("the tree at {root} is deeper than a tree can be")
    }

    fn node(&self, bytenr: u64) -> Result<Vec<u8>> {
        let offset = self.copies(bytenr)?.next().context("a chunk without a copy")?;
        let mut node = vec![0; self.node_len];
        self.file.read_exact_at(&mut node, offset)?;
        let header = leaf::header(&node).with_context(|| format!("node {bytenr}"))?;
        ensure!(header.bytenr == bytenr, "at {bytenr} there is node {}", header.bytenr);
        Ok(node)
    }

    fn copies(&self, bytenr: u64) -> Result<impl Iterator<Item = u64> + '_> {
        let chunk = self
            .chunks
            .iter()
            .find(|chunk| (chunk.start..chunk.start + chunk.len_bytes).contains(&bytenr))
            .with_context(|| format!("no chunk holds {bytenr}"))?;
        Ok(chunk.stripes.iter().map(move |stripe| stripe + (bytenr - chunk.start)))
    }

    /// The chunk tree's chunks; it lies in those that the superblock names.
    fn all_chunks(&self, chunk_tree: u64) -> Result<Vec<Chunk>> {
        let mut chunks = Vec::new();
        let mut from = Key { objectid: FIRST_CHUNK_TREE, kind: CHUNK_ITEM, offset: 0 };
        // A test's file system has one leaf of chunks; more are reached by searching on.
        loop {
            let leaf = self.search(chunk_tree, from)?;
            let last = leaf.items.last().context("an empty chunk tree")?.0;
            for (key, item) in &leaf.items {
                if key.kind == CHUNK_ITEM && *key >= from {
                    chunks.push(chunk(key.offset, item)?);
                }
            }
            let next = Key { offset: last.offset.saturating_add(1), ..last };
            if next <= from
                || self.search(chunk_tree, next)?.items.last().is_none_or(|l| l.0 == last)
            {
                return Ok(chunks);
            }
            from = next;
        }
    }
}

/// The chunks in the superblock: a key, then the chunk, one after the other.
fn system_chunks(superblock: &[u8]) -> Result<Vec<Chunk>> {
    const ARRAY_AT: usize = 811;
    let len = get_u32(superblock, 160) as usize;
    ensure!(len <= 2048, "the superblock's array of chunks is {len} bytes long");
    let array = &superblock[ARRAY_AT..ARRAY_AT + len];
    let mut chunks = Vec::new();
    let mut at = 0;
    while at + 17 + 80 <= array.len() {
        let key = Key::read(array, at);
        let item = &array[at + 17..];
        chunks.push(chunk(key.offset, item)?);
        at += 17 + 48 + 32 * usize::from(u16::from_le_bytes([item[44], item[45]]));
    }
    Ok(chunks)
}

fn chunk(start: u64, item: &[u8]) -> Result<Chunk> {
    let count = usize::from(u16::from_le_bytes([item[44], item[45]]));
    ensure!(item.len() >= 48 + 32 * count, "a chunk item is cut off");
    ensure!(get_u64(item, 24) & STRIPED == 0, "a striped chunk");
    let stripes = (0..count).map(|stripe| get_u64(item, 48 + 32 * stripe + 8)).collect();
    Ok(Chunk { start, len_bytes: get_u64(item, 0), stripes })
}
