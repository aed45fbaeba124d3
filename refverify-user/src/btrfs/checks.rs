//! What is wrong with the extent tree as it is on disk, extent by extent.
//!
//! These are the rules that the kernel's `btrfs_build_ref_tree` has or should have, and those
//! of its tree checker (`check_extent_item` and its neighbours in `fs/btrfs/tree-checker.c`,
//! read in 7.3), which a kernel applies only to leaves that it reads itself, and older kernels
//! only in part.

mod faults;

pub use faults::{DiskFault, DiskFinding, DiskFindingKind};

use super::{
    DiskExtent, ExtentKind, RefKey,
    format::{BackRef, ExtentItem, InlineRefs, Superblock, item_type},
    objectid,
};

/// What the rules need to know of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckContext {
    /// The generation of the tree.
    pub generation: u64,
    /// Length of a sector.
    pub sectorsize: u32,
    /// Length of a tree block.
    pub nodesize: u32,
    /// Whether owner refs are legal.
    pub has_simple_quota: bool,
    /// Whether the short form of tree blocks' items is legal.
    pub has_skinny_metadata: bool,
}

impl From<&Superblock> for CheckContext {
    fn from(superblock: &Superblock) -> Self {
        Self {
            generation: superblock.generation,
            sectorsize: superblock.sectorsize,
            nodesize: superblock.nodesize,
            has_simple_quota: superblock.has_simple_quota(),
            has_skinny_metadata: superblock.has_skinny_metadata(),
        }
    }
}

impl CheckContext {
    /// Whether it is a multiple of the sector size, which is a power of 2.
    fn is_aligned(&self, value: u64) -> bool {
        value & u64::from(self.sectorsize).wrapping_sub(1) == 0
    }

    /// What is wrong with the form of an extent's item (kernel: `check_extent_item`).
    pub(super) fn check_form(
        &self,
        item_type: u8,
        item: &ExtentItem,
        mut found: impl FnMut(DiskFault),
    ) {
        if item_type == item_type::METADATA_ITEM && !self.has_skinny_metadata {
            found(DiskFault::SkinnyWithoutFeature);
        }
        if item.has_full_backref && item.kind == ExtentKind::Data {
            found(DiskFault::FullBackrefOfData);
        }
    }

    /// What is wrong with an extent's item itself.
    pub(super) fn check_item(&self, extent: &DiskExtent, mut found: impl FnMut(DiskFault)) {
        let DiskExtent { bytenr, len_bytes, kind, total_refs, generation, .. } = *extent;
        let right_len = match kind {
            ExtentKind::Data => len_bytes != 0 && self.is_aligned(len_bytes),
            ExtentKind::TreeBlock { .. } => len_bytes == u64::from(self.nodesize),
        };
        if !right_len || !self.is_aligned(bytenr) || bytenr.checked_add(len_bytes).is_none() {
            found(DiskFault::BadRange { len_bytes });
        }
        if generation > self.generation {
            found(DiskFault::FutureGeneration { generation });
        }
        if total_refs == 0 {
            found(DiskFault::NoRefs);
        }
    }

    /// What is wrong with one reference, whatever the others are.
    pub(super) fn check_ref(&self, key: RefKey, back_ref: &BackRef) -> Option<DiskFault> {
        match *back_ref {
            BackRef::SharedBlock { parent } | BackRef::SharedData { parent, .. }
                if parent == 0 || !self.is_aligned(parent) =>
            {
                Some(DiskFault::BadParent { key })
            }
            BackRef::TreeBlock { root: 0 } | BackRef::Data { root: 0, .. } => {
                Some(DiskFault::MissingRoot { key })
            }
            BackRef::TreeBlock { root } if !holds_counted_blocks(root) => {
                Some(DiskFault::ImplausibleTreeRef { key })
            }
            BackRef::Data { count: 0, .. } | BackRef::SharedData { count: 0, .. } => {
                Some(DiskFault::ZeroCount { key })
            }
            BackRef::Data { root, objectid, offset, .. }
                if !holds_files(root) || !is_inode(objectid) || !self.is_aligned(offset) =>
            {
                Some(DiskFault::ImplausibleDataRef { key })
            }
            _ => None,
        }
    }
}

/// Whether the inline references of one item are in order: types ascend, and the sequences within
/// one type descend (kernel: `check_extent_item`). Those behind one that cannot be read do not
/// matter.
pub(super) fn check_order(inline: InlineRefs, mut found: impl FnMut(DiskFault)) {
    let mut last = None;
    for back_ref in inline.map_while(Result::ok) {
        let (ref_type, sequence) = (back_ref.item_type(), back_ref.sequence());
        if last.is_some_and(|(last_type, last_sequence)| {
            last_type > ref_type || (last_type == ref_type && last_sequence < sequence)
        }) {
            found(DiskFault::InlineRefOrder { ref_type });
        }
        last = Some((ref_type, sequence));
    }
}

/// Whether blocks of a tree are counted in the extent tree. Log trees' are not, and many ids are of
/// something else than a tree; what ids below 256 may come to mean is left open.
fn holds_counted_blocks(root: u64) -> bool {
    match root {
        objectid::ROOT_TREE_DIR => false,
        ..objectid::FIRST_FREE | objectid::DATA_RELOC_TREE | objectid::TREE_RELOC => true,
        _ => is_subvolume(root),
    }
}

/// From 2^48 on an id is that of a quota group (kernel: `is_fstree`).
fn is_subvolume(root: u64) -> bool {
    (objectid::FIRST_FREE..1 << 48).contains(&root)
}

/// Whether a tree can hold references to data: subvolumes, the relocation's inodes, and the
/// root tree for the v1 space cache (kernel: `is_valid_dref_root`).
fn holds_files(root: u64) -> bool {
    matches!(root, objectid::FS_TREE | objectid::ROOT_TREE | objectid::DATA_RELOC_TREE)
        || is_subvolume(root)
}

/// Whether an inode number is possible. 5.10's `inode_cache` wrote -12
/// (`BTRFS_FREE_INO_OBJECTID`), which newer kernels refuse.
fn is_inode(objectid: u64) -> bool {
    const FREE_INO: u64 = (-12_i64).cast_unsigned();
    (objectid::FIRST_FREE..=objectid::LAST_FREE).contains(&objectid) || objectid == FREE_INO
}

/// The references that occur more than once, each told once.
pub(super) fn duplicates(refs: &[(RefKey, u32)]) -> Vec<RefKey> {
    // Nearly every extent has few references, and none of them twice: that costs no memory.
    let is_in = |(key, _): &(RefKey, u32), before: &[(RefKey, u32)]| {
        before.iter().any(|(other, _)| other == key)
    };
    if refs.len() <= 16 && !refs.iter().enumerate().any(|(at, one)| is_in(one, &refs[..at])) {
        return Vec::new();
    }
    let mut keys: Vec<_> = refs.iter().map(|(key, _)| *key).collect();
    keys.sort_unstable();
    let mut twice: Vec<_> =
        keys.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    twice.dedup();
    twice
}

/// The sum of the references' counts. It cannot overflow: there are fewer than 2^32 of them.
pub(super) fn sum_of_counts(refs: &[(RefKey, u32)]) -> u64 {
    refs.iter().map(|(_, count)| u64::from(*count)).sum()
}
