//! What a hostile or broken device can hold, by name. Every checksum is valid, save where a
//! test says otherwise.

mod blocks;
mod items;
mod superblocks;

use refverify_user::btrfs::{
    format::{BlockFault, Key, item_type},
    reader::{ExtentReader, ReaderError},
};

use crate::{
    image::{ALL, Told, drive},
    synthetic::{Device, device_with_leaves, extent_item, inline_data_ref, key},
};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn read(device: &Device) -> Told {
    drive(&mut ExtentReader::new(ALL, 0), |read| device.read(read))
}

pub(crate) fn data_item(bytenr: u64, refs: &[Vec<u8>]) -> (Key, Vec<u8>) {
    (key(bytenr, item_type::EXTENT_ITEM, 4096), extent_item(refs.len() as u64, true, refs))
}

/// An extent with one sound reference.
pub(crate) fn sound_item(bytenr: u64) -> (Key, Vec<u8>) {
    data_item(bytenr, &[inline_data_ref(5, 257, 0, 1)])
}

/// A device with one leaf of these items.
pub(crate) fn device_with(items: Vec<(Key, Vec<u8>)>) -> Device {
    device_with_leaves(&[items])
}

/// Two leaves of one sound extent each.
pub(crate) fn sound_device() -> Device {
    device_with_leaves(&[vec![sound_item(MIB)], vec![sound_item(2 * MIB)]])
}

pub(crate) fn bad_block(told: &Told) -> (u64, BlockFault) {
    match &told.failed {
        Some(ReaderError::BadBlock { pointer, faults }) => {
            assert_eq!(faults.len(), 2, "both mirrors were to be tried");
            (pointer.bytenr, faults[0].clone())
        }
        other => panic!("not a bad block: {other:?}"),
    }
}
