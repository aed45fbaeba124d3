//! What a rule saw. Findings are values, not errors.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    btrfs::{Action, DiskFinding, DiskFindingKind, ExtentKind, RefKey},
    feed::{Change, Comm, Event, FsSlot, Stack},
};

/// The rules, by the names that reports, tests and the journal use.
///
/// All but the last two follow the kernel's own checker (`btrfs_ref_tree_mod` and
/// `btrfs_free_ref_tree_range` in `fs/btrfs/ref-verify.c`, read in 6.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// An extent is allocated that still has references.
    ReallocatedWithRefs,
    /// A reference is added or dropped at a bytenr where no extent is known.
    NoEntry,
    /// A reference is added or dropped on an extent that has none left.
    ZeroRefs,
    /// A reference is dropped whose count is 0 already.
    DropExhaustedRef,
    /// A reference is dropped that the extent does not have.
    DropMissingRef,
    /// A tree block gets a reference that it already has.
    DuplicateTreeRef,
    /// A direct reference names root 0.
    MissingRoot,
    /// A block group is removed and an extent crosses its edge.
    BlockGroupOverlap,
    /// The extent tree is not what the changes seen lead to.
    DiskDiffers,
    /// The extent tree itself is wrong where it was read.
    Disk(DiskFindingKind),
}

impl FindingKind {
    /// The name, in lower case with hyphens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReallocatedWithRefs => "reallocated-with-refs",
            Self::NoEntry => "no-entry",
            Self::ZeroRefs => "zero-refs",
            Self::DropExhaustedRef => "drop-exhausted-ref",
            Self::DropMissingRef => "drop-missing-ref",
            Self::DuplicateTreeRef => "duplicate-tree-ref",
            Self::MissingRoot => "missing-root",
            Self::BlockGroupOverlap => "block-group-overlap",
            Self::DiskDiffers => "disk-differs",
            Self::Disk(kind) => kind.name(),
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the rule looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An event.
    Event(Event),
    /// An item of the extent tree.
    Disk {
        /// The generation that was read.
        generation: u64,
        /// The item and what is wrong with it.
        finding: DiskFinding,
    },
    /// An extent as the extent tree has it, which is not what is expected.
    Audit {
        /// The generation that was read.
        generation: u64,
        /// Where.
        bytenr: u64,
        /// What is there; `None` is nothing.
        on_disk: Option<ExtentDump>,
    },
}

/// One violation, with all that is known of its extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which rule.
    pub kind: FindingKind,
    /// The file system.
    pub fs: FsSlot,
    /// What the rule looked at.
    pub cause: Cause,
    /// The extent as the ledger had it just before, or as of the generation that was read; `None`
    /// where it knows none there.
    pub extent: Option<ExtentDump>,
    /// Text for the addresses in all stacks of this finding.
    pub symbols: Symbols,
    /// How many of this kind were not told since the last one that was: a storm is told in part.
    pub withheld: u64,
}

impl Finding {
    /// One whose stacks have no text yet.
    pub(crate) fn new(
        kind: FindingKind,
        fs: FsSlot,
        cause: Cause,
        extent: Option<ExtentDump>,
    ) -> Self {
        Self { kind, fs, cause, extent, symbols: Symbols::default(), withheld: 0 }
    }

    /// The logical address that the finding is about.
    pub fn bytenr(&self) -> u64 {
        match &self.cause {
            Cause::Event(event) => match event.change {
                Change::Ref { bytenr, .. } => bytenr,
                Change::RemoveGroup { start, .. } => start,
            },
            Cause::Disk { finding, .. } => finding.bytenr,
            Cause::Audit { bytenr, .. } => *bytenr,
        }
    }

    /// Every kernel address in it, each once.
    pub fn addresses(&self) -> Vec<u64> {
        let own = match &self.cause {
            Cause::Event(event) => event.stack.iter(),
            Cause::Disk { .. } | Cause::Audit { .. } => [].iter(),
        };
        let history = self.extent.iter().flat_map(|extent| &extent.actions);
        let mut all: Vec<u64> =
            own.chain(history.flat_map(|action| action.stack.iter())).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The texts of kernel addresses: `symbol+0x1a/0x2b0 [btrfs]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols(pub BTreeMap<u64, Arc<str>>);

impl Symbols {
    /// The text of an address; where there is none it is `?`: addresses of the kernel are not
    /// printed.
    pub fn text(&self, address: u64) -> &str {
        self.0.get(&address).map_or("?", |text| text)
    }
}

/// An extent as the ledger has it, for a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentDump {
    /// Logical address.
    pub bytenr: u64,
    /// Length.
    pub len_bytes: u64,
    /// Data or tree block.
    pub kind: ExtentKind,
    /// The number of references.
    pub total_refs: u64,
    /// The generation at which it was read from disk; `None` where its allocation was seen.
    pub from_disk: Option<u64>,
    /// Its references and their counts, sorted by key.
    pub refs: Vec<(RefKey, u64)>,
    /// Direct references per root, sorted by root.
    pub roots: Vec<(u64, u64)>,
    /// What was done to it since its last allocation, oldest first. The event that the
    /// finding is about is not among them.
    pub actions: Vec<ActionRecord>,
    /// How many more actions there were, which were given up to bound memory.
    pub actions_given_up: u64,
}

/// One action of an extent's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionRecord {
    /// What was done.
    pub action: Action,
    /// To which reference.
    pub key: RefKey,
    /// In which transaction.
    pub transid: u64,
    /// When (`CLOCK_MONOTONIC`).
    pub time_ns: u64,
    /// By which process.
    pub pid: u32,
    /// By which thread.
    pub tid: u32,
    /// Its name.
    pub comm: Comm,
    /// From where.
    pub stack: Stack,
}
