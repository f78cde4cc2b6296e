//! splice(2) and sendfile(2).

use libc::{c_int, c_uint, off_t, size_t, ssize_t};

use super::conclude;
use crate::fd::lookup;
use crate::real::hooks;
use crate::transfer;
use crate::user_mem::UserPtr;

hooks! {
    /// splice(2).
    fn splice(
        from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, len: size_t, flags: c_uint,
    ) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::splice(from, from_at, to, to_at, len, flags) };
        if lookup(from).is_none() && lookup(to).is_none() {
            return native();
        }
        let (from_at, to_at) = (UserPtr::new(from_at.cast()), UserPtr::new(to_at.cast()));
        conclude(transfer::splice(from, from_at, to, to_at, len, flags), native)
    }

    /// sendfile(2).
    fn sendfile(to: c_int, from: c_int, at: *mut off_t, len: size_t) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::sendfile(to, from, at, len) };
        if lookup(from).is_none() && lookup(to).is_none() {
            return native();
        }
        conclude(transfer::sendfile(to, from, UserPtr::new(at.cast()), len), native)
    }

    /// sendfile(2) of programs compiled for 64-bit offsets.
    fn sendfile64(to: c_int, from: c_int, at: *mut off_t, len: size_t) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::sendfile64(to, from, at, len) };
        if lookup(from).is_none() && lookup(to).is_none() {
            return native();
        }
        conclude(transfer::sendfile(to, from, UserPtr::new(at.cast()), len), native)
    }
}
