//! What the verifier tells the world, apart from its requests to the agent.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Disorder, Finding, FindingKind};
use crate::feed::{FsSlot, Hello, Loss};

/// Something to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The agent is armed.
    Started(Hello),
    /// A watched device is not mounted; its mount is waited for.
    WaitingForMount {
        /// Which.
        fs: FsSlot,
    },
    /// A watched file system is mounted.
    Mounted {
        /// Which.
        fs: FsSlot,
        /// The hooks were live before the mount.
        armed_before: bool,
    },
    /// The extent tree on disk is too old to be used: of a transaction that is not on disk yet
    /// events were missed, because it ran when the hooks went live or because events were lost.
    /// Reading starts at its commit.
    WaitingForCommit {
        /// Which.
        fs: FsSlot,
        /// The first generation that can be used.
        generation: u64,
    },
    /// What is mounted has this fsid: it is known from the mount before, or the seed that was mounted
    /// has sprouted.
    Named {
        /// Which.
        fs: FsSlot,
        /// Its fsid, as on disk.
        fsid: Uuid,
    },
    /// The extent tree is being read. Told when reading starts, when it goes on at a newer
    /// generation, and now and then for progress.
    Seeding {
        /// Which.
        fs: FsSlot,
        /// Its fsid, as on disk.
        fsid: Uuid,
        /// The generation read now.
        generation: u64,
        /// Share of the key space that is read, in thousandths.
        done_permille: u32,
        /// Extents read so far.
        extents: u64,
        /// Events that wait for their range to be read.
        events_waiting: u64,
    },
    /// All of the extent tree has been read: from here every event is judged.
    Seeded {
        /// Which.
        fs: FsSlot,
        /// The generation at which reading began.
        first_generation: u64,
        /// The generation at which it ended.
        generation: u64,
        /// Extents known.
        extents: u64,
    },
    /// A violation.
    Finding(Box<Finding>),
    /// What is seen or what is on disk cannot be relied on: nothing is judged until the extent
    /// tree has been read again.
    Blind {
        /// Which.
        fs: FsSlot,
        /// Why.
        cause: BlindCause,
        /// Everything up to this transid was verified.
        verified_upto: u64,
    },
    /// What was told contradicts what was told before. It counts as a loss, and
    /// [`Notice::Blind`] follows.
    OutOfOrder {
        /// Which.
        fs: FsSlot,
        /// What does not fit.
        disorder: Disorder,
    },
    /// The kernel aborted a transaction: the file system is read-only until it is mounted
    /// again. What becomes of the transaction the superblock on disk decides: see
    /// [`Notice::Undone`].
    Aborted {
        /// Which.
        fs: FsSlot,
        /// The aborted transaction.
        transid: u64,
        /// Why; below 0.
        errno: i32,
    },
    /// Transactions never reached the disk, and what was seen of them is undone. What was found in
    /// them stays found.
    Undone {
        /// Which.
        fs: FsSlot,
        /// The superblock on disk, which decides.
        on_disk: u64,
        /// The transactions.
        undone: Span,
        /// How many findings were made in them.
        findings: u64,
    },
    /// Something was given up so that memory stays within its bound. Told once for each kind.
    GaveUp {
        /// Which.
        fs: FsSlot,
        /// What.
        what: GaveUp,
    },
    /// A device failed to give what another one has, or what could be computed from parity:
    /// nothing is wrong with what was read. Told once for each device in a reading.
    MirrorFailed {
        /// Which.
        fs: FsSlot,
        /// The device, by its number in the file system.
        devid: u64,
        /// What it failed to give, in one sentence.
        reason: String,
    },
    /// The file system cannot be verified; the sentence says why.
    Refused {
        /// Which.
        fs: FsSlot,
        /// Why, in one sentence.
        reason: String,
    },
    /// The file system is gone from the kernel.
    Unmounted {
        /// Which.
        fs: FsSlot,
    },
    /// The ledger was asked for; text as `docs/ledger-dump.md` describes it.
    Dump(String),
    /// The last notice.
    Summary(Summary),
}

