//! The publication gate: a finding is told one drain of the ring buffer after its event.
//!
//! By then the loss counters, read later than the event, have shown no loss, and a call that
//! failed has had its retraction sent. So a finding never overtakes the news that it is void.

use std::collections::{HashMap, VecDeque};

use super::{Cause, Finding};
use crate::feed::{Change, Event, FsSlot};

/// Holds findings back, and remembers what each thread did last.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// The drain that is arriving now.
    drain: u64,
    held: VecDeque<Held>,
    /// As long as the thread makes no other: a call may sleep before it fails.
    last_of_thread: HashMap<u32, LastEvent>,
    /// Those of threads that have made none since `last_of_thread` was last full.
    of_idle_threads: HashMap<u32, LastEvent>,
}

#[derive(Debug)]
struct Held {
    drain: u64,
    finding: Finding,
}

/// The last event of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastEvent {
    time_ns: u64,
    /// The file system.
    pub(crate) fs: FsSlot,
    /// The extent.
    pub(crate) bytenr: u64,
    /// The transaction.
    pub(crate) transid: u64,
}

impl Gate {
    /// A thread is forgotten when this many others have made events since its last, or twice as
    /// many. A retraction of one that was forgotten counts as a loss.
    const THREADS_MAX: usize = 1 << 16;

    /// An event has come.
    pub(crate) fn saw(&mut self, event: &Event) {
        let Change::Ref { bytenr, .. } = event.change else { return };
        let (time_ns, fs, transid) = (event.time_ns, event.fs, event.transid);
        self.last_of_thread.insert(event.tid, LastEvent { time_ns, fs, bytenr, transid });
        if self.last_of_thread.len() > Self::THREADS_MAX {
            self.of_idle_threads = std::mem::take(&mut self.last_of_thread);
        }
    }

    /// A finding was made.
    pub(crate) fn hold(&mut self, finding: Finding) {
        self.held.push_back(Held { drain: self.drain, finding });
    }

    /// A drain has ended. Returns the findings that may be told: those of earlier drains.
    pub(crate) fn drained(&mut self) -> Vec<Finding> {
        let ended = self.drain;
        self.drain += 1;
        let ready = self.held.iter().take_while(|held| held.drain < ended).count();
        self.held.drain(..ready).map(|held| held.finding).collect()
    }

    /// Nothing more will come that could void a finding.
    pub(crate) fn open(&mut self) -> Vec<Finding> {
        self.held.drain(..).map(|held| held.finding).collect()
    }

    /// Nothing more will come at all, neither what could void a finding nor what could confirm
    /// it. Returns the findings that rest on no lost event: a drain has ended after them, or
    /// they rest on the disk. The others are withdrawn.
    pub(crate) fn cut_off(&mut self) -> Vec<Finding> {
        let now = self.drain;
        let stands =
            |held: &Held| held.drain < now || matches!(held.finding.cause, Cause::Disk { .. });
        self.held.drain(..).filter(stands).map(|held| held.finding).collect()
    }

