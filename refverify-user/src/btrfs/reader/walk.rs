//! One tree, read in the order of its keys with many blocks ahead.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
    ops::{Bound, Range},
};

use bytes::Bytes;

use super::Known;
use crate::btrfs::format::{BlockFault, BlockPointer, Key, Leaf, TreeBlock};

/// How much at the left edge of what is unread is wanted at once. Blocks come in any order and
/// are told from left to right, so that the device has some of them to do at any time, even
/// while whoever takes them has to wait for a processor.
const AHEAD_BYTES: u32 = 16 << 20;

/// How many of them may be above the leaves: each can bring hundreds of pointers.
const INTERIOR_AHEAD: usize = 32;

/// What a place of the frontier waits for.
#[derive(Debug)]
enum State {
    Wanted,
    Reading,
    Read(Leaf),
    Bad(Vec<BlockFault>),
    /// It need not be read: up to this key nothing has changed since an earlier reading.
    Unchanged {
        end: Key,
    },
}

/// A walk over the part of a tree whose keys are in a range.
///
/// What is unread is a frontier of blocks that together cover the rest of the range, in key
/// order. A block above the leaves is replaced by those below it as soon as it is read. Every
/// step goes down a level or to the right, so a walk always ends: a checked block's level is
/// one below its parent's, and its keys lie between those of its neighbours.
#[derive(Debug)]
pub(super) struct TreeWalk {
    root: BlockPointer,
    range: Range<Key>,
    frontier: BTreeMap<Key, (BlockPointer, State)>,
    ahead: Ahead,
    /// Leaves that the walk before had read ahead, by bytenr and generation: most of them are
    /// the same in the newer tree. Never more than a window of them.
    kept: HashMap<(u64, u64), Leaf>,
}

/// How far to the right blocks are wanted.
#[derive(Debug)]
enum Ahead {
    /// Not known: a place to the left has changed.
    Unknown,
    /// So many blocks, some of them above the leaves, up to this key.
    Known { blocks: usize, interior: usize, upto: Key },
}

/// What comes next, from left to right.
pub(super) enum Next {
    /// A leaf.
    Leaf(Leaf),
    /// A block that no mirror has: it was freed and used again, or it is bad.
    Bad(BlockPointer, Vec<BlockFault>),
    /// Here the tree is as an earlier reading found it.
    Unchanged(Range<Key>),
    /// Its bytes are still to come.
    Waiting,
    /// All of the range is read.
    End,
}

impl TreeWalk {
    pub(super) fn new(root: BlockPointer, range: Range<Key>) -> Self {
        let frontier = if range.is_empty() {
            BTreeMap::new()
        } else {
            BTreeMap::from([(Key::first_of(0), (root, State::Wanted))])
        };
        Self { root, range, frontier, ahead: Ahead::Unknown, kept: HashMap::new() }
    }

    /// A walk over a newer tree, which uses again what `older` had read ahead.
    pub(super) fn after(older: Option<Self>, root: BlockPointer, range: Range<Key>) -> Self {
        let mut walk = Self::new(root, range);
        let ahead = older.into_iter().flat_map(|older| older.frontier.into_values());
        walk.kept = ahead
            .filter_map(|(pointer, state)| match state {
                State::Read(leaf) => Some(((pointer.bytenr, pointer.generation), leaf)),
                _ => None,
            })
            .collect();
        walk
    }

    /// The bytes of a block, if the walk before had read it. They have to be checked against
    /// their new pointer.
    pub(super) fn take_kept(&mut self, pointer: &BlockPointer) -> Option<Bytes> {
        let leaf = self.kept.remove(&(pointer.bytenr, pointer.generation))?;
        Some(leaf.into_bytes())
    }

    pub(super) fn root(&self) -> BlockPointer {
        self.root
    }

    /// The blocks to read now; each is named once.
    ///
    /// More are wanted when a quarter of those ahead has been told: then there are enough of
    /// them for neighbours to be read together.
    pub(super) fn take_wanted(&mut self, nodesize: u32) -> Vec<BlockPointer> {
        // 256 of the largest blocks. More than 1024 would only be more to read again when a
        // file system in use has moved on.
        let blocks_ahead = (AHEAD_BYTES / nodesize.max(1)).clamp(256, 1024) as usize;
        let (mut blocks, mut interior, from) = match self.ahead {
            Ahead::Known { blocks, .. } if blocks > blocks_ahead / 4 * 3 => return Vec::new(),
            Ahead::Known { blocks, interior, upto } => (blocks, interior, Bound::Excluded(upto)),
            Ahead::Unknown => (0, 0, Bound::Unbounded),
        };
        let mut wanted = Vec::new();
        let mut upto = None;
        for (key, (pointer, state)) in self.frontier.range_mut((from, Bound::Unbounded)) {
            let is_interior = pointer.level > 0;
            let is_enough = blocks >= blocks_ahead || (is_interior && interior == INTERIOR_AHEAD);
            // What is behind a bad block is likely to be read again from elsewhere.
            if is_enough || matches!(state, State::Bad(_)) {
                break;
            }
            if matches!(state, State::Wanted) {
                *state = State::Reading;
                wanted.push(*pointer);
            }
            // What is passed over is not read, and so keeps nothing else from being read ahead.
            if !matches!(state, State::Unchanged { .. }) {
                blocks += 1;
                interior += usize::from(is_interior);
            }
            upto = Some(*key);
        }
        if let Some(upto) = upto {
            self.ahead = Ahead::Known { blocks, interior, upto };
        }
        wanted
    }

