//! Extents at rest: pages under an index.

use std::{
    collections::BTreeMap,
    ops::{Bound, Range, RangeBounds, RangeInclusive},
};

use super::{
    Extent,
    arena::Arena,
    codec::{ENTRY_MAX, Found, put_entry, put_spilled, read_entry},
    context::Context,
    index::{Index, Position},
    page::{PAGE_SIZE, Page, Spot},
};

/// The extents of one file system, packed, in order of bytenr.
#[derive(Default)]
pub(super) struct Blocks {
    /// Once there is a page there is one whose key is 0, so that every bytenr has its page.
    index: Index,
    arena: Arena,
    /// Extents that are too large for a page, each whole.
    spilled: BTreeMap<u64, Box<[u8]>>,
    spilled_bytes: usize,
    /// Serves again for each entry.
    entry: Vec<u8>,
    /// Where what was brought near was found; pages may have come and gone since.
    near: Vec<Position>,
}

/// Where an extent is, or would be, until the next change.
pub(super) struct Place {
    position: Position,
    key: u64,
    id: u32,
    spot: Spot,
}

/// A page that is out of the index, and its key.
type Loose = (u64, Page);

impl Blocks {
    /// Looks for an extent. There is no place before the first extent of all.
    pub(super) fn find(&self, bytenr: u64) -> Option<Place> {
        Some(self.find_in(self.index.find(bytenr)?, bytenr))
    }

    /// As [`Self::find`], for one of the extents that were brought near.
    pub(super) fn find_near(&self, number: usize, bytenr: u64) -> Option<Place> {
        match self.near.get(number) {
            Some(&position) if self.index.is_at(position, bytenr) => {
                Some(self.find_in(position, bytenr))
            }
            _ => self.find(bytenr),
        }
    }

    fn find_in(&self, position: Position, bytenr: u64) -> Place {
        let (key, id) = self.index.at(position);
        let spot = self.arena.page(id).find(key, bytenr);
        Place { position, key, id, spot }
    }

    /// Brings what will be looked for near, all of it at once: memory is
    /// far, and one extent after the other would wait for it each time anew.
    pub(super) fn bring_near(&mut self, bytenrs: impl Iterator<Item = u64> + Clone) {
        self.index.find_all(bytenrs, &mut self.near);
        let mut touched = 0;
        for &position in &self.near {
            touched ^= self.arena.page(self.index.at(position).1).touch();
        }
        std::hint::black_box(touched);
    }

    /// Reads the extent at a place into `extent`. Returns whether there is one.
    pub(super) fn read(&self, bytenr: u64, place: &Place, extent: &mut Extent) -> bool {
        let page = self.arena.page(place.id);
        place.spot.is_taken()
            && self.read_entry(bytenr, page.entry(&place.spot), &page.context(), extent)
    }

    /// The extent at a bytenr.
    pub(super) fn get(&self, bytenr: u64) -> Option<Extent> {
        let mut extent = Extent::default();
        let place = self.find(bytenr)?;
        self.read(bytenr, &place, &mut extent).then_some(extent)
    }

    fn read_entry(
        &self,
        bytenr: u64,
        entry: &[u8],
        context: &Context,
        extent: &mut Extent,
    ) -> bool {
        match read_entry(entry, context, extent) {
            Some(Found::Here) => true,
            Some(Found::Spilled) => self.spilled.get(&bytenr).is_some_and(|bytes| {
                read_entry(bytes, &Context::default(), extent) == Some(Found::Here)
            }),
            None => false,
        }
    }

    /// Puts an extent in, in place of the one that is there. Places found before are void.
    pub(super) fn put(&mut self, bytenr: u64, extent: &Extent) {
        let place = self.find(bytenr);
        self.put_at(place.as_ref(), bytenr, extent);
    }

    /// As [`Self::put`], where the place has been looked for.
    pub(super) fn put_at(&mut self, place: Option<&Place>, bytenr: u64, extent: &Extent) {
        let Some(place) = place else {
            self.add((0, Page::new(&Context::of(extent))));
            return self.put(bytenr, extent);
        };
        self.write_entry(bytenr, extent, &self.arena.page(place.id).context());
        let page = self.arena.page_mut(place.id);
        if page.put(&place.spot, place.key, bytenr, &self.entry) {
            return;
        }
        // In key order the page that is full stays full.
        if page.is_end(&place.spot) || !Page::can_tell(place.key, bytenr) {
            return self.put_apart(place, bytenr, extent);
        }
        let upper = page.split(place.key);
        self.add(upper);
        self.put(bytenr, extent);
    }

