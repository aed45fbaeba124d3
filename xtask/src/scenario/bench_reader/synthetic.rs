//! An image that no kernel wrote: just the trees that a reader of the extent tree needs (kernel:
//! `include/uapi/linux/btrfs_tree.h`, 6.12), with as many extents as wanted, in a minute.

use std::{
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::{Context, Result};

const NODE_LEN: usize = 16384;
const HEADER_LEN: usize = 101;
const ITEM_LEN: usize = 25;
const KEY_PTR_LEN: usize = 33;
const SUPERBLOCK_AT: u64 = 64 << 10;

/// Where the only chunk begins; its physical place is the same.
const CHUNK_START: u64 = 32 << 20;
const GENERATION: u64 = 7;
const FSID: [u8; 16] = *b"a synthetic fsid";

/// With one reference each, inline.
const EXTENT_ITEM_LEN: usize = 53;
const EXTENTS_PER_LEAF: u64 = ((NODE_LEN - HEADER_LEN) / (ITEM_LEN + EXTENT_ITEM_LEN)) as u64;
const CHILDREN_PER_NODE: usize = (NODE_LEN - HEADER_LEN) / KEY_PTR_LEN;

type Key = (u64, u8, u64);

/// A block that was written, as its parent points to it.
struct Pointer {
    key: Key,
    bytenr: u64,
}

/// The blocks, written one behind the other.
struct Blocks {
    file: BufWriter<File>,
    next: u64,
}

/// Writes an image with so many extents of data.
pub(super) fn write(path: &Path, extents: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut blocks = Blocks { file: BufWriter::new(file), next: CHUNK_START };
    blocks.file.seek(SeekFrom::Start(CHUNK_START))?;
    let mut pointers = Vec::new();
    let mut from = 0;
    while from < extents {
        let upto = extents.min(from + EXTENTS_PER_LEAF);
        let items: Vec<_> = (from..upto).map(extent_item).collect();
        pointers.push(blocks.leaf(2, &items)?);
        from = upto;
    }
    let mut level = 0;
    while pointers.len() > 1 {
        level += 1;
        let nodes = pointers.chunks(CHILDREN_PER_NODE);
        pointers = nodes.map(|children| blocks.node(level, children)).collect::<Result<_>>()?;
    }
    let extent_root = pointers.first().context("there is no extent")?.bytenr;
    let root = blocks.leaf(1, &[((2, 132, 0), root_item(extent_root, level))])?.bytenr;
    // With the block that it is about to be in.
    let len_bytes = blocks.next + NODE_LEN as u64 - CHUNK_START;
    // Chunks are of whole stripes.
    let chunk = chunk_item(len_bytes.next_multiple_of(1 << 20));
    let chunk_root = blocks.leaf(3, &[((256, 228, CHUNK_START), chunk.clone())])?.bytenr;
    let end = CHUNK_START + len_bytes.next_multiple_of(1 << 20);
    blocks.file.seek(SeekFrom::Start(SUPERBLOCK_AT))?;
    blocks.file.write_all(&superblock(root, chunk_root, &chunk, end))?;
    let file = blocks.file.into_inner().context("cannot write the image")?;
    file.set_len(end)?;
    file.sync_all().context("cannot write the image")
}

impl Blocks {
    fn leaf(&mut self, owner: u64, items: &[(Key, Vec<u8>)]) -> Result<Pointer> {
        let mut block = vec![0; NODE_LEN];
        let mut end = NODE_LEN;
        for (slot, (key, body)) in items.iter().enumerate() {
            end -= body.len();
            block[end..end + body.len()].copy_from_slice(body);
            let at = &mut block[HEADER_LEN + slot * ITEM_LEN..];
            put_key(at, *key);
            put_u32(&mut at[17..], end - HEADER_LEN);
            put_u32(&mut at[21..], body.len());
        }
        self.write(items[0].0, owner, 0, items.len(), block)
    }

    fn node(&mut self, level: u8, children: &[Pointer]) -> Result<Pointer> {
        let mut block = vec![0; NODE_LEN];
        for (slot, child) in children.iter().enumerate() {
            let at = &mut block[HEADER_LEN + slot * KEY_PTR_LEN..];
            put_key(at, child.key);
            put_u64(&mut at[17..], child.bytenr);
            put_u64(&mut at[25..], GENERATION);
        }
        self.write(children[0].key, 2, level, children.len(), block)
    }

    fn write(
        &mut self,
        key: Key,
        owner: u64,
        level: u8,
        count: usize,
        mut block: Vec<u8>,
    ) -> Result<Pointer> {
        let bytenr = self.next;
        self.next += NODE_LEN as u64;
        block[32..48].copy_from_slice(&FSID);
        put_u64(&mut block[48..], bytenr);
        put_u64(&mut block[80..], GENERATION);
        put_u64(&mut block[88..], owner);
        put_u32(&mut block[96..], count);
        block[100] = level;
        seal(&mut block);
        self.file.write_all(&block).context("cannot write the image")?;
        Ok(Pointer { key, bytenr })
    }
}

fn extent_item(number: u64) -> (Key, Vec<u8>) {
    let mut item = vec![0; EXTENT_ITEM_LEN];
    // One reference, of the transaction, data; from a file of its own in the top subvolume.
    for (at, value) in [(0, 1), (8, GENERATION), (16, 1), (25, 5), (33, 257 + number), (41, 0)] {
        put_u64(&mut item[at..], value);
    }
    item[24] = 178;
    put_u32(&mut item[49..], 1);
    (((1 << 40) + number * 8192, 168, 4096), item)
}

fn root_item(bytenr: u64, level: u8) -> Vec<u8> {
    let mut item = vec![0; 439];
    for (at, value) in [(160, GENERATION), (176, bytenr), (239, GENERATION)] {
        put_u64(&mut item[at..], value);
    }
    put_u32(&mut item[216..], 1);
    item[238] = level;
    item
}

/// SINGLE, of metadata and system.
fn chunk_item(len_bytes: u64) -> Vec<u8> {
    let mut item = vec![0; 80];
    for (at, value) in
        [(0, len_bytes), (8, 2), (16, 65536), (24, 2 | 4), (48, 1), (56, CHUNK_START)]
    {
        put_u64(&mut item[at..], value);
    }
    for (at, value) in [(32, 65536), (36, 65536), (40, 4096)] {
        put_u32(&mut item[at..], value);
    }
    // One stripe, and one of no mirrors.
    item[44] = 1;
    item[46] = 1;
    item
}

fn superblock(root: u64, chunk_root: u64, chunk: &[u8], device_len: u64) -> Vec<u8> {
    let mut superblock = vec![0; 4096];
    for at in [32, 283] {
        superblock[at..at + 16].copy_from_slice(&FSID);
    }
    superblock[64..72].copy_from_slice(b"_BHRfS_M");
    for (at, value) in [
        (48, SUPERBLOCK_AT),
        (56, 1),
        (72, GENERATION),
        (80, root),
        (88, chunk_root),
        (112, device_len),
        (136, 1),
        (164, GENERATION),
        // MIXED_BACKREF, EXTENDED_IREF and SKINNY_METADATA.
        (188, 1 | 1 << 6 | 1 << 8),
        (201, 1),
        (209, device_len),
    ] {
        put_u64(&mut superblock[at..], value);
    }
    for (at, value) in [(144, 4096), (148, NODE_LEN), (152, NODE_LEN), (156, 4096)] {
        put_u32(&mut superblock[at..], value);
    }
    put_u32(&mut superblock[160..], 17 + chunk.len());
    put_key(&mut superblock[811..], (256, 228, CHUNK_START));
    superblock[828..828 + chunk.len()].copy_from_slice(chunk);
    seal(&mut superblock);
    superblock
}

fn seal(block: &mut [u8]) {
    let checksum = crc32c::crc32c(&block[32..]);
    block[..4].copy_from_slice(&checksum.to_le_bytes());
}

fn put_key(at: &mut [u8], (objectid, kind, offset): Key) {
    put_u64(at, objectid);
    at[8] = kind;
    put_u64(&mut at[9..], offset);
}

fn put_u64(at: &mut [u8], value: u64) {
    at[..8].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(at: &mut [u8], value: usize) {
    at[..4].copy_from_slice(&u32::try_from(value).expect("small").to_le_bytes());
}
