//! What can be wrong on disk, as values.

use std::fmt;

use serde::Serialize;

use crate::btrfs::{RefKey, format::ItemError};

/// Something wrong on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskFinding {
    /// What.
    #[serde(flatten)]
    pub fault: DiskFault,
    /// The extent: the object id of the item's key.
    pub bytenr: u64,
    /// Logical address of the leaf that holds the item.
    pub leaf: u64,
    /// The item's place in the leaf.
    pub slot: u32,
}

impl fmt::Display for DiskFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, bytenr, leaf, slot } = self;
        write!(f, "extent {bytenr}: {fault} (leaf {leaf} slot {slot})")
    }
}

impl DiskFinding {
    /// The rule that is broken; `None` for what can be right after all.
    pub const fn kind(&self) -> Option<DiskFindingKind> {
        self.fault.kind()
    }
}

/// The rules for what is on disk, by the names that reports use. The faults that break one
/// rule differ in their facts only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskFindingKind {
    /// The item itself makes no sense.
    BadExtentItem,
    /// An inline reference makes no sense, or stands in the wrong place.
    BadInlineRef,
    /// A keyed reference makes no sense.
    BadKeyedRef,
    /// A keyed reference whose extent has no item.
    KeyedRefWithoutExtent,
    /// A direct reference from root 0.
    MissingRootOnDisk,
    /// A reference from where none can come.
    ImplausibleRef,
    /// A reference with a count of 0.
    ZeroRefCount,
    /// An extent has the same reference twice.
    DuplicateRefOnDisk,
    /// The references add up to more or less than the total that the item states.
    RefCountMismatch,
    /// Two extents overlap.
    OverlapOnDisk,
}

impl DiskFindingKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::BadExtentItem,
        Self::BadInlineRef,
        Self::BadKeyedRef,
        Self::KeyedRefWithoutExtent,
        Self::MissingRootOnDisk,
        Self::ImplausibleRef,
        Self::ZeroRefCount,
        Self::DuplicateRefOnDisk,
        Self::RefCountMismatch,
        Self::OverlapOnDisk,
    ];

    /// The name, in lower case with hyphens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadExtentItem => "bad-extent-item",
            Self::BadInlineRef => "bad-inline-ref",
            Self::BadKeyedRef => "bad-keyed-ref",
            Self::KeyedRefWithoutExtent => "keyed-ref-without-extent",
            Self::MissingRootOnDisk => "missing-root-on-disk",
            Self::ImplausibleRef => "implausible-ref",
            Self::ZeroRefCount => "zero-ref-count",
            Self::DuplicateRefOnDisk => "duplicate-ref-on-disk",
            Self::RefCountMismatch => "ref-count-mismatch",
            Self::OverlapOnDisk => "overlap-on-disk",
        }
    }
}

/// What can be wrong on disk, with the facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DiskFault {
    /// An extent item whose fields cannot be read: the extent is left out.
    BadExtentItem {
        /// Why.
        reason: ItemError,
    },
    /// A second extent item for one address; it is left out.
    SecondExtentItem,
    /// An inline reference of an unknown type, or cut off: it and those behind it are left out.
    BadInlineRef {
        /// Why.
        reason: ItemError,
    },
    /// A keyed reference that cannot be read; it is left out.
    BadKeyedRef {
        /// Why.
        reason: ItemError,
    },
    /// A keyed reference in the format of before 2009; it is left out.
    OldKeyedRef,
    /// A keyed reference whose address has no extent item.
    KeyedRefWithoutExtent {
        /// The reference's item type.
        ref_type: u8,
    },
    /// A tree block's reference at a data extent, or the other way round; it is left out.
    RefOfOtherKind {
        /// The reference's item type.
        ref_type: u8,
    },
    /// Inline references have to be in the order in which the kernel looks them up.
    InlineRefOrder {
        /// The item type of the reference that is out of place.
        ref_type: u8,
    },
    /// An owner in a file system that never used simple quotas.
    OwnerWithoutSimpleQuota,
    /// A direct reference with root 0.
    MissingRoot {
        /// The reference.
        key: RefKey,
    },
    /// A data reference from a tree that holds no files, from an impossible inode or at an
    /// offset within a sector.
    ImplausibleDataRef {
        /// The reference.
        key: RefKey,
    },
    /// A tree block's reference from a tree that cannot be, or that has no counted blocks.
    ImplausibleTreeRef {
        /// The reference.
        key: RefKey,
    },
    /// A shared reference whose parent is at no address where a block can be.
    BadParent {
        /// The reference.
        key: RefKey,
    },
    /// A reference that counts 0.
    ZeroCount {
        /// The reference.
        key: RefKey,
    },
    /// The same reference twice.
    DuplicateRef {
        /// The reference.
        key: RefKey,
    },
    /// The item claims 0 references.
    NoRefs,
    /// The inline references alone are more than the item claims.
    InlineRefsExceedTotal {
        /// Their sum.
        sum: u64,
        /// What the item claims.
        total: u64,
    },
    /// All references together are not what the item claims.
    TotalDiffers {
        /// Their sum.
        sum: u64,
        /// What the item claims.
        total: u64,
    },
    /// Address or length are no multiples of the sector size, or the length is no tree
    /// block's.
    BadRange {
        /// The length.
        len_bytes: u64,
    },
    /// It begins before the extent before it ends.
    OverlapsPrevious {
        /// Where the one before begins.
        previous: u64,
        /// Its length.
        previous_len_bytes: u64,
    },
    /// Data that claims to be a tree block whose children are referenced by its address.
    FullBackrefOfData,
    /// A tree block's item in the short form, in a file system without the feature for it.
    SkinnyWithoutFeature,
    /// Allocated by a transaction that had not begun when the tree was written.
    FutureGeneration {
        /// What the item says.
        generation: u64,
    },
    /// An item of a type that does not belong into this tree, as far as is known. No violation
    /// by itself: a newer kernel may know better. Told once per type.
    UnknownItemType {
        /// The type.
        item_type: u8,
    },
    /// More findings about this extent than are listed.
    More {
        /// How many more.
        count: u64,
    },
}

