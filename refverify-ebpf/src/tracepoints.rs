//! The hooks on a kernel without kprobes: raw tracepoints, the second best.
//!
//! They have no transaction among their arguments, but `current->journal_info` is its handle.
//! `add_delayed_{tree,data}_ref` show an allocation as ADD; the true action is an argument of
//! `add_delayed_ref_head`, which fires just before in the same task. They fire after the lock
//! is dropped, so the node may be another's by then: a node that does not match its head is
//! counted as unreadable.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid, macros::raw_tracepoint, programs::RawTracePointContext,
};
use refverify_common::{
    ABSENT, RecordKind, RemovedGroup, SLOT_UNKNOWN, commit_argument, unreadable_index,
};

use crate::{
    fs, kernel,
    maps::{HEADS, Head, layout},
    record::{self, ChangeOf, Payload, Signal},
};

/// `add_delayed_ref_head(fs_info, head, int action)`
#[raw_tracepoint]
pub(crate) fn tracepoint_ref_head(ctx: RawTracePointContext) -> i32 {
    ref_head(&ctx);
    0
}

#[inline(always)]
fn ref_head(ctx: &RawTracePointContext) -> Option<()> {
    let slot = fs::watched_slot(ctx.arg(0))?;
    let action = u64::from(ctx.arg::<u32>(2));
    let Some(bytenr) = kernel::read(ctx.arg(1), layout!(head_bytenr)) else {
        record::count_loss(unreadable_index(slot));
        return None;
    };
    let head = Head { bytenr, action };
    match HEADS.get_ptr_mut(tid()) {
        // In place: a replacement by the map itself costs several times as much.
        // SAFETY: no one but this thread touches the entry of its tid.
        Some(entry) => unsafe { entry.write(head) },
        None => {
            // If it fails, the node that follows will not match.
            let _ = HEADS.insert(tid(), head, 0);
        }
    }
    Some(())
}

/// `add_delayed_tree_ref(fs_info, node, ...)`
#[raw_tracepoint]
pub(crate) fn tracepoint_tree_ref(ctx: RawTracePointContext) -> i32 {
    reference(&ctx, RecordKind::TreeRef, layout!(tree_start), layout!(tree_len_bytes));
    0
}

/// `add_delayed_data_ref(fs_info, node, ...)`
#[raw_tracepoint]
pub(crate) fn tracepoint_data_ref(ctx: RawTracePointContext) -> i32 {
    reference(&ctx, RecordKind::DataRef, layout!(data_start), layout!(data_len_bytes));
    0
}

#[inline(always)]
fn reference(
    ctx: &RawTracePointContext,
    kind: RecordKind,
    start: u32,
    len_bytes: u32,
) -> Option<()> {
    let (fs_info, node) = (ctx.arg(0), ctx.arg::<u64>(1));
    let slot = fs::watched_slot(fs_info)?;
    let (Some(Head { bytenr, action }), Some(transid)) = (head_of(node), transid_in(fs_info))
    else {
        record::count_loss(unreadable_index(slot));
        return None;
    };
    let action = action as u32;
    let address = node.wrapping_add(u64::from(start));
    let payload = Payload::Node { address, len_bytes, bytenr };
    ChangeOf { kind, slot, transid, action, payload }.emit(ctx);
    Some(())
}

/// This thread's last head, if it is the head of `node`.
#[inline(always)]
fn head_of(node: u64) -> Option<Head> {
    // SAFETY: no one but this thread writes the entry of its tid.
    let head = unsafe { HEADS.get(tid()) }.copied()?;
    let bytenr: u64 = kernel::read(node, layout!(node_bytenr))?;
    (head.bytenr == bytenr).then_some(head)
}

/// The transid of the transaction that the task is in, if it is one of this file system.
#[inline(always)]
fn transid_in(fs_info: u64) -> Option<u64> {
    let (fs_info_of_trans, transid) = kernel::fs_info_and_transid(kernel::current_trans())?;
    (fs_info_of_trans == fs_info).then_some(transid)
}

/// `btrfs_remove_block_group(struct btrfs_block_group *)`
#[raw_tracepoint]
pub(crate) fn tracepoint_remove_group(ctx: RawTracePointContext) -> i32 {
    remove_group(&ctx);
    0
}