    /// Withdraws all.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
    }

    /// How many findings are held.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// The last call of a thread failed: returns the event that did not happen, and withdraws
    /// the finding that rests on it.
    pub(crate) fn retract(&mut self, tid: u32) -> Option<LastEvent> {
        let idle = self.of_idle_threads.remove(&tid);
        let void = self.last_of_thread.remove(&tid).or(idle)?;
        let rests_on_it = |finding: &Finding| match &finding.cause {
            Cause::Event(event) => event.tid == tid && event.time_ns == void.time_ns,
            Cause::Disk { .. } | Cause::Audit { .. } => false,
        };
        self.held.retain(|held| !rests_on_it(&held.finding));
        Some(void)
    }

    /// Events of this file system were lost: no finding that is still held and rests on events
    /// can be trusted. What is wrong on disk is wrong all the same.
    pub(crate) fn withdraw(&mut self, fs: FsSlot) {
        self.held.retain(|held| {
            held.finding.fs != fs || matches!(held.finding.cause, Cause::Disk { .. })
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        btrfs::{Action, DiskFault, DiskFinding},
        verify::{FindingKind, testing::data_event},
    };

    fn finding(event: Event) -> Finding {
        Finding::new(FindingKind::NoEntry, event.fs, Cause::Event(event), None)
    }

    fn gate_with_a_finding() -> Gate {
        let mut gate = Gate::default();
        let event = data_event(Action::DropRef, 4096, 0, 9);
        gate.saw(&event);
        gate.hold(finding(event));
        gate
    }

    #[test]
    fn a_finding_is_told_one_drain_after_its_event() {
        let mut gate = gate_with_a_finding();
        assert_eq!(gate.drained().len(), 0);
        assert_eq!(gate.drained().len(), 1);
        assert_eq!(gate.drained().len(), 0);
    }

    #[test]
    fn an_agent_that_goes_before_it_has_told_its_losses_leaves_no_finding() {
        assert_eq!(gate_with_a_finding().cut_off().len(), 0);
        let mut told = gate_with_a_finding();
        told.drained();
        assert_eq!(told.cut_off().len(), 1);
    }

    #[test]
    fn a_failed_call_leaves_no_finding() {
        let mut gate = gate_with_a_finding();
        gate.drained();
        let void = gate.retract(77).unwrap();
        assert_eq!((void.bytenr, void.transid), (4096, 9));
        assert_eq!(gate.drained().len(), 0);
    }

    #[test]
    fn a_failed_call_voids_only_the_last_event_of_its_own_thread() {
        let mut gate = gate_with_a_finding();
        let other = Event { tid: 78, ..data_event(Action::DropRef, 8192, 0, 9) };
        gate.saw(&other);
        gate.hold(finding(other));
        let later =
            Event { time_ns: 1, stack: Arc::from([]), ..data_event(Action::AddRef, 0, 0, 9) };
        gate.saw(&later);
        assert_eq!(gate.retract(77).unwrap().bytenr, 0);
        gate.drained();
        assert_eq!(gate.drained().len(), 2);
    }

    #[test]
    fn a_retraction_without_an_event_is_another_file_systems() {
        let mut gate = gate_with_a_finding();
        assert_eq!(gate.retract(1234), None);
    }

    #[test]
    fn a_call_may_sleep_for_many_drains_before_it_fails() {
        let mut gate = gate_with_a_finding();
        for _ in 0..100 {
            gate.drained();
        }
        assert!(gate.retract(77).is_some());
    }

    #[test]
    fn threads_that_come_and_go_do_not_fill_the_memory() {
        let mut gate = Gate::default();
        for tid in 0..200_000 {
            gate.saw(&Event { tid, ..data_event(Action::AddRef, 4096, 0, 9) });
        }
        let known = gate.last_of_thread.len() + gate.of_idle_threads.len();
        assert!(known <= 2 * Gate::THREADS_MAX + 1, "{known}");
        assert_eq!(gate.retract(0), None);
        assert!(gate.retract(199_999 - u32::try_from(Gate::THREADS_MAX).unwrap()).is_some());
    }

    #[test]
    fn loss_does_not_withdraw_what_is_wrong_on_disk() {
        let mut gate = Gate::default();
        let fault = DiskFault::NoRefs;
        let on_disk = DiskFinding { fault, bytenr: 4096, leaf: 8192, slot: 1 };
        let event = data_event(Action::DropRef, 4096, 0, 9);
        let cause = Cause::Disk { generation: 9, finding: on_disk };
        gate.hold(Finding { cause, ..finding(event) });
        gate.withdraw(FsSlot(0));
        gate.drained();
        assert_eq!(gate.drained().len(), 1);
    }

    #[test]
    fn loss_withdraws_what_is_still_held() {
        let mut gate = gate_with_a_finding();
        gate.withdraw(FsSlot(1));
        gate.drained();
        gate.withdraw(FsSlot(0));
        assert_eq!(gate.drained().len(), 0);
    }
}
