//! Writes the few trees of a btrfs that a reader of the extent tree needs, from a plain list
//! of extents, as the blocks of a device.
//!
//! Independent of the product's own parser on purpose: it is what that one is held against.
//! Offsets are those of the kernel's `include/uapi/linux/btrfs_tree.h` and `fs/btrfs/fs.h`
//! (6.12).

#![expect(clippy::cast_possible_truncation, reason = "what is written is small")]

use std::collections::BTreeMap;

use refverify_user::btrfs::{ExtentKind, RefKey};

/// Node and sector size: the smallest, so that few extents make many leaves.
pub(crate) const NODE_BYTES: usize = 4096;
/// Where the logical addresses of metadata begin; their physical place is the same.
pub(crate) const METADATA_START: u64 = 32 << 20;
/// How much metadata there can be.
pub(crate) const METADATA_LEN_BYTES: u64 = 64 << 20;

const HEADER_BYTES: usize = 101;
const ITEM_BYTES: usize = 25;
const KEY_PTR_BYTES: usize = 33;
const FSID: [u8; 16] = *b"simulated-fs-id.";
const CHUNK_TREE_UUID: [u8; 16] = *b"chunk-tree-uuid.";
const SUPERBLOCK_OFFSET: u64 = 65536;
/// As many references as this are inline; the others are items of their own.
const INLINE_MAX: usize = 3;

/// An extent to be written.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// Its length.
    pub(crate) len_bytes: u64,
    /// Data or tree block.
    pub(crate) kind: ExtentKind,
    /// Its references and their counts.
    pub(crate) refs: BTreeMap<RefKey, u32>,
    /// What the item's total is off by, for planted faults.
    pub(crate) total_error: i64,
}

type Key = (u64, u8, u64);
type Item = (Key, Vec<u8>);

/// A device whose blocks are replaced commit by commit.
#[derive(Clone)]
pub(crate) struct Image {
    blocks: BTreeMap<u64, Vec<u8>>,
    /// Metadata addresses that the newest superblock reaches.
    used: Vec<u64>,
    /// Those that only the one before it reached.
    pinned: Vec<u64>,
    free: Vec<u64>,
    /// The extent tree of the newest superblock, level by level from the leaves up.
    leaves: Vec<(Vec<Item>, Pointer)>,
    nodes: Vec<Vec<(Vec<Pointer>, Pointer)>>,
}

/// A block, as its parent points to it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Pointer {
    key: Key,
    bytenr: u64,
    generation: u64,
}

impl Image {
    /// An empty device, all of whose metadata space is free.
    pub(crate) fn new() -> Self {
        let free = (0..4096).map(|block| METADATA_START + block * NODE_BYTES as u64).collect();
        Self {
            blocks: BTreeMap::new(),
            used: Vec::new(),
            pinned: Vec::new(),
            free,
            leaves: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// Reads `len_bytes` at `offset`; what was never written is zero.
    pub(crate) fn read(&self, offset: u64, len_bytes: usize) -> Vec<u8> {
        let mut data = vec![0; len_bytes];
        for (index, chunk) in data.chunks_mut(NODE_BYTES).enumerate() {
            let at = offset + (index * NODE_BYTES) as u64;
            if let Some(block) = self.blocks.get(&at) {
                chunk.copy_from_slice(&block[..chunk.len()]);
            }
        }
        data
    }

    /// Commits: writes all trees to blocks that the superblock on disk does not reach, the
    /// most recently freed first, so that a slow reader finds them overwritten. What has not
    /// changed of the extent tree stays where it is.
    pub(crate) fn write_trees(
        &mut self,
        generation: u64,
        extents: &BTreeMap<u64, Extent>,
    ) -> Trees {
        // Superblock G - 1 is on disk: what only G - 2 reached may be overwritten.
        self.free.append(&mut self.pinned);
        let mut writer = Writer { image: self, generation, written: Vec::new() };
        let extent_root = writer.extent_tree(extent_items(extents));
        let root_item = root_item(extent_root);
        let root = writer.tree(1, &[((2, 132, 0), root_item)]);
        let chunk_root = writer.tree(3, &[((256, 228, METADATA_START), chunk_item())]);
        let written = writer.written;
        self.pinned = std::mem::replace(&mut self.used, written);
        self.pinned.retain(|bytenr| !self.used.contains(bytenr));
        Trees { generation, root, chunk_root }
    }

    /// Writes the superblock that leads to what [`Image::write_trees`] wrote.
    pub(crate) fn write_superblock(&mut self, root: &Trees) {
        self.blocks.insert(SUPERBLOCK_OFFSET, superblock(root));
    }
}

/// Where trees were written.
pub(crate) struct Trees {
    generation: u64,
    root: Node,
    chunk_root: Node,
}

#[derive(Clone, Copy)]
struct Node {
    bytenr: u64,
    generation: u64,
    level: u8,
}

struct Writer<'a> {
    image: &'a mut Image,
    generation: u64,
    written: Vec<u64>,
}

impl Writer<'_> {
    /// A tree that is a leaf.
    fn tree(&mut self, owner: u64, items: &[Item]) -> Node {
        let Pointer { bytenr, generation, .. } = self.leaf(owner, items);
        Node { bytenr, generation, level: 0 }
    }

