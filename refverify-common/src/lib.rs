//! What crosses from the kernel to user space: the records of the ring buffer, the offsets
//! that the eBPF programs need, the keys and values of their maps.
//!
//! Both sides are built from this one definition, so they always agree. All is `repr(C)`,
//! little more than integers, and without padding.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "see `word`"))]

mod cross_check;
mod word;

pub use cross_check::CrossCheck;

/// How many file systems can be watched at once.
pub const SLOTS_MAX: usize = 64;

/// The verdict of the file-system map for a file system that is not watched.
pub const NOT_WATCHED: u32 = u32::MAX;

/// The slot of a [`Signal`] that could not be attributed to a file system.
pub const SLOT_UNKNOWN: u32 = u32::MAX;

/// The most stack frames a record holds. 16 cut off 41 % of the stacks of tree-block
/// changes, 32 none (measured).
pub const FRAMES_MAX: usize = 32;

/// The most bytes that are copied of a kernel object: `struct btrfs_ref` has 72 up to 5.15
/// and 64 after; a delayed ref node has 72 from its `bytenr` on.
pub const PAYLOAD_MAX_BYTES: usize = 72;

/// An offset in [`Layout`] that this kernel does not have, or this mode does not need.
pub const ABSENT: u32 = u32::MAX;

/// A file system's device, as `super_block.s_id` names it: the kernel's name of the block device,
/// filled up with zeros.
pub type DeviceName = [u8; 32];

/// `btrfs_fs_info.chunk_tree_uuid`. Zeros until a mount has read the chunk tree's root.
pub type ChunkTreeUuid = [u8; 16];

/// What a record tells; the first word of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RecordKind {
    /// [`Change`]: a reference to a tree block; the payload is what [`Layout::tree_start`]
    /// and [`Layout::tree_len_bytes`] cut out.
    TreeRef = 1,
    /// [`Change`]: a reference to data; likewise with [`Layout::data_start`].
    DataRef = 2,
    /// [`Change`]: log replay allocates an extent; the payload is a [`LoggedExtent`].
    LoggedExtent = 3,
    /// [`Change`]: a block group goes; the payload is a [`RemovedGroup`].
    RemoveGroup = 4,
    /// [`Signal`]: the call that made the thread's last record failed. `value` is the
    /// transid or 0, `errno` what was returned.
    Retraction = 5,
    /// [`Signal`]: the superblock of generation `value` is on disk.
    Commit = 6,
    /// [`Signal`]: transaction `value` was aborted with `errno`.
    Abort = 7,
    /// [`Signal`]: a mount begins; `value` is the address of its `btrfs_fs_info`.
    MountBegins = 8,
    /// [`Signal`]: a file system was met that was mounted already; `value` as above.
    FsSeen = 9,
    /// [`Signal`]: a file system goes; `value` as above.
    FsGone = 10,
}

impl RecordKind {
    /// The kind that `word` stands for.
    pub const fn from_word(word: u32) -> Option<Self> {
        Some(match word {
            1 => Self::TreeRef,
            2 => Self::DataRef,
            3 => Self::LoggedExtent,
            4 => Self::RemoveGroup,
            5 => Self::Retraction,
            6 => Self::Commit,
            7 => Self::Abort,
            8 => Self::MountBegins,
            9 => Self::FsSeen,
            10 => Self::FsGone,
            _ => return None,
        })
    }
}

/// A change of a reference or of a block group.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Change {
    /// A [`RecordKind`].
    pub kind: u32,
    /// The watched file system.
    pub slot: u32,
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// `trans->transid`.
    pub transid: u64,
    /// The CPU.
    pub cpu: u32,
    /// The kernel's tgid.
    pub pid: u32,
    /// The kernel's pid.
    pub tid: u32,
    /// The raw action as `add_delayed_ref_head` has it; 0 where the payload has its own.
    pub action: u32,
    /// `task->comm`.
    pub comm: [u8; 16],
    /// The kernel object. What lies behind its length is undefined.
    pub payload: [u8; PAYLOAD_MAX_BYTES],
}

/// A change with the stack of the call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct ChangeWithStack {
    /// The change.
    pub change: Change,
    /// How many bytes of `stack` are set (`bpf_get_stack`); below 0 is an error.
    pub stack_len_bytes: i64,
    /// Return addresses, innermost first. What lies behind the length is undefined.
    pub stack: [u64; FRAMES_MAX],
}

