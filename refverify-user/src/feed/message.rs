//! The messages.
//!
//! All that comes from the kernel keeps the order of its ring buffer: an event precedes the
//! commit that contains it, and a mount precedes the first event of its file system.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::btrfs::{Action, ExtentKind, RefKey};

/// A watched file system, by its place in the list of devices the user gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FsSlot(pub u32);

/// Kernel addresses of a call's stack, innermost first; shared by all the events of a loop.
/// They leave the process only in recordings: reports hold symbols.
pub type Stack = Arc<[u64]>;

/// A task's name, as the kernel keeps it: up to 15 bytes, then NULs. Not trusted to be text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Comm(pub [u8; 16]);

impl fmt::Display for Comm {
    /// Control bytes and what is no UTF-8 are escaped: this reaches terminals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        write!(f, "{}", self.0[..end].escape_ascii())
    }
}

/// One change, as the kernel made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The file system.
    pub fs: FsSlot,
    /// The transaction that makes the change (`trans->transid`).
    pub transid: u64,
    /// Kernel time (`CLOCK_MONOTONIC`).
    pub time_ns: u64,
    /// The CPU it ran on.
    pub cpu: u32,
    /// Process id (the kernel's tgid).
    pub pid: u32,
    /// Thread id (the kernel's pid).
    pub tid: u32,
    /// The task's name.
    pub comm: Comm,
    /// Where in the kernel it was made; empty when stacks are off.
    pub stack: Stack,
    /// What was changed.
    pub change: Change,
}

impl Event {
    /// The logical address that it is about: of the extent, or of the block group.
    pub const fn bytenr(&self) -> u64 {
        match self.change {
            Change::Ref { bytenr, .. } => bytenr,
            Change::RemoveGroup { start, .. } => start,
        }
    }
}

/// What an event changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A reference is added or dropped (`btrfs_add_delayed_{tree,data}_ref`, and
    /// `btrfs_alloc_logged_file_extent`, which is an [`Action::AddExtent`]).
    Ref {
        /// Add or drop.
        action: Action,
        /// Data or tree block.
        kind: ExtentKind,
        /// The extent.
        bytenr: u64,
        /// Its length.
        len_bytes: u64,
        /// The reference, normalised.
        key: RefKey,
        /// The simple-quota owner (6.7 and later); 0 is unknown.
        owning_root: u64,
    },
    /// A block group and all that is known of it goes (`btrfs_remove_block_group`).
    RemoveGroup {
        /// Its first byte.
        start: u64,
        /// Its length.
        len_bytes: u64,
    },
}

/// How the kernel is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookMode {
    /// Kprobes: everything is seen.
    Kprobes,
    /// Raw tracepoints, on a kernel without kprobes: the second best.
    Tracepoints,
}

/// First message: who speaks, and what it can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// `uname -r` of the watched kernel.
    pub kernel_release: String,
    /// Which hooks are in force.
    pub mode: HookMode,
    /// Names of what is attached.
    pub hooks: Vec<String>,
    /// What these hooks cannot see, one sentence each.
    pub unseen: Vec<String>,
    /// The device path of each watched slot, as the user gave it.
    pub devices: Vec<String>,
}

/// A watched file system is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Which.
    pub fs: FsSlot,
    /// The device that is read, as a path.
    pub device: String,
    /// The running generation read *after* the last hook was live: events of transactions at
    /// or below it may have been missed, so the extent tree can be used from this generation
    /// on. 0 when the hooks were live before the mount: nothing was missed.
    pub first_usable_generation: u64,
}

/// Events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The file system, where the counter says it; `None` is all of them.
    pub fs: Option<FsSlot>,
    /// Where they were lost.
    pub source: LossSource,
    /// How many, at least.
    pub count: u64,
}

/// Where events can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossSource {
    /// The ring buffer was full.
    RingBuffer,
    /// A program was skipped by the kernel (recursion, kprobe missed).
    ProgramMissed,
    /// What a probe read made no sense (a reference freed under a tracepoint, a bad read).
    Unreadable,
    /// What came contradicts what came before it.
    OutOfOrder,
}

