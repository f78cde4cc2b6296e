//! Descriptor numbers: close, dup, fcntl, ioctl and the sweepers.

use libc::{c_int, c_uint, c_ulong, c_void};

use super::{conclude, on};
use crate::descriptor;
use crate::errno::Errno;
use crate::fd::{lookup, table};
use crate::ioctl::ioctl as ioctl_on;
use crate::net::{pristine, spare};
use crate::own;
use crate::real::hooks;
use crate::route;
use crate::user_mem::UserPtr;
use crate::values::KcmRequest;

/// What a call on a descriptor of the library's own comes to.
#[cold]
fn not_open() -> c_int {
    Errno::EBADF.set();
    -1
}

/// A fresh duplicate of `old`.
fn duplicated(old: c_int, new: c_int) -> c_int {
    if new >= 0 {
        pristine::copied(old, new);
        descriptor::duplicated(old, new);
    }
    new
}

/// As [`duplicated`], where neither is ours: only a socket that may become the stack's concerns us. Without one
/// the call is the last thing done, so that its return is predicted.
#[inline(always)]
fn duplicate_natively(old: c_int, native: impl FnOnce() -> c_int) -> c_int {
    if route::is_set() {
        return duplicate_noted(old, native);
    }
    native()
}

#[cold]
fn duplicate_noted(old: c_int, native: impl FnOnce() -> c_int) -> c_int {
    let new = native();
    if new >= 0 && new != old {
        pristine::copied(old, new);
    }
    new
}

/// What a request of KCM's, `done` by the kernel, comes to where no file of ours was seen.
#[cold]
fn beneath_kcm(fd: c_int, done: c_int) -> c_int {
    if done < 0 && Errno::current() == Errno::ENOTTY && descriptor::is_being_closed(fd) {
        Errno::EBADF.set();
    }
    done
}

/// ioctl(2) on a descriptor of ours, or with a request of KCM's. Not in line, so that its frame costs others
/// nothing.
#[inline(never)]
fn of_ours(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    // SAFETY: forwards the caller's own arguments.
    let native = || unsafe { next::ioctl(fd, request, arg) };
    let beneath = || match KcmRequest::is_own(request as u32) {
        true => beneath_kcm(fd, native()),
        false => native(),
    };
    let ours = |f| ioctl_on(f, fd, request as u32, UserPtr::new(arg), native);
    on(fd, ours, beneath)
}

/// fcntl(2) commands that set who gets which signal (asm-generic/fcntl.h).
const F_SETSIG: c_int = 10;
const F_SETOWN_EX: c_int = 15;

/// Whether an fcntl(2) may change what we know of descriptors. Most only ask, and go straight on.
#[inline(always)]
fn concerns_us(cmd: c_int) -> bool {
    matches!(
        cmd,
        libc::F_DUPFD
            | libc::F_DUPFD_CLOEXEC
            | libc::F_SETFL
            | libc::F_SETOWN
            | F_SETSIG
            | F_SETOWN_EX
    )
}

/// ioctl(2) requests that do the same (asm-generic/sockios.h).
const FIOSETOWN: c_ulong = 0x8901;
const SIOCSPGRP: c_ulong = 0x8902;

/// Somebody is to get signals of `fd`.
#[cold]
fn owned(fd: c_int) {
    spare::renew(fd);
    if let Some(file) = lookup(fd) {
        file.not_plain();
    }
}

/// An fcntl(2) by `native`, and what it means for a file of ours.
#[inline]
fn controlled(fd: c_int, cmd: c_int, native: impl FnOnce() -> c_int) -> c_int {
    if matches!(cmd, libc::F_SETOWN | F_SETSIG | F_SETOWN_EX) {
        owned(fd);
    }
    let done = native();
    match cmd {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicated(fd, done),
        libc::F_SETFL => {
            if let Some(file) = lookup(fd) {
                file.flags_changed();
            }
            done
        }
        _ => done,
    }
}

hooks! {
    /// close(2).
    fn close(fd: c_int) -> c_int {
        // SAFETY: forwards the caller's own argument.
        let native = || unsafe { next::close(fd) };
        match lookup(fd) {
            None => native(),
            Some(file) => conclude(descriptor::close(file, fd, native), native),
        }
    }

    /// dup(2).
    fn dup(old: c_int) -> c_int {
        if own::has(old) {
            return not_open();
        }
        // SAFETY: forwards the caller's own argument.
        duplicated(old, unsafe { next::dup(old) })
    }

    /// dup2(2).
    fn dup2(old: c_int, new: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::dup2(old, new) };
        if lookup(old).is_none() && lookup(new).is_none() {
            return duplicate_natively(old, native);
        }
        descriptor::dup_onto(old, new, native)
    }

    /// dup3(2).
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::dup3(old, new, flags) };
        if lookup(old).is_none() && lookup(new).is_none() {
            return duplicate_natively(old, native);
        }
        descriptor::dup_onto(old, new, native)
    }

    /// fcntl(2). C passes at most one further argument, of the size of a register at most; taking
    /// it as one is what the variadic ABI of x86-64 and aarch64 does.
    fn fcntl(fd: c_int, cmd: c_int, arg: c_ulong) -> c_int {
        if own::has(fd) {
            return not_open();
        }
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::fcntl(fd, cmd, arg) };
        if !concerns_us(cmd) {
            return native();
        }
        controlled(fd, cmd, native)
    }

    /// fcntl(2) of programs compiled for 64-bit offsets.
    fn fcntl64(fd: c_int, cmd: c_int, arg: c_ulong) -> c_int {
        if own::has(fd) {
            return not_open();
        }
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::fcntl64(fd, cmd, arg) };
        if !concerns_us(cmd) {
            return native();
        }
        controlled(fd, cmd, native)
    }

    /// ioctl(2). The third argument as in fcntl above.
    fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
        if matches!(request, FIOSETOWN | SIOCSPGRP) {
            owned(fd);
        }
        if lookup(fd).is_none() && !KcmRequest::is_own(request as u32) {
            // SAFETY: forwards the caller's own arguments.
            return unsafe { next::ioctl(fd, request, arg) };
        }
        of_ours(fd, request, arg)
    }

    /// close_range(2).
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = |first, last| unsafe { next::close_range(first, last, flags) };
        if table::ours_in(first, last).next().is_none() {
            return native(first, last);
        }
        descriptor::close_range(first, last, flags as c_uint, native)
    }

    /// closefrom(3).
    fn closefrom(first: c_int) -> () {
        let low = first.max(0) as c_uint;
        if table::ours_in(low, c_uint::MAX).next().is_none() {
            // SAFETY: forwards the caller's own argument.
            return unsafe { next::closefrom(first) };
        }
        // SAFETY: the arguments of close_range(2) as closefrom(3) chooses them.
        let native = |first, last| unsafe { next::close_range(first, last, 0) };
        descriptor::close_range(low, c_uint::MAX, 0, native);
    }
}
