//! What happens after the monitor was told to stop is not judged: the hooks are let go one after the
//! other, and what only some of them see would look like a violation. What began before is still
//! told to its end.

use std::collections::HashSet;

use super::decode::{Record, Signal};

/// Tells records apart that come too late.
#[derive(Debug)]
pub(super) struct Late {
    /// The last moment that counts (`CLOCK_MONOTONIC`).
    upto_ns: u64,
    /// Threads whose last event came too late.
    threads: HashSet<u32>,
}

impl Default for Late {
    /// Nothing comes too late.
    fn default() -> Self {
        Self { upto_ns: u64::MAX, threads: HashSet::new() }
    }
}

impl Late {
    /// What happens after this moment comes too late.
    pub(super) fn after(upto_ns: u64) -> Self {
        Self { upto_ns, ..Self::default() }
    }

    /// Whether this moment comes too late.
    pub(super) fn is_over_at(&self, time_ns: u64) -> bool {
        time_ns > self.upto_ns
    }

    /// Whether a record of this moment is to be passed over. That a call failed is not, unless it is
    /// the call of an event that was passed over.
    pub(super) fn passes_over(&mut self, time_ns: u64, record: &Record) -> bool {
        if !self.is_over_at(time_ns) {
            return false;
        }
        match record {
            Record::Event(event) => {
                self.threads.insert(event.tid);
                true
            }
            Record::Signal(Signal::Retraction { tid, .. }) => self.threads.contains(tid),
            Record::Signal(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        btrfs::{Action, ExtentKind, RefKey},
        feed::{Change, Comm, Event, FsSlot, Stack},
    };

    const FS: FsSlot = FsSlot(0);

    fn event(tid: u32) -> Record {
        Record::Event(Event {
            fs: FS,
            transid: 7,
            time_ns: 0,
            cpu: 0,
            pid: 1,
            tid,
            comm: Comm::default(),
            stack: Stack::default(),
            change: Change::Ref {
                action: Action::AddRef,
                kind: ExtentKind::Data,
                bytenr: 4096,
                len_bytes: 4096,
                key: RefKey::data(5, 0, 257, 0),
                owning_root: 5,
            },
        })
    }

    fn failed(tid: u32) -> Record {
        Record::Signal(Signal::Retraction { fs: Some(FS), tid, errno: -12 })
    }

    #[test]
    fn a_call_that_began_in_time_is_taken_back_and_one_that_did_not_takes_nothing_back() {
        let mut late = Late::after(100);
        assert!(!late.passes_over(100, &event(1)));
        assert!(!late.passes_over(100, &event(2)));
        assert!(!late.passes_over(101, &failed(1)), "its event was told");
        assert!(late.passes_over(102, &event(2)));
        assert!(late.passes_over(103, &failed(2)), "its last event was not told");
    }

    #[test]
    fn a_commit_that_comes_too_late_confirms_nothing() {
        let commit = Record::Signal(Signal::Commit { fs: FS, transid: 7 });
        assert!(Late::after(100).passes_over(101, &commit));
        assert!(!Late::default().passes_over(101, &commit));
    }
}
