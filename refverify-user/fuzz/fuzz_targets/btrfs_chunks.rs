//! Any bytes as chunk items: each is taken or refused, and what was taken maps every address to
//! parts of devices, or to none, and rebuilds from parity without a panic.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use refverify_fuzz::take;
use refverify_user::btrfs::{
    format::{ChunkMap, Key, item_type},
    objectid,
};

const NODESIZE: u32 = 16384;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let mut chunks = ChunkMap::default();
    let mut addresses = vec![0, u64::MAX];
    while !rest.is_empty() {
        let logical = u64::from_le_bytes(take(&mut rest));
        let len = usize::from(u16::from_le_bytes(take(&mut rest))).min(rest.len());
        let (item, more) = rest.split_at(len);
        rest = more;
        let (objectid, item_type) = (objectid::FIRST_CHUNK_TREE, item_type::CHUNK_ITEM);
        let key = Key { objectid, item_type, offset: logical };
        match chunks.insert(key, item, 4096) {
            Ok(()) => {
                let len_bytes = u64::from_le_bytes(item[..8].try_into().expect("8 bytes"));
                let places = [0, 4096, 49152, 61440, len_bytes / 2, len_bytes.saturating_sub(16384)];
                addresses.extend(places.map(|within| logical.saturating_add(within)));
            }
            Err(reason) => drop(reason.to_string()),
        }
    }
    let _ = chunks.check_profiles();
    let _ = chunks.len_bytes_within(&(0..u64::MAX));
    for address in addresses {
        let placement = chunks.place(address, NODESIZE);
        for copy in &placement.copies {
            let len: u64 = copy.iter().map(|piece| u64::from(piece.len_bytes)).sum();
            assert_eq!(len, u64::from(NODESIZE));
        }
        if let Some(parity) = placement.parity {
            let pieces: Vec<_> = parity.pieces().collect();
            let missing = usize::from(data.first().copied().unwrap_or(0)) % pieces.len().max(1);
            let read = |(index, piece): (usize, &refverify_user::btrfs::format::Piece)| {
                (index != missing).then(|| Bytes::from(vec![data[0]; piece.len_bytes as usize]))
            };
            let read: Vec<_> = pieces.iter().enumerate().map(read).collect();
            for rebuilt in parity.rebuild(&read) {
                assert_eq!(rebuilt.len(), NODESIZE as usize);
            }
        }
    }
});
