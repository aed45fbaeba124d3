//! Any items in a leaf of the extent tree that is sound otherwise: extents and findings, and an
//! end.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use refverify_fuzz::{Disk, NODE_BYTES, items, seal};

static SOUND: LazyLock<Disk> = LazyLock::new(|| Disk::new(0));

fuzz_target!(|data: &[u8]| {
    let items = items(data);
    if items.is_empty() {
        return;
    }
    let mut disk = SOUND.clone();
    let leaf = disk.extent_leaf();
    leaf[101..].fill(0);
    leaf[96..100].copy_from_slice(&u32::try_from(items.len()).expect("few").to_le_bytes());
    let mut end = NODE_BYTES;
    for (slot, ((objectid, item_type, offset), body)) in items.into_iter().enumerate() {
        end -= body.len();
        leaf[end..end + body.len()].copy_from_slice(&body);
        let at = 101 + slot * 25;
        leaf[at..at + 8].copy_from_slice(&objectid.to_le_bytes());
        leaf[at + 8] = item_type;
        leaf[at + 9..at + 17].copy_from_slice(&offset.to_le_bytes());
        let place = u32::try_from(end - 101).expect("small").to_le_bytes();
        leaf[at + 17..at + 21].copy_from_slice(&place);
        let len = u32::try_from(body.len()).expect("small").to_le_bytes();
        leaf[at + 21..at + 25].copy_from_slice(&len);
    }
    seal(leaf);
    disk.drive();
});
