//! What an earlier reading found, so that a later one can pass over what has not changed.
//!
//! Copy-on-write: a block of generation G is never changed again once superblock G is on disk,
//! and whatever changes below it gives it another bytenr or generation. So a pointer that an
//! earlier reading has met already leads to the same items.
//!
//! Where those items end is another question. A pointer covers the keys up to its right
//! neighbour's, and when that neighbour is emptied and removed it covers more keys without having
//! been changed. What lies between its old end and its new one was removed, and must not be taken
//! for unchanged. So the old end is remembered. It can only grow: to insert a key between two
//! blocks, the left one is searched for and copied (kernel: `btrfs_search_slot`), even where the
//! item then moves into the right one.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use crate::btrfs::format::{BlockPointer, Key, item_type};

/// The blocks below the root of a tree, as readings of its whole range have met them.
#[derive(Debug, Default)]
pub struct KnownTree {
    /// By level, then by first key.
    levels: Vec<BTreeMap<Key, KnownBlock>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KnownBlock {
    bytenr: u64,
    generation: u64,
    /// Where it ended in the superblock in which it was met first.
    end: Key,
    /// That superblock's generation.
    met_at: u64,
}

impl KnownTree {
    /// How many blocks are known.
    pub fn len(&self) -> usize {
        self.levels.iter().map(BTreeMap::len).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A block, if it was met.
    fn get(&self, pointer: &BlockPointer) -> Option<&KnownBlock> {
        let known = self.levels.get(usize::from(pointer.level))?.get(&pointer.first_key?)?;
        known.is_block(pointer).then_some(known)
    }

    /// Takes the children of a block that has been read, in order, for all that was known between
    /// the first one's first key and the last one's end.
    fn replace(&mut self, children: &[BlockPointer], met_at: u64) {
        let (Some(first), Some(last)) = (children.first(), children.last()) else { return };
        let level = usize::from(first.level);
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, BTreeMap::new);
        }
        let blocks = &mut self.levels[level];
        let range = first.first_key.unwrap_or(Key::first_of(0))..end_of(last);
        let gone: Vec<Key> = blocks.range(range).map(|(&key, _)| key).collect();
        let mut before: BTreeMap<Key, KnownBlock> =
            gone.into_iter().filter_map(|key| Some((key, blocks.remove(&key)?))).collect();
        for child in children {
            let BlockPointer { bytenr, generation, .. } = *child;
            let key = child.first_key.unwrap_or(Key::first_of(0));
            let met = KnownBlock { bytenr, generation, end: end_of(child), met_at };
            // What was known of the same block before holds, and says more.
            let known = before.remove(&key).filter(|known| known.is_block(child));
            blocks.insert(key, known.unwrap_or(met));
        }
    }
}

impl KnownBlock {
    fn is_block(&self, pointer: &BlockPointer) -> bool {
        (self.bytenr, self.generation) == (pointer.bytenr, pointer.generation)
    }
}

/// What a reading may pass over, and what it must not.
#[derive(Debug, Default)]
pub struct Known {
    /// What was met before. What this reading meets is added.
    pub tree: KnownTree,
    /// What has not changed since this generation is passed over, where that can be told; 0 is to
    /// read everything.
    pub since: u64,
    /// Where there is to be read even so: bytenrs of extents.
    pub look_at: BTreeSet<u64>,
}

impl Known {
    /// Takes what a block of the extent tree points to, as far as it is wanted, at a superblock's
    /// `generation`. For each child: where it has not changed, if it need not be read.
    pub(super) fn meet(
        &mut self,
        children: &[BlockPointer],
        generation: u64,
    ) -> Vec<Option<Range<Key>>> {
        let mut unchanged: Vec<_> = children.iter().map(|child| self.unchanged(child)).collect();
        for run in
            unchanged.chunk_by_mut(|left, right| are_neighbours(left.as_ref(), right.as_ref()))
        {
            keep_whole_extents(run);
        }
        self.tree.replace(children, generation);
        unchanged
    }

    fn unchanged(&self, child: &BlockPointer) -> Option<Range<Key>> {
        let known = self.tree.get(child)?;
        // What was met later says nothing of where the block ended before.
        if known.met_at > self.since {
            return None;
        }
        let (start, end) = (child.first_key?, known.end.min(end_of(child)));
        let is_wanted = self.look_at.range(start.objectid..=end.objectid).next().is_some();
        (start < end && !is_wanted).then_some(start..end)
    }
}

/// Whether one unchanged block ends where the next one begins.
fn are_neighbours(left: Option<&Range<Key>>, right: Option<&Range<Key>>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => left.end == right.start,
        _ => false,
    }
}

/// Leaves of a run of neighbours that have not changed only those that can be passed over together:
/// an extent whose items are on both sides of an edge is read whole.
fn keep_whole_extents(run: &mut [Option<Range<Key>>]) {
    let begins = |keys: &Option<Range<Key>>| keys.as_ref().is_none_or(|it| begins_extent(it.start));
    let ends = |keys: &Option<Range<Key>>| keys.as_ref().is_none_or(|it| begins_extent(it.end));
    let first = run.iter().position(begins).unwrap_or(run.len());
    run[..first].fill(None);
    let last = run.iter().rposition(ends).map_or(0, |last| last + 1);
    run[last..].fill(None);
}

