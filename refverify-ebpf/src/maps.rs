//! The maps, and the layout of the running kernel.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use refverify_common::{ChunkTreeUuid, CrossCheck, DeviceName, Layout, Losses, SLOTS_MAX};

/// Offsets in this kernel's structures, filled in by user space before loading.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: Layout = Layout::UNKNOWN;

/// Reads one field of [`LAYOUT`]. Volatile, because user space replaces what the compiler
/// believes to be constant; to the kernel's verifier it is a constant again.
macro_rules! layout {
    ($field:ident) => {
        // SAFETY: a field of a static is aligned, initialised and never written.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::LAYOUT.$field) }
    };
}
pub(crate) use layout;

/// All records, in the order in which they were reserved on any CPU. User space sets the
/// size.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Device number (as the kernel keeps it) of each device of the watched file systems, to its
/// slot.
#[map]
pub(crate) static WATCHED: HashMap<u32, u32> = HashMap::with_max_entries(64 * SLOTS_MAX as u32, 0);

/// Their names, to their slots.
#[map]
pub(crate) static WATCHED_NAMES: HashMap<DeviceName, u32> =
    HashMap::with_max_entries(64 * SLOTS_MAX as u32, 0);

/// The chunk tree's UUID of the file system on each watched device, to its slot.
#[map]
pub(crate) static WATCHED_CHUNK_TREES: HashMap<ChunkTreeUuid, u32> =
    HashMap::with_max_entries(4 * SLOTS_MAX as u32, 0);

/// Address of each `btrfs_fs_info` met, to its slot or [`refverify_common::NOT_WATCHED`].
#[map]
pub(crate) static FILE_SYSTEMS: HashMap<u64, u32> = HashMap::with_max_entries(4096, 0);

/// What was lost, on each CPU.
#[map]
pub(crate) static LOSSES: PerCpuArray<Losses> = PerCpuArray::with_max_entries(1, 0);

/// The calls of each slot's file system, counted twice (kprobes only).
#[map]
pub(crate) static CALLS: Array<CrossCheck> = Array::with_max_entries(SLOTS_MAX as u32, 0);

/// The head that a thread touched last (tracepoints only). Its delayed ref follows at once,
/// in the same thread.
#[map]
pub(crate) static HEADS: LruHashMap<u32, Head> = LruHashMap::with_max_entries(16384, 0);

/// What `add_delayed_ref_head` showed.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Head {
    /// The extent.
    pub(crate) bytenr: u64,
    /// `enum btrfs_delayed_ref_action`, not yet converted.
    pub(crate) action: u64,
}
