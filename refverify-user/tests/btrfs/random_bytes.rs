//! Whatever bytes a device gives: no panic, and an end.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use refverify_user::btrfs::{
    format::{
        BlockPointer, ChunkMap, ExtentItem, SUPERBLOCK_OFFSET, Superblock, TreeBlock, check,
        parse_keyed_ref, parse_root_item,
    },
    reader::ExtentReader,
};

use crate::{
    image::{ALL, drive},
    living::Living,
    synthetic::{CHUNK, Device, NODESIZE, chunk_key, key, seal},
};

/// A change to a device: which block, which byte of it, and what to.
type Edit = (usize, usize, u8);

/// Byte offsets in a block where structure is, rather than bodies, are hit more often.
fn edits(blocks: usize) -> impl Strategy<Value = Vec<Edit>> {
    let byte = prop_oneof![32..140_usize, 32..NODESIZE];
    vec((0..blocks, byte, any::<u8>()), 1..8)
}

/// Blocks of the device that hold anything: 140 from the start of the chunk.
const BLOCKS: usize = 140;

fn superblock_at() -> usize {
    usize::try_from(SUPERBLOCK_OFFSET).expect("small")
}

/// Applies the edits to both copies and makes the checksums right again. Block 0 is the
/// superblock.
fn edit(device: &mut Device, edits: &[Edit]) {
    for &(block, byte, value) in edits {
        if block == 0 {
            device.edit_superblock(|superblock| superblock[byte] = value);
        } else {
            let bytenr = CHUNK.0 + 4096 * (block as u64 - 1);
            device.edit_block(bytenr, |node| node[byte] = value);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn edited_blocks_with_valid_checksums_never_panic_and_always_end(edits in edits(BLOCKS)) {
        let mut device = Living::new(7).device;
        edit(&mut device, &edits);
        // `drive` asserts that it ends and that what is told keeps the rules.
        drive(&mut ExtentReader::new(ALL, 0), |read| device.read(read));
    }

    #[test]
    fn a_device_of_random_answers_always_ends(seed in any::<u64>(), rate in 1..50_u64) {
        let device = Living::new(seed).device;
        let mut random = crate::living::Random(seed);
        drive(&mut ExtentReader::new(ALL, 0), |read| {
            let data = device.read(read)?;
            if random.below(rate) != 0 {
                return Ok(data);
            }
            let mut data = data.to_vec();
            let at = usize::try_from(random.below(data.len() as u64)).expect("small");
            match random.below(4) {
                0 => data.truncate(at),
                1 => data[at] ^= 1 << random.below(8),
                2 => {
                    data[at] = 0xff;
                    seal(&mut data);
                }
                _ => data.fill(0xa5),
            }
            Ok(data.into())
        });
    }

    #[test]
    fn a_superblock_of_any_bytes_is_parsed_or_refused(
        bytes in vec(any::<u8>(), 4096),
        keep in 0..4096_usize,
    ) {
        let device = Living::new(1).device;
        let sound = &device.bytes[superblock_at()..superblock_at() + 4096];
        let mut bytes = [&sound[..keep], &bytes[keep..]].concat();
        bytes[64..72].copy_from_slice(b"_BHRfS_M");
        bytes[196..198].fill(0);
        seal(&mut bytes);
        if let Ok(superblock) = Superblock::parse(&bytes) {
            let _ = check(&superblock);
        }
    }

    #[test]
    fn a_block_of_any_bytes_is_taken_or_refused(
        mut bytes in vec(any::<u8>(), NODESIZE),
        count in 0..200_u32,
        level in 0..10_u8,
    ) {
        let format = Superblock::parse(&Living::new(1).device.bytes[superblock_at()..])
            .expect("a superblock")
            .block_format();
        bytes[32..48].copy_from_slice(format.fsids[0].as_bytes());
        bytes[48..56].copy_from_slice(&4096_u64.to_le_bytes());
        bytes[80..88].copy_from_slice(&7_u64.to_le_bytes());
        bytes[88..96].copy_from_slice(&2_u64.to_le_bytes());
        bytes[96..100].copy_from_slice(&count.to_le_bytes());
        bytes[100] = level;
        seal(&mut bytes);
        let pointer = BlockPointer::to_root(2, 4096, 7, level);
        match TreeBlock::check(Bytes::from(bytes), &pointer, &format) {
            Ok(TreeBlock::Leaf(leaf)) => prop_assert_eq!(leaf.items().count(), count as usize),
            Ok(TreeBlock::Interior(node)) => {
                prop_assert_eq!(node.children().count(), count as usize);
            }
            Err(_) => {}
        }
    }

    #[test]
    fn items_of_any_bytes_are_read_or_refused(
        body in vec(any::<u8>(), 0..200),
        item_type in prop_oneof![165..195_u8, any::<u8>()],
        flags in 0..4_u8,
        offset in any::<u64>(),
    ) {
        let mut body = body;
        if let Some(at) = body.get_mut(16) {
            *at = flags;
        }
        let key = key(4096, item_type, offset);
        if let Ok(item) = ExtentItem::parse(key, &body, 4096) {
            let refs: Vec<_> = item.inline.collect();
            prop_assert!(refs.len() <= body.len() / 9 + 1);
        }
        if let Some(Ok(back_ref)) = parse_keyed_ref(key, &body) {
            prop_assert_eq!(back_ref.item_type(), item_type);
        }
        let _ = parse_root_item(2, &body, 4096);
        let mut chunks = ChunkMap::default();
        if chunks.insert(chunk_key(offset), &body, 4096).is_ok() {
            prop_assert!(chunks.len_bytes_within(&ALL) > 0);
            let _ = chunks.place(offset, 4096);
        }
    }
}
