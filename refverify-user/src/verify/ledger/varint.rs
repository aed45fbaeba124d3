//! Integers in few bytes: seven bits to a byte, lowest first, the top bit says that more come.
//!
//! Addresses, lengths and file offsets are nearly always multiples of 4096. Those that are
//! lose twelve zero bits; the others are marked, and follow in full.

/// Reads what this module wrote. Nothing it is given makes it panic: `None` is the end of the
/// bytes, or no integer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

pub(super) const SECTOR_BITS: u32 = 12;
/// What stands before a value that is no multiple of 4096; that of a multiple is even.
const UNALIGNED: u64 = 1;

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        if first < 0x80 { Some(u64::from(first)) } else { self.rest_of(first) }
    }

    fn rest_of(&mut self, first: u8) -> Option<u64> {
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    #[inline]
    pub(super) fn signed(&mut self) -> Option<u64> {
        self.varint().map(from_zigzag)
    }

    /// A value written by [`put_sectors`].
    #[inline]
    pub(super) fn sectors(&mut self) -> Option<u64> {
        match self.varint()? {
            UNALIGNED => self.raw(),
            code => (code & 1 == 0).then_some((code >> 1) << SECTOR_BITS),
        }
    }

    /// A value written by [`put_signed_sectors`].
    #[inline]
    pub(super) fn signed_sectors(&mut self) -> Option<u64> {
        match self.varint()? {
            UNALIGNED => self.raw(),
            code => (code & 1 == 0).then(|| from_zigzag(code >> 1) << SECTOR_BITS),
        }
    }

    fn raw(&mut self) -> Option<u64> {
        let bytes = self.bytes.get(self.at..)?.first_chunk()?;
        self.at += 8;
        Some(u64::from_le_bytes(*bytes))
    }
}

#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A value that is small, or a little below 2^64.
#[inline]
pub(super) fn put_signed(out: &mut Vec<u8>, value: u64) {
    put_varint(out, to_zigzag(value));
}

/// A value that is most likely a multiple of 4096.
#[inline]
pub(super) fn put_sectors(out: &mut Vec<u8>, value: u64) {
    if is_aligned(value) {
        put_varint(out, (value >> SECTOR_BITS) << 1);
    } else {
        put_raw(out, value);
    }
}

/// A value that is most likely a multiple of 4096, and may be a little below 2^64.
#[inline]
pub(super) fn put_signed_sectors(out: &mut Vec<u8>, value: u64) {
    if is_aligned(value) {
        put_varint(out, to_zigzag((value.cast_signed() >> SECTOR_BITS).cast_unsigned()) << 1);
    } else {
        put_raw(out, value);
    }
}

fn put_raw(out: &mut Vec<u8>, value: u64) {
    put_varint(out, UNALIGNED);
    out.extend_from_slice(&value.to_le_bytes());
}

const fn is_aligned(value: u64) -> bool {
    value.trailing_zeros() >= SECTOR_BITS
}

#[inline]
const fn to_zigzag(value: u64) -> u64 {
    (value << 1) ^ (value.cast_signed() >> 63).cast_unsigned()
}

#[inline]
const fn from_zigzag(code: u64) -> u64 {
    (code >> 1) ^ (code & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [u64; 14] = [
        0,
        1,
        127,
        128,
        4095,
        4096,
        4097,
        (64 << 12) - 1,
        64 << 12,
        u64::MAX >> 1,
        (u64::MAX >> 1) + 1,
        u64::MAX - 4095,
        u64::MAX - 8,
        u64::MAX,
    ];

    #[test]
    fn every_value_comes_back() {
        for value in VALUES {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, value);
            put_sectors(&mut out, value);
            put_signed_sectors(&mut out, value);
            let mut reader = Reader::new(&out, 0);
            assert_eq!(reader.varint(), Some(value));
            assert_eq!(reader.signed(), Some(value));
            assert_eq!(reader.sectors(), Some(value));
            assert_eq!(reader.signed_sectors(), Some(value));
            assert!(reader.is_at_end());
        }
    }

    #[test]
    fn what_is_usual_takes_one_byte() {
        let mut out = Vec::new();
        put_signed(&mut out, u64::MAX - 8);
        put_sectors(&mut out, 16384);
        put_signed_sectors(&mut out, 4096_u64.wrapping_neg());
        assert_eq!(out.len(), 3);
    }

    #[test]
    fn an_integer_that_does_not_end_or_is_too_large_is_none() {
        assert_eq!(Reader::new(&[0x80; 11], 0).varint(), None);
        assert_eq!(Reader::new(&[0xff; 9], 0).varint(), None);
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(Reader::new(&too_large, 0).varint(), None);
        assert_eq!(Reader::new(&[1, 2, 3], 0).sectors(), None);
        assert_eq!(Reader::new(&[3], 0).sectors(), None);
    }
}