    /// The extent tree, copied where it is written. An item goes into the block whose first key is
    /// the last one before it, and a block that has become too large is split.
    fn extent_tree(&mut self, items: Vec<Item>) -> Node {
        let before = std::mem::take(&mut self.image.leaves);
        let borders: Vec<Key> = before.iter().map(|(_, pointer)| pointer.key).collect();
        let leaves: Vec<Vec<Item>> =
            grouped(items, &borders, |item| item.0).into_iter().flat_map(leaves).collect();
        let mut pointers = Vec::new();
        for leaf in leaves {
            let same = before.iter().find(|(items, _)| *items == leaf);
            let pointer = self.keep_or(same.map(|(_, it)| *it), |it| it.leaf(2, &leaf));
            pointers.push(pointer);
            self.image.leaves.push((leaf, pointer));
        }
        let mut before = std::mem::take(&mut self.image.nodes).into_iter();
        let mut level = 0;
        while pointers.len() > 1 {
            level += 1;
            let before = before.next().unwrap_or_default();
            let borders: Vec<Key> = before.iter().map(|(_, pointer)| pointer.key).collect();
            let width = (NODE_BYTES - HEADER_BYTES) / KEY_PTR_BYTES;
            let mut nodes = Vec::new();
            for group in grouped(pointers, &borders, |pointer| pointer.key) {
                for children in group.chunks(width) {
                    let same = before.iter().find(|(known, _)| known == children);
                    let pointer =
                        self.keep_or(same.map(|(_, it)| *it), |it| it.node(2, level, children));
                    nodes.push((children.to_vec(), pointer));
                }
            }
            pointers = nodes.iter().map(|(_, pointer)| *pointer).collect();
            self.image.nodes.push(nodes);
        }
        let Pointer { bytenr, generation, .. } = pointers[0];
        Node { bytenr, generation, level }
    }

    fn keep_or(
        &mut self,
        same: Option<Pointer>,
        write: impl FnOnce(&mut Self) -> Pointer,
    ) -> Pointer {
        match same {
            Some(pointer) => {
                self.written.push(pointer.bytenr);
                pointer
            }
            None => write(self),
        }
    }

    fn leaf(&mut self, owner: u64, items: &[Item]) -> Pointer {
        let mut block = vec![0; NODE_BYTES];
        let mut end = NODE_BYTES;
        for (slot, (key, data)) in items.iter().enumerate() {
            end -= data.len();
            block[end..end + data.len()].copy_from_slice(data);
            let at = HEADER_BYTES + slot * ITEM_BYTES;
            put_key(&mut block[at..], *key);
            put_u32(&mut block[at + 17..], (end - HEADER_BYTES) as u32);
            put_u32(&mut block[at + 21..], data.len() as u32);
        }
        let first = items.first().map_or((0, 0, 0), |item| item.0);
        self.write(first, owner, 0, items.len(), block)
    }

    fn node(&mut self, owner: u64, level: u8, children: &[Pointer]) -> Pointer {
        let mut block = vec![0; NODE_BYTES];
        for (slot, child) in children.iter().enumerate() {
            let at = HEADER_BYTES + slot * KEY_PTR_BYTES;
            put_key(&mut block[at..], child.key);
            put_u64(&mut block[at + 17..], child.bytenr);
            put_u64(&mut block[at + 25..], child.generation);
        }
        self.write(children[0].key, owner, level, children.len(), block)
    }