impl fmt::Display for LossSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RingBuffer => "ring buffer full",
            Self::ProgramMissed => "probe skipped by the kernel",
            Self::Unreadable => "record not readable",
            Self::OutOfOrder => "told out of order",
        })
    }
}

/// A part of a device, wanted by the verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// Whose device.
    pub fs: FsSlot,
    /// Chosen by the verifier; the answer carries it.
    pub id: u64,
    /// btrfs device id (`dev_item.devid`); 0 is the device that the user named.
    pub devid: u64,
    /// Byte offset on the device; a multiple of 4096.
    pub offset: u64,
    /// Length; a multiple of 4096, at most [`BlockRequest::LEN_MAX_BYTES`].
    pub len_bytes: u32,
}

impl BlockRequest {
    /// The most that one request may ask for.
    pub const LEN_MAX_BYTES: u32 = 1 << 20;
}

/// The answer to a [`BlockRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockAnswer {
    /// Whose device.
    pub fs: FsSlot,
    /// The request's id.
    pub id: u64,
    /// The bytes, exactly as many as were asked for.
    pub data: Result<Bytes, BlockError>,
}

/// Why a part of a device could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The read failed, or came short.
    #[error("reading {len_bytes} bytes at {offset} of {device}: {reason}")]
    Io {
        /// The device.
        device: String,
        /// Where.
        offset: u64,
        /// How much.
        len_bytes: u32,
        /// The operating system's words.
        reason: String,
    },
    /// No such device is known for the file system.
    #[error("the file system has no readable device with devid {devid}")]
    NoDevice {
        /// The btrfs device id asked for.
        devid: u64,
    },
    /// The request is not aligned, too long or beyond the device's end.
    #[error(
        "refused to read {len_bytes} bytes at {offset}: not aligned, too long or past the device's end"
    )]
    Refused {
        /// Where.
        offset: u64,
        /// How much.
        len_bytes: u32,
    },
}

/// From the agent to the verifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToVerifier {
    /// The first message.
    Hello(Hello),
    /// A watched file system is mounted.
    Mount(Mount),
    /// What a drain of the ring buffer brought, in order.
    Events(Vec<Event>),
    /// A drain has ended. Loss that the counters, read after it, show has been told before
    /// this. Told after each drain that brought something, and after the first empty one
    /// that follows it.
    Drained,
    /// A call failed after its event was recorded: the last event of that thread did not
    /// happen.
    Retraction {
        /// The thread whose last event is void.
        tid: u32,
        /// What the kernel function returned; below 0.
        errno: i32,
    },
    /// Events are missing.
    Loss(Loss),
    /// Superblock `transid` is durable on the device.
    Commit {
        /// The file system.
        fs: FsSlot,
        /// Its new generation.
        transid: u64,
    },
    /// A transaction was aborted: nothing of it will reach the device.
    Abort {
        /// The file system.
        fs: FsSlot,
        /// The transaction.
        transid: u64,
        /// Why; below 0.
        errno: i32,
    },
    /// The file system is gone from the kernel.
    Unmount {
        /// Which.
        fs: FsSlot,
    },
    /// The answer to a request.
    Block(BlockAnswer),
    /// The answer to [`ToAgent::Symbolise`], address by address in the order asked:
    /// `symbol+0x1a/0x2b0 [btrfs]`, or `0x0` style text where nothing is known.
    Symbols(Vec<(u64, Arc<str>)>),
    /// Someone asks for the ledger: all events up to now have been sent.
    DumpWanted,
    /// Time passes (`CLOCK_MONOTONIC`), told at least ten times a second, in live use.
    Tick {
        /// Now.
        time_ns: u64,
    },
    /// Nothing more will come.
    Bye,
}

/// From the verifier to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    /// Read a part of a device.
    Read(BlockRequest),
    /// Resolve kernel addresses.
    Symbolise(Vec<u64>),
    /// Say [`ToVerifier::DumpWanted`] once all events up to now have been told.
    Dump,
    /// Detach and say bye.
    Stop,
}