impl DiskFault {
    /// The rule that it breaks; `None` for what can be right after all: that is worth a
    /// word, but no violation.
    pub const fn kind(&self) -> Option<DiskFindingKind> {
        use DiskFindingKind as Kind;
        Some(match self {
            Self::BadExtentItem { .. }
            | Self::SecondExtentItem
            | Self::NoRefs
            | Self::BadRange { .. }
            | Self::FullBackrefOfData
            | Self::SkinnyWithoutFeature
            | Self::FutureGeneration { .. }
            | Self::More { .. } => Kind::BadExtentItem,
            Self::BadInlineRef { .. }
            | Self::RefOfOtherKind { .. }
            | Self::InlineRefOrder { .. }
            | Self::OwnerWithoutSimpleQuota => Kind::BadInlineRef,
            Self::BadKeyedRef { .. } | Self::OldKeyedRef => Kind::BadKeyedRef,
            Self::KeyedRefWithoutExtent { .. } => Kind::KeyedRefWithoutExtent,
            Self::MissingRoot { .. } => Kind::MissingRootOnDisk,
            Self::ImplausibleDataRef { .. }
            | Self::ImplausibleTreeRef { .. }
            | Self::BadParent { .. } => Kind::ImplausibleRef,
            Self::ZeroCount { .. } => Kind::ZeroRefCount,
            Self::DuplicateRef { .. } => Kind::DuplicateRefOnDisk,
            Self::InlineRefsExceedTotal { .. } | Self::TotalDiffers { .. } => {
                Kind::RefCountMismatch
            }
            Self::OverlapsPrevious { .. } => Kind::OverlapOnDisk,
            Self::UnknownItemType { .. } => return None,
        })
    }
}

impl fmt::Display for DiskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadExtentItem { reason } => write!(f, "bad extent item: {reason}"),
            Self::SecondExtentItem => f.write_str("a second extent item for the same address"),
            Self::BadInlineRef { reason } => write!(f, "bad inline ref: {reason}"),
            Self::BadKeyedRef { reason } => write!(f, "bad keyed ref: {reason}"),
            Self::OldKeyedRef => f.write_str("keyed ref of type 180, the format of before 2009"),
            Self::KeyedRefWithoutExtent { ref_type } => {
                write!(f, "keyed ref of type {ref_type} without an extent item")
            }
            Self::RefOfOtherKind { ref_type } => {
                write!(f, "ref of type {ref_type} does not fit an extent of this kind")
            }
            Self::InlineRefOrder { ref_type } => {
                write!(f, "inline ref of type {ref_type} is out of order")
            }
            Self::OwnerWithoutSimpleQuota => {
                f.write_str("owner ref in a file system without simple quotas")
            }
            Self::MissingRoot { key } => write!(f, "direct ref without a root: {key}"),
            Self::ImplausibleDataRef { key } => write!(f, "implausible data ref: {key}"),
            Self::ImplausibleTreeRef { key } => write!(f, "implausible tree ref: {key}"),
            Self::BadParent { key } => write!(f, "shared ref from an impossible parent: {key}"),
            Self::ZeroCount { key } => write!(f, "ref that counts 0: {key}"),
            Self::DuplicateRef { key } => write!(f, "duplicate ref: {key}"),
            Self::NoRefs => f.write_str("the item claims 0 refs"),
            Self::InlineRefsExceedTotal { sum, total } => {
                write!(f, "inline refs add up to {sum}, more than the total of {total}")
            }
            Self::TotalDiffers { sum, total } => {
                write!(f, "refs add up to {sum}, and the item claims {total}")
            }
            Self::BadRange { len_bytes } => write!(f, "bad address or length {len_bytes}"),
            Self::OverlapsPrevious { previous, previous_len_bytes } => {
                write!(f, "overlaps the extent {previous} of {previous_len_bytes} bytes")
            }
            Self::FullBackrefOfData => f.write_str("data has the flag FULL_BACKREF"),
            Self::SkinnyWithoutFeature => {
                f.write_str("METADATA_ITEM in a file system without the feature SKINNY_METADATA")
            }
            Self::FutureGeneration { generation } => {
                write!(f, "allocated in generation {generation}, which is yet to come")
            }
            Self::UnknownItemType { item_type } => write!(f, "item of unknown type {item_type}"),
            Self::More { count } => write!(f, "{count} more findings"),
        }
    }
}
