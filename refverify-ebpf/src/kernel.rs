//! Reading kernel memory.

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_get_current_task, bpf_probe_read_kernel_str},
};
use refverify_common::{ABSENT, ChunkTreeUuid, DeviceName};

use crate::maps::layout;

/// The `T` at `offset` in the object at address `base`; none if it cannot be read.
#[inline(always)]
pub(crate) fn read<T>(base: u64, offset: u32) -> Option<T> {
    let address = base.wrapping_add(u64::from(offset));
    // SAFETY: the helper checks the address, and fails on a bad one.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// The transaction handle of the current task (`current->journal_info`): btrfs keeps it there
/// from `start_transaction` to `btrfs_end_transaction`. 0 if there is none.
#[inline(always)]
pub(crate) fn current_trans() -> u64 {
    // SAFETY: the helper has no requirements.
    let task = unsafe { bpf_get_current_task() };
    read(task, layout!(task_journal_info)).unwrap_or(0)
}

/// The `btrfs_fs_info` and the transid of the transaction handle `trans`.
#[inline(always)]
pub(crate) fn fs_info_and_transid(trans: u64) -> Option<(u64, u64)> {
    Some((read(trans, layout!(trans_fs_info))?, read(trans, layout!(trans_transid))?))
}

/// What may be the `btrfs_fs_info` of `trans` as well, where its place is not certain.
#[inline(always)]
pub(crate) fn fs_info_elsewhere(trans: u64) -> Option<u64> {
    if layout!(trans_fs_info_or) == ABSENT {
        return None;
    }
    read(trans, layout!(trans_fs_info_or))
}

/// Whether [`device_of`] can be asked: whether the offset of `fs_info->fs_devices` is known.
#[inline(always)]
pub(crate) fn knows_devices() -> bool {
    layout!(fs_info_fs_devices) != ABSENT
}

/// The name of the device that a file system is mounted from. btrfs writes it into the super
/// block just before `open_ctree` (`btrfs_mount_root` in 5.10 and 6.1, `btrfs_get_tree_super` in
/// 6.12; `"%pg"` of `latest_bdev`). Only up to its end: what lies behind is left of the file
/// system's name, which `sget` wrote there first.
#[inline(always)]
pub(crate) fn device_name_of(super_block: u64) -> Option<DeviceName> {
    let mut name = [0; size_of::<DeviceName>()];
    let address = super_block.wrapping_add(u64::from(layout!(super_id)));
    // SAFETY: the target has as many bytes as are said; the helper checks the address.
    let len = unsafe {
        bpf_probe_read_kernel_str(name.as_mut_ptr().cast(), name.len() as u32, address as *const _)
    };
    (len > 0).then_some(name)
}

/// The chunk tree's UUID; zeros before `open_ctree` has read that tree's root, which it does
/// before it changes anything.
#[inline(always)]
pub(crate) fn chunk_tree_uuid_of(fs_info: u64) -> Option<ChunkTreeUuid> {
    read(fs_info, layout!(fs_info_chunk_tree_uuid))
}

/// The number of the device that the file system was mounted from, as the kernel keeps it
/// (`bd_dev`). Valid from `btrfs_open_devices`, before `open_ctree`, to
/// `btrfs_close_devices`, after the last commit. A file system without a device, as btrfs's
/// self-tests make at module load, has number 0, which no block device has; `None` is memory
/// that cannot be read.
#[inline(always)]
pub(crate) fn device_of(fs_info: u64) -> Option<u32> {
    let fs_devices = read::<u64>(fs_info, layout!(fs_info_fs_devices))?;
    if fs_devices == 0 {
        return Some(0);
    }
    let mut bdev = read::<u64>(fs_devices, layout!(fs_devices_latest))?;
    if layout!(device_bdev) != ABSENT && bdev != 0 {
        bdev = read(bdev, layout!(device_bdev))?;
    }
    if bdev == 0 {
        return Some(0);
    }
    read(bdev, layout!(bdev_dev))
}
