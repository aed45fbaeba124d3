//! Extents at rest: pages under an index.

use std::{
    collections::BTreeMap,
    ops::{Bound, Range, RangeBounds, RangeInclusive},
};

use super::{
    Extent,
    arena::Arena,
    codec::{
        Body, Context, ENTRY_MAX, HEAD_MAX, Head, put_body, put_full_body, put_spilled_body,
        read_body,
    },
    index::{Index, Position},
    page::{Filling, NewEntry, PAGE_SIZE, Page, Spot},
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
    body: Vec<u8>,
    entry: Vec<u8>,
    /// The positions of what was brought near, as of so many changes of the index.
    near: (u64, Vec<Position>),
}

/// Where an extent is, or would be, until the next change.
pub(super) struct Place {
    position: Position,
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
        let (changes, positions) = &self.near;
        match positions.get(number) {
            Some(&position) if *changes == self.index.changes() => {
                Some(self.find_in(position, bytenr))
            }
            _ => self.find(bytenr),
        }
    }

    fn find_in(&self, position: Position, bytenr: u64) -> Place {
        let (key, id) = self.index.at(position);
        let spot = self.arena.page(id).find(key, bytenr);
        Place { position, id, spot }
    }

    /// Brings what will be looked for near, in order of bytenr, all of it at once: memory is
    /// far, and one extent after the other would wait for it each time anew.
    pub(super) fn bring_near(&mut self, bytenrs: impl Iterator<Item = u64> + Clone) {
        let (changes, positions) = &mut self.near;
        *changes = self.index.changes();
        self.index.find_all(bytenrs, positions);
        let mut touched = 0;
        for &position in &*positions {
            touched ^= self.arena.page(self.index.at(position).1).touch();
        }
        std::hint::black_box(touched);
    }

    /// Reads the extent at a place into `extent`. Returns whether there is one.
    pub(super) fn read(&self, bytenr: u64, place: &Place, extent: &mut Extent) -> bool {
        match self.arena.page(place.id).read_spot(&place.spot, extent) {
            Some(Body::Here) => true,
            Some(Body::Spilled) => self.read_spilled(bytenr, extent),
            None => false,
        }
    }

    /// The extent at a bytenr.
    pub(super) fn get(&self, bytenr: u64) -> Option<Extent> {
        let mut extent = Extent::default();
        let place = self.find(bytenr)?;
        self.read(bytenr, &place, &mut extent).then_some(extent)
    }

    fn read_spilled(&self, bytenr: u64, extent: &mut Extent) -> bool {
        let Some(bytes) = self.spilled.get(&bytenr) else { return false };
        let len_bytes = extent.len_bytes;
        let head = Head { size: bytes.len(), body: 0, bytenr, len_bytes, is_plain: false };
        read_body(bytes, &head, &Context::default(), extent).is_some()
    }

    /// Puts an extent in, in place of the one that is there. Places found before are void.
    pub(super) fn put(&mut self, bytenr: u64, extent: &Extent) {
        let place = self.find(bytenr);
        self.put_at(place.as_ref(), bytenr, extent);
    }

    /// As [`Self::put`], where the place has been looked for.
    pub(super) fn put_at(&mut self, place: Option<&Place>, bytenr: u64, extent: &Extent) {
        let Some(place) = place else {
            let first = (0, Page::new(Context::default()));
            self.rewrite(&[first], bytenr..=bytenr, PAGE_SIZE, once(bytenr, extent));
            return;
        };
        let context = self.arena.page(place.id).context();
        let is_plain = self.write_body(bytenr, extent, &context);
        let new = NewEntry { bytenr, len_bytes: extent.len_bytes, is_plain, body: &self.body };
        let (key, _) = self.index.at(place.position);
        let page = self.arena.page_mut(place.id);
        if page.replace(&place.spot, key, Some(&new), &mut self.entry) {
            return;
        }
        let is_end = page.is_end(&place.spot);
        if is_end || !self.split(place) {
            // In key order the page that is full stays full.
            let page = self.take_out(bytenr);
            self.rewrite(&[page], bytenr..=bytenr, Filling::SPLIT, once(bytenr, extent));
        } else {
            self.put(bytenr, extent);
        }
    }

    /// Makes two pages of one. Returns whether it has more than one extent.
    fn split(&mut self, place: &Place) -> bool {
        let (key, id) = self.index.at(place.position);
        let Some((upper_key, upper)) = self.arena.page_mut(id).split(key, &mut self.entry) else {
            return false;
        };
        let upper = self.arena.add(&upper);
        self.index.insert(upper_key, upper);
        true
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
        let (key, _) = self.index.at(place.position);
        let page = self.arena.page_mut(place.id);
        if !page.replace(&place.spot, key, None, &mut self.entry) {
            // The entry after it is farther now from the one before it, and telling that may
            // take more bytes than went.
            let page = self.take_out(bytenr);
            self.rewrite(&[page], bytenr..=bytenr, Filling::SPLIT, |_| None);
        } else if page.is_sparse() {
            self.join(place.position);
        }
        self.unspill(bytenr);
    }

    /// A page that holds little goes together with the one after it.
    fn join(&mut self, position: Position) {
        let (key, id) = self.index.at(position);
        if self.arena.page(id).is_empty() {
            if key != 0 {
                self.take_out(key);
            }
            return;
        }
        let Some(next) = self.index.next(position) else { return };
        let (next_key, next_id) = self.index.at(next);
        if self.arena.page(id).fits_with(self.arena.page(next_id)) {
            let pages = [self.take_out(key), self.take_out(next_key)];
            // Between the two there is nothing to replace.
            self.rewrite(&pages, next_key..=next_key - 1, PAGE_SIZE, |_| None);
        }
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
        self.rewrite(&edges, range.start..=last, Filling::IN_ORDER, next);
    }

    /// Takes out the pages of a range. Returns those that may hold extents beside it.
    fn take_out_range(&mut self, range: &Range<u64>) -> Vec<Loose> {
        if self.index.is_empty() {
            return vec![(0, Page::new(Context::default()))];
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
        let first_key = pages.first().map(|page| page.0).filter(|&key| key <= *range.start());
        let mut writer = PageWriter { first_key, filling: None, limit };
        if let [(key, page), rest @ ..] = pages
            && page.heads(*key).all(|(_, head)| head.bytenr < *range.start())
            && !page.is_empty()
        {
            writer =
                PageWriter { first_key: None, filling: Some(Filling::resume(*key, page)), limit };
            pages = rest;
        }
        let mut extent = Extent::default();
        self.copy(pages, &mut writer, &mut extent, |bytenr| bytenr < *range.start());
        while let Some(bytenr) = next(&mut extent) {
            self.append(&mut writer, bytenr, &extent);
        }
        self.copy(pages, &mut writer, &mut extent, |bytenr| bytenr > *range.end());
        self.finish(writer);
    }

    fn copy(
        &mut self,
        pages: &[Loose],
        writer: &mut PageWriter,
        extent: &mut Extent,
        is_wanted: impl Fn(u64) -> bool,
    ) {
        for (key, page) in pages {
            for (at, head) in page.heads(*key).filter(|(_, head)| is_wanted(head.bytenr)) {
                self.read_entry(page, at, &head, extent);
                self.append(writer, head.bytenr, extent);
            }
        }
    }

    fn read_entry(&self, page: &Page, at: usize, head: &Head, extent: &mut Extent) {
        if page.read(at, head, extent) == Some(Body::Spilled) {
            self.read_spilled(head.bytenr, extent);
        }
    }

    fn append(&mut self, writer: &mut PageWriter, bytenr: u64, extent: &Extent) {
        if let Some(mut filling) = writer.filling.take() {
            let has_room = self.push(&mut filling, bytenr, extent, writer.limit);
            if has_room {
                writer.filling = Some(filling);
                return;
            }
            self.add(filling);
        }
        let key = writer.first_key.take().unwrap_or(bytenr);
        let mut filling = Filling::new(key, extent);
        let has_room = self.push(&mut filling, bytenr, extent, PAGE_SIZE);
        debug_assert!(has_room, "an empty page takes any entry");
        writer.filling = Some(filling);
    }

    fn push(&mut self, filling: &mut Filling, bytenr: u64, extent: &Extent, limit: usize) -> bool {
        let is_plain = self.write_body(bytenr, extent, &filling.context());
        let new = NewEntry { bytenr, len_bytes: extent.len_bytes, is_plain, body: &self.body };
        filling.push(&new, limit, &mut self.entry)
    }

    fn add(&mut self, filling: Filling) {
        let (key, page) = filling.finish();
        let id = self.arena.add(&page);
        self.index.insert(key, id);
    }

    fn finish(&mut self, writer: PageWriter) {
        if let Some(filling) = writer.filling {
            self.add(filling);
        } else if writer.first_key == Some(0) {
            let id = self.arena.add(&Page::new(Context::default()));
            self.index.insert(0, id);
        }
    }

    /// Writes an extent's body; what is too large for a page is spilled. Returns whether the
    /// body is a plain one.
    fn write_body(&mut self, bytenr: u64, extent: &Extent, context: &Context) -> bool {
        self.body.clear();
        let is_plain = put_body(&mut self.body, extent, context);
        if self.body.len() + HEAD_MAX <= ENTRY_MAX {
            self.unspill(bytenr);
            return is_plain;
        }
        self.body.clear();
        // Written relative to nothing, it is never plain.
        put_full_body(&mut self.body, extent, &Context::default());
        self.spill(bytenr);
        self.body.clear();
        put_spilled_body(&mut self.body);
        false
    }

    fn spill(&mut self, bytenr: u64) {
        self.unspill(bytenr);
        self.spilled_bytes += self.body.len();
        self.spilled.insert(bytenr, self.body.as_slice().into());
    }

    fn unspill(&mut self, bytenr: u64) {
        if !self.spilled.is_empty()
            && let Some(bytes) = self.spilled.remove(&bytenr)
        {
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
            for (at, head) in page.heads(key).filter(|(_, head)| range.contains(&head.bytenr)) {
                self.read_entry(page, at, &head, &mut extent);
                each(head.bytenr, &extent);
            }
            at = self.index.next(position);
        }
    }

    /// The first extent at `bytenr` or behind it.
    pub(super) fn first_from(&self, bytenr: u64) -> Option<u64> {
        let mut at = self.index.find(bytenr);
        while let Some(position) = at {
            let (key, id) = self.index.at(position);
            let mut heads = self.arena.page(id).heads(key);
            if let Some((_, head)) = heads.find(|(_, head)| head.bytenr >= bytenr) {
                return Some(head.bytenr);
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
            let heads: Vec<_> = page.heads(key).filter(|(_, head)| head.bytenr < edge).collect();
            for (at, head) in heads.into_iter().rev() {
                self.read_entry(page, at, &head, &mut extent);
                if is_wanted(head.bytenr, &extent) {
                    return Some((head.bytenr, extent));
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

/// Gives one extent.
fn once(bytenr: u64, extent: &Extent) -> impl FnMut(&mut Extent) -> Option<u64> {
    let mut only = Some(bytenr);
    move |out| {
        out.clone_from(extent);
        only.take()
    }
}

/// Writes pages in key order.
struct PageWriter {
    /// The key of the next page, where it is not that of its first extent.
    first_key: Option<u64>,
    filling: Option<Filling>,
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
