//! An atomic, possibly empty reference to something that is never freed.

#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::sync::order;

/// Holds `None` or a `&'static T`.
pub(crate) struct Slot<T: 'static>(AtomicPtr<T>);

impl<T> Slot<T> {
    pub(crate) const fn empty() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> Option<&'static T> {
        let found = self.0.load(Ordering::Acquire);
        order::take(self);
        // SAFETY: the pointer is null or was made from a `&'static T`.
        unsafe { found.as_ref() }
    }

    pub(crate) fn swap(&self, new: Option<&'static T>) -> Option<&'static T> {
        order::give(self);
        let old = self.0.swap(raw(new), Ordering::AcqRel);
        order::take(self);
        // SAFETY: the pointer is null or was made from a `&'static T`.
        unsafe { old.as_ref() }
    }

    /// Empties the slot if it holds `expected`. True when it did.
    pub(crate) fn clear_if(&self, expected: &'static T) -> bool {
        self.replace_if(Some(expected), None)
    }

    /// Puts `new` in if the slot holds `expected`. True when it did.
    pub(crate) fn replace_if(&self, expected: Option<&'static T>, new: Option<&'static T>) -> bool {
        order::give(self);
        self.0
            .compare_exchange(raw(expected), raw(new), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

fn raw<T>(target: Option<&'static T>) -> *mut T {
    target.map_or(ptr::null_mut(), |t| ptr::from_ref(t).cast_mut())
}
