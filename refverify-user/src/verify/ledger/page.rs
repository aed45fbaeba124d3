//! A page: some dozens of extents in order of bytenr, in a few cache lines.
//!
//! ```text
//! page = how many, bytes of the entries, context, slots, nothing, entries
//! slot = distance from the page's key in sectors, as u16, and the size of the entry
//! ```
//!
//! The entries stand at the page's end, the first one last. None depends on another, so a
//! change moves bytes and rewrites nothing else.

use super::{context::Context, varint::SECTOR_BITS};

/// How large a page is. Larger pages share their header among more extents and take longer
/// to change; `docs/ledger.md` has the measurements.
pub(super) const PAGE_SIZE: usize = 256;
const _: () = assert!(PAGE_SIZE <= 256, "how many and how large is told in one byte each");
const HEADER: usize = 2 + Context::SIZE;
const SLOT: usize = 3;

/// One page. Its owner has its key: what the distances in it are from.
#[derive(Clone)]
#[repr(align(64))]
pub(super) struct Page([u8; PAGE_SIZE]);

/// A place in a page: that of an extent, or where it would be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    slot: usize,
    /// Where its entry ends.
    end: usize,
    /// The size of the entry; 0 where there is none.
    size: usize,
}

impl Spot {
    /// Whether the extent is there.
    pub(super) const fn is_taken(&self) -> bool {
        self.size != 0
    }
}

const fn sectors_of([low, high, _]: [u8; SLOT]) -> u16 {
    u16::from_le_bytes([low, high])
}

fn bytenr_of(key: u64, slot: [u8; SLOT]) -> u64 {
    key + (u64::from(sectors_of(slot)) << SECTOR_BITS)
}

/// How far a bytenr is from a page's key, when a slot can tell it.
fn sectors_between(key: u64, bytenr: u64) -> Option<u16> {
    let distance = bytenr - key;
    let is_aligned = distance.trailing_zeros() >= SECTOR_BITS;
    is_aligned.then_some(distance >> SECTOR_BITS)?.try_into().ok()
}

impl Page {
    /// How far a page is filled in key order: what is left serves the first changes.
    pub(super) const IN_ORDER: usize = PAGE_SIZE - PAGE_SIZE / 16;

    /// An empty page.
    pub(super) fn new(context: &Context) -> Self {
        let mut page = Self([0; PAGE_SIZE]);
        page.0[2..HEADER].copy_from_slice(&context.bytes());
        page
    }

    /// Many pages at once, not yet in use.
    pub(super) fn zeroed(count: usize) -> Box<[Self]> {
        vec![Self([0; PAGE_SIZE]); count].into_boxed_slice()
    }

    /// What its extents are written relative to.
    pub(super) fn context(&self) -> Context {
        let bytes = self.0[2..].first_chunk().expect("the header is that long");
        Context::of_bytes(bytes)
    }

    /// Reads a byte of each of its cache lines.
    pub(super) fn touch(&self) -> u8 {
        self.0.iter().step_by(64).fold(0, |touched, byte| touched ^ byte)
    }

    /// Whether nothing is in it.
    pub(super) const fn is_empty(&self) -> bool {
        self.count() == 0
    }

    const fn count(&self) -> usize {
        self.0[0] as usize
    }

    /// Where the entries begin.
    const fn begin(&self) -> usize {
        PAGE_SIZE - self.0[1] as usize
    }

    fn set_begin(&mut self, begin: usize) {
        self.0[1] = (PAGE_SIZE - begin) as u8;
    }

    fn slots_end(&self) -> usize {
        HEADER + self.count() * SLOT
    }

    /// Bytes used, without the header.
    fn used(&self) -> usize {
        self.count() * SLOT + PAGE_SIZE - self.begin()
    }

    fn slots(&self) -> &[[u8; SLOT]] {
        self.0[HEADER..self.slots_end()].as_chunks().0
    }

    /// Whether so little is in it that it should go together with a neighbour.
    pub(super) fn is_sparse(&self) -> bool {
        self.used() < (PAGE_SIZE - HEADER) / 2
    }

    /// Whether what is in both fits into one, with room to spare.
    pub(super) fn fits_with(&self, other: &Self) -> bool {
        HEADER + self.used() + other.used() <= PAGE_SIZE - PAGE_SIZE / 4
    }

