//! Values that a call reads first and changes in the end: the headers of recvmsg(2) and recvmmsg(2).

use core::marker::PhantomData;

use super::{Efault, Pod, UserPtr, check_write, copy_in};

/// A value in the program's memory.
#[derive(Clone, Copy)]
pub(crate) struct InPlace<T> {
    at: UserPtr,
    value: PhantomData<T>,
}

impl<T: Pod> InPlace<T> {
    /// The value at `at`, which has not been looked at.
    #[inline(always)]
    pub(crate) fn new(at: UserPtr) -> Self {
        Self {
            at,
            value: PhantomData,
        }
    }

    /// A copy of the value. One that can only be read is found out when it is changed, as by the
    /// kernel.
    #[inline(always)]
    pub(crate) fn read(self) -> Result<T, Efault> {
        copy_in(self.at)
    }

    /// The right to change the value, for as long as the call does not sleep.
    #[inline(always)]
    pub(crate) fn writable(self) -> Result<Writable<T>, Efault> {
        check_write(self.at, size_of::<T>())?;
        Ok(Writable(self))
    }
}

/// A value that was found writable just now.
pub(crate) struct Writable<T>(InPlace<T>);

impl<T: Pod> Writable<T> {
    /// Stores a field that lies `offset` bytes into the value.
    #[inline(always)]
    pub(crate) fn set<F: Pod>(&self, offset: usize, field: F) {
        assert!(offset + size_of::<F>() <= size_of::<T>());
        let at = self.0.at.offset(offset);
        // SAFETY: the value was found writable, and the field lies within it.
        unsafe { at.0.cast::<F>().write_unaligned(field) };
    }
}
