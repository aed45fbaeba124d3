//! Loading and attaching.

use std::time::Duration;

use aya::{
    Ebpf, EbpfError, EbpfLoader, Pod,
    maps::{HashMap, MapData, MapError, RingBuf},
    programs::{
        KProbe, ProgramError, RawTracePoint, kprobe::KProbeLink, raw_trace_point::RawTracePointLink,
    },
};
use refverify_common::Layout;
use rustix::process::{Resource, Rlimit, setrlimit};
use zerocopy::IntoBytes;

use super::{
    chunk_trees::ChunkTrees,
    device::Device,
    layout::{GroupBound, version_of},
    watched::WatchedDevices,
};
use crate::feed::HookMode;

/// The programs, as the build script made them.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/refverify-ebpf"));

/// The programs cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The object as a whole.
    #[error("loading the eBPF programs failed: {0}")]
    Object(#[from] EbpfError),
    /// A map.
    #[error("setting up the map {name} of the eBPF programs failed: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// One program is refused by the kernel's verifier.
    #[error("the kernel refuses the eBPF program {program}: {source}")]
    Load {
        /// Its name.
        program: &'static str,
        /// Why.
        source: ProgramError,
    },
    /// One hook is not there.
    #[error("cannot attach to {target}: {source}; is the btrfs module loaded?")]
    Attach {
        /// The function or tracepoint.
        target: &'static str,
        /// Why.
        source: ProgramError,
    },
    /// Part of the object is not as expected: a mistake in the build.
    #[error("the eBPF object has no {name}; build again")]
    Missing {
        /// Its name.
        name: &'static str,
    },
}

/// One hook: a program, and the function or tracepoint that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    program: &'static str,
    target: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kprobe,
    Kretprobe,
    Tracepoint,
}

impl Hook {
    const fn entry(program: &'static str, target: &'static str) -> Self {
        Self { program, target, kind: Kind::Kprobe }
    }

    const fn exit(program: &'static str, target: &'static str) -> Self {
        Self { program, target, kind: Kind::Kretprobe }
    }

    const fn tracepoint(program: &'static str, target: &'static str) -> Self {
        Self { program, target, kind: Kind::Tracepoint }
    }

    /// As it is named to people: `kretprobe:btrfs_add_delayed_tree_ref`.
    pub(super) fn label(&self) -> String {
        let kind = match self.kind {
            Kind::Kprobe => "kprobe",
            Kind::Kretprobe => "kretprobe",
            Kind::Tracepoint => "raw_tracepoint",
        };
        format!("{kind}:{}", self.target)
    }

    pub(super) fn load(&self, ebpf: &mut Ebpf) -> Result<(), ProbeError> {
        let program =
            ebpf.program_mut(self.program).ok_or(ProbeError::Missing { name: self.program })?;
        let loaded = match self.kind {
            Kind::Tracepoint => {
                <&mut RawTracePoint>::try_from(program).and_then(RawTracePoint::load)
            }
            Kind::Kprobe | Kind::Kretprobe => {
                <&mut KProbe>::try_from(program).and_then(KProbe::load)
            }
        };
        loaded.map_err(|source| ProbeError::Load { program: self.program, source })
    }

    fn attach(&self, ebpf: &mut Ebpf) -> Result<Attached, ProbeError> {
        let program =
            ebpf.program_mut(self.program).ok_or(ProbeError::Missing { name: self.program })?;
        let attached = match self.kind {
            Kind::Tracepoint => <&mut RawTracePoint>::try_from(program).and_then(|program| {
                let link = program.attach(self.target)?;
                program.take_link(link).map(Attached::Tracepoint)
            }),
            Kind::Kprobe | Kind::Kretprobe => {
                <&mut KProbe>::try_from(program).and_then(|program| {
                    let link = program.attach(self.target, 0)?;
                    let link = program.take_link(link)?;
                    Ok(match self.kind {
                        Kind::Kretprobe => Attached::Kretprobe(link),
                        _ => Attached::Kprobe(link),
                    })
                })
            }
        };
        attached.map_err(|source| ProbeError::Attach { target: self.target, source })
    }
}

/// The hooks with kprobes, in the order in which they are attached: returns before entries, so
/// that no failed call is seen without its return; the beginning of a mount last, because a
/// mount whose beginning is seen counts as one of which nothing was missed. None of them keeps the
/// module loaded, as a raw tracepoint does; with the module they die, see [`super::armed`].
/// `btrfs_alloc_logged_file_extent` has no return probe: it makes events
/// of its own inside, so that its own is not the thread's last one when it fails; and when it
/// fails, so does the mount.
const KPROBES: &[Hook] = &[
    Hook::entry("kprobe_free_fs_info", "btrfs_free_fs_info"),
    Hook::entry("kprobe_close_ctree", "close_ctree"),
    Hook::entry("kprobe_finish_extent_commit", "btrfs_finish_extent_commit"),
    Hook::entry("kprobe_abort_transaction", "__btrfs_abort_transaction"),
    Hook::exit("kretprobe_tree_ref", "btrfs_add_delayed_tree_ref"),
    Hook::exit("kretprobe_data_ref", "btrfs_add_delayed_data_ref"),
    Hook::entry("kprobe_logged_extent", "btrfs_alloc_logged_file_extent"),
    Hook::entry("kprobe_tree_ref", "btrfs_add_delayed_tree_ref"),
    Hook::entry("kprobe_data_ref", "btrfs_add_delayed_data_ref"),
    Hook::entry("kprobe_open_ctree", "open_ctree"),
];

