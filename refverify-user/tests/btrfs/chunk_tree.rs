//! The UUID that tells a mounted file system from others, as it is read from a device.

use std::cell::RefCell;

use bytes::Bytes;
use refverify_user::btrfs::{
    ChunkTreeError, chunk_tree_uuid,
    format::{BlockFault, ReadFailure, SUPERBLOCK_LEN_BYTES, SUPERBLOCK_OFFSET, Superblock},
    reader::BlockRead,
};
use uuid::{Uuid, uuid};

use crate::{hazards::sound_device, synthetic::Device};

const UUID: Uuid = uuid!("01234567-89ab-cdef-0123-456789abcdef");
/// Where a tree block's header has it.
const UUID_AT: usize = 64;

fn read_part(device: &Device, offset: u64, len_bytes: u32) -> Result<Bytes, ReadFailure> {
    device.read(&BlockRead { id: 0, devid: 0, offset, len_bytes })
}

fn uuid_on(device: &Device) -> Result<Uuid, ChunkTreeError> {
    chunk_tree_uuid(|piece| read_part(device, piece.offset, piece.len_bytes))
}

fn chunk_root(device: &Device) -> u64 {
    let block = read_part(device, SUPERBLOCK_OFFSET, SUPERBLOCK_LEN_BYTES).unwrap();
    Superblock::parse(&block).unwrap().chunk_root
}

/// A device whose chunk tree's root, and nothing else, carries [`UUID`].
fn marked_device() -> Device {
    let mut device = sound_device();
    device.edit_block(chunk_root(&device), |block| {
        block[UUID_AT..][..16].copy_from_slice(UUID.as_bytes());
    });
    device
}

#[test]
fn the_uuid_is_that_of_the_chunk_trees_root() {
    assert_eq!(uuid_on(&marked_device()), Ok(UUID));
}

#[test]
fn a_bad_first_copy_is_passed_over_and_two_bad_ones_are_an_error() {
    let mut device = marked_device();
    let copies = Device::places(chunk_root(&device));
    device.bytes[copies[0] + 200] ^= 1;
    assert_eq!(uuid_on(&device), Ok(UUID));
    device.bytes[copies[1] + 200] ^= 1;
    let error = uuid_on(&device).expect_err("no good copy");
    assert!(matches!(error, ChunkTreeError::Root { fault: BlockFault::Checksum, .. }), "{error}");
}

#[test]
fn a_root_that_was_overwritten_after_the_superblock_was_read_is_an_error() {
    let device = RefCell::new(marked_device());
    let result = chunk_tree_uuid(|piece| {
        let data = read_part(&device.borrow(), piece.offset, piece.len_bytes);
        let root = chunk_root(&device.borrow());
        device.borrow_mut().edit_block(root, |block| {
            block[80] += 1;
        });
        data
    });
    assert!(
        matches!(result, Err(ChunkTreeError::Root { fault: BlockFault::Generation { .. }, .. })),
        "{result:?}"
    );
}

#[test]
fn zeros_are_no_uuid_since_the_kernel_has_them_before_it_knows() {
    let mut device = marked_device();
    device.edit_block(chunk_root(&device), |block| {
        block[UUID_AT..][..16].fill(0);
    });
    assert_eq!(uuid_on(&device), Err(ChunkTreeError::Zero));
}

#[test]
fn a_device_without_btrfs_is_an_error() {
    let error = chunk_tree_uuid(|piece| Ok(Bytes::from(vec![0; piece.len_bytes as usize])));
    assert!(matches!(error, Err(ChunkTreeError::Superblock(_))), "{error:?}");
    let failed = ReadFailure::new("a broken device");
    let error = chunk_tree_uuid(|_| Err(failed.clone()));
    assert_eq!(error, Err(ChunkTreeError::SuperblockUnreadable(failed)));
}
