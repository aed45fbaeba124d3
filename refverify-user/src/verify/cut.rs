//! The cut: which generation of the extent tree each range of bytenrs was read at, and the
//! events of the ranges that are still to be read.
//!
//! Superblock generation G contains exactly the changes of the transactions up to G: all
//! delayed references of a transaction run before its commit roots are switched
//! (`btrfs_commit_transaction`, 5.10 to 7.3). So an event is applied if and only if its
//! transid is above the generation at which its bytenr was read.

use std::{collections::BTreeMap, ops::Range};

use crate::feed::{Change, Event};

/// How far one range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// To be read, at this generation or a later one.
    Unread { min_generation: u64 },
    /// Read at this generation.
    Read { generation: u64 },
}

/// What is to be done with an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// The disk, as read or as it will be read, contains it.
    OnDisk,
    /// It is to be judged now.
    Apply,
    /// Its range has not been read yet.
    Wait,
}

/// A range that is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    /// The bytenrs.
    pub(crate) range: Range<u64>,
    /// The first generation that will do.
    pub(crate) min_generation: u64,
}

impl Waiting {
    /// An event with the place that it had.
    pub(crate) const fn new(arrival: u64, event: Event) -> Self {
        Self { arrival, event }
    }

    /// Its place in the order of arrival.
    pub(crate) const fn arrival(&self) -> u64 {
        self.arrival
    }
}

/// The marks of one file system, for as long as one mount, and the events that wait.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Start of each range; it reaches to the next one's. Never empty, begins with 0.
    marks: BTreeMap<u64, Mark>,
    /// By bytenr.
    waiting: BTreeMap<u64, Vec<Waiting>>,
    waiting_count: usize,
    arrivals: u64,
    /// Events that waited, and were dropped because the disk will answer for them.
    left_to_disk: u64,
}

/// An event that waits, with its place in the order of arrival.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    arrival: u64,
    /// The event.
    pub(crate) event: Event,
}

impl Cut {
    /// How many events may wait. When there are more, those that wait are dropped and their
    /// ranges are read at a generation that contains them: that costs a wait for the next
    /// commit, and loses nothing.
    const WAITING_MAX: usize = 1 << 20;

    /// Nothing is read yet, and generations from `min_generation` on will do.
    pub(crate) fn new(min_generation: u64) -> Self {
        Self {
            marks: BTreeMap::from([(0, Mark::Unread { min_generation })]),
            waiting: BTreeMap::new(),
            waiting_count: 0,
            arrivals: 0,
            left_to_disk: 0,
        }
    }

    fn mark(&self, bytenr: u64) -> Mark {
        let (_, &mark) = self.marks.range(..=bytenr).next_back().expect("a mark begins at 0");
        mark
    }

    /// Where the range that `bytenr` lies in ends.
    fn border_after(&self, bytenr: u64) -> u64 {
        let next = self
            .marks
            .range((std::ops::Bound::Excluded(bytenr), std::ops::Bound::Unbounded))
            .next();
        next.map_or(u64::MAX, |(&start, _)| start)
    }

    /// What is to be done with an event of `transid` at `bytenr`.
    pub(crate) fn ruling(&self, bytenr: u64, transid: u64) -> Ruling {
        match self.mark(bytenr) {
            Mark::Unread { min_generation } if transid > min_generation => Ruling::Wait,
            Mark::Read { generation } if transid > generation => Ruling::Apply,
            _ => Ruling::OnDisk,
        }
    }

