//! The one seam between what is near the kernel and what judges: a closed set of messages.
//!
//! In one process they travel through a channel, to another machine as a stream of bytes
//! ([`stream`]), and in a file they are a recording ([`recording`]). Everything that the
//! verifier learns is in them, so that it runs the same on all three.

pub mod codec;
mod message;
mod namer;
mod recent;
pub mod recording;
pub mod stream;
mod tee;

pub use message::{
    BlockAnswer, BlockError, BlockRequest, Change, Comm, Event, FsSlot, Hello, HookMode, Loss,
    LossSource, Mount, Stack, ToAgent, ToVerifier,
};
pub use namer::Namer;
pub use recent::Recent;
pub use tee::{Tee, TeeEnd};
