//! Writes a recording.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::BytesMut;

use super::{BLOCK_AGE_NS, BLOCK_LEN, BLOCK_LEN_MAX, block::BlockHead};
use crate::feed::{
    ToVerifier,
    codec::{Carrier, Direction, EncodeError, Encoder, Header},
};

/// A recording cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The file cannot be made.
    #[error("cannot make the recording {}: {source}; name a file that does not exist yet", path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing failed.
    #[error("writing the recording failed: {0}; what it holds so far can be replayed")]
    Io(#[from] io::Error),
    /// A message is too long.
    #[error("a message cannot be recorded: {0}")]
    Encode(#[from] EncodeError),
}

/// Makes the file of a recording, which must not exist: readable by its owner only, since it
/// holds addresses of the kernel, and parts of the disk.
///
/// # Errors
/// [`RecorderError::Create`].
pub fn create_file(path: &Path) -> Result<File, RecorderError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|source| RecorderError::Create { path: path.to_owned(), source })
}

/// Records messages, in the order in which the verifier is told them.
#[derive(Debug)]
pub struct Recorder<W> {
    file: W,
    encoder: Encoder<ToVerifier>,
    frames: BytesMut,
    packed: Vec<u8>,
    head: BlockHead,
    /// The last tick at which a block was written for its age.
    began_ns: u64,
}

impl<W: Write> Recorder<W> {
    /// Begins a recording of this machine, or of a virtual one, for a verifier that makes no
    /// audits, or has so many seconds between them.
    ///
    /// # Errors
    /// Writing fails.
    pub fn new(
        mut file: W,
        vm: Option<&str>,
        audit_seconds: Option<u32>,
    ) -> Result<Self, RecorderError> {
        let header = Header { audit_seconds, ..Header::new(Direction::ToVerifier, vm) };
        let mut bytes = BytesMut::new();
        header.encode(Carrier::Recording, &mut bytes)?;
        file.write_all(&bytes)?;
        Ok(Self {
            file,
            encoder: Encoder::default(),
            frames: BytesMut::new(),
            packed: Vec::new(),
            head: BlockHead::EMPTY,
            began_ns: 0,
        })
    }

    /// Records a message.
    ///
    /// # Errors
    /// Writing fails; the recording ends with the last block that was written.
    pub fn record(&mut self, message: &ToVerifier) -> Result<(), RecorderError> {
        self.encoder.encode(message, &mut self.frames)?;
        self.head.add(message);
        if self.frames.len() >= BLOCK_LEN || self.is_old(message) {
            self.write_block()?;
        }
        Ok(())
    }

    fn is_old(&mut self, message: &ToVerifier) -> bool {
        let &ToVerifier::Tick { time_ns } = message else { return false };
        let old = time_ns.saturating_sub(self.began_ns) >= BLOCK_AGE_NS;
        if old {
            self.began_ns = time_ns;
        }
        old
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// Writing fails.
    pub fn finish(mut self) -> Result<W, RecorderError> {
        if !self.head.is_end() {
            self.write_block()?;
        }
        self.file.write_all(&BlockHead::EMPTY.to_bytes())?;
        self.file.flush()?;
        Ok(self.file)
    }

    #[cfg(test)]
    pub(super) fn into_file_as_it_is(self) -> W {
        self.file
    }

    fn write_block(&mut self) -> Result<(), RecorderError> {
        let (len, max) = (self.frames.len(), BLOCK_LEN_MAX);
        if len > max {
            return Err(EncodeError { what: "bytes of a block", len, max }.into());
        }
        self.packed.resize(lz4_flex::block::get_maximum_output_size(len), 0);
        let packed_len = lz4_flex::block::compress_into(&self.frames, &mut self.packed)
            .map_err(io::Error::other)?;
        let packed = &self.packed[..packed_len];
        self.head.checksum = crc32c::crc32c(packed);
        self.head.packed_len = u32::try_from(packed_len).unwrap_or(u32::MAX);
        self.head.len = u32::try_from(len).unwrap_or(u32::MAX);
        self.file.write_all(&self.head.to_bytes())?;
        self.file.write_all(packed)?;
        self.head = BlockHead::EMPTY;
        self.frames.clear();
        // A block can be read without those before it.
        self.encoder = Encoder::default();
        Ok(())
    }
}
