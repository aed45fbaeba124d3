//! Reads a recording, up to where it is whole.

use std::io::{self, Read, Seek, SeekFrom};

use bytes::BytesMut;

use super::{
    BLOCK_LEN_MAX,
    block::{BlockHead, HEAD_LEN},
};
use crate::feed::{
    ToVerifier,
    codec::{Carrier, DecodeError, Decoder, Direction, Header},
};

/// A recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PlayerError {
    /// Reading failed.
    #[error("reading the recording failed: {0}")]
    Io(#[from] io::Error),
    /// It is no recording, or one of another version.
    #[error("this recording cannot be replayed: {0}")]
    Header(#[from] DecodeError),
    /// It ends before it began.
    #[error("this recording is too short to be one")]
    TooShort,
}

/// How a recording ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was ended by its recorder.
    Whole,
    /// It breaks off, or is damaged, after this many bytes: what comes later is not known.
    Cut {
        /// How many bytes are whole.
        offset: u64,
        /// What is wrong there, as a clause.
        reason: String,
    },
}

/// Tells a recording's messages again.
#[derive(Debug)]
pub struct Player<R> {
    file: R,
    header: Header,
    /// Where the current block ends.
    offset: u64,
    decoder: Decoder<ToVerifier>,
    /// Frames of the current block that were not told yet.
    frames: BytesMut,
    end: Option<End>,
}

impl<R: Read> Player<R> {
    /// Opens a recording.
    ///
    /// # Errors
    /// It is none, or it cannot be read.
    pub fn new(mut file: R) -> Result<Self, PlayerError> {
        let (header, offset) = read_header(&mut file)?;
        let (decoder, frames) = (Decoder::new(0), BytesMut::new());
        Ok(Self { file, header, offset, decoder, frames, end: None })
    }

    /// What the recording begins with.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// How the recording ended; `None` while there is more to come.
    pub const fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The next message; `None` at the end, of which [`Player::end`] tells more.
    ///
    /// # Errors
    /// The file cannot be read. A damaged one is an end, not an error.
    pub fn next_message(&mut self) -> Result<Option<ToVerifier>, PlayerError> {
        while self.end.is_none() {
            match self.decoder.decode(&mut self.frames) {
                Ok(Some(message)) => return Ok(Some(message)),
                Ok(None) if self.frames.is_empty() => self.next_block()?,
                Ok(None) => self.cut("a block that ends within a message"),
                Err(error) => self.cut(&format!("a block in which {error}")),
            }
        }
        Ok(None)
    }

    fn cut(&mut self, reason: &str) {
        self.end = Some(End::Cut { offset: self.offset, reason: reason.to_owned() });
    }

    fn next_block(&mut self) -> Result<(), PlayerError> {
        match read_block(&mut self.file)? {
            Ok(Block::End) => self.end = Some(End::Whole),
            Ok(Block::Frames { head, frames }) => {
                self.offset += HEAD_LEN as u64 + u64::from(head.packed_len);
                self.frames = BytesMut::from(&frames[..]);
                self.decoder = Decoder::new(0);
            }
            Err(reason) => self.cut(reason),
        }
        Ok(())
    }
}

/// The heads of all whole blocks, with the offsets of their blocks in the file.
///
/// # Errors
/// It is no recording, or it cannot be read.
pub fn index<F: Read + Seek>(mut file: F) -> Result<Vec<(u64, BlockHead)>, PlayerError> {
    let file_len = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let (_, mut offset) = read_header(&mut file)?;
    let mut heads = Vec::new();
    loop {
        file.seek(SeekFrom::Start(offset))?;
        let Ok(head) = read_head(&mut file)? else { break };
        let next = offset + HEAD_LEN as u64 + u64::from(head.packed_len);
        if head.is_end() || next > file_len {
            break;
        }
        heads.push((offset, head));
        offset = next;
    }
    Ok(heads)
}

/// Byte by byte, which needs no more than 395 of them, so that nothing of the blocks is taken.
fn read_header(file: &mut impl Read) -> Result<(Header, u64), PlayerError> {
    let mut buffer = BytesMut::new();
    let mut byte = [0];
    loop {
        if read_full(file, &mut byte)? == 0 {
            return Err(PlayerError::TooShort);
        }
        buffer.extend_from_slice(&byte);
        if let Some(read) = Header::decode(Carrier::Recording, Direction::ToVerifier, &mut buffer)?
        {
            return Ok(read);
        }
    }
}

/// What stands at a place where a block begins.
enum Block {
    Frames { head: BlockHead, frames: Vec<u8> },
    End,
}

/// Or what is wrong there.
type OrCut<T> = Result<T, &'static str>;

fn read_head(file: &mut impl Read) -> io::Result<OrCut<BlockHead>> {
    let mut bytes = [0; HEAD_LEN];
    Ok(match read_full(file, &mut bytes)? {
        0 => Err("no mark of its end"),
        HEAD_LEN => BlockHead::from_bytes(&bytes).ok_or("a damaged block"),
        _ => Err("part of a block"),
    })
}

/// The next block, unpacked.
fn read_block(file: &mut impl Read) -> io::Result<OrCut<Block>> {
    let head = match read_head(file)? {
        Ok(head) if head.is_end() => return Ok(Ok(Block::End)),
        Ok(head) => head,
        Err(reason) => return Ok(Err(reason)),
    };
    let (packed_len, len) = (head.packed_len as usize, head.len as usize);
    let packed_max = lz4_flex::block::get_maximum_output_size(BLOCK_LEN_MAX);
    if len > BLOCK_LEN_MAX || packed_len > packed_max {
        return Ok(Err("a block that is too long"));
    }
    let mut packed = vec![0; packed_len];
    if read_full(file, &mut packed)? < packed_len {
        return Ok(Err("part of a block"));
    }
    if crc32c::crc32c(&packed) != head.checksum {
        return Ok(Err("a damaged block"));
    }
    let mut frames = vec![0; len];
    match lz4_flex::block::decompress_into(&packed, &mut frames) {
        Ok(unpacked) if unpacked == len => Ok(Ok(Block::Frames { head, frames })),
        _ => Ok(Err("a block that cannot be unpacked")),
    }
}

/// Reads until `bytes` is full or the file ends; says how much that was.
fn read_full(file: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
