//! Whose event is it? Only watched file systems reach the ring buffer.
//!
//! A file system is known by the address of its `btrfs_fs_info`; the first time that one is
//! met its device decides, and the verdict is remembered until the file system goes. User
//! space hears of a watched one before its first event.
//!
//! Where the way from a `btrfs_fs_info` to its device is not known (the kernel does not describe
//! btrfs), a mount that begins is known by its device's name, and a file system that was mounted
//! before by its chunk tree's UUID.

use refverify_common::{NOT_WATCHED, RecordKind, SLOT_UNKNOWN, SLOTS_MAX, unreadable_index};

use crate::{
    cross_check, kernel,
    maps::{FILE_SYSTEMS, WATCHED, WATCHED_CHUNK_TREES, WATCHED_NAMES},
    record::{self, Signal},
};

/// The slot of a file system, if it is watched.
#[inline(always)]
pub(crate) fn watched_slot(fs_info: u64) -> Option<u32> {
    match verdict(fs_info) {
        Some(verdict) => as_slot(verdict),
        None if kernel::knows_devices() => learn(fs_info, RecordKind::FsSeen),
        None => learn_by_chunk_tree(fs_info),
    }
}

/// The slot of a file system, if it is known to be watched; nothing is looked up.
#[inline(always)]
pub(crate) fn known_slot(fs_info: u64) -> Option<u32> {
    as_slot(verdict(fs_info)?)
}

/// The slot and transid of a transaction handle, if its file system is watched.
#[inline(always)]
pub(crate) fn watched_trans(trans: u64) -> Option<(u32, u64)> {
    let Some((fs_info, transid)) = kernel::fs_info_and_transid(trans) else {
        record::count_loss(unreadable_index(SLOT_UNKNOWN));
        return None;
    };
    let slot = match watched_slot(fs_info) {
        None => watched_slot(kernel::fs_info_elsewhere(trans)?)?,
        Some(slot) => slot,
    };
    Some((slot, transid))
}

/// The same, if the file system is known to be watched; nothing is looked up or counted.
#[inline(always)]
pub(crate) fn known_trans(trans: u64) -> Option<(u32, u64)> {
    let (fs_info, transid) = kernel::fs_info_and_transid(trans)?;
    let slot = match known_slot(fs_info) {
        None => known_slot(kernel::fs_info_elsewhere(trans)?)?,
        Some(slot) => slot,
    };
    Some((slot, transid))
}

/// A mount begins: whatever was known under this address is of the past.
#[inline(always)]
pub(crate) fn begin(fs_info: u64) {
    learn(fs_info, RecordKind::MountBegins);
}

/// The same, where only the super block tells the device.
#[inline(always)]
pub(crate) fn begin_by_name(fs_info: u64, super_block: u64) {
    let Some(name) = kernel::device_name_of(super_block) else {
        return record::count_loss(unreadable_index(SLOT_UNKNOWN));
    };
    // SAFETY: the value is copied at once; user space has written it before attaching.
    let slot = unsafe { WATCHED_NAMES.get(name) }.copied();
    settle(fs_info, RecordKind::MountBegins, slot);
}

/// A file system goes; its address may be used again.
#[inline(always)]
pub(crate) fn end(fs_info: u64) {
    if let Some(slot) = known_slot(fs_info) {
        Signal::new(RecordKind::FsGone, slot, fs_info).emit();
    }
    // It may never have been met.
    let _ = FILE_SYSTEMS.remove(fs_info);
}

/// Looks up a file system's device, and settles the verdict.
#[inline(always)]
fn learn(fs_info: u64, kind: RecordKind) -> Option<u32> {
    let Some(device) = kernel::device_of(fs_info) else {
        record::count_loss(unreadable_index(SLOT_UNKNOWN));
        return None;
    };
    // SAFETY: the value is copied at once; user space has written it before attaching.
    let slot = unsafe { WATCHED.get(device) }.copied();
    settle(fs_info, kind, slot)
}

/// The same by the chunk tree of a file system whose mount was not seen. That it is not watched is
/// no verdict to remember: user space may not have read that UUID yet.
#[inline(always)]
fn learn_by_chunk_tree(fs_info: u64) -> Option<u32> {
    // What cannot be read is no `btrfs_fs_info`: `kernel::fs_info_elsewhere`.
    let uuid = kernel::chunk_tree_uuid_of(fs_info)?;
    // SAFETY: the value is one word and copied at once. Zeros are never in the map.
    let slot = unsafe { WATCHED_CHUNK_TREES.get(uuid) }.copied()?;
    settle(fs_info, RecordKind::FsSeen, Some(slot))
}

/// Tells user space of a watched file system, and remembers the verdict, unless telling failed:
/// then the next event tries again.
#[inline(always)]
fn settle(fs_info: u64, kind: RecordKind, slot: Option<u32>) -> Option<u32> {
    if let Some(slot) = slot {
        if !Signal::new(kind, slot, fs_info).emit() {
            return None;
        }
        cross_check::forget(slot);
    }
    // A full map only costs the look-up again.
    let _ = FILE_SYSTEMS.insert(fs_info, slot.unwrap_or(NOT_WATCHED), 0);
    slot
}

#[inline(always)]
fn verdict(fs_info: u64) -> Option<u32> {
    // SAFETY: the value is one word and copied at once.
    unsafe { FILE_SYSTEMS.get(fs_info) }.copied()
}

#[inline(always)]
fn as_slot(verdict: u32) -> Option<u32> {
    ((verdict as usize) < SLOTS_MAX).then_some(verdict)
}
