//! The feed in a file: all that was told to the verifier, so that it can be told again.
//!
//! | file | what |
//! |---|---|
//! | `block` | the head of each block, which is the index too |
//! | `recorder` | writes |
//! | `player` | reads |
//!
//! `docs/recording.md` describes every byte.

mod block;
mod player;
mod recorder;

#[cfg(test)]
mod tests;

pub use block::{BlockHead, Range};
pub use player::{End, Player, PlayerError, index};
pub use recorder::{Recorder, RecorderError, create_file};

/// A block is written once it has this many bytes of frames.
const BLOCK_LEN: usize = 1 << 20;

/// The most that one block may unpack to: a block that was nearly full, and one more message
/// (a full drain of the ring buffer).
const BLOCK_LEN_MAX: usize = 32 << 20;

/// A block is written at least this often, by the ticks' time: what a crash of this machine
/// costs.
const BLOCK_AGE_NS: u64 = 1_000_000_000;
