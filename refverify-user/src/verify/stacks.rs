//! Every stack is stored once, however many events share it.

use std::collections::HashSet;

use crate::feed::Stack;

/// The stacks seen so far.
#[derive(Debug, Default)]
pub(crate) struct Stacks {
    known: HashSet<Stack>,
}

impl Stacks {
    /// How many different stacks are remembered: a workload makes some thousands. Beyond it
    /// they are forgotten, which costs memory for the next ones, never correctness.
    const KNOWN_MAX: usize = 1 << 16;

    /// The one copy of this stack.
    pub(crate) fn intern(&mut self, stack: Stack) -> Stack {
        if let Some(known) = self.known.get(&stack) {
            return known.clone();
        }
        if self.known.len() == Self::KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(stack.clone());
        stack
    }
}
