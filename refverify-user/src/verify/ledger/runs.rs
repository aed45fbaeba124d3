//! Histories of what is durable: what each commit brought is one run, sorted by bytenr, and
//! never changed. What happened to one extent is gathered from the runs, newest first, when a
//! report needs it; nothing is looked up to judge.
//!
//! An extent that was freed is only here: the action that freed it is its tombstone.
//!
//! Where memory is short, the oldest runs give up first what explains least: of each extent
//! all but the allocation, the drop to zero and the newest; then all but tombstones; then
//! these.

use std::{collections::VecDeque, ops::Range};

use super::{
    Extent, Kept,
    codes::{kind_code, kind_of_code, put_from_disk, read_from_disk},
    origins::{Numbering, Origins},
    varint::{Reader, put_sectors, put_signed, put_signed_sectors, put_varint},
};
use crate::{
    btrfs::{Action, ExtentKind, RefKey},
    verify::{ActionRecord, history},
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

/// The histories of one commit, or of some.
#[derive(Debug)]
pub(super) struct Run {
    bytes: Box<[u8]>,
    /// Every so many groups: a bytenr and where its group begins.
    index: Box<[(u64, u32)]>,
    origins: Origins,
    base: Base,
    number: u64,
    newest_transid: u64,
    groups: u64,
    actions: u64,
    stage: Stage,
}

/// How much of a run is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Whole,
    Essential,
    Tombstones,
}

/// What transids and times in a run are written relative to.
#[derive(Clone, Copy, Debug, Default)]
struct Base {
    transid: u64,
    time_ns: u64,
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

const GROUPS_PER_INDEX: u64 = 32;

/// Builds a run from groups in order of bytenr.
#[derive(Debug)]
pub(super) struct RunBuilder {
    bytes: Vec<u8>,
    index: Vec<(u64, u32)>,
    base: Option<Base>,
    last_bytenr: u64,
    newest_transid: u64,
    groups: u64,
    actions: u64,
    per_extent: usize,
}

impl RunBuilder {
    pub(super) fn new(per_extent: usize) -> Self {
        Self {
            bytes: Vec::new(),
            index: Vec::new(),
            base: None,
            last_bytenr: 0,
            newest_transid: 0,
            groups: 0,
            actions: 0,
            per_extent,
        }
    }

    /// Makes room for what so many actions take, about.
    pub(super) fn reserve(&mut self, actions: usize) {
        self.bytes.reserve(actions * 24);
    }

