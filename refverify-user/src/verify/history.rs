//! What was done to one extent since its last allocation.

use std::collections::VecDeque;

use super::ActionRecord;

/// The actions on an extent, bounded: the first, which is the allocation where it was seen,
/// and the newest. Those between are given up first, and counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    first: Option<ActionRecord>,
    newest: VecDeque<ActionRecord>,
    given_up: u64,
}

impl History {
    /// How many actions are kept besides the first.
    const NEWEST_MAX: usize = 31;

    /// Begins anew with an allocation.
    pub(crate) fn starting_with(allocation: ActionRecord) -> Self {
        Self { first: Some(allocation), ..Self::default() }
    }

    /// Adds the newest action.
    pub(crate) fn push(&mut self, action: ActionRecord) {
        if self.first.is_none() {
            self.first = Some(action);
            return;
        }
        if self.newest.len() == Self::NEWEST_MAX {
            self.newest.pop_front();
            self.given_up += 1;
        }
        self.newest.push_back(action);
    }

    /// The actions kept, oldest first.
    pub(crate) fn to_vec(&self) -> Vec<ActionRecord> {
        self.first.iter().chain(&self.newest).cloned().collect()
    }

    /// How many are kept.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.first.is_some()) + self.newest.len() as u64
    }

    /// How many were given up.
    pub(crate) const fn given_up(&self) -> u64 {
        self.given_up
    }
}
