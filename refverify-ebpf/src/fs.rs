//! Whose event is it? Only watched file systems reach the ring buffer.
//!
//! A file system is known by the address of its `btrfs_fs_info`; the first time that one is
//! met its device decides, and the verdict is remembered until the file system goes. User
//! space hears of a watched one before its first event.

use refverify_common::{NOT_WATCHED, RecordKind, SLOT_UNKNOWN, SLOTS_MAX, unreadable_index};

use crate::{
    kernel,
    maps::{FILE_SYSTEMS, WATCHED},
    record::{self, Signal},
};

/// The slot of a file system, if it is watched.
#[inline(always)]
pub(crate) fn watched_slot(fs_info: u64) -> Option<u32> {
    match verdict(fs_info) {
        Some(verdict) => as_slot(verdict),
        None => learn(fs_info, RecordKind::FsSeen),
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
    Some((watched_slot(fs_info)?, transid))
}

/// A mount begins: whatever was known under this address is of the past.
#[inline(always)]
pub(crate) fn begin(fs_info: u64) {
    learn(fs_info, RecordKind::MountBegins);
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

/// Looks up a file system's device, tells user space if it is watched, and remembers the
/// verdict, unless telling failed: then the next event tries again.
#[inline(always)]
fn learn(fs_info: u64, kind: RecordKind) -> Option<u32> {
    let Some(device) = kernel::device_of(fs_info) else {
        record::count_loss(unreadable_index(SLOT_UNKNOWN));
        return None;
    };
    // SAFETY: the value is copied at once; user space has written it before attaching.
    let slot = unsafe { WATCHED.get(device) }.copied();
    if let Some(slot) = slot
        && !Signal::new(kind, slot, fs_info).emit()
    {
        return None;
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
