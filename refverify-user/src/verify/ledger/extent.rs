//! One extent in full form: what the rules look at and what changes do to it.

use std::collections::BTreeMap;

use super::RefChange;
use crate::{
    btrfs::{Action, DiskExtent, ExtentKind, RefKey},
    verify::{
        ExtentDump,
        rules::{self, View},
    },
};

/// What is known of an extent, apart from its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length.
    pub len_bytes: u64,
    /// Data or tree block.
    pub kind: ExtentKind,
    /// How many references it has. At 0 it is not in use.
    pub total_refs: u64,
    /// The generation at which it was read from disk; `None` where its allocation was seen.
    pub from_disk: Option<u64>,
    /// How many changes were made to it since its last allocation, or since it was first read.
    pub actions: u64,
    /// Its references and how often each is held. One that comes down to 0 goes; from disk a
    /// 0 may come.
    pub refs: Refs,
}

impl Default for Extent {
    /// An extent that is nothing yet.
    fn default() -> Self {
        Self {
            len_bytes: 0,
            kind: ExtentKind::Data,
            total_refs: 0,
            from_disk: None,
            actions: 0,
            refs: Refs::default(),
        }
    }
}

impl Extent {
    /// The extent as it was read at `generation`; `actions` is what was known to have been
    /// done to it before.
    pub(in crate::verify) fn of_disk(disk: &DiskExtent, generation: u64, actions: u64) -> Self {
        let mut extent = Self::default();
        extent.set_from_disk(disk, generation, actions);
        extent
    }

    /// As [`Self::of_disk`], in place, so that what is allocated serves again.
    pub(super) fn set_from_disk(&mut self, disk: &DiskExtent, generation: u64, actions: u64) {
        self.len_bytes = disk.len_bytes;
        self.kind = disk.kind;
        self.total_refs = disk.total_refs;
        self.from_disk = Some(generation);
        self.actions = actions;
        self.refs.clear();
        for &(key, count) in &disk.refs {
            self.refs.add(key, u64::from(count));
        }
    }

    /// What a rule about `key` looks at.
    pub(super) fn view(&self, key: &RefKey) -> View {
        View { kind: self.kind, total_refs: self.total_refs, count: self.refs.get(key) }
    }

    /// Whether it is in use.
    pub(in crate::verify) const fn is_live(&self) -> bool {
        self.total_refs != 0
    }

    /// Whether the extent tree would have the same of both.
    pub(in crate::verify) fn is_same_on_disk(&self, other: &Self) -> bool {
        let facts = |extent: &Self| (extent.len_bytes, extent.kind, extent.total_refs);
        facts(self) == facts(other) && self.refs == other.refs
    }

    /// Makes a change that has been judged to be in order.
    pub(super) fn make(&mut self, change: &RefChange) {
        match change.action {
            Action::AddExtent => self.allocate(change),
            Action::AddRef => {
                self.refs.add(change.key, 1);
                self.total_refs = self.total_refs.saturating_add(1);
            }
            Action::DropRef => {
                self.refs.drop_one(&change.key);
                self.total_refs -= 1;
                if self.total_refs == 0 {
                    self.refs.clear();
                }
            }
        }
        self.actions += 1;
    }

    fn allocate(&mut self, change: &RefChange) {
        self.len_bytes = change.len_bytes;
        self.kind = change.kind;
        self.total_refs = 1;
        self.from_disk = None;
        self.actions = 0;
        self.refs.clear();
        self.refs.add(change.key, 1);
    }

    /// Takes a change back that is not an allocation, did not free the extent, and was usual.
    pub(super) fn take_back(&mut self, action: Action, key: &RefKey) {
        if action == Action::AddRef {
            self.refs.drop_one(key);
            self.total_refs -= 1;
        } else {
            self.refs.add(*key, 1);
            self.total_refs += 1;
        }
        self.actions -= 1;
    }

    /// Judges a change against what is known.
    pub(super) fn is_in_order(known: Option<&Self>, change: &RefChange) -> bool {
        let view = known.map(|extent| extent.view(&change.key));
        rules::judge(view, change.action, &change.key).is_ok()
    }

    /// Makes a change to what is known, when it is in order. Returns whether it was.
    pub(super) fn replay(known: &mut Option<Self>, change: &RefChange) -> bool {
        let is_in_order = Self::is_in_order(known.as_ref(), change);
        if is_in_order {
            known.get_or_insert_default().make(change);
        }
        is_in_order
    }

    /// The extent for a report; its actions are the caller's to add.
    pub(in crate::verify) fn dump(&self, bytenr: u64) -> ExtentDump {
        ExtentDump {
            bytenr,
            len_bytes: self.len_bytes,
            kind: self.kind,
            total_refs: self.total_refs,
            from_disk: self.from_disk,
            refs: self.refs.iter().collect(),
            roots: self.refs.direct_per_root(),
            actions: Vec::new(),
            actions_given_up: 0,
        }
    }
}

