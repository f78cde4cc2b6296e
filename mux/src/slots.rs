//! A table with first-fit indices: /proc/net/kcm shows the index of every KCM socket and
//! psock, and the kernel gives out the lowest free one (kcm-semantics §18).

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Boxed entries, so that the table costs one word per index.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Option<Box<T>>>,
    /// No index below this one is free.
    first_free: usize,
    len: usize,
}

impl<T> Slots<T> {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            first_free: 0,
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Puts `value` at the lowest free index.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let index = self
            .slots
            .iter()
            .skip(self.first_free)
            .position(Option::is_none)
            .map_or(self.slots.len(), |distance| self.first_free + distance);
        if index == self.slots.len() {
            self.slots.push(None);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(Box::new(value));
        }
        self.first_free = index + 1;
        self.len += 1;
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    pub(crate) fn remove(&mut self, index: u32) -> Option<Box<T>> {
        let value = self.slots.get_mut(index as usize)?.take()?;
        self.first_free = self.first_free.min(index as usize);
        self.len -= 1;
        while matches!(self.slots.last(), Some(None)) {
            self.slots.pop();
        }
        Some(value)
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.as_deref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.as_deref_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..)
            .zip(&self.slots)
            .filter_map(|(index, slot)| Some((index, slot.as_deref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_index_is_given_out_first() {
        let mut slots = Slots::new();
        assert_eq!(
            [slots.insert('a'), slots.insert('b'), slots.insert('c')],
            [0, 1, 2]
        );
        slots.remove(1);
        slots.remove(0);
        assert_eq!(
            [slots.insert('d'), slots.insert('e'), slots.insert('f')],
            [0, 1, 3]
        );
        assert_eq!(slots.len(), 4);
    }

    #[test]
    fn removing_the_last_indices_frees_the_tail() {
        let mut slots = Slots::new();
        (0..100).for_each(|n| assert_eq!(slots.insert(n), n));
        (50..100).for_each(|n| assert!(slots.remove(n).is_some()));
        assert_eq!(slots.slots.len(), 50);
        assert_eq!(slots.insert(7), 50);
    }
}
