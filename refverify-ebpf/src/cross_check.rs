//! Counts a second time what the kprobes record, by raw tracepoints inside of the same calls: see
//! [`CrossCheck`] for what that proves. A miss counts as a loss at once, and so before any finding
//! that rests on it can be told.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use refverify_common::{CrossCheck, missed_index};

use crate::{fs, maps::CALLS, record};

/// `add_delayed_tree_ref(fs_info, ...)` and `add_delayed_data_ref(fs_info, ...)`, attached only
/// while a watched file system is mounted: a raw tracepoint keeps the module loaded.
#[raw_tracepoint]
pub(crate) fn count_reference(ctx: RawTracePointContext) -> i32 {
    fired(ctx.arg(0));
    0
}

/// What was not known to be watched when it entered is not counted here either.
#[inline(always)]
fn fired(fs_info: u64) -> Option<()> {
    let slot = fs::known_slot(fs_info)?;
    if calls_of(slot)?.fire() {
        record::count_loss(missed_index(slot));
    }
    Some(())
}

/// A call of a watched file system has entered.
#[inline(always)]
pub(crate) fn entered(slot: u32, transid: u64) {
    if let Some(calls) = calls_of(slot) {
        calls.enter(transid);
    }
}

/// The file system in this slot is another one from now on.
#[inline(always)]
pub(crate) fn forget(slot: u32) {
    if let Some(calls) = calls_of(slot) {
        calls.forget();
    }
}

#[inline(always)]
fn calls_of(slot: u32) -> Option<&'static CrossCheck> {
    CALLS.get(slot)
}
