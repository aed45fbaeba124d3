//! A node of a tree taken apart, and put together again (kernel:
//! `include/uapi/linux/btrfs_tree.h`, `btrfs_header`, `btrfs_item`, `btrfs_key_ptr`).

use anyhow::{Result, ensure};

use super::{get_u32, get_u64};

/// Bytes of `struct btrfs_header`.
const HEADER_LEN: usize = 101;

/// Bytes of `struct btrfs_item`: a key, then offset and size of the data.
const ITEM_LEN: usize = 25;

/// Bytes of `struct btrfs_key_ptr`: a key, then block and generation.
const KEY_PTR_LEN: usize = 33;

/// Bytes at the start of a node that hold its checksum.
const CHECKSUM_LEN: usize = 32;

/// A key; its order is that of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) objectid: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) fn read(bytes: &[u8], at: usize) -> Self {
        let objectid = get_u64(bytes, at);
        Self { objectid, kind: bytes[at + 8], offset: get_u64(bytes, at + 9) }
    }

    fn put(self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.objectid.to_le_bytes());
        bytes[8] = self.kind;
        bytes[9..17].copy_from_slice(&self.offset.to_le_bytes());
    }
}

/// A leaf's items, with the header that they came with.
pub(super) struct Leaf {
    pub(super) items: Vec<(Key, Vec<u8>)>,
    header: Vec<u8>,
    len_bytes: usize,
}

/// A node's logical address, level and number of entries.
pub(super) struct Header {
    pub(super) bytenr: u64,
    pub(super) level: u8,
    entries: usize,
}

/// Reads the header, once the checksum has been found right.
pub(super) fn header(node: &[u8]) -> Result<Header> {
    let stored = get_u32(node, 0);
    let computed = crc32c::crc32c(&node[CHECKSUM_LEN..]);
    ensure!(stored == computed, "the node's checksum is {stored:#x}, not {computed:#x}");
    let header =
        Header { bytenr: get_u64(node, 48), level: node[100], entries: get_u32(node, 96) as usize };
    let entry_len = if header.level == 0 { ITEM_LEN } else { KEY_PTR_LEN };
    ensure!(HEADER_LEN + header.entries * entry_len <= node.len(), "too many entries");
    Ok(header)
}

/// The block to go down to for `key`: the last child whose key is not above it.
pub(super) fn child(node: &[u8], key: Key) -> Result<u64> {
    let mut block = None;
    for entry in 0..header(node)?.entries {
        let at = HEADER_LEN + entry * KEY_PTR_LEN;
        if block.is_none() || Key::read(node, at) <= key {
            block = Some(get_u64(node, at + 17));
        }
    }
    block.ok_or_else(|| anyhow::anyhow!("an inner node without children"))
}

impl Leaf {
    pub(super) fn parse(node: &[u8]) -> Result<Self> {
        let mut items = Vec::new();
        for slot in 0..header(node)?.entries {
            let at = HEADER_LEN + slot * ITEM_LEN;
            let start = HEADER_LEN + get_u32(node, at + 17) as usize;
            let end = start + get_u32(node, at + 21) as usize;
            ensure!(end <= node.len(), "item {slot} reaches beyond its leaf");
            items.push((Key::read(node, at), node[start..end].to_vec()));
        }
        Ok(Self { items, header: node[..HEADER_LEN].to_vec(), len_bytes: node.len() })
    }

    pub(super) fn bytenr(&self) -> u64 {
        get_u64(&self.header, 48)
    }

    /// The leaf's bytes: data from the end downwards without gaps, as the tree-checker wants
    /// them (kernel: fs/btrfs/tree-checker.c, `__btrfs_check_leaf`), and a right checksum.
    pub(super) fn into_bytes(self) -> Result<Vec<u8>> {
        let used: usize = self.items.iter().map(|(_, data)| ITEM_LEN + data.len()).sum();
        ensure!(HEADER_LEN + used <= self.len_bytes, "the items no longer fit in their leaf");
        let mut node = vec![0; self.len_bytes];
        node[..HEADER_LEN].copy_from_slice(&self.header);
        let entries = u32::try_from(self.items.len())?;
        node[96..100].copy_from_slice(&entries.to_le_bytes());
        let mut end = self.len_bytes;
        for (slot, (key, data)) in self.items.iter().enumerate() {
            let start = end - data.len();
            node[start..end].copy_from_slice(data);
            let entry = &mut node[HEADER_LEN + slot * ITEM_LEN..][..ITEM_LEN];
            key.put(entry);
            entry[17..21].copy_from_slice(&u32::try_from(start - HEADER_LEN)?.to_le_bytes());
            entry[21..25].copy_from_slice(&u32::try_from(data.len())?.to_le_bytes());
            end = start;
        }
        let checksum = crc32c::crc32c(&node[CHECKSUM_LEN..]);
        node[..4].copy_from_slice(&checksum.to_le_bytes());
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf() -> Leaf {
        let key = |objectid| Key { objectid, kind: 168, offset: 4096 };
        let items = vec![(key(1), vec![1; 53]), (key(2), vec![2; 82]), (key(3), vec![3; 24])];
        Leaf { items, header: vec![0; HEADER_LEN], len_bytes: 4096 }
    }

    #[test]
    fn a_leaf_put_together_reads_back_the_same() {
        let bytes = leaf().into_bytes().unwrap();
        assert_eq!(Leaf::parse(&bytes).unwrap().items, leaf().items);
    }

    #[test]
    fn data_stay_contiguous_when_an_item_shrinks() {
        let mut leaf = leaf();
        leaf.items[1].1.drain(24..53);
        let bytes = leaf.into_bytes().unwrap();
        let mut end = 4096;
        for slot in 0..3 {
            let at = HEADER_LEN + slot * ITEM_LEN;
            let start = HEADER_LEN + get_u32(&bytes, at + 17) as usize;
            assert_eq!(start + get_u32(&bytes, at + 21) as usize, end);
            end = start;
        }
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        let mut bytes = leaf().into_bytes().unwrap();
        bytes[200] ^= 1;
        assert!(Leaf::parse(&bytes).is_err());
    }
}
