//! A counter that all CPUs share.
//!
//! On the eBPF target it is made of what kernels from 5.10 on know: loads and stores of a whole
//! word, and an addition that gives nothing back (`BPF_XADD`). Rust's own atomic methods are for
//! targets that can do more, and are not there.

use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering::Relaxed;

/// It may be read, set and added to by all at any time.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Word(AtomicU64);

#[cfg(not(target_arch = "bpf"))]
impl Word {
    pub(crate) fn load(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn store(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn add(&self, value: u64) {
        self.0.fetch_add(value, Relaxed);
    }
}

#[cfg(target_arch = "bpf")]
impl Word {
    #[inline(always)]
    pub(crate) fn load(&self) -> u64 {
        // SAFETY: valid and aligned; an aligned word is read by one instruction.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn store(&self, value: u64) {
        // SAFETY: as above, for writing.
        unsafe { self.0.as_ptr().write_volatile(value) }
    }

    #[inline(always)]
    pub(crate) fn add(&self, value: u64) {
        use core::intrinsics::{AtomicOrdering, atomic_xadd};
        // SAFETY: valid and aligned. What it gives back is not used, so that none is asked for.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(self.0.as_ptr(), value);
        }
    }
}
