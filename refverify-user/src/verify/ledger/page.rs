//! A page: some dozens of extents, one after the other in order of bytenr, in a few cache
//! lines. A change of one extent moves bytes within its page and rewrites nothing else, but for
//! the distance in the entry after it.

use super::{
    Extent,
    codec::{self, Before, Body, Context, Head, Near, put_entry},
    stops::Stops,
};

/// How large a page is. Larger pages share their header among more extents and take longer
/// to look through; `docs/ledger.md` has the measurements.
pub(super) const PAGE_SIZE: usize = 256;
/// Bytes used, as u16, then the context, then the stops.
const HEADER: usize = STOPS_AT + Stops::SIZE;
const STOPS_AT: usize = 2 + Context::SIZE;
const _: () = assert!(PAGE_SIZE <= 256, "stops are told in one byte each");

/// One page. Its first entry is written relative to the page's key, which its owner has.
#[derive(Clone)]
#[repr(align(64))]
pub(super) struct Page([u8; PAGE_SIZE]);

/// A place in a page: that of an extent, or where it would be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    at: usize,
    before: Before,
    entry: Option<Head>,
}

impl Spot {
    /// Whether the extent is there.
    pub(super) const fn is_taken(&self) -> bool {
        self.entry.is_some()
    }
}

/// What is to stand at a spot: bytenr, length, and the body with whether it is plain.
pub(super) struct NewEntry<'a> {
    pub(super) bytenr: u64,
    pub(super) len_bytes: u64,
    pub(super) is_plain: bool,
    pub(super) body: &'a [u8],
}

impl Page {
    /// An empty page.
    pub(super) fn new(context: Context) -> Self {
        let mut page = Self([0; PAGE_SIZE]);
        page.0[2..STOPS_AT].copy_from_slice(&context.bytes());
        page.set_used(HEADER);
        page
    }

    /// Many pages at once, not yet in use.
    pub(super) fn zeroed(count: usize) -> Box<[Self]> {
        vec![Self([0; PAGE_SIZE]); count].into_boxed_slice()
    }

    /// Bytes used, its header included.
    pub(super) fn used(&self) -> usize {
        usize::from(u16::from_le_bytes([self.0[0], self.0[1]])).min(PAGE_SIZE)
    }