    /// The bytenrs and the entries, in order.
    pub(super) fn entries(&self, key: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let mut end = PAGE_SIZE;
        self.slots().iter().map(move |&slot| {
            let begin = end - usize::from(slot[2]);
            let entry = &self.0[begin..end];
            end = begin;
            (bytenr_of(key, slot), entry)
        })
    }

    /// The last bytenr.
    pub(super) fn last(&self, key: u64) -> Option<u64> {
        self.slots().last().map(|&slot| bytenr_of(key, slot))
    }

    /// Looks for an extent that is not before the page's key.
    #[inline]
    pub(super) fn find(&self, key: u64, bytenr: u64) -> Spot {
        let slots = self.slots();
        let slot = slots.partition_point(|&slot| bytenr_of(key, slot) < bytenr);
        let is_taken = slots.get(slot).is_some_and(|&slot| bytenr_of(key, slot) == bytenr);
        let size = if is_taken { usize::from(slots[slot][2]) } else { 0 };
        Spot { slot, end: self.end_of(slot), size }
    }

    /// Where the entry of a slot ends.
    fn end_of(&self, slot: usize) -> usize {
        PAGE_SIZE - self.slots()[..slot].iter().map(|slot| usize::from(slot[2])).sum::<usize>()
    }

    /// The entry at a spot; empty where there is none.
    pub(super) fn entry(&self, spot: &Spot) -> &[u8] {
        &self.0[spot.end - spot.size..spot.end]
    }

    /// Puts an entry at its spot, in place of the one that is there. Returns whether the page
    /// has room for it, and a slot can tell where the extent is; if not, nothing is changed.
    pub(super) fn put(&mut self, spot: &Spot, key: u64, bytenr: u64, entry: &[u8]) -> bool {
        let slots = if spot.is_taken() { 0 } else { SLOT };
        if HEADER + self.used() + slots + entry.len() > PAGE_SIZE + spot.size {
            return false;
        }
        let at = HEADER + spot.slot * SLOT;
        if !spot.is_taken() {
            let Some(sectors) = sectors_between(key, bytenr) else { return false };
            let slots_end = self.slots_end();
            self.0.copy_within(at..slots_end, at + SLOT);
            self.0[0] += 1;
            self.0[at..at + 2].copy_from_slice(&sectors.to_le_bytes());
        }
        self.0[at + 2] = entry.len() as u8;
        self.resize(spot, entry.len());
        self.0[spot.end - entry.len()..spot.end].copy_from_slice(entry);
        true
    }

    /// Moves what stands before the entry at a spot, so that this may be of a new size.
    fn resize(&mut self, spot: &Spot, size: usize) {
        if size != spot.size {
            let begin = self.begin();
            let new_begin = begin + spot.size - size;
            self.0.copy_within(begin..spot.end - spot.size, new_begin);
            self.set_begin(new_begin);
        }
    }

    /// Takes away the entry at a spot that is taken.
    pub(super) fn remove(&mut self, spot: &Spot) {
        let at = HEADER + spot.slot * SLOT;
        let slots_end = self.slots_end();
        self.0.copy_within(at + SLOT..slots_end, at);
        self.0[0] -= 1;
        self.resize(spot, 0);
    }

    /// Appends an entry behind all others. Returns whether it fits below a limit, and a slot
    /// can tell where the extent is; if not, nothing is changed.
    pub(super) fn push(&mut self, key: u64, bytenr: u64, entry: &[u8], limit: usize) -> bool {
        let (at, end) = (self.slots_end(), self.begin());
        if HEADER + self.used() + SLOT + entry.len() > limit {
            return false;
        }
        let Some(sectors) = sectors_between(key, bytenr) else { return false };
        self.0[at..at + 2].copy_from_slice(&sectors.to_le_bytes());
        self.0[at + 2] = entry.len() as u8;
        self.0[end - entry.len()..end].copy_from_slice(entry);
        self.0[0] += 1;
        self.set_begin(end - entry.len());
        true
    }

    /// Whether a slot can tell where an extent is.
    pub(super) fn can_tell(key: u64, bytenr: u64) -> bool {
        sectors_between(key, bytenr).is_some()
    }

    /// Whether a spot is behind all entries.
    pub(super) const fn is_end(&self, spot: &Spot) -> bool {
        spot.slot >= self.count()
    }

