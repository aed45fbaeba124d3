//! The body of each message.
//!
//! A frame's payload is one byte that names the message, then its fields:
//!
//! | kind | message | fields |
//! |---|---|---|
//! | 1 | hello | kernel release `text`; mode `u8`: 1 kprobes, 2 tracepoints; hooks, unseen, devices: each a `uint` count and so many `text` |
//! | 2 | mount | file system `uint`; device `text`; first usable generation `uint` |
//! | 3 | events | count `uint`; the events, see `event` |
//! | 4 | drained | |
//! | 5 | retraction | tid `uint`; errno `sint` |
//! | 6 | loss | file system `uint`: 0 all, else 1 + number; source `u8`: 1 ring buffer, 2 program missed, 3 unreadable, 4 out of order; count `uint` |
//! | 7 | commit | file system `uint`; transid `uint` |
//! | 8 | abort | file system `uint`; transid `uint`; errno `sint` |
//! | 9 | unmount | file system `uint` |
//! | 10 | block | file system `uint`; id `uint`; result `u8`: 0 length `uint` and the bytes; 1 I/O error: device `text`, offset `uint`, length `uint`, reason `text`; 2 no device: devid `uint`; 3 refused: offset `uint`, length `uint` |
//! | 11 | symbols | count `uint`; each address as `sint` more than the one before, then `text` |
//! | 12 | dump wanted | |
//! | 13 | tick | time in ns `uint` |
//! | 14 | bye | |
//! | 65 | read | file system `uint`; id `uint`; devid `uint`; offset `uint`; length `uint` |
//! | 66 | symbolise | count `uint`; each address as `sint` more than the one before |
//! | 67 | stop | |
//! | 68 | dump | |

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    DecodeError, EncodeError,
    event::{self, put_events},
    limits::{HELLO_LIST_MAX, SYMBOL_LEN_MAX, SYMBOLS_MAX, TEXT_LEN_MAX},
    stacks::{StackReader, StackWriter},
    wire::{Cursor, put_len, put_sint, put_text, put_uint},
};
use crate::feed::{
    BlockAnswer, BlockError, BlockRequest, FsSlot, Hello, HookMode, Loss, LossSource, Mount,
    ToAgent, ToVerifier,
};

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const MOUNT: u8 = 2;
    pub(super) const EVENTS: u8 = 3;
    pub(super) const DRAINED: u8 = 4;
    pub(super) const RETRACTION: u8 = 5;
    pub(super) const LOSS: u8 = 6;
    pub(super) const COMMIT: u8 = 7;
    pub(super) const ABORT: u8 = 8;
    pub(super) const UNMOUNT: u8 = 9;
    pub(super) const BLOCK: u8 = 10;
    pub(super) const SYMBOLS: u8 = 11;
    pub(super) const DUMP_WANTED: u8 = 12;
    pub(super) const TICK: u8 = 13;
    pub(super) const BYE: u8 = 14;
    pub(super) const READ: u8 = 65;
    pub(super) const SYMBOLISE: u8 = 66;
    pub(super) const STOP: u8 = 67;
    pub(super) const DUMP: u8 = 68;
}

/// Appends the body of a message to the verifier. Long lists have been split already.
pub(super) fn put_to_verifier(
    out: &mut BytesMut,
    message: &ToVerifier,
    stacks: &mut StackWriter,
) -> Result<(), EncodeError> {
    match message {
        ToVerifier::Hello(hello) => put_hello(out, hello)?,
        ToVerifier::Mount(mount) => put_mount(out, mount)?,
        ToVerifier::Events(events) => put_events_message(out, events, stacks)?,
        ToVerifier::Drained => out.put_u8(kind::DRAINED),
        ToVerifier::Retraction { tid, errno } => {
            out.put_u8(kind::RETRACTION);
            put_uint(out, (*tid).into());
            put_errno(out, *errno);
        }
        ToVerifier::Loss(loss) => put_loss(out, loss),
        ToVerifier::Commit { fs, transid } => {
            out.put_u8(kind::COMMIT);
            put_uint(out, fs.0.into());
            put_uint(out, *transid);
        }
        ToVerifier::Abort { fs, transid, errno } => {
            out.put_u8(kind::ABORT);
            put_uint(out, fs.0.into());
            put_uint(out, *transid);
            put_errno(out, *errno);
        }
        ToVerifier::Unmount { fs } => {
            out.put_u8(kind::UNMOUNT);
            put_uint(out, fs.0.into());
        }
        ToVerifier::Block(answer) => put_block(out, answer)?,
        ToVerifier::Symbols(symbols) => put_symbols_message(out, symbols)?,
        ToVerifier::DumpWanted => out.put_u8(kind::DUMP_WANTED),
        ToVerifier::Tick { time_ns } => {
            out.put_u8(kind::TICK);
            put_uint(out, *time_ns);
        }
        ToVerifier::Bye => out.put_u8(kind::BYE),
    }
    Ok(())
}

