//! From the bytes of the ring buffer to events.
//!
//! The bytes come from the kernel's memory, which the kernel may have reused: nothing in them
//! is believed before it is checked.

use std::{mem::offset_of, ops::Range, sync::Arc};

use refverify_common::{
    Change as RawChange, ChangeWithStack, FRAMES_MAX, LoggedExtent, RecordKind, RemovedGroup,
    Signal as RawSignal,
};
use zerocopy::FromBytes;

use super::{
    btf::Field,
    layout::{KernelLayout, RefFields},
};
use crate::{
    btrfs::{Action, ExtentKind, RefKey},
    feed::{Change, Comm, Event, FsSlot, Stack},
};

/// The levels of a tree are 0 to 7 (`BTRFS_MAX_LEVEL`).
const LEVELS: u64 = 8;

/// One decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A change.
    Event(Event),
    /// Anything else.
    Signal(Signal),
}

/// Anything that is not a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// The call that made the thread's last event failed; the slot is not always known.
    Retraction {
        /// The file system.
        fs: Option<FsSlot>,
        /// The thread.
        tid: u32,
        /// What was returned; below 0.
        errno: i32,
    },
    /// A superblock is on disk.
    Commit {
        /// The file system.
        fs: FsSlot,
        /// Its generation.
        transid: u64,
    },
    /// A transaction was aborted.
    Abort {
        /// The file system.
        fs: FsSlot,
        /// The transaction.
        transid: u64,
        /// Why; below 0.
        errno: i32,
    },
    /// A mount begins.
    MountBegins {
        /// The slot.
        fs: FsSlot,
        /// The address of its `btrfs_fs_info`.
        fs_info: u64,
    },
    /// A file system that was mounted already is met.
    FsSeen {
        /// The slot.
        fs: FsSlot,
        /// The address of its `btrfs_fs_info`.
        fs_info: u64,
    },
    /// A file system goes.
    FsGone {
        /// The slot.
        fs: FsSlot,
        /// The address of its `btrfs_fs_info`.
        fs_info: u64,
    },
}

