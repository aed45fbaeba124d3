//! The agent's loop: drain, tell, answer.

use std::{
    collections::BTreeMap,
    io, mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as std_mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::{Receiver, Sender, error::TryRecvError};

use super::{
    answers::{Pending, Work},
    armed::{Armed, Arming},
    decode::{self, Record, Signal},
    late::Late,
    module,
    mounts::Look,
    second_count::Followed,
};
use crate::feed::{Event, FsSlot, Loss, LossSource, ToAgent, ToVerifier};

/// The most events in one message.
const BATCH_EVENTS: usize = 4096;

/// The shortest record with its header: with so many the ring buffer is full.
const RECORD_MIN_BYTES: usize = size_of::<refverify_common::Signal>() + 8;

/// Pauses between drains.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_WHEN_BUSY: Duration = Duration::from_millis(1);

/// What began before the monitor was told to stop ends within this time.
const CALL_ENDS_WITHIN: Duration = Duration::from_millis(20);

/// Between two ticks, and two looks at sysfs.
const TICK: Duration = Duration::from_millis(100);

/// After it has failed to look at the module, or to arm for one that was loaded again, until the next
/// try.
const ARM_AGAIN: Duration = Duration::from_secs(1);

/// How many requests may be under way; more wait in their channel.
const REQUESTS_MAX: usize = 256;

/// The verifier has gone; there is no one to tell.
#[derive(Debug)]
pub(super) struct Gone;

/// What the loop works with.
pub(super) struct Pump {
    pub(super) arming: Arming,
    pub(super) armed: Armed,
    pub(super) dump: Arc<AtomicBool>,
    pub(super) to_verifier: Sender<ToVerifier>,
    /// To the thread that answers; dropping it ends that thread.
    pub(super) work: std_mpsc::Sender<Work>,
    pub(super) pending: Pending,
    /// Events that are not sent yet.
    pub(super) batch: Vec<Event>,
    /// Events of file systems that are not mounted, as far as is known.
    pub(super) strays: BTreeMap<FsSlot, u64>,
    /// When it is tried again to arm, after it has failed.
    pub(super) arm_at: Instant,
    pub(super) late: Late,
}

impl Pump {
    /// Runs until the verifier says stop or goes, then tells the rest and lets the hooks go.
    pub(super) fn run(mut self, mut from_verifier: Receiver<ToAgent>) -> Result<(), Gone> {
        let mut told_quiet = true;
        let mut last_tick = Instant::now();
        let look = self.armed.mounts.look();
        self.drain()?;
        self.on_look(&look)?;
        loop {
            let dump = self.dump.swap(false, Ordering::AcqRel);
            let tick = last_tick.elapsed() >= TICK;
            if tick {
                self.follow_module()?;
            }
            let look = (tick && self.armed.is_in_force()).then(|| self.armed.mounts.look());
            let drained = self.drain()?;
            // Also where nothing happens: what reading the disk shows waits for the end of a drain.
            if drained > 0 || !told_quiet || tick {
                self.tell_drained()?;
            }
            told_quiet = drained == 0;
            if dump {
                self.send(ToVerifier::DumpWanted)?;
            }
            if let Some(look) = look {
                self.on_look(&look)?;
            }
            if tick {
                last_tick = Instant::now();
                self.send(ToVerifier::Tick { time_ns: now_ns() })?;
            }
            self.count_while_mounted()?;
            if self.take_requests(&mut from_verifier)? {
                break;
            }
            if drained < BATCH_EVENTS {
                thread::sleep(if drained > 0 { PAUSE_WHEN_BUSY } else { PAUSE });
            }
        }
        self.late = Late::after(now_ns());
        self.armed.let_go_of_beginnings();
        thread::sleep(CALL_ENDS_WITHIN);
        self.drain()?;
        self.tell_drained()?;
        // Nothing can come any more that voids what came before.
        self.tell_drained()?;
        self.armed.let_go();
        self.send(ToVerifier::Bye)?;
        self.answer_what_is_still_asked(&mut from_verifier)
    }

    /// The probes are in force in the loading of the module for which they were made. With it went
    /// every mount. What is mounted before they are in force again is one that is met midway.
    fn follow_module(&mut self) -> Result<(), Gone> {
        let loading = match module::loading() {
            Ok(loading) => loading,
            Err(error) => return self.module_not_told(&error),
        };
        if loading == self.armed.loading && (loading.is_none() || self.armed.is_in_force()) {
            return Ok(());
        }
        if self.armed.is_in_force() {
            self.drain()?;
            self.tell_drained()?;
            let messages = self.armed.mounts.all_gone();
            messages.into_iter().try_for_each(|message| self.control(message))?;
            self.armed.let_go();
            self.armed.loading = loading;
            tracing::warn!("the btrfs module was unloaded; its next loading is waited for");
        }
        if loading.is_some() && Instant::now() >= self.arm_at { self.arm_again() } else { Ok(()) }
    }

    /// The hooks may have gone with the module.
    fn module_not_told(&mut self, error: &io::Error) -> Result<(), Gone> {
        if Instant::now() < self.arm_at {
            return Ok(());
        }
        self.arm_at = Instant::now() + ARM_AGAIN;
        tracing::error!("cannot tell whether the btrfs module is loaded: {error}");
        let source = LossSource::Unreadable;
        self.control(ToVerifier::Loss(Loss { fs: None, source, count: 1 }))
    }

    fn arm_again(&mut self) -> Result<(), Gone> {
        match self.arming.arm() {
            Ok((armed, ..)) => {
                self.armed = armed;
                tracing::warn!("the btrfs module was loaded again, and is watched again");
                Ok(())
            }
            Err(error) => {
                self.arm_at = Instant::now() + ARM_AGAIN;
                tracing::error!("the btrfs module was loaded again, but is not watched: {error}");
                // Whatever is mounted now is not seen.
                let source = LossSource::Unreadable;
                self.control(ToVerifier::Loss(Loss { fs: None, source, count: 1 }))
            }
        }
    }

    /// Counts a second time what the probes of references see, as long as something is mounted. Where
    /// that failed, nothing shows whether they saw everything.
    fn count_while_mounted(&mut self) -> Result<(), Gone> {
        match self.armed.count_while_mounted() {
            Ok(Followed::Unbroken) => return Ok(()),
            Ok(Followed::Resumed) => tracing::warn!("missed probes are noticed again"),
            Err(error) => tracing::error!("missed probes are not noticed for now: {error}"),
        }
        let source = LossSource::ProgramMissed;
        self.control(ToVerifier::Loss(Loss { fs: None, source, count: 1 }))
    }

    /// Findings of the last moment want the names of their stacks.
    fn answer_what_is_still_asked(&self, from: &mut Receiver<ToAgent>) -> Result<(), Gone> {
        while let Some(request) = from.blocking_recv() {
            if let Some(work) = work_of(request) {
                self.pending.add();
                self.work.send(work).map_err(|_| Gone)?;
            }
        }
        Ok(())
    }

    /// The counters are read after the records were taken from the ring buffer, and told
    /// before the end of the drain: who hears of the end knows what was lost up to it.
    fn tell_drained(&mut self) -> Result<(), Gone> {
        self.send_losses()?;
        self.send(ToVerifier::Drained)
    }

    /// Tells all that the ring buffer held when this began, and maybe more. Returns how many
    /// records that were.
    fn drain(&mut self) -> Result<usize, Gone> {
        let records_max = usize::try_from(self.arming.ring_bytes).unwrap_or(0) / RECORD_MIN_BYTES;
        let mut drained = 0;
        while drained < records_max {
            let Some(item) = self.armed.ring.next() else { break };
            let time_ns = decode::time_ns(&item);
            let record = self.armed.decoder.decode(&item);
            drop(item);
            drained += 1;
            match record {
                Ok(record) if self.late.passes_over(time_ns, &record) => {}
                Ok(Record::Event(event)) => self.on_event(event)?,
                Ok(Record::Signal(signal)) => self.on_signal(signal)?,
                Err(_) if self.late.is_over_at(time_ns) => {}
                Err(malformed) => {
                    tracing::debug!("{malformed}");
                    let source = LossSource::Unreadable;
                    let loss = Loss { fs: malformed.fs, source, count: 1 };
                    self.control(ToVerifier::Loss(loss))?;
                }
            }
        }
        if !self.batch.is_empty() {
            self.send_batch()?;
        }
        Ok(drained)
    }

    /// Every mount is told before its first event. An event of a slot that sysfs says is not
    /// mounted is one that the verifier cannot place: that is a loss.
    fn on_event(&mut self, event: Event) -> Result<(), Gone> {
        if !self.armed.mounts.is_mounted(event.fs) {
            *self.strays.entry(event.fs).or_insert(0) += 1;
            return Ok(());
        }
        self.batch.push(event);
        if self.batch.len() >= BATCH_EVENTS { self.send_batch() } else { Ok(()) }
    }

    fn on_signal(&mut self, signal: Signal) -> Result<(), Gone> {
        if let Signal::Retraction { fs: None, tid, errno } = signal {
            tracing::debug!(
                "a call of thread {tid} failed with {errno}, in an unknown file system"
            );
            let source = LossSource::Unreadable;
            return self.control(ToVerifier::Loss(Loss { fs: None, source, count: 1 }));
        }
        let messages = self.armed.mounts.on_signal(signal);
        messages.into_iter().try_for_each(|message| self.control(message))
    }

    fn on_look(&mut self, look: &Look) -> Result<(), Gone> {
        let messages = self.armed.mounts.on_look(look);
        messages.into_iter().try_for_each(|message| self.control(message))
    }

    /// Sends a message in its place among the events.
    fn control(&mut self, message: ToVerifier) -> Result<(), Gone> {
        if !self.batch.is_empty() {
            self.send_batch()?;
        }
        self.send(message)
    }

    fn send_batch(&mut self) -> Result<(), Gone> {
        let batch = mem::take(&mut self.batch);
        self.send(ToVerifier::Events(batch))
    }

    fn send_losses(&mut self) -> Result<(), Gone> {
        for (fs, count) in mem::take(&mut self.strays) {
            let source = LossSource::Unreadable;
            self.send(ToVerifier::Loss(Loss { fs: Some(fs), source, count }))?;
        }
        match self.armed.losses.poll() {
            Ok(losses) => losses.into_iter().try_for_each(|loss| self.send(ToVerifier::Loss(loss))),
            Err(error) => {
                // Not knowing is as bad as having lost something.
                tracing::error!("{error}");
                let source = LossSource::ProgramMissed;
                self.send(ToVerifier::Loss(Loss { fs: None, source, count: 1 }))
            }
        }
    }

    /// Waits while the channel is full: the ring buffer then fills, and what does not fit is
    /// counted.
    fn send(&self, message: ToVerifier) -> Result<(), Gone> {
        self.to_verifier.blocking_send(message).map_err(|_| Gone)
    }

    /// Hands the verifier's requests on. True when it wants us to stop, or is gone.
    fn take_requests(&self, from_verifier: &mut Receiver<ToAgent>) -> Result<bool, Gone> {
        while self.pending.count() < REQUESTS_MAX {
            let request = match from_verifier.try_recv() {
                Ok(request) => request,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(true),
            };
            if request == ToAgent::Dump {
                self.dump.store(true, Ordering::Release);
                continue;
            }
            let Some(work) = work_of(request) else { return Ok(true) };
            self.pending.add();
            self.work.send(work).map_err(|_| Gone)?;
        }
        Ok(false)
    }
}

/// `CLOCK_MONOTONIC`, as records have it.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// What the other thread is to do for a request, if anything.
fn work_of(request: ToAgent) -> Option<Work> {
    match request {
        ToAgent::Read(request) => Some(Work::Read(request)),
        ToAgent::Symbolise(addresses) => Some(Work::Symbolise(addresses)),
        ToAgent::Stop | ToAgent::Dump => None,
    }
}
