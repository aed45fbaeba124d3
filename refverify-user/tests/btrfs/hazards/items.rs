//! Items of the extent tree.

use refverify_user::btrfs::{
    ExtentKind, RefKey,
    checks::DiskFault,
    format::{Key, item_type},
};

use super::{MIB, data_item, device_with, read, sound_item};
use crate::{
    image::Told,
    synthetic::{
        LEAVES_AT, data_ref, device_with_leaves, extent_item, inline_data_ref, inline_number_ref,
        key,
    },
};

/// The findings about a leaf's items, and that the next extent was read all the same.
fn findings_of(items: Vec<(Key, Vec<u8>)>) -> Vec<DiskFault> {
    let mut all = vec![sound_item(MIB)];
    all.extend(items);
    all.push(sound_item(100 * MIB));
    let told = read(&device_with(all));
    assert_eq!(told.failed, None);
    assert_eq!(told.extents.first().map(|extent| extent.bytenr), Some(MIB));
    assert_eq!(told.extents.last().map(|extent| extent.bytenr), Some(100 * MIB));
    assert!(told.findings.iter().all(|finding| finding.leaf == LEAVES_AT && finding.slot > 0));
    told.findings.into_iter().map(|finding| finding.fault).collect()
}

#[test]
fn keyed_refs_that_start_in_the_next_leaf_belong_to_their_extent() {
    let keyed = |hash, objectid| (key(MIB, 178, hash), data_ref(5, objectid, 0, 2));
    let tree = |root| (key(3 * MIB, item_type::TREE_BLOCK_REF, root), vec![]);
    let device = device_with_leaves(&[
        // Not one inline ref: all are in the next leaf.
        vec![(key(MIB, 168, 4096), extent_item(4, true, &[]))],
        vec![keyed(1, 300), keyed(2, 301), sound_item(2 * MIB)],
        // The level is in the item's key, and its refs are not with it.
        vec![(key(3 * MIB, 169, 3), extent_item(3, false, &[inline_number_ref(176, 9)]))],
        vec![tree(7)],
        vec![tree(8), sound_item(4 * MIB)],
    ]);
    let told = read(&device);
    assert_eq!(told.findings, []);
    assert_eq!(told.extents.len(), 4);
    let data = |objectid| (RefKey::data(5, 0, objectid, 0), 2);
    assert_eq!(told.extents[0].refs, [data(300), data(301)]);
    assert_eq!(told.extents[2].kind, ExtentKind::TreeBlock { level: 3 });
    assert_eq!(told.extents[2].refs, [9, 7, 8].map(|root| (RefKey::tree(root, 0, 3), 1)));
}

#[test]
fn a_keyed_ref_without_its_extent_is_not_given_to_the_one_before() {
    let orphan = (key(2 * MIB, 178, 77), data_ref(5, 300, 0, 1));
    assert_eq!(findings_of(vec![orphan]), [DiskFault::KeyedRefWithoutExtent { ref_type: 178 }]);
}

#[test]
fn what_the_inline_refs_say_is_checked() {
    let data = |refs: &[Vec<u8>]| findings_of(vec![data_item(2 * MIB, refs)]);
    let key = |root, objectid, offset| RefKey::data(root, 0, objectid, offset);
    assert_eq!(
        data(&[inline_data_ref(0, 257, 0, 1)]),
        [DiskFault::MissingRoot { key: key(0, 257, 0) }]
    );
    assert_eq!(
        data(&[inline_data_ref(5, 257, 0, 1), inline_data_ref(5, 257, 0, 1)]),
        [DiskFault::DuplicateRef { key: key(5, 257, 0) }]
    );
    for (root, objectid, offset) in
        [(6, 257, 0), (1 << 48, 257, 0), (5, 255, 0), (5, u64::MAX, 0), (5, 257, 1)]
    {
        assert_eq!(
            data(&[inline_data_ref(root, objectid, offset, 1)]),
            [DiskFault::ImplausibleDataRef { key: key(root, objectid, offset) }]
        );
    }
    assert_eq!(data(&[inline_data_ref(5, 257, (-4096_i64).cast_unsigned(), 1)]), []);
    assert_eq!(data(&[inline_data_ref(5, (-12_i64).cast_unsigned(), 0, 1)]), []);
    assert_eq!(data(&[inline_data_ref(1, 257, 0, 1)]), []);
    assert_eq!(data(&[inline_number_ref(176, 5)]), [DiskFault::RefOfOtherKind { ref_type: 176 }]);
    for cut_off in [&[178][..], &[0; 9], &[180; 9], &[188; 9], &inline_data_ref(5, 257, 0, 1)[..28]]
    {
        let found = data(&[cut_off.to_vec()]);
        assert!(matches!(found[..], [DiskFault::BadInlineRef { .. }]), "{found:?}");
    }
    let zero = data(&[inline_data_ref(5, 257, 0, 0), inline_data_ref(5, 300, 0, 2)]);
    let expected = DiskFault::ZeroCount { key: key(5, 257, 0) };
    assert!(zero.contains(&expected), "{zero:?}");
}

