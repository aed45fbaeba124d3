//! Tree blocks and chunks.

use refverify_user::btrfs::{
    format::{BlockFault, ReadFailure, SUPERBLOCK_OFFSET, item_type},
    objectid,
    reader::{ExtentReader, ReaderError},
};

use super::{MIB, bad_block, device_with, read, sound_device, sound_item};
use crate::{
    image::{ALL, drive},
    synthetic::{
        CHUNK, Device, EXTENT_ROOT, HEADER_LEN, Header, LEAVES_AT, Pointer, chunk_item, chunk_key,
        device_with_leaves, interior, key, leaf,
    },
};

#[test]
fn a_sound_device_is_read_without_findings() {
    let told = read(&sound_device());
    assert_eq!((told.extents.len(), told.findings, told.failed), (2, vec![], None));
}

#[test]
fn a_child_that_points_to_itself_ends_in_an_error() {
    let mut device = sound_device();
    device.edit_block(EXTENT_ROOT, |block| {
        block[HEADER_LEN + 17..HEADER_LEN + 25].copy_from_slice(&EXTENT_ROOT.to_le_bytes());
    });
    assert_eq!(bad_block(&read(&device)), (EXTENT_ROOT, BlockFault::Level { found: 1 }));
}

#[test]
fn a_child_that_points_upwards_ends_in_an_error() {
    // Level 2 points to level 1, whose child should be a leaf and is the block of level 2.
    let mut device = Device::new();
    let of = |bytenr, level| Header { bytenr, generation: 7, owner: objectid::EXTENT_TREE, level };
    let to = |bytenr| Pointer { key: key(MIB, 168, 4096), bytenr, generation: 7 };
    let (top, middle) = (EXTENT_ROOT, LEAVES_AT);
    device.write_block(&interior(of(top, 2), &[to(middle)]));
    device.write_block(&interior(of(middle, 1), &[to(top)]));
    device.commit(7, to(top), 2);
    assert_eq!(bad_block(&read(&device)), (top, BlockFault::Level { found: 2 }));
}

#[test]
fn a_tree_of_more_than_eight_levels_ends_in_an_error() {
    let mut device = sound_device();
    let root = Pointer { key: key(0, 0, 0), bytenr: EXTENT_ROOT, generation: 7 };
    device.commit(7, root, 8);
    assert!(matches!(read(&device).failed, Some(ReaderError::RootItem { .. })));
    device.commit(7, root, 7);
    assert_eq!(bad_block(&read(&device)), (EXTENT_ROOT, BlockFault::Level { found: 1 }));
}

#[test]
fn a_leaf_that_two_pointers_share_ends_in_an_error() {
    let mut device = sound_device();
    device.edit_block(EXTENT_ROOT, |block| {
        let at = HEADER_LEN + 33 + 17;
        block[at..at + 8].copy_from_slice(&LEAVES_AT.to_le_bytes());
    });
    let found = sound_item(MIB).0;
    assert_eq!(bad_block(&read(&device)), (LEAVES_AT, BlockFault::FirstKey { found }));
}

#[test]
fn a_leaf_that_reaches_into_its_neighbour_ends_in_an_error() {
    let items = vec![sound_item(MIB), sound_item(3 * MIB)];
    let device = device_with_leaves(&[items, vec![sound_item(2 * MIB)]]);
    let found = sound_item(3 * MIB).0;
    assert_eq!(bad_block(&read(&device)), (LEAVES_AT, BlockFault::LastKey { found }));
}

#[test]
fn keys_out_of_order_end_in_an_error() {
    let device = device_with(vec![sound_item(2 * MIB), sound_item(MIB)]);
    assert_eq!(bad_block(&read(&device)), (LEAVES_AT, BlockFault::KeyOrder { slot: 1 }));
    let device = device_with(vec![sound_item(MIB), sound_item(MIB)]);
    assert_eq!(bad_block(&read(&device)), (LEAVES_AT, BlockFault::KeyOrder { slot: 1 }));
}

#[test]
fn more_items_than_fit_end_in_an_error() {
    let mut device = sound_device();
    for count in [0, 160, 161, u32::MAX] {
        for bytenr in [EXTENT_ROOT, LEAVES_AT] {
            device = sound_device();
            device.edit_block(bytenr, |block| {
                block[96..100].copy_from_slice(&count.to_le_bytes());
            });
            let (at, fault) = bad_block(&read(&device));
            assert_eq!(at, bytenr);
            // 159 items and 121 pointers fit; below that, what is behind the last is zeroes.
            let told = matches!(fault, BlockFault::ItemCount { found, .. } if found == count);
            assert!(told, "{fault:?}");
        }
    }
    let _ = device;
}