/// When a record was made (`CLOCK_MONOTONIC`), as every kind of them has it; 0 if it is too short.
pub(super) fn time_ns(bytes: &[u8]) -> u64 {
    const AT: usize = offset_of!(RawSignal, time_ns);
    const _: () = assert!(AT == offset_of!(RawChange, time_ns));
    let time_ns = bytes.get(AT..).and_then(<[u8]>::first_chunk);
    time_ns.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// A record makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of {len_bytes} bytes makes no sense: {what}")]
pub(super) struct Malformed {
    /// The watched file system, where the record has one.
    pub fs: Option<FsSlot>,
    /// The record's length.
    pub len_bytes: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// Decodes records; shares the stacks that repeat.
#[derive(Debug)]
pub(super) struct Decoder {
    tree: RefFields,
    data: RefFields,
    /// How many slots are watched.
    slots: u32,
    /// Functions that are the tracing's own: not part of a stack.
    tracing: Vec<Range<u64>>,
    stacks: StackCache,
}

impl Decoder {
    /// A decoder for the records of this kernel, with `slots` file systems watched.
    /// Stacks do not begin with a function in one of the ranges `tracing`.
    pub(super) fn new(layout: &KernelLayout, slots: u32, tracing: Vec<Range<u64>>) -> Self {
        let KernelLayout { tree, data, .. } = *layout;
        Self { tree, data, slots, tracing, stacks: StackCache::new() }
    }

    /// Decodes one record.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> Result<Record, Malformed> {
        if bytes.len() == size_of::<RawSignal>() {
            return self.signal(bytes).map(Record::Signal);
        }
        if let Ok(record) = ChangeWithStack::ref_from_bytes(bytes) {
            let frames = self.without_tracing(frames_of(record));
            return self.event(&record.change, frames, bytes.len()).map(Record::Event);
        }
        // The ring buffer aligns records to 8, as the references above and here need it.
        match RawChange::ref_from_bytes(bytes) {
            Ok(change) => self.event(change, &[], bytes.len()).map(Record::Event),
            Err(_) => Err(Malformed { fs: None, len_bytes: bytes.len(), what: "its length" }),
        }
    }

    fn signal(&self, bytes: &[u8]) -> Result<Signal, Malformed> {
        let malformed = |what| Malformed { fs: None, len_bytes: bytes.len(), what };
        let raw = RawSignal::read_from_bytes(bytes).map_err(|_| malformed("its length"))?;
        let kind = RecordKind::from_word(raw.kind).ok_or(malformed("its kind"))?;
        let slot = self.slot(raw.slot);
        if let RecordKind::Retraction = kind {
            return Ok(Signal::Retraction { fs: slot, tid: raw.tid, errno: raw.errno });
        }
        let fs = slot.ok_or(malformed("its slot"))?;
        match kind {
            RecordKind::Commit => Ok(Signal::Commit { fs, transid: raw.value }),
            RecordKind::Abort => Ok(Signal::Abort { fs, transid: raw.value, errno: raw.errno }),
            RecordKind::MountBegins => Ok(Signal::MountBegins { fs, fs_info: raw.value }),
            RecordKind::FsSeen => Ok(Signal::FsSeen { fs, fs_info: raw.value }),
            RecordKind::FsGone => Ok(Signal::FsGone { fs, fs_info: raw.value }),
            _ => Err(malformed("its kind")),
        }
    }

    fn event(
        &mut self,
        raw: &RawChange,
        frames: &[u64],
        len_bytes: usize,
    ) -> Result<Event, Malformed> {
        let fs = self.slot(raw.slot);
        let malformed = |what| Malformed { fs, len_bytes, what };
        let change = self.change(raw).map_err(malformed)?;
        Ok(Event {
            fs: fs.ok_or(malformed("its slot"))?,
            transid: raw.transid,
            time_ns: raw.time_ns,
            cpu: raw.cpu,
            pid: raw.pid,
            tid: raw.tid,
            comm: Comm(raw.comm),
            stack: self.stacks.share(frames),
            change,
        })
    }

    fn change(&self, raw: &RawChange) -> Result<Change, &'static str> {
        match RecordKind::from_word(raw.kind) {
            Some(RecordKind::TreeRef) => tree_ref(&self.tree, raw),
            Some(RecordKind::DataRef) => data_ref(&self.data, raw),
            Some(RecordKind::LoggedExtent) => logged_extent(&raw.payload),
            Some(RecordKind::RemoveGroup) => removed_group(&raw.payload),
            _ => Err("its kind"),
        }
    }

    /// The tracing's fixed frames are skipped in the kernel; one more is there when several
    /// programs, maybe another process's, are attached to a tracepoint.
    fn without_tracing<'a>(&self, frames: &'a [u64]) -> &'a [u64] {
        match frames {
            [first, rest @ ..] if self.tracing.iter().any(|range| range.contains(first)) => rest,
            _ => frames,
        }
    }

    fn slot(&self, word: u32) -> Option<FsSlot> {
        (word < self.slots).then_some(FsSlot(word))
    }
}

/// The frames that the kernel wrote.
fn frames_of(record: &ChangeWithStack) -> &[u64] {
    let written = usize::try_from(record.stack_len_bytes).unwrap_or(0) / size_of::<u64>();
    &record.stack[..written.min(FRAMES_MAX)]
}

fn tree_ref(fields: &RefFields, raw: &RawChange) -> Result<Change, &'static str> {
    let common = Common::read(fields, raw)?;
    if common.owner >= LEVELS {
        return Err("the level of its tree block");
    }
    let level = u8::try_from(common.owner).map_err(|_| "the level of its tree block")?;
    Ok(Change::Ref {
        action: common.action,
        kind: ExtentKind::TreeBlock { level },
        bytenr: common.bytenr,
        len_bytes: common.len_bytes,
        key: RefKey::tree(common.root, common.parent, level),
        owning_root: common.owning_root,
    })
}