/// Anything else that happened.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Signal {
    /// A [`RecordKind`].
    pub kind: u32,
    /// The watched file system, or [`SLOT_UNKNOWN`].
    pub slot: u32,
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// A transid or an address, as the kind says.
    pub value: u64,
    /// A negative error number, or 0.
    pub errno: i32,
    /// The kernel's pid.
    pub tid: u32,
}

/// The payload of [`RecordKind::LoggedExtent`]: the arguments of
/// `btrfs_alloc_logged_file_extent(trans, root, owner, offset, ins)`, the same in 5.10 to 7.3.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct LoggedExtent {
    /// `ins->objectid`.
    pub bytenr: u64,
    /// `ins->offset`.
    pub len_bytes: u64,
    /// The tree of the inode.
    pub root: u64,
    /// The inode.
    pub owner: u64,
    /// File offset less extent offset.
    pub offset: u64,
}

/// The payload of [`RecordKind::RemoveGroup`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct RemovedGroup {
    /// Its first byte.
    pub start: u64,
    /// Its length.
    pub len_bytes: u64,
}

/// Which argument `btrfs_transaction_commit`, the tracepoint, has.
pub mod commit_argument {
    /// `struct btrfs_fs_info *`.
    pub const FS_INFO: u32 = 0;
    /// `struct btrfs_root *`.
    pub const ROOT: u32 = 1;
    /// `struct btrfs_trans_handle *`: it fires at every state.
    pub const TRANS: u32 = 2;
}

/// What the eBPF programs must know of this kernel. User space fills it in before it loads
/// them (as read-only data, so that the kernel's verifier sees constants).
///
/// Names are `struct_member`; each is an offset in bytes unless said otherwise, [`ABSENT`]
/// where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
pub struct Layout {
    /// Not 0: record stacks.
    pub stacks: u32,
    /// How many innermost frames belong to the tracing itself.
    pub stack_skip_frames: u32,
    /// Where the payload begins in the object that tells of a tree block's reference.
    pub tree_start: u32,
    /// The payload's length, at most [`PAYLOAD_MAX_BYTES`].
    pub tree_len_bytes: u32,
    /// Where the payload begins in the object that tells of a data reference.
    pub data_start: u32,
    /// The payload's length, at most [`PAYLOAD_MAX_BYTES`].
    pub data_len_bytes: u32,

    /// `btrfs_trans_handle.transid`.
    pub trans_transid: u32,
    /// `btrfs_trans_handle.fs_info`.
    pub trans_fs_info: u32,
    /// Where else that member may be, on a kernel that does not describe btrfs. What is there may
    /// be anything, and counts only if it is the address of a file system that is known.
    pub trans_fs_info_or: u32,
    /// `btrfs_trans_handle.transaction`; needed with [`commit_argument::TRANS`].
    pub trans_transaction: u32,
    /// `btrfs_transaction.state`.
    pub transaction_state: u32,
    /// Not an offset: the value of `TRANS_STATE_SUPER_COMMITTED`.
    pub state_super_committed: u32,
    /// Not an offset: one of [`commit_argument`].
    pub commit_argument: u32,
    /// `btrfs_root.fs_info`; needed with [`commit_argument::ROOT`].
    pub root_fs_info: u32,

    /// `btrfs_fs_info.fs_devices`. Absent on a kernel that does not describe btrfs: its offset
    /// depends on the configuration. Then the two members after it serve instead.
    pub fs_info_fs_devices: u32,
    /// `btrfs_fs_info.chunk_tree_uuid`.
    pub fs_info_chunk_tree_uuid: u32,
    /// `super_block.s_id`.
    pub super_id: u32,
    /// `btrfs_fs_info.last_trans_committed`.
    pub fs_info_last_trans_committed: u32,
    /// `btrfs_fs_info.generation`.
    pub fs_info_generation: u32,
    /// `btrfs_fs_info.fs_error` (an int), where it exists.
    pub fs_info_fs_error: u32,
    /// `btrfs_fs_info.workers`.
    pub fs_info_workers: u32,
    /// `btrfs_fs_devices.latest_dev`, or before 5.16 `latest_bdev`.
    pub fs_devices_latest: u32,
    /// `btrfs_device.bdev`; absent where the member above is the block device itself.
    pub device_bdev: u32,
    /// `block_device.bd_dev`.
    pub bdev_dev: u32,
    /// `super_block.s_fs_info`.
    pub super_fs_info: u32,
    /// `btrfs_workqueue.fs_info`.
    pub workqueue_fs_info: u32,

