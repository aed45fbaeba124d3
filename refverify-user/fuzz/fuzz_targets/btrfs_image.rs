//! Any changes to the blocks of a whole file system, with all checksums made right: reading its
//! extent tree comes to an end, with a bounded number of reads.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use refverify_fuzz::{Disk, NODE_BYTES, seal, take};

static SOUND: LazyLock<Disk> = LazyLock::new(|| Disk::new(300));

fuzz_target!(|data: &[u8]| {
    let mut disk = SOUND.clone();
    let places: Vec<u64> = disk.0.keys().copied().collect();
    let mut rest = data;
    while !rest.is_empty() {
        let [place, len] = take(&mut rest);
        let at = usize::from(u16::from_le_bytes(take(&mut rest))) % NODE_BYTES;
        let len = usize::from(len).min(rest.len()).min(NODE_BYTES - at);
        let (bytes, more) = rest.split_at(len);
        rest = more;
        let place = places[usize::from(place) % places.len()];
        let block = disk.0.get_mut(&place).expect("it is one of them");
        block[at..at + len].copy_from_slice(bytes);
        seal(block);
    }
    disk.drive();
});
