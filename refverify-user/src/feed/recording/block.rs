//! What stands before each block.
//!
//! A head says where the next one is, so the heads together are the index; a recording that
//! was cut off has it too.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic: `R V B` 0a |
//! | 4 | 4 | CRC-32C of the 72 bytes that follow |
//! | 8 | 4 | length of the packed frames that follow the head |
//! | 12 | 4 | length of the frames unpacked |
//! | 16 | 4 | CRC-32C of the packed frames |
//! | 20 | 4 | count of messages |
//! | 24 | 4 | count of events |
//! | 28 | 4 | 0 |
//! | 32 | 16 | earliest and latest time of events and ticks (`CLOCK_MONOTONIC`, ns) |
//! | 48 | 16 | lowest and highest transid of events and commits |
//! | 64 | 16 | lowest and highest byte that an event is about |
//!
//! All numbers are little-endian. A range without anything in it has its first number above
//! its second. A block without messages is the end of the recording.

use crate::feed::{Change, ToVerifier};

/// The length of a head.
pub(super) const HEAD_LEN: usize = 80;

const MAGIC: [u8; 4] = *b"RVB\n";

/// From the lowest to the highest, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The lowest.
    pub min: u64,
    /// The highest.
    pub max: u64,
}

impl Range {
    /// Nothing.
    pub const EMPTY: Self = Self { min: u64::MAX, max: 0 };

    /// Whether there is anything in it.
    pub const fn is_empty(&self) -> bool {
        self.min > self.max
    }

    /// Whether a number is in it.
    pub const fn contains(&self, value: u64) -> bool {
        self.min <= value && value <= self.max
    }

    /// Widens it to hold a number.
    pub fn add(&mut self, value: u64) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Widens it to hold another range.
    pub fn add_all(&mut self, other: Self) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHead {
    /// Length of its frames, packed.
    pub packed_len: u32,
    /// Length of its frames.
    pub len: u32,
    /// CRC-32C of the packed frames.
    pub checksum: u32,
    /// How many messages.
    pub messages: u32,
    /// How many events, in all messages.
    pub events: u32,
    /// When (`CLOCK_MONOTONIC`).
    pub time_ns: Range,
    /// Which transactions.
    pub transid: Range,
    /// Which bytes its events are about.
    pub bytes: Range,
}

impl BlockHead {
    /// That of a block without anything.
    pub const EMPTY: Self = Self {
        packed_len: 0,
        len: 0,
        checksum: 0,
        messages: 0,
        events: 0,
        time_ns: Range::EMPTY,
        transid: Range::EMPTY,
        bytes: Range::EMPTY,
    };

    /// Whether the block is the recording's last.
    pub const fn is_end(&self) -> bool {
        self.messages == 0
    }

    /// Counts a message in.
    pub(super) fn add(&mut self, message: &ToVerifier) {
        self.messages = self.messages.saturating_add(1);
        match message {
            ToVerifier::Tick { time_ns } => self.time_ns.add(*time_ns),
            ToVerifier::Commit { transid, .. } | ToVerifier::Abort { transid, .. } => {
                self.transid.add(*transid);
            }
            ToVerifier::Events(events) => {
                for event in events {
                    self.events = self.events.saturating_add(1);
                    self.time_ns.add(event.time_ns);
                    self.transid.add(event.transid);
                    self.add_bytes(&event.change);
                }
            }
            _ => {}
        }
    }

    fn add_bytes(&mut self, change: &Change) {
        let (Change::Ref { bytenr: start, len_bytes, .. }
        | Change::RemoveGroup { start, len_bytes }) = *change;
        self.bytes.add(start);
        self.bytes.add(start.saturating_add(len_bytes.saturating_sub(1)));
    }

    /// The head's bytes.
    pub(super) fn to_bytes(self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        let words = [self.packed_len, self.len, self.checksum, self.messages, self.events, 0];
        for (place, word) in bytes[8..32].as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        let numbers = [self.time_ns, self.transid, self.bytes].map(|range| [range.min, range.max]);
        for (place, number) in bytes[32..].as_chunks_mut().0.iter_mut().zip(numbers.as_flattened())
        {
            *place = number.to_le_bytes();
        }
        let checksum = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a head; `None` where there is none, or a damaged one.
    pub(super) fn from_bytes(bytes: &[u8; HEAD_LEN]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (checksum, rest) = rest.split_first_chunk::<4>()?;
        if *magic != MAGIC || u32::from_le_bytes(*checksum) != crc32c::crc32c(rest) {
            return None;
        }
        let (words, ranges) = rest.split_at(24);
        let mut words = words.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut numbers = ranges.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number));
        let mut range = || Some(Range { min: numbers.next()?, max: numbers.next()? });
        Some(Self {
            packed_len: words.next()?,
            len: words.next()?,
            checksum: words.next()?,
            messages: words.next()?,
            events: words.next()?,
            time_ns: range()?,
            transid: range()?,
            bytes: range()?,
        })
    }
}
