//! The process's environment as the loader hands it over at start: `std::env` is not ready that early.

#![allow(unsafe_code)]

use core::ffi::CStr;
use std::ffi::CString;

use libc::c_char;

use crate::init::library_name;
use crate::share::program::{entries, is_called};

/// A NULL-terminated array of C strings that live as long as the process.
#[derive(Clone, Copy)]
pub(crate) struct Environment(*mut *const c_char);

impl Environment {
    /// # Safety
    /// `envp` is null, or such an array. As long as this value and its iterators are used, nobody else
    /// changes it.
    pub(crate) unsafe fn new(envp: *mut *const c_char) -> Self {
        Self(envp)
    }

    /// The place of the entry with this number. The caller has not passed the NULL that ends the array.
    fn place(self, index: usize) -> *mut *const c_char {
        self.0.wrapping_add(index)
    }

    /// The entry with this number, unless it is the NULL that ends the array.
    fn entry(self, index: usize) -> Option<&'static CStr> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: by the contract of `new`; the NULL has not been passed.
        unsafe {
            let entry = *self.place(index);
            (!entry.is_null()).then(|| CStr::from_ptr(entry))
        }
    }

    fn entries(self) -> impl Iterator<Item = &'static CStr> {
        (0..).map_while(move |index| self.entry(index))
    }

    /// Name and value of each variable.
    pub(crate) fn variables(self) -> impl Iterator<Item = (&'static [u8], &'static [u8])> {
        self.entries().filter_map(|entry| {
            let entry = entry.to_bytes();
            let at = entry.iter().position(|b| *b == b'=')?;
            Some((entry.get(..at)?, entry.get(at + 1..)?))
        })
    }

    /// Takes out what makes programs started by this one load this library: our settings, and our name
    /// in LD_PRELOAD. The strings stay as they are; the array closes up.
    pub(crate) fn strip(self) {
        let kept: Vec<*const c_char> = self.entries().filter_map(without_us).collect();
        for (index, entry) in kept.into_iter().chain([core::ptr::null()]).enumerate() {
            if !self.0.is_null() {
                // SAFETY: by the contract of `new`; there are at most as many as there were.
                unsafe { *self.place(index) = entry };
            }
        }
    }
}

/// An entry as a program that we are to have no part in gets it.
fn without_us(entry: &'static CStr) -> Option<*const c_char> {
    if entry.to_bytes().starts_with(b"KCMSHIM_") {
        return None;
    }
    let (Some(list), Some(ours)) = (
        entry.to_bytes().strip_prefix(b"LD_PRELOAD="),
        library_name(),
    ) else {
        return Some(entry.as_ptr());
    };
    let left: Vec<&[u8]> = entries(list)
        .filter(|library| !library.is_empty() && !is_called(library, ours))
        .collect();
    if left.is_empty() {
        return None;
    }
    let rest = CString::new([b"LD_PRELOAD=", left.join(&b':').as_slice()].concat());
    rest.ok().map(|rest| CString::into_raw(rest).cast_const())
}