/// The hooks without kprobes; heads before nodes, so that every node finds its head, and the
/// beginning of a mount last, as above.
const TRACEPOINTS: &[Hook] = &[
    Hook::tracepoint("tracepoint_workqueue_destroy", "btrfs_workqueue_destroy"),
    Hook::tracepoint("tracepoint_commit", "btrfs_transaction_commit"),
    Hook::tracepoint("tracepoint_ref_head", "add_delayed_ref_head"),
    Hook::tracepoint("tracepoint_tree_ref", "add_delayed_tree_ref"),
    Hook::tracepoint("tracepoint_data_ref", "add_delayed_data_ref"),
    Hook::tracepoint("tracepoint_workqueue_alloc", "btrfs_workqueue_alloc"),
];

/// What counts a second time what the kprobes of references see, to find those that the kernel
/// missed. One program serves both; see [`super::second_count`] for when they are attached.
pub(super) const SECOND_COUNT: &[Hook] = &[
    Hook::tracepoint("count_reference", "add_delayed_tree_ref"),
    Hook::tracepoint("count_reference", "add_delayed_data_ref"),
];

/// What the names of functions begin with that run the programs of one tracepoint, when there
/// are several.
pub(super) const TRACING: &[&str] =
    &["__traceiter_add_delayed_", "__traceiter_btrfs_remove_block_group"];

/// What a kernel with `CONFIG_BTRFS_FS_REF_VERIFY` has.
pub(super) const REF_VERIFY: &[&str] = &["btrfs_ref_tree_mod"];

/// How the removal of a block group is told.
const fn remove_group(bound: GroupBound) -> Hook {
    let target = "btrfs_remove_block_group";
    match bound {
        GroupBound::ExtentMap => Hook::entry("kprobe_remove_group_by_extent_map", target),
        GroupBound::ChunkMap => Hook::entry("kprobe_remove_group_by_chunk_map", target),
        GroupBound::BlockGroup => Hook::tracepoint("tracepoint_remove_group", target),
    }
}

/// What a set of hooks cannot see, one sentence each.
const UNSEEN_BY_TRACEPOINTS: &[&str] = &[
    "A call that fails is not taken back: after an out-of-memory error in btrfs a finding may be \
     false.",
    "Extents that log replay allocates are not seen; after a mount that replays a log, checking \
     begins with the transaction after the replay.",
    "An aborted transaction is noticed when it is cleaned up, not when it is aborted, and before \
     6.2 not at all.",
    "A reference that is run and freed before its tracepoint fires is counted as lost.",
];

const UNSEEN_BY_KPROBES: &[&str] =
    &["A failed call is not taken back if more threads are inside btrfs_add_delayed_tree_ref or \
     btrfs_add_delayed_data_ref at that moment than the kernel has return probes for (twice the \
     number of CPUs, at least 10)."];

const SKIPPED_KPROBES_UNCOUNTED: &str = "Probes that the kernel skips because another program runs on the same CPU are not counted \
     before 6.7.";

const SKIPPED_KPROBES_BUT_REFERENCES_UNCOUNTED: &str = "Probes that the kernel skips because another program runs on the same CPU are not counted \
     before 6.7, but for those of references and commits: the removal of a block group, an abort or \
     what log replay allocates may be missed.";

const NO_REMOVE_GROUP: &str = "The removal of a block group is not seen.";

/// The hooks that `mode` uses on a kernel with this layout, and what they cannot see.
pub(super) fn hooks(
    mode: HookMode,
    group_bound: Option<GroupBound>,
) -> (Vec<Hook>, Vec<&'static str>) {
    let (hooks, unseen) = match mode {
        HookMode::Kprobes => (KPROBES, UNSEEN_BY_KPROBES),
        HookMode::Tracepoints => (TRACEPOINTS, UNSEEN_BY_TRACEPOINTS),
    };
    let (mut hooks, mut unseen) = (hooks.to_vec(), unseen.to_vec());
    match group_bound {
        // Before the events that go into the group's space when it is used again.
        Some(bound) => hooks.insert(0, remove_group(bound)),
        None => unseen.push(NO_REMOVE_GROUP),
    }
    (hooks, unseen)
}