    /// Takes a block that was wanted. `known` says which of the blocks below it can be passed
    /// over, and remembers them, at the superblock's generation that comes with it.
    pub(super) fn accept(
        &mut self,
        pointer: &BlockPointer,
        block: Result<TreeBlock, Vec<BlockFault>>,
        known: Option<(&mut Known, u64)>,
    ) {
        let place = pointer.first_key.unwrap_or(Key::first_of(0));
        let Some((at_place, state)) = self.frontier.get_mut(&place) else { return };
        if at_place != pointer {
            return;
        }
        match block {
            Ok(TreeBlock::Leaf(leaf)) => *state = State::Read(leaf),
            Err(faults) => {
                *state = State::Bad(faults);
                self.ahead = Ahead::Unknown;
            }
            Ok(TreeBlock::Interior(interior)) => {
                self.frontier.remove(&place);
                self.ahead = Ahead::Unknown;
                let range = &self.range;
                let in_range: Vec<_> = interior
                    .children()
                    .skip_while(|child| child.end_key.is_some_and(|end| end <= range.start))
                    .take_while(|child| child.first_key < Some(range.end))
                    .collect();
                let unchanged = known
                    .map_or_else(Vec::new, |(known, generation)| known.meet(&in_range, generation));
                let unchanged = unchanged.into_iter().chain(iter::repeat(None));
                self.frontier.extend(in_range.into_iter().zip(unchanged).map(
                    |(child, unchanged)| {
                        let state = unchanged
                            .map_or(State::Wanted, |keys| State::Unchanged { end: keys.end });
                        (child.first_key.unwrap_or(place), (child, state))
                    },
                ));
            }
        }
    }

    /// Wants a bad block once more.
    pub(super) fn retry_bad(&mut self) {
        self.ahead = Ahead::Unknown;
        for (_, state) in self.frontier.values_mut() {
            if matches!(state, State::Bad(_)) {
                *state = State::Wanted;
            }
        }
    }

    /// What is next; takes a leaf out of the walk.
    pub(super) fn next(&mut self) -> Next {
        let Some(first) = self.frontier.first_entry() else { return Next::End };
        match first.get() {
            (_, State::Wanted | State::Reading) => Next::Waiting,
            (pointer, State::Bad(faults)) => Next::Bad(*pointer, faults.clone()),
            (_, State::Unchanged { end }) => {
                let keys = *first.key()..*end;
                first.remove();
                Next::Unchanged(keys)
            }
            (_, State::Read(leaf)) => {
                let leaf = leaf.clone();
                first.remove();
                if let Ahead::Known { blocks, .. } = &mut self.ahead {
                    *blocks = blocks.saturating_sub(1);
                }
                Next::Leaf(leaf)
            }
        }
    }

    /// The keys that the walk is for; the leaves at its ends hold others too.
    pub(super) fn range(&self) -> &Range<Key> {
        &self.range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_over_does_not_keep_what_lies_behind_it_from_being_wanted() {
        let (root, first) = (BlockPointer::to_root(2, 1, 1, 2), Key::first_of(0));
        let mut walk = TreeWalk::new(root, first..Key::first_of(u64::MAX));
        walk.frontier.clear();
        let leaf = |place: u64| BlockPointer::to_root(2, 4096 * place, 1, 0);
        for place in 0..5000 {
            let state = State::Unchanged { end: Key::first_of(place + 1) };
            walk.frontier.insert(Key::first_of(place), (leaf(place), state));
        }
        walk.frontier.insert(Key::first_of(5000), (leaf(5000), State::Wanted));
        let mut wanted = walk.take_wanted(4096);
        while let Next::Unchanged(_) = walk.next() {
            wanted.append(&mut walk.take_wanted(4096));
        }
        assert_eq!(wanted, [leaf(5000)]);
    }
}