    /// Cuts a range at the borders of what was read when, in order.
    pub(crate) fn split(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut pieces = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let end = self.border_after(start).min(range.end);
            pieces.push(start..end);
            start = end;
        }
        pieces
    }

    /// Keeps an event until its range is read. Arrival order is kept per range released.
    pub(crate) fn wait(&mut self, bytenr: u64, event: Event) {
        self.arrivals += 1;
        let arrival = self.arrivals;
        self.wait_again(bytenr, Waiting { arrival, event });
        if self.waiting_count > Self::WAITING_MAX {
            self.read_later();
        }
    }

    /// Keeps an event, or what is left of it, that waited already; its place in the order of
    /// arrival stays.
    pub(crate) fn wait_again(&mut self, bytenr: u64, waiting: Waiting) {
        self.waiting.entry(bytenr).or_default().push(waiting);
        self.waiting_count += 1;
    }

    /// Too much waits: let the disk answer for it.
    fn read_later(&mut self) {
        let newest = self.waiting.values().flatten().map(|one| one.event.transid).max();
        let Some(newest) = newest else { return };
        self.waiting.clear();
        self.left_to_disk += self.waiting_count as u64;
        self.waiting_count = 0;
        for mark in self.marks.values_mut() {
            if let Mark::Unread { min_generation } = mark {
                *min_generation = newest.max(*min_generation);
            }
        }
    }

    /// A range has been read. Returns the events that waited for it, in the order in which
    /// they came; they are to be ruled on again, now against the generation read. Parts that
    /// need a later generation stay unread.
    pub(crate) fn read(&mut self, range: Range<u64>, generation: u64) -> Vec<Waiting> {
        let mut released = Vec::new();
        for piece in self.split(range) {
            if self.is_served_by(piece.start, generation) {
                self.set(piece.clone(), Mark::Read { generation });
                released.append(&mut self.take_waiting(piece));
            }
        }
        released.sort_by_key(|waiting| waiting.arrival);
        released
    }

    fn is_served_by(&self, bytenr: u64, generation: u64) -> bool {
        matches!(self.mark(bytenr), Mark::Unread { min_generation } if min_generation <= generation)
    }

    fn take_waiting(&mut self, range: Range<u64>) -> Vec<Waiting> {
        let mut taken = self.waiting.split_off(&range.start);
        self.waiting.append(&mut taken.split_off(&range.end));
        let released: Vec<_> = taken.into_values().flatten().collect();
        self.waiting_count -= released.len();
        released
    }

    /// A range is to be read, or read again, at `min_generation` or later.
    pub(crate) fn unread(&mut self, range: Range<u64>, min_generation: u64) {
        let min_generation = self.newest_needed(&range).max(min_generation);
        self.set(range, Mark::Unread { min_generation });
    }

    /// What is unread already keeps the generation it asked for.
    fn newest_needed(&self, range: &Range<u64>) -> u64 {
        let needed = self.split(range.clone()).into_iter().filter_map(|piece| {
            match self.mark(piece.start) {
                Mark::Unread { min_generation } => Some(min_generation),
                Mark::Read { .. } => None,
            }
        });
        needed.max().unwrap_or(0)
    }

    fn set(&mut self, range: Range<u64>, mark: Mark) {
        if range.is_empty() {
            return;
        }
        let after = self.mark(range.end);
        let inside: Vec<u64> = self.marks.range(range.clone()).map(|(&start, _)| start).collect();
        for start in inside {
            self.marks.remove(&start);
        }
        if range.end != u64::MAX {
            self.marks.entry(range.end).or_insert(after);
        }
        self.marks.insert(range.start, mark);
        self.join(range.end);
        self.join(range.start);
    }

    /// Makes one range of two neighbours that are alike.
    fn join(&mut self, start: u64) {
        if start == 0 || !self.marks.contains_key(&start) {
            return;
        }
        if self.mark(start - 1) == self.mark(start) {
            self.marks.remove(&start);
        }
    }

    /// The first range that is to be read and can be when the disk is at `durable`.
    pub(crate) fn first_unread(&self, durable: u64) -> Option<Unread> {
        self.unread_ranges().find(|unread| unread.min_generation <= durable)
    }

    /// All ranges that are to be read, in order.
    pub(crate) fn unread_ranges(&self) -> impl Iterator<Item = Unread> {
        self.marks.iter().filter_map(|(&start, mark)| match *mark {
            Mark::Unread { min_generation } => {
                Some(Unread { range: start..self.border_after(start), min_generation })
            }
            Mark::Read { .. } => None,
        })
    }

    /// Superblock `durable` is on disk: no event of a transaction up to it will come any
    /// more, so ranges that were read at different generations up to it are alike from here.
    pub(crate) fn settle(&mut self, durable: u64) {
        for mark in self.marks.values_mut() {
            if let Mark::Read { generation } = mark
                && *generation <= durable
            {
                *generation = durable;
            }
        }
        let starts: Vec<u64> = self.marks.keys().copied().collect();
        for start in starts {
            self.join(start);
        }
    }

    /// Drops the events that wait for a range and are in the tree of `generation`: that is
    /// what the range will be read at, or later.
    pub(crate) fn reading_moved(&mut self, range: Range<u64>, generation: u64) {
        for (_, events) in self.waiting.range_mut(range) {
            let before = events.len();
            events.retain(|one| one.event.transid > generation);
            let dropped = before - events.len();
            self.waiting_count -= dropped;
            self.left_to_disk += dropped as u64;
        }
        self.waiting.retain(|_, events| !events.is_empty());
    }

    /// How many events that waited were dropped because their range is read at a generation
    /// that contains them.
    pub(crate) const fn left_to_disk(&self) -> u64 {
        self.left_to_disk
    }

    /// How many ranges are told apart.
    pub(crate) fn ranges(&self) -> usize {
        self.marks.len()
    }

    /// How many events wait.
    pub(crate) const fn waiting(&self) -> usize {
        self.waiting_count
    }
}

