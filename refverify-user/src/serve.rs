//! The agent at the far end of a stream: what runs in a guest.
//!
//! It lives as long as the stream: when the other end closes it, or does not read for
//! [`PATIENCE`], the hooks are let go.

use std::{thread, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{
    agent::Agent,
    feed::{
        ToAgent, ToVerifier,
        stream::{self, Receiver, Sender, StreamError},
    },
};

/// Messages that wait to be sent. Few, because each may hold thousands of events: what waits
/// longer waits in the ring buffer.
const OUTGOING_MAX: usize = 8;
/// Requests that wait to be answered.
const INCOMING_MAX: usize = 256;

/// How long the other end may leave what is sent to it unread: longer than any link is cut
/// that comes back.
pub const PATIENCE: Duration = Duration::from_mins(5);

/// Serves until the other end has gone. Whatever the outcome, the hooks are let go before this
/// returns.
///
/// # Errors
/// The stream broke, or what came over it was not understood.
pub async fn serve<R, W>(agent: Agent, input: R, output: W) -> Result<(), StreamError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (to_verifier, mut outgoing) = mpsc::channel::<ToVerifier>(OUTGOING_MAX);
    let (incoming, from_verifier) = mpsc::channel::<ToAgent>(INCOMING_MAX);
    let agent = thread::spawn(move || {
        agent.run(to_verifier, from_verifier, std::sync::Arc::default());
    });
    let sending = async {
        let sender = Sender::start(output, PATIENCE).await?;
        stream::send(&mut outgoing, sender).await
    };
    let receiving = async {
        let receiver = Receiver::start(input).await?;
        stream::receive(receiver, &incoming).await
    };
    let ended = tokio::select! {
        ended = receiving => ended,
        failed = failure(sending) => Err(failed),
    };
    // With both channels closed the agent ends.
    drop((incoming, outgoing));
    if agent.join().is_err() {
        tracing::error!("the thread that watches has failed");
    }
    ended
}

/// Sending ends well when the agent has said all; it is the other end that hangs up.
async fn failure(sending: impl Future<Output = Result<(), StreamError>>) -> StreamError {
    match sending.await {
        Err(error) => error,
        Ok(()) => std::future::pending().await,
    }
}
