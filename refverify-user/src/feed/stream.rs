//! The feed over a stream of bytes: the input and output of an ssh, a socket.
//!
//! Each end sends a header and then frames, and expects the same of the other. Nothing is
//! kept back here: a sender waits until what it was given is on its way, so a slow receiver is
//! felt at the ring buffer, where what does not fit is counted.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::{error::Elapsed, timeout},
};

use super::codec::{Carrier, DecodeError, Decoder, EncodeError, Encoder, Header, Message};

/// How much is read at once, and how much is gathered before it is written.
const CHUNK_LEN: usize = 64 << 10;

/// Why a stream ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Reading or writing failed.
    #[error("{action} the other end failed: {source}")]
    Io {
        /// Reading from, or writing to.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What came makes no sense.
    #[error("what the other end sends cannot be understood: {0}")]
    Decode(#[from] DecodeError),
    /// A message is too long to be sent.
    #[error("a message cannot be sent: {0}")]
    Encode(#[from] EncodeError),
    /// What is sent is not read.
    #[error("the other end has read nothing for {seconds} s")]
    Stalled {
        /// How long.
        seconds: u64,
    },
    /// The stream ended where it should not.
    #[error("the other end broke off {within}, after {offset} bytes")]
    BrokeOff {
        /// Within what.
        within: &'static str,
        /// How many bytes had come.
        offset: u64,
    },
}

const fn reading(source: io::Error) -> StreamError {
    StreamError::Io { action: "reading from", source }
}

const fn writing(source: io::Error) -> StreamError {
    StreamError::Io { action: "writing to", source }
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<R, M> {
    stream: R,
    buffer: BytesMut,
    decoder: Decoder<M>,
    header: Header,
}

impl<R: AsyncRead + Unpin, M: Message> Receiver<R, M> {
    /// Waits for the header, and checks it.
    ///
    /// # Errors
    /// Something else speaks, another version does, or the stream ends.
    pub async fn start(mut stream: R) -> Result<Self, StreamError> {
        let mut buffer = BytesMut::with_capacity(CHUNK_LEN);
        loop {
            if let Some((header, len)) = Header::decode(Carrier::Stream, M::DIRECTION, &mut buffer)?
            {
                return Ok(Self { stream, buffer, decoder: Decoder::new(len), header });
            }
            let offset = buffer.len() as u64;
            if stream.read_buf(&mut buffer).await.map_err(reading)? == 0 {
                let within = if offset == 0 { "before it said anything" } else { "in its header" };
                return Err(StreamError::BrokeOff { within, offset });
            }
        }
    }

    /// Who speaks.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The next message; `None` at the end of the stream. May be dropped while it waits, and
    /// called again.
    ///
    /// # Errors
    /// Bytes that make no sense, or a stream that ends within a message. There is no use in
    /// calling it again.
    pub async fn next_message(&mut self) -> Result<Option<M>, StreamError> {
        loop {
            if let Some(message) = self.decoder.decode(&mut self.buffer)? {
                return Ok(Some(message));
            }
            self.buffer.reserve(CHUNK_LEN);
            if self.stream.read_buf(&mut self.buffer).await.map_err(reading)? > 0 {
                continue;
            }
            let offset = self.decoder.offset() + self.buffer.len() as u64;
            return match self.buffer.len() {
                0 => Ok(None),
                _ => Err(StreamError::BrokeOff { within: "in a message", offset }),
            };
        }
    }
}

/// The sending end.
#[derive(Debug)]
pub struct Sender<W, M> {
    stream: W,
    patience: Duration,
    buffer: BytesMut,
    encoder: Encoder<M>,
}

impl<W: AsyncWrite + Unpin, M: Message> Sender<W, M> {
    /// Sends the header. From here on the other end may leave what is sent unread for as long
    /// as `patience`.
    ///
    /// # Errors
    /// Writing fails.
    pub async fn start(stream: W, patience: Duration) -> Result<Self, StreamError> {
        let (buffer, encoder) = (BytesMut::new(), Encoder::default());
        let mut sender = Self { stream, patience, buffer, encoder };
        Header::new(M::DIRECTION, None).encode(Carrier::Stream, &mut sender.buffer)?;
        sender.flush().await?;
        Ok(sender)
    }

    /// Sends a message at once.
    ///
    /// # Errors
    /// It is too long, or writing fails.
    pub async fn send(&mut self, message: &M) -> Result<(), StreamError> {
        self.put(message).await?;
        self.flush().await
    }

    /// Takes a message, and writes once some have gathered.
    async fn put(&mut self, message: &M) -> Result<(), StreamError> {
        self.encoder.encode(message, &mut self.buffer)?;
        if self.buffer.len() < CHUNK_LEN { Ok(()) } else { self.write().await }
    }

    async fn write(&mut self) -> Result<(), StreamError> {
        while !self.buffer.is_empty() {
            let written = timeout(self.patience, self.stream.write_buf(&mut self.buffer)).await;
            if self.in_time(written)? == 0 {
                return Err(writing(io::ErrorKind::WriteZero.into()));
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), StreamError> {
        self.write().await?;
        let flushed = timeout(self.patience, self.stream.flush()).await;
        self.in_time(flushed)
    }

    fn in_time<T>(&self, done: Result<io::Result<T>, Elapsed>) -> Result<T, StreamError> {
        match done {
            Ok(done) => done.map_err(writing),
            Err(_) => Err(StreamError::Stalled { seconds: self.patience.as_secs() }),
        }
    }
}

/// Carries what the stream brings into a channel, until one of them ends. While the channel is
/// full nothing is read.
///
/// # Errors
/// As [`Receiver::next_message`].
pub async fn receive<R, M>(
    mut from: Receiver<R, M>,
    to: &mpsc::Sender<M>,
) -> Result<(), StreamError>
where
    R: AsyncRead + Unpin,
    M: Message,
{
    while let Some(message) = from.next_message().await? {
        if to.send(message).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Carries what the channel brings onto the stream, until the channel ends. While the other
/// end does not read, nothing is taken from the channel.
///
/// # Errors
/// Writing fails, or a message is too long for the feed.
pub async fn send<W, M>(
    from: &mut mpsc::Receiver<M>,
    mut to: Sender<W, M>,
) -> Result<(), StreamError>
where
    W: AsyncWrite + Unpin,
    M: Message,
{
    while let Some(message) = from.recv().await {
        to.put(&message).await?;
        while let Ok(message) = from.try_recv() {
            to.put(&message).await?;
        }
        to.flush().await?;
    }
    to.stream.shutdown().await.map_err(writing)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{DuplexStream, duplex},
        runtime::Builder,
    };

    use super::*;
    use crate::feed::{ToAgent, ToVerifier};

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let ended = runtime.block_on(async { timeout(Duration::from_secs(20), test).await });
        ended.expect("it ends")
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    fn tick(time_ns: u64) -> ToVerifier {
        ToVerifier::Tick { time_ns }
    }

    async fn started(stream: DuplexStream) -> Result<Receiver<DuplexStream, ToVerifier>, String> {
        Receiver::start(stream).await.map_err(|error| error.to_string())
    }

    #[test]
    fn messages_cross_in_order_and_the_end_is_seen() {
        run(async {
            let (here, there) = duplex(1000);
            let (to_send, mut outgoing) = mpsc::channel(4);
            let (incoming, mut heard) = mpsc::channel(4);
            let sending = async {
                let sender = Sender::start(here, PATIENCE).await.unwrap();
                send(&mut outgoing, sender).await.unwrap();
            };
            let receiving = async {
                let receiver = Receiver::start(there).await.unwrap();
                assert_eq!(receiver.header().product_version, env!("CARGO_PKG_VERSION"));
                receive(receiver, &incoming).await.unwrap();
                drop(incoming);
            };
            let telling = async move {
                for n in 0..10_000 {
                    to_send.send(tick(n)).await.unwrap();
                }
            };
            let hearing = async {
                for n in 0..10_000 {
                    assert_eq!(heard.recv().await, Some(tick(n)));
                }
                assert_eq!(heard.recv().await, None);
            };
            tokio::join!(sending, receiving, telling, hearing);
        });
    }

    #[test]
    fn a_receiver_that_does_not_read_holds_the_sender_up_in_bounded_memory() {
        run(async {
            let (here, there) = duplex(1000);
            let (to_send, mut outgoing) = mpsc::channel(4);
            let sender = Sender::start(here, PATIENCE).await.unwrap();
            tokio::spawn(async move { send(&mut outgoing, sender).await });
            let mut sent = 0_u64;
            let pause = Duration::from_millis(200);
            while let Ok(done) = timeout(pause, to_send.send(tick(u64::MAX - sent))).await {
                done.unwrap();
                sent += 1;
            }
            // What is gathered, what is in the pipe, and what is in the channel.
            assert!(sent > 4 && sent < 10_000, "{sent} were taken");
            drop(there);
        });
    }

    #[test]
    fn a_receiver_that_never_reads_again_is_given_up() {
        run(async {
            let (here, there) = duplex(100);
            let (to_send, mut outgoing) = mpsc::channel(4);
            let patience = Duration::from_millis(50);
            let sender = Sender::start(here, patience).await.unwrap();
            for n in 0..4 {
                let symbols = vec![(n, "s".repeat(500).into())];
                to_send.send(ToVerifier::Symbols(symbols)).await.unwrap();
            }
            let error = send(&mut outgoing, sender).await.unwrap_err();
            assert!(matches!(error, StreamError::Stalled { .. }), "{error}");
            drop(there);
        });
    }

    #[test]
    fn a_stream_that_breaks_off_within_a_message_is_not_a_clean_end() {
        run(async {
            let (mut here, there) = duplex(1000);
            let mut bytes = BytesMut::new();
            let header = Header::new(ToVerifier::DIRECTION, None);
            header.encode(Carrier::Stream, &mut bytes).unwrap();
            Encoder::default().encode(&tick(1), &mut bytes).unwrap();
            Encoder::default().encode(&tick(2), &mut bytes).unwrap();
            let len = bytes.len() - 1;
            here.write_all(&bytes[..len]).await.unwrap();
            drop(here);
            let mut receiver = started(there).await.unwrap();
            assert_eq!(receiver.next_message().await.unwrap(), Some(tick(1)));
            let error = receiver.next_message().await.unwrap_err().to_string();
            assert_eq!(error, format!("the other end broke off in a message, after {len} bytes"));
        });
    }

    #[test]
    fn what_is_no_agent_is_named() {
        run(async {
            for (said, wanted) in [
                (&b""[..], "broke off before it said anything"),
                (b"\x89RVS\r\n", "broke off in its header, after 6 bytes"),
                (b"bash: refverify-monitor: command not found", "begins with \"bash: refverify"),
            ] {
                let (mut here, there) = duplex(1000);
                here.write_all(said).await.unwrap();
                drop(here);
                let error = started(there).await.map(|_| ()).unwrap_err();
                assert!(error.contains(wanted), "{error}");
            }
        });
    }

    #[test]
    fn an_agent_that_is_spoken_to_as_a_verifier_says_so() {
        run(async {
            let (here, there) = duplex(1000);
            let _sender = Sender::<_, ToAgent>::start(here, PATIENCE).await.unwrap();
            let error = started(there).await.map(|_| ()).unwrap_err();
            assert!(error.contains("messages to an agent come"), "{error}");
        });
    }
}