/// Where an event lies: its extent, or the part of the block group that it removes.
pub(crate) fn place(change: &Change) -> Range<u64> {
    match *change {
        Change::Ref { bytenr, .. } => bytenr..bytenr.saturating_add(1),
        Change::RemoveGroup { start, len_bytes } => start..start.saturating_add(len_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        btrfs::Action,
        verify::testing::{data_event, event},
    };

    fn add(bytenr: u64, transid: u64) -> Event {
        data_event(Action::AddRef, bytenr, 0, transid)
    }

    #[test]
    fn an_event_is_applied_only_above_the_generation_its_range_was_read_at() {
        let mut cut = Cut::new(0);
        assert_eq!(cut.ruling(4096, 9), Ruling::Wait);
        cut.read(0..8192, 9);
        assert_eq!(cut.ruling(4096, 9), Ruling::OnDisk);
        assert_eq!(cut.ruling(4096, 10), Ruling::Apply);
        assert_eq!(cut.ruling(8192, 9), Ruling::Wait);
    }

    #[test]
    fn ranges_read_at_different_generations_keep_their_own_watermarks() {
        let mut cut = Cut::new(0);
        cut.read(0..100, 9);
        cut.read(100..200, 12);
        assert_eq!(cut.ruling(99, 11), Ruling::Apply);
        assert_eq!(cut.ruling(100, 11), Ruling::OnDisk);
    }

    #[test]
    fn events_are_released_in_the_order_in_which_they_came() {
        let mut cut = Cut::new(0);
        for (bytenr, transid) in [(50, 10), (10, 10), (50, 11), (500, 11), (10, 12)] {
            cut.wait(bytenr, add(bytenr, transid));
        }
        let released = cut.read(0..100, 9);
        let order: Vec<_> =
            released.iter().map(|w| (place(&w.event.change).start, w.event.transid)).collect();
        assert_eq!(order, [(50, 10), (10, 10), (50, 11), (10, 12)]);
        assert_eq!(cut.waiting(), 1);
    }

    #[test]
    fn events_that_the_superblock_contains_do_not_go_on_waiting() {
        let mut cut = Cut::new(0);
        cut.wait(10, add(10, 10));
        cut.wait(10, add(10, 12));
        cut.reading_moved(0..u64::MAX, 11);
        assert_eq!(cut.waiting(), 1);
    }

    #[test]
    fn too_many_waiting_events_are_left_to_the_disk_and_never_forgotten() {
        let mut cut = Cut::new(0);
        for n in 0..=Cut::WAITING_MAX as u64 {
            cut.wait(n % 1000, add(n % 1000, 10 + n % 3));
        }
        assert_eq!(cut.waiting(), 0);
        assert_eq!(cut.ruling(5, 12), Ruling::OnDisk);
        assert_eq!(cut.ruling(5, 13), Ruling::Wait);
        // A tree that does not contain what was dropped must not be believed.
        cut.read(0..u64::MAX, 11);
        assert_eq!(cut.ruling(5, 13), Ruling::Wait);
        cut.read(0..u64::MAX, 12);
        assert_eq!(cut.ruling(5, 13), Ruling::Apply);
    }

    #[test]
    fn a_distrusted_extent_is_read_again_no_earlier_than_its_transaction() {
        let mut cut = Cut::new(0);
        cut.read(0..u64::MAX, 9);
        cut.unread(4096..4097, 12);
        assert_eq!(cut.first_unread(11), None);
        assert_eq!(cut.first_unread(12), Some(Unread { range: 4096..4097, min_generation: 12 }));
        assert_eq!(cut.ruling(4096, 12), Ruling::OnDisk);
        assert_eq!(cut.ruling(4096, 13), Ruling::Wait);
        assert_eq!(cut.ruling(4097, 12), Ruling::Apply);
        cut.read(4096..4097, 12);
        assert_eq!(cut.unread_ranges().count(), 0);
    }

    #[test]
    fn a_second_distrust_does_not_lower_the_generation_that_the_first_one_needs() {
        let mut cut = Cut::new(0);
        cut.read(0..u64::MAX, 9);
        cut.unread(4096..4097, 14);
        cut.unread(4096..4097, 12);
        assert_eq!(cut.first_unread(13), None);
    }

    #[test]
    fn distrust_in_a_range_that_is_being_read_survives_an_older_reading() {
        let mut cut = Cut::new(0);
        cut.unread(4096..4097, 12);
        cut.wait(4096, add(4096, 13));
        assert_eq!(cut.read(0..u64::MAX, 10).len(), 0);
        assert_eq!(cut.ruling(4096, 11), Ruling::OnDisk);
        assert_eq!(cut.ruling(4095, 11), Ruling::Apply);
        assert_eq!(cut.unread_ranges().count(), 1);
    }

    #[test]
    fn settled_ranges_become_one() {
        let mut cut = Cut::new(0);
        cut.read(0..100, 9);
        cut.read(100..u64::MAX, 12);
        cut.settle(11);
        assert_eq!(cut.marks.len(), 2);
        cut.settle(12);
        assert_eq!(cut.marks.len(), 1);
        assert_eq!(cut.ruling(0, 12), Ruling::OnDisk);
    }

    #[test]
    fn a_removed_group_is_cut_where_reading_stands() {
        let mut cut = Cut::new(0);
        cut.read(0..150, 9);
        let group = event(10, Change::RemoveGroup { start: 100, len_bytes: 100 });
        assert_eq!(cut.split(place(&group.change)), [100..150, 150..200]);
    }
}
