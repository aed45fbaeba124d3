//! Every stack is stored once, however many events share it.

use std::collections::HashSet;

use crate::feed::Stack;

/// The stacks seen so far.
#[derive(Debug, Default)]
pub(crate) struct Stacks {
    known: HashSet<Stack>,
}

impl Stacks {
    /// How many different stacks are kept: a workload makes some thousands. Beyond it a new one
    /// is given up for the empty one, so that made-up ones cannot fill the memory.
    const KNOWN_MAX: usize = 1 << 18;

    /// The one copy of this stack.
    pub(crate) fn intern(&mut self, stack: Stack) -> Stack {
        if let Some(known) = self.known.get(&stack) {
            return known.clone();
        }
        if self.known.len() == Self::KNOWN_MAX {
            return Stack::from([]);
        }
        self.known.insert(stack.clone());
        stack
    }
}
