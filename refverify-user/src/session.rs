//! One feed, judged and reported: what a local run, a replay and each attached guest share.

use std::{fs::File, io::Write, time::Duration};

use tokio::{
    runtime::Handle,
    sync::mpsc::{self, Receiver, Sender},
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::{
    feed::{Tee, TeeEnd},
    report::{Outcome, Reporter, exit_status},
    run::{Ending, Link, Stop, report_all, run},
    verify::Verifier,
};

/// Messages between agent and verifier; an event message holds up to some thousand events.
pub const MESSAGES_MAX: usize = 256;
/// Notices that wait for a slow reader before the verifier waits for it.
const NOTICES_MAX: usize = 1024;

/// How long the reports' reader may take at an end that is not waited for.
const READER_PATIENCE: Duration = Duration::from_secs(1);

/// Usage or setup error, or something could not be written.
pub const EXIT_SETUP: u8 = 1;
/// Not everything was verified.
pub const EXIT_GAPS: u8 = 4;

/// How a session went.
#[derive(Debug)]
pub struct Told {
    /// Whether the agent said all it had to say.
    pub ending: Ending,
    /// What was reported.
    pub outcome: Outcome,
    /// What the tee has left, where there was one.
    pub tee: Option<TeeEnd>,
}

impl Told {
    /// The exit status: a mask, see [`exit_status`].
    pub fn status(&self) -> u8 {
        let failed = |end: &TeeEnd| end.recorded.is_err();
        let recording = if self.tee.as_ref().is_some_and(failed) { EXIT_SETUP } else { 0 };
        let gaps = if self.ending == Ending::CutShort { EXIT_GAPS } else { 0 };
        exit_status(&self.outcome) | recording | gaps
    }
}

/// Why there can be no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Nobody reads.
    #[error("the reader of the reports stands still; the summary was not written")]
    ReaderStands,
    /// One of our own threads has failed.
    #[error("the thread that {does} has failed")]
    Failed {
        /// What it does.
        does: &'static str,
    },
}

/// Both ends of the channel by which a run is asked to stop.
#[derive(Debug)]
pub struct Stops {
    /// For whoever wants it to stop.
    pub ask: Sender<Stop>,
    asked: Receiver<Stop>,
}

impl Default for Stops {
    fn default() -> Self {
        let (ask, asked) = mpsc::channel(4);
        Self { ask, asked }
    }
}

/// Judges what comes over the link and reports it, until the feed ends or it is asked to stop.
/// The reports, and the tee where there is one, have threads of their own.
///
/// # Errors
/// A thread of ours has failed, or is held up by a reader. It may still run: the runtime is
/// not to wait for it.
pub async fn judge<W>(
    mut link: Link,
    verifier: &mut Verifier,
    reporter: Reporter<W>,
    stops: Stops,
    tee: Option<Tee<File>>,
) -> Result<Told, SessionError>
where
    W: Write + Send + 'static,
{
    let tee = tee.map(|tee| insert(tee, &mut link));
    let (to_reports, notices) = mpsc::channel(NOTICES_MAX);
    let Stops { ask, asked } = stops;
    let reports = spawn_blocking(move || report_all(notices, reporter, &ask));
    let ending = run(verifier, link, asked, to_reports).await;
    let outcome = match ending {
        Ending::Whole => reports.await,
        // Whoever does not wait for the agent does not want to wait for a reader either.
        Ending::CutShort => {
            timeout(READER_PATIENCE, reports).await.map_err(|_| SessionError::ReaderStands)?
        }
    };
    let outcome = outcome.map_err(|_| SessionError::Failed { does: "writes the reports" })?;
    let tee = match tee {
        Some(tee) => Some(tee.await.map_err(|_| SessionError::Failed { does: "records" })?),
        None => None,
    };
    Ok(Told { ending, outcome, tee })
}

/// Puts a tee between the link and what feeds it.
fn insert(tee: Tee<File>, link: &mut Link) -> JoinHandle<TeeEnd> {
    let (to_verifier, from_tee) = mpsc::channel(1);
    let from_agent = std::mem::replace(&mut link.from_agent, from_tee);
    let here = Handle::current();
    spawn_blocking(move || here.block_on(tee.run(from_agent, to_verifier)))
}
