//! Messages to and from bytes.
//!
//! A header, then frames. A frame is the length of its payload in four bytes, little-endian,
//! then the payload: one message. `docs/stream.md` describes every byte.
//!
//! The encoding is our own, not that of a serialisation crate: every length is checked against
//! its limit and against what is left of the frame before room is made for it, every error
//! names the byte, stacks cross once, and what is on the wire does not change when a type is
//! edited.

mod error;
mod event;
mod header;
pub mod limits;
mod message;
mod stacks;
mod wire;

#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use bytes::{Buf, BufMut, BytesMut};

pub use error::{DecodeError, EncodeError, Wrong};
pub use header::{Carrier, Direction, FORMAT_VERSION, Header};
use limits::{EVENTS_MAX, FRAME_LEN_MAX, SYMBOLS_MAX};
use stacks::{StackReader, StackWriter};
use wire::Cursor;

use super::{ToAgent, ToVerifier};

/// The length before each payload.
const PREFIX_LEN: usize = 4;

/// One of the two sets of messages.
pub trait Message: Sized + private::Frames {
    /// To whom they go.
    const DIRECTION: Direction;
}

impl Message for ToVerifier {
    const DIRECTION: Direction = Direction::ToVerifier;
}

impl Message for ToAgent {
    const DIRECTION: Direction = Direction::ToAgent;
}

mod private {
    use bytes::BytesMut;

    use super::{DecodeError, EncodeError, StackReader, StackWriter, wire::Cursor};

    pub trait Frames: Sized {
        /// Appends the message as one frame, or as several where its list is long.
        fn put(&self, out: &mut BytesMut, stacks: &mut StackWriter) -> Result<(), EncodeError>;

        /// Takes the message that is the whole of one frame.
        fn get(cursor: &mut Cursor<'_>, stacks: &mut StackReader) -> Result<Self, DecodeError>;
    }
}

impl private::Frames for ToVerifier {
    fn put(&self, out: &mut BytesMut, stacks: &mut StackWriter) -> Result<(), EncodeError> {
        match self {
            Self::Events(events) if events.len() > EVENTS_MAX => {
                events.chunks(EVENTS_MAX).try_for_each(|part| {
                    put_frame(out, |out| message::put_events_message(out, part, stacks))
                })
            }
            Self::Symbols(symbols) if symbols.len() > SYMBOLS_MAX => symbols
                .chunks(SYMBOLS_MAX)
                .try_for_each(|part| put_frame(out, |out| message::put_symbols_message(out, part))),
            whole => put_frame(out, |out| message::put_to_verifier(out, whole, stacks)),
        }
    }

    fn get(cursor: &mut Cursor<'_>, stacks: &mut StackReader) -> Result<Self, DecodeError> {
        message::to_verifier(cursor, stacks)
    }
}

impl private::Frames for ToAgent {
    fn put(&self, out: &mut BytesMut, _: &mut StackWriter) -> Result<(), EncodeError> {
        match self {
            Self::Symbolise(addresses) if addresses.len() > SYMBOLS_MAX => {
                addresses.chunks(SYMBOLS_MAX).try_for_each(|part| {
                    put_frame(out, |out| {
                        message::put_symbolise(out, part);
                        Ok(())
                    })
                })
            }
            whole => put_frame(out, |out| {
                message::put_to_agent(out, whole);
                Ok(())
            }),
        }
    }

    fn get(cursor: &mut Cursor<'_>, _: &mut StackReader) -> Result<Self, DecodeError> {
        message::to_agent(cursor)
    }
}

/// Appends one frame around what `put` appends.
fn put_frame(
    out: &mut BytesMut,
    put: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    let start = out.len();
    out.put_u32_le(0);
    put(out)?;
    let len = out.len() - start - PREFIX_LEN;
    let fits = u32::try_from(len).ok().filter(|_| len <= FRAME_LEN_MAX);
    let Some(prefix) = fits else {
        return Err(EncodeError { what: "bytes of a frame", len, max: FRAME_LEN_MAX });
    };
    out[start..start + PREFIX_LEN].copy_from_slice(&prefix.to_le_bytes());
    Ok(())
}

/// Turns messages into frames. One for the whole life of a stream: it remembers stacks.
#[derive(Debug)]
pub struct Encoder<M> {
    stacks: StackWriter,
    messages: PhantomData<fn(M)>,
}

impl<M: Message> Default for Encoder<M> {
    fn default() -> Self {
        Self { stacks: StackWriter::default(), messages: PhantomData }
    }
}

impl<M: Message> Encoder<M> {
    /// Appends a message as a frame. A list that is too long for one becomes several messages
    /// of the same kind, which mean the same. After an error nothing has been appended, and
    /// the message is as if it had never been given.
    ///
    /// # Errors
    /// Something in it is longer than the feed allows.
    pub fn encode(&mut self, message: &M, out: &mut BytesMut) -> Result<(), EncodeError> {
        let start = out.len();
        message.put(out, &mut self.stacks).inspect_err(|_| {
            out.truncate(start);
            // Some of the stacks that were to cross did not.
            self.stacks.forget();
        })
    }
}

/// Takes messages from a stream of frames. One for the whole life of a stream.
#[derive(Debug)]
pub struct Decoder<M> {
    stacks: StackReader,
    /// Bytes of the stream before the buffer's first.
    offset: u64,
    messages: PhantomData<fn() -> M>,
}

impl<M: Message> Decoder<M> {
    /// Begins at this offset of the stream, where the first frame is.
    pub fn new(offset: u64) -> Self {
        Self { stacks: StackReader::default(), offset, messages: PhantomData }
    }

    /// The offset in the stream of the next frame.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next message off the front of `buffer`; `None` when the frame is not there
    /// in full.
    ///
    /// # Errors
    /// The bytes make no sense. The stream cannot be read on.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<M>, DecodeError> {
        let Some(&prefix) = buffer.first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let len = u32::from_le_bytes(prefix) as usize;
        if len > FRAME_LEN_MAX {
            let (count, max) = (len as u64, FRAME_LEN_MAX as u64);
            let wrong = Wrong::TooMany { what: "bytes of a frame", count, max };
            return Err(DecodeError { offset: self.offset, wrong });
        }
        let Some(payload) = buffer.get(PREFIX_LEN..PREFIX_LEN + len) else {
            buffer.reserve(PREFIX_LEN + len - buffer.len());
            return Ok(None);
        };
        let mut cursor = Cursor::new(payload, self.offset + PREFIX_LEN as u64);
        let message = M::get(&mut cursor, &mut self.stacks)?;
        buffer.advance(PREFIX_LEN + len);
        self.offset += (PREFIX_LEN + len) as u64;
        Ok(Some(message))
    }
}
