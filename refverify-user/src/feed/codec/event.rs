//! Events, each told by how it differs from the one before it in the same frame.
//!
//! | what | as | when |
//! |---|---|---|
//! | flags | `u8` | always |
//! | pid, tid, comm | `uint`, `uint`, 16 bytes | unless flag `0x10` |
//! | cpu | `uint` | unless flag `0x80` |
//! | file system, transid | `uint`, `uint` | unless flag `0x08` |
//! | time, more than the event before | `sint` in ns, wrapping | always |
//! | stack | see `stacks` | unless flag `0x20` |
//! | level | `u8` | flag `0x04` |
//! | bytenr, length | `uint`, `uint` | always; of a block group: its start and length |
//! | root, parent, owner, offset | `sint`, `uint`, `uint`, `sint` | a reference |
//! | owning root | `sint` | a reference, unless flag `0x40` |
//!
//! Flags: the two low bits are the kernel's action (1 add, 2 drop, 3 add extent), or 0 for the
//! removal of a block group. `0x04`: a tree block, else data. `0x08`: file system and transid
//! are those of the event before. `0x10`: so are pid, tid and comm. `0x20`: so is the stack.
//! `0x40`: the owning root is 0. `0x80`: the CPU is that of the event before. Before the first
//! event of a frame all of these are 0, and the stack is empty.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::{
    DecodeError, EncodeError, Wrong,
    limits::EVENTS_MAX,
    stacks::{StackReader, StackWriter},
    wire::{Cursor, put_sint, put_uint},
};
use crate::{
    btrfs::{Action, ExtentKind, RefKey},
    feed::{Change, Comm, Event, FsSlot, Stack},
};

const ACTION: u8 = 0x03;
const TREE_BLOCK: u8 = 0x04;
const SAME_TRANSACTION: u8 = 0x08;
const SAME_TASK: u8 = 0x10;
const SAME_STACK: u8 = 0x20;
const NO_OWNING_ROOT: u8 = 0x40;
const SAME_CPU: u8 = 0x80;

/// The shortest: flags, time, start and length of a block group.
const LEN_MIN: usize = 4;

/// What the next event is compared with.
struct Before {
    fs: FsSlot,
    transid: u64,
    time_ns: u64,
    cpu: u32,
    pid: u32,
    tid: u32,
    comm: Comm,
    stack: Stack,
}

impl Before {
    fn first(empty: Stack) -> Self {
        let (fs, comm) = (FsSlot(0), Comm::default());
        Self { fs, transid: 0, time_ns: 0, cpu: 0, pid: 0, tid: 0, comm, stack: empty }
    }

    fn flags_of(&self, event: &Event) -> u8 {
        let mut flags = change_flags(&event.change);
        if self.fs == event.fs && self.transid == event.transid {
            flags |= SAME_TRANSACTION;
        }
        if self.pid == event.pid && self.tid == event.tid && self.comm == event.comm {
            flags |= SAME_TASK;
        }
        if Arc::ptr_eq(&self.stack, &event.stack) || self.stack == event.stack {
            flags |= SAME_STACK;
        }
        if self.cpu == event.cpu {
            flags |= SAME_CPU;
        }
        flags
    }

    fn move_to(&mut self, event: &Event) {
        let &Event { fs, transid, time_ns, cpu, pid, tid, comm, ref stack, change: _ } = event;
        if !Arc::ptr_eq(&self.stack, stack) {
            self.stack = Arc::clone(stack);
        }
        self.fs = fs;
        self.transid = transid;
        self.time_ns = time_ns;
        self.cpu = cpu;
        self.pid = pid;
        self.tid = tid;
        self.comm = comm;
    }
}

const fn change_flags(change: &Change) -> u8 {
    let &Change::Ref { action, kind, owning_root, .. } = change else { return 0 };
    let action = match action {
        Action::AddRef => 1,
        Action::DropRef => 2,
        Action::AddExtent => 3,
    };
    let tree_block = match kind {
        ExtentKind::Data => 0,
        ExtentKind::TreeBlock { .. } => TREE_BLOCK,
    };
    action | tree_block | if owning_root == 0 { NO_OWNING_ROOT } else { 0 }
}

/// Appends a list of events, of which there may be [`EVENTS_MAX`].
pub(super) fn put_events(
    out: &mut BytesMut,
    events: &[Event],
    stacks: &mut StackWriter,
) -> Result<(), EncodeError> {
    put_uint(out, events.len() as u64);
    let mut before = Before::first(Arc::from([]));
    for event in events {
        put_event(out, event, &before, stacks)?;
        before.move_to(event);
    }
    Ok(())
}

