//! Where this kernel keeps what is needed of its structures.
//!
//! Offsets and sizes both come from BTF: the release number says little, since vendors
//! backport, and a member that kept its offset may have shrunk (`btrfs_ref.action`: 4 bytes
//! up to 6.6, 1 byte after). docs/kernels.md lists the known forms. Only where a kernel does not
//! describe btrfs its release has to do ([`table`]).

use refverify_common::{ABSENT, Layout, PAYLOAD_MAX_BYTES, commit_argument};

use super::btf::{Field, KernelTypes};

mod table;

pub(super) use table::version_of;

/// This kernel's structures cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The types of btrfs are not described at all, and not known from the release either.
    #[error(
        "this kernel does not describe the types of btrfs: {file} does not exist and vmlinux \
         does not have them; a kernel with CONFIG_DEBUG_INFO_BTF_MODULES=y is needed, or one \
         from 5.10 to 7.3 with kprobes and without CONFIG_BTRFS_FS_REF_VERIFY"
    )]
    NoModuleBtf {
        /// The file that should be there.
        file: &'static str,
    },
    /// One of them is not as any known kernel has it.
    #[error(
        "this kernel's type information has no {what}; its btrfs differs from all kernels \
         known to this program (5.10 to 7.3)"
    )]
    Unknown {
        /// The member, structure or tracepoint.
        what: String,
    },
    /// The kernel's object does not fit into a record.
    #[error("this kernel's {what} has {len_bytes} bytes, more than a record can hold")]
    TooLong {
        /// The structure.
        what: &'static str,
        /// Its length.
        len_bytes: u32,
    },
}

/// Where the parts of a reference lie in a record's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RefFields {
    /// The extent.
    pub bytenr: Field,
    /// Its length.
    pub len_bytes: Field,
    /// The tree that holds the reference.
    pub root: Field,
    /// The tree block that holds it, or 0.
    pub parent: Field,
    /// The level of a tree block, or the inode.
    pub owner: Field,
    /// File offset less extent offset; data only.
    pub offset: Option<Field>,
    /// The action, where the payload has it unconverted.
    pub action: Option<Field>,
    /// The simple-quota owner, from 6.7 on.
    pub owning_root: Option<Field>,
}

/// What bounds a block group that is removed, in the hook that tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupBound {
    /// The third argument of the function, up to 6.7.
    ExtentMap,
    /// The second argument of the function, from 6.8 on.
    ChunkMap,
    /// The group itself, the argument of the tracepoint.
    BlockGroup,
}

/// All that is known of this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelLayout {
    /// What the eBPF programs need.
    pub(super) ebpf: Layout,
    /// How a removed block group is told; none where it is not.
    pub(super) group_bound: Option<GroupBound>,
    /// How a tree block's reference is read.
    pub tree: RefFields,
    /// How a data reference is read.
    pub data: RefFields,
}

/// Finds fields, or says which one is missing.
struct Finder<'a>(&'a KernelTypes);

impl Finder<'_> {
    fn field(&self, path: &str) -> Result<Field, LayoutError> {
        self.first(&[path])
    }

    fn first(&self, paths: &[&str]) -> Result<Field, LayoutError> {
        self.0.first_field(paths).ok_or_else(|| LayoutError::Unknown { what: paths.join(" or ") })
    }

    fn offset(&self, path: &str) -> Result<u32, LayoutError> {
        Ok(self.field(path)?.offset)
    }

    fn arguments(&self, tracepoint: &str) -> Result<Vec<String>, LayoutError> {
        let arguments = self.0.tracepoint_arguments(tracepoint);
        arguments.ok_or_else(|| LayoutError::Unknown { what: format!("tracepoint {tracepoint}") })
    }
}

impl KernelLayout {
    /// The layout for kprobes. The release and `has_ref_verify` (whether the kernel was built with
    /// `CONFIG_BTRFS_FS_REF_VERIFY`) count only where the types of btrfs are not described.
    pub(super) fn for_kprobes(
        types: &KernelTypes,
        release: &str,
        has_ref_verify: bool,
    ) -> Result<Self, LayoutError> {
        if !describes_btrfs(types) {
            return table::for_kprobes(version_of(release), has_ref_verify, types);
        }
        let find = Finder(types);
        let mut ebpf = common(types)?;
        ebpf.super_fs_info = find.offset("super_block.s_fs_info")?;
        let group_bound = Some(removed_group_of(&find, &mut ebpf)?);
        let len_bytes = types.structure_len_bytes("btrfs_ref").unwrap_or(0);
        check_len("struct btrfs_ref", len_bytes)?;
        (ebpf.tree_len_bytes, ebpf.data_len_bytes) = (len_bytes, len_bytes);
        let (tree, data) = (tree_ref_fields(types)?, data_ref_fields(types)?);
        Ok(Self { ebpf, group_bound, tree, data })
    }