    fn set_used(&mut self, used: usize) {
        let used: u16 = used.try_into().expect("a page is smaller than 64 KiB");
        self.0[..2].copy_from_slice(&used.to_le_bytes());
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
    pub(super) fn is_empty(&self) -> bool {
        self.used() <= HEADER
    }

    /// Whether so little is in it that it should go together with a neighbour.
    pub(super) fn is_sparse(&self) -> bool {
        self.used() - HEADER < (PAGE_SIZE - HEADER) / 4
    }

    /// Whether what is in both fits into one, with room to spare.
    pub(super) fn fits_with(&self, other: &Self) -> bool {
        self.used() + other.used() - HEADER <= PAGE_SIZE - PAGE_SIZE / 4
    }

    /// The entries in order, each with where it is.
    pub(super) fn heads(&self, key: u64) -> impl Iterator<Item = (usize, Head)> {
        let context = self.context();
        let bytes = &self.0[..self.used()];
        let mut at = HEADER;
        let mut before = Before { bytenr: key, len_bytes: 0 };
        std::iter::from_fn(move || {
            if at >= bytes.len() {
                return None;
            }
            let head = Head::read(bytes, at, before, &context)?;
            let found = (at, head);
            at += head.size;
            before = head.before_next();
            Some(found)
        })
    }

    /// Looks an extent up.
    pub(super) fn find(&self, key: u64, bytenr: u64) -> Spot {
        let context = self.context();
        let bytes = &self.0[..self.used()];
        let (mut at, mut before) = self.skip_to(key, bytenr, u64::from(context.len_bytes));
        while at < bytes.len() {
            let Some(head) = Head::read(bytes, at, before, &context) else { break };
            if head.bytenr >= bytenr {
                let entry = (head.bytenr == bytenr).then_some(head);
                return Spot { at, before, entry };
            }
            at += head.size;
            before = head.before_next();
        }
        Spot { at, before, entry: None }
    }

    /// Goes on, from the last stop, as long as entries before `bytenr` have a head that takes
    /// few bytes.
    fn skip_to(&self, key: u64, bytenr: u64, len_bytes: u64) -> (usize, Before) {
        let used = self.used();
        let mut at = HEADER;
        let mut before = Before { bytenr: key, len_bytes: 0 };
        if let Some((stop, of_stop)) = self.stops().before(key, bytenr)
            && let Some(&near) = self.0[stop..].first_chunk()
            && let Some(near) = Near::read(near, before, len_bytes)
        {
            // Relative to what it is written is not known here, but where it is.
            at = stop + near.size;
            before = Before { bytenr: of_stop, len_bytes: near.next.len_bytes };
        }
        while at < used {
            let Some(&near) = self.0[at..].first_chunk() else { break };
            match Near::read(near, before, len_bytes) {
                Some(near) if near.next.bytenr < bytenr => {
                    at += near.size;
                    before = near.next;
                }
                _ => break,
            }
        }
        (at, before)
    }

    fn stops(&self) -> Stops {
        let bytes = self.0[STOPS_AT..].first_chunk().expect("the header is that long");
        Stops::of_bytes(bytes)
    }

    fn set_stops(&mut self, stops: Stops) {
        self.0[STOPS_AT..HEADER].copy_from_slice(&stops.bytes());
    }

    /// Spreads the stops anew.
    fn find_stops(&mut self, key: u64) {
        let mut stops = Stops::default();
        let whole = self.used() - HEADER;
        for (at, head) in self.heads(key) {
            stops.offer(at, head.bytenr.wrapping_sub(key), (at - HEADER, whole));
        }
        self.set_stops(stops);
    }

    /// Reads the extent at a place into `extent`.
    pub(super) fn read(&self, at: usize, head: &Head, extent: &mut Extent) -> Option<Body> {
        codec::read_body(&self.0[at..at + head.size], head, &self.context(), extent)
    }

    /// Reads the extent at a spot into `extent`; `None` where there is none.
    pub(super) fn read_spot(&self, spot: &Spot, extent: &mut Extent) -> Option<Body> {
        self.read(spot.at, spot.entry.as_ref()?, extent)
    }

    /// Puts an entry at its spot, or takes away the one that is there. Returns whether the
    /// page has room for it; if not, nothing is changed.
    pub(super) fn replace(
        &mut self,
        spot: &Spot,
        key: u64,
        new: Option<&NewEntry<'_>>,
        scratch: &mut Vec<u8>,
    ) -> bool {
        let context = self.context();
        let used = self.used();
        scratch.clear();
        let mut end = spot.at;
        let mut old_before = spot.before;
        let mut new_before = spot.before;
        if let Some(entry) = &spot.entry {
            end += entry.size;
            old_before = entry.before_next();
        }
        if let Some(new) = new {
            let NewEntry { bytenr, len_bytes, is_plain, body } = *new;
            put_entry(scratch, bytenr, len_bytes, spot.before, &context, (is_plain, body));
            new_before = Before { bytenr, len_bytes };
        }
        let next = scratch.len();
        let old_next = end;
        if old_before != new_before && end < used {
            end += self.put_again(end, old_before, new_before, &context, scratch);
        }
        let new_used = used - (end - spot.at) + scratch.len();
        if new_used > PAGE_SIZE {
            return false;
        }
        let mut stops = self.stops();
        // An entry that stays where it is stays a stop.
        let from = if spot.is_taken() && new.is_some() { spot.at + 1 } else { spot.at };
        stops.moved(from, (old_next, spot.at + next), (end, spot.at + scratch.len()));
        if let Some(new) = new {
            let whole = PAGE_SIZE - HEADER;
            stops.offer(spot.at, new.bytenr.wrapping_sub(key), (spot.at - HEADER, whole));
        }
        self.set_stops(stops);
        let new_end = spot.at + scratch.len();
        if new_end != end {
            self.0.copy_within(end..used, new_end);
            self.set_used(new_used);
        }
        self.0[spot.at..new_end].copy_from_slice(scratch);
        true
    }

    /// Whether a spot is behind all entries.
    pub(super) fn is_end(&self, spot: &Spot) -> bool {
        spot.at >= self.used()
    }

    /// Moves the upper half to a page of its own. Returns that, with its key.
    pub(super) fn split(&mut self, key: u64, scratch: &mut Vec<u8>) -> Option<(u64, Self)> {
        let used = self.used();
        let middle = HEADER + (used - HEADER) / 2;
        let (at, head) = self.heads(key).skip(1).find(|&(at, head)| at + head.size > middle)?;
        let context = self.context();
        let mut upper = Self::new(context);
        scratch.clear();
        let before = Before { bytenr: head.bytenr, len_bytes: 0 };
        let body = &self.0[at + head.body..at + head.size];
        put_entry(scratch, head.bytenr, head.len_bytes, before, &context, (head.is_plain, body));
        scratch.extend_from_slice(&self.0[at + head.size..used]);
        let end = HEADER + scratch.len();
        upper.0[HEADER..end].copy_from_slice(scratch);
        upper.set_used(end);
        upper.find_stops(head.bytenr);
        self.set_used(at);
        self.find_stops(key);
        Some((head.bytenr, upper))
    }

    /// Writes the entry at `at` relative to what now stands before it. Returns its old size.
    fn put_again(
        &self,
        at: usize,
        old_before: Before,
        new_before: Before,
        context: &Context,
        out: &mut Vec<u8>,
    ) -> usize {
        let bytes = &self.0[..self.used()];
        let Some(head) = Head::read(bytes, at, old_before, context) else { return 0 };
        let body = &bytes[at + head.body..at + head.size];
        put_entry(out, head.bytenr, head.len_bytes, new_before, context, (head.is_plain, body));
        head.size
    }
}

/// Fills a page in key order.
pub(super) struct Filling {
    page: Page,
    key: u64,
    before: Before,
    used: usize,
    context: Context,
    stops: Stops,
}

impl Filling {
    /// How far a page is filled in key order: what is left serves the first changes.
    pub(super) const IN_ORDER: usize = PAGE_SIZE - PAGE_SIZE / 16;
    /// How far the first of two pages is filled that come of one that was full.
    pub(super) const SPLIT: usize = HEADER + (PAGE_SIZE - HEADER) * 5 / 8;