/// References with their counts, sorted by key.
#[derive(Clone, Debug)]
pub struct Refs(Form);

/// Nearly every extent has few references; one that has a hundred thousand must not make
/// each change slow.
#[derive(Clone, Debug)]
enum Form {
    Few(Vec<(RefKey, u64)>),
    Many(BTreeMap<RefKey, u64>),
}

impl Default for Refs {
    fn default() -> Self {
        Self(Form::Few(Vec::new()))
    }
}

impl Refs {
    const FEW_MAX: usize = 64;

    /// How often a reference is held; `None` where it is not there.
    pub fn get(&self, key: &RefKey) -> Option<u64> {
        match &self.0 {
            Form::Few(list) => list.iter().find(|(known, _)| known == key).map(|&(_, n)| n),
            Form::Many(map) => map.get(key).copied(),
        }
    }

    /// How many different references there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::Few(list) => list.len(),
            Form::Many(map) => map.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The references in order.
    pub fn iter(&self) -> impl Iterator<Item = (RefKey, u64)> {
        let (few, many) = match &self.0 {
            Form::Few(list) => (Some(list), None),
            Form::Many(map) => (None, Some(map)),
        };
        let few = few.into_iter().flatten().copied();
        few.chain(many.into_iter().flatten().map(|(&key, &count)| (key, count)))
    }

    /// The reference and its count, when there is only one.
    pub(super) fn single(&self) -> Option<&(RefKey, u64)> {
        match &self.0 {
            Form::Few(list) => match list.as_slice() {
                [single] => Some(single),
                _ => None,
            },
            Form::Many(_) => None,
        }
    }

    /// Shows the references in order.
    #[inline]
    pub(super) fn each(&self, mut show: impl FnMut(&RefKey, u64)) {
        match &self.0 {
            Form::Few(list) => list.iter().for_each(|(key, count)| show(key, *count)),
            Form::Many(map) => map.iter().for_each(|(key, count)| show(key, *count)),
        }
    }

    /// Direct references per root, sorted by root.
    pub(super) fn direct_per_root(&self) -> Vec<(u64, u64)> {
        let mut roots: Vec<(u64, u64)> = Vec::new();
        for (key, count) in self.iter().filter(|(key, _)| !key.is_shared()) {
            match roots.last_mut() {
                Some((root, sum)) if *root == key.root => *sum = sum.saturating_add(count),
                _ => roots.push((key.root, count)),
            }
        }
        roots
    }

    /// Forgets all; what is allocated for a few is kept.
    pub(super) fn clear(&mut self) {
        match &mut self.0 {
            Form::Few(list) => list.clear(),
            Form::Many(_) => *self = Self::default(),
        }
    }

    /// Holds a reference `count` times more; with 0 it is only known to be there.
    pub(super) fn add(&mut self, key: RefKey, count: u64) {
        match &mut self.0 {
            Form::Few(list) if list.len() < Self::FEW_MAX && is_behind(list, &key) => {
                list.push((key, count));
            }
            Form::Few(list) => match list.binary_search_by(|(known, _)| known.cmp(&key)) {
                Ok(at) => list[at].1 = list[at].1.saturating_add(count),
                Err(at) if list.len() < Self::FEW_MAX => list.insert(at, (key, count)),
                Err(_) => {
                    let mut map: BTreeMap<_, _> = list.drain(..).collect();
                    map.insert(key, count);
                    self.0 = Form::Many(map);
                }
            },
            Form::Many(map) => {
                let held = map.entry(key).or_insert(0);
                *held = held.saturating_add(count);
            }
        }
    }

    /// Holds a reference once less; at 0 it goes.
    pub(super) fn drop_one(&mut self, key: &RefKey) {
        match &mut self.0 {
            Form::Few(list) => {
                let Some(at) = list.iter().position(|(known, _)| known == key) else { return };
                list[at].1 = list[at].1.saturating_sub(1);
                if list[at].1 == 0 {
                    list.remove(at);
                }
            }
            Form::Many(map) => {
                let Some(held) = map.get_mut(key) else { return };
                *held = held.saturating_sub(1);
                if *held == 0 {
                    map.remove(key);
                }
            }
        }
    }
}

fn is_behind(list: &[(RefKey, u64)], key: &RefKey) -> bool {
    list.last().is_none_or(|(last, _)| last < key)
}

impl PartialEq for Refs {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Refs {}

impl FromIterator<(RefKey, u64)> for Refs {
    fn from_iter<I: IntoIterator<Item = (RefKey, u64)>>(refs: I) -> Self {
        let mut all = Self::default();
        for (key, count) in refs {
            all.add(key, count);
        }
        all
    }
}