fn data_ref(fields: &RefFields, raw: &RawChange) -> Result<Change, &'static str> {
    let common = Common::read(fields, raw)?;
    let offset = fields.offset.and_then(|field| read(&raw.payload, field));
    let offset = offset.ok_or("its payload")?;
    Ok(Change::Ref {
        action: common.action,
        kind: ExtentKind::Data,
        bytenr: common.bytenr,
        len_bytes: common.len_bytes,
        key: RefKey::data(common.root, common.parent, common.owner, offset),
        owning_root: common.owning_root,
    })
}

/// What tree and data references have in common.
struct Common {
    action: Action,
    bytenr: u64,
    len_bytes: u64,
    root: u64,
    parent: u64,
    owner: u64,
    owning_root: u64,
}

impl Common {
    fn read(fields: &RefFields, raw: &RawChange) -> Result<Self, &'static str> {
        let field = |field| read(&raw.payload, field).ok_or("its payload");
        let action = match fields.action {
            Some(in_payload) => field(in_payload)?,
            None => u64::from(raw.action),
        };
        Ok(Self {
            action: action_of(action)?,
            bytenr: field(fields.bytenr)?,
            len_bytes: field(fields.len_bytes)?,
            root: field(fields.root)?,
            parent: field(fields.parent)?,
            owner: field(fields.owner)?,
            owning_root: fields.owning_root.map_or(Ok(0), field)?,
        })
    }
}

/// `enum btrfs_delayed_ref_action`; 4 (`UPDATE_DELAYED_HEAD`) never reaches these hooks.
fn action_of(word: u64) -> Result<Action, &'static str> {
    match word {
        1 => Ok(Action::AddRef),
        2 => Ok(Action::DropRef),
        3 => Ok(Action::AddExtent),
        _ => Err("its action"),
    }
}

fn logged_extent(payload: &[u8]) -> Result<Change, &'static str> {
    let (raw, _) = LoggedExtent::read_from_prefix(payload).map_err(|_| "its payload")?;
    Ok(Change::Ref {
        action: Action::AddExtent,
        kind: ExtentKind::Data,
        bytenr: raw.bytenr,
        len_bytes: raw.len_bytes,
        key: RefKey::data(raw.root, 0, raw.owner, raw.offset),
        owning_root: 0,
    })
}

fn removed_group(payload: &[u8]) -> Result<Change, &'static str> {
    let (raw, _) = RemovedGroup::read_from_prefix(payload).map_err(|_| "its payload")?;
    Ok(Change::RemoveGroup { start: raw.start, len_bytes: raw.len_bytes })
}

/// An unsigned number of 1, 2, 4 or 8 bytes.
fn read(payload: &[u8], field: Field) -> Option<u64> {
    let start = usize::try_from(field.offset).ok()?;
    let len = usize::try_from(field.len_bytes).ok()?;
    let bytes = payload.get(start..start.checked_add(len)?)?;
    match *bytes {
        [byte] => Some(u64::from(byte)),
        [a, b] => Some(u64::from(u16::from_ne_bytes([a, b]))),
        [a, b, c, d] => Some(u64::from(u32::from_ne_bytes([a, b, c, d]))),
        _ => bytes.try_into().ok().map(u64::from_ne_bytes),
    }
}

/// Lets equal stacks share one allocation. A loop in the kernel makes the same few stacks over
/// and over, so a small table that forgets on collision catches nearly all.
#[derive(Debug)]
struct StackCache {
    none: Stack,
    entries: Vec<Stack>,
}

impl StackCache {
    const ENTRIES: usize = 1024;

    fn new() -> Self {
        let none: Stack = Arc::from([]);
        Self { entries: vec![Arc::clone(&none); Self::ENTRIES], none }
    }

    fn share(&mut self, frames: &[u64]) -> Stack {
        if frames.is_empty() {
            return Arc::clone(&self.none);
        }
        let entry = &mut self.entries[hash(frames) % Self::ENTRIES];
        if **entry != *frames {
            *entry = Arc::from(frames);
        }
        Arc::clone(entry)
    }
}

/// FNV-1a over whole frames: they are the kernel's own addresses, chosen by no adversary.
fn hash(frames: &[u64]) -> usize {
    let hash = frames.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &frame| {
        (hash ^ frame).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The low bits of a multiplication know little of the high ones; 32 bits are enough.
    usize::try_from(hash >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests;
