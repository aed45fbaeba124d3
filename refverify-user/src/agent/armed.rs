//! The hooks in force, with all that belongs to them.
//!
//! Probes in a module die with it, and do not come back. So they are made anew, from the kernel's
//! types on, each time that the module is loaded: it may be another build.

use std::{mem, sync::Arc};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, RingBuf},
};
use refverify_common::Losses;

use super::{
    AgentError,
    btf::KernelTypes,
    decode::Decoder,
    device::Device,
    layout::KernelLayout,
    losses::LossCounters,
    module::{self, Loading},
    mounts::Mounts,
    preflight,
    probes::{self, Attached, ProbeError},
    second_count::{Followed, SecondCount},
    symbols::Symbols,
};
use crate::feed::{Hello, HookMode};

/// What is to be armed.
#[derive(Debug)]
pub(super) struct Arming {
    pub(super) devices: Arc<[Device]>,
    /// Whether the stack of each change is recorded.
    pub(super) stacks: bool,
    pub(super) ring_bytes: u32,
}

/// As long as this lives, every change of a watched file system is recorded, unless the module goes.
pub(super) struct Armed {
    pub(super) ring: RingBuf<MapData>,
    pub(super) decoder: Decoder,
    pub(super) losses: LossCounters,
    pub(super) mounts: Mounts,
    /// The module that the hooks are in.
    pub(super) loading: Option<Loading>,
    attached: Vec<Attached>,
    /// None where the kernel does not have both kinds of hooks.
    second_count: Option<SecondCount>,
    /// The loaded programs; their counters are read until the very end.
    ebpf: Ebpf,
}

impl Arming {
    /// Loads and attaches. Says who speaks, and what it can see. The kernel's symbols, which take a
    /// while to read, had to be read for it.
    pub(super) fn arm(&self) -> Result<(Armed, Hello, Symbols), AgentError> {
        // Before all else: one that is loaded meanwhile is another one.
        let loading = module::loading().map_err(AgentError::Module)?;
        let types = KernelTypes::of_running_kernel()?;
        let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut symbols = Symbols::default();
        let mut functions = |names| symbols.ranges_of(names).unwrap_or_default();
        let (mode, mut layout) = if preflight::has_kprobes() {
            let has_ref_verify = !functions(probes::REF_VERIFY).is_empty();
            let layout = KernelLayout::for_kprobes(&types, &kernel_release, has_ref_verify)?;
            (HookMode::Kprobes, layout)
        } else {
            (HookMode::Tracepoints, KernelLayout::for_tracepoints(&types)?)
        };
        drop(types);
        let tracing = functions(probes::TRACING);
        layout.ebpf.stacks = u32::from(self.stacks);
        let (hooks, mut unseen) = probes::hooks(mode, layout.group_bound);
        unseen.extend(layout.unseen());
        let devices = &self.devices;
        let (mut ebpf, watched) = probes::load(&hooks, &layout.ebpf, devices, self.ring_bytes)?;
        let ring = probes::ring(&mut ebpf)?;
        let losses = LossCounters::new(losses_map(&mut ebpf)?, &ebpf)?;
        let chunk_trees = if layout.knows_devices() {
            None
        } else {
            Some(probes::chunk_trees(&mut ebpf, devices.len())?)
        };
        let mounts = Mounts::new(Arc::clone(devices), mode, chunk_trees, Some(watched));
        let attached = probes::attach(&mut ebpf, &hooks)?;
        let second_count = match mode {
            HookMode::Kprobes => prepare_second_count(&mut ebpf),
            HookMode::Tracepoints => None,
        };
        if mode == HookMode::Kprobes {
            unseen.extend(probes::skipped_uncounted(&kernel_release, second_count.is_some()));
        }
        let hello = Hello {
            kernel_release,
            mode,
            hooks: hooks.iter().map(probes::Hook::label).collect(),
            unseen: unseen.into_iter().map(str::to_owned).collect(),
            devices: devices.iter().map(|device| device.given.display().to_string()).collect(),
        };
        let slots = u32::try_from(devices.len()).unwrap_or(0);
        let decoder = Decoder::new(&layout, slots, tracing);
        let armed = Armed { ring, decoder, losses, mounts, loading, attached, second_count, ebpf };
        Ok((armed, hello, symbols))
    }
}

impl Armed {
    /// Lets the hooks go. What they have recorded stays.
    pub(super) fn let_go(&mut self) {
        self.let_go_of_beginnings();
        self.attached.clear();
    }

    /// Lets all hooks go but those that tell how a call ended.
    pub(super) fn let_go_of_beginnings(&mut self) {
        // First: calls that only this counts would be taken for missed ones.
        if let Some(count) = &mut self.second_count {
            count.let_go();
        }
        let attached = mem::take(&mut self.attached).into_iter();
        let (ends, mut beginnings): (Vec<_>, Vec<_>) = attached.partition(Attached::is_end);
        self.attached = ends;
        // What was attached last sees only what the others see too.
        while beginnings.pop().is_some() {}
    }

    /// Counts a second time while, as far as has been told, a watched file system is mounted.
    pub(super) fn count_while_mounted(&mut self) -> Result<Followed, ProbeError> {
        let is_any_mounted = self.mounts.is_any_mounted();
        match &mut self.second_count {
            Some(count) => count.follow(&mut self.ebpf, is_any_mounted),
            None => Ok(Followed::Unbroken),
        }
    }

    /// Whether the hooks are in force, as far as this side has let them.
    pub(super) fn is_in_force(&self) -> bool {
        !self.attached.is_empty()
    }
}

fn prepare_second_count(ebpf: &mut Ebpf) -> Option<SecondCount> {
    let prepared = SecondCount::prepare(ebpf);
    prepared.inspect_err(|error| tracing::warn!("missed probes are not noticed: {error}")).ok()
}

fn losses_map(ebpf: &mut Ebpf) -> Result<PerCpuArray<MapData, Losses>, ProbeError> {
    let name = "LOSSES";
    let map = ebpf.take_map(name).ok_or(ProbeError::Missing { name })?;
    PerCpuArray::try_from(map).map_err(|source| ProbeError::Map { name, source })
}
