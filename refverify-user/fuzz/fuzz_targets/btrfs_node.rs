//! Any bytes behind the header of a tree block of any level, with all that its parent says of it
//! made right: it is taken or refused, and what was taken can be walked.

#![no_main]

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use refverify_fuzz::{Disk, NODE_BYTES, seal, take};
use refverify_user::btrfs::format::{
    BlockFormat, BlockPointer, Key, SUPERBLOCK_OFFSET, Superblock, TreeBlock,
};

static FORMAT: LazyLock<BlockFormat> = LazyLock::new(|| {
    let disk = Disk::new(0);
    Superblock::parse(&disk.0[&SUPERBLOCK_OFFSET]).expect("it is sound").block_format()
});

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let [level, count, has_neighbours] = take(&mut rest);
    let mut block = vec![0; NODE_BYTES];
    block[32..48].copy_from_slice(FORMAT.fsids[0].as_bytes());
    block[48..56].copy_from_slice(&4096_u64.to_le_bytes());
    block[80..88].copy_from_slice(&7_u64.to_le_bytes());
    block[88..96].copy_from_slice(&2_u64.to_le_bytes());
    block[96..100].copy_from_slice(&u32::from(count).to_le_bytes());
    block[100] = level;
    let body = rest.len().min(NODE_BYTES - 101);
    block[101..101 + body].copy_from_slice(&rest[..body]);
    // The rest at the end, where the items' bodies are.
    let tail = rest.len() - body;
    block[NODE_BYTES - tail.min(NODE_BYTES - 101)..]
        .copy_from_slice(&rest[body..][..tail.min(NODE_BYTES - 101)]);
    seal(&mut block);
    let mut pointer = BlockPointer::to_root(2, 4096, 7, level);
    if has_neighbours % 2 == 1 {
        let at = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("8 bytes"));
        let first = Key { objectid: at(101), item_type: block[109], offset: at(110) };
        pointer.first_key = Some(first);
        pointer.end_key = Some(Key { objectid: u64::MAX, item_type: 0, offset: 0 });
    }
    match TreeBlock::check(Bytes::from(block), &pointer, &FORMAT) {
        Ok(TreeBlock::Leaf(leaf)) => assert_eq!(leaf.items().count(), usize::from(count)),
        Ok(TreeBlock::Interior(interior)) => {
            assert_eq!(interior.children().count(), usize::from(count));
            assert!(interior.children().all(|child| child.level + 1 == level));
        }
        Err(fault) => drop(fault.to_string()),
    }
});
