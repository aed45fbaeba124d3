//! A sound file system in memory, and arbitrary changes to it with the checksums made right.

use std::collections::BTreeMap;

use bytes::Bytes;
use refverify_user::btrfs::{
    ExtentKind, RefKey,
    format::{Key, ReadFailure, SUPERBLOCK_OFFSET, item_type},
    reader::{BlockRead, ExtentReader, ReaderStep},
};

#[path = "../../tests/support/image.rs"]
mod image;

use image::{Extent, Image, METADATA_LEN_BYTES, METADATA_START};

/// Length of a tree block.
pub const NODE_BYTES: usize = image::NODE_BYTES;

/// Far more than a reader has reason to ask for: the image has some dozens of blocks, and each
/// is tried a few times.
const READS_MAX: usize = 5_000;
/// Far more than these blocks can tell.
const STEPS_MAX: usize = 200_000;

/// The blocks of a device, by their offset; all others are zero.
#[derive(Clone)]
pub struct Disk(pub BTreeMap<u64, Vec<u8>>);

impl Disk {
    /// A tree of so many data extents, some with keyed references. With none it is one leaf.
    pub fn new(extents: u64) -> Self {
        let data = |n: u64| {
            let refs = (0..1 + n % 5).map(|r| (RefKey::data(5, 0, 257 + n, r * 4096), 1));
            let refs = refs.collect();
            Extent { len_bytes: 8192, kind: ExtentKind::Data, refs, total_error: 0 }
        };
        let mut all: BTreeMap<_, _> = (0..extents).map(|n| ((1 << 30) + n * 16384, data(n))).collect();
        let kind = ExtentKind::TreeBlock { level: 0 };
        let refs = BTreeMap::from([(RefKey::tree(2, 0, 0), 1)]);
        let len_bytes = NODE_BYTES as u64;
        all.insert(METADATA_START, Extent { len_bytes, kind, refs, total_error: 0 });
        let mut image = Image::new();
        let trees = image.write_trees(7, &all);
        image.write_superblock(&trees);
        let places = (METADATA_START..METADATA_START + METADATA_LEN_BYTES).step_by(NODE_BYTES);
        let blocks = std::iter::once(SUPERBLOCK_OFFSET).chain(places);
        let blocks = blocks.map(|at| (at, image.read(at, NODE_BYTES)));
        Self(blocks.filter(|(_, block)| block.iter().any(|&byte| byte != 0)).collect())
    }

    /// The one block at level 0 of the extent tree.
    pub fn extent_leaf(&mut self) -> &mut Vec<u8> {
        let is_it = |block: &&mut Vec<u8>| block[88..96] == 2_u64.to_le_bytes() && block[100] == 0;
        self.0.values_mut().skip(1).find(is_it).expect("there is one")
    }

    fn read(&self, read: &BlockRead) -> Result<Bytes, ReadFailure> {
        if read.devid > 1 {
            return Err(ReadFailure::new("no such device"));
        }
        let mut data = vec![0; read.len_bytes as usize];
        for (index, part) in data.chunks_mut(NODE_BYTES).enumerate() {
            let at = read.offset.checked_add((index * NODE_BYTES) as u64);
            if let Some(block) = at.and_then(|at| self.0.get(&at)) {
                part.copy_from_slice(&block[..part.len()]);
            }
        }
        Ok(data.into())
    }

    /// Reads the extent tree to its end, which has to come.
    pub fn drive(&self) {
        let mut reader = ExtentReader::new(0..u64::MAX, 0);
        let (mut reads, mut steps) = (0, 0);
        loop {
            while let Some(step) = reader.next_step() {
                steps += 1;
                assert!(steps <= STEPS_MAX, "the reader does not stop telling");
                match step {
                    ReaderStep::Extent(extent) => reader.reuse(extent),
                    ReaderStep::Finding(finding) => drop(finding.to_string()),
                    ReaderStep::Failed(error) => drop(error.to_string()),
                    _ => {}
                }
            }
            let wanted = reader.poll_requests();
            if wanted.is_empty() {
                break;
            }
            for read in wanted {
                reads += 1;
                assert!(reads <= READS_MAX, "the reader does not stop asking");
                // What a hostile geometry asks for at most is one block.
                assert!(read.len_bytes <= 65536, "{} bytes at once", read.len_bytes);
                reader.answer(read.id, self.read(&read));
            }
        }
        assert!(reader.has_ended(), "the reader is stuck");
    }
}

/// Sets the checksum.
pub fn seal(block: &mut [u8]) {
    let csum = crc32c::crc32c(&block[32..]);
    block[..4].copy_from_slice(&csum.to_le_bytes());
}

/// Takes bytes off the front; zeros where there are too few.
pub fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
    let (first, rest) = data.split_at(data.len().min(N));
    *data = rest;
    let mut taken = [0; N];
    taken[..first.len()].copy_from_slice(first);
    taken
}

/// A leaf's space filled with items: each a distance to the bytenr before, a type, the key's
/// offset, a length and a body.
pub fn items(mut data: &[u8]) -> BTreeMap<(u64, u8, u64), Vec<u8>> {
    let mut items = BTreeMap::new();
    let mut bytenr = 1_u64 << 30;
    let mut room = NODE_BYTES - 101;
    while !data.is_empty() {
        let [distance, kind] = take(&mut data);
        bytenr = bytenr.wrapping_add(u64::from(distance) * 4096);
        let item_type = match kind {
            0..=7 => item_type::EXTENT_ITEM + kind % 2,
            other => other,
        };
        let offset = u64::from_le_bytes(take(&mut data));
        let [len] = take::<1>(&mut data);
        let (body, rest) = data.split_at(data.len().min(len.into()));
        data = rest;
        if room < 25 + body.len() {
            break;
        }
        let Key { objectid, item_type, offset } = Key { objectid: bytenr, item_type, offset };
        if items.insert((objectid, item_type, offset), body.to_vec()).is_none() {
            room -= 25 + body.len();
        }
    }
    items
}