pub(super) fn put_events_message(
    out: &mut BytesMut,
    events: &[crate::feed::Event],
    stacks: &mut StackWriter,
) -> Result<(), EncodeError> {
    out.put_u8(kind::EVENTS);
    put_events(out, events, stacks)
}

pub(super) fn put_symbols_message(
    out: &mut BytesMut,
    symbols: &[(u64, Arc<str>)],
) -> Result<(), EncodeError> {
    out.put_u8(kind::SYMBOLS);
    put_uint(out, symbols.len() as u64);
    let mut before = 0;
    for (address, text) in symbols {
        put_sint(out, address.wrapping_sub(before));
        put_text(out, "bytes of a symbol", text, SYMBOL_LEN_MAX)?;
        before = *address;
    }
    Ok(())
}

fn put_errno(out: &mut BytesMut, errno: i32) {
    put_sint(out, i64::from(errno).cast_unsigned());
}

fn put_hello(out: &mut BytesMut, hello: &Hello) -> Result<(), EncodeError> {
    let Hello { kernel_release, mode, hooks, unseen, devices } = hello;
    out.put_u8(kind::HELLO);
    put_text(out, "bytes of kernel release", kernel_release, TEXT_LEN_MAX)?;
    out.put_u8(match mode {
        HookMode::Kprobes => 1,
        HookMode::Tracepoints => 2,
    });
    put_texts(out, "hooks", hooks)?;
    put_texts(out, "sentences on what is unseen", unseen)?;
    put_texts(out, "devices", devices)
}

fn put_texts(out: &mut BytesMut, what: &'static str, texts: &[String]) -> Result<(), EncodeError> {
    put_len(out, what, texts.len(), HELLO_LIST_MAX)?;
    texts.iter().try_for_each(|text| put_text(out, "bytes of a text", text, TEXT_LEN_MAX))
}

fn put_mount(out: &mut BytesMut, mount: &Mount) -> Result<(), EncodeError> {
    let Mount { fs, device, first_usable_generation } = mount;
    out.put_u8(kind::MOUNT);
    put_uint(out, fs.0.into());
    put_text(out, "bytes of a device's path", device, TEXT_LEN_MAX)?;
    put_uint(out, *first_usable_generation);
    Ok(())
}

fn put_loss(out: &mut BytesMut, loss: &Loss) {
    let Loss { fs, source, count } = *loss;
    out.put_u8(kind::LOSS);
    put_uint(out, fs.map_or(0, |fs| u64::from(fs.0) + 1));
    out.put_u8(match source {
        LossSource::RingBuffer => 1,
        LossSource::ProgramMissed => 2,
        LossSource::Unreadable => 3,
        LossSource::OutOfOrder => 4,
    });
    put_uint(out, count);
}

fn put_block(out: &mut BytesMut, answer: &BlockAnswer) -> Result<(), EncodeError> {
    let BlockAnswer { fs, id, data } = answer;
    out.put_u8(kind::BLOCK);
    put_uint(out, fs.0.into());
    put_uint(out, *id);
    match data {
        Ok(bytes) => {
            out.put_u8(0);
            put_len(out, "bytes of a block", bytes.len(), BlockRequest::LEN_MAX_BYTES as usize)?;
            out.put_slice(bytes);
        }
        Err(error) => put_block_error(out, error)?,
    }
    Ok(())
}

