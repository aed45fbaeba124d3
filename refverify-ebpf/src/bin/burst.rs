//! Makes up changes in bulk, to see what the monitor does with more than any file system makes.
//! Never part of the monitor: `refverify-user/examples/burst.rs` loads it, beside one that runs.
//!
//! At each reference that the kernel makes, in the same transaction, it puts records of the same
//! form into the monitor's ring buffer, by the monitor's own code ([`record`]): so they are in
//! order, have the stack that the kernel has there, and are counted where they find no room. What
//! they tell is honest, unless [`WRONG`] asks for the opposite: an extent that lies where no device
//! reaches is allocated and dropped at once, so that nothing of it comes to be on disk.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "as in the monitor's programs"
)]

#[path = "../kernel.rs"]
#[expect(dead_code, reason = "it needs the transaction alone")]
mod kernel;
#[path = "../maps.rs"]
#[expect(dead_code, reason = "it pairs no heads")]
mod maps;
#[path = "../record.rs"]
#[expect(dead_code, reason = "it makes changes of references alone")]
mod record;

use aya_ebpf::{
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_kernel},
    macros::{map, raw_tracepoint},
    maps::{Array, HashMap, PerCpuArray},
    programs::RawTracePointContext,
};
use refverify_common::{
    PAYLOAD_MAX_BYTES, RecordKind, SLOTS_MAX,
    burst::{LIVES, MADE, MET, Made, Pace, STEP_NS, UNTIL_NS, WRONG},
    ring_full_index,
};

use maps::{FILE_SYSTEMS, LOSSES, layout};
use record::{ChangeOf, Payload};

/// How fast, and what.
#[map]
static PACE: Array<Pace> = Array::with_max_entries(1, 0);

/// What each CPU has made.
#[map]
static MADE_UP: PerCpuArray<Made> = PerCpuArray::with_max_entries(1, 0);

/// The transactions in which something made up here was lost.
#[map]
static LOST_IN: HashMap<u64, u64> = HashMap::with_max_entries(1 << 16, 0);

/// The delayed ref node that is made up on each CPU.
#[map]
static NODE: PerCpuArray<Node> = PerCpuArray::with_max_entries(1, 0);

/// A delayed ref node from its `bytenr` on.
type Node = [u64; PAYLOAD_MAX_BYTES / 8];

/// The most extents that one reference of the kernel's is followed by: the kernel's thread waits.
const LIVES_MAX: u64 = 128;

/// Past the end of any device.
const FIRST_BYTENR: u64 = 1 << 60;
/// Each CPU has its own: what one of them makes up is in order.
const CPU_SHIFT: u32 = 46;
/// So many are used, again and again. Those that are wrong lie behind them, each for itself.
const EXTENTS: u64 = 1 << 16;
/// Longer than any extent, and odd in units of the ledger's stripes, so that all cores get some.
const STRIDE: u64 = (128 + 16) << 20;

/// `enum btrfs_delayed_ref_action` (kernel: fs/btrfs/delayed-ref.h).
const DROP_DELAYED_REF: u32 = 2;
const ADD_DELAYED_EXTENT: u32 = 3;

/// `add_delayed_tree_ref(fs_info, node, ...)`
#[raw_tracepoint]
pub(crate) fn burst_tree_ref(ctx: RawTracePointContext) -> i32 {
    follow(&ctx, RecordKind::TreeRef, layout!(tree_start), layout!(tree_len_bytes));
    0
}

/// `add_delayed_data_ref(fs_info, node, ...)`
#[raw_tracepoint]
pub(crate) fn burst_data_ref(ctx: RawTracePointContext) -> i32 {
    follow(&ctx, RecordKind::DataRef, layout!(data_start), layout!(data_len_bytes));
    0
}

