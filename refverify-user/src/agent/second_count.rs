//! The second count of what the kprobes of references see; the programs compare the two themselves
//! ([`refverify_common::CrossCheck`]), and what was missed is told by [`super::losses`].
//!
//! It is taken by raw tracepoints, which keep the btrfs module loaded. So they are attached only
//! while a watched file system is mounted.

use std::time::{Duration, Instant};

use aya::Ebpf;

use super::probes::{self, Attached, ProbeError, SECOND_COUNT};

/// Between two tries to attach.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What came of following the mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// Since the last time nothing can have been missed unnoticed.
    Unbroken,
    /// It is taken again, which it was not since the last try.
    Resumed,
}

/// Whether it is taken.
#[derive(Default)]
pub(super) struct SecondCount {
    attached: Vec<Attached>,
    /// When it could not be attached.
    failed_at: Option<Instant>,
}

impl SecondCount {
    /// Loads what is needed, and tries it out: nothing but attaching shows whether the kernel can.
    pub(super) fn prepare(ebpf: &mut Ebpf) -> Result<Self, ProbeError> {
        if let Some(hook) = SECOND_COUNT.first() {
            hook.load(ebpf)?;
        }
        probes::attach(ebpf, SECOND_COUNT)?;
        Ok(Self::default())
    }

    /// Attaches when the first watched file system is mounted, and lets go when none is any more.
    /// What fails is tried again after a while.
    pub(super) fn follow(
        &mut self,
        ebpf: &mut Ebpf,
        is_any_mounted: bool,
    ) -> Result<Followed, ProbeError> {
        if !is_any_mounted {
            self.attached.clear();
            self.failed_at = None;
            return Ok(Followed::Unbroken);
        }
        if !self.attached.is_empty() || self.failed_at.is_some_and(|at| at.elapsed() < TRY_AGAIN) {
            return Ok(Followed::Unbroken);
        }
        let before = self.failed_at.replace(Instant::now());
        self.attached = probes::attach(ebpf, SECOND_COUNT)?;
        self.failed_at = None;
        Ok(if before.is_some() { Followed::Resumed } else { Followed::Unbroken })
    }

    /// Lets go.
    pub(super) fn let_go(&mut self) {
        self.attached.clear();
    }
}
