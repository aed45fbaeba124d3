//! What one run of histories knows of one extent, and how it is written: the actions, oldest
//! first, each relative to the one before.

use super::{
    Extent,
    codes::{kind_code, kind_of_code, put_from_disk, read_from_disk},
    origins::{Numbering, Origins},
    varint::{Reader, put_sectors, put_signed, put_signed_sectors, put_varint},
};
use crate::{
    btrfs::{Action, ExtentKind, RefKey},
    verify::ActionRecord,
};

/// One action; task and stack are numbers of the run's origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Act {
    pub(super) action: Action,
    pub(super) key: RefKey,
    pub(super) transid: u64,
    pub(super) time_ns: u64,
    pub(super) task: u32,
    pub(super) stack: u32,
}

impl Act {
    /// In full form.
    pub(super) fn record(&self, origins: &Origins) -> Option<ActionRecord> {
        let task = origins.task(self.task)?;
        Some(ActionRecord {
            action: self.action,
            key: self.key,
            transid: self.transid,
            time_ns: self.time_ns,
            pid: task.pid,
            tid: task.tid,
            comm: task.comm,
            stack: origins.stack(self.stack)?.clone(),
        })
    }
}

/// What an extent was that has no reference left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grave {
    pub(super) kind: ExtentKind,
    pub(super) len_bytes: u64,
    pub(super) from_disk: Option<u64>,
}

impl Grave {
    pub(super) const fn of(extent: &Extent) -> Self {
        let Extent { kind, len_bytes, from_disk, .. } = *extent;
        Self { kind, len_bytes, from_disk }
    }

    /// The extent without references.
    pub(super) fn extent(&self, actions: u64) -> Extent {
        let Self { kind, len_bytes, from_disk } = *self;
        Extent { len_bytes, kind, from_disk, actions, ..Extent::default() }
    }
}

/// What one run knows of one extent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) bytenr: u64,
    /// What older runs know is of an earlier life of this bytenr.
    pub(super) begins_anew: bool,
    /// How many actions there were up to the last here, kept or not.
    pub(super) done: u64,
    /// Set when the extent was left without references.
    pub(super) grave: Option<Grave>,
    /// The actions, oldest first.
    pub(super) actions: Vec<Act>,
}

/// What transids and times in a run are written relative to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Base {
    pub(super) transid: u64,
    pub(super) time_ns: u64,
}

const BEGINS_ANEW: u8 = 1;
const HAS_GRAVE: u8 = 2;

const ACTION_MASK: u8 = 0x03;
const SAME_KEY: u8 = 0x04;
const SHARED: u8 = 0x08;
const IRREGULAR: u8 = 0x10;
const SAME_TRANSID: u8 = 0x20;
const SAME_TASK: u8 = 0x40;
const SAME_STACK: u8 = 0x80;

impl Group {
    /// Adds an action.
    pub(super) fn remember(&mut self, act: &Act) {
        if act.action == Action::AddExtent {
            self.begin_anew();
        }
        self.actions.push(*act);
    }

    /// Gives the actions, whose tasks and stacks have numbers of `from`, numbers of `numbering`.
    pub(super) fn renumber(&mut self, numbering: &mut Numbering, from: &Origins) {
        for act in &mut self.actions {
            (act.task, act.stack) = numbering.renumber((act.task, act.stack), from);
        }
    }

    /// Whether anything was done.
    pub(super) fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// What was done so far is of an earlier life.
    pub(super) fn begin_anew(&mut self) {
        self.begins_anew = true;
        self.actions.clear();
        self.done = 0;
        self.grave = None;
    }

    /// Reads the body of a group.
    pub(super) fn read(bytenr: u64, body: &[u8], base: Base) -> Option<Self> {
        let mut reader = Reader::new(body, 0);
        let flags = reader.byte()?;
        let done = reader.varint()?;
        let count = reader.varint()?;
        let grave = if flags & HAS_GRAVE == 0 {
            None
        } else {
            Some(Grave {
                kind: kind_of_code(reader.varint()?)?,
                len_bytes: reader.sectors()?,
                from_disk: read_from_disk(&mut reader).ok()?,
            })
        };
        let mut last = Last::new(base);
        let mut actions = Vec::new();
        for _ in 0..count {
            actions.push(last.read(&mut reader)?);
        }
        Some(Self { bytenr, begins_anew: flags & BEGINS_ANEW != 0, done, grave, actions })
    }
}

