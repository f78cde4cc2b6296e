//! Calls that open something by name: /proc/net/kcm is written by us, and every fresh number is
//! checked against stale files of ours.

use libc::{FILE, c_char, c_int, c_uint};

use super::{conclude, fresh};
use crate::errno::Outcome;
use crate::proc_net::{self, Page};
use crate::real::hooks;
use crate::user_mem::UserPtr;

/// Which of our pages a path names, if any.
fn page(path: *const c_char) -> Option<Page> {
    proc_net::page_at(UserPtr::new(path.cast_mut().cast()))
}

fn open_page(page: Page, flags: c_int) -> Outcome<c_int> {
    proc_net::open(page, flags).map(fresh)
}

/// What opening `path` gives: a page of ours, or what the real call finds.
fn opened(path: *const c_char, flags: c_int, native: impl FnOnce() -> c_int) -> c_int {
    match page(path) {
        None => native(),
        Some(page) => conclude(open_page(page, flags), native),
    }
}

hooks! {
    /// open(2). The mode is read by the kernel only where the flags ask for it.
    fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::open(path, flags, mode) });
        opened(path, flags, native)
    }

    /// open(2) of programs compiled for 64-bit offsets.
    fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::open64(path, flags, mode) });
        opened(path, flags, native)
    }

    /// open(2) without a mode as compiled with _FORTIFY_SOURCE.
    fn __open_2(path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::__open_2(path, flags) });
        opened(path, flags, native)
    }

    /// open(2) without a mode as compiled with _FORTIFY_SOURCE and for 64-bit offsets.
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::__open64_2(path, flags) });
        opened(path, flags, native)
    }

    /// openat(2). Our pages have absolute paths.
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::openat(dir, path, flags, mode) });
        opened(path, flags, native)
    }

    /// openat(2) of programs compiled for 64-bit offsets.
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::openat64(dir, path, flags, mode) });
        opened(path, flags, native)
    }

    /// openat(2) without a mode as compiled with _FORTIFY_SOURCE.
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::__openat_2(dir, path, flags) });
        opened(path, flags, native)
    }

    /// openat(2) without a mode as compiled with _FORTIFY_SOURCE and for 64-bit offsets.
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::__openat64_2(dir, path, flags) });
        opened(path, flags, native)
    }

    /// fopen(3), which opens by a name that cannot be interposed.
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::fopen(path, mode) };
        match page(path) {
            None => native(),
            Some(page) => conclude(stream(page, mode), native),
        }
    }

    /// fopen(3) of programs compiled for 64-bit offsets.
    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::fopen64(path, mode) };
        match page(path) {
            None => native(),
            Some(page) => conclude(stream(page, mode), native),
        }
    }
}

fn stream(page: Page, mode: *const c_char) -> Outcome<*mut FILE> {
    let fd = open_page(page, libc::O_RDONLY | libc::O_CLOEXEC)?;
    // SAFETY: the descriptor is fresh and given to the stream; the mode is the program's.
    Ok(unsafe { libc::fdopen(fd, mode) })
}
