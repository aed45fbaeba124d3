//! An ordered index of pages by the first bytenr that each may hold.
//!
//! Two levels of sorted arrays: one of chunks, and in each chunk some hundred keys. Room is
//! made by moving what stands behind, which is little. A look-up is three short searches: among
//! the chunks, among a chunk's fences, and among the few keys between two fences. Only the last
//! waits for memory, and many look-ups can wait together: see [`Index::find_all`].

/// An index from keys to pages.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The first key of each chunk.
    firsts: Vec<u64>,
    /// Every sixteenth key of each chunk: so few that all stay near.
    fences: Vec<Fences>,
    #[expect(
        clippy::vec_box,
        reason = "a chunk is large, and making room moves what stands behind"
    )]
    chunks: Vec<Box<Chunk>>,
}

type Fences = [u64; CHUNK / FENCE];

/// Some pages in order. What lies beyond `len` is nothing.
#[derive(Debug)]
struct Chunk {
    keys: [u64; CHUNK],
    pages: [u32; CHUNK],
    len: usize,
}

const CHUNK: usize = 256;
const FENCE: usize = 16;

/// A place in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    chunk: u32,
    slot: u32,
}

impl Chunk {
    fn new() -> Box<Self> {
        // Keys beyond the last are above all that is looked for, or equal to the last of all.
        Box::new(Self { keys: [u64::MAX; CHUNK], pages: [0; CHUNK], len: 0 })
    }

    /// The slot of the last key not above `bytenr` among those from `group` on.
    fn slot(&self, group: usize, bytenr: u64) -> usize {
        let keys = &self.keys[group..group + FENCE];
        let slot = group + keys.partition_point(|&key| key <= bytenr) - 1;
        slot.min(self.len - 1)
    }

    fn fences(&self) -> Fences {
        std::array::from_fn(|number| self.keys[number * FENCE])
    }

    fn insert(&mut self, slot: usize, key: u64, page: u32) {
        self.keys.copy_within(slot..self.len, slot + 1);
        self.pages.copy_within(slot..self.len, slot + 1);
        self.keys[slot] = key;
        self.pages[slot] = page;
        self.len += 1;
    }

    fn remove(&mut self, slot: usize) {
        self.keys.copy_within(slot + 1..self.len, slot);
        self.pages.copy_within(slot + 1..self.len, slot);
        self.len -= 1;
        self.keys[self.len] = u64::MAX;
    }

    fn split_off(&mut self, at: usize) -> Box<Self> {
        let mut upper = Self::new();
        upper.len = self.len - at;
        upper.keys[..upper.len].copy_from_slice(&self.keys[at..self.len]);
        upper.pages[..upper.len].copy_from_slice(&self.pages[at..self.len]);
        self.keys[at..].fill(u64::MAX);
        self.len = at;
        upper
    }
}

/// Where the keys of a chunk begin among which the one for `bytenr` is; the first key is not
/// above it.
fn group(fences: &Fences, bytenr: u64) -> usize {
    (fences.partition_point(|&fence| fence <= bytenr) - 1) * FENCE
}