#[inline(always)]
fn follow(ctx: &RawTracePointContext, kind: RecordKind, start: u32, len_bytes: u32) -> Option<()> {
    let slot = slot_of(ctx.arg(0))?;
    // SAFETY: the entry is this CPU's own, and programs do not interrupt each other on it.
    let made = unsafe { &mut *MADE_UP.get_ptr_mut(0)? };
    made[MET] += 1;
    let (due, is_wrong) = due()?;
    let (_, transid) = kernel::fs_info_and_transid(kernel::current_trans())?;
    let from = ctx.arg::<u64>(1).wrapping_add(u64::from(start));
    let node = NODE.get_ptr_mut(0)?;
    // SAFETY: the target has as many bytes as are said; the helper checks the address.
    if unsafe { bpf_probe_read_kernel(node.cast(), size_of::<Node>() as u32, from as *const _) }
        != 0
    {
        return None;
    }
    let example = Example { kind, slot, transid, len_bytes, is_wrong, node };
    let lost_before = lost(slot);
    example.make(ctx, made, due);
    if lost(slot) != lost_before {
        let _ = LOST_IN.insert(transid, 1, 0);
    }
    Some(())
}

/// The slot of a file system that the monitor has met, and watches.
#[inline(always)]
fn slot_of(fs_info: u64) -> Option<u32> {
    // SAFETY: the value is one word and copied at once.
    let verdict = unsafe { FILE_SYSTEMS.get(fs_info) }.copied()?;
    ((verdict as usize) < SLOTS_MAX).then_some(verdict)
}

/// How many extents are due, and whether what is told of them is to be wrong.
#[inline(always)]
fn due() -> Option<(u64, bool)> {
    let pace = PACE.get_ptr_mut(0)?;
    // SAFETY: an entry of an array map stays. Others write it at the same time, word by word.
    let wishes = unsafe { pace.read_volatile() };
    let (step_ns, until_ns) = (wishes[STEP_NS], wishes[UNTIL_NS]);
    if step_ns == 0 {
        return None;
    }
    // SAFETY: the helper has no requirements.
    let behind_ns = unsafe { bpf_ktime_get_ns() }.checked_sub(until_ns)?;
    let due = (behind_ns / step_ns).min(LIVES_MAX);
    // Where another CPU does the same at this moment, both make what is due. What was made is
    // counted, so that is no more than a little haste.
    // SAFETY: as above.
    unsafe { (&raw mut (*pace)[UNTIL_NS]).write_volatile(until_ns + due * step_ns) };
    Some((due, wishes[WRONG] != 0))
}

/// A reference of the kernel's, after which others are made.
struct Example {
    kind: RecordKind,
    slot: u32,
    transid: u64,
    len_bytes: u32,
    is_wrong: bool,
    /// Its copy, and this CPU's own.
    node: *mut Node,
}

impl Example {
    #[inline(always)]
    fn make(&self, ctx: &RawTracePointContext, made: &mut Made, due: u64) {
        // SAFETY: the helper has no requirements.
        let cpu = u64::from(unsafe { bpf_get_smp_processor_id() } as u32);
        for life in 0..LIVES_MAX {
            if life >= due {
                return;
            }
            let lives = made[LIVES];
            let number = if self.is_wrong { EXTENTS + lives } else { lives % EXTENTS };
            let bytenr = FIRST_BYTENR + (cpu << CPU_SHIFT) + number * STRIDE;
            made[LIVES] += 1;
            if !self.is_wrong {
                self.emit(ctx, made, bytenr, ADD_DELAYED_EXTENT);
            }
            self.emit(ctx, made, bytenr, DROP_DELAYED_REF);
        }
    }

    #[inline(always)]
    fn emit(&self, ctx: &RawTracePointContext, made: &mut Made, bytenr: u64, action: u32) {
        let Self { kind, slot, transid, len_bytes, node, .. } = *self;
        made[MADE] += 1;
        // SAFETY: the node is a map's value and begins with its bytenr. Volatile, because it is read
        // by its address.
        unsafe { node.cast::<u64>().write_volatile(bytenr) };
        let payload = Payload::Node { address: node as u64, len_bytes, bytenr };
        ChangeOf { kind, slot, transid, action, payload }.emit(ctx);
    }
}

/// What this CPU has found no room for so far.
#[inline(always)]
fn lost(slot: u32) -> u64 {
    let Some(losses) = LOSSES.get_ptr(0) else { return 0 };
    // SAFETY: the entry is this CPU's own.
    unsafe { (*losses).get(ring_full_index(slot)).copied().unwrap_or(0) }
}

/// The helpers that read kernel memory are reserved to programs under the GPL.
#[cfg_attr(target_arch = "bpf", unsafe(link_section = "license"))]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the kernel's verifier refuses a program that could get here.
    loop {}
}

/// On the host there is nothing to run.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
