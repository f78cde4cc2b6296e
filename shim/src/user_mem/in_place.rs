//! Values that a call reads first and changes in the end: the headers of recvmsg(2) and recvmmsg(2).

use core::cell::Cell;
use core::marker::PhantomData;

use super::known::Generation;
use super::{Access, Efault, KNOWN, PAGE_BITS, Pod, UserPtr, check, copy_in};

/// An array in the program's memory, a page of which is checked at a time, and once: what can be
/// written can be read.
pub(crate) struct InPlace<T> {
    at: UserPtr,
    count: usize,
    /// Elements from `first` to before `end` were found writable in `generation`.
    first: Cell<usize>,
    end: Cell<usize>,
    generation: Cell<Generation>,
    element: PhantomData<T>,
}

impl<T: Pod> InPlace<T> {
    /// Elements checked at a time: what fits into a page. The call may never get to those behind.
    const STEP: usize = {
        assert!(size_of::<T>() > 0 && size_of::<T>() <= 1 << PAGE_BITS);
        (1 << PAGE_BITS) / size_of::<T>()
    };

    /// `count` elements at `at`, none of which has been looked at.
    #[inline]
    pub(crate) fn new(at: UserPtr, count: usize) -> Self {
        Self {
            at,
            count,
            first: Cell::new(0),
            end: Cell::new(0),
            generation: Cell::new(KNOWN.now()),
            element: PhantomData,
        }
    }

    /// Whether the element can be written. Memory that was taken away since is looked at again.
    #[inline]
    fn is_writable(&self, index: usize) -> bool {
        let known = (self.first.get()..self.end.get()).contains(&index)
            && self.generation.get() == KNOWN.now();
        known || self.look(index)
    }

    fn look(&self, index: usize) -> bool {
        let now = KNOWN.now();
        let ahead = self.count.saturating_sub(index).min(Self::STEP);
        // The program's array may end before its count does.
        let good = [ahead, 1].into_iter().find(|elements| {
            let bytes = elements * size_of::<T>();
            check(self.at.element::<T>(index), bytes, Access::Write).is_ok()
        });
        self.first.set(index);
        self.end.set(index + good.unwrap_or(0));
        self.generation.set(now);
        good.is_some()
    }

    /// A copy of an element. One that can only be read is found out when it is changed, as by the
    /// kernel.
    #[inline]
    pub(crate) fn read(&self, index: usize) -> Result<T, Efault> {
        let at = self.at.element::<T>(index);
        if !self.is_writable(index) {
            return copy_in(at);
        }
        // SAFETY: the element was checked to be writable, hence readable; any bytes make a `T`.
        Ok(unsafe { at.0.cast::<T>().read_unaligned() })
    }

    /// Stores a field that lies `offset` bytes into an element.
    #[inline]
    pub(crate) fn write<F: Pod>(
        &self,
        index: usize,
        offset: usize,
        value: F,
    ) -> Result<(), Efault> {
        debug_assert!(offset + size_of::<F>() <= size_of::<T>());
        if !self.is_writable(index) {
            return Err(Efault);
        }
        let at = self.at.element::<T>(index).offset(offset);
        // SAFETY: the element was checked to be writable, and the field lies within it.
        unsafe { at.0.cast::<F>().write_unaligned(value) };
        Ok(())
    }
}
