//! Memory that direct reads accept, used again and again.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::agent::direct::ALIGN;

/// A pool keeps no more than this for later.
const KEPT_MAX_BYTES: usize = 32 << 20;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; ALIGN]);

const _: () = assert!(size_of::<Page>() == ALIGN && align_of::<Page>() == ALIGN);

/// Bytes for one read; they go back to the pool that they came from.
pub(super) struct Buffer {
    /// Some more than are used, so that one of nearly the same length can use them next.
    pages: Vec<Page>,
    used: usize,
    pool: Option<Pool>,
}

impl Buffer {
    /// So many bytes, rounded up to whole pages, of no pool.
    pub(super) fn new(len_bytes: u32) -> Self {
        let used = (len_bytes as usize).div_ceil(ALIGN);
        Self { pages: vec![Page([0; ALIGN]); room_for(used)], used, pool: None }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.get_mut(..self.used).unwrap_or_default().as_mut_bytes()
    }

    /// Reads what is behind the first `at` bytes; `offset` is the buffer's on the file.
    pub(super) fn fill_from(&mut self, at: usize, file: &File, offset: u64) -> io::Result<()> {
        let rest = self.bytes_mut().get_mut(at..).unwrap_or_default();
        if rest.is_empty() { Ok(()) } else { file.read_exact_at(rest, offset + at as u64) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.pages.get(..self.used).unwrap_or_default().as_bytes()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len_bytes", &self.as_ref().len()).finish_non_exhaustive()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.put(std::mem::take(&mut self.pages));
        }
    }
}

/// So many pages have room for those that are used.
const fn room_for(used: usize) -> usize {
    used.next_power_of_two()
}

/// Buffers that wait to be used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    buffers: Vec<Vec<Page>>,
    len_bytes: usize,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("len_bytes", &self.len_bytes).finish_non_exhaustive()
    }
}

impl Pool {
    /// A buffer of so many bytes, rounded up to whole pages. What it holds is old.
    pub(super) fn take(&self, len_bytes: u32) -> Buffer {
        let used = (len_bytes as usize).div_ceil(ALIGN);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.buffers.iter().rposition(|pages| pages.len() == room_for(used));
        let taken = found.map(|place| kept.buffers.swap_remove(place));
        kept.len_bytes -= taken.as_ref().map_or(0, |pages| pages.len() * ALIGN);
        drop(kept);
        let mut buffer = match taken {
            Some(pages) => Buffer { pages, used, pool: None },
            None => Buffer::new(len_bytes),
        };
        buffer.pool = Some(self.clone());
        buffer
    }

    fn put(&self, pages: Vec<Page>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let len_bytes = kept.len_bytes + pages.len() * ALIGN;
        if len_bytes <= KEPT_MAX_BYTES {
            kept.len_bytes = len_bytes;
            kept.buffers.push(pages);
        }
    }
}
