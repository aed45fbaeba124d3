//! Counts a second time what the kprobes record, by raw tracepoints inside of the same calls.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::{cross_check, fs};

/// `add_delayed_tree_ref(fs_info, ...)` and `add_delayed_data_ref(fs_info, ...)`, attached only
/// while a watched file system is mounted: a raw tracepoint keeps the module loaded.
#[raw_tracepoint]
pub(crate) fn count_reference(ctx: RawTracePointContext) -> i32 {
    // What was not known to be watched when it entered is not counted here either.
    if let Some(slot) = fs::known_slot(ctx.arg(0)) {
        cross_check::fired(slot);
    }
    0
}
