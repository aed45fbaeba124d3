//! The hooks on a kernel with kprobes: everything is seen.
//!
//! The functions are global in 5.10 to 7.3 and called across translation units, so they are
//! never inlined. Their arguments are quoted where they are read.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use refverify_common::{LoggedExtent, RecordKind, RemovedGroup, SLOT_UNKNOWN, unreadable_index};

use crate::{
    cross_check, fs, kernel,
    maps::layout,
    record::{self, ChangeOf, Payload, Signal},
};

/// `btrfs_add_delayed_tree_ref(trans, struct btrfs_ref *, extent_op)`
#[kprobe]
pub(crate) fn kprobe_tree_ref(ctx: ProbeContext) -> u32 {
    reference(&ctx, RecordKind::TreeRef, layout!(tree_start), layout!(tree_len_bytes));
    0
}

/// `btrfs_add_delayed_data_ref(trans, struct btrfs_ref *, reserved)`
#[kprobe]
pub(crate) fn kprobe_data_ref(ctx: ProbeContext) -> u32 {
    reference(&ctx, RecordKind::DataRef, layout!(data_start), layout!(data_len_bytes));
    0
}

#[inline(always)]
fn reference(ctx: &ProbeContext, kind: RecordKind, start: u32, len_bytes: u32) -> Option<()> {
    let (slot, transid) = fs::watched_trans(ctx.arg(0)?)?;
    cross_check::entered(slot, transid);
    let address = ctx.arg::<u64>(1)?.wrapping_add(u64::from(start));
    let payload = Payload::Kernel { address, len_bytes };
    ChangeOf { kind, slot, transid, action: 0, payload }.emit(ctx);
    Some(())
}

/// `btrfs_alloc_logged_file_extent(trans, root, owner, offset, struct btrfs_key *ins)`: log
/// replay inserts an extent item directly.
#[kprobe]
pub(crate) fn kprobe_logged_extent(ctx: ProbeContext) -> u32 {
    logged_extent(&ctx);
    0
}

#[inline(always)]
fn logged_extent(ctx: &ProbeContext) -> Option<()> {
    // struct btrfs_key is packed: objectid u64, type u8, offset u64.
    const KEY_OBJECTID: u32 = 0;
    const KEY_OFFSET: u32 = 9;
    let (slot, transid) = fs::watched_trans(ctx.arg(0)?)?;
    let ins = ctx.arg(4)?;
    let (Some(bytenr), Some(len_bytes)) =
        (kernel::read(ins, KEY_OBJECTID), kernel::read(ins, KEY_OFFSET))
    else {
        record::count_loss(unreadable_index(slot));
        return None;
    };
    let extent = LoggedExtent {
        bytenr,
        len_bytes,
        root: ctx.arg(1)?,
        owner: ctx.arg(2)?,
        offset: ctx.arg(3)?,
    };
    let payload = Payload::LoggedExtent(extent);
    ChangeOf { kind: RecordKind::LoggedExtent, slot, transid, action: 0, payload }.emit(ctx);
    Some(())
}

/// `btrfs_remove_block_group(trans, group_start, struct extent_map *)`, up to 6.7.
#[kprobe]
pub(crate) fn kprobe_remove_group_by_extent_map(ctx: ProbeContext) -> u32 {
    remove_group(&ctx, ctx.arg(2));
    0
}

/// `btrfs_remove_block_group(trans, struct btrfs_chunk_map *)`, from 6.8 on. A program of its
/// own: the kernel's verifier wants the argument's place to be a constant of the code.
#[kprobe]
pub(crate) fn kprobe_remove_group_by_chunk_map(ctx: ProbeContext) -> u32 {
    remove_group(&ctx, ctx.arg(1));
    0
}

#[inline(always)]
fn remove_group(ctx: &ProbeContext, map: Option<u64>) -> Option<()> {
    let (slot, transid) = fs::watched_trans(ctx.arg(0)?)?;
    let map = map?;
    let (Some(start), Some(len_bytes)) =
        (kernel::read(map, layout!(group_start)), kernel::read(map, layout!(group_len)))
    else {
        record::count_loss(unreadable_index(slot));
        return None;
    };
    let payload = Payload::RemovedGroup(RemovedGroup { start, len_bytes });
    ChangeOf { kind: RecordKind::RemoveGroup, slot, transid, action: 0, payload }.emit(ctx);
    Some(())
}