/// Why nothing can be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlindCause {
    /// Events were lost.
    Lost(Loss),
    /// A commit was signalled, and no device has its superblock: what is written does not reach
    /// the disk, or the disk was exchanged.
    WritesDropped {
        /// The generation that was signalled.
        signalled: u64,
        /// The generation that is on disk.
        on_disk: u64,
    },
    /// The file system ended with transactions that may or may not be on disk, and no device gives
    /// a superblock that would tell.
    NoSuperblock,
}

/// What is given up for memory, in this order. An extent in use never is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveUp {
    /// Of the actions of older transactions, those that explain least.
    Histories {
        /// The newest transaction that lost some.
        upto: u64,
    },
    /// That extents were freed: such an extent is now as unknown as one that never was.
    FreedExtents {
        /// The newest transaction that freed some of them.
        upto: u64,
    },
    /// All that can be: the extents in use alone take more than the ceiling.
    Everything {
        /// What they take.
        in_use_bytes: u64,
    },
}

/// Where a watched file system stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsState {
    /// Not mounted.
    Unmounted,
    /// Its extent tree is being read (or a commit is waited for).
    Seeding,
    /// Every event is judged.
    Live,
    /// Events were lost; reading again has not ended.
    Blind,
    /// A transaction was aborted.
    Aborted,
    /// It cannot be verified.
    Refused,
}

impl FsState {
    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmounted => "unmounted",
            Self::Seeding => "seeding",
            Self::Live => "live",
            Self::Blind => "blind",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
        }
    }
}

/// Transactions, first to last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first transid.
    pub first: u64,
    /// The last transid.
    pub last: u64,
}

/// Transactions of which not everything is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlindSpan {
    /// Which.
    pub span: Span,
    /// Why.
    pub cause: BlindCause,
    /// Where the file system stood after it: live, where it ended because the tree had been read
    /// again; blind, where nothing ended it.
    pub then: FsState,
}

/// What was verified of one file system, and what was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// Which.
    pub fs: FsSlot,
    /// Its device.
    pub device: String,
    /// Its fsid; `None` when it was never read.
    pub fsid: Option<Uuid>,
    /// Where it stands at the end.
    pub state: FsState,
    /// Transactions whose every event was judged.
    pub verified: Vec<Span>,
    /// Transactions of which events are missing, or of which it is not known whether they are on
    /// disk.
    pub blind: Vec<BlindSpan>,
    /// Transactions that never reached the disk.
    pub undone: Vec<Span>,
    /// Events that came.
    pub events_seen: u64,
    /// Events that were judged.
    pub events_applied: u64,
    /// Events of generations that were read from disk and already contain them.
    pub events_on_disk: u64,
    /// Events withdrawn because their call failed.
    pub events_retracted: u64,
    /// Mounts of which nothing could be verified: they were refused, or changed and went
    /// before their extent tree was read.
    pub mounts_unverified: u64,
    /// Audits made.
    pub audits: u64,
    /// Extents known at the end.
    pub extents: u64,
    /// Up to this transaction histories are not all kept; `None` where all are, within the
    /// bound on each extent.
    pub histories_given_up: Option<u64>,
    /// Extents freed up to this transaction are not all known to have been freed; `None` where
    /// they are, since reading began.
    pub freed_given_up: Option<u64>,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// One for each watched device, in the user's order.
    pub coverage: Vec<Coverage>,
    /// How many findings of each kind there were.
    pub findings: BTreeMap<FindingKind, u64>,
    /// How many of them were not told one by one, of the kinds that came as a storm.
    pub withheld: BTreeMap<FindingKind, u64>,
    /// Everything that was lost.
    pub losses: Vec<Loss>,
}

impl Summary {
    /// Whether there was a finding.
    pub fn has_findings(&self) -> bool {
        self.findings.values().any(|&count| count > 0)
    }

    /// Whether something that was to be watched was not verified.
    pub fn has_gaps(&self) -> bool {
        let gap = |fs: &Coverage| {
            !fs.blind.is_empty()
                || fs.mounts_unverified > 0
                || matches!(fs.state, FsState::Seeding | FsState::Blind | FsState::Refused)
        };
        !self.losses.is_empty() || self.coverage.iter().any(gap)
    }
}
