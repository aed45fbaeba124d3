//! The forms that the structures had in 5.10 to 7.3 (docs/kernels.md), as BTF blobs.

use super::*;
use crate::agent::btf_fixture::BtfBuilder;

/// All but `btrfs_ref`, the delayed nodes and the tracepoints.
fn rest_of_kernel(latest: &str) -> BtfBuilder {
    let mut btf = BtfBuilder::new();
    btf.structure("btrfs_fs_devices", 336, &[(latest, "ptr", 104)])
        .structure("btrfs_device", 536, &[("bdev", "ptr", 88)])
        .structure("block_device", 64, &[("bd_dev", "u32", 52)])
        .structure("super_block", 900, &[("s_fs_info", "ptr", 840)])
        .structure("task_struct", 9000, &[("journal_info", "ptr", 3000)])
        .structure(
            "btrfs_trans_handle",
            168,
            &[("transid", "u64", 0), ("transaction", "ptr", 48), ("fs_info", "ptr", 96)],
        )
        .structure("btrfs_root", 900, &[("fs_info", "ptr", 240)])
        .structure(
            "btrfs_block_group",
            900,
            &[("fs_info", "ptr", 0), ("start", "u64", 24), ("length", "u64", 32)],
        )
        .structure("btrfs_workqueue", 64, &[("fs_info", "ptr", 8)])
        .structure(
            "btrfs_fs_info",
            3000,
            &[
                ("generation", "u64", 100),
                ("last_trans_committed", "u64", 108),
                ("fs_devices", "ptr", 400),
                ("workers", "ptr", 408),
            ],
        )
        .structure("extent_map", 96, &[("start", "u64", 24), ("len", "u64", 32)])
        .structure("btrfs_chunk_map", 64, &[("start", "u64", 32), ("chunk_len", "u64", 40)]);
    let with_extent_map: &[&str] = &["btrfs_trans_handle", "u64", "extent_map"];
    let with_chunk_map: &[&str] = &["btrfs_trans_handle", "btrfs_chunk_map"];
    let is_old = latest == "latest_bdev";
    let arguments = if is_old { with_extent_map } else { with_chunk_map };
    btf.function("btrfs_remove_block_group", arguments);
    btf
}

/// 5.2 to 5.15: an integer action, the real root before the bytenr, roots in the union.
fn add_ref_of_5_10(btf: &mut BtfBuilder) {
    btf.structure(
        "btrfs_data_ref",
        24,
        &[("ref_root", "u64", 0), ("ino", "u64", 8), ("offset", "u64", 16)],
    )
    .structure("btrfs_tree_ref", 16, &[("level", "int", 0), ("root", "u64", 8)])
    .union("ref.union", 24, &[("data_ref", "btrfs_data_ref", 0), ("tree_ref", "btrfs_tree_ref", 0)])
    .structure(
        "btrfs_ref",
        72,
        &[
            ("type", "u32", 0),
            ("action", "int", 4),
            ("skip_qgroup", "u8", 8),
            ("real_root", "u64", 16),
            ("bytenr", "u64", 24),
            ("len", "u64", 32),
            ("parent", "u64", 40),
            ("", "ref.union", 48),
        ],
    );
}

/// 5.16 to 6.6: the root in the union is called `owning_root`, but it is the key.
fn add_ref_of_6_1(btf: &mut BtfBuilder) {
    btf.structure(
        "btrfs_data_ref",
        24,
        &[("owning_root", "u64", 0), ("ino", "u64", 8), ("offset", "u64", 16)],
    )
    .structure("btrfs_tree_ref", 16, &[("level", "int", 0), ("owning_root", "u64", 8)])
    .union("ref.union", 24, &[("data_ref", "btrfs_data_ref", 0), ("tree_ref", "btrfs_tree_ref", 0)])
    .structure(
        "btrfs_ref",
        64,
        &[
            ("type", "u32", 0),
            ("action", "int", 4),
            ("skip_qgroup", "u8", 8),
            ("bytenr", "u64", 16),
            ("len", "u64", 24),
            ("parent", "u64", 32),
            ("", "ref.union", 40),
        ],
    );
}

