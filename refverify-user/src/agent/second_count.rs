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
    ) -> Result<(), ProbeError> {
        if !is_any_mounted {
            self.attached.clear();
            return Ok(());
        }
        if !self.attached.is_empty() || self.failed_at.is_some_and(|at| at.elapsed() < TRY_AGAIN) {
            return Ok(());
        }
        self.failed_at = Some(Instant::now());
        self.attached = probes::attach(ebpf, SECOND_COUNT)?;
        self.failed_at = None;
        Ok(())
    }

    /// Lets go.
    pub(super) fn let_go(&mut self) {
        self.attached.clear();
    }
}
