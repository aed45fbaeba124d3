//! What can be wrong with bytes, and with what is to become bytes.

use super::{Direction, FORMAT_VERSION};

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wrong}, at byte {offset}")]
pub struct DecodeError {
    /// Where, counted from the first byte of the stream (in a recording: from the first byte
    /// of the unpacked block).
    pub offset: u64,
    /// What.
    pub wrong: Wrong,
}

/// What is wrong with bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Something else speaks.
    #[error(
        "this is not what refverify-monitor writes: it begins with \"{begins}\"; if that looks like a greeting, silence what prints it in the start-up files of the shell"
    )]
    Magic {
        /// The first bytes, escaped.
        begins: String,
    },
    /// Another version of the format.
    #[error(
        "format version {found} cannot be read here, only version {FORMAT_VERSION}: use the same version of refverify-monitor on both sides"
    )]
    Version {
        /// Theirs.
        found: u16,
    },
    /// Each side must speak to the other.
    #[error("messages {found} come where messages {wanted} belong")]
    Direction {
        /// Theirs.
        found: Direction,
        /// What can be read here.
        wanted: Direction,
    },
    /// A number that stands for nothing.
    #[error("{value} is no {what}")]
    Unknown {
        /// What it should name.
        what: &'static str,
        /// The number.
        value: u64,
    },
    /// More than the limit, or more than the frame can hold.
    #[error("{count} {what} are more than the {max} that are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// How many could be.
        max: u64,
    },
    /// A frame ends within a message.
    #[error("the frame ends within {what}")]
    CutShort {
        /// Within what.
        what: &'static str,
    },
    /// A frame goes on after its message.
    #[error("{count} bytes follow the message in its frame")]
    Surplus {
        /// How many.
        count: usize,
    },
    /// A number has more bits than it may have.
    #[error("{what} does not fit into {bits} bits")]
    TooBig {
        /// Which number.
        what: &'static str,
        /// How many bits it may have.
        bits: u32,
    },
    /// A text is no text.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// Which text.
        what: &'static str,
    },
}

/// A message that does not fit into the feed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} {what} do not fit into one message, only {max}")]
pub struct EncodeError {
    /// Of what.
    pub what: &'static str,
    /// How many.
    pub len: usize,
    /// How many would fit.
    pub max: usize,
}
