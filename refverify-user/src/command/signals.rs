//! The signals that are heeded.

use std::{
    io,
    time::{Duration, Instant},
};

use refverify_user::{cli::Reports, run::Stop};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// A second signal within this time is the first one, sent twice.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// From here on they do not end the program.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    user: Signal,
    can_dump: bool,
}

impl Signals {
    pub(super) fn new(runtime: &Runtime, reports: &Reports) -> io::Result<Self> {
        let _context = runtime.enter();
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        let user = signal(SignalKind::user_defined1())?;
        Ok(Self { interrupt, terminate, user, can_dump: reports.ledger_dump.is_some() })
    }

    /// Waits for one that asks to end.
    pub(super) async fn end(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Asks to stop, at first in this way; asks for the ledger by `dump`.
    pub(super) async fn heed(mut self, stop: mpsc::Sender<Stop>, first: Stop, dump: impl Fn()) {
        let mut asked = None;
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => ask_to_stop(&stop, first, &mut asked),
                _ = self.terminate.recv() => ask_to_stop(&stop, first, &mut asked),
                _ = self.user.recv() => if self.can_dump {
                    dump();
                } else {
                    tracing::warn!("SIGUSR1 asks for the ledger; --ledger-dump says where to");
                },
            }
        }
    }
}

/// The first signal asks for an orderly end. A later one means that it takes too long; not one
/// that comes at once, because some senders signal the process and then its group.
fn ask_to_stop(stop: &mpsc::Sender<Stop>, first: Stop, asked: &mut Option<Instant>) {
    let how = match *asked {
        None => first,
        Some(at) if at.elapsed() < SAME_SIGNAL => return,
        Some(_) => Stop::Now,
    };
    asked.get_or_insert_with(Instant::now);
    // Full means that the run is ending.
    let _ = stop.try_send(how);
}
