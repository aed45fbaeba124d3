//! Where kernels that do not describe btrfs keep what is needed of its structures, by their
//! release: Debian's 5.10 has BTF of itself, but not of its modules.
//!
//! From the definitions in the sources of 5.10, 6.1, 6.12, 7.2 and 7.3, 64-bit, without
//! `CONFIG_BTRFS_FS_REF_VERIFY` and `CONFIG_BTRFS_DEBUG`; docs/kernels.md has the same as a table.
//! All of them are read with kprobes only. What is not of btrfs comes from the BTF of vmlinux.

use refverify_common::Layout;

use super::{Finder, GroupBound, KernelLayout, KernelTypes, LayoutError, RefFields};
use crate::agent::btf::Field;

/// The first release that the table knows, and the last.
const KNOWN: std::ops::RangeInclusive<Version> = (5, 10)..=(7, 3);

/// The first two numbers of a release.
pub(in crate::agent) type Version = (u32, u32);

/// The first two numbers of `uname -r`; what is not understood counts as old.
pub(in crate::agent) fn version_of(release: &str) -> Version {
    let mut numbers = release.split(|it: char| !it.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    }
}

/// What such a kernel cannot tell, one sentence each.
pub(super) const UNSEEN: &[&str] = &[
    "This kernel does not describe the types of btrfs (CONFIG_DEBUG_INFO_BTF_MODULES); they are \
     taken to be those of the mainline release with the same number.",
    "A file system that was mounted before is known by the UUID of its chunk tree: a copy of it \
     that was mounted before too is taken for it.",
];

/// The layout for kprobes on a kernel of this version. `has_ref_verify`: whether it was built with
/// `CONFIG_BTRFS_FS_REF_VERIFY`, which moves members of `struct btrfs_ref` from 5.16 on.
pub(super) fn for_kprobes(
    version: Version,
    has_ref_verify: bool,
    types: &KernelTypes,
) -> Result<KernelLayout, LayoutError> {
    if !KNOWN.contains(&version) || (has_ref_verify && version >= (5, 16)) {
        return Err(LayoutError::NoModuleBtf { file: "/sys/kernel/btf/btrfs" });
    }
    let find = Finder(types);
    let (tree, data, len_bytes) = btrfs_ref(version);
    let (group_bound, group_start, group_len) = removed_group(version);
    let ebpf = Layout {
        tree_start: 0,
        tree_len_bytes: len_bytes,
        data_start: 0,
        data_len_bytes: len_bytes,
        trans_transid: 0,
        trans_fs_info: trans_fs_info(version),
        trans_fs_info_or: trans_fs_info(version) + 8,
        // The first member in 5.10 to 7.3.
        fs_info_chunk_tree_uuid: 0,
        group_start,
        group_len,
        super_fs_info: find.offset("super_block.s_fs_info")?,
        super_id: find.offset("super_block.s_id")?,
        task_journal_info: find.offset("task_struct.journal_info")?,
        ..Layout::UNKNOWN
    };
    Ok(KernelLayout { ebpf, group_bound: Some(group_bound), tree, data })
}

/// `btrfs_trans_handle.fs_info`: `root`, before it, went in 5.17; 6.7 added two members of 8
/// bytes. Or 8 bytes further: the member `pending_snapshot` came in with a fix that went into
/// stable kernels too. 5.10.223 is without it, 5.10.262 and 6.1.187 have it.
fn trans_fs_info(version: Version) -> u32 {
    match version {
        (..5, _) | (5, ..17) => 80,
        (..6, _) | (6, ..7) => 72,
        _ => 88,
    }
}

/// The argument that bounds a removed group, and where its start and length are.
fn removed_group(version: Version) -> (GroupBound, u32, u32) {
    if version < (6, 8) { (GroupBound::ExtentMap, 24, 32) } else { (GroupBound::ChunkMap, 32, 40) }
}

/// `struct btrfs_ref`: how it tells of a tree block, how of data, and its size.
fn btrfs_ref(version: Version) -> (RefFields, RefFields, u32) {
    match version {
        (..5, _) | (5, ..16) => with_root_in_union(word(24), 48, int(4), 72),
        (..6, _) | (6, ..7) => with_root_in_union(word(16), 40, int(4), 64),
        (6, ..10) => {
            let (tree, data, len_bytes) = with_root_in_union(word(8), 40, byte(1), 64);
            // The quota's owner came in before the parent.
            let moved = |fields: RefFields| RefFields {
                parent: word(32),
                owning_root: Some(word(24)),
                ..fields
            };
            (moved(tree), moved(data), len_bytes)
        }
        _ => {
            let any = RefFields {
                bytenr: word(8),
                len_bytes: word(16),
                root: word(32),
                parent: word(40),
                owner: int(48),
                offset: None,
                action: Some(byte(1)),
                owning_root: Some(word(24)),
            };
            (any, RefFields { owner: word(48), offset: Some(word(56)), ..any }, 64)
        }
    }
}

/// Up to 6.9 the root is in the union, behind the level of a tree block, before the inode of
/// data. The parent is behind the length.
fn with_root_in_union(
    bytenr: Field,
    union: u32,
    action: Field,
    len_bytes: u32,
) -> (RefFields, RefFields, u32) {
    let tree = RefFields {
        bytenr,
        len_bytes: word(bytenr.offset + 8),
        root: word(union + 8),
        parent: word(bytenr.offset + 16),
        owner: int(union),
        offset: None,
        action: Some(action),
        owning_root: None,
    };
    let data = RefFields {
        root: word(union),
        owner: word(union + 8),
        offset: Some(word(union + 16)),
        ..tree
    };
    (tree, data, len_bytes)
}

const fn byte(offset: u32) -> Field {
    Field { offset, len_bytes: 1 }
}

const fn int(offset: u32) -> Field {
    Field { offset, len_bytes: 4 }
}

const fn word(offset: u32) -> Field {
    Field { offset, len_bytes: 8 }
}
