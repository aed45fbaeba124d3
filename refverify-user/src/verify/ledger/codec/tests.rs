//! Extents of every kind come back as they were, in any context; bytes of no kind are refused.

use proptest::prelude::*;

use super::*;

fn one(kind: ExtentKind, key: RefKey) -> Extent {
    Extent {
        len_bytes: if kind == ExtentKind::Data { 4096 } else { 16384 },
        kind,
        total_refs: 1,
        from_disk: Some(42),
        actions: 0,
        refs: [(key, 1)].into_iter().collect(),
    }
}

fn data(key: RefKey) -> Extent {
    one(ExtentKind::Data, key)
}

fn tree(level: u8, key: RefKey) -> Extent {
    one(ExtentKind::TreeBlock { level }, key)
}

/// Writes an extent and reads it; returns how many bytes it took.
fn size_of_entry(extent: &Extent, context: &Context) -> usize {
    let mut entry = Vec::new();
    put_entry(&mut entry, extent, context);
    let mut found = one(ExtentKind::TreeBlock { level: 3 }, RefKey::tree(9, 0, 3));
    let read = read_entry(&entry, context, &mut found);
    assert_eq!((read, &found), (Some(Found::Here), extent));
    entry.len()
}

/// Checks an extent in a context that suits it, and in some that do not.
fn comes_back(extent: &Extent) {
    let other = data(RefKey::data(u64::MAX - 8, 0, 257, 0));
    for context in [Context::of(extent), Context::of(&other), Context::default()] {
        size_of_entry(extent, &context);
    }
}

#[test]
fn a_file_offset_that_wraps_below_zero() {
    comes_back(&data(RefKey::data(5, 0, 257, 4096_u64.wrapping_neg())));
    comes_back(&data(RefKey::data(5, 0, 257, u64::MAX)));
}

#[test]
fn counts_from_zero_to_the_largest_that_the_disk_has() {
    for count in [0, 1, 2, 127, 128, u64::from(u32::MAX), u64::MAX] {
        let mut extent = data(RefKey::data(5, 0, 257, 0));
        extent.refs = [(RefKey::data(5, 0, 257, 0), count)].into_iter().collect();
        for total in [count, count.wrapping_add(1), 0, u64::MAX] {
            extent.total_refs = total;
            comes_back(&extent);
        }
    }
}

#[test]
fn roots_from_the_first_to_the_last() {
    for root in [0, 1, 2, 5, 256, 1 << 31, 1 << 48, u64::MAX - 255, u64::MAX - 8] {
        comes_back(&data(RefKey::data(root, 0, 257, 0)));
        comes_back(&tree(0, RefKey::tree(root, 0, 0)));
    }
}

#[test]
fn owners_of_the_old_inode_cache_and_of_free_space() {
    for owner in [0, 256, 257, u64::MAX - 11, u64::MAX] {
        comes_back(&data(RefKey::data(1, 0, owner, 0)));
    }
}

#[test]
fn parents_near_and_far_and_a_block_that_is_its_own_parent() {
    for parent in [4096, 1 << 30, (1 << 30) + 16384, 1 << 62, u64::MAX, 12345] {
        comes_back(&data(RefKey::data(0, parent, 0, 0)));
        comes_back(&tree(7, RefKey::tree(0, parent, 7)));
    }
    let two = [(RefKey::data(0, 1 << 40, 0, 0), 3), (RefKey::data(0, 4096, 0, 0), 1)];
    let mut extent = data(RefKey::data(5, 0, 257, 0));
    extent.refs = two.into_iter().collect();
    extent.total_refs = 4;
    comes_back(&extent);
}

#[test]
fn nodes_of_every_size_and_levels_that_no_tree_has() {
    for level in [0, 1, 7, 8, 254, 255] {
        let mut extent = tree(level, RefKey::tree(5, 0, level));
        for len_bytes in [0, 1, 4096, 16384, 65536, u64::MAX] {
            extent.len_bytes = len_bytes;
            comes_back(&extent);
        }
    }
}

#[test]
fn references_of_a_shape_that_btrfs_does_not_have() {
    let key = RefKey { root: 7, parent: 8, owner: 9, offset: 10 };
    comes_back(&data(key));
    comes_back(&tree(0, key));
    comes_back(&tree(1, RefKey::data(5, 0, 257, 4096)));
}

#[test]
fn extents_that_were_allocated_that_were_changed_and_that_have_no_reference() {
    let mut extent = data(RefKey::data(5, 0, 257, 0));
    for (from_disk, actions) in [(None, 1), (Some(0), 300), (Some(u64::MAX), u64::MAX), (None, 0)] {
        extent.from_disk = from_disk;
        extent.actions = actions;
        comes_back(&extent);
    }
    extent.refs = Refs::default();
    extent.total_refs = 0;
    comes_back(&extent);
}

#[test]
fn an_extent_like_its_neighbours_takes_the_fewest_bytes() {
    let extent = data(RefKey::data(5, 0, 300, 128 << 10));
    let context = Context::of(&extent);
    let mut longer = extent.clone();
    longer.len_bytes = 8192;
    // The first byte, the length, the owner, and two for the file offset.
    assert_eq!(size_of_entry(&longer, &context), 5);
    // A tree block like its neighbours: the first byte alone.
    let block = tree(0, RefKey::tree(5, 0, 0));
    assert_eq!(size_of_entry(&block, &Context::of(&block)), 1);
}

fn any_key() -> impl Strategy<Value = RefKey> {
    let number = || {
        prop_oneof![Just(0_u64), 1_u64..1000, any::<u64>(), any::<u64>().prop_map(|n| n & !4095)]
    };
    prop_oneof![
        (number(), number(), number())
            .prop_map(|(root, owner, offset)| RefKey::data(root, 0, owner, offset)),
        number().prop_map(|parent| RefKey::data(0, parent, 0, 0)),
        (number(), number(), 0_u8..9)
            .prop_map(|(root, parent, level)| RefKey::tree(root, parent, level)),
        (number(), number(), number(), number()).prop_map(|(root, parent, owner, offset)| RefKey {
            root,
            parent,
            owner,
            offset
        }),
    ]
}

prop_compose! {
    fn any_extent()(
        len_bytes in prop_oneof![1_u64..2000, Just(16384), any::<u64>()],
        level in proptest::option::of(0_u8..9),
        total in proptest::option::of(any::<u64>()),
        from_disk in proptest::option::of(prop_oneof![0_u64..100, any::<u64>()]),
        actions in prop_oneof![Just(0), 0_u64..1000, any::<u64>()],
        refs in prop::collection::vec((any_key(), prop_oneof![Just(1_u64), 0_u64..1 << 33]), 0..9),
    ) -> Extent {
        let refs: Refs = refs.into_iter().collect();
        let kind = level.map_or(ExtentKind::Data, |level| ExtentKind::TreeBlock { level });
        let total_refs = total.unwrap_or_else(|| sum_of_counts(&refs));
        Extent { len_bytes, kind, total_refs, from_disk, actions, refs }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_extent_comes_back_in_any_context(
        extent in any_extent(),
        suits in any_extent(),
    ) {
        size_of_entry(&extent, &Context::of(&suits));
        size_of_entry(&extent, &Context::of(&extent));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_anything(&bytes);
    }
}