    /// Puts an extent into a page of its own.
    fn put_apart(&mut self, place: &Place, bytenr: u64, extent: &Extent) {
        let upper = self.arena.page_mut(place.id).split_behind(&place.spot, place.key);
        if let Some(upper) = upper {
            self.add(upper);
        }
        let context = Context::of(extent);
        self.write_entry(bytenr, extent, &context);
        let page = self.alone(bytenr, &context);
        self.add(page);
    }

    /// Takes an extent out, if it is there. Places found before are void.
    pub(super) fn delete(&mut self, bytenr: u64) {
        if let Some(place) = self.find(bytenr) {
            self.delete_at(&place, bytenr);
        }
    }

    /// As [`Self::delete`], where the place has been looked for.
    pub(super) fn delete_at(&mut self, place: &Place, bytenr: u64) {
        if !place.spot.is_taken() {
            return;
        }
        let page = self.arena.page_mut(place.id);
        page.remove(&place.spot);
        if page.is_sparse() {
            self.join(place.position);
        }
        self.unspill(bytenr);
    }

    /// A page that holds little goes together with a neighbour; an empty one goes.
    fn join(&mut self, position: Position) {
        let (key, id) = self.index.at(position);
        if self.arena.page(id).is_empty() {
            if key != 0 {
                self.take_out(key);
            }
            return;
        }
        let next = self.index.next(position).map(|next| (position, next));
        let previous = self.index.previous(position).map(|previous| (previous, position));
        let pair = [next, previous].into_iter().flatten().find(|&pair| self.can_join(pair));
        if let Some((lower, upper)) = pair {
            let (lower, upper) = (self.index.at(lower).0, self.index.at(upper).0);
            let pages = [self.take_out(lower), self.take_out(upper)];
            // Between the two there is nothing to replace.
            self.rewrite(&pages, upper..=upper - 1, PAGE_SIZE, |_| None);
        }
    }

    fn can_join(&self, (lower, upper): (Position, Position)) -> bool {
        let ((key, lower), (upper_key, upper)) = (self.index.at(lower), self.index.at(upper));
        let (lower, upper) = (self.arena.page(lower), self.arena.page(upper));
        let can_tell = upper.last(upper_key).is_none_or(|last| Page::can_tell(key, last));
        can_tell && lower.fits_with(upper)
    }

    /// Takes the page of `bytenr` out of the index. There is one.
    fn take_out(&mut self, bytenr: u64) -> Loose {
        let position = self.index.find(bytenr).expect("the page of key 0 serves every bytenr");
        let (key, id) = self.index.at(position);
        let page = self.arena.page(id).clone();
        self.index.remove(position);
        self.arena.free(id);
        (key, page)
    }

    /// Replaces everything in the range. `next` gives the extents that belong there, in order,
    /// each into the buffer that it is given, and its bytenr.
    pub(super) fn replace_range(
        &mut self,
        range: Range<u64>,
        next: impl FnMut(&mut Extent) -> Option<u64>,
    ) {
        let Some(last) = range.end.checked_sub(1) else { return };
        for bytenr in self.spilled_in(&range) {
            self.unspill(bytenr);
        }
        let edges = self.take_out_range(&range);
        self.rewrite(&edges, range.start..=last, Page::IN_ORDER, next);
    }

    /// Takes out the pages of a range. Returns those that may hold extents beside it.
    fn take_out_range(&mut self, range: &Range<u64>) -> Vec<Loose> {
        if self.index.is_empty() {
            return vec![(0, Page::new(&Context::default()))];
        }
        let mut edges = Vec::new();
        let mut from = Some(range.start);
        while let Some(position) = from.and_then(|from| self.index.find(from)) {
            let (key, _) = self.index.at(position);
            if key >= range.end {
                break;
            }
            from = self.index.next(position).map(|next| self.index.at(next).0);
            let is_inside = key >= range.start && from.is_some_and(|end| end <= range.end);
            let page = self.take_out(key);
            if !is_inside || key == 0 {
                edges.push(page);
            }
        }
        edges
    }

    fn spilled_in(&self, range: &Range<u64>) -> Vec<u64> {
        self.spilled.range(range.clone()).map(|(&bytenr, _)| bytenr).collect()
    }

    /// Writes pages that are out of the index anew, with what `next` gives in place of what
    /// they hold in the range, or, where that is empty, before its start.
    fn rewrite(
        &mut self,
        mut pages: &[Loose],
        range: RangeInclusive<u64>,
        limit: usize,
        mut next: impl FnMut(&mut Extent) -> Option<u64>,
    ) {
        let mut writer = PageWriter { filling: None, limit };
        match pages {
            [(key, page), rest @ ..] if page.last(*key).is_some_and(|at| at < *range.start()) => {
                writer.filling = Some((*key, page.clone()));
                pages = rest;
            }
            [(0, page), ..] => writer.filling = Some((0, Page::new(&page.context()))),
            _ => {}
        }
        let mut extent = Extent::default();
        self.copy(pages, &mut writer, &mut extent, |bytenr| bytenr < *range.start());
        while let Some(bytenr) = next(&mut extent) {
            self.append(&mut writer, bytenr, &extent);
        }
        self.copy(pages, &mut writer, &mut extent, |bytenr| bytenr > *range.end());
        self.finish(writer.filling);
    }

