//! The second count of what the kprobes of references see; the programs compare the two themselves
//! ([`refverify_common::CrossCheck`]), and what was missed is told by [`super::losses`].
//!
//! It is taken by raw tracepoints, which keep the btrfs module loaded. So they are attached only
//! while a watched file system is mounted.

use aya::Ebpf;

use super::probes::{self, Attached, ProbeError, SECOND_COUNT};

/// Whether it is taken.
#[derive(Default)]
pub(super) struct SecondCount {
    attached: Vec<Attached>,
    /// Whether it is to be taken; it may not be possible.
    is_wanted: bool,
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
    pub(super) fn follow(&mut self, ebpf: &mut Ebpf, is_any_mounted: bool) {
        if is_any_mounted == self.is_wanted {
            return;
        }
        self.is_wanted = is_any_mounted;
        self.attached.clear();
        if is_any_mounted {
            match probes::attach(ebpf, SECOND_COUNT) {
                Ok(attached) => self.attached = attached,
                Err(error) => tracing::error!("missed probes are not noticed for now: {error}"),
            }
        }
    }

    /// Lets go.
    pub(super) fn let_go(&mut self) {
        self.attached.clear();
    }
}