#[test]
fn items_that_overlap_in_a_leaf_end_in_an_error() {
    let two = || device_with(vec![sound_item(MIB), sound_item(2 * MIB)]);
    let second = HEADER_LEN + 25;
    for (at, value) in [
        // The second body begins within the first.
        (second + 17, 3995 - 53_u32),
        // It is longer than the space up to the first.
        (second + 21, 54),
        // It leaves a hole.
        (second + 21, 52),
        // It lies beyond the end; where offset and size together wrap around.
        (second + 17, u32::MAX),
        (second + 21, u32::MAX - 3000),
    ] {
        let mut device = two();
        device.edit_block(LEAVES_AT, |block| {
            block[at..at + 4].copy_from_slice(&value.to_le_bytes());
        });
        let (_, fault) = bad_block(&read(&device));
        assert_eq!(fault, BlockFault::ItemPlace { slot: 1 }, "{value} at {at}");
    }
    // A body in the midst of the items' own headers.
    let mut device = device_with(vec![sound_item(MIB)]);
    device.edit_block(LEAVES_AT, |block| {
        block[HEADER_LEN + 17..HEADER_LEN + 21].copy_from_slice(&10_u32.to_le_bytes());
        block[HEADER_LEN + 21..HEADER_LEN + 25].copy_from_slice(&(3995 - 10_u32).to_le_bytes());
    });
    assert_eq!(bad_block(&read(&device)).1, BlockFault::ItemPlace { slot: 0 });
}

#[test]
fn a_pointer_to_where_no_chunk_is_ends_in_an_error() {
    for bytenr in [MIB, CHUNK.0 + CHUNK.1, CHUNK.0 - 4096, u64::MAX - 4095] {
        let mut device = sound_device();
        device.edit_block(EXTENT_ROOT, |block| {
            block[HEADER_LEN + 17..HEADER_LEN + 25].copy_from_slice(&bytenr.to_le_bytes());
        });
        let failed = read(&device).failed;
        assert!(
            matches!(
                &failed,
                Some(ReaderError::BadBlock { pointer, faults })
                    if pointer.bytenr == bytenr && faults[..] == [BlockFault::NotMapped]
            ),
            "{failed:?}"
        );
    }
}

#[test]
fn a_pointer_to_no_block_ends_in_an_error() {
    for bytenr in [0, LEAVES_AT + 1, LEAVES_AT + 2048] {
        let mut device = sound_device();
        device.edit_block(EXTENT_ROOT, |block| {
            block[HEADER_LEN + 17..HEADER_LEN + 25].copy_from_slice(&bytenr.to_le_bytes());
        });
        let fault = BlockFault::Pointer { slot: 0, bytenr };
        assert_eq!(bad_block(&read(&device)), (EXTENT_ROOT, fault));
    }
}

#[test]
fn a_chunk_beyond_the_end_of_the_device_ends_in_an_error() {
    let mut device = sound_device();
    let of = Header { bytenr: CHUNK.0, generation: 1, owner: objectid::CHUNK_TREE, level: 0 };
    let chunk = chunk_item(CHUNK.1, &[1 << 40, 1 << 41]);
    device.write_block(&leaf(of, &[(chunk_key(CHUNK.0), chunk)]));
    assert!(matches!(bad_block(&read(&device)).1, BlockFault::Unreadable(_)));
}

#[test]
fn chunks_that_make_no_sense_end_in_an_error() {
    let of = Header { bytenr: CHUNK.0, generation: 1, owner: objectid::CHUNK_TREE, level: 0 };
    let with = |chunks: &[(u64, Vec<u8>)]| {
        let mut device = sound_device();
        let items: Vec<_> =
            chunks.iter().map(|(logical, item)| (chunk_key(*logical), item.clone())).collect();
        device.write_block(&leaf(of, &items));
        read(&device).failed.map(|error| error.to_string())
    };
    let sound = (CHUNK.0, chunk_item(CHUNK.1, &[MIB, 5 * MIB]));
    for (logical, item) in [
        (64 * MIB, chunk_item(0, &[MIB])),
        (64 * MIB, chunk_item(4097, &[MIB])),
        (64 * MIB, chunk_item(MIB, &[])),
        (64 * MIB, chunk_item(MIB, &[u64::MAX - 4095])),
        (u64::MAX - 4095, chunk_item(MIB, &[MIB])),
        (64 * MIB, chunk_item(MIB, &[MIB])[..60].to_vec()),
        (CHUNK.0 + MIB, chunk_item(MIB, &[MIB])),
    ] {
        let failed = with(&[sound.clone(), (logical, item)]);
        assert!(failed.as_ref().is_some_and(|text| text.contains("chunk")), "{failed:?}");
    }
    let of_flags = |flags: u64, num_stripes: usize| {
        let mut item = chunk_item(MIB, &vec![MIB; num_stripes]);
        item[24..32].copy_from_slice(&flags.to_le_bytes());
        with(&[sound.clone(), (64 * MIB, item)])
    };
    let (data, metadata) = (1 << 0, 1 << 2);
    for (profile, right, wrong) in [
        (0, 1, 2),
        (0x10, 2, 1),
        (0x20, 2, 1),
        (0x80, 2, 1),
        (0x100, 3, 2),
        (0x200, 3, 2),
        (0x400, 4, 3),
    ] {
        assert_eq!(of_flags(metadata | profile, right), None, "{profile:#x}");
        let refused = of_flags(metadata | profile, wrong).expect("too few or too many stripes");
        assert!(refused.contains("makes no sense"), "{refused}");
    }
    // RAID10 in groups of no stripe at all.
    assert!(of_flags(metadata | 0x40, 4).is_some());
    let refused = of_flags(metadata | 0x800, 1).expect("remapped metadata is refused");
    assert!(refused.contains("REMAPPED") && refused.contains("67108864"), "{refused}");
    assert_eq!(of_flags(data | 0x800, 1), None, "data need not be mapped");
}