    /// Begins a page in which an extent like `first` is small.
    pub(super) fn new(key: u64, first: &Extent) -> Self {
        let context = Context::of(first);
        Self {
            page: Page::new(context),
            key,
            before: Before { bytenr: key, len_bytes: 0 },
            used: HEADER,
            context,
            stops: Stops::default(),
        }
    }

    /// Goes on with a page that there is.
    pub(super) fn resume(key: u64, page: &Page) -> Self {
        let last = page.heads(key).last();
        Self {
            key,
            before: last
                .map_or(Before { bytenr: key, len_bytes: 0 }, |(_, head)| head.before_next()),
            used: page.used(),
            context: page.context(),
            stops: page.stops(),
            page: page.clone(),
        }
    }

    /// What its extents are to be written relative to.
    pub(super) const fn context(&self) -> Context {
        self.context
    }

    /// Appends an extent. Returns whether it fits below the limit.
    pub(super) fn push(&mut self, new: &NewEntry<'_>, limit: usize, scratch: &mut Vec<u8>) -> bool {
        scratch.clear();
        let NewEntry { bytenr, len_bytes, is_plain, body } = *new;
        put_entry(scratch, bytenr, len_bytes, self.before, &self.context, (is_plain, body));
        let end = self.used + scratch.len();
        if end > limit.min(PAGE_SIZE) {
            return false;
        }
        let place = (self.used - HEADER, PAGE_SIZE - HEADER);
        self.stops.offer(self.used, bytenr.wrapping_sub(self.key), place);
        self.page.0[self.used..end].copy_from_slice(scratch);
        self.used = end;
        self.before = Before { bytenr, len_bytes };
        true
    }

    /// The page and its key.
    pub(super) fn finish(mut self) -> (u64, Page) {
        self.page.set_used(self.used);
        self.page.set_stops(self.stops);
        (self.key, self.page)
    }
}