    /// Appends a group; the bound on each extent is applied.
    pub(super) fn push(&mut self, group: &mut Group) {
        history::bound(&mut group.actions, self.per_extent);
        if let Some(act) = group.actions.iter().max_by_key(|act| act.transid) {
            self.newest_transid = self.newest_transid.max(act.transid);
        }
        if self.groups.is_multiple_of(GROUPS_PER_INDEX) {
            self.index.push((group.bytenr, self.bytes.len() as u32));
            self.last_bytenr = group.bytenr;
        }
        let first = group.actions.first();
        let base = *self.base.get_or_insert_with(|| {
            first.map_or(Base::default(), |act| Base { transid: act.transid, time_ns: act.time_ns })
        });
        self.groups += 1;
        self.actions += group.actions.len() as u64;
        put_sectors(&mut self.bytes, group.bytenr.wrapping_sub(self.last_bytenr));
        self.last_bytenr = group.bytenr;
        // Its size takes one byte, nearly always.
        let size_at = self.bytes.len();
        self.bytes.push(0);
        put_group(&mut self.bytes, group, base);
        let size = self.bytes.len() - size_at - 1;
        if size < 0x80 {
            self.bytes[size_at] = size as u8;
        } else {
            let body = self.bytes.split_off(size_at + 1);
            self.bytes.truncate(size_at);
            put_varint(&mut self.bytes, size as u64);
            self.bytes.extend_from_slice(&body);
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.groups == 0
    }

    fn finish(self, origins: Origins, number: u64, newest_transid: u64, stage: Stage) -> Run {
        Run {
            bytes: self.bytes.into_boxed_slice(),
            index: self.index.into_boxed_slice(),
            origins,
            base: self.base.unwrap_or_default(),
            number,
            newest_transid: newest_transid.max(self.newest_transid),
            groups: self.groups,
            actions: self.actions,
            stage,
        }
    }
}

fn put_group(out: &mut Vec<u8>, group: &Group, base: Base) {
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

    fn read(bytenr: u64, body: &[u8], base: Base) -> Option<Self> {
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

impl Run {
    /// The bodies of the groups from an entry of the index on.
    fn bodies(&self, from: usize) -> impl Iterator<Item = (u64, &[u8])> {
        let at = self.index.get(from).map_or(self.bytes.len(), |&(_, at)| at as usize);
        let mut reader = Reader::new(&self.bytes, at);
        let mut bytenr = 0;
        let mut number = from as u64 * GROUPS_PER_INDEX;
        std::iter::from_fn(move || {
            if reader.is_at_end() {
                return None;
            }
            if number.is_multiple_of(GROUPS_PER_INDEX) {
                bytenr = self.index.get((number / GROUPS_PER_INDEX) as usize)?.0;
            }
            number += 1;
            bytenr = bytenr.wrapping_add(reader.sectors()?);
            let len: usize = reader.varint()?.try_into().ok()?;
            Some((bytenr, reader.take(len)?))
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group> {
        self.bodies(0).filter_map(|(bytenr, body)| Group::read(bytenr, body, self.base))
    }

    fn find(&self, bytenr: u64) -> Option<Group> {
        let from = self.index.partition_point(|&(first, _)| first <= bytenr).checked_sub(1)?;
        let (at, body) = self.bodies(from).find(|&(at, _)| at >= bytenr)?;
        if at == bytenr { Group::read(at, body, self.base) } else { None }
    }

    fn has_any_in(&self, range: &Range<u64>) -> bool {
        let from = self.index.partition_point(|&(first, _)| first <= range.start);
        let mut bodies = self.bodies(from.saturating_sub(1));
        bodies.find(|&(at, _)| at >= range.start).is_some_and(|(at, _)| at < range.end)
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.bytes.len()
            + self.index.len() * size_of::<(u64, u32)>()
            + self.origins.bytes()
    }

    /// Whether giving up all but what is essential would be worth it.
    const fn has_surplus(&self) -> bool {
        self.actions > self.groups + self.groups / 2
    }
}

/// What is known of the past of one extent.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The actions, oldest first.
    pub(super) actions: Vec<ActionRecord>,
    /// How many there were, kept or not.
    pub(super) done: u64,
    /// Set when it has no reference left.
    pub(super) grave: Option<Grave>,
}

/// All runs, oldest first.
#[derive(Debug, Default)]
pub(super) struct Runs {
    list: VecDeque<Run>,
    next_number: u64,
    bytes: usize,
    /// Ranges whose older runs are void: their block groups went.
    hidden: Vec<Hidden>,
    history_after: u64,
    tombstones_after: u64,
}

#[derive(Clone, Debug)]
struct Hidden {
    range: Range<u64>,
    before: u64,
}

impl Runs {
    /// Small runs, as quick commits bring them, are merged up to this size.
    const MERGED_MAX_BYTES: usize = 256 << 10;

    /// Says what has been given up.
    pub(super) const fn tell(&self, kept: &mut Kept) {
        kept.history_bytes = self.bytes as u64;
        kept.history_after = self.history_after;
        kept.tombstones_after = self.tombstones_after;
    }

    /// Takes what a commit brought.
    pub(super) fn push(&mut self, builder: RunBuilder, origins: Origins) {
        if builder.is_empty() {
            return;
        }
        let per_extent = builder.per_extent;
        let run = builder.finish(origins, self.next_number, 0, Stage::Whole);
        self.next_number += 1;
        self.bytes += run.bytes();
        self.list.push_back(run);
        while self.should_merge() {
            self.merge_newest(per_extent);
        }
    }

    fn should_merge(&self) -> bool {
        let mut newest = self.list.iter().rev().map(Run::bytes);
        let (Some(newer), Some(older)) = (newest.next(), newest.next()) else { return false };
        older < 2 * newer && older + newer <= Self::MERGED_MAX_BYTES
    }

    fn merge_newest(&mut self, per_extent: usize) {
        let (Some(newer), Some(older)) = (self.list.pop_back(), self.list.pop_back()) else {
            return;
        };
        self.bytes -= newer.bytes() + older.bytes();
        let merged = self.merge(&older, &newer, per_extent);
        self.bytes += merged.bytes();
        self.list.push_back(merged);
    }

    fn merge(&self, older: &Run, newer: &Run, per_extent: usize) -> Run {
        let mut numbering = Numbering::default();
        let mut builder = RunBuilder::new(per_extent);
        let mut old = self.visible(older).peekable();
        for mut group in self.visible(newer) {
            while let Some(mut before) = old.next_if(|old| old.bytenr < group.bytenr) {
                before.renumber(&mut numbering, &older.origins);
                builder.push(&mut before);
            }
            group.renumber(&mut numbering, &newer.origins);
            if let Some(mut before) = old.next_if(|old| old.bytenr == group.bytenr)
                && !group.begins_anew
            {
                before.renumber(&mut numbering, &older.origins);
                before.actions.append(&mut group.actions);
                group.actions = before.actions;
                group.begins_anew = before.begins_anew;
            }
            builder.push(&mut group);
        }
        for mut before in old {
            before.renumber(&mut numbering, &older.origins);
            builder.push(&mut before);
        }
        let newest = older.newest_transid.max(newer.newest_transid);
        let stage = older.stage.max(newer.stage);
        builder.finish(numbering.into_origins(), newer.number, newest, stage)
    }

    fn visible<'a>(&'a self, run: &'a Run) -> impl Iterator<Item = Group> + 'a {
        run.groups().filter(|group| !self.is_hidden(run.number, group.bytenr))
    }

    fn is_hidden(&self, number: u64, bytenr: u64) -> bool {
        self.hidden.iter().any(|hidden| number < hidden.before && hidden.range.contains(&bytenr))
    }

    /// Everything known of the range up to now is void.
    pub(super) fn hide(&mut self, range: Range<u64>) {
        if !self.list.is_empty() && !range.is_empty() {
            self.hidden.push(Hidden { range, before: self.next_number });
        }
    }

    /// Whether anything is known in a range.
    pub(super) fn has_any_in(&self, range: &Range<u64>) -> bool {
        self.list.iter().any(|run| run.has_any_in(range))
    }

    /// What is known of an extent, if anything is.
    pub(super) fn past(&self, bytenr: u64) -> Option<Past> {
        let mut past: Option<Past> = None;
        for run in self.list.iter().rev() {
            if self.is_hidden(run.number, bytenr) {
                break;
            }
            let Some(group) = run.find(bytenr) else { continue };
            let past = past.get_or_insert_with(|| Past {
                done: group.done,
                grave: group.grave,
                ..Past::default()
            });
            let records = group.actions.iter().filter_map(|act| act.record(&run.origins));
            past.actions.splice(0..0, records);
            if group.begins_anew {
                break;
            }
        }
        past
    }

    /// Gives up the oldest until no more than `limit_bytes` are held.
    pub(super) fn fit(&mut self, limit_bytes: usize, per_extent: usize) {
        while self.bytes > limit_bytes && !self.list.is_empty() {
            self.give_up_some(per_extent);
        }
        let oldest = self.list.front().map_or(self.next_number, |run| run.number);
        self.hidden.retain(|hidden| hidden.before > oldest);
    }

    fn give_up_some(&mut self, per_extent: usize) {
        let whole = self.list.iter().position(|run| run.stage == Stage::Whole);
        let essential = self.list.iter().position(|run| run.stage == Stage::Essential);
        match (whole, essential) {
            (Some(at), _) if self.list[at].has_surplus() => {
                self.thin(at, Stage::Essential, per_extent);
            }
            (Some(at), _) | (None, Some(at)) => self.thin(at, Stage::Tombstones, per_extent),
            (None, None) => self.give_up_oldest(),
        }
    }

    fn give_up_oldest(&mut self) {
        let Some(run) = self.list.pop_front() else { return };
        self.bytes -= run.bytes();
        self.history_after = self.history_after.max(run.newest_transid);
        self.tombstones_after = self.tombstones_after.max(run.newest_transid);
    }

    fn thin(&mut self, at: usize, stage: Stage, per_extent: usize) {
        let run = &self.list[at];
        let mut numbering = Numbering::default();
        let mut builder = RunBuilder::new(per_extent);
        for mut group in self.visible(run) {
            keep(&mut group, stage);
            if stage == Stage::Essential || group.begins_anew || group.grave.is_some() {
                group.renumber(&mut numbering, &run.origins);
                builder.push(&mut group);
            }
        }
        let thinned =
            builder.finish(numbering.into_origins(), run.number, run.newest_transid, stage);
        self.bytes = self.bytes - run.bytes() + thinned.bytes();
        self.history_after = self.history_after.max(run.newest_transid);
        self.list[at] = thinned;
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

/// Gives up what a stage no longer has.
fn keep(group: &mut Group, stage: Stage) {
    match stage {
        Stage::Whole => {}
        // The drop to zero is the newest of its life.
        Stage::Essential => history::bound(&mut group.actions, 2),
        Stage::Tombstones if group.grave.is_some() => {
            let surplus = group.actions.len().saturating_sub(1);
            group.actions.drain(..surplus);
        }
        Stage::Tombstones => group.actions.clear(),
    }
}
