//! A small file system made by hand: any item can be in its extent tree, and any byte can be
//! wrong while every checksum is right.

use bytes::Bytes;
use refverify_user::btrfs::{
    format::{Key, ReadFailure, item_type},
    objectid,
    reader::BlockRead,
};

pub(crate) const NODESIZE: usize = 4096;
pub(crate) const HEADER_LEN: usize = 101;

const FSID: [u8; 16] = *b"a synthetic fsid";
const SUPERBLOCK_AT: usize = 64 << 10;
/// Logical address and length of the chunk that holds every tree block.
pub(crate) const CHUNK: (u64, u64) = (16 << 20, 4 << 20);
/// The two copies' offsets on the device.
const COPIES: [u64; 2] = [1 << 20, 5 << 20];
const DEVICE_LEN: usize = 9 << 20;
const DEVID: u64 = 1;

/// What a tree block says of itself.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) bytenr: u64,
    pub(crate) generation: u64,
    pub(crate) owner: u64,
    pub(crate) level: u8,
}

/// A pointer to a tree block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pointer {
    pub(crate) key: Key,
    pub(crate) bytenr: u64,
    pub(crate) generation: u64,
}

pub(crate) fn key(objectid: u64, item_type: u8, offset: u64) -> Key {
    Key { objectid, item_type, offset }
}

fn key_bytes(key: Key) -> [u8; 17] {
    let mut bytes = [0; 17];
    bytes[..8].copy_from_slice(&key.objectid.to_le_bytes());
    bytes[8] = key.item_type;
    bytes[9..].copy_from_slice(&key.offset.to_le_bytes());
    bytes
}

/// Sets the checksum of a superblock or tree block.
pub(crate) fn seal(block: &mut [u8]) {
    let csum = crc32c::crc32c(&block[32..]);
    block[..4].copy_from_slice(&csum.to_le_bytes());
}

fn header(header: Header, count: usize) -> Vec<u8> {
    let mut block = vec![0; NODESIZE];
    block[32..48].copy_from_slice(&FSID);
    block[48..56].copy_from_slice(&header.bytenr.to_le_bytes());
    block[80..88].copy_from_slice(&header.generation.to_le_bytes());
    block[88..96].copy_from_slice(&header.owner.to_le_bytes());
    block[96..100].copy_from_slice(&u32::try_from(count).expect("few").to_le_bytes());
    block[100] = header.level;
    block
}

/// A leaf, sealed.
pub(crate) fn leaf(of: Header, items: &[(Key, Vec<u8>)]) -> Vec<u8> {
    let mut block = header(of, items.len());
    let mut end = NODESIZE - HEADER_LEN;
    for (slot, (key, body)) in items.iter().enumerate() {
        end -= body.len();
        let at = HEADER_LEN + slot * 25;
        block[at..at + 17].copy_from_slice(&key_bytes(*key));
        for (i, value) in [end, body.len()].into_iter().enumerate() {
            let value = u32::try_from(value).expect("small").to_le_bytes();
            block[at + 17 + 4 * i..at + 21 + 4 * i].copy_from_slice(&value);
        }
        block[HEADER_LEN + end..HEADER_LEN + end + body.len()].copy_from_slice(body);
        assert!(HEADER_LEN + end >= at + 25, "too much for a leaf");
    }
    seal(&mut block);
    block
}

/// A block above the leaves, sealed.
pub(crate) fn interior(of: Header, pointers: &[Pointer]) -> Vec<u8> {
    let mut block = header(of, pointers.len());
    for (slot, pointer) in pointers.iter().enumerate() {
        let at = HEADER_LEN + slot * 33;
        block[at..at + 17].copy_from_slice(&key_bytes(pointer.key));
        block[at + 17..at + 25].copy_from_slice(&pointer.bytenr.to_le_bytes());
        block[at + 25..at + 33].copy_from_slice(&pointer.generation.to_le_bytes());
    }
    seal(&mut block);
    block
}

/// The bytes of the one device, with superblock, chunk tree and root tree.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) bytes: Vec<u8>,
}

