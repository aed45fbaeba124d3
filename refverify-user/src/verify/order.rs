//! What must hold of the order in which things are told within one mount. Where it does not,
//! something was lost on the way, or what is told is wrong; either way nothing can be judged by it.
//!
//! * The transids of events do not go backwards: a transaction begins only when the one before it
//!   makes no more changes (`btrfs_commit_transaction`, the state `TRANS_STATE_UNBLOCKED`; 5.10 to
//!   7.3), and the ring buffer keeps the order of all CPUs.
//! * No event comes at or below what was signalled as durable.
//! * A commit's signal follows that of its predecessor by one: each transaction that begins is
//!   committed, or the file system stops.
//!
//! The tracepoint of a commit tells which one was the last when it fires, at its very end: where
//! the next commit has overtaken it by then, that one is told twice instead of each once.

use std::fmt;

use crate::feed::HookMode;

/// What was told last, within one mount.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Order {
    newest_event: u64,
    signalled: u64,
    /// Commits that another was told in place of; each such is told once more later.
    overtaken: u64,
    may_overtake: bool,
}

/// What does not follow from what was told before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disorder {
    /// An event of an older transaction than the one before it.
    EventGoesBack {
        /// Its transid.
        transid: u64,
        /// That of an event before it.
        after: u64,
    },
    /// An event of a transaction that is on disk already.
    EventIsDurable {
        /// Its transid.
        transid: u64,
        /// The last one that was signalled as durable.
        durable: u64,
    },
    /// A commit that does not follow its predecessor by one.
    CommitOutOfTurn {
        /// The transid that was signalled.
        transid: u64,
        /// The one that was signalled before.
        after: u64,
    },
}

impl Disorder {
    /// The first transaction of which something else may be missing.
    pub(crate) fn doubted_from(self) -> u64 {
        match self {
            Self::EventGoesBack { transid, .. } | Self::EventIsDurable { transid, .. } => transid,
            Self::CommitOutOfTurn { transid, after } => transid.min(after.saturating_add(1)),
        }
    }
}

impl fmt::Display for Disorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EventGoesBack { transid, after } => {
                write!(f, "an event of transaction {transid} came after one of {after}")
            }
            Self::EventIsDurable { transid, durable } => {
                write!(f, "an event of transaction {transid} came when {durable} was on disk")
            }
            Self::CommitOutOfTurn { transid, after } => {
                write!(f, "the commit of transaction {transid} was told after that of {after}")
            }
        }
    }
}

impl Order {
    /// A mount that is watched in this way.
    pub(crate) fn new(mode: HookMode) -> Self {
        Self { may_overtake: mode == HookMode::Tracepoints, ..Self::default() }
    }

    /// An event has come. After an error the order begins anew with what was told.
    pub(crate) fn event(&mut self, transid: u64) -> Result<(), Disorder> {
        let Self { newest_event, signalled: durable, .. } = *self;
        if transid <= durable {
            *self = Self { newest_event: transid, signalled: 0, ..*self };
            return Err(Disorder::EventIsDurable { transid, durable });
        }
        self.newest_event = transid;
        if transid < newest_event {
            return Err(Disorder::EventGoesBack { transid, after: newest_event });
        }
        Ok(())
    }

    /// A commit was signalled; the same.
    pub(crate) fn commit(&mut self, transid: u64) -> Result<(), Disorder> {
        let after = self.signalled;
        self.signalled = transid;
        if after == 0 || transid == after.saturating_add(1) {
            return Ok(());
        }
        if self.may_overtake && transid > after {
            self.overtaken += transid - after - 1;
            return Ok(());
        }
        if self.overtaken > 0 && transid == after {
            self.overtaken -= 1;
            return Ok(());
        }
        Err(Disorder::CommitOutOfTurn { transid, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_overlap_and_events_do_not_go_back() {
        let mut order = Order::new(HookMode::Kprobes);
        assert_eq!(order.event(8), Ok(()));
        assert_eq!(order.event(9), Ok(()));
        assert_eq!(order.commit(8), Ok(()));
        assert_eq!(order.event(10), Ok(()));
        assert_eq!(order.commit(9), Ok(()));
        assert_eq!(order.event(10), Ok(()));
        let back = Disorder::EventGoesBack { transid: 10, after: 11 };
        assert_eq!(order.event(11), Ok(()));
        assert_eq!(order.event(10), Err(back));
        assert_eq!(order.event(10), Ok(()), "it is told once");
    }

    #[test]
    fn nothing_comes_of_what_is_on_disk() {
        let mut order = Order::new(HookMode::Kprobes);
        assert_eq!(order.commit(9), Ok(()));
        let late = Disorder::EventIsDurable { transid: 9, durable: 9 };
        assert_eq!(order.event(9), Err(late));
    }

    #[test]
    fn a_commit_that_is_left_out_or_told_twice_is_noticed() {
        let mut order = Order::new(HookMode::Kprobes);
        assert_eq!(order.commit(9), Ok(()));
        let left_out = Disorder::CommitOutOfTurn { transid: 11, after: 9 };
        assert_eq!(order.commit(11), Err(left_out));
        assert_eq!(order.commit(12), Ok(()));
        let twice = Disorder::CommitOutOfTurn { transid: 12, after: 12 };
        assert_eq!(order.commit(12), Err(twice));
    }

    #[test]
    fn a_tracepoint_may_tell_the_next_commit_twice_instead() {
        let mut order = Order::new(HookMode::Tracepoints);
        assert_eq!(order.commit(9), Ok(()));
        assert_eq!(order.commit(11), Ok(()));
        assert_eq!(order.commit(11), Ok(()));
        let once_more = Disorder::CommitOutOfTurn { transid: 11, after: 11 };
        assert_eq!(order.commit(11), Err(once_more));
        let back = Disorder::CommitOutOfTurn { transid: 9, after: 11 };
        assert_eq!(order.commit(9), Err(back));
    }
}