/// 6.7 to 6.9: an action of one byte, an outer `owning_root` that is the quota's.
fn add_ref_of_6_7(btf: &mut BtfBuilder) {
    btf.structure(
        "btrfs_data_ref",
        24,
        &[("ref_root", "u64", 0), ("ino", "u64", 8), ("offset", "u64", 16)],
    )
    .structure("btrfs_tree_ref", 16, &[("level", "int", 0), ("ref_root", "u64", 8)])
    .union("ref.union", 24, &[("data_ref", "btrfs_data_ref", 0), ("tree_ref", "btrfs_tree_ref", 0)])
    .structure(
        "btrfs_ref",
        64,
        &[
            ("type", "u8", 0),
            ("action", "u8", 1),
            ("skip_qgroup", "u8", 2),
            ("bytenr", "u64", 8),
            ("len", "u64", 16),
            ("owning_root", "u64", 24),
            ("parent", "u64", 32),
            ("", "ref.union", 40),
        ],
    );
}

/// 6.10 to 7.3: one root for both.
fn add_ref_of_6_12(btf: &mut BtfBuilder) {
    btf.structure("btrfs_data_ref", 16, &[("objectid", "u64", 0), ("offset", "u64", 8)])
        .structure("btrfs_tree_ref", 4, &[("level", "int", 0)])
        .union(
            "ref.union",
            16,
            &[("data_ref", "btrfs_data_ref", 0), ("tree_ref", "btrfs_tree_ref", 0)],
        )
        .structure(
            "btrfs_ref",
            64,
            &[
                ("type", "u8", 0),
                ("action", "u8", 1),
                ("skip_qgroup", "u8", 2),
                ("bytenr", "u64", 8),
                ("num_bytes", "u64", 16),
                ("owning_root", "u64", 24),
                ("ref_root", "u64", 32),
                ("parent", "u64", 40),
                ("", "ref.union", 48),
            ],
        );
}

/// The tracepoints and nodes of 6.10 and later, as this machine's 6.18 describes them.
fn add_nodes_of_6_18(btf: &mut BtfBuilder, commit: &str) {
    btf.structure("btrfs_delayed_ref_head", 128, &[("bytenr", "u64", 0)])
        .union(
            "node.union",
            16,
            &[("tree_ref", "btrfs_tree_ref", 0), ("data_ref", "btrfs_data_ref", 0)],
        )
        .structure(
            "btrfs_delayed_ref_node",
            112,
            &[
                ("bytenr", "u64", 40),
                ("num_bytes", "u64", 48),
                ("ref_root", "u64", 64),
                ("parent", "u64", 72),
                ("", "node.union", 96),
            ],
        )
        .tracepoint("add_delayed_ref_head", &["btrfs_fs_info", "btrfs_delayed_ref_head", "int"])
        .tracepoint("add_delayed_tree_ref", &["btrfs_fs_info", "btrfs_delayed_ref_node"])
        .tracepoint("add_delayed_data_ref", &["btrfs_fs_info", "btrfs_delayed_ref_node"])
        .tracepoint("btrfs_workqueue_alloc", &["btrfs_workqueue"])
        .tracepoint("btrfs_workqueue_destroy", &["btrfs_workqueue"])
        .tracepoint("btrfs_transaction_commit", &[commit]);
}

const fn field(offset: u32, len_bytes: u32) -> Field {
    Field { offset, len_bytes }
}

/// The release is one of which nothing is known: it must not matter.
fn for_described_kprobes(btf: &BtfBuilder) -> Result<KernelLayout, LayoutError> {
    KernelLayout::for_kprobes(&btf.build(), "3.2.1", true)
}

/// Offsets of bytenr, length, parent; root, level; root, inode, offset; and the action.
fn offsets(layout: &KernelLayout) -> ([u32; 3], [u32; 2], [Option<u32>; 3], Option<Field>) {
    let KernelLayout { tree, data, .. } = layout;
    assert_eq!(
        (tree.bytenr, tree.len_bytes, tree.parent),
        (data.bytenr, data.len_bytes, data.parent)
    );
    (
        [tree.bytenr, tree.len_bytes, tree.parent].map(|field| field.offset),
        [tree.root.offset, tree.owner.offset],
        [Some(data.root), Some(data.owner), data.offset].map(|field| field.map(|it| it.offset)),
        tree.action,
    )
}

