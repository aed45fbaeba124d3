//! One run: the histories that a commit brought, or some of them merged, sorted by bytenr and never
//! changed.
//!
//! It is kept in pieces that are all of one size. Runs come and go all the time, each as long
//! as its commit was busy; in one block of memory each they would leave holes that fit no other.

use std::ops::Range;

use super::{
    group::{Base, Group, put_group},
    origins::Origins,
    varint::{Reader, put_sectors, put_varint},
};
use crate::verify::history;

/// The histories of one commit, or of some.
#[derive(Debug)]
pub(super) struct Run {
    pieces: Box<[Piece]>,
    base: Base,
    groups: u64,
    actions: u64,
    pub(super) origins: Origins,
    pub(super) number: u64,
    pub(super) newest_transid: u64,
    pub(super) stage: Stage,
}

/// How much of a run is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Whole,
    Essential,
    Tombstones,
}

/// Some groups, one after the other: the distance from the bytenr of the one before, the length of
/// the body, the body.
#[derive(Debug)]
struct Piece {
    /// The bytenr of the first.
    first: u64,
    bytes: Vec<u8>,
}

/// The room of a piece; a group that is larger has one of its own size. Allocators keep a few
/// bytes beside each block, and many round up to a page what is a little larger than one.
const PIECE_BYTES: usize = 4096 - 32;

impl Piece {
    fn new(first: u64, len_bytes: usize) -> Self {
        Self { first, bytes: Vec::with_capacity(len_bytes.max(PIECE_BYTES)) }
    }

    fn has_room(&self, len_bytes: usize) -> bool {
        self.bytes.capacity() - self.bytes.len() >= len_bytes
    }

    /// The bytenrs of its groups, and their bodies.
    fn bodies(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut reader = Reader::new(&self.bytes, 0);
        let mut bytenr = self.first;
        std::iter::from_fn(move || {
            if reader.is_at_end() {
                return None;
            }
            bytenr = bytenr.wrapping_add(reader.sectors()?);
            let len: usize = reader.varint()?.try_into().ok()?;
            Some((bytenr, reader.take(len)?))
        })
    }
}

/// Builds a run from groups in order of bytenr.
#[derive(Debug)]
pub(super) struct RunBuilder {
    pieces: Vec<Piece>,
    /// A group's body, until it is known how long it is.
    body: Vec<u8>,
    base: Option<Base>,
    last_bytenr: u64,
    newest_transid: u64,
    groups: u64,
    actions: u64,
    pub(super) per_extent: usize,
}

impl RunBuilder {
    /// The most that stands before a body: two integers.
    const HEAD_MAX_BYTES: usize = 20;

    pub(super) fn new(per_extent: usize) -> Self {
        Self {
            pieces: Vec::new(),
            body: Vec::new(),
            base: None,
            last_bytenr: 0,
            newest_transid: 0,
            groups: 0,
            actions: 0,
            per_extent,
        }
    }

    /// Appends a group; the bound on each extent is applied.
    pub(super) fn push(&mut self, group: &mut Group) {
        history::bound(&mut group.actions, self.per_extent);
        if let Some(act) = group.actions.iter().max_by_key(|act| act.transid) {
            self.newest_transid = self.newest_transid.max(act.transid);
        }
        let first = group.actions.first();
        let base = *self.base.get_or_insert_with(|| {
            first.map_or(Base::default(), |act| Base { transid: act.transid, time_ns: act.time_ns })
        });
        self.groups += 1;
        self.actions += group.actions.len() as u64;
        self.body.clear();
        put_group(&mut self.body, group, base);
        self.put_body(group.bytenr);
    }

    fn put_body(&mut self, bytenr: u64) {
        let len_bytes = self.body.len() + Self::HEAD_MAX_BYTES;
        if !self.pieces.last().is_some_and(|piece| piece.has_room(len_bytes)) {
            self.pieces.push(Piece::new(bytenr, len_bytes));
            self.last_bytenr = bytenr;
        }
        let Some(Piece { bytes, .. }) = self.pieces.last_mut() else { return };
        put_sectors(bytes, bytenr.wrapping_sub(self.last_bytenr));
        put_varint(bytes, self.body.len() as u64);
        bytes.extend_from_slice(&self.body);
        self.last_bytenr = bytenr;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.groups == 0
    }

