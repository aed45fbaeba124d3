//! The last events, for when a guest dies.

use std::collections::{BTreeMap, VecDeque};

use super::{Event, FsSlot, Hello, ToVerifier};

/// How many transactions are kept. A commit that is under way and the transaction that runs
/// meanwhile are two; the one before them is the last that is on disk.
const TRANSACTIONS: u64 = 3;

/// How many events are kept, at most.
const EVENTS_MAX: usize = 1 << 16;

/// Keeps the events of the last transactions.
#[derive(Debug, Default)]
pub struct Recent {
    hello: Option<Hello>,
    /// The newest transaction of each file system: their numbers have nothing to do with one
    /// another.
    newest: BTreeMap<FsSlot, u64>,
    events: VecDeque<Event>,
    /// Events of these transactions that were given up to bound memory.
    given_up: u64,
}

impl Recent {
    /// Takes note of a message's events, and of who speaks.
    pub fn see(&mut self, message: &ToVerifier) {
        match message {
            ToVerifier::Hello(hello) => self.hello = Some(hello.clone()),
            ToVerifier::Events(events) => self.keep(events),
            _ => {}
        }
    }

    fn keep(&mut self, events: &[Event]) {
        for event in events {
            let newest = self.newest.entry(event.fs).or_default();
            *newest = event.transid.max(*newest);
            self.forget_the_past();
            if self.events.len() == EVENTS_MAX {
                self.events.pop_front();
                self.given_up += 1;
            }
            self.events.push_back(event.clone());
        }
    }

    /// Transactions overlap, so what stands behind a newer event goes with it, later.
    fn forget_the_past(&mut self) {
        while self.events.front().is_some_and(|event| self.is_past(event)) {
            self.events.pop_front();
            self.given_up = 0;
        }
    }

    fn is_past(&self, event: &Event) -> bool {
        let newest = self.newest.get(&event.fs).copied().unwrap_or_default();
        event.transid <= newest.saturating_sub(TRANSACTIONS)
    }

    /// What the agent said of itself.
    pub const fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// The events kept, oldest first, and how many before them were given up.
    pub fn into_events(self) -> (Vec<Event>, u64) {
        let recent = self.events.iter().filter(|event| !self.is_past(event));
        (recent.cloned().collect(), self.given_up)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::feed::{Change, Comm};

    fn events(transid: u64, count: u64) -> ToVerifier {
        events_of(FsSlot(0), transid, count)
    }

    fn events_of(fs: FsSlot, transid: u64, count: u64) -> ToVerifier {
        let event = |time_ns| Event {
            fs,
            transid,
            time_ns,
            cpu: 0,
            pid: 0,
            tid: 0,
            comm: Comm::default(),
            stack: Arc::from([]),
            change: Change::RemoveGroup { start: 0, len_bytes: 0 },
        };
        ToVerifier::Events((0..count).map(event).collect())
    }

    #[test]
    fn events_of_the_last_transactions_are_kept() {
        let mut recent = Recent::default();
        for transid in 1..=9 {
            recent.see(&events(transid, 10));
        }
        let (kept, given_up) = recent.into_events();
        assert_eq!((kept.len(), given_up), (30, 0));
        assert_eq!(kept[0].transid, 7);
    }

    #[test]
    fn each_file_system_counts_its_own_transactions() {
        let mut recent = Recent::default();
        for transid in 1..=9 {
            recent.see(&events_of(FsSlot(0), transid, 1));
            recent.see(&events_of(FsSlot(1), transid + 1_000_000, 1));
        }
        let (kept, _) = recent.into_events();
        let transids: Vec<u64> = kept.iter().map(|event| event.transid).collect();
        assert_eq!(transids, [7, 1_000_007, 8, 1_000_008, 9, 1_000_009]);
    }

    #[test]
    fn a_flood_in_one_transaction_does_not_grow_without_bound() {
        let mut recent = Recent::default();
        recent.see(&events(1, EVENTS_MAX as u64 + 7));
        let (kept, given_up) = recent.into_events();
        assert_eq!((kept.len(), given_up), (EVENTS_MAX, 7));
        assert_eq!(kept[0].time_ns, 7);
    }
}
