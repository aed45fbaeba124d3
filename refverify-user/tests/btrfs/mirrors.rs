//! Devices that fail, and devices of a seed.

use bytes::Bytes;
use refverify_user::btrfs::{
    format::{BlockFault, Key, ReadFailure, item_type},
    objectid,
    reader::ExtentReader,
};

use crate::{
    hazards::{bad_block, read, sound_device},
    image::{ALL, drive, drive_moving},
    synthetic::{
        CHUNK, Device, EXTENT_ROOT, FIRST_FREE_BLOCK, Header, LEAVES_AT, Pointer, chunk_item,
        chunk_key, interior, key, leaf,
    },
};

/// Where a tree block's header has the fsid.
const FSID_AT: usize = 32;
const SEED: [u8; 16] = *b"the seed's fsid.";

fn spoil_first_copies(device: &mut Device, blocks: &[u64]) {
    for &bytenr in blocks {
        let [first, _] = Device::places(bytenr);
        device.bytes[first + 200] ^= 1;
    }
}

#[test]
fn a_device_that_fails_over_and_over_is_told_once() {
    let mut device = sound_device();
    spoil_first_copies(&mut device, &[CHUNK.0, EXTENT_ROOT, LEAVES_AT, LEAVES_AT + 4096]);
    let mut reader = ExtentReader::new(ALL, 0);
    let told = drive(&mut reader, |read| device.read(read));
    assert_eq!((told.extents.len(), told.failed_mirrors.len()), (2, 1));
    let failed = &told.failed_mirrors[0];
    let facts = (failed.devid, failed.pointer.bytenr, &failed.fault);
    assert_eq!(facts, (1, CHUNK.0, &BlockFault::Checksum));
    reader.restart(ALL, 0);
    let told = drive(&mut reader, |read| device.read(read));
    assert_eq!((told.extents.len(), told.failed_mirrors), (2, vec![]));
}

#[test]
fn the_last_block_that_is_read_can_still_blame_its_device() {
    let mut device = sound_device();
    spoil_first_copies(&mut device, &[LEAVES_AT + 4096]);
    let told = read(&device);
    assert_eq!((told.done, told.failed_mirrors.len()), (Some(7), 1));
}

#[test]
fn a_copy_that_is_overwritten_while_it_is_read_blames_no_device() {
    let before = sound_device();
    let mut after = before.clone();
    let root = Pointer { key: key(0, 0, 0), bytenr: EXTENT_ROOT, generation: 7 };
    after.commit(8, root, 1);
    let overwritten = Device::places(LEAVES_AT)[0] as u64;
    let mut has_moved = false;
    let told = drive(&mut ExtentReader::new(ALL, 0), |read| {
        if read.offset == overwritten {
            has_moved = true;
            return Ok(Bytes::from(vec![0; 4096]));
        }
        if has_moved { after.read(read) } else { before.read(read) }
    });
    assert!(has_moved);
    assert_eq!((told.extents.len(), told.done), (2, Some(7)));
    assert_eq!(told.failed_mirrors, []);
}

#[test]
fn a_device_is_not_blamed_where_no_copy_is_good() {
    let mut device = sound_device();
    for at in Device::places(LEAVES_AT) {
        device.bytes[at + 200] ^= 1;
    }
    let told = read(&device);
    assert_eq!(bad_block(&told), (LEAVES_AT, BlockFault::Checksum));
    assert_eq!(told.failed_mirrors, []);
}

fn device_item(devid: u64, fsid: [u8; 16]) -> (Key, Vec<u8>) {
    let mut item = vec![0; 98];
    item[..8].copy_from_slice(&devid.to_le_bytes());
    item[66] = 0xd0;
    item[82..].copy_from_slice(&fsid);
    (key(1, item_type::DEV_ITEM, devid), item)
}

/// The leaf of the chunk tree, with devices of these fsids.
fn write_chunk_tree(device: &mut Device, fsids: &[[u8; 16]]) {
    let of = Header { bytenr: CHUNK.0, generation: 1, owner: objectid::CHUNK_TREE, level: 0 };
    let mut items: Vec<_> =
        (1..).zip(fsids).map(|(devid, fsid)| device_item(devid, *fsid)).collect();
    items.push((chunk_key(CHUNK.0), chunk_item(CHUNK.1, &[1 << 20, 5 << 20])));
    device.write_block(&leaf(of, &items));
}

fn give_to_seed(device: &mut Device, bytenr: u64) {
    device.edit_block(bytenr, |block| block[FSID_AT..FSID_AT + 16].copy_from_slice(&SEED));
}

#[test]
fn blocks_of_a_seed_are_believed_once_the_chunk_tree_tells_of_it() {
    let mut device = sound_device();
    give_to_seed(&mut device, LEAVES_AT);
    let (bytenr, fault) = bad_block(&read(&device));
    assert!(bytenr == LEAVES_AT && matches!(fault, BlockFault::Fsid { .. }), "{fault}");
    write_chunk_tree(&mut device, &[SEED]);
    let told = read(&device);
    assert_eq!((told.extents.len(), told.failed, told.failed_mirrors), (2, None, vec![]));
}

#[test]
fn a_chunk_tree_that_is_in_part_a_seeds_is_read() {
    const LEAVES: u64 = FIRST_FREE_BLOCK + 64 * 4096;
    let mut device = sound_device();
    let of = |bytenr, level| Header { bytenr, generation: 1, owner: objectid::CHUNK_TREE, level };
    let chunk = |logical: u64| (chunk_key(logical), chunk_item(CHUNK.1, &[1 << 20, 5 << 20]));
    let leaves = [vec![device_item(1, SEED)], vec![chunk(CHUNK.0)], vec![chunk(1 << 30)]];
    let mut pointers = Vec::new();
    for (items, bytenr) in leaves.iter().zip((LEAVES..).step_by(4096)) {
        device.write_block(&leaf(of(bytenr, 0), items));
        pointers.push(Pointer { key: items[0].0, bytenr, generation: 1 });
    }
    device.write_block(&interior(of(CHUNK.0, 1), &pointers));
    device.edit_superblock(|block| block[199] = 1);
    assert_eq!(read(&device).failed, None);
    give_to_seed(&mut device, LEAVES + 4096);
    give_to_seed(&mut device, LEAVES + 8192);
    assert_eq!(read(&device).failed, None);
    // The device's own leaf cannot tell of itself.
    give_to_seed(&mut device, LEAVES);
    assert_eq!(bad_block(&read(&device)).0, LEAVES);
}

#[test]
fn when_the_named_device_goes_another_one_gives_the_superblock() {
    let mut device = sound_device();
    let fsid: [u8; 16] = device.bytes[(64 << 10) + FSID_AT..][..16].try_into().expect("16 bytes");
    write_chunk_tree(&mut device, &[fsid, fsid]);
    let mut older = device.clone();
    older.edit_superblock(|block| block[72] = 6);
    let read_with = |first: &Device, second: &Device| {
        let mut reads = 0;
        drive_moving(&mut ExtentReader::new(ALL, 0), 2, |read| {
            reads += 1;
            match read.devid {
                0 if reads > 1 => Err(ReadFailure::new("gone")),
                2 => second.read(read),
                _ => first.read(read),
            }
        })
    };
    assert_eq!(read_with(&device, &device).done, Some(7));
    // One that missed the last commits is no substitute, the third device is.
    assert_eq!(read_with(&device, &older).done, Some(7));
    let failed = read_with(&older, &older).failed;
    assert!(failed.is_some(), "there was no superblock of generation 7");
}