/// Where the trees but the extent tree begin: the first blocks of the chunk.
const CHUNK_ROOT: u64 = CHUNK.0;
/// Two places for the root tree, used in turn.
const ROOTS: [u64; 2] = [CHUNK.0 + 4096, CHUNK.0 + 8192];
/// The first block that is free for the extent tree.
pub(crate) const FIRST_FREE_BLOCK: u64 = CHUNK.0 + 4 * 4096;

impl Device {
    /// A device without an extent tree.
    pub(crate) fn new() -> Self {
        let mut device = Self { bytes: vec![0; DEVICE_LEN] };
        let of =
            Header { bytenr: CHUNK_ROOT, generation: 1, owner: objectid::CHUNK_TREE, level: 0 };
        device.write_block(&leaf(of, &[(chunk_key(CHUNK.0), chunk_item(CHUNK.1, &COPIES))]));
        device
    }

    /// Both places where a block is.
    pub(crate) fn places(bytenr: u64) -> [usize; 2] {
        COPIES.map(|copy| usize::try_from(copy + bytenr - CHUNK.0).expect("small"))
    }

    /// Writes both copies of a block where its header says that it is.
    pub(crate) fn write_block(&mut self, block: &[u8]) {
        let bytenr = u64::from_le_bytes(block[48..56].try_into().expect("8 bytes"));
        for at in Self::places(bytenr) {
            self.bytes[at..at + block.len()].copy_from_slice(block);
        }
    }

    /// Changes a block, and seals it again.
    pub(crate) fn edit_block(&mut self, bytenr: u64, edit: impl Fn(&mut [u8])) {
        for at in Self::places(bytenr) {
            let block = &mut self.bytes[at..at + NODESIZE];
            edit(block);
            seal(block);
        }
    }

    /// Writes a root tree that leads to the extent tree, and the superblock that leads to it.
    pub(crate) fn commit(&mut self, generation: u64, extent_root: Pointer, level: u8) {
        let root = ROOTS[usize::from(generation % 2 == 1)];
        let of = Header { bytenr: root, generation, owner: objectid::ROOT_TREE, level: 0 };
        let root_key = key(objectid::EXTENT_TREE, item_type::ROOT_ITEM, 0);
        self.write_block(&leaf(of, &[(root_key, root_item(extent_root, level))]));
        let superblock = superblock(generation, root);
        self.bytes[SUPERBLOCK_AT..SUPERBLOCK_AT + 4096].copy_from_slice(&superblock);
    }

    /// Changes the superblock, and seals it again.
    pub(crate) fn edit_superblock(&mut self, edit: impl Fn(&mut [u8])) {
        let superblock = &mut self.bytes[SUPERBLOCK_AT..SUPERBLOCK_AT + 4096];
        edit(superblock);
        seal(superblock);
    }

    pub(crate) fn read(&self, read: &BlockRead) -> Result<Bytes, ReadFailure> {
        let start = usize::try_from(read.offset).map_err(ReadFailure::new)?;
        let end = start.saturating_add(read.len_bytes as usize);
        let bytes = self.bytes.get(start..end).ok_or_else(|| ReadFailure::new("beyond the end"))?;
        Ok(Bytes::copy_from_slice(bytes))
    }
}

pub(crate) fn chunk_key(logical: u64) -> Key {
    key(objectid::FIRST_CHUNK_TREE, item_type::CHUNK_ITEM, logical)
}

/// A chunk of metadata and system: DUP with two copies, else SINGLE.
pub(crate) fn chunk_item(len_bytes: u64, copies: &[u64]) -> Vec<u8> {
    let mut item = vec![0; 48 + 32 * copies.len()];
    item[..8].copy_from_slice(&len_bytes.to_le_bytes());
    item[16..24].copy_from_slice(&65536_u64.to_le_bytes());
    let dup = u64::from(copies.len() == 2) << 5;
    item[24..32].copy_from_slice(&(1_u64 << 1 | 1 << 2 | dup).to_le_bytes());
    item[44..46].copy_from_slice(&u16::try_from(copies.len()).expect("few").to_le_bytes());
    for (i, copy) in copies.iter().enumerate() {
        let at = 48 + 32 * i;
        item[at..at + 8].copy_from_slice(&DEVID.to_le_bytes());
        item[at + 8..at + 16].copy_from_slice(&copy.to_le_bytes());
    }
    item
}