    /// Start of the object that a group's removal names: `extent_map.start`,
    /// `btrfs_chunk_map.start`, or `btrfs_block_group.start` for the tracepoint.
    pub group_start: u32,
    /// Its length.
    pub group_len: u32,
    /// `btrfs_block_group.fs_info`, for the tracepoint.
    pub group_fs_info: u32,

    /// `task_struct.journal_info`.
    pub task_journal_info: u32,
    /// `btrfs_delayed_ref_head.bytenr`.
    pub head_bytenr: u32,
    /// `btrfs_delayed_ref_node.bytenr`.
    pub node_bytenr: u32,
}

impl Layout {
    /// A layout in which nothing is known.
    pub const UNKNOWN: Self = Self {
        stacks: 0,
        stack_skip_frames: 0,
        tree_start: 0,
        tree_len_bytes: 0,
        data_start: 0,
        data_len_bytes: 0,
        trans_transid: ABSENT,
        trans_fs_info: ABSENT,
        trans_fs_info_or: ABSENT,
        trans_transaction: ABSENT,
        transaction_state: ABSENT,
        state_super_committed: 0,
        commit_argument: 0,
        root_fs_info: ABSENT,
        fs_info_fs_devices: ABSENT,
        fs_info_chunk_tree_uuid: ABSENT,
        super_id: ABSENT,
        fs_info_last_trans_committed: ABSENT,
        fs_info_generation: ABSENT,
        fs_info_fs_error: ABSENT,
        fs_info_workers: ABSENT,
        fs_devices_latest: ABSENT,
        device_bdev: ABSENT,
        bdev_dev: ABSENT,
        super_fs_info: ABSENT,
        workqueue_fs_info: ABSENT,
        group_start: ABSENT,
        group_len: ABSENT,
        group_fs_info: ABSENT,
        task_journal_info: ABSENT,
        head_bytenr: ABSENT,
        node_bytenr: ABSENT,
    };
}

/// The value of the loss counters' only entry, one per CPU: for each slot the records that
/// found the ring buffer full, then for each slot those that could not be read, then for each slot
/// the calls that the [`CrossCheck`] shows to be missed. What cannot be attributed counts for the
/// last of each, which no file system gets.
pub type Losses = [u64; 3 * LOSS_SLOTS];

/// Counters per source in [`Losses`].
pub const LOSS_SLOTS: usize = SLOTS_MAX + 1;

/// Where in [`Losses`] a full ring buffer is counted for `slot`.
pub const fn ring_full_index(slot: u32) -> usize {
    loss_slot(slot)
}

/// Where in [`Losses`] what could not be read is counted for `slot`.
pub const fn unreadable_index(slot: u32) -> usize {
    LOSS_SLOTS + loss_slot(slot)
}

/// Where in [`Losses`] a missed call is counted for `slot`.
pub const fn missed_index(slot: u32) -> usize {
    2 * LOSS_SLOTS + loss_slot(slot)
}

const fn loss_slot(slot: u32) -> usize {
    let slot = slot as usize;
    if slot < SLOTS_MAX { slot } else { SLOTS_MAX }
}

/// What the program that makes up changes (`refverify-ebpf/src/bin/burst.rs`) and its loader tell
/// each other. No part of the monitor.
pub mod burst {
    /// The loader's wishes, by the indices below.
    pub type Pace = [u64; 3];
    /// Nanoseconds from one extent that is made up to the next; 0 is none at all.
    pub const STEP_NS: usize = 0;
    /// Up to this time (`CLOCK_MONOTONIC`) all that is due has been made.
    pub const UNTIL_NS: usize = 1;
    /// Not 0: each is dropped without having been allocated.
    pub const WRONG: usize = 2;

    /// What a CPU counts, by the indices below.
    pub type Made = [u64; 3];
    /// References of the kernel's that were met.
    pub const MET: usize = 0;
    /// Records that were made up, with those that found no room.
    pub const MADE: usize = 1;
    /// Extents that were made up.
    pub const LIVES: usize = 2;
}