/// Return of `btrfs_add_delayed_tree_ref`.
#[kretprobe]
pub(crate) fn kretprobe_tree_ref(ctx: RetProbeContext) -> u32 {
    retract_if_failed(&ctx);
    0
}

/// Return of `btrfs_add_delayed_data_ref`.
#[kretprobe]
pub(crate) fn kretprobe_data_ref(ctx: RetProbeContext) -> u32 {
    retract_if_failed(&ctx);
    0
}

/// The arguments are gone on return, so the transaction that the task is in says whose call
/// failed. If it does not, user space is told of a failure that it cannot attribute.
#[inline(always)]
fn retract_if_failed(ctx: &RetProbeContext) {
    let errno: i32 = ctx.ret();
    if errno >= 0 {
        return;
    }
    let trans = kernel::current_trans();
    let signal = match fs::known_trans(trans) {
        Some((slot, transid)) => {
            cross_check::failed(slot);
            Signal::new(RecordKind::Retraction, slot, transid)
        }
        // It can be told, and the file system is not a watched one.
        None if kernel::fs_info_and_transid(trans).is_some() => return,
        None => Signal::new(RecordKind::Retraction, SLOT_UNKNOWN, 0),
    };
    signal.with_errno(errno).emit();
}

/// `btrfs_finish_extent_commit(trans)`: once per commit, after the superblocks are written,
/// before freed blocks can be reused.
#[kprobe]
pub(crate) fn kprobe_finish_extent_commit(ctx: ProbeContext) -> u32 {
    commit(&ctx);
    0
}

#[inline(always)]
fn commit(ctx: &ProbeContext) -> Option<()> {
    let (slot, transid) = fs::watched_trans(ctx.arg(0)?)?;
    Signal::new(RecordKind::Commit, slot, transid).emit();
    Some(())
}

/// `__btrfs_abort_transaction(trans, function, line, error, ...)`
#[kprobe]
pub(crate) fn kprobe_abort_transaction(ctx: ProbeContext) -> u32 {
    abort(&ctx);
    0
}

#[inline(always)]
fn abort(ctx: &ProbeContext) -> Option<()> {
    let (slot, transid) = fs::watched_trans(ctx.arg(0)?)?;
    Signal::new(RecordKind::Abort, slot, transid).with_errno(ctx.arg(3)?).emit();
    Some(())
}

/// `open_ctree(struct super_block *sb, ...)`: a mount begins, with its devices open.
#[kprobe]
pub(crate) fn kprobe_open_ctree(ctx: ProbeContext) -> u32 {
    open_ctree(&ctx);
    0
}

#[inline(always)]
fn open_ctree(ctx: &ProbeContext) -> Option<()> {
    let super_block = ctx.arg(0)?;
    match kernel::read(super_block, layout!(super_fs_info)) {
        Some(fs_info) if kernel::knows_devices() => fs::begin(fs_info),
        Some(fs_info) => fs::begin_by_name(fs_info, super_block),
        None => record::count_loss(unreadable_index(SLOT_UNKNOWN)),
    }
    Some(())
}

/// `close_ctree(fs_info)`: an unmount begins. A file system that was idle since the hooks are
/// live is met here at the latest, while its devices are open.
#[kprobe]
pub(crate) fn kprobe_close_ctree(ctx: ProbeContext) -> u32 {
    if let Some(fs_info) = ctx.arg(0) {
        fs::watched_slot(fs_info);
    }
    0
}

/// `btrfs_free_fs_info(fs_info)`: the end of an unmount, and of a mount that failed.
#[kprobe]
pub(crate) fn kprobe_free_fs_info(ctx: ProbeContext) -> u32 {
    if let Some(fs_info) = ctx.arg(0) {
        fs::end(fs_info);
    }
    0
}
