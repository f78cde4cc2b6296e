//! Calls that make something without a name and hand out its number, which is checked against
//! stale files of ours.

use libc::{c_char, c_int, c_uint, mode_t, sigset_t};

use super::fresh;
use crate::real::hooks;

/// Two numbers that the kernel has just stored at `pair`.
pub(super) fn fresh_pair(done: c_int, pair: *const c_int) -> c_int {
    if done == 0 {
        // SAFETY: the call has succeeded, hence stored two numbers there.
        for number in unsafe { pair.cast::<[c_int; 2]>().read_unaligned() } {
            fresh(number);
        }
    }
    done
}

/// As [`fresh_pair`], for one number and a call that returns what is not negative when it succeeds.
pub(super) fn fresh_at(done: c_int, number: *const c_int) -> c_int {
    if done >= 0 {
        // SAFETY: the call has succeeded, hence stored a number there.
        fresh(unsafe { number.read_unaligned() });
    }
    done
}

hooks! {
    /// creat(2).
    fn creat(path: *const c_char, mode: mode_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        fresh(unsafe { next::creat(path, mode) })
    }

    /// creat(2) of programs compiled for 64-bit offsets.
    fn creat64(path: *const c_char, mode: mode_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        fresh(unsafe { next::creat64(path, mode) })
    }

    /// pipe(2).
    fn pipe(pair: *mut c_int) -> c_int {
        // SAFETY: forwards the caller's own argument.
        fresh_pair(unsafe { next::pipe(pair) }, pair)
    }

    /// pipe2(2).
    fn pipe2(pair: *mut c_int, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        fresh_pair(unsafe { next::pipe2(pair, flags) }, pair)
    }

    /// eventfd(2).
    fn eventfd(count: c_uint, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        fresh(unsafe { next::eventfd(count, flags) })
    }

    /// timerfd_create(2).
    fn timerfd_create(clock: c_int, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        fresh(unsafe { next::timerfd_create(clock, flags) })
    }

    /// signalfd(2). A number that is not −1 names a signalfd that exists.
    fn signalfd(fd: c_int, mask: *const sigset_t, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        fresh(unsafe { next::signalfd(fd, mask, flags) })
    }

    /// memfd_create(2).
    fn memfd_create(name: *const c_char, flags: c_uint) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        fresh(unsafe { next::memfd_create(name, flags) })
    }

    /// inotify_init(2).
    fn inotify_init() -> c_int {
        // SAFETY: forwards the call.
        fresh(unsafe { next::inotify_init() })
    }

    /// inotify_init1(2).
    fn inotify_init1(flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own argument.
        fresh(unsafe { next::inotify_init1(flags) })
    }
}