#[test]
fn a_bad_first_mirror_is_made_up_for_by_the_second() {
    let mut device = sound_device();
    for bytenr in [CHUNK.0, EXTENT_ROOT, LEAVES_AT] {
        let [first, _] = Device::places(bytenr);
        device.bytes[first + 200] ^= 1;
    }
    let told = read(&device);
    assert_eq!((told.extents.len(), told.failed), (2, None));
    let [_, second] = Device::places(LEAVES_AT);
    device.bytes[second + 300] ^= 1;
    assert_eq!(bad_block(&read(&device)), (LEAVES_AT, BlockFault::Checksum));
}

#[test]
fn a_mirror_that_cannot_be_read_is_made_up_for_by_the_second() {
    let device = sound_device();
    let [first, second] = Device::places(LEAVES_AT).map(|at| at as u64);
    let fail_at = |bad: &[u64]| {
        drive(&mut ExtentReader::new(ALL, 0), |read| {
            if bad.contains(&read.offset) {
                return Err(ReadFailure::new("EIO"));
            }
            device.read(read)
        })
    };
    assert_eq!(fail_at(&[first]).extents.len(), 2);
    let failed = fail_at(&[first, second]).failed.expect("no mirror is left").to_string();
    assert!(failed.contains("EIO") && failed.contains(&LEAVES_AT.to_string()), "{failed}");
}

#[test]
fn every_field_of_a_header_is_checked() {
    type Edit = fn(&mut [u8]);
    type Expected = fn(&BlockFault) -> bool;
    let edits: [(Edit, Expected); 6] = [
        (|b| b[48] ^= 1, |f| matches!(f, BlockFault::Bytenr { .. })),
        (|b| b[32] ^= 1, |f| matches!(f, BlockFault::Fsid { .. })),
        (|b| b[100] = 1, |f| matches!(f, BlockFault::Level { found: 1 })),
        (|b| b[80] = 6, |f| matches!(f, BlockFault::Generation { found: 6 })),
        (|b| b[88] = 5, |f| matches!(f, BlockFault::Owner { found: 5 })),
        (|b| b[HEADER_LEN + 1] ^= 1, |f| matches!(f, BlockFault::FirstKey { .. })),
    ];
    for (edit, expected) in edits {
        let mut device = sound_device();
        device.edit_block(LEAVES_AT, edit);
        let (_, fault) = bad_block(&read(&device));
        assert!(expected(&fault), "{fault:?}");
    }
}

#[test]
fn a_root_tree_without_an_extent_tree_ends_in_an_error() {
    let mut device = sound_device();
    let of = |bytenr| Header { bytenr, generation: 7, owner: objectid::ROOT_TREE, level: 0 };
    let root = CHUNK.0 + 8192;
    device.write_block(&leaf(of(root), &[(key(5, item_type::ROOT_ITEM, 0), vec![0; 439])]));
    assert_eq!(read(&device).failed, Some(ReaderError::NoExtentTree { generation: 7 }));
    let cut_off = (key(2, item_type::ROOT_ITEM, 0), vec![0; 100]);
    device.write_block(&leaf(of(root), &[cut_off]));
    assert!(matches!(read(&device).failed, Some(ReaderError::RootItem { .. })));
}

#[test]
fn blocks_that_are_bad_by_turns_end_in_an_error() {
    // A root tree of two levels, read anew after every bad block; never are both sound.
    let mut device = sound_device();
    let [leaf_at, interior_at] = [CHUNK.0 + 8192, CHUNK.0 + 3 * 4096];
    let pointer = Pointer { key: key(2, item_type::ROOT_ITEM, 0), bytenr: leaf_at, generation: 7 };
    let of = Header { bytenr: interior_at, generation: 7, owner: objectid::ROOT_TREE, level: 1 };
    device.write_block(&interior(of, &[pointer]));
    device.edit_superblock(|block| {
        block[80..88].copy_from_slice(&interior_at.to_le_bytes());
        block[198] = 1;
    });
    assert_eq!(read(&device).extents.len(), 2);
    let mut superblocks = 0;
    let told = drive(&mut ExtentReader::new(ALL, 0), |read| {
        superblocks += u32::from(read.offset == SUPERBLOCK_OFFSET);
        let bad = [leaf_at, interior_at][superblocks as usize % 2];
        if Device::places(bad).contains(&usize::try_from(read.offset).expect("small")) {
            return Err(ReadFailure::new("by turns"));
        }
        device.read(read)
    });
    assert!(told.failed.is_some() && superblocks < 10, "{superblocks} superblocks");
}