fn put_block_error(out: &mut BytesMut, error: &BlockError) -> Result<(), EncodeError> {
    match error {
        BlockError::Io { device, offset, len_bytes, reason } => {
            out.put_u8(1);
            put_text(out, "bytes of a device's path", device, TEXT_LEN_MAX)?;
            put_uint(out, *offset);
            put_uint(out, (*len_bytes).into());
            put_text(out, "bytes of a reason", reason, TEXT_LEN_MAX)?;
        }
        BlockError::NoDevice { devid } => {
            out.put_u8(2);
            put_uint(out, *devid);
        }
        BlockError::Refused { offset, len_bytes } => {
            out.put_u8(3);
            put_uint(out, *offset);
            put_uint(out, (*len_bytes).into());
        }
    }
    Ok(())
}

/// Appends the body of a message to the agent. Long lists have been split already.
pub(super) fn put_to_agent(out: &mut BytesMut, message: &ToAgent) {
    match message {
        ToAgent::Read(BlockRequest { fs, id, devid, offset, len_bytes }) => {
            out.put_u8(kind::READ);
            put_uint(out, fs.0.into());
            put_uint(out, *id);
            put_uint(out, *devid);
            put_uint(out, *offset);
            put_uint(out, (*len_bytes).into());
        }
        ToAgent::Symbolise(addresses) => put_symbolise(out, addresses),
        ToAgent::Stop => out.put_u8(kind::STOP),
        ToAgent::Dump => out.put_u8(kind::DUMP),
    }
}

pub(super) fn put_symbolise(out: &mut BytesMut, addresses: &[u64]) {
    out.put_u8(kind::SYMBOLISE);
    put_uint(out, addresses.len() as u64);
    let mut before = 0;
    for &address in addresses {
        put_sint(out, address.wrapping_sub(before));
        before = address;
    }
}

/// Takes a message to the verifier.
pub(super) fn to_verifier(
    cursor: &mut Cursor<'_>,
    stacks: &mut StackReader,
) -> Result<ToVerifier, DecodeError> {
    let message = match cursor.u8("a message's kind")? {
        kind::HELLO => ToVerifier::Hello(hello(cursor)?),
        kind::MOUNT => ToVerifier::Mount(mount(cursor)?),
        kind::EVENTS => ToVerifier::Events(event::events(cursor, stacks)?),
        kind::DRAINED => ToVerifier::Drained,
        kind::RETRACTION => {
            ToVerifier::Retraction { tid: cursor.uint32("tid")?, errno: cursor.sint32("errno")? }
        }
        kind::LOSS => ToVerifier::Loss(loss(cursor)?),
        kind::COMMIT => ToVerifier::Commit { fs: fs(cursor)?, transid: cursor.uint("transid")? },
        kind::ABORT => ToVerifier::Abort {
            fs: fs(cursor)?,
            transid: cursor.uint("transid")?,
            errno: cursor.sint32("errno")?,
        },
        kind::UNMOUNT => ToVerifier::Unmount { fs: fs(cursor)? },
        kind::BLOCK => ToVerifier::Block(block(cursor)?),
        kind::SYMBOLS => ToVerifier::Symbols(symbols(cursor)?),
        kind::DUMP_WANTED => ToVerifier::DumpWanted,
        kind::TICK => ToVerifier::Tick { time_ns: cursor.uint("time")? },
        kind::BYE => ToVerifier::Bye,
        other => return Err(cursor.unknown("message to a verifier", other)),
    };
    cursor.end()?;
    Ok(message)
}

fn fs(cursor: &mut Cursor<'_>) -> Result<FsSlot, DecodeError> {
    cursor.uint32("a file system's number").map(FsSlot)
}

fn hello(cursor: &mut Cursor<'_>) -> Result<Hello, DecodeError> {
    Ok(Hello {
        kernel_release: cursor.string("bytes of kernel release", TEXT_LEN_MAX)?,
        mode: match cursor.u8("mode")? {
            1 => HookMode::Kprobes,
            2 => HookMode::Tracepoints,
            other => return Err(cursor.unknown("mode of hooks", other)),
        },
        hooks: texts(cursor, "hooks")?,
        unseen: texts(cursor, "sentences on what is unseen")?,
        devices: texts(cursor, "devices")?,
    })
}

fn texts(cursor: &mut Cursor<'_>, what: &'static str) -> Result<Vec<String>, DecodeError> {
    let count = cursor.len(what, HELLO_LIST_MAX, 1)?;
    (0..count).map(|_| cursor.string("bytes of a text", TEXT_LEN_MAX)).collect()
}