    fn write(
        &mut self,
        key: Key,
        owner: u64,
        level: u8,
        count: usize,
        mut block: Vec<u8>,
    ) -> Pointer {
        let bytenr = self.image.free.pop().expect("the simulated device is full");
        block[32..48].copy_from_slice(&FSID);
        put_u64(&mut block[48..], bytenr);
        put_u64(&mut block[56..], 1 << 56 | 1);
        block[64..80].copy_from_slice(&CHUNK_TREE_UUID);
        put_u64(&mut block[80..], self.generation);
        put_u64(&mut block[88..], owner);
        put_u32(&mut block[96..], count as u32);
        block[100] = level;
        seal(&mut block);
        self.image.blocks.insert(bytenr, block);
        self.written.push(bytenr);
        Pointer { key, bytenr, generation: self.generation }
    }
}

/// What belongs to each of the blocks that begin at `borders`, where something does.
fn grouped<T>(all: Vec<T>, borders: &[Key], key: impl Fn(&T) -> Key) -> Vec<Vec<T>> {
    let mut groups: BTreeMap<usize, Vec<T>> = BTreeMap::new();
    for one in all {
        let group = borders.partition_point(|border| *border <= key(&one)).saturating_sub(1);
        groups.entry(group).or_default().push(one);
    }
    groups.into_values().collect()
}

fn leaves(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut leaves = vec![Vec::new()];
    let mut room = NODE_BYTES - HEADER_BYTES;
    for item in items {
        let need = ITEM_BYTES + item.1.len();
        if need > room {
            leaves.push(Vec::new());
            room = NODE_BYTES - HEADER_BYTES;
        }
        room -= need;
        leaves.last_mut().expect("never empty").push(item);
    }
    leaves
}

fn extent_items(extents: &BTreeMap<u64, Extent>) -> Vec<Item> {
    extents.iter().flat_map(|(&bytenr, extent)| items_of(bytenr, extent)).collect()
}

fn items_of(bytenr: u64, extent: &Extent) -> Vec<Item> {
    let mut refs: Vec<(&RefKey, u32)> = extent.refs.iter().map(|(key, &n)| (key, n)).collect();
    // Types ascend; within a type the offset, for direct data the hash, descends.
    refs.sort_by_key(|(key, _)| {
        let (kind, offset) = type_and_offset(extent.kind, key);
        (kind, std::cmp::Reverse(offset))
    });
    let keyed = refs.split_off(refs.len().min(INLINE_MAX));

    let mut item = Vec::new();
    let total: u64 = extent.refs.values().map(|&n| u64::from(n)).sum();
    item.extend(total.saturating_add_signed(extent.total_error).to_le_bytes());
    // The transaction of its allocation; any will do.
    item.extend(1_u64.to_le_bytes());
    let is_data = extent.kind == ExtentKind::Data;
    item.extend(if is_data { 1_u64 } else { 2 }.to_le_bytes());
    for (key, count) in refs {
        item.extend(inline_ref(extent.kind, key, count));
    }
    let key = match extent.kind {
        ExtentKind::Data => (bytenr, 168, extent.len_bytes),
        ExtentKind::TreeBlock { level } => (bytenr, 169, u64::from(level)),
    };
    let mut items = vec![(key, item)];
    for (key, count) in keyed {
        let (kind, offset) = type_and_offset(extent.kind, key);
        items.push(((bytenr, kind, offset), keyed_body(kind, key, count)));
    }
    items.sort_by_key(|item| item.0);
    items
}

fn type_and_offset(kind: ExtentKind, key: &RefKey) -> (u8, u64) {
    match (kind, key.is_shared()) {
        (ExtentKind::Data, false) => (178, data_ref_hash(key)),
        (ExtentKind::Data, true) => (184, key.parent),
        (ExtentKind::TreeBlock { .. }, false) => (176, key.root),
        (ExtentKind::TreeBlock { .. }, true) => (182, key.parent),
    }
}

fn inline_ref(kind: ExtentKind, key: &RefKey, count: u32) -> Vec<u8> {
    let (kind, offset) = type_and_offset(kind, key);
    let mut bytes = vec![kind];
    if kind != 178 {
        bytes.extend(offset.to_le_bytes());
    }
    bytes.extend(keyed_body(kind, key, count));
    bytes
}