/// Which kprobes the kernel may skip without a word. From 6.7 on it counts them (`trace_call_bpf`);
/// before, only the second count shows those of references, and a commit's by the next commit.
pub(super) fn skipped_uncounted(release: &str, is_counted_twice: bool) -> Option<&'static str> {
    match (version_of(release), is_counted_twice) {
        ((6, 7..) | (7.., _), _) => None,
        (_, true) => Some(SKIPPED_KPROBES_BUT_REFERENCES_UNCOUNTED),
        (_, false) => Some(SKIPPED_KPROBES_UNCOUNTED),
    }
}

/// Loads what `hooks` need, with the watched devices known to the programs, but attaches
/// nothing yet.
pub(super) fn load(
    hooks: &[Hook],
    layout: &Layout,
    devices: &[Device],
    ring_bytes: u32,
) -> Result<(Ebpf, WatchedDevices), ProbeError> {
    // Kernels before 5.11 charge maps to this limit; if it cannot be raised, creating them
    // fails and says so.
    let unlimited = Rlimit { current: None, maximum: None };
    let _ = setrlimit(Resource::Memlock, unlimited);
    let mut ebpf = EbpfLoader::new()
        .override_global("LAYOUT", layout.as_bytes(), true)
        .map_max_entries("RECORDS", ring_bytes)
        .load(PROGRAMS)?;
    let watched = watch(&mut ebpf, devices)?;
    for hook in hooks {
        hook.load(&mut ebpf)?;
    }
    Ok((ebpf, watched))
}

/// One hook in force; dropping it lets go.
#[expect(dead_code, reason = "held for what dropping it does")]
pub(super) enum Attached {
    /// A kprobe.
    Kprobe(KProbeLink),
    /// A kretprobe.
    Kretprobe(KProbeLink),
    /// A raw tracepoint.
    Tracepoint(RawTracePointLink),
}

impl Attached {
    /// Whether it tells how a call ended.
    pub(super) const fn is_end(&self) -> bool {
        matches!(self, Self::Kretprobe(_))
    }
}

/// Attaches all hooks. When this returns, everything is seen, as long as the result lives.
pub(super) fn attach(ebpf: &mut Ebpf, hooks: &[Hook]) -> Result<Vec<Attached>, ProbeError> {
    hooks.iter().map(|hook| hook.attach(ebpf)).collect()
}

/// Takes the ring buffer out of the loaded object.
pub(super) fn ring(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, ProbeError> {
    let name = "RECORDS";
    let map = ebpf.take_map(name).ok_or(ProbeError::Missing { name })?;
    RingBuf::try_from(map).map_err(|source| ProbeError::Map { name, source })
}

/// Takes out of the loaded object what tells chunk trees apart.
pub(super) fn chunk_trees(ebpf: &mut Ebpf, slots: usize) -> Result<ChunkTrees, ProbeError> {
    Ok(ChunkTrees::new(hash_map(ebpf, "WATCHED_CHUNK_TREES")?, slots))
}

/// Makes the watched devices known.
fn watch(ebpf: &mut Ebpf, devices: &[Device]) -> Result<WatchedDevices, ProbeError> {
    let name = "WATCHED";
    let numbers = hash_map(ebpf, name)?;
    let names = hash_map(ebpf, "WATCHED_NAMES")?;
    let mut watched = WatchedDevices::new(numbers, names, hash_map(ebpf, "FILE_SYSTEMS")?);
    for (slot, device) in (0..).zip(devices) {
        watched
            .tell(slot, device, Duration::ZERO)
            .map_err(|source| ProbeError::Map { name, source })?;
    }
    Ok(watched)
}

fn hash_map<K: Pod, V: Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, ProbeError> {
    let map = ebpf.take_map(name).ok_or(ProbeError::Missing { name })?;
    HashMap::try_from(map).map_err(|source| ProbeError::Map { name, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_count_skipped_probes_is_named_as_such() {
        for release in ["5.10.0-30-amd64", "6.1.0-53-amd64", "strange"] {
            assert_eq!(skipped_uncounted(release, false), Some(SKIPPED_KPROBES_UNCOUNTED));
            let but_references = Some(SKIPPED_KPROBES_BUT_REFERENCES_UNCOUNTED);
            assert_eq!(skipped_uncounted(release, true), but_references);
        }
        for release in ["6.7.0", "6.12.107+deb13-amd64", "7.0.1", "10.0-rc1"] {
            assert_eq!(skipped_uncounted(release, false), None);
        }
    }

    #[test]
    fn without_the_tracepoint_the_removal_of_groups_is_said_to_be_unseen() {
        let (hooks_without, unseen) = hooks(HookMode::Tracepoints, None);
        assert!(unseen.contains(&NO_REMOVE_GROUP));
        let bound = Some(GroupBound::BlockGroup);
        let (hooks_with, unseen) = hooks(HookMode::Tracepoints, bound);
        assert!(!unseen.contains(&NO_REMOVE_GROUP));
        assert_eq!(hooks_with.len(), hooks_without.len() + 1);
    }
}