    /// Moves the upper half to a page of its own. Returns that, with its key.
    pub(super) fn split(&mut self, key: u64) -> (u64, Self) {
        let half = self.used() / 2;
        let mut used = 0;
        let slot = self.slots().iter().position(|slot| {
            used += SLOT + usize::from(slot[2]);
            used > half
        });
        self.split_at(slot.unwrap_or(0).max(1), key)
    }

    /// Moves what is at a spot and behind it to a page of its own, if there is any. Returns
    /// that, with its key.
    pub(super) fn split_behind(&mut self, spot: &Spot, key: u64) -> Option<(u64, Self)> {
        (!self.is_end(spot)).then(|| self.split_at(spot.slot, key))
    }

    fn split_at(&mut self, slot: usize, key: u64) -> (u64, Self) {
        let (begin, end) = (self.begin(), self.end_of(slot));
        let first = sectors_of(self.slots()[slot]);
        let mut upper = Self::new(&self.context());
        upper.0[0] = (self.count() - slot) as u8;
        for (from, to) in (slot..self.count()).zip((HEADER..).step_by(SLOT)) {
            let from = self.slots()[from];
            upper.0[to..to + 2].copy_from_slice(&(sectors_of(from) - first).to_le_bytes());
            upper.0[to + 2] = from[2];
        }
        let upper_begin = begin + PAGE_SIZE - end;
        upper.0[upper_begin..].copy_from_slice(&self.0[begin..end]);
        upper.set_begin(upper_begin);
        self.0[0] = slot as u8;
        self.set_begin(end);
        (key + (u64::from(first) << SECTOR_BITS), upper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u64 = 1 << 30;

    fn put(page: &mut Page, bytenr: u64, entry: &[u8]) -> bool {
        page.put(&page.find(KEY, bytenr), KEY, bytenr, entry)
    }

    fn contents(page: &Page) -> Vec<(u64, Vec<u8>)> {
        page.entries(KEY).map(|(bytenr, entry)| (bytenr, entry.to_vec())).collect()
    }

    #[test]
    fn an_extent_that_a_slot_cannot_tell_is_refused_and_looked_for_in_vain() {
        let mut page = Page::new(&Context::default());
        let last = KEY + (u64::from(u16::MAX) << SECTOR_BITS);
        assert!(put(&mut page, last, b"last"));
        for bytenr in [KEY + 1, KEY + 4095, last - 1, last + 1, last + 4096, u64::MAX] {
            assert!(!put(&mut page, bytenr, b"x"), "{bytenr}");
            assert!(!page.find(KEY, bytenr).is_taken(), "{bytenr}");
        }
        assert_eq!(contents(&page), [(last, b"last".to_vec())]);
    }

    #[test]
    fn entries_keep_their_bytes_whatever_grows_shrinks_comes_and_goes_beside_them() {
        let mut page = Page::new(&Context::default());
        let mut map = std::collections::BTreeMap::new();
        for step in 0..5000_u64 {
            let bytenr = KEY + step * 7919 % 17 * 4096;
            if step % 4 == 3 {
                let spot = page.find(KEY, bytenr);
                if spot.is_taken() {
                    page.remove(&spot);
                }
                map.remove(&bytenr);
            } else {
                let entry = vec![step as u8; 1 + (step * 31 % 23) as usize];
                if put(&mut page, bytenr, &entry) {
                    map.insert(bytenr, entry);
                }
            }
            assert_eq!(contents(&page), map.clone().into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_page_that_is_full_refuses_and_its_halves_hold_what_it_held() {
        let mut page = Page::new(&Context::default());
        let bytenr = |number: u64| KEY + number * 8192;
        let count = (0..100).take_while(|&n| put(&mut page, bytenr(n), &[n as u8; 5])).count();
        let whole = contents(&page);
        assert_eq!(whole.len(), count);
        assert!(!put(&mut page, KEY + 4096, &[0; 5]));
        assert_eq!(contents(&page), whole, "what is refused changes nothing");
        let (key, upper) = page.split(KEY);
        let mut halves = contents(&page);
        halves.extend(upper.entries(key).map(|(bytenr, entry)| (bytenr, entry.to_vec())));
        assert_eq!(halves, whole);
    }
}
