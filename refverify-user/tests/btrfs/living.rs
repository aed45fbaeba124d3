//! A file system that lives: it commits, copy-on-write, while someone reads it, and uses
//! freed blocks again as soon as it may. What was true at every generation is remembered.

use std::collections::{BTreeMap, BTreeSet};

use refverify_user::btrfs::{
    DiskExtent, ExtentKind, RefKey,
    format::{Key, extent_data_ref_hash, item_type},
    objectid,
};

use crate::synthetic::{
    Device, FIRST_FREE_BLOCK, Header, Pointer, data_ref, extent_item, inline_data_ref, interior,
    key, leaf,
};

/// A small generator of numbers (SplitMix64): a failing seed can be run again.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Leaves of the extent tree.
const LEAVES: u64 = 60;
/// Leaf n ends within the keyed references of the extent at n + 1 strides.
const STRIDE: u64 = 1 << 20;
/// Children of a block above the leaves: few, so that the tree is high.
const FANOUT: usize = 5;
/// Blocks beyond those in use: few, so that freed ones are soon used again.
const SPARE_BLOCKS: u64 = 40;

/// The state of the extent tree at one generation.
pub(crate) type Extents = BTreeMap<u64, DiskExtent>;

/// A file system that commits.
pub(crate) struct Living {
    pub(crate) device: Device,
    pub(crate) generation: u64,
    /// What the extent tree held at each generation.
    pub(crate) history: BTreeMap<u64, Extents>,
    random: Random,
    extents: Extents,
    items: BTreeMap<Key, Vec<u8>>,
    dirty: BTreeSet<u64>,
    leaves: Vec<Option<Pointer>>,
    /// What is written of each level above the leaves: children, and the block that has them.
    levels: Vec<BTreeMap<usize, (Vec<Pointer>, Pointer)>>,
    free: Vec<u64>,
    /// Freed by the commit under way: to be used once its superblock is written.
    pinned: Vec<u64>,
    /// The tree of a commit whose superblock is still to be written.
    written: Option<(Pointer, u8)>,
    /// Whether whole leaves may go.
    may_empty: bool,
}

impl Living {
    pub(crate) fn new(seed: u64) -> Self {
        let blocks = 2 * LEAVES + SPARE_BLOCKS;
        let mut living = Self {
            device: Device::new(),
            generation: 0,
            history: BTreeMap::new(),
            random: Random(seed),
            extents: Extents::new(),
            items: BTreeMap::new(),
            dirty: (0..=LEAVES).collect(),
            leaves: vec![None; 1 + usize::try_from(LEAVES).expect("few")],
            levels: vec![BTreeMap::new(); 8],
            free: (0..blocks).map(|i| FIRST_FREE_BLOCK + i * 4096).collect(),
            pinned: Vec::new(),
            written: None,
            may_empty: false,
        };
        for stride in 1..=LEAVES {
            living.put_extent(stride * STRIDE);
            living.put_extent(stride * STRIDE + (64 << 10));
        }
        living.write_tree();
        living.write_superblock();
        living
    }

    /// One whose leaves come and go, and mostly end where an extent ends.
    pub(crate) fn with_leaves_that_go(seed: u64) -> Self {
        let mut living = Self::new(seed);
        living.may_empty = true;
        for stride in 1..=LEAVES {
            living.put_extent(stride * STRIDE);
        }
        living.commit_unchanged();
        living
    }

    /// Half a commit: the new blocks, or the superblock that makes them count.
    pub(crate) fn step(&mut self) {
        if self.written.is_some() {
            self.write_superblock();
            self.spoil_freed_blocks();
        } else {
            for _ in 0..=self.random.below(12) {
                self.change();
            }
            self.write_tree();
        }
    }

    /// A commit that changes nothing in the extent tree.
    pub(crate) fn commit_unchanged(&mut self) {
        if self.written.is_none() {
            self.write_tree();
        }
        self.write_superblock();
    }

