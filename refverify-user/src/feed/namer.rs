//! Asks for the name of each kernel address when it is first seen.
//!
//! The verifier asks only for those of its findings. A recording, and what is left when a
//! guest dies, want the names of all stacks, and then it is too late to ask.

use std::collections::{BTreeSet, HashSet};

use tokio::sync::mpsc;

use super::{Stack, ToAgent, ToVerifier};

/// How many addresses are asked for: far more than the places from which a kernel with all its
/// modules calls. Beyond it only the verifier asks.
const NAMED_MAX: usize = 1 << 16;

/// Sees every message to the verifier, and asks the agent.
#[derive(Debug)]
pub struct Namer {
    /// Does not keep the channel open: that it closes is how the agent learns of the end.
    to_agent: mpsc::WeakSender<ToAgent>,
    asked: HashSet<u64>,
    /// Seen, and not asked for yet.
    new: BTreeSet<u64>,
    last: Option<Stack>,
}

impl Namer {
    /// Asks this agent.
    pub fn new(to_agent: &mpsc::Sender<ToAgent>) -> Self {
        let to_agent = to_agent.downgrade();
        Self { to_agent, asked: HashSet::new(), new: BTreeSet::new(), last: None }
    }

    /// Takes note of the addresses of a message, and asks for those that are new. While the
    /// channel is full they wait for the next message.
    pub fn see(&mut self, message: &ToVerifier) {
        let ToVerifier::Events(events) = message else { return };
        for event in events {
            // Events of one loop share a stack.
            if self.last.as_ref() == Some(&event.stack) {
                continue;
            }
            self.last = Some(event.stack.clone());
            for &address in &*event.stack {
                if self.asked.len() < NAMED_MAX && self.asked.insert(address) {
                    self.new.insert(address);
                }
            }
        }
        self.ask();
    }

    fn ask(&mut self) {
        if self.new.is_empty() {
            return;
        }
        let Some(to_agent) = self.to_agent.upgrade() else { return };
        if let Ok(room) = to_agent.try_reserve() {
            room.send(ToAgent::Symbolise(std::mem::take(&mut self.new).into_iter().collect()));
        }
    }
}
