//! Whether every call that changes a reference was seen, told from a second count of the same calls.
//!
//! A kprobe at the entry of `btrfs_add_delayed_{tree,data}_ref` records the call. It can be missed
//! without a word: while another kprobe is handled on that CPU (`kprobe.nmissed`), or because
//! another program is active there, which before 6.7 nothing counts (`trace_call_bpf`). The raw
//! tracepoint inside of the same call has no such gate. It fires once, behind the memory
//! allocations, which alone can make the call fail before it (5.10 to 7.3, `add_delayed_ref` and
//! what it was before 6.10). So in each transaction
//!
//! ```text
//! calls entered  =  tracepoints fired + calls between the two now + calls that failed
//! ```
//!
//! and more tracepoints than entries prove a miss. What is on its way at the moment of looking, and a
//! tracepoint that is not attached yet or was skipped itself: all of it makes fewer tracepoints,
//! never more. A call that is on its way hides a miss until its own tracepoint fires, or until it
//! returns: one that failed counts as fired then. At a transaction's last tracepoint nothing is on its
//! way any more, so that each miss shows before the transaction is committed. Calls that entered before
//! the tracepoints were attached, and failed ones whose return was missed, hide as many misses until
//! their transaction ends. The kprobes are attached before the tracepoints, and let go after them.
//!
//! A miss while another call is on its way is told only when that one has fired. A finding that rests
//! on it may be told before, if the other call waits for memory for longer than the publication gate
//! does: some milliseconds.
//!
//! No call of a transaction is under way when the next one begins (see `verify/order.rs`). So it is
//! enough to know which transaction entered last: the tracepoint, whose arguments do not tell, is
//! of that one too.

#![expect(clippy::inline_always, reason = "as in the eBPF programs, of which this is a part")]

use crate::word::Word;

/// The calls of one file system, in the transaction that runs and the one before it. All CPUs
/// share it; `btrfs_delayed_ref_root.lock`, which each call takes, is shared no less.
///
/// Zeros, as a map begins, are a file system that is not met yet.
#[derive(Debug, Default)]
#[repr(C)]
pub struct CrossCheck {
    /// The transaction in which it was met: of this one calls may have been under way that entered
    /// before they could be counted.
    met_in: Word,
    /// The transaction of the last call that entered; 0 is none.
    newest: Word,
    /// By the lowest bit of the transid. Both counts are in one word, entries in its upper half,
    /// so that they are added to and read together, and no order of reading has to be kept.
    calls: [Word; 2],
}

/// One call has entered.
const ENTERED: u64 = 1 << 32;

/// One tracepoint has fired.
const FIRED: u64 = 1;

impl CrossCheck {
    /// A file system is met; what was counted is of another one. The transaction of the next call
    /// that enters proves nothing.
    #[inline(always)]
    pub fn forget(&self) {
        self.newest.store(0);
    }

    /// A call of transaction `transid` enters.
    #[inline(always)]
    pub fn enter(&self, transid: u64) {
        let newest = self.newest.load();
        if newest != transid {
            self.begin(transid, newest);
        }
        self.of(transid).add(ENTERED);
    }

    /// The first call of a transaction enters, perhaps on several CPUs at once: what is counted of
    /// it must stay. So it is the other count that begins anew, for the next transaction. The one
    /// before is over, and the next cannot begin before this call has returned.
    #[inline(always)]
    fn begin(&self, transid: u64, newest: u64) {
        if newest == 0 {
            self.met_in.store(transid);
        }
        self.of(transid.wrapping_add(1)).store(0);
        self.newest.store(transid);
    }

    /// A call's tracepoint fires. True if that proves that an entry was missed: once for each, or twice
    /// where another fires on another CPU just then, which hides another miss of the transaction.
    #[inline(always)]
    #[must_use]
    pub fn fire(&self) -> bool {
        let newest = self.newest.load();
        if newest == 0 || newest == self.met_in.load() {
            return false;
        }
        let calls = self.of(newest);
        calls.add(FIRED);
        let now = calls.load();
        let is_missed = now & (ENTERED - 1) > now / ENTERED;
        if is_missed {
            // Made up for, so that the next one shows too.
            calls.add(ENTERED);
        }
        is_missed
    }

    /// A call has failed, and so no tracepoint of it fires.
    #[inline(always)]
    pub fn fail(&self) {
        let newest = self.newest.load();
        if newest != 0 && newest != self.met_in.load() {
            self.of(newest).add(FIRED);
        }
    }