    /// Whether the way from a `btrfs_fs_info` to its device is known.
    pub(super) fn knows_devices(&self) -> bool {
        self.ebpf.fs_info_fs_devices != ABSENT
    }

    /// What cannot be seen for want of a description, one sentence each.
    pub(super) fn unseen(&self) -> &'static [&'static str] {
        if self.knows_devices() { &[] } else { table::UNSEEN }
    }

    /// The layout for raw tracepoints.
    pub(super) fn for_tracepoints(types: &KernelTypes) -> Result<Self, LayoutError> {
        let find = Finder(types);
        let mut ebpf = common(types)?;
        check_prototype(
            &find,
            "add_delayed_ref_head",
            &["btrfs_fs_info", "btrfs_delayed_ref_head", "int"],
        )?;
        for name in ["add_delayed_tree_ref", "add_delayed_data_ref"] {
            check_prototype(&find, name, &["btrfs_fs_info", "btrfs_delayed_ref_node"])?;
        }
        for name in ["btrfs_workqueue_alloc", "btrfs_workqueue_destroy"] {
            check_prototype(&find, name, &["btrfs_workqueue"])?;
        }
        ebpf.workqueue_fs_info = find.offset("btrfs_workqueue.fs_info")?;
        ebpf.fs_info_workers = find.offset("btrfs_fs_info.workers")?;
        ebpf.head_bytenr = find.offset("btrfs_delayed_ref_head.bytenr")?;
        ebpf.node_bytenr = find.offset("btrfs_delayed_ref_node.bytenr")?;
        ebpf.stack_skip_frames = TRACEPOINT_FRAMES;
        commit_of(&find, &mut ebpf)?;
        // The payload begins at the bytenr: what lies before is of no use.
        let start = ebpf.node_bytenr;
        let tree_len = node_len_bytes(types, "btrfs_delayed_tree_ref").saturating_sub(start);
        let data_len = node_len_bytes(types, "btrfs_delayed_data_ref").saturating_sub(start);
        check_len("struct btrfs_delayed_tree_ref", tree_len)?;
        check_len("struct btrfs_delayed_data_ref", data_len)?;
        (ebpf.tree_start, ebpf.tree_len_bytes) = (start, tree_len);
        (ebpf.data_start, ebpf.data_len_bytes) = (start, data_len);
        let tree = tree_node_fields(types)?.moved_back(start, tree_len);
        let data = data_node_fields(types)?.moved_back(start, data_len);
        let outside =
            || LayoutError::Unknown { what: "delayed ref node after its bytenr".to_owned() };
        let (tree, data) = (tree.ok_or_else(outside)?, data.ok_or_else(outside)?);
        let traces_groups = types.tracepoint_arguments("btrfs_remove_block_group").is_some();
        let group_bound = traces_groups.then_some(GroupBound::BlockGroup);
        if traces_groups {
            ebpf.group_start = find.offset("btrfs_block_group.start")?;
            ebpf.group_len = find.offset("btrfs_block_group.length")?;
            ebpf.group_fs_info = find.offset("btrfs_block_group.fs_info")?;
        }
        Ok(Self { ebpf, group_bound, tree, data })
    }
}

/// How many innermost frames of a raw tracepoint's stack are the tracing's own: the program
/// and the function that runs it.
const TRACEPOINT_FRAMES: u32 = 2;

fn describes_btrfs(types: &KernelTypes) -> bool {
    types.structure_len_bytes("btrfs_fs_info").is_some()
}

fn common(types: &KernelTypes) -> Result<Layout, LayoutError> {
    if !describes_btrfs(types) {
        return Err(LayoutError::NoModuleBtf { file: "/sys/kernel/btf/btrfs" });
    }
    let find = Finder(types);
    let optional = |path| types.field(path).map_or(ABSENT, |field| field.offset);
    let (latest, bdev) = match types.field("btrfs_fs_devices.latest_dev") {
        Some(latest) => (latest.offset, find.offset("btrfs_device.bdev")?),
        // Up to 5.15 it is the block device itself.
        None => (find.offset("btrfs_fs_devices.latest_bdev")?, ABSENT),
    };
    Ok(Layout {
        trans_transid: find.offset("btrfs_trans_handle.transid")?,
        trans_fs_info: find.offset("btrfs_trans_handle.fs_info")?,
        fs_info_fs_devices: find.offset("btrfs_fs_info.fs_devices")?,
        fs_info_last_trans_committed: find.offset("btrfs_fs_info.last_trans_committed")?,
        fs_info_generation: find.offset("btrfs_fs_info.generation")?,
        fs_info_fs_error: optional("btrfs_fs_info.fs_error"),
        fs_devices_latest: latest,
        device_bdev: bdev,
        bdev_dev: find.offset("block_device.bd_dev")?,
        task_journal_info: find.offset("task_struct.journal_info")?,
        ..Layout::UNKNOWN
    })
}