#[test]
fn every_known_form_of_btrfs_ref_is_found_with_the_root_that_is_the_key() {
    type Add = fn(&mut BtfBuilder);
    let cases: [(Add, _, _, _, _, _, _); 4] = [
        (add_ref_of_5_10, [24, 32, 40], [56, 48], [48, 56, 64], field(4, 4), None, 72),
        (add_ref_of_6_1, [16, 24, 32], [48, 40], [40, 48, 56], field(4, 4), None, 64),
        (add_ref_of_6_7, [8, 16, 32], [48, 40], [40, 48, 56], field(1, 1), Some(24), 64),
        (add_ref_of_6_12, [8, 16, 40], [32, 48], [32, 48, 56], field(1, 1), Some(24), 64),
    ];
    for (add, common, tree, data, action, owning_root, len_bytes) in cases {
        let mut btf = rest_of_kernel("latest_dev");
        add(&mut btf);
        let layout = for_described_kprobes(&btf).expect("known");
        assert_eq!(offsets(&layout), (common, tree, data.map(Some), Some(action)));
        assert_eq!(layout.tree.owning_root.map(|field| field.offset), owning_root);
        assert_eq!((layout.ebpf.tree_len_bytes, layout.ebpf.tree_start), (len_bytes, 0));
    }
}

#[test]
fn before_5_16_the_latest_device_is_the_block_device_itself() {
    let mut btf = rest_of_kernel("latest_bdev");
    add_ref_of_5_10(&mut btf);
    let layout = for_described_kprobes(&btf).expect("known").ebpf;
    assert_eq!((layout.fs_devices_latest, layout.device_bdev), (104, ABSENT));
}

#[test]
fn the_argument_that_bounds_a_removed_group_is_found_by_the_prototype() {
    for (latest, expected) in [
        ("latest_bdev", (Some(GroupBound::ExtentMap), 24, 32)),
        ("latest_dev", (Some(GroupBound::ChunkMap), 32, 40)),
    ] {
        let mut btf = rest_of_kernel(latest);
        add_ref_of_6_12(&mut btf);
        let layout = for_described_kprobes(&btf).expect("known");
        let KernelLayout { ebpf, group_bound, .. } = layout;
        assert_eq!((group_bound, ebpf.group_start, ebpf.group_len), expected);
    }
}

#[test]
fn a_delayed_node_is_copied_from_its_bytenr_on() {
    let mut btf = rest_of_kernel("latest_dev");
    add_ref_of_6_12(&mut btf);
    add_nodes_of_6_18(&mut btf, "btrfs_fs_info");
    let layout = KernelLayout::for_tracepoints(&btf.build()).expect("known");
    assert_eq!((layout.ebpf.tree_start, layout.ebpf.tree_len_bytes), (40, 72));
    assert_eq!(offsets(&layout), ([0, 8, 32], [24, 56], [24, 56, 64].map(Some), None));
    assert_eq!(layout.ebpf.commit_argument, commit_argument::FS_INFO);
    assert_eq!(layout.group_bound, None, "no tracepoint btrfs_remove_block_group");
}

#[test]
fn the_commit_tracepoint_is_read_by_its_own_prototype() {
    let mut btf = rest_of_kernel("latest_dev");
    add_ref_of_6_12(&mut btf);
    add_nodes_of_6_18(&mut btf, "btrfs_root");
    let layout = KernelLayout::for_tracepoints(&btf.build()).expect("known").ebpf;
    assert_eq!((layout.commit_argument, layout.root_fs_info), (commit_argument::ROOT, 240));

    let mut btf = rest_of_kernel("latest_dev");
    add_ref_of_6_12(&mut btf);
    add_nodes_of_6_18(&mut btf, "btrfs_block_group");
    let error = KernelLayout::for_tracepoints(&btf.build()).expect_err("no such argument");
    assert!(error.to_string().contains("btrfs_transaction_commit(btrfs_block_group)"), "{error}");
}

#[test]
fn a_kernel_that_does_not_describe_btrfs_is_refused_by_name() {
    let error = KernelLayout::for_tracepoints(&BtfBuilder::new().build()).expect_err("nothing");
    assert!(error.to_string().contains("/sys/kernel/btf/btrfs"), "{error}");
    let error = for_described_kprobes(&rest_of_kernel("latest_dev")).expect_err("no ref");
    assert!(error.to_string().contains("btrfs_ref"), "{error}");
}

#[test]
fn an_object_longer_than_a_record_is_refused_not_cut() {
    let mut btf = rest_of_kernel("latest_dev");
    add_ref_of_6_12(&mut btf);
    btf.structure("btrfs_delayed_data_ref", 120, &[]);
    add_nodes_of_6_18(&mut btf, "btrfs_fs_info");
    let error = KernelLayout::for_tracepoints(&btf.build()).expect_err("80 bytes");
    let what = "struct btrfs_delayed_data_ref";
    assert_eq!(error, LayoutError::TooLong { what, len_bytes: 80 });
}

