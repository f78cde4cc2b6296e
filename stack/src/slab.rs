//! A slab in chunks: indices are stable, growth never moves a record, freed slots are reused last
//! in first out while they are still in cache.

use core::ops::{Index, IndexMut};

/// Large enough for huge pages; untouched records of a chunk cost address space only.
const CHUNK_SHIFT: u32 = 14;
const CHUNK: usize = 1 << CHUNK_SHIFT;

/// Records addressed by `u32`. A freed slot keeps its last value until reuse, so that
/// generations survive.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }

    /// Records in use.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Stores a record; `make` sees the slot's former value, if there was one.
    pub(crate) fn insert(&mut self, make: impl FnOnce(Option<&T>) -> T) -> u32 {
        self.len += 1;
        if let Some(i) = self.free.pop() {
            let slot = &mut self[i];
            *slot = make(Some(slot));
            return i;
        }
        if self.chunks.last().is_none_or(|c| c.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let n = self.chunks.len() - 1;
        let chunk = &mut self.chunks[n];
        chunk.push(make(None));
        (n << CHUNK_SHIFT | (chunk.len() - 1)) as u32
    }

    /// Frees a slot. Its index must be in use.
    pub(crate) fn remove(&mut self, i: u32) {
        self.len -= 1;
        self.free.push(i);
    }

    /// Every slot ever used, with its last value.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    pub(crate) fn get(&self, i: u32) -> Option<&T> {
        self.chunks
            .get(i as usize >> CHUNK_SHIFT)?
            .get(i as usize & (CHUNK - 1))
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, i: u32) -> &T {
        &self.chunks[i as usize >> CHUNK_SHIFT][i as usize & (CHUNK - 1)]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, i: u32) -> &mut T {
        &mut self.chunks[i as usize >> CHUNK_SHIFT][i as usize & (CHUNK - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_and_show_their_past() {
        let mut s = Slab::new();
        let ids: Vec<u32> = (0..30_000).map(|v| s.insert(|_| v)).collect();
        assert_eq!(s[ids[29_999]], 29_999);
        s.remove(ids[7]);
        let again = s.insert(|old| old.copied().unwrap_or(0) + 100_000);
        assert_eq!((again, s[again], s.len()), (ids[7], 100_007, 30_000));
        assert!(s.get(30_500).is_none());
    }
}