fn root_item(extent_root: Pointer, level: u8) -> Vec<u8> {
    let mut item = vec![0; 439];
    item[160..168].copy_from_slice(&extent_root.generation.to_le_bytes());
    item[176..184].copy_from_slice(&extent_root.bytenr.to_le_bytes());
    item[238] = level;
    item
}

fn superblock(generation: u64, root: u64) -> Vec<u8> {
    let mut block = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(32, &FSID);
    put(48, &(SUPERBLOCK_AT as u64).to_le_bytes());
    put(64, b"_BHRfS_M");
    put(72, &generation.to_le_bytes());
    put(80, &root.to_le_bytes());
    put(88, &CHUNK_ROOT.to_le_bytes());
    put(136, &1_u64.to_le_bytes());
    put(144, &4096_u32.to_le_bytes());
    put(148, &u32::try_from(NODESIZE).expect("small").to_le_bytes());
    put(164, &1_u64.to_le_bytes());
    // MIXED_BACKREF and SKINNY_METADATA.
    put(188, &(1_u64 | 1 << 8).to_le_bytes());
    put(201, &DEVID.to_le_bytes());
    let chunk = chunk_item(CHUNK.1, &COPIES);
    put(160, &u32::try_from(17 + chunk.len()).expect("small").to_le_bytes());
    put(811, &key_bytes(chunk_key(CHUNK.0)));
    put(811 + 17, &chunk);
    seal(&mut block);
    block
}

/// An extent item: data, or a skinny tree block's.
pub(crate) fn extent_item(total_refs: u64, is_data: bool, inline: &[Vec<u8>]) -> Vec<u8> {
    let flags = if is_data { 1_u64 } else { 2 };
    let mut item = [total_refs, 1, flags].map(u64::to_le_bytes).concat();
    item.extend(inline.concat());
    item
}

/// The body of a keyed data reference.
pub(crate) fn data_ref(root: u64, objectid: u64, offset: u64, count: u32) -> Vec<u8> {
    let mut body = [root, objectid, offset].map(u64::to_le_bytes).concat();
    body.extend(count.to_le_bytes());
    body
}

/// An inline data reference.
pub(crate) fn inline_data_ref(root: u64, objectid: u64, offset: u64, count: u32) -> Vec<u8> {
    [vec![item_type::EXTENT_DATA_REF], data_ref(root, objectid, offset, count)].concat()
}

/// An inline reference that has only a number: owner, tree block or shared block.
pub(crate) fn inline_number_ref(ref_type: u8, number: u64) -> Vec<u8> {
    [vec![ref_type], number.to_le_bytes().to_vec()].concat()
}

/// A device whose extent tree is of two levels: these leaves under one root.
pub(crate) fn device_with_leaves(leaves: &[Vec<(Key, Vec<u8>)>]) -> Device {
    const GENERATION: u64 = 7;
    let mut device = Device::new();
    let of = |bytenr, level| Header {
        bytenr,
        generation: GENERATION,
        owner: objectid::EXTENT_TREE,
        level,
    };
    let mut pointers = Vec::new();
    for (items, bytenr) in leaves.iter().zip((LEAVES_AT..).step_by(NODESIZE)) {
        device.write_block(&leaf(of(bytenr, 0), items));
        pointers.push(Pointer { key: items[0].0, bytenr, generation: GENERATION });
    }
    device.write_block(&interior(of(EXTENT_ROOT, 1), &pointers));
    let root = Pointer { key: key(0, 0, 0), bytenr: EXTENT_ROOT, generation: GENERATION };
    device.commit(GENERATION, root, 1);
    device
}

/// Where [`device_with_leaves`] puts the extent tree's root.
pub(crate) const EXTENT_ROOT: u64 = FIRST_FREE_BLOCK;
/// Where it puts the leaves, one after the other.
pub(crate) const LEAVES_AT: u64 = FIRST_FREE_BLOCK + 4096;
