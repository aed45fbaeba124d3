//! Reads the extent tree of a live file system, in the order of its keys.
//!
//! The tree of generation G is whole on the device only until superblock G + 1 is written:
//! from then on its freed blocks may be used again. So nothing here takes a whole tree at one
//! generation. Blocks are read in key order; where one turns out to be another by now, the
//! superblock, the chunk tree and the root tree are read again, and reading goes on at the
//! newer generation from the first bytenr that was not complete. Every range of bytenr thus
//! has the generation at which it was read.
//!
//! The reader does no I/O: [`ExtentReader::poll_requests`] says what to read,
//! [`ExtentReader::answer`] takes the bytes, and [`ExtentReader::next_step`] tells what came
//! of it.

mod assemble;
mod extent_reader;
mod found;
mod known;
mod mirrors;
mod reads;
mod step;
mod walk;

pub use extent_reader::ExtentReader;
pub use known::{Known, KnownTree};
pub use reads::NAMED_DEVICE;
pub use step::{BlockRead, MirrorFault, ReaderError, ReaderStep};