fn put_event(
    out: &mut BytesMut,
    event: &Event,
    before: &Before,
    stacks: &mut StackWriter,
) -> Result<(), EncodeError> {
    let flags = before.flags_of(event);
    out.put_u8(flags);
    if flags & SAME_TASK == 0 {
        put_uint(out, event.pid.into());
        put_uint(out, event.tid.into());
        out.put_slice(&event.comm.0);
    }
    if flags & SAME_CPU == 0 {
        put_uint(out, event.cpu.into());
    }
    if flags & SAME_TRANSACTION == 0 {
        put_uint(out, event.fs.0.into());
        put_uint(out, event.transid);
    }
    put_sint(out, event.time_ns.wrapping_sub(before.time_ns));
    if flags & SAME_STACK == 0 {
        stacks.put(out, &event.stack)?;
    }
    put_change(out, &event.change);
    Ok(())
}

fn put_change(out: &mut BytesMut, change: &Change) {
    match *change {
        Change::RemoveGroup { start, len_bytes } => {
            put_uint(out, start);
            put_uint(out, len_bytes);
        }
        Change::Ref { action: _, kind, bytenr, len_bytes, key, owning_root } => {
            if let ExtentKind::TreeBlock { level } = kind {
                out.put_u8(level);
            }
            put_uint(out, bytenr);
            put_uint(out, len_bytes);
            put_sint(out, key.root);
            put_uint(out, key.parent);
            put_uint(out, key.owner);
            put_sint(out, key.offset);
            if owning_root != 0 {
                put_sint(out, owning_root);
            }
        }
    }
}

/// Takes a list of events.
pub(super) fn events(
    cursor: &mut Cursor<'_>,
    stacks: &mut StackReader,
) -> Result<Vec<Event>, DecodeError> {
    let count = cursor.len("events", EVENTS_MAX, LEN_MIN)?;
    let mut events = Vec::with_capacity(count);
    let mut before = Before::first(stacks.empty());
    for _ in 0..count {
        let event = event(cursor, &before, stacks)?;
        before.move_to(&event);
        events.push(event);
    }
    Ok(events)
}

fn event(
    cursor: &mut Cursor<'_>,
    before: &Before,
    stacks: &mut StackReader,
) -> Result<Event, DecodeError> {
    let flags = cursor.u8("an event's flags")?;
    let (pid, tid, comm) = if flags & SAME_TASK == 0 {
        (cursor.uint32("pid")?, cursor.uint32("tid")?, Comm(cursor.array("comm")?))
    } else {
        (before.pid, before.tid, before.comm)
    };
    let cpu = if flags & SAME_CPU == 0 { cursor.uint32("cpu")? } else { before.cpu };
    let (fs, transid) = if flags & SAME_TRANSACTION == 0 {
        (FsSlot(cursor.uint32("a file system's number")?), cursor.uint("transid")?)
    } else {
        (before.fs, before.transid)
    };
    let time_ns = before.time_ns.wrapping_add(cursor.sint("time")?);
    let stack =
        if flags & SAME_STACK == 0 { stacks.get(cursor)? } else { Arc::clone(&before.stack) };
    let change = change(cursor, flags)?;
    Ok(Event { fs, transid, time_ns, cpu, pid, tid, comm, stack, change })
}

fn change(cursor: &mut Cursor<'_>, flags: u8) -> Result<Change, DecodeError> {
    let action = match flags & ACTION {
        1 => Action::AddRef,
        2 => Action::DropRef,
        3 => Action::AddExtent,
        _ => return remove_group(cursor, flags),
    };
    let kind = if flags & TREE_BLOCK == 0 {
        ExtentKind::Data
    } else {
        ExtentKind::TreeBlock { level: cursor.u8("level")? }
    };
    let bytenr = cursor.uint("bytenr")?;
    let len_bytes = cursor.uint("length")?;
    let key = RefKey {
        root: cursor.sint("root")?,
        parent: cursor.uint("parent")?,
        owner: cursor.uint("owner")?,
        offset: cursor.sint("offset")?,
    };
    let owning_root = if flags & NO_OWNING_ROOT == 0 { cursor.sint("owning root")? } else { 0 };
    Ok(Change::Ref { action, kind, bytenr, len_bytes, key, owning_root })
}

fn remove_group(cursor: &mut Cursor<'_>, flags: u8) -> Result<Change, DecodeError> {
    if flags & (TREE_BLOCK | NO_OWNING_ROOT) != 0 {
        let what = "combination of an event's flags";
        return Err(cursor.wrong(Wrong::Unknown { what, value: flags.into() }));
    }
    Ok(Change::RemoveGroup {
        start: cursor.uint("a block group's start")?,
        len_bytes: cursor.uint("a block group's length")?,
    })
}
