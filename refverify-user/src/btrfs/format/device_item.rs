//! `DEV_ITEM`: what a file system knows of one of its devices.

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// `struct btrfs_dev_item`: in the chunk tree one for each device, and one in each superblock.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct DiskDeviceItem {
    devid: U64,
    total_bytes: U64,
    bytes_used: U64,
    io_align: U32,
    io_width: U32,
    sector_size: U32,
    device_type: U64,
    generation: U64,
    start_offset: U64,
    dev_group: U32,
    seek_speed: u8,
    bandwidth: u8,
    uuid: [u8; 16],
    fsid: [u8; 16],
}

/// A device of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceItem {
    /// Its id among those of the file system.
    pub devid: u64,
    /// The device's own id.
    pub uuid: Uuid,
    /// The `metadata_uuid` of the file system that it was added to: that of the seed, if it is
    /// a seed's. The tree blocks that were written then carry it.
    pub fsid: Uuid,
}

impl DeviceItem {
    /// Reads an item of the chunk tree; `None` if it is cut off.
    pub fn parse(item: &[u8]) -> Option<Self> {
        DiskDeviceItem::ref_from_prefix(item).ok().map(|(disk, _)| disk.into())
    }
}

impl From<&DiskDeviceItem> for DeviceItem {
    fn from(disk: &DiskDeviceItem) -> Self {
        Self {
            devid: disk.devid.get(),
            uuid: Uuid::from_bytes(disk.uuid),
            fsid: Uuid::from_bytes(disk.fsid),
        }
    }
}
