//! The elements that every message is made of.
//!
//! | name | bytes |
//! |---|---|
//! | `u8` | one byte |
//! | `uint` | a number of up to 64 bits, 7 bits to a byte from the lowest on; every byte but the last has bit 7 set (LEB128) |
//! | `sint` | a 64-bit number that is read as signed: 0, -1, 1, -2 … become the `uint` 0, 1, 2, 3 … (zigzag) |
//! | `text` | its length in bytes as `uint`, then UTF-8 |

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::{DecodeError, EncodeError, Wrong};

/// Appends a `uint`.
pub(super) fn put_uint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(low_byte(value) | 0x80);
        value >>= 7;
    }
    out.put_u8(low_byte(value));
}

const fn low_byte(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

/// Appends a `sint`. Takes the bits as u64: what is small and negative as signed is short.
pub(super) fn put_sint(out: &mut BytesMut, value: u64) {
    let signed = value.cast_signed();
    put_uint(out, ((signed << 1) ^ (signed >> 63)).cast_unsigned());
}

/// Appends a length that is within its limit.
pub(super) fn put_len(
    out: &mut BytesMut,
    what: &'static str,
    len: usize,
    max: usize,
) -> Result<(), EncodeError> {
    if len > max {
        return Err(EncodeError { what, len, max });
    }
    put_uint(out, len as u64);
    Ok(())
}

/// Appends a `text`.
pub(super) fn put_text(
    out: &mut BytesMut,
    what: &'static str,
    text: &str,
    max: usize,
) -> Result<(), EncodeError> {
    put_len(out, what, text.len(), max)?;
    out.put_slice(text.as_bytes());
    Ok(())
}

/// Takes one frame's payload apart, front to back.
#[derive(Debug)]
pub struct Cursor<'a> {
    frame: &'a [u8],
    at: usize,
    /// The offset of the payload's first byte in the stream.
    base: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(frame: &'a [u8], base: u64) -> Self {
        Self { frame, at: 0, base }
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.frame.len() - self.at
    }

    /// An error at the place reached.
    pub(super) fn wrong(&self, wrong: Wrong) -> DecodeError {
        DecodeError { offset: self.base + self.at as u64, wrong }
    }

    /// A number that stands for nothing, one byte long and just taken.
    pub(super) fn unknown(&self, what: &'static str, value: u8) -> DecodeError {
        let offset = self.base + self.at as u64 - 1;
        DecodeError { offset, wrong: Wrong::Unknown { what, value: value.into() } }
    }

    /// The frame must be used up.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        match self.left() {
            0 => Ok(()),
            count => Err(self.wrong(Wrong::Surplus { count })),
        }
    }

    pub(super) fn take(&mut self, what: &'static str, len: usize) -> Result<&'a [u8], DecodeError> {
        let rest = &self.frame[self.at..];
        let Some(taken) = rest.get(..len) else {
            return Err(self.wrong(Wrong::CutShort { what }));
        };
        self.at += len;
        Ok(taken)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        let Some(&byte) = self.frame.get(self.at) else {
            return Err(self.wrong(Wrong::CutShort { what }));
        };
        self.at += 1;
        Ok(byte)
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let start = self.at;
        let Some(array) = self.frame[start..].first_chunk() else {
            return Err(self.wrong(Wrong::CutShort { what }));
        };
        self.at += N;
        Ok(*array)
    }

    pub(super) fn uint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let start = self.at;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.at = start;
        Err(self.wrong(Wrong::TooBig { what, bits: 64 }))
    }

    pub(super) fn uint32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        let start = self.at;
        let value = self.uint(what)?;
        u32::try_from(value).map_err(|_| {
            self.at = start;
            self.wrong(Wrong::TooBig { what, bits: 32 })
        })
    }

    pub(super) fn sint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let value = self.uint(what)?;
        Ok((value >> 1) ^ (value & 1).wrapping_neg())
    }

    pub(super) fn sint32(&mut self, what: &'static str) -> Result<i32, DecodeError> {
        let start = self.at;
        let value = self.sint(what)?.cast_signed();
        i32::try_from(value).map_err(|_| {
            self.at = start;
            self.wrong(Wrong::TooBig { what, bits: 32 })
        })
    }

    /// The length of a list. It is refused where the frame is too short for so many items of
    /// at least `item_len_min` bytes, so that nobody makes room for what does not come.
    pub(super) fn len(
        &mut self,
        what: &'static str,
        max: usize,
        item_len_min: usize,
    ) -> Result<usize, DecodeError> {
        let start = self.at;
        let count = self.uint(what)?;
        let max = max.min(self.left() / item_len_min) as u64;
        if count > max {
            self.at = start;
            return Err(self.wrong(Wrong::TooMany { what, count, max }));
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most max, which is a usize")]
        Ok(count as usize)
    }

    pub(super) fn text(&mut self, what: &'static str, max: usize) -> Result<&'a str, DecodeError> {
        let len = self.len(what, max, 1)?;
        let start = self.at;
        std::str::from_utf8(self.take(what, len)?).map_err(|_| {
            self.at = start;
            self.wrong(Wrong::NotUtf8 { what })
        })
    }

    pub(super) fn string(&mut self, what: &'static str, max: usize) -> Result<String, DecodeError> {
        self.text(what, max).map(str::to_owned)
    }

    pub(super) fn shared_text(
        &mut self,
        what: &'static str,
        max: usize,
    ) -> Result<Arc<str>, DecodeError> {
        self.text(what, max).map(Arc::from)
    }
}