    /// A commit that changes one extent of the last leaf.
    pub(crate) fn commit_one_change(&mut self) {
        self.put_extent(LEAVES * STRIDE + (64 << 10));
        self.write_tree();
        self.write_superblock();
    }

    /// Where a leaf is now.
    pub(crate) fn leaf_bytenr(&self, index: usize) -> u64 {
        self.leaves[index].expect("it was written").bytenr
    }

    fn change(&mut self) {
        let stride = 1 + self.random.below(LEAVES);
        let place = self.random.below(5);
        let bytenr = stride * STRIDE + place * (64 << 10);
        if self.may_empty && self.random.below(3) == 0 {
            let stride = bytenr..bytenr + STRIDE;
            let all: Vec<u64> = self.extents.range(stride).map(|(&bytenr, _)| bytenr).collect();
            for bytenr in all {
                self.remove_extent(bytenr);
            }
        // Else places 0 and 1 are always in use, so that no leaf is ever empty.
        } else if place > 1 && self.random.below(2) == 0 {
            self.remove_extent(bytenr);
        } else {
            self.put_extent(bytenr);
        }
    }

    fn remove_extent(&mut self, bytenr: u64) {
        self.extents.remove(&bytenr);
        let keys: Vec<Key> = self
            .items
            .range(Key::first_of(bytenr)..Key::first_of(bytenr + 1))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.items.remove(&key);
            self.dirty.insert(leaf_of(key));
        }
    }

    /// An extent with new references: up to two inline, the others keyed.
    fn put_extent(&mut self, bytenr: u64) {
        self.remove_extent(bytenr);
        let count = 1 + self.random.below(if self.may_empty { 3 } else { 10 });
        let mut refs: Vec<_> = (0..count)
            .map(|i| {
                let (root, inode) = (256 + self.random.below(3), 300 + i);
                let offset = self.random.below(100) * 4096;
                (extent_data_ref_hash(root, inode, offset), root, inode, offset)
            })
            .collect();
        let keyed = refs.split_off(refs.len().min(2));
        refs.sort_by(|a, b| b.cmp(a));
        let inline: Vec<_> =
            refs.iter().map(|&(_, root, inode, at)| inline_data_ref(root, inode, at, 3)).collect();
        let mut keyed_sorted = keyed;
        keyed_sorted.sort_unstable();
        let total_refs = 3 * count;
        self.put_item(key(bytenr, 168, 4096), extent_item(total_refs, true, &inline));
        for &(hash, root, inode, at) in &keyed_sorted {
            self.put_item(
                key(bytenr, item_type::EXTENT_DATA_REF, hash),
                data_ref(root, inode, at, 3),
            );
        }
        let all = refs.iter().chain(&keyed_sorted);
        let extent = DiskExtent {
            bytenr,
            len_bytes: 4096,
            kind: ExtentKind::Data,
            total_refs,
            generation: 1,
            owner_root: None,
            refs: all.map(|&(_, root, inode, at)| (RefKey::data(root, 0, inode, at), 3)).collect(),
        };
        self.extents.insert(bytenr, extent);
    }

    fn put_item(&mut self, key: Key, body: Vec<u8>) {
        self.items.insert(key, body);
        self.dirty.insert(leaf_of(key));
    }

    fn allocate(&mut self, replaced: Option<Pointer>) -> u64 {
        self.pinned.extend(replaced.map(|pointer| pointer.bytenr));
        // The last freed is used first, mostly.
        let last = self.free.len() as u64 - 1;
        let at = if self.random.below(4) == 0 { self.random.below(last + 1) } else { last };
        self.free.remove(usize::try_from(at).expect("few"))
    }

    /// Writes every changed block of the next generation.
    fn write_tree(&mut self) {
        let generation = self.generation + 1;
        let header =
            |bytenr, level| Header { bytenr, generation, owner: objectid::EXTENT_TREE, level };
        let dirty = std::mem::take(&mut self.dirty);
        let left = dirty.iter().filter_map(|&index| self.left_of_growing_leaf(index));
        let dirty: BTreeSet<u64> = left.chain(dirty.iter().copied()).collect();
        for index in dirty {
            let items: Vec<_> = self
                .items
                .range(border(index)..border(index + 1))
                .map(|(key, body)| (*key, body.clone()))
                .collect();
            let place = usize::try_from(index).expect("few");
            let Some(&(first_key, _)) = items.first() else {
                self.pinned.extend(self.leaves[place].take().map(|leaf| leaf.bytenr));
                continue;
            };
            let bytenr = self.allocate(self.leaves[place]);
            self.device.write_block(&leaf(header(bytenr, 0), &items));
            self.leaves[place] = Some(Pointer { key: first_key, bytenr, generation });
        }
        let leaves = self.leaves.iter().enumerate();
        let mut below: BTreeMap<usize, Pointer> =
            leaves.filter_map(|(place, leaf)| Some((place, (*leaf)?))).collect();
        let mut level = 0;
        while below.len() > 1 {
            level += 1;
            let mut groups: BTreeMap<usize, Vec<Pointer>> = BTreeMap::new();
            for (place, pointer) in below {
                groups.entry(place / FANOUT).or_default().push(pointer);
            }
            let mut before = std::mem::take(&mut self.levels[usize::from(level)]);
            below = BTreeMap::new();
            for (group, children) in groups {
                let pointer = match before.remove(&group) {
                    Some((same, pointer)) if same == children => pointer,
                    replaced => {
                        let bytenr = self.allocate(replaced.map(|(_, pointer)| pointer));
                        self.device.write_block(&interior(header(bytenr, level), &children));
                        Pointer { key: children[0].key, bytenr, generation }
                    }
                };
                self.levels[usize::from(level)].insert(group, (children, pointer));
                below.insert(group, pointer);
            }
            self.pinned.extend(before.into_values().map(|(_, pointer)| pointer.bytenr));
        }
        let root = *below.values().next().expect("never all of it goes");
        self.written = Some((root, level));
    }

    /// A key before the first one of a leaf is put into the leaf to its left, and gets into this
    /// one when items are moved, or when that one is split: either way it is written anew.
    fn left_of_growing_leaf(&self, index: u64) -> Option<u64> {
        let place = usize::try_from(index).expect("few");
        let (&first, _) = self.items.range(border(index)..border(index + 1)).next()?;
        let is_growing = self.leaves[place].is_none_or(|leaf| first < leaf.key);
        let left = self.leaves[..place].iter().rposition(Option::is_some);
        left.filter(|_| is_growing).map(|left| left as u64)
    }

    fn write_superblock(&mut self) {
        let Some((root, level)) = self.written.take() else { return };
        self.generation += 1;
        self.device.commit(self.generation, root, level);
        self.free.append(&mut self.pinned);
        self.history.insert(self.generation, self.extents.clone());
    }

    /// What a freed block may hold at any time: zeroes, or sound metadata of another tree.
    fn spoil_freed_blocks(&mut self) {
        for bytenr in self.free.clone() {
            match self.random.below(4) {
                0 => {
                    for at in Device::places(bytenr) {
                        self.device.bytes[at..at + 4096].fill(0);
                    }
                }
                1 => {
                    let of = Header { bytenr, generation: self.generation, owner: 5, level: 0 };
                    let items = [(key(256, 1, 0), vec![0; 160])];
                    self.device.write_block(&leaf(of, &items));
                }
                _ => {}
            }
        }
    }
}

/// The first key that a leaf can hold: in the midst of the keyed references of an extent.
fn border(leaf: u64) -> Key {
    // In the midst of the hashes of roots 256 to 258.
    let hash = extent_data_ref_hash(257, 0, 0) & !0x7fff_ffff;
    key(leaf * STRIDE, item_type::EXTENT_DATA_REF, hash)
}

/// The leaf that a key belongs to.
fn leaf_of(key: Key) -> u64 {
    let leaf = key.objectid / STRIDE;
    if key >= border(leaf) { leaf } else { leaf - 1 }
}