    fn copy(
        &mut self,
        pages: &[Loose],
        writer: &mut PageWriter,
        extent: &mut Extent,
        is_wanted: impl Fn(u64) -> bool,
    ) {
        for (key, page) in pages {
            let context = page.context();
            for (bytenr, entry) in page.entries(*key).filter(|&(bytenr, _)| is_wanted(bytenr)) {
                self.read_entry(bytenr, entry, &context, extent);
                self.append(writer, bytenr, extent);
            }
        }
    }

    fn append(&mut self, writer: &mut PageWriter, bytenr: u64, extent: &Extent) {
        if let Some((key, page)) = &mut writer.filling {
            self.write_entry(bytenr, extent, &page.context());
            if page.push(*key, bytenr, &self.entry, writer.limit) {
                return;
            }
        }
        self.finish(writer.filling.take());
        let context = Context::of(extent);
        self.write_entry(bytenr, extent, &context);
        writer.filling = Some(self.alone(bytenr, &context));
    }

    /// A page of the entry that was written.
    fn alone(&self, bytenr: u64, context: &Context) -> Loose {
        let mut page = Page::new(context);
        let has_room = page.push(bytenr, bytenr, &self.entry, PAGE_SIZE);
        debug_assert!(has_room, "an empty page takes any entry");
        (bytenr, page)
    }

    fn finish(&mut self, filling: Option<Loose>) {
        if let Some(page) = filling {
            self.add(page);
        }
    }

    fn add(&mut self, (key, page): Loose) {
        let id = self.arena.add(&page);
        self.index.insert(key, id);
    }

    /// Writes an extent's entry; what is too large for a page is spilled.
    fn write_entry(&mut self, bytenr: u64, extent: &Extent, context: &Context) {
        self.unspill(bytenr);
        self.entry.clear();
        put_entry(&mut self.entry, extent, context);
        if self.entry.len() > ENTRY_MAX {
            self.entry.clear();
            put_entry(&mut self.entry, extent, &Context::default());
            self.spilled_bytes += self.entry.len();
            self.spilled.insert(bytenr, self.entry.as_slice().into());
            self.entry.clear();
            put_spilled(&mut self.entry);
        }
    }

    #[inline]
    fn unspill(&mut self, bytenr: u64) {
        if !self.spilled.is_empty() {
            self.take_spilled(bytenr);
        }
    }

    fn take_spilled(&mut self, bytenr: u64) {
        if let Some(bytes) = self.spilled.remove(&bytenr) {
            self.spilled_bytes -= bytes.len();
        }
    }

    /// Shows the extents of a range in order.
    pub(super) fn visit(&self, range: impl RangeBounds<u64>, mut each: impl FnMut(u64, &Extent)) {
        let mut extent = Extent::default();
        let mut at = self.index.find(first_of(&range));
        while let Some(position) = at {
            let (key, id) = self.index.at(position);
            if is_beyond(key, &range) {
                return;
            }
            let page = self.arena.page(id);
            let context = page.context();
            for (bytenr, entry) in page.entries(key).filter(|(at, _)| range.contains(at)) {
                self.read_entry(bytenr, entry, &context, &mut extent);
                each(bytenr, &extent);
            }
            at = self.index.next(position);
        }
    }

    /// The first extent at `bytenr` or behind it.
    pub(super) fn first_from(&self, bytenr: u64) -> Option<u64> {
        let mut at = self.index.find(bytenr);
        while let Some(position) = at {
            let (key, id) = self.index.at(position);
            let mut entries = self.arena.page(id).entries(key);
            if let Some((found, _)) = entries.find(|&(at, _)| at >= bytenr) {
                return Some(found);
            }
            at = self.index.next(position);
        }
        None
    }

    /// Whether there is no extent in the range.
    pub(super) fn is_empty_in(&self, range: &Range<u64>) -> bool {
        self.first_from(range.start).is_none_or(|first| first >= range.end)
    }

    /// The last extent before `edge` that is wanted.
    pub(super) fn last_before(
        &self,
        edge: u64,
        is_wanted: impl Fn(u64, &Extent) -> bool,
    ) -> Option<(u64, Extent)> {
        let mut extent = Extent::default();
        let mut at = self.index.find(edge.checked_sub(1)?);
        while let Some(position) = at {
            let (key, id) = self.index.at(position);
            let page = self.arena.page(id);
            let context = page.context();
            let entries: Vec<_> = page.entries(key).filter(|&(at, _)| at < edge).collect();
            for (bytenr, entry) in entries.into_iter().rev() {
                self.read_entry(bytenr, entry, &context, &mut extent);
                if is_wanted(bytenr, &extent) {
                    return Some((bytenr, extent));
                }
            }
            at = self.index.previous(position);
        }
        None
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        // A map's node shares its overhead among some entries.
        let spilled = self.spilled_bytes + self.spilled.len() * 48;
        self.index.bytes() + self.arena.bytes() + spilled
    }
}