fn keyed_body(kind: u8, key: &RefKey, count: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    if kind == 178 {
        bytes.extend(key.root.to_le_bytes());
        bytes.extend(key.owner.to_le_bytes());
        bytes.extend(key.offset.to_le_bytes());
    }
    if kind == 178 || kind == 184 {
        bytes.extend(count.to_le_bytes());
    }
    bytes
}

/// `hash_extent_data_ref` in `fs/btrfs/extent-tree.c`: CRCs without the last inversion.
fn data_ref_hash(key: &RefKey) -> u64 {
    let raw = |seed: u32, data: &[u8]| !crc32c::crc32c_append(!seed, data);
    let high = raw(!0, &key.root.to_le_bytes());
    let low = raw(raw(!0, &key.owner.to_le_bytes()), &key.offset.to_le_bytes());
    u64::from(high) << 31 ^ u64::from(low)
}

fn root_item(root: Node) -> Vec<u8> {
    let mut item = vec![0; 439];
    put_u64(&mut item[160..], root.generation);
    put_u64(&mut item[176..], root.bytenr);
    put_u32(&mut item[216..], 1);
    item[238] = root.level;
    put_u64(&mut item[239..], root.generation);
    item
}

/// A SINGLE chunk of metadata and system, mapped one to one.
fn chunk_item() -> Vec<u8> {
    let mut item = vec![0; 80];
    put_u64(&mut item[0..], METADATA_LEN_BYTES);
    put_u64(&mut item[8..], 2);
    put_u64(&mut item[16..], 65536);
    put_u64(&mut item[24..], 2 | 4);
    put_u32(&mut item[32..], 65536);
    put_u32(&mut item[36..], 65536);
    put_u32(&mut item[40..], 4096);
    item[44..46].copy_from_slice(&1_u16.to_le_bytes());
    item[46..48].copy_from_slice(&1_u16.to_le_bytes());
    put_u64(&mut item[48..], 1);
    put_u64(&mut item[56..], METADATA_START);
    item
}

fn superblock(trees: &Trees) -> Vec<u8> {
    let mut sb = vec![0; NODE_BYTES];
    sb[32..48].copy_from_slice(&FSID);
    put_u64(&mut sb[48..], SUPERBLOCK_OFFSET);
    put_u64(&mut sb[56..], 1);
    sb[64..72].copy_from_slice(b"_BHRfS_M");
    put_u64(&mut sb[72..], trees.generation);
    put_u64(&mut sb[80..], trees.root.bytenr);
    put_u64(&mut sb[88..], trees.chunk_root.bytenr);
    put_u64(&mut sb[112..], METADATA_START + METADATA_LEN_BYTES);
    put_u64(&mut sb[136..], 1);
    for at in [144, 148, 152, 156] {
        put_u32(&mut sb[at..], 4096);
    }
    put_u64(&mut sb[164..], trees.generation);
    // MIXED_BACKREF, EXTENDED_IREF and SKINNY_METADATA.
    put_u64(&mut sb[188..], 1 | 1 << 6 | 1 << 8);
    sb[198] = trees.root.level;
    sb[199] = trees.chunk_root.level;
    put_u64(&mut sb[201..], 1);
    put_u64(&mut sb[209..], METADATA_START + METADATA_LEN_BYTES);
    sb[283..299].copy_from_slice(&FSID);
    let chunk = chunk_item();
    put_key(&mut sb[811..], (256, 228, METADATA_START));
    sb[828..828 + chunk.len()].copy_from_slice(&chunk);
    put_u32(&mut sb[160..], 17 + chunk.len() as u32);
    seal(&mut sb);
    sb
}

fn seal(block: &mut [u8]) {
    let csum = crc32c::crc32c(&block[32..]);
    put_u32(block, csum);
}

fn put_key(at: &mut [u8], (objectid, kind, offset): Key) {
    put_u64(at, objectid);
    at[8] = kind;
    put_u64(&mut at[9..], offset);
}

fn put_u64(at: &mut [u8], value: u64) {
    at[..8].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(at: &mut [u8], value: u32) {
    at[..4].copy_from_slice(&value.to_le_bytes());
}
