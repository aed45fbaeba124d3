//! The talk with an agent in a guest.

use std::{sync::Mutex, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::timeout,
};

use super::asked::{Asked, Breach};
use crate::feed::{
    ToAgent, ToVerifier,
    stream::{Receiver, Sender, StreamError, send},
};

/// An agent speaks ten times a second. After this long without a word that is said.
const WORRY: Duration = Duration::from_secs(5);

/// Requests that wait for the link.
const REQUESTS_MAX: usize = 64;

/// Why a guest is not heard any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The stream broke.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// It ended without a farewell.
    #[error("the connection ended; the guest may have crashed or been switched off")]
    Ended,
    /// Nothing comes.
    #[error("nothing was heard of the guest for {seconds} s; it may hang")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// It is not what it should be.
    #[error("the guest cannot be believed: {0}")]
    Breach(#[from] Breach),
}

/// Carries messages between the agent at the other end and the verifier here, until the agent
/// has said bye and nobody asks it anything any more, or it is lost.
///
/// # Errors
/// It was lost: why.
pub(super) async fn converse<R, W>(
    input: R,
    output: W,
    devices: usize,
    patience: Duration,
    to_verifier: mpsc::Sender<ToVerifier>,
    from_verifier: mpsc::Receiver<ToAgent>,
) -> Result<(), Lost>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let asked = Mutex::new(Asked::new(devices));
    let (requests, mut checked) = mpsc::channel(REQUESTS_MAX);
    let asking = async {
        let note = note_requests(from_verifier, requests, &asked);
        let sender = Sender::start(output, patience).await?;
        let (sent, ()) = tokio::join!(send(&mut checked, sender), note);
        sent
    };
    let unheard = to_verifier.clone();
    let hearing = async {
        tokio::select! {
            heard = hear(input, patience, &asked, to_verifier) => heard,
            // Nobody here listens any more.
            () = unheard.closed() => Ok(()),
        }
    };
    tokio::pin!(asking);
    tokio::pin!(hearing);
    tokio::select! {
        heard = &mut hearing => heard,
        // What cannot be sent says less than what is heard, if anything still is.
        sent = &mut asking => match timeout(WORRY, hearing).await {
            Ok(heard) => heard,
            Err(_) => sent.map_err(Lost::from),
        },
    }
}

/// Ends when nobody asks any more, which closes the stream, and so ends the agent.
async fn note_requests(
    mut from: mpsc::Receiver<ToAgent>,
    to: mpsc::Sender<ToAgent>,
    asked: &Mutex<Asked>,
) {
    while let Some(request) = from.recv().await {
        let ask = lock(asked).ask(&request);
        if ask && to.send(request).await.is_err() {
            return;
        }
    }
}

fn lock(asked: &Mutex<Asked>) -> std::sync::MutexGuard<'_, Asked> {
    asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn hear<R: AsyncRead + Unpin>(
    input: R,
    patience: Duration,
    asked: &Mutex<Asked>,
    to_verifier: mpsc::Sender<ToVerifier>,
) -> Result<(), Lost> {
    let mut receiver = patiently(patience, Receiver::start(input)).await?;
    let mut said_bye = false;
    while let Some(message) = patiently(patience, receiver.next_message()).await? {
        lock(asked).check(&message)?;
        said_bye |= message == ToVerifier::Bye;
        if to_verifier.send(message).await.is_err() {
            return Ok(());
        }
    }
    if said_bye { Ok(()) } else { Err(Lost::Ended) }
}

/// Waits, and says so when it takes long.
async fn patiently<T>(
    patience: Duration,
    what: impl Future<Output = Result<T, StreamError>>,
) -> Result<T, Lost> {
    tokio::pin!(what);
    let worry = WORRY.min(patience);
    if let Ok(done) = timeout(worry, &mut what).await {
        return Ok(done?);
    }
    let seconds = patience.as_secs();
    tracing::warn!("nothing is heard of the guest; it is waited for, {seconds} s in all");
    match timeout(patience.saturating_sub(worry), what).await {
        Ok(done) => {
            tracing::warn!("the guest is heard again");
            Ok(done?)
        }
        Err(_) => Err(Lost::Silent { seconds }),
    }
}