/// What vmlinux describes of a kernel whose btrfs is a module without BTF.
fn vmlinux_alone() -> BtfBuilder {
    let mut btf = BtfBuilder::new();
    btf.structure("super_block", 1400, &[("s_fs_info", "ptr", 936), ("s_id", "ptr", 984)])
        .structure("task_struct", 9000, &[("journal_info", "ptr", 3000)]);
    btf
}

fn from_table(release: &str) -> Result<KernelLayout, LayoutError> {
    KernelLayout::for_kprobes(&vmlinux_alone().build(), release, false)
}

/// A real structure and the table must say the same: both come from the same definitions.
#[test]
fn the_table_says_what_btf_would_for_every_form_of_btrfs_ref() {
    type Add = fn(&mut BtfBuilder);
    let cases: [(Add, &[&str]); 4] = [
        (add_ref_of_5_10, &["5.10.0-32-amd64", "5.15.160"]),
        (add_ref_of_6_1, &["5.16.0", "5.17.1", "6.1.0-53-amd64", "6.6.99"]),
        (add_ref_of_6_7, &["6.7.0", "6.9-rc1"]),
        (add_ref_of_6_12, &["6.10.0", "6.12.107+deb13-amd64", "7.0.1", "7.3.4"]),
    ];
    for (add, releases) in cases {
        let mut btf = rest_of_kernel("latest_dev");
        add(&mut btf);
        let described = for_described_kprobes(&btf).expect("known");
        for release in releases {
            let KernelLayout { ebpf, tree, data, .. } = from_table(release).expect("known");
            assert_eq!((tree, data), (described.tree, described.data), "{release}");
            let payload =
                |it: Layout| (it.tree_start, it.tree_len_bytes, it.data_start, it.data_len_bytes);
            assert_eq!(payload(ebpf), payload(described.ebpf), "{release}");
        }
    }
}

#[test]
fn the_table_knows_where_transaction_and_group_changed() {
    let map = Some(GroupBound::ExtentMap);
    let chunk = Some(GroupBound::ChunkMap);
    for (release, fs_info, expected) in [
        ("5.10.0", 80, (map, 24, 32)),
        ("5.16.9", 80, (map, 24, 32)),
        ("5.17.0", 72, (map, 24, 32)),
        ("6.6.0", 72, (map, 24, 32)),
        ("6.7.12", 88, (map, 24, 32)),
        ("6.8.0", 88, (chunk, 32, 40)),
        ("7.3.0", 88, (chunk, 32, 40)),
    ] {
        let KernelLayout { ebpf, group_bound, .. } = from_table(release).expect("known");
        assert_eq!((ebpf.trans_transid, ebpf.trans_fs_info), (0, fs_info), "{release}");
        assert_eq!(ebpf.trans_fs_info_or, fs_info + 8, "with pending_snapshot; {release}");
        assert_eq!((group_bound, ebpf.group_start, ebpf.group_len), expected, "{release}");
    }
}

#[test]
fn without_a_description_a_device_is_known_by_other_means_and_that_is_said() {
    let layout = from_table("5.10.0-32-amd64").expect("known");
    assert!(!layout.knows_devices() && layout.ebpf.bdev_dev == ABSENT);
    assert_eq!(layout.ebpf.fs_info_chunk_tree_uuid, 0);
    assert_eq!((layout.ebpf.super_fs_info, layout.ebpf.super_id), (936, 984));
    assert!(!layout.unseen().is_empty());
    let mut btf = rest_of_kernel("latest_dev");
    add_ref_of_6_12(&mut btf);
    let described = for_described_kprobes(&btf).expect("known");
    assert!(described.knows_devices() && described.unseen().is_empty());
}

#[test]
fn what_the_table_cannot_know_is_refused_not_guessed() {
    let refused = |layout: Result<KernelLayout, LayoutError>, why| match layout {
        Err(LayoutError::NoModuleBtf { .. }) => {}
        other => panic!("{why}: {other:?}"),
    };
    for release in ["5.9.16", "7.4.0-rc1", "8.0.0", "strange", ""] {
        refused(from_table(release), release);
    }
    let vmlinux = vmlinux_alone().build();
    let with_ref_verify = |release| KernelLayout::for_kprobes(&vmlinux, release, true);
    refused(with_ref_verify("5.16.0"), "the option moves members");
    assert!(with_ref_verify("5.15.0").is_ok(), "up to 5.15 it does not");
    refused(KernelLayout::for_tracepoints(&vmlinux), "tracepoints need more");
}