pub(super) fn put_group(out: &mut Vec<u8>, group: &Group, base: Base) {
    let anew = if group.begins_anew { BEGINS_ANEW } else { 0 };
    out.push(anew | if group.grave.is_some() { HAS_GRAVE } else { 0 });
    put_varint(out, group.done);
    put_varint(out, group.actions.len() as u64);
    if let Some(grave) = &group.grave {
        put_varint(out, kind_code(grave.kind));
        put_sectors(out, grave.len_bytes);
        put_from_disk(out, grave.from_disk);
    }
    let mut last = Last::new(base);
    for act in &group.actions {
        last.put(out, act);
    }
}

/// What the next action of a group is written relative to.
struct Last {
    base: Base,
    key: RefKey,
    transid: u64,
    task: u32,
    stack: u32,
}

impl Last {
    fn new(base: Base) -> Self {
        let key = RefKey { root: 0, parent: 0, owner: 0, offset: 0 };
        Self { base, key, transid: base.transid, task: 0, stack: 0 }
    }

    fn put(&mut self, out: &mut Vec<u8>, act: &Act) {
        let same = |is_same: bool, flag: u8| if is_same { flag } else { 0 };
        let head = action_code(act.action)
            | same(act.key == self.key, SAME_KEY)
            | same(act.transid == self.transid, SAME_TRANSID)
            | same(act.task == self.task, SAME_TASK)
            | same(act.stack == self.stack, SAME_STACK);
        let head_at = out.len();
        out.push(head);
        if act.key != self.key {
            out[head_at] |= put_key(out, &act.key);
        }
        if act.transid != self.transid {
            put_signed(out, act.transid.wrapping_sub(self.transid));
        }
        put_signed(out, act.time_ns.wrapping_sub(self.base.time_ns));
        if act.task != self.task {
            put_varint(out, u64::from(act.task));
        }
        if act.stack != self.stack {
            put_varint(out, u64::from(act.stack));
        }
        (self.key, self.transid, self.task, self.stack) =
            (act.key, act.transid, act.task, act.stack);
    }

    fn read(&mut self, reader: &mut Reader<'_>) -> Option<Act> {
        let head = reader.byte()?;
        let action = action_of_code(head & ACTION_MASK)?;
        if head & SAME_KEY == 0 {
            self.key = read_key(reader, head)?;
        }
        if head & SAME_TRANSID == 0 {
            self.transid = self.transid.wrapping_add(reader.signed()?);
        }
        let time_ns = self.base.time_ns.wrapping_add(reader.signed()?);
        if head & SAME_TASK == 0 {
            self.task = reader.varint()?.try_into().ok()?;
        }
        if head & SAME_STACK == 0 {
            self.stack = reader.varint()?.try_into().ok()?;
        }
        let Self { key, transid, task, stack, .. } = *self;
        Some(Act { action, key, transid, time_ns, task, stack })
    }
}

fn put_key(out: &mut Vec<u8>, key: &RefKey) -> u8 {
    if !key.is_shared() {
        put_signed(out, key.root);
        put_varint(out, key.owner);
        put_signed_sectors(out, key.offset);
        0
    } else if key.root == 0 && key.offset == 0 {
        put_sectors(out, key.parent);
        put_varint(out, key.owner);
        SHARED
    } else {
        for value in [key.root, key.parent, key.owner, key.offset] {
            put_varint(out, value);
        }
        IRREGULAR
    }
}

fn read_key(reader: &mut Reader<'_>, head: u8) -> Option<RefKey> {
    let mut key = RefKey { root: 0, parent: 0, owner: 0, offset: 0 };
    if head & IRREGULAR != 0 {
        key.root = reader.varint()?;
        key.parent = reader.varint()?;
        key.owner = reader.varint()?;
        key.offset = reader.varint()?;
    } else if head & SHARED != 0 {
        key.parent = reader.sectors()?;
        key.owner = reader.varint()?;
    } else {
        key.root = reader.signed()?;
        key.owner = reader.varint()?;
        key.offset = reader.signed_sectors()?;
    }
    Some(key)
}

const fn action_code(action: Action) -> u8 {
    match action {
        Action::AddRef => 0,
        Action::DropRef => 1,
        Action::AddExtent => 2,
    }
}

const fn action_of_code(code: u8) -> Option<Action> {
    match code {
        0 => Some(Action::AddRef),
        1 => Some(Action::DropRef),
        2 => Some(Action::AddExtent),
        _ => None,
    }
}

/// Reads whatever the bytes are as a group, for fuzzing: nothing may panic, and what is read must
/// come back when it is written again.
pub(super) fn read_anything(bytes: &[u8]) {
    let base = Base::default();
    let Some(group) = Group::read(0, bytes, base) else { return };
    let mut again = Vec::new();
    put_group(&mut again, &group, base);
    assert_eq!(Group::read(0, &again, base), Some(group), "a group changed on its way");
}