/// What the argument of `btrfs_transaction_commit` is: the tracepoint's own prototype says.
fn commit_of(find: &Finder<'_>, ebpf: &mut Layout) -> Result<(), LayoutError> {
    let arguments = find.arguments("btrfs_transaction_commit")?;
    match arguments.first().map(String::as_str) {
        Some("btrfs_fs_info") => ebpf.commit_argument = commit_argument::FS_INFO,
        Some("btrfs_root") => {
            ebpf.commit_argument = commit_argument::ROOT;
            ebpf.root_fs_info = find.offset("btrfs_root.fs_info")?;
        }
        Some("btrfs_trans_handle") => {
            ebpf.commit_argument = commit_argument::TRANS;
            ebpf.trans_transaction = find.offset("btrfs_trans_handle.transaction")?;
            ebpf.transaction_state = find.offset("btrfs_transaction.state")?;
            let state = find.0.enumerator("btrfs_trans_state", "TRANS_STATE_SUPER_COMMITTED");
            ebpf.state_super_committed = state.ok_or_else(|| LayoutError::Unknown {
                what: "TRANS_STATE_SUPER_COMMITTED".to_owned(),
            })?;
        }
        _ => {
            let what = format!("btrfs_transaction_commit({})", arguments.join(", "));
            return Err(LayoutError::Unknown { what });
        }
    }
    Ok(())
}

/// Which argument of `btrfs_remove_block_group` bounds the group, and where in it. An extent
/// map, the third, up to 6.7; a chunk map, the second, from 6.8 on.
fn removed_group_of(find: &Finder<'_>, ebpf: &mut Layout) -> Result<GroupBound, LayoutError> {
    let name = "btrfs_remove_block_group";
    let missing = || LayoutError::Unknown { what: format!("known form of {name}") };
    let arguments = find.0.function_arguments(name).ok_or_else(missing)?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (bound, start, len) = match arguments[..] {
        [_, _, "extent_map"] => (GroupBound::ExtentMap, "extent_map.start", "extent_map.len"),
        [_, "btrfs_chunk_map"] => {
            (GroupBound::ChunkMap, "btrfs_chunk_map.start", "btrfs_chunk_map.chunk_len")
        }
        _ => return Err(missing()),
    };
    (ebpf.group_start, ebpf.group_len) = (find.offset(start)?, find.offset(len)?);
    Ok(bound)
}

fn check_prototype(find: &Finder<'_>, name: &str, expected: &[&str]) -> Result<(), LayoutError> {
    let arguments = find.arguments(name)?;
    if arguments.len() >= expected.len() && arguments.iter().zip(expected).all(|(a, b)| a == b) {
        return Ok(());
    }
    Err(LayoutError::Unknown { what: format!("{name}({}, ...)", expected.join(", ")) })
}

fn check_len(what: &'static str, len_bytes: u32) -> Result<(), LayoutError> {
    match usize::try_from(len_bytes) {
        Ok(1..=PAYLOAD_MAX_BYTES) => Ok(()),
        Ok(0) => Err(LayoutError::Unknown { what: what.to_owned() }),
        _ => Err(LayoutError::TooLong { what, len_bytes }),
    }
}

/// `struct btrfs_ref`, for a tree block. The root that counts is the one of the reference:
/// `ref_root` from 6.10 on, before that the union's root under three names. The *outer*
/// `owning_root` (6.7 and later) is the simple-quota owner and no key.
fn tree_ref_fields(types: &KernelTypes) -> Result<RefFields, LayoutError> {
    let find = Finder(types);
    Ok(RefFields {
        root: find.first(&[
            "btrfs_ref.ref_root",
            "btrfs_ref.tree_ref.ref_root",
            "btrfs_ref.tree_ref.owning_root",
            "btrfs_ref.tree_ref.root",
        ])?,
        owner: find.field("btrfs_ref.tree_ref.level")?,
        offset: None,
        ..any_ref_fields(types)?
    })
}