    /// The run: its number, the newest transaction that it knows of, and what is left of it are
    /// the caller's.
    pub(super) fn finish(
        mut self,
        origins: Origins,
        number: u64,
        newest_transid: u64,
        stage: Stage,
    ) -> Run {
        if let Some(last) = self.pieces.last_mut() {
            last.bytes.shrink_to_fit();
        }
        Run {
            pieces: self.pieces.into_boxed_slice(),
            base: self.base.unwrap_or_default(),
            groups: self.groups,
            actions: self.actions,
            origins,
            number,
            newest_transid: newest_transid.max(self.newest_transid),
            stage,
        }
    }
}

impl Run {
    /// The bodies of the groups from the piece on in which `bytenr` would be.
    fn bodies_from(&self, bytenr: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let beyond = self.pieces.partition_point(|piece| piece.first <= bytenr);
        self.pieces[beyond.saturating_sub(1)..].iter().flat_map(Piece::bodies)
    }

    /// All of its groups, in order.
    pub(super) fn groups(&self) -> impl Iterator<Item = Group> {
        let bodies = self.bodies_from(0);
        bodies.filter_map(|(bytenr, body)| Group::read(bytenr, body, self.base))
    }

    /// What it knows of one extent.
    pub(super) fn find(&self, bytenr: u64) -> Option<Group> {
        let (at, body) = self.bodies_from(bytenr).find(|&(at, _)| at >= bytenr)?;
        if at == bytenr { Group::read(at, body, self.base) } else { None }
    }

    pub(super) fn has_any_in(&self, range: &Range<u64>) -> bool {
        let first = self.bodies_from(range.start).find(|&(at, _)| at >= range.start);
        first.is_some_and(|(at, _)| at < range.end)
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        let pieces = self.pieces.iter().map(|piece| size_of::<Piece>() + piece.bytes.capacity());
        size_of::<Self>() + pieces.sum::<usize>() + self.origins.bytes()
    }

    /// Whether giving up all but what is essential would be worth it.
    pub(super) const fn has_surplus(&self) -> bool {
        self.actions > self.groups + self.groups / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        btrfs::{Action, RefKey},
        verify::ledger::{group::Act, origins::Numbering},
    };

    const EXTENTS: u64 = 3000;

    fn act(transid: u64) -> Act {
        let key = RefKey::data(5, 0, 257, 4096);
        Act { action: Action::AddRef, key, transid, time_ns: transid, task: 0, stack: 0 }
    }

    /// Every thousandth extent has more actions than a piece has room for.
    fn group(number: u64) -> Group {
        let count = if number % 1000 == 500 { 2000 } else { 1 + number % 3 };
        let actions: Vec<_> = (0..count).map(|at| act(number + at * 7)).collect();
        Group { bytenr: number * 8192, done: count, actions, ..Group::default() }
    }

    fn run() -> Run {
        let mut builder = RunBuilder::new(usize::MAX);
        for number in 0..EXTENTS {
            builder.push(&mut group(number));
        }
        builder.finish(Numbering::default().into_origins(), 0, 0, Stage::Whole)
    }

    #[test]
    fn every_group_is_found_in_its_piece_and_none_where_none_is() {
        let run = run();
        assert!(run.pieces.len() > 10);
        assert!(run.groups().eq((0..EXTENTS).map(group)));
        for number in 0..EXTENTS {
            assert_eq!(run.find(number * 8192), Some(group(number)));
            assert_eq!(run.find(number * 8192 + 4096), None);
        }
        assert!(run.has_any_in(&(8192..8193)) && run.has_any_in(&(1..8193)));
        assert!(!run.has_any_in(&(1..8192)) && !run.has_any_in(&(EXTENTS * 8192..u64::MAX)));
    }

    #[test]
    fn pieces_are_of_one_size_but_for_the_last_and_what_is_larger() {
        let run = run();
        let (last, others) = run.pieces.split_last().unwrap();
        assert!(last.bytes.capacity() <= PIECE_BYTES);
        let larger = others.iter().filter(|piece| piece.bytes.capacity() > PIECE_BYTES).count();
        assert_eq!(larger as u64, EXTENTS / 1000);
        let counted: usize = run.pieces.iter().map(|piece| piece.bytes.capacity()).sum();
        assert!(run.bytes() > counted && run.bytes() < counted * 103 / 100);
    }
}