#[test]
fn tree_blocks_of_what_is_no_counted_tree_are_found() {
    let of_root = |root| {
        let item = extent_item(1, false, &[inline_number_ref(176, root)]);
        findings_of(vec![(key(2 * MIB, 169, 0), item)])
    };
    let log = (-6_i64).cast_unsigned();
    for root in [6, log, (-12_i64).cast_unsigned(), 1 << 48, u64::MAX] {
        let key = RefKey::tree(root, 0, 0);
        assert_eq!(of_root(root), [DiskFault::ImplausibleTreeRef { key }]);
    }
    // Newer kernels may have more trees with low ids.
    for root in
        [1, 5, 13, 200, 256, (1 << 48) - 1, (-8_i64).cast_unsigned(), (-9_i64).cast_unsigned()]
    {
        assert_eq!(of_root(root), [], "{root}");
    }
}

#[test]
fn flags_and_forms_that_do_not_go_with_an_item_are_found() {
    let mut data = extent_item(1, true, &[inline_data_ref(5, 257, 0, 1)]);
    data[17] = 1;
    let found = findings_of(vec![(key(2 * MIB, 168, 4096), data)]);
    assert_eq!(found, [DiskFault::FullBackrefOfData]);
    let mut block = extent_item(1, false, &[inline_number_ref(176, 5)]);
    block[17] = 1;
    let items = vec![(key(2 * MIB, 169, 0), block)];
    assert_eq!(findings_of(items.clone()), []);
    let mut device = device_with(items);
    device.edit_superblock(|block| block[189] = 0);
    let found: Vec<_> = read(&device).findings.into_iter().map(|found| found.fault).collect();
    assert_eq!(found, [DiskFault::SkinnyWithoutFeature]);
}

#[test]
fn inline_refs_out_of_order_are_found() {
    let (a, b) = (inline_data_ref(5, 257, 0, 1), inline_data_ref(5, 258, 0, 1));
    let in_order = |refs: &[Vec<u8>]| findings_of(vec![data_item(2 * MIB, refs)]);
    let both = [in_order(&[a.clone(), b.clone()]), in_order(&[b, a.clone()])];
    let expected = vec![DiskFault::InlineRefOrder { ref_type: 178 }];
    assert!(both.contains(&vec![]) && both.contains(&expected), "{both:?}");
    let shared = [vec![184], (8 * MIB).to_le_bytes().to_vec(), 1_u32.to_le_bytes().to_vec()];
    assert_eq!(in_order(&[a.clone(), shared.concat()]), []);
    assert_eq!(in_order(&[shared.concat(), a]), expected);
}

#[test]
fn owner_refs_are_legal_only_with_simple_quotas() {
    let (bytenr, refs) = (MIB, [inline_number_ref(172, 300), inline_data_ref(5, 257, 0, 1)]);
    let item = (key(bytenr, 168, 4096), extent_item(1, true, &refs));
    let mut device = device_with(vec![item.clone()]);
    let kinds = |told: Told| -> Vec<_> { told.findings.into_iter().map(|f| f.fault).collect() };
    assert_eq!(kinds(read(&device)), [DiskFault::OwnerWithoutSimpleQuota]);
    device.edit_superblock(|block| block[190] |= 1);
    let told = read(&device);
    assert_eq!(told.extents[0].owner_root, Some(300));
    assert_eq!(told.extents[0].refs.len(), 1);
    assert_eq!(kinds(told), []);
}

#[test]
fn totals_that_do_not_match_are_found() {
    let item = |total, refs: &[Vec<u8>]| {
        findings_of(vec![(key(2 * MIB, 168, 4096), extent_item(total, true, refs))])
    };
    let two = [inline_data_ref(5, 257, 0, 2)];
    assert_eq!(item(2, &two), []);
    assert_eq!(item(3, &two), [DiskFault::TotalDiffers { sum: 2, total: 3 }]);
    assert_eq!(item(1, &two), [DiskFault::InlineRefsExceedTotal { sum: 2, total: 1 }]);
    assert_eq!(item(1, &[]), [DiskFault::TotalDiffers { sum: 0, total: 1 }]);
    assert_eq!(item(0, &[]), [DiskFault::NoRefs]);
}

