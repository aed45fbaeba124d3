//! A ledger in shards, so that several cores judge at once.
//!
//! The rules of one extent need that extent alone, and the order of events matters for each
//! extent alone. So each stripe of bytenrs belongs to one shard, which is a ledger of its own,
//! and no shard ever waits for another. A batch is worked on by threads that live as long as
//! it; each takes the events of its shard out of the batch, in order. What concerns more than
//! one extent, as the neighbours of an edge, is asked of every shard.

use std::{
    ops::Range,
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread::Builder,
};

use super::{Extent, Judged, Kept, Ledger, Limits, PackedLedger, Violation, bytenr_of, crossing};
use crate::{btrfs::DiskExtent, feed::Event, verify::ExtentDump};

/// Packed ledgers, each for its share of the bytenrs.
pub struct ShardedLedger {
    shards: Vec<PackedLedger>,
}

/// How large a stripe is: so small that what is written together is spread, and so large that
/// extents at rest hardly notice where one ends.
const STRIPE_BITS: u32 = 24;
/// For fewer events than this, more threads are no gain.
const BATCH_MIN: usize = 4096;

impl ShardedLedger {
    /// A ledger that knows nothing yet, for so many cores. The limits are for all of it.
    pub fn new(limits: Limits, cores: usize) -> Self {
        let cores = cores.max(1);
        let limits = limits.shared_by(cores);
        Self { shards: (0..cores).map(|_| PackedLedger::new(limits)).collect() }
    }

    /// Puts the changes that are pending in order, so that [`Ledger::as_of`] finds them quickly.
    pub fn arrange(&mut self) {
        for shard in &mut self.shards {
            shard.arrange();
        }
    }

    fn number_of(&self, bytenr: u64) -> usize {
        (bytenr >> STRIPE_BITS) as usize % self.shards.len()
    }

    fn shard(&self, bytenr: u64) -> &PackedLedger {
        &self.shards[self.number_of(bytenr)]
    }

    fn shard_mut(&mut self, bytenr: u64) -> &mut PackedLedger {
        let number = self.number_of(bytenr);
        &mut self.shards[number]
    }

    /// Sorts the places of events by shard.
    fn places(&self, events: &[Event]) -> Vec<Vec<usize>> {
        let mut places = vec![Vec::new(); self.shards.len()];
        for (place, event) in events.iter().enumerate() {
            if let Some(bytenr) = bytenr_of(event) {
                places[self.number_of(bytenr)].push(place);
            }
        }
        places
    }

    /// Does a job on each shard, one after the other where it is not worth while to share it.
    fn on_each_if<R: Send>(
        &mut self,
        is_worth_while: bool,
        job: impl Fn(usize, &mut PackedLedger) -> R + Sync,
    ) -> Vec<R> {
        if is_worth_while && self.shards.len() > 1 {
            return self.on_each(job);
        }
        self.shards.iter_mut().enumerate().map(|(number, shard)| job(number, shard)).collect()
    }

    /// Does a job on each shard, all at once. Where no thread is to be had, this one does all
    /// of it.
    fn on_each<R: Send>(&mut self, job: impl Fn(usize, &mut PackedLedger) -> R + Sync) -> Vec<R> {
        let helpers = self.shards.len() - 1;
        let left = Mutex::new(self.shards.iter_mut().enumerate());
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut done = Vec::new();
            while let Some((number, shard)) = next() {
                done.push((number, job(number, shard)));
            }
            done
        };
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..helpers)
                .filter_map(|_| Builder::new().name("ledger".into()).spawn_scoped(scope, work).ok())
                .collect();
            let mut done = work();
            for thread in started {
                done.extend(thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            }
            done.sort_by_key(|&(number, _)| number);
            done.into_iter().map(|(_, result)| result).collect()
        })
    }
}

impl Ledger for ShardedLedger {
    fn apply(&mut self, event: &Event) -> Result<(), Box<Violation>> {
        let Some(bytenr) = bytenr_of(event) else { return Ok(()) };
        self.shard_mut(bytenr).apply(event)
    }

    fn apply_all(&mut self, events: &[Event]) -> Judged {
        let places = self.places(events);
        let job = |number: usize, shard: &mut PackedLedger| {
            shard.apply_places(events, places[number].iter().copied())
        };
        Judged::join(self.on_each_if(events.len() >= BATCH_MIN, job))
    }

    fn read(&mut self, range: Range<u64>, generation: u64, extents: &[DiskExtent]) {
        let mut shares = vec![Vec::new(); self.shards.len()];
        for disk in extents.iter().filter(|disk| range.contains(&disk.bytenr)) {
            shares[self.number_of(disk.bytenr)].push(disk);
        }
        for (shard, share) in self.shards.iter_mut().zip(shares) {
            shard.read_these(range.clone(), generation, &share);
        }
    }

    fn remove(&mut self, range: Range<u64>, transid: u64) {
        for shard in &mut self.shards {
            shard.remove(range.clone(), transid);
        }
    }

    fn commit(&mut self, generation: u64) {
        let pending: usize = self.shards.iter().map(PackedLedger::pending).sum();
        self.on_each_if(pending >= BATCH_MIN, |_, shard| shard.commit(generation));
    }

    fn undo_above(&mut self, transid: u64) {
        for shard in &mut self.shards {
            shard.undo_above(transid);
        }
    }

    fn as_of(&self, bytenr: u64, generation: u64) -> Option<Extent> {
        self.shard(bytenr).as_of(bytenr, generation)
    }

    fn touched(&self, generation: u64) -> Vec<u64> {
        let mut touched: Vec<u64> =
            self.shards.iter().flat_map(|shard| shard.touched(generation)).collect();
        touched.sort_unstable();
        touched
    }

    fn bytenrs_in(&self, range: Range<u64>) -> Vec<u64> {
        let mut all: Vec<u64> =
            self.shards.iter().flat_map(|shard| shard.bytenrs_in(range.clone())).collect();
        all.sort_unstable();
        all
    }

    fn crossing(&self, range: &Range<u64>) -> Vec<ExtentDump> {
        crossing(range, |edge| {
            let before = self.shards.iter().filter_map(|shard| shard.last_live_before(edge));
            self.dump(before.max()?)
        })
    }

    fn live(&self) -> u64 {
        self.shards.iter().map(Ledger::live).sum()
    }

    fn visit(&self, each: &mut dyn FnMut(u64, &Extent)) {
        let mut from = Some(0);
        while let Some(bytenr) = from {
            let firsts = self.shards.iter().filter_map(|shard| shard.first_from(bytenr));
            let Some(first) = firsts.min() else { return };
            let last = first | ((1 << STRIPE_BITS) - 1);
            self.shard(first).visit_in(first..=last, each);
            from = last.checked_add(1);
        }
    }

    fn dump(&self, bytenr: u64) -> Option<ExtentDump> {
        self.shard(bytenr).dump(bytenr)
    }

    fn kept(&self) -> Kept {
        self.shards.iter().map(Ledger::kept).fold(Kept::default(), |all, one| Kept {
            total_bytes: all.total_bytes + one.total_bytes,
            history_bytes: all.history_bytes + one.history_bytes,
            history_after: all.history_after.max(one.history_after),
            tombstones_after: all.tombstones_after.max(one.tombstones_after),
            over_ceiling: all.over_ceiling | one.over_ceiling,
        })
    }
}