impl Index {
    /// Whether there is no page.
    pub(super) const fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many pages there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len).sum()
    }

    fn chunk_of(&self, bytenr: u64) -> Option<usize> {
        self.firsts.partition_point(|&first| first <= bytenr).checked_sub(1)
    }

    /// The last page whose key is not above `bytenr`.
    pub(super) fn find(&self, bytenr: u64) -> Option<Position> {
        let chunk = self.chunk_of(bytenr)?;
        let slot = self.chunks[chunk].slot(group(&self.fences[chunk], bytenr), bytenr);
        Some(Position { chunk: chunk as u32, slot: slot as u32 })
    }

    /// Whether the page at a position, which may have been found before others came and went, is
    /// the one for `bytenr`.
    #[inline]
    pub(super) fn is_at(&self, position: Position, bytenr: u64) -> bool {
        let (number, slot) = (position.chunk as usize, position.slot as usize);
        let Some(chunk) = self.chunks.get(number).filter(|chunk| slot < chunk.len) else {
            return false;
        };
        let next = chunk.keys[..chunk.len].get(slot + 1).or_else(|| self.firsts.get(number + 1));
        chunk.keys[slot] <= bytenr && next.is_none_or(|&next| bytenr < next)
    }

    /// Looks many extents up, level by level, each level touching what the next needs: so they
    /// wait for memory together, and not one after the other.
    pub(super) fn find_all(
        &self,
        bytenrs: impl Iterator<Item = u64> + Clone,
        positions: &mut Vec<Position>,
    ) {
        positions.clear();
        if self.is_empty() {
            return;
        }
        let mut touched = 0;
        for bytenr in bytenrs.clone() {
            let chunk = self.chunk_of(bytenr).unwrap_or(0);
            touched ^= self.fences[chunk][0] ^ self.fences[chunk][CHUNK / FENCE / 2];
            positions.push(Position { chunk: chunk as u32, slot: 0 });
        }
        for (bytenr, position) in bytenrs.clone().zip(&mut *positions) {
            let chunk = position.chunk as usize;
            let group = group(&self.fences[chunk], bytenr);
            let Chunk { keys, pages, .. } = &*self.chunks[chunk];
            touched ^= keys[group] ^ keys[group + FENCE / 2] ^ u64::from(pages[group]);
            position.slot = group as u32;
        }
        std::hint::black_box(touched);
        for (bytenr, position) in bytenrs.zip(positions) {
            let chunk = &self.chunks[position.chunk as usize];
            position.slot = chunk.slot(position.slot as usize, bytenr) as u32;
        }
    }

    /// The key and the page there.
    pub(super) fn at(&self, position: Position) -> (u64, u32) {
        let chunk = &self.chunks[position.chunk as usize];
        (chunk.keys[position.slot as usize], chunk.pages[position.slot as usize])
    }

    /// The next one.
    pub(super) fn next(&self, position: Position) -> Option<Position> {
        let Position { chunk, slot } = position;
        if (slot as usize) + 1 < self.chunks[chunk as usize].len {
            return Some(Position { chunk, slot: slot + 1 });
        }
        ((chunk as usize) + 1 < self.chunks.len()).then_some(Position { chunk: chunk + 1, slot: 0 })
    }

    /// The one before.
    pub(super) fn previous(&self, position: Position) -> Option<Position> {
        let Position { chunk, slot } = position;
        if slot > 0 {
            return Some(Position { chunk, slot: slot - 1 });
        }
        let chunk = chunk.checked_sub(1)?;
        let slot = self.chunks[chunk as usize].len as u32 - 1;
        Some(Position { chunk, slot })
    }

    /// Adds a page. No page has its key yet.
    pub(super) fn insert(&mut self, key: u64, page: u32) {
        let Some(after) = self.find(key) else {
            return self.insert_at(0, 0, key, page);
        };
        let (mut chunk, mut slot) = (after.chunk as usize, after.slot as usize + 1);
        if self.chunks[chunk].len == CHUNK {
            // In key order the chunk that is full stays full.
            let is_last = chunk + 1 == self.chunks.len() && slot == CHUNK;
            let at = if is_last { CHUNK } else { CHUNK / 2 };
            let upper = self.chunks[chunk].split_off(at);
            self.fences[chunk] = self.chunks[chunk].fences();
            let first = if is_last { key } else { upper.keys[0] };
            self.chunks.insert(chunk + 1, upper);
            self.firsts.insert(chunk + 1, first);
            self.fences.insert(chunk + 1, self.chunks[chunk + 1].fences());
            if slot > at || is_last {
                chunk += 1;
                slot -= at;
            }
        }
        self.insert_at(chunk, slot, key, page);
    }

    fn insert_at(&mut self, chunk: usize, slot: usize, key: u64, page: u32) {
        if self.chunks.is_empty() {
            self.chunks.push(Chunk::new());
            self.firsts.push(key);
            self.fences.push([key; CHUNK / FENCE]);
        }
        self.chunks[chunk].insert(slot, key, page);
        self.fences[chunk] = self.chunks[chunk].fences();
        if slot == 0 {
            self.firsts[chunk] = key;
        }
    }

    /// Takes a page out.
    pub(super) fn remove(&mut self, position: Position) {
        let Position { chunk, slot } = position;
        let chunk = chunk as usize;
        self.chunks[chunk].remove(slot as usize);
        if self.chunks[chunk].len == 0 {
            self.chunks.remove(chunk);
            self.firsts.remove(chunk);
            self.fences.remove(chunk);
        } else {
            self.firsts[chunk] = self.chunks[chunk].keys[0];
            self.fences[chunk] = self.chunks[chunk].fences();
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.capacity() * (2 * size_of::<u64>() + size_of::<Fences>())
            + self.chunks.len() * size_of::<Chunk>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(index: &Index) -> Vec<(u64, u32)> {
        let mut at = index.find(0);
        let mut all = Vec::new();
        while let Some(position) = at {
            all.push(index.at(position));
            at = index.next(position);
        }
        all
    }

    #[test]
    fn keys_in_any_order_are_found_in_order() {
        let mut index = Index::default();
        index.insert(0, 0);
        for i in 1..5000_u64 {
            let key = i * 7919 % 5003;
            index.insert(key * 10, key as u32);
        }
        let all = keys(&index);
        assert_eq!(all.len(), 5000);
        assert!(all.is_sorted());
        for &(key, page) in &all {
            assert_eq!(index.at(index.find(key + 9).unwrap()), (key, page));
        }
    }

    #[test]
    fn an_old_position_is_trusted_only_where_it_would_be_found_again() {
        let mut index = Index::default();
        for key in 0..600 {
            index.insert(key * 10, key as u32);
        }
        let bytenrs: Vec<u64> = (0..6100).step_by(7).collect();
        let old: Vec<_> = bytenrs.iter().map(|&bytenr| index.find(bytenr).unwrap()).collect();
        let mut trusted = Vec::new();
        for change in 0..600 {
            for (&bytenr, &position) in bytenrs.iter().zip(&old) {
                let is_found = index.find(bytenr) == Some(position);
                assert_eq!(index.is_at(position, bytenr), is_found, "{change}: {bytenr}");
            }
            trusted
                .push(old.iter().zip(&bytenrs).filter(|(at, of)| index.is_at(**at, **of)).count());
            if change % 3 == 0 {
                index.insert(change * 10 + 5, 0);
            } else {
                index.remove(index.find(change * 10).unwrap());
            }
        }
        assert!(trusted[0] == old.len() && trusted[5] > 0 && trusted[599] < old.len() / 10);
    }

    #[test]
    fn what_is_removed_is_gone_and_the_one_before_answers() {
        let mut index = Index::default();
        for key in 0..1000_u32 {
            index.insert(u64::from(key), key);
        }
        for key in (1..1000).filter(|key| key % 3 != 0) {
            index.remove(index.find(key).unwrap());
        }
        for key in 0..999_u64 {
            assert_eq!(index.at(index.find(key).unwrap()).0, key / 3 * 3);
        }
        let last = index.find(u64::MAX).unwrap();
        assert_eq!(index.at(index.previous(last).unwrap()).0, 996);
    }
}