#[inline(always)]
fn remove_group(ctx: &RawTracePointContext) -> Option<()> {
    let group = ctx.arg(0);
    let Some(fs_info) = kernel::read(group, layout!(group_fs_info)) else {
        record::count_loss(unreadable_index(SLOT_UNKNOWN));
        return None;
    };
    let slot = fs::watched_slot(fs_info)?;
    let (Some(start), Some(len_bytes), Some(transid)) = (
        kernel::read(group, layout!(group_start)),
        kernel::read(group, layout!(group_len)),
        transid_in(fs_info),
    ) else {
        record::count_loss(unreadable_index(slot));
        return None;
    };
    let payload = Payload::RemovedGroup(RemovedGroup { start, len_bytes });
    ChangeOf { kind: RecordKind::RemoveGroup, slot, transid, action: 0, payload }.emit(ctx);
    Some(())
}

/// `btrfs_transaction_commit`: its argument differs by version, see [`commit_argument`].
#[raw_tracepoint]
pub(crate) fn tracepoint_commit(ctx: RawTracePointContext) -> i32 {
    if layout!(commit_argument) == commit_argument::TRANS {
        commit_by_trans(ctx.arg(0));
    } else {
        commit_by_fs_info(ctx.arg(0));
    }
    0
}

/// 7.2 and later: it fires at every state of the transaction; from `SUPER_COMMITTED` on the
/// superblocks are written.
#[inline(always)]
fn commit_by_trans(trans: u64) -> Option<()> {
    let (slot, transid) = fs::watched_trans(trans)?;
    let state = kernel::read(trans, layout!(trans_transaction))
        .and_then(|transaction| kernel::read::<u32>(transaction, layout!(transaction_state)));
    match state {
        None => record::count_loss(unreadable_index(slot)),
        Some(state) if state < layout!(state_super_committed) => {}
        Some(_) => {
            Signal::new(RecordKind::Commit, slot, transid).emit();
        }
    }
    Some(())
}

/// Up to 6.18 at least: once at the very end of a commit, and also when a failed transaction
/// is cleaned up.
#[inline(always)]
fn commit_by_fs_info(argument: u64) -> Option<()> {
    let fs_info = if layout!(commit_argument) == commit_argument::ROOT {
        kernel::read(argument, layout!(root_fs_info))?
    } else {
        argument
    };
    let slot = fs::watched_slot(fs_info)?;
    let (Some(committed), Some(running)) = (
        kernel::read(fs_info, layout!(fs_info_last_trans_committed)),
        kernel::read(fs_info, layout!(fs_info_generation)),
    ) else {
        record::count_loss(unreadable_index(slot));
        return None;
    };
    let errno = fs_error(fs_info);
    if errno < 0 {
        Signal::new(RecordKind::Abort, slot, running).with_errno(errno).emit();
    } else {
        Signal::new(RecordKind::Commit, slot, committed).emit();
    }
    Some(())
}

/// Why the file system stopped, or 0; `btrfs_fs_info.fs_error` came in 6.2.
#[inline(always)]
fn fs_error(fs_info: u64) -> i32 {
    if layout!(fs_info_fs_error) == ABSENT {
        return 0;
    }
    kernel::read(fs_info, layout!(fs_info_fs_error)).unwrap_or(0)
}

/// `btrfs_workqueue_alloc(wq, ...)`: `open_ctree` makes its work queues before it reads a
/// tree; the first one is the beginning of a mount.
#[raw_tracepoint]
pub(crate) fn tracepoint_workqueue_alloc(ctx: RawTracePointContext) -> i32 {
    workqueue_alloc(&ctx);
    0
}

#[inline(always)]
fn workqueue_alloc(ctx: &RawTracePointContext) -> Option<()> {
    let fs_info = kernel::read(ctx.arg(0), layout!(workqueue_fs_info))?;
    if fs::known_slot(fs_info).is_none() {
        fs::begin(fs_info);
    }
    Some(())
}

/// `btrfs_workqueue_destroy(wq)`: of all the queues only `fs_info->workers` lives exactly as
/// long as the mount (scrub made its own ones up to 5.18), and `close_ctree` stops it after
/// the last commit.
#[raw_tracepoint]
pub(crate) fn tracepoint_workqueue_destroy(ctx: RawTracePointContext) -> i32 {
    workqueue_destroy(&ctx);
    0
}

#[inline(always)]
fn workqueue_destroy(ctx: &RawTracePointContext) -> Option<()> {
    let wq = ctx.arg(0);
    let fs_info = kernel::read(wq, layout!(workqueue_fs_info))?;
    let workers: u64 = kernel::read(fs_info, layout!(fs_info_workers))?;
    if workers == wq {
        // One that was idle since the hooks are live is met here at the latest.
        fs::watched_slot(fs_info);
        fs::end(fs_info);
    }
    Some(())
}

#[inline(always)]
fn tid() -> u32 {
    bpf_get_current_pid_tgid() as u32
}
