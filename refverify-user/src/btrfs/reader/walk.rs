//! One tree, read in the order of its keys with many blocks ahead.

use std::{
    collections::{BTreeMap, HashMap},
    iter,
    ops::Range,
};

use bytes::Bytes;

use super::Known;
use crate::btrfs::format::{BlockFault, BlockPointer, Key, Leaf, TreeBlock};

/// How many blocks at the left edge of what is unread are wanted at once.
const BLOCKS_AHEAD: usize = 64;

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
    /// Leaves that the walk before had read ahead, by bytenr and generation: most of them are
    /// the same in the newer tree. Never more than a window of them.
    kept: HashMap<(u64, u64), Leaf>,
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
        Self { root, range, frontier, kept: HashMap::new() }
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
    pub(super) fn take_wanted(&mut self) -> Vec<BlockPointer> {
        let mut wanted = Vec::new();
        for (place, (pointer, state)) in self.frontier.values_mut().take(BLOCKS_AHEAD).enumerate() {
            match state {
                // What is behind a bad block is likely to be read again from elsewhere.
                State::Bad(_) => break,
                State::Wanted if pointer.level == 0 || place < INTERIOR_AHEAD => {
                    *state = State::Reading;
                    wanted.push(*pointer);
                }
                _ => {}
            }
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
            Err(faults) => *state = State::Bad(faults),
            Ok(TreeBlock::Interior(interior)) => {
                self.frontier.remove(&place);
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
                Next::Leaf(leaf)
            }
        }
    }

    /// The keys that the walk is for; the leaves at its ends hold others too.
    pub(super) fn range(&self) -> &Range<Key> {
        &self.range
    }
}
