//! What a stream or a recording begins with.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic: 89 `R V S` (stream) or 89 `R V R` (recording), then 0d 0a 1a 0a |
//! | 8 | 2 | format version, little-endian |
//! | 10 | 1 | direction: 1 to the verifier, 2 to the agent |
//! | 11 | 1 | n, the length of the product version, at most 127 |
//! | 12 | n | product version, UTF-8 |
//! | 12 + n | 1 | m, the length of the kernel release, at most 127 |
//! | 13 + n | m | kernel release (`uname -r`) of the sender, UTF-8 |
//! | 13 + n + m | 1 | k, the length of the name, at most 127 |
//! | 14 + n + m | k | name of the virtual machine that is told of, UTF-8; empty where it is the sender's own machine |
//! | 14 + n + m + k | 4 | of a recording, how its verifier audits, little-endian: 0 not at all, else 1 and the seconds between audits; of a stream 0 |
//!
//! The magic has bytes that a terminal in between would change: 0d 0a or 0a alone, 89.

use std::fmt;

use bytes::{Buf, BufMut, BytesMut};

use super::{
    DecodeError, EncodeError, Wrong,
    limits::HEADER_TEXT_LEN_MAX,
    wire::{Cursor, put_text},
};

/// The version of the format that is written and read here.
pub const FORMAT_VERSION: u16 = 2;

/// How much of what is no magic an error shows.
const SHOWN_LEN_MAX: usize = 80;

/// What carries the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A stream of bytes between two processes.
    Stream,
    /// A file.
    Recording,
}

impl Carrier {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Stream => *b"\x89RVS\r\n\x1a\n",
            Self::Recording => *b"\x89RVR\r\n\x1a\n",
        }
    }
}

/// To whom messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// [`ToVerifier`](crate::feed::ToVerifier).
    ToVerifier,
    /// [`ToAgent`](crate::feed::ToAgent).
    ToAgent,
}

impl Direction {
    const fn number(self) -> u8 {
        match self {
            Self::ToVerifier => 1,
            Self::ToAgent => 2,
        }
    }

    fn from_number(cursor: &Cursor<'_>, number: u8) -> Result<Self, DecodeError> {
        match number {
            1 => Ok(Self::ToVerifier),
            2 => Ok(Self::ToAgent),
            other => Err(cursor.unknown("direction", other)),
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToVerifier => "to a verifier",
            Self::ToAgent => "to an agent",
        })
    }
}

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// To whom the messages go.
    pub direction: Direction,
    /// The version of the program that writes.
    pub product_version: String,
    /// `uname -r` of the machine it runs on.
    pub kernel_release: String,
    /// The virtual machine that is told of, as reports call it; `None` where it is the sender's
    /// own machine.
    pub vm: Option<String>,
    /// Seconds between the audits that the verifier makes; `None` where it makes none. What is
    /// recorded has the answers to what was read for them, so whoever verifies it again has to
    /// audit likewise.
    pub audit_seconds: Option<u32>,
}

impl Header {
    /// A header by this program, on this machine.
    pub fn new(direction: Direction, vm: Option<&str>) -> Self {
        let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
        Self {
            direction,
            product_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release,
            vm: vm.map(str::to_owned),
            audit_seconds: None,
        }
    }

    /// Appends the header.
    ///
    /// # Errors
    /// A text is too long.
    pub fn encode(&self, carrier: Carrier, out: &mut BytesMut) -> Result<(), EncodeError> {
        out.put_slice(&carrier.magic());
        out.put_u16_le(FORMAT_VERSION);
        out.put_u8(self.direction.number());
        // Lengths below 128 take one byte as a `uint`.
        put_text(out, "bytes of product version", &self.product_version, HEADER_TEXT_LEN_MAX)?;
        put_text(out, "bytes of kernel release", &self.kernel_release, HEADER_TEXT_LEN_MAX)?;
        let vm = self.vm.as_deref().unwrap_or_default();
        put_text(out, "bytes of a name", vm, HEADER_TEXT_LEN_MAX)?;
        out.put_u32_le(self.audit_seconds.map_or(0, |seconds| seconds.saturating_add(1)));
        Ok(())
    }

    /// Takes a header off the front of `buffer`, and says how many bytes it had; `None` when
    /// more bytes are needed, of which there are at most 399 in all.
    ///
    /// # Errors
    /// It is no header, of another version, or of messages that go the other way.
    pub fn decode(
        carrier: Carrier,
        wanted: Direction,
        buffer: &mut BytesMut,
    ) -> Result<Option<(Self, u64)>, DecodeError> {
        check_magic(carrier, buffer)?;
        let mut cursor = Cursor::new(buffer, 0);
        let header = match Self::parse(&mut cursor, wanted) {
            Ok(header) => header,
            Err(DecodeError { wrong: Wrong::CutShort { .. }, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let len = buffer.len() - cursor.left();
        buffer.advance(len);
        Ok(Some((header, len as u64)))
    }

    fn parse(cursor: &mut Cursor<'_>, wanted: Direction) -> Result<Self, DecodeError> {
        cursor.take("the header", 8)?;
        let version = u16::from_le_bytes(cursor.array("the header")?);
        if version != FORMAT_VERSION {
            return Err(cursor.wrong(Wrong::Version { found: version }));
        }
        let number = cursor.u8("the header")?;
        let found = Direction::from_number(cursor, number)?;
        if found != wanted {
            return Err(cursor.wrong(Wrong::Direction { found, wanted }));
        }
        Ok(Self {
            direction: found,
            product_version: header_text(cursor, "bytes of product version")?,
            kernel_release: header_text(cursor, "bytes of kernel release")?,
            vm: Some(header_text(cursor, "bytes of a name")?).filter(|vm| !vm.is_empty()),
            audit_seconds: u32::from_le_bytes(cursor.array("the header")?).checked_sub(1),
        })
    }
}

/// Unlike a text within a frame, this one may not have come yet.
fn header_text(cursor: &mut Cursor<'_>, what: &'static str) -> Result<String, DecodeError> {
    let len = cursor.u8(what)?;
    if usize::from(len) > HEADER_TEXT_LEN_MAX {
        let max = HEADER_TEXT_LEN_MAX as u64;
        return Err(cursor.wrong(Wrong::TooMany { what, count: len.into(), max }));
    }
    let bytes = cursor.take(what, len.into())?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(cursor.wrong(Wrong::NotUtf8 { what })),
    }
}

/// Says so as soon as the first byte is wrong: what speaks there may never send eight.
fn check_magic(carrier: Carrier, buffer: &[u8]) -> Result<(), DecodeError> {
    let magic = carrier.magic();
    let begins = buffer.iter().zip(&magic).all(|(found, wanted)| found == wanted);
    if begins {
        return Ok(());
    }
    let shown = &buffer[..buffer.len().min(SHOWN_LEN_MAX)];
    let begins = shown.escape_ascii().to_string();
    Err(DecodeError { offset: 0, wrong: Wrong::Magic { begins } })
}