/// `struct btrfs_ref`, for data; roots as above.
fn data_ref_fields(types: &KernelTypes) -> Result<RefFields, LayoutError> {
    let find = Finder(types);
    Ok(RefFields {
        root: find.first(&[
            "btrfs_ref.ref_root",
            "btrfs_ref.data_ref.ref_root",
            "btrfs_ref.data_ref.owning_root",
        ])?,
        owner: find.first(&["btrfs_ref.data_ref.objectid", "btrfs_ref.data_ref.ino"])?,
        offset: Some(find.field("btrfs_ref.data_ref.offset")?),
        ..any_ref_fields(types)?
    })
}

fn any_ref_fields(types: &KernelTypes) -> Result<RefFields, LayoutError> {
    let find = Finder(types);
    let bytenr = find.field("btrfs_ref.bytenr")?;
    Ok(RefFields {
        bytenr,
        len_bytes: find.first(&["btrfs_ref.num_bytes", "btrfs_ref.len"])?,
        root: bytenr,
        parent: find.field("btrfs_ref.parent")?,
        owner: bytenr,
        offset: None,
        action: Some(find.field("btrfs_ref.action")?),
        owning_root: types.field("btrfs_ref.owning_root"),
    })
}

/// A delayed ref's node, for a tree block: one structure from 6.10 on, before that the node
/// is the first member of `btrfs_delayed_tree_ref`.
fn tree_node_fields(types: &KernelTypes) -> Result<RefFields, LayoutError> {
    let find = Finder(types);
    Ok(RefFields {
        root: find.first(&["btrfs_delayed_tree_ref.root", "btrfs_delayed_ref_node.ref_root"])?,
        parent: find.first(&["btrfs_delayed_tree_ref.parent", "btrfs_delayed_ref_node.parent"])?,
        owner: find
            .first(&["btrfs_delayed_tree_ref.level", "btrfs_delayed_ref_node.tree_ref.level"])?,
        offset: None,
        ..any_node_fields(types)?
    })
}

/// A delayed ref's node, for data; as above.
fn data_node_fields(types: &KernelTypes) -> Result<RefFields, LayoutError> {
    let find = Finder(types);
    Ok(RefFields {
        root: find.first(&["btrfs_delayed_data_ref.root", "btrfs_delayed_ref_node.ref_root"])?,
        parent: find.first(&["btrfs_delayed_data_ref.parent", "btrfs_delayed_ref_node.parent"])?,
        owner: find.first(&[
            "btrfs_delayed_data_ref.objectid",
            "btrfs_delayed_ref_node.data_ref.objectid",
        ])?,
        offset: Some(
            find.first(&[
                "btrfs_delayed_data_ref.offset",
                "btrfs_delayed_ref_node.data_ref.offset",
            ])?,
        ),
        ..any_node_fields(types)?
    })
}

fn any_node_fields(types: &KernelTypes) -> Result<RefFields, LayoutError> {
    let find = Finder(types);
    let bytenr = find.field("btrfs_delayed_ref_node.bytenr")?;
    Ok(RefFields {
        bytenr,
        len_bytes: find.field("btrfs_delayed_ref_node.num_bytes")?,
        root: bytenr,
        parent: bytenr,
        owner: bytenr,
        offset: None,
        action: None,
        owning_root: None,
    })
}

fn node_len_bytes(types: &KernelTypes, before_6_10: &str) -> u32 {
    let outer = types.structure_len_bytes(before_6_10);
    outer.or_else(|| types.structure_len_bytes("btrfs_delayed_ref_node")).unwrap_or(0)
}

impl RefFields {
    /// The same fields in a copy that begins `start` bytes later and has `len_bytes`; none if
    /// one of them lies outside.
    fn moved_back(self, start: u32, len_bytes: u32) -> Option<Self> {
        let moved = |field: Field| {
            let offset = field.offset.checked_sub(start)?;
            (offset + field.len_bytes <= len_bytes).then_some(Field { offset, ..field })
        };
        let moved_option = |field: Option<Field>| match field {
            Some(field) => moved(field).map(Some),
            None => Some(None),
        };
        Some(Self {
            bytenr: moved(self.bytenr)?,
            len_bytes: moved(self.len_bytes)?,
            root: moved(self.root)?,
            parent: moved(self.parent)?,
            owner: moved(self.owner)?,
            offset: moved_option(self.offset)?,
            action: moved_option(self.action)?,
            owning_root: moved_option(self.owning_root)?,
        })
    }
}

#[cfg(test)]
mod tests;