/// The first bytenr of a range.
pub(super) fn first_of(range: &impl RangeBounds<u64>) -> u64 {
    match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    }
}

/// Whether a bytenr lies behind a range.
pub(super) fn is_beyond(bytenr: u64, range: &impl RangeBounds<u64>) -> bool {
    match range.end_bound() {
        Bound::Included(&last) => bytenr > last,
        Bound::Excluded(&end) => bytenr >= end,
        Bound::Unbounded => false,
    }
}

/// Writes pages in key order.
struct PageWriter {
    filling: Option<Loose>,
    limit: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btrfs::{ExtentKind, RefKey};

    fn extent(refs: u64) -> Extent {
        Extent {
            len_bytes: 4096 * (1 + refs % 3),
            kind: ExtentKind::Data,
            total_refs: refs,
            from_disk: Some(7),
            actions: refs % 2,
            refs: (0..refs)
                .map(|i| (RefKey::data(5 + i % 3, 0, 257 + i * 1000, i << 12), 1))
                .collect(),
        }
    }

    fn contents(blocks: &Blocks) -> Vec<(u64, Extent)> {
        let mut all = Vec::new();
        blocks.visit(.., |bytenr, extent| all.push((bytenr, extent.clone())));
        all
    }

    #[test]
    fn any_order_of_puts_and_deletes_ends_like_a_map() {
        let mut blocks = Blocks::default();
        let mut map = BTreeMap::new();
        for i in 0..20_000_u64 {
            let bytenr = (i * 7919 % 4001) * 4096;
            if i % 5 == 4 {
                blocks.delete(bytenr);
                map.remove(&bytenr);
            } else {
                let extent = extent(1 + i % 40);
                blocks.put(bytenr, &extent);
                map.insert(bytenr, extent);
            }
        }
        assert_eq!(contents(&blocks), map.clone().into_iter().collect::<Vec<_>>());
        for bytenr in (0..4001).map(|i| i * 4096) {
            assert_eq!(blocks.get(bytenr), map.get(&bytenr).cloned());
        }
        for bytenr in map.into_keys() {
            blocks.delete(bytenr);
        }
        assert_eq!(contents(&blocks), []);
        assert_eq!(blocks.spilled_bytes, 0);
    }

    #[test]
    fn a_range_is_replaced_and_what_is_beside_it_stays() {
        let mut blocks = Blocks::default();
        for i in 0..1000 {
            blocks.put(i * 4096, &extent(1 + i % 30));
        }
        for range in [0..0, 10..4097, 4096..400_000, 399_999..400_001, 0..u64::MAX] {
            let beside: Vec<_> =
                contents(&blocks).into_iter().filter(|(at, _)| !range.contains(at)).collect();
            let new: Vec<u64> = (range.start..range.end.min(5_000_000)).step_by(1000).collect();
            let mut from = new.iter();
            blocks.replace_range(range.clone(), |out| {
                *out = extent(3);
                from.next().copied()
            });
            let mut expected = beside;
            expected.extend(new.into_iter().map(|at| (at, extent(3))));
            expected.sort_by_key(|&(at, _)| at);
            assert_eq!(contents(&blocks), expected, "{range:?}");
        }
    }

    #[test]
    fn extents_in_order_fill_their_pages() {
        let mut blocks = Blocks::default();
        for leaf in 0..100 {
            let mut i = leaf * 100;
            blocks.replace_range(i * 4096..(i + 100) * 4096, |out| {
                *out = extent(1);
                out.actions = 0;
                i += 1;
                (i <= (leaf + 1) * 100).then_some((i - 1) * 4096)
            });
        }
        assert!(blocks.index.len() * PAGE_SIZE < 10_000 * 8, "{} pages", blocks.index.len());
    }

    #[test]
    fn the_last_before_an_edge_is_found_across_pages() {
        let mut blocks = Blocks::default();
        for i in 0..500 {
            blocks.put(i * 8192, &extent(2));
        }
        let last = |edge, than| blocks.last_before(edge, |at, _| at <= than).map(|(at, _)| at);
        assert_eq!(last(u64::MAX, u64::MAX), Some(499 * 8192));
        assert_eq!(last(8192, u64::MAX), Some(0));
        assert_eq!(last(0, u64::MAX), None);
        assert_eq!(last(u64::MAX, 20_000), Some(16384));
    }
}
