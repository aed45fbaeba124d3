//! Pages by number, in slabs, so that a page costs no more than its bytes.

use super::page::Page;

/// All pages of a ledger. Those that are freed serve again.
#[derive(Default)]
pub(super) struct Arena {
    slabs: Vec<Box<[Page]>>,
    used: u32,
    free: Vec<u32>,
}

impl Arena {
    const SLAB_BITS: u32 = 8;
    const SLAB_PAGES: usize = 1 << Self::SLAB_BITS;

    pub(super) fn page(&self, id: u32) -> &Page {
        &self.slabs[(id >> Self::SLAB_BITS) as usize][id as usize % Self::SLAB_PAGES]
    }

    pub(super) fn page_mut(&mut self, id: u32) -> &mut Page {
        &mut self.slabs[(id >> Self::SLAB_BITS) as usize][id as usize % Self::SLAB_PAGES]
    }

    /// Takes a page in; returns its number.
    pub(super) fn add(&mut self, page: &Page) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| self.grow());
        self.page_mut(id).clone_from(page);
        id
    }

    fn grow(&mut self) -> u32 {
        let id = self.used;
        if (id as usize).is_multiple_of(Self::SLAB_PAGES) {
            self.slabs.push(Page::zeroed(Self::SLAB_PAGES));
        }
        self.used += 1;
        id
    }

    pub(super) fn free(&mut self, id: u32) {
        self.free.push(id);
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.slabs.len() * Self::SLAB_PAGES * size_of::<Page>()
            + self.free.capacity() * size_of::<u32>()
    }
}