#[test]
fn extent_items_that_make_no_sense_are_found() {
    let refs = [inline_data_ref(5, 257, 0, 1)];
    let bad = |key: Key, body: Vec<u8>| match &findings_of(vec![(key, body)])[..] {
        [DiskFault::BadExtentItem { reason }] => reason.to_string(),
        other => panic!("{other:?}"),
    };
    let sound = extent_item(1, true, &refs);
    assert!(bad(key(2 * MIB, 168, 4096), sound[..23].to_vec()).contains("23 bytes"));
    assert!(bad(key(2 * MIB, 168, 4096), vec![]).contains("0 bytes"));
    assert!(bad(key(2 * MIB, 169, 0), sound.clone()).contains("flags"));
    assert!(bad(key(2 * MIB, 169, 8), extent_item(1, false, &[])).contains("level 8"));
    assert!(bad(key(2 * MIB, 168, 4096), extent_item(1, false, &[vec![0; 17]])).contains("bytes"));
    let mut both = sound.clone();
    both[16] = 3;
    assert!(bad(key(2 * MIB, 168, 4096), both).contains("flags"));
    for len_bytes in [0, 4095, u64::MAX - 4095] {
        assert_eq!(
            findings_of(vec![(key(2 * MIB, 168, len_bytes), sound.clone())])[0],
            DiskFault::BadRange { len_bytes }
        );
    }
    let mut future = sound.clone();
    future[8] = 8;
    assert_eq!(
        findings_of(vec![(key(2 * MIB, 168, 4096), future)]),
        [DiskFault::FutureGeneration { generation: 8 }]
    );
    assert_eq!(
        findings_of(vec![
            (key(2 * MIB, 168, 4096), sound.clone()),
            (key(2 * MIB, 168, 8192), sound.clone())
        ]),
        [DiskFault::SecondExtentItem]
    );
    assert_eq!(
        findings_of(vec![(key(2 * MIB, 168, 8192), sound.clone()), sound_item(2 * MIB + 4096)]),
        [DiskFault::OverlapsPrevious { previous: 2 * MIB, previous_len_bytes: 8192 }]
    );
}

#[test]
fn keyed_refs_that_make_no_sense_are_found() {
    let with = |item_type, offset, body: &[u8]| {
        let item =
            (key(2 * MIB, 168, 4096), extent_item(2, true, &[inline_data_ref(5, 257, 0, 1)]));
        let mut found = findings_of(vec![item, (key(2 * MIB, item_type, offset), body.to_vec())]);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    };
    let wrong_len = |kind| matches!(kind, DiskFault::BadKeyedRef { .. });
    assert!(wrong_len(with(178, 0, &[0; 27])));
    assert!(wrong_len(with(178, 0, &[0; 29])));
    assert!(wrong_len(with(184, 4096, &[0; 3])));
    assert!(wrong_len(with(176, 5, &[0])));
    assert_eq!(with(176, 5, &[]), DiskFault::RefOfOtherKind { ref_type: 176 });
    assert_eq!(with(180, 5, &[]), DiskFault::OldKeyedRef);
    let key = RefKey::data(0, 4097, 0, 0);
    assert_eq!(with(184, 4097, &1_u32.to_le_bytes()), DiskFault::BadParent { key });
}

#[test]
fn an_unknown_item_type_is_told_once_and_changes_nothing() {
    let unknown = |bytenr| (key(bytenr, 200, 1), vec![1, 2, 3]);
    let group = (key(2 * MIB, 192, MIB), vec![0; 24]);
    let items = vec![unknown(MIB), sound_item(2 * MIB), group, unknown(2 * MIB), unknown(3 * MIB)];
    let found = findings_of(items);
    assert_eq!(found, [DiskFault::UnknownItemType { item_type: 200 }]);
    assert!(found[0].kind().is_none());
}

#[test]
fn findings_about_one_extent_are_bounded() {
    let refs: Vec<_> = (0..60).map(|i| inline_data_ref(0, 257 + i, 0, 1)).collect();
    let found = findings_of(vec![data_item(2 * MIB, &refs)]);
    assert!(found.len() <= 33, "{}", found.len());
    assert!(matches!(found.last(), Some(DiskFault::More { count: 28.. })), "{found:?}");
}