fn mount(cursor: &mut Cursor<'_>) -> Result<Mount, DecodeError> {
    Ok(Mount {
        fs: fs(cursor)?,
        device: cursor.string("bytes of a device's path", TEXT_LEN_MAX)?,
        first_usable_generation: cursor.uint("generation")?,
    })
}

fn loss(cursor: &mut Cursor<'_>) -> Result<Loss, DecodeError> {
    let what = "a file system's number";
    let fs = match cursor.uint(what)? {
        0 => None,
        number => match u32::try_from(number - 1) {
            Ok(slot) => Some(FsSlot(slot)),
            Err(_) => return Err(cursor.wrong(super::Wrong::TooBig { what, bits: 32 })),
        },
    };
    let source = match cursor.u8("source of loss")? {
        1 => LossSource::RingBuffer,
        2 => LossSource::ProgramMissed,
        3 => LossSource::Unreadable,
        4 => LossSource::OutOfOrder,
        other => return Err(cursor.unknown("source of loss", other)),
    };
    Ok(Loss { fs, source, count: cursor.uint("count of lost events")? })
}

fn block(cursor: &mut Cursor<'_>) -> Result<BlockAnswer, DecodeError> {
    let fs = fs(cursor)?;
    let id = cursor.uint("a request's id")?;
    let data = match cursor.u8("result of a read")? {
        0 => Ok(block_bytes(cursor)?),
        1 => Err(BlockError::Io {
            device: cursor.string("bytes of a device's path", TEXT_LEN_MAX)?,
            offset: cursor.uint("offset")?,
            len_bytes: cursor.uint32("length")?,
            reason: cursor.string("bytes of a reason", TEXT_LEN_MAX)?,
        }),
        2 => Err(BlockError::NoDevice { devid: cursor.uint("devid")? }),
        3 => Err(BlockError::Refused {
            offset: cursor.uint("offset")?,
            len_bytes: cursor.uint32("length")?,
        }),
        other => return Err(cursor.unknown("result of a read", other)),
    };
    Ok(BlockAnswer { fs, id, data })
}

/// Copied out of the frame: a small block that is kept must not keep a large buffer.
fn block_bytes(cursor: &mut Cursor<'_>) -> Result<Bytes, DecodeError> {
    let len = cursor.len("bytes of a block", BlockRequest::LEN_MAX_BYTES as usize, 1)?;
    cursor.take("a block", len).map(Bytes::copy_from_slice)
}

fn symbols(cursor: &mut Cursor<'_>) -> Result<Vec<(u64, Arc<str>)>, DecodeError> {
    let count = cursor.len("symbols", SYMBOLS_MAX, 2)?;
    let mut address = 0_u64;
    let mut symbol = || {
        address = address.wrapping_add(cursor.sint("address")?);
        Ok((address, cursor.shared_text("bytes of a symbol", SYMBOL_LEN_MAX)?))
    };
    (0..count).map(|_| symbol()).collect()
}

/// Takes a message to the agent.
pub(super) fn to_agent(cursor: &mut Cursor<'_>) -> Result<ToAgent, DecodeError> {
    let message = match cursor.u8("a message's kind")? {
        kind::READ => ToAgent::Read(BlockRequest {
            fs: fs(cursor)?,
            id: cursor.uint("a request's id")?,
            devid: cursor.uint("devid")?,
            offset: cursor.uint("offset")?,
            len_bytes: cursor.uint32("length")?,
        }),
        kind::SYMBOLISE => ToAgent::Symbolise(addresses(cursor)?),
        kind::STOP => ToAgent::Stop,
        kind::DUMP => ToAgent::Dump,
        other => return Err(cursor.unknown("message to an agent", other)),
    };
    cursor.end()?;
    Ok(message)
}

fn addresses(cursor: &mut Cursor<'_>) -> Result<Vec<u64>, DecodeError> {
    let count = cursor.len("addresses", SYMBOLS_MAX, 1)?;
    let mut address = 0_u64;
    let mut next = || {
        address = address.wrapping_add(cursor.sint("address")?);
        Ok(address)
    };
    (0..count).map(|_| next()).collect()
}
