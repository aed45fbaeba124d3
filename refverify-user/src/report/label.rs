//! What reports are called in JSON and in the journal.
//!
//! A `MESSAGE_ID` never changes once it was released: catalogs and filters name it. Each one is
//! listed in `docs/journal.md` and has an entry in `packaging/refverify-monitor.catalog`; a
//! test keeps the three in step.

use uuid::{Uuid, uuid};

use crate::{
    btrfs::DiskFindingKind,
    verify::{FindingKind, GaveUp, Notice},
};

/// The urgency of a journal entry, as syslog numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// `err`: a finding.
    Error = 3,
    /// `warning`: something that was to be watched is not verified.
    Warning = 4,
    /// `info`: the course of things.
    Info = 6,
}

/// How a notice is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The `type` of its JSON line.
    pub name: &'static str,
    /// Its `MESSAGE_ID` in the journal.
    pub message_id: Uuid,
    /// Its `PRIORITY` in the journal.
    pub priority: Priority,
}

impl Label {
    const fn new(name: &'static str, message_id: Uuid, priority: Priority) -> Self {
        Self { name, message_id, priority }
    }

    /// The label of a notice; `None` for a ledger dump, which goes into a file alone.
    pub fn of(notice: &Notice) -> Option<Self> {
        let label = match notice {
            Notice::Started(_) => {
                Self::new("start", uuid!("2c8e96bdd9f343f9b5c8456089b68f5e"), Priority::Info)
            }
            Notice::WaitingForMount { .. } => Self::new(
                "waiting_for_mount",
                uuid!("15129ac1443841d2b38059ad44fd03f4"),
                Priority::Info,
            ),
            Notice::Mounted { .. } => {
                Self::new("mounted", uuid!("6322e11f75cf428c93e6273a1e6d7bea"), Priority::Info)
            }
            Notice::WaitingForCommit { .. } => Self::new(
                "waiting_for_commit",
                uuid!("cedeb04dab914f30818f4e847acf456d"),
                Priority::Info,
            ),
            Notice::Named { .. } => {
                Self::new("named", uuid!("07ed133dfcb94bf8aaaace45148b484c"), Priority::Info)
            }
            Notice::Seeding { .. } => {
                Self::new("seeding", uuid!("27492c7c7fae4292a796f0eb653f2490"), Priority::Info)
            }
            Notice::Seeded { .. } => {
                Self::new("seeded", uuid!("4f088ad492034c838fdb075990da7977"), Priority::Info)
            }
            Notice::Finding(finding) => Self {
                name: "finding",
                message_id: finding_message_id(finding.kind),
                priority: Priority::Error,
            },
            Notice::Blind { .. } => {
                Self::new("blind", uuid!("fbfdb787dc774791b39f7cfc398dfd11"), Priority::Warning)
            }
            Notice::OutOfOrder { .. } => Self::new(
                "out_of_order",
                uuid!("014b3243acfa46e287d9f41cc8b07dcc"),
                Priority::Warning,
            ),
            Notice::Aborted { .. } => {
                Self::new("aborted", uuid!("ec3925d824ec4ec4aa711952268c1b5e"), Priority::Warning)
            }
            Notice::Undone { .. } => {
                Self::new("undone", uuid!("743f4d51623e43538876ea64861dcd07"), Priority::Warning)
            }
            Notice::GaveUp { what, .. } => {
                let priority = match what {
                    GaveUp::Everything { .. } => Priority::Warning,
                    GaveUp::Histories { .. } | GaveUp::FreedExtents { .. } => Priority::Info,
                };
                Self::new("gave_up", uuid!("c3cb44a0b32f41cfb0be2838ec28018a"), priority)
            }
            Notice::MirrorFailed { .. } => Self::new(
                "mirror_failed",
                uuid!("582666ab0716407bade004fde33d190e"),
                Priority::Warning,
            ),
            Notice::Refused { .. } => {
                Self::new("refused", uuid!("17a7c0bd35d64de4a9d0702aade9fab9"), Priority::Warning)
            }
            Notice::Unmounted { .. } => {
                Self::new("unmounted", uuid!("2d696fed79b54fdfa51ffe4b1370f81d"), Priority::Info)
            }
            Notice::Summary(_) => {
                Self::new("summary", uuid!("0e8c9f52fae04af58554539b01c1189c"), Priority::Info)
            }
            Notice::Dump(_) => return None,
        };
        Some(label)
    }
}

/// The `MESSAGE_ID` of findings of a kind.
pub const fn finding_message_id(kind: FindingKind) -> Uuid {
    match kind {
        FindingKind::ReallocatedWithRefs => uuid!("9a9cd693d8dd4b73b8590aa365d31960"),
        FindingKind::NoEntry => uuid!("320b59f8d94448b1bf6614f43a7ea074"),
        FindingKind::ZeroRefs => uuid!("f968c314313e45939b9b94f8b2c23253"),
        FindingKind::DropExhaustedRef => uuid!("7da3a97ad97048609d9f55dc5d362abb"),
        FindingKind::DropMissingRef => uuid!("171aa65e60334e899d95235aecb14bcd"),
        FindingKind::DuplicateTreeRef => uuid!("7db9ce1e73c44ab4ba74b55d8f7ebcd1"),
        FindingKind::MissingRoot => uuid!("d4859dea9f0042eda2b42e28e35de0bc"),
        FindingKind::BlockGroupOverlap => uuid!("0de633d1bb1841f88e67c4faff9e315c"),
        FindingKind::DiskDiffers => uuid!("0ed6ac128a8e40249c51084b7d8bfc5e"),
        FindingKind::Disk(kind) => match kind {
            DiskFindingKind::DuplicateRefOnDisk => uuid!("3196cd29f2064ab79d2b4cff9a2494af"),
            DiskFindingKind::BadInlineRef => uuid!("b3ed1a893ff0408cb02ece67b9504abe"),
            DiskFindingKind::KeyedRefWithoutExtent => uuid!("2df852aba5a44cbe8de5e34b48f155c7"),
            DiskFindingKind::MissingRootOnDisk => uuid!("a52014be6c554f60bc09862b6ec6a4dc"),
            DiskFindingKind::RefCountMismatch => uuid!("49f69cb663044ee29471108745a05463"),
            DiskFindingKind::ZeroRefCount => uuid!("e25724b68cd041d2a1e97164d13f001f"),
            DiskFindingKind::BadKeyedRef => uuid!("89096b27654d4d47b7ea3e0a7f6cac98"),
            DiskFindingKind::ImplausibleRef => uuid!("614a4bb6d3504ac29a2a911fd43ecfb9"),
            DiskFindingKind::OverlapOnDisk => uuid!("5476918c7ba84efeb30147aff52ff184"),
            DiskFindingKind::BadExtentItem => uuid!("d119c526308a496389af75c8de0aefec"),
        },
    }
}
