//! What reports are called in JSON and in the journal.
//!
//! A `MESSAGE_ID` never changes once it was released: catalogs and filters name it. Each one is
//! listed in `docs/journal.md` and has an entry in `packaging/refverify-monitor.catalog`; a
//! test keeps the three in step.

use uuid::Uuid;

use crate::{
    btrfs::DiskFindingKind,
    verify::{FindingKind, Notice},
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
    const fn new(name: &'static str, message_id: u128, priority: Priority) -> Self {
        Self { name, message_id: Uuid::from_u128(message_id), priority }
    }

    /// The label of a notice; `None` for a ledger dump, which goes into a file alone.
    pub fn of(notice: &Notice) -> Option<Self> {
        let label = match notice {
            Notice::Started(_) => {
                Self::new("start", 0x2c8e96bd_d9f343f9_b5c84560_89b68f5e, Priority::Info)
            }
            Notice::WaitingForMount { .. } => Self::new(
                "waiting_for_mount",
                0x15129ac1_443841d2_b38059ad_44fd03f4,
                Priority::Info,
            ),
            Notice::Mounted { .. } => {
                Self::new("mounted", 0x6322e11f_75cf428c_93e6273a_1e6d7bea, Priority::Info)
            }
            Notice::WaitingForCommit { .. } => Self::new(
                "waiting_for_commit",
                0xcedeb04d_ab914f30_818f4e84_7acf456d,
                Priority::Info,
            ),
            Notice::Seeding { .. } => {
                Self::new("seeding", 0x27492c7c_7fae4292_a796f0eb_653f2490, Priority::Info)
            }
            Notice::Seeded { .. } => {
                Self::new("seeded", 0x4f088ad4_92034c83_8fdb0759_90da7977, Priority::Info)
            }
            Notice::Finding(finding) => Self {
                name: "finding",
                message_id: finding_message_id(finding.kind),
                priority: Priority::Error,
            },
            Notice::Blind { .. } => {
                Self::new("blind", 0xfbfdb787_dc774791_b39f7cfc_398dfd11, Priority::Warning)
            }
            Notice::Aborted { .. } => {
                Self::new("aborted", 0xec3925d8_24ec4ec4_aa711952_268c1b5e, Priority::Warning)
            }
            Notice::Refused { .. } => {
                Self::new("refused", 0x17a7c0bd_35d64de4_a9d0702a_ade9fab9, Priority::Warning)
            }
            Notice::Unmounted { .. } => {
                Self::new("unmounted", 0x2d696fed_79b54fdf_a51ffe4b_1370f81d, Priority::Info)
            }
            Notice::Summary(_) => {
                Self::new("summary", 0x0e8c9f52_fae04af5_8554539b_01c1189c, Priority::Info)
            }
            Notice::Dump(_) => return None,
        };
        Some(label)
    }
}

/// The `MESSAGE_ID` of findings of a kind.
pub const fn finding_message_id(kind: FindingKind) -> Uuid {
    Uuid::from_u128(match kind {
        FindingKind::ReallocatedWithRefs => 0x9a9cd693_d8dd4b73_b8590aa3_65d31960,
        FindingKind::NoEntry => 0x320b59f8_d94448b1_bf6614f4_3a7ea074,
        FindingKind::ZeroRefs => 0xf968c314_313e4593_9b9b94f8_b2c23253,
        FindingKind::DropExhaustedRef => 0x7da3a97a_d9704860_9d9f55dc_5d362abb,
        FindingKind::DropMissingRef => 0x171aa65e_60334e89_9d95235a_ecb14bcd,
        FindingKind::DuplicateTreeRef => 0x7db9ce1e_73c44ab4_ba74b55d_8f7ebcd1,
        FindingKind::MissingRoot => 0xd4859dea_9f0042ed_a2b42e28_e35de0bc,
        FindingKind::BlockGroupOverlap => 0x0de633d1_bb1841f8_8e67c4fa_ff9e315c,
        FindingKind::Disk(kind) => match kind {
            DiskFindingKind::DuplicateRefOnDisk => 0x3196cd29_f2064ab7_9d2b4cff_9a2494af,
            DiskFindingKind::BadInlineRef => 0xb3ed1a89_3ff0408c_b02ece67_b9504abe,
            DiskFindingKind::KeyedRefWithoutExtent => 0x2df852ab_a5a44cbe_8de5e34b_48f155c7,
            DiskFindingKind::MissingRootOnDisk => 0xa52014be_6c554f60_bc09862b_6ec6a4dc,
            DiskFindingKind::RefCountMismatch => 0x49f69cb6_63044ee2_94711087_45a05463,
            DiskFindingKind::ZeroRefCount => 0xe25724b6_8cd041d2_a1e97164_d13f001f,
            DiskFindingKind::BadExtentItem => 0xd119c526_308a4963_89af75c8_de0aefec,
        },
    })
}
