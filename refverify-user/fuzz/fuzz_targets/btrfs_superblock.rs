//! Any bytes as a superblock, and any bytes in place of a part of a sound one: a superblock or a
//! named refusal. The checksum is made right: otherwise nothing would get past it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use refverify_fuzz::{Disk, seal, take};
use refverify_user::btrfs::format::{SUPERBLOCK_OFFSET, Superblock, check};

static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| Disk::new(0).0[&SUPERBLOCK_OFFSET].clone());

fuzz_target!(|data: &[u8]| {
    parse(data);
    let mut superblock = SOUND.clone();
    let mut edits = data;
    while !edits.is_empty() {
        let at = usize::from(u16::from_le_bytes(take(&mut edits))) % superblock.len();
        let [len] = take::<1>(&mut edits);
        let len = usize::from(len).min(edits.len()).min(superblock.len() - at);
        let (bytes, rest) = edits.split_at(len);
        superblock[at..at + len].copy_from_slice(bytes);
        edits = rest;
    }
    seal(&mut superblock);
    parse(&superblock);
});

fn parse(bytes: &[u8]) {
    match Superblock::parse(bytes) {
        Ok(superblock) => {
            let _ = check(&superblock).map_err(|reason| reason.to_string());
            let format = superblock.block_format();
            let pointer = superblock.chunk_root_pointer();
            let _ = superblock.sys_chunks.place(pointer.bytenr, format.nodesize);
            let _ = superblock.root_pointer();
        }
        Err(reason) => drop(reason.to_string()),
    }
}