/// Beyond every key of a tree.
const LAST_KEY: Key = Key { objectid: u64::MAX, item_type: 0, offset: 0 };

fn end_of(pointer: &BlockPointer) -> Key {
    pointer.end_key.unwrap_or(LAST_KEY)
}

/// Whether no extent has items on both sides of a key: those with references come after the
/// extent's own.
const fn begins_extent(key: Key) -> bool {
    key.item_type <= item_type::METADATA_ITEM
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: u64 = 2;

    fn key(bytenr: u64) -> Key {
        Key { objectid: bytenr, item_type: item_type::EXTENT_ITEM, offset: 4096 }
    }

    fn leaves(known: &mut Known, leaves: &[(Key, u64, u64)], at: u64) -> Vec<Option<Range<Key>>> {
        let ends = leaves.iter().skip(1).map(|&(key, ..)| Some(key)).chain([None]);
        let leaf = |(&(key, bytenr, generation), end_key)| BlockPointer {
            first_key: Some(key),
            end_key,
            ..BlockPointer::to_root(TREE, bytenr, generation, 0)
        };
        let children: Vec<_> = leaves.iter().zip(ends).map(leaf).collect();
        known.meet(&children, at)
    }

    fn known(since: u64) -> Known {
        let mut known = Known::default();
        let all = [(key(100), 1, 5), (key(200), 2, 6), (key(300), 3, 7)];
        assert_eq!(leaves(&mut known, &all, 9), [None, None, None]);
        known.since = since;
        known
    }

    #[test]
    fn where_a_neighbour_went_a_block_is_unchanged_up_to_its_old_end_only() {
        let now = [(key(100), 1, 5), (key(300), 3, 7)];
        let unchanged = [Some(key(100)..key(200)), Some(key(300)..LAST_KEY)];
        assert_eq!(leaves(&mut known(9), &now, 10), unchanged);
    }

    #[test]
    fn a_block_at_the_same_place_of_another_generation_has_changed() {
        let now = [(key(100), 1, 8), (key(200), 2, 6), (key(300), 4, 7)];
        assert_eq!(leaves(&mut known(9), &now, 10), [None, Some(key(200)..key(300)), None]);
    }

    #[test]
    fn a_block_that_was_met_later_than_what_is_certain_is_read() {
        let now = [(key(100), 1, 5), (key(200), 2, 6), (key(300), 3, 7)];
        assert_eq!(leaves(&mut known(8), &now, 10), [None, None, None]);
        let mut known = known(9);
        let passed = leaves(&mut known, &now, 10);
        assert!(passed.iter().all(Option::is_some));
        // The same reading, at a newer superblock.
        assert!(leaves(&mut known, &now, 11).iter().all(Option::is_some));
        let other = [(key(100), 9, 11), (key(200), 2, 6), (key(300), 3, 7)];
        assert_eq!(leaves(&mut known, &other, 11)[0], None);
        assert_eq!(leaves(&mut known, &other, 12)[0], None, "it was met later");
    }

    #[test]
    fn an_extent_with_items_in_two_blocks_is_passed_over_only_with_both() {
        let inside = Key { objectid: 200, item_type: item_type::EXTENT_DATA_REF, offset: 1 };
        let all = [(key(100), 1, 5), (inside, 2, 6), (key(300), 3, 7)];
        let known = || {
            let mut known = Known::default();
            leaves(&mut known, &all, 9);
            Known { since: 9, ..known }
        };
        let last = Some(key(300)..LAST_KEY);
        let passed = [Some(key(100)..inside), Some(inside..key(300)), last.clone()];
        assert_eq!(leaves(&mut known(), &all, 10), passed);
        let left_changed = [(key(100), 4, 10), (inside, 2, 6), (key(300), 3, 7)];
        assert_eq!(leaves(&mut known(), &left_changed, 10), [None, None, last.clone()]);
        let right_changed = [(key(100), 1, 5), (inside, 4, 10), (key(300), 3, 7)];
        assert_eq!(leaves(&mut known(), &right_changed, 10), [None, None, last.clone()]);
        let mut looked_at = known();
        looked_at.look_at = BTreeSet::from([200]);
        assert_eq!(leaves(&mut looked_at, &all, 10), [None, None, last]);
    }

    #[test]
    fn what_is_to_be_looked_at_is_read() {
        let mut known = known(9);
        known.look_at = BTreeSet::from([250]);
        let now = [(key(100), 1, 5), (key(200), 2, 6), (key(300), 3, 7)];
        let unchanged = [Some(key(100)..key(200)), None, Some(key(300)..LAST_KEY)];
        assert_eq!(leaves(&mut known, &now, 10), unchanged);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut known = known(9);
        leaves(&mut known, &[(key(100), 9, 10)], 10);
        assert_eq!(known.tree.len(), 1);
    }
}
