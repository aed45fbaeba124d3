//! How a record gets into the ring buffer, and what is counted when it does not.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_comm, bpf_get_smp_processor_id, bpf_get_stack, bpf_ktime_get_ns,
            bpf_probe_read_kernel,
        },
    },
};
use refverify_common::{
    Change, ChangeWithStack, FRAMES_MAX, LoggedExtent, PAYLOAD_MAX_BYTES, RecordKind, RemovedGroup,
    ring_full_index, unreadable_index,
};

use crate::maps::{LOSSES, RECORDS, layout};

/// User space polls; waking it for each record would cost more than the record.
const FLAGS: u64 = BPF_RB_NO_WAKEUP as u64;

/// Counts one lost record.
#[inline(always)]
pub(crate) fn count_loss(index: usize) {
    let Some(losses) = LOSSES.get_ptr_mut(0) else { return };
    // SAFETY: the entry is this CPU's own, and programs do not interrupt each other on it.
    if let Some(count) = unsafe { &mut *losses }.get_mut(index) {
        *count += 1;
    }
}

/// A signal to be.
pub(crate) struct Signal {
    kind: RecordKind,
    slot: u32,
    value: u64,
    errno: i32,
}

impl Signal {
    #[inline(always)]
    pub(crate) fn new(kind: RecordKind, slot: u32, value: u64) -> Self {
        Self { kind, slot, value, errno: 0 }
    }

    #[inline(always)]
    pub(crate) fn with_errno(self, errno: i32) -> Self {
        Self { errno, ..self }
    }

    /// Puts it into the ring buffer. False, and counted, if that is full.
    #[inline(always)]
    pub(crate) fn emit(self) -> bool {
        let Some(mut entry) = RECORDS.reserve::<refverify_common::Signal>(0) else {
            count_loss(ring_full_index(self.slot));
            return false;
        };
        entry.write(refverify_common::Signal {
            kind: self.kind as u32,
            slot: self.slot,
            // SAFETY: the helper has no requirements.
            time_ns: unsafe { bpf_ktime_get_ns() },
            value: self.value,
            errno: self.errno,
            tid: bpf_get_current_pid_tgid() as u32,
        });
        entry.submit(FLAGS);
        true
    }
}

/// Where a change's payload comes from.
pub(crate) enum Payload {
    /// So many bytes at this kernel address.
    Kernel { address: u64, len_bytes: u32 },
    /// So many bytes from the `bytenr` of a delayed ref node on, as long as it is this one: the
    /// node may be freed and used again between two looks.
    Node { address: u64, len_bytes: u32, bytenr: u64 },
    /// Arguments of `btrfs_alloc_logged_file_extent`.
    LoggedExtent(LoggedExtent),
    /// A block group's bounds.
    RemovedGroup(RemovedGroup),
}

/// A change to be.
pub(crate) struct ChangeOf {
    pub(crate) kind: RecordKind,
    pub(crate) slot: u32,
    pub(crate) transid: u64,
    pub(crate) action: u32,
    pub(crate) payload: Payload,
}

impl ChangeOf {
    /// Puts it into the ring buffer, with the stack if stacks are on. What is not possible is
    /// counted.
    #[inline(always)]
    pub(crate) fn emit(self, ctx: &impl EbpfContext) {
        if layout!(stacks) == 0 { self.emit_bare() } else { self.emit_with_stack(ctx) }
    }

    #[inline(always)]
    fn emit_bare(self) {
        let Some(mut entry) = RECORDS.reserve::<Change>(0) else {
            return count_loss(ring_full_index(self.slot));
        };
        if self.write(entry.as_mut_ptr()) {
            entry.submit(FLAGS);
        } else {
            count_loss(unreadable_index(self.slot));
            entry.discard(FLAGS);
        }
    }

    #[inline(always)]
    fn emit_with_stack(self, ctx: &impl EbpfContext) {
        let Some(mut entry) = RECORDS.reserve::<ChangeWithStack>(0) else {
            return count_loss(ring_full_index(self.slot));
        };
        let record = entry.as_mut_ptr();
        // SAFETY: `record` is the reserved memory of one ChangeWithStack.
        let (change, stack, stack_len_bytes) = unsafe {
            (
                &raw mut (*record).change,
                &raw mut (*record).stack,
                &raw mut (*record).stack_len_bytes,
            )
        };
        if !self.write(change) {
            count_loss(unreadable_index(self.slot));
            entry.discard(FLAGS);
            return;
        }
        let size = (FRAMES_MAX * size_of::<u64>()) as u32;
        let skip = u64::from(layout!(stack_skip_frames));
        // SAFETY: `stack` has `size` bytes, and `ctx` is this program's own context.
        let len = unsafe { bpf_get_stack(ctx.as_ptr(), stack.cast(), size, skip) };
        // SAFETY: part of the reserved record, as above.
        unsafe { stack_len_bytes.write(len) };
        entry.submit(FLAGS);
    }

    /// Fills a reserved record. False if the kernel object cannot be read.
    #[inline(always)]
    fn write(&self, record: *mut Change) -> bool {
        let pid_tgid = bpf_get_current_pid_tgid();
        // SAFETY: `record` is reserved memory of a Change, aligned to 8; each field is written
        // by its own pointer, since none is initialised yet. The helpers get as many bytes as
        // the fields have.
        unsafe {
            (&raw mut (*record).kind).write(self.kind as u32);
            (&raw mut (*record).slot).write(self.slot);
            (&raw mut (*record).time_ns).write(bpf_ktime_get_ns());
            (&raw mut (*record).transid).write(self.transid);
            (&raw mut (*record).cpu).write(bpf_get_smp_processor_id() as u32);
            (&raw mut (*record).pid).write((pid_tgid >> 32) as u32);
            (&raw mut (*record).tid).write(pid_tgid as u32);
            (&raw mut (*record).action).write(self.action);
            bpf_get_current_comm((&raw mut (*record).comm).cast(), 16);
            self.payload.write((&raw mut (*record).payload).cast())
        }
    }
}

impl Payload {
    /// # Safety
    ///
    /// `target` must have room for [`PAYLOAD_MAX_BYTES`] and be aligned to 8.
    #[inline(always)]
    unsafe fn write(&self, target: *mut u8) -> bool {
        match self {
            Self::Kernel { address, len_bytes } => {
                // SAFETY: as of this function.
                unsafe { copy(target, *address, *len_bytes) }
            }
            Self::Node { address, len_bytes, bytenr } => {
                // SAFETY: as of this function; the first word has been copied when it is read.
                unsafe {
                    copy(target, *address, *len_bytes)
                        && ptr::read(target.cast::<[u8; 8]>()) == bytenr.to_ne_bytes()
                }
            }
            Self::LoggedExtent(extent) => {
                // SAFETY: the target has room and is aligned.
                unsafe { ptr::write(target.cast(), *extent) };
                true
            }
            Self::RemovedGroup(group) => {
                // SAFETY: the target has room and is aligned.
                unsafe { ptr::write(target.cast(), *group) };
                true
            }
        }
    }
}

/// Copies kernel memory; false if it cannot be read.
///
/// # Safety
///
/// `target` must have room for [`PAYLOAD_MAX_BYTES`].
#[inline(always)]
unsafe fn copy(target: *mut u8, address: u64, len_bytes: u32) -> bool {
    let len = len_bytes.min(PAYLOAD_MAX_BYTES as u32);
    // SAFETY: the target has room; the helper checks the address.
    unsafe { bpf_probe_read_kernel(target.cast(), len, address as *const _) == 0 }
}
