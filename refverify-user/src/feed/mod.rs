//! The one seam between what is near the kernel and what judges: a closed set of messages.
//!
//! In one process they travel through a channel. Everything that the verifier learns is in
//! them, so that it runs the same on live events, on a stream and on a recording.

mod message;

pub use message::{
    BlockAnswer, BlockError, BlockRequest, Change, Comm, Event, FsSlot, Hello, HookMode, Loss,
    LossSource, Mount, Stack, ToAgent, ToVerifier,
};
