//! What stands between agent and verifier, and sees every message in its order.

use std::io::Write;

use tokio::sync::mpsc;

use super::{
    ToVerifier,
    namer::Namer,
    recent::Recent,
    recording::{Recorder, RecorderError},
};

/// Hands messages on, and does with them what was asked for.
#[derive(Debug)]
pub struct Tee<W> {
    /// Records them.
    pub recorder: Option<Recorder<W>>,
    /// Asks for names.
    pub namer: Option<Namer>,
    /// Keeps the last events.
    pub recent: Option<Recent>,
}

/// What is left when the messages have ended.
#[derive(Debug)]
pub struct TeeEnd {
    /// The last events, where they were to be kept.
    pub recent: Option<Recent>,
    /// Whether all was recorded that was to be.
    pub recorded: Result<(), RecorderError>,
}

impl<W: Write> Tee<W> {
    /// Hands messages on until there are no more, or nobody takes them. Writes to the recorder
    /// without giving way to other tasks: for a thread of its own. When recording fails that is
    /// logged at once, and the rest goes on.
    pub async fn run(
        mut self,
        mut from: mpsc::Receiver<ToVerifier>,
        to: mpsc::Sender<ToVerifier>,
    ) -> TeeEnd {
        let mut recorded = Ok(());
        loop {
            let message = tokio::select! {
                message = from.recv() => message,
                () = to.closed() => None,
            };
            let Some(message) = message else { break };
            if let Err(error) = self.see(&message) {
                tracing::error!("{error}");
                self.recorder = None;
                recorded = Err(error);
            }
            if to.send(message).await.is_err() {
                break;
            }
        }
        if let Some(recorder) = self.recorder {
            recorded = recorder.finish().map(|_| ());
        }
        TeeEnd { recent: self.recent, recorded }
    }

    fn see(&mut self, message: &ToVerifier) -> Result<(), RecorderError> {
        if let Some(namer) = &mut self.namer {
            namer.see(message);
        }
        if let Some(recent) = &mut self.recent {
            recent.see(message);
        }
        self.recorder.as_mut().map_or(Ok(()), |recorder| recorder.record(message))
    }
}
