//! An ordered index of pages by the first bytenr that each may hold.
//!
//! Two levels of sorted arrays: one of chunks, and in each chunk some hundred keys. Room is
//! made by moving what stands behind, which is little.

/// An index from keys to pages.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The first key of each chunk.
    firsts: Vec<u64>,
    chunks: Vec<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    keys: Vec<u64>,
    pages: Vec<u32>,
}

/// A place in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    chunk: u32,
    slot: u32,
}

impl Chunk {
    const MAX: usize = 256;

    fn new() -> Self {
        Self { keys: Vec::with_capacity(Self::MAX), pages: Vec::with_capacity(Self::MAX) }
    }

    fn split_off(&mut self, at: usize) -> Self {
        let mut upper = Self::new();
        upper.keys.extend(self.keys.drain(at..));
        upper.pages.extend(self.pages.drain(at..));
        upper
    }
}

impl Index {
    /// Whether there is no page.
    pub(super) const fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many pages there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.keys.len()).sum()
    }

    /// The last page whose key is not above `bytenr`.
    pub(super) fn find(&self, bytenr: u64) -> Option<Position> {
        let chunk = self.firsts.partition_point(|&first| first <= bytenr).checked_sub(1)?;
        let slot = self.chunks[chunk].keys.partition_point(|&key| key <= bytenr) - 1;
        Some(Position { chunk: chunk as u32, slot: slot as u32 })
    }

    /// The key and the page there.
    pub(super) fn at(&self, position: Position) -> (u64, u32) {
        let chunk = &self.chunks[position.chunk as usize];
        (chunk.keys[position.slot as usize], chunk.pages[position.slot as usize])
    }

    /// The next one.
    pub(super) fn next(&self, position: Position) -> Option<Position> {
        let Position { chunk, slot } = position;
        if (slot as usize) + 1 < self.chunks[chunk as usize].keys.len() {
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
        let slot = self.chunks[chunk as usize].keys.len() as u32 - 1;
        Some(Position { chunk, slot })
    }

    /// Adds a page. No page has its key yet.
    pub(super) fn insert(&mut self, key: u64, page: u32) {
        let Some(after) = self.find(key) else {
            return self.insert_at(0, 0, key, page);
        };
        let (mut chunk, mut slot) = (after.chunk as usize, after.slot as usize + 1);
        if self.chunks[chunk].keys.len() == Chunk::MAX {
            // In key order the chunk that is full stays full.
            let is_last = chunk + 1 == self.chunks.len() && slot == Chunk::MAX;
            let at = if is_last { Chunk::MAX } else { Chunk::MAX / 2 };
            let upper = self.chunks[chunk].split_off(at);
            let first = upper.keys.first().copied().unwrap_or(key);
            self.chunks.insert(chunk + 1, upper);
            self.firsts.insert(chunk + 1, first);
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
        }
        self.chunks[chunk].keys.insert(slot, key);
        self.chunks[chunk].pages.insert(slot, page);
        if slot == 0 {
            self.firsts[chunk] = key;
        }
    }

    /// Takes a page out.
    pub(super) fn remove(&mut self, position: Position) {
        let Position { chunk, slot } = position;
        let (chunk, slot) = (chunk as usize, slot as usize);
        self.chunks[chunk].keys.remove(slot);
        self.chunks[chunk].pages.remove(slot);
        match self.chunks[chunk].keys.first() {
            None => {
                self.chunks.remove(chunk);
                self.firsts.remove(chunk);
            }
            Some(&first) => self.firsts[chunk] = first,
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        let chunk = size_of::<Chunk>() + Chunk::MAX * (size_of::<u64>() + size_of::<u32>());
        self.firsts.capacity() * size_of::<u64>() + self.chunks.len() * chunk
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