    #[inline(always)]
    fn of(&self, transid: u64) -> &Word {
        if transid & 1 == 0 { &self.calls[0] } else { &self.calls[1] }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{
        sync::atomic::{AtomicU64, Ordering::SeqCst},
        thread,
    };

    use super::*;

    /// One that has met its file system in transaction 7, and seen it end.
    fn met() -> CrossCheck {
        let check = CrossCheck::default();
        call(&check, 7);
        check
    }

    /// A whole call; whether a miss was noticed.
    fn call(check: &CrossCheck, transid: u64) -> bool {
        check.enter(transid);
        check.fire()
    }

    #[test]
    fn each_missed_entry_is_noticed_once() {
        let check = met();
        assert!(!call(&check, 8));
        assert!(check.fire(), "in the middle of a transaction");
        assert!(!call(&check, 8));
        assert!(check.fire(), "the next one");
        assert!(!call(&check, 9));
        assert!(check.fire());
    }

    #[test]
    fn a_missed_first_call_of_a_transaction_is_noticed_in_the_one_before() {
        let check = met();
        assert!(!call(&check, 8));
        assert!(check.fire(), "it is of 9, of which nothing has entered yet");
        assert!(!call(&check, 9));
    }

    #[test]
    fn calls_on_their_way_hide_a_miss_only_until_they_have_fired() {
        let check = met();
        check.enter(8);
        check.enter(8);
        assert!(!check.fire(), "the missed one");
        assert!(!check.fire());
        assert!(check.fire(), "the last of those on their way");
    }

    #[test]
    fn a_call_that_failed_hides_a_miss_no_longer_than_until_it_returns() {
        let check = met();
        check.enter(8);
        assert!(!check.fire(), "as if the failed call had fired");
        check.fail();
        assert!(call(&check, 8), "the next call shows it");
        assert!(!call(&check, 8));
        assert!(check.fire(), "and it hides nothing more");
    }

    #[test]
    fn a_failed_call_that_nobody_tells_of_hides_a_miss_no_longer_than_its_transaction() {
        let check = met();
        check.enter(8);
        assert!(!check.fire(), "as if the failed call had fired");
        assert!(!call(&check, 9));
        assert!(check.fire());
        check.enter(9);
        assert!(!call(&check, 10));
        assert!(check.fire());
    }

    #[test]
    fn a_cpu_that_is_late_to_see_a_transaction_begin_takes_no_call_from_it() {
        let check = met();
        check.enter(8);
        check.begin(8, 7);
        assert!(!check.fire());
        assert!(check.fire());
    }

    #[test]
    fn calls_that_were_under_way_when_a_file_system_was_met_are_not_taken_for_misses() {
        let check = CrossCheck::default();
        assert!(!check.fire());
        check.enter(7);
        assert!(!check.fire() && !check.fire() && !check.fire());
        assert!(!call(&check, 8));
        assert!(check.fire(), "the next transaction is counted from its beginning");
    }

    #[test]
    fn tracepoints_that_come_late_are_not_made_up_for_by_a_miss_in_a_later_transaction() {
        let check = met();
        for _ in 0..50 {
            check.enter(8);
        }
        assert!(!call(&check, 9));
        assert!(check.fire());
    }

    #[test]
    fn another_file_system_in_the_place_of_one_that_has_gone_begins_anew() {
        let check = met();
        assert!(!call(&check, 500));
        check.forget();
        assert!(!check.fire());
        check.enter(6);
        assert!(!check.fire() && !check.fire());
        assert!(!call(&check, 7));
        assert!(check.fire());
    }

    #[test]
    fn honest_calls_on_two_cpus_through_many_transactions_are_never_taken_for_misses() {
        const CPUS: u64 = 2;
        let (check, ended) = (met(), AtomicU64::new(0));
        let cpu = || {
            for transid in 8..5_000 {
                // Both begin at once: which of them enters first is open. No call of a transaction
                // is under way when the next one begins.
                while ended.load(SeqCst) < CPUS * (transid - 8) {
                    thread::yield_now();
                }
                for _ in 0..3 {
                    assert!(!call(&check, transid), "in transaction {transid}");
                }
                ended.fetch_add(1, SeqCst);
            }
        };
        thread::scope(|scope| {
            for _ in 0..CPUS {
                scope.spawn(cpu);
            }
        });
        assert!(check.fire(), "and a miss is noticed in the end");
    }
}
