//! What close, dup and the sweepers mean for files of ours.

use core::sync::atomic::{AtomicI32, Ordering};

use crate::errno::{Errno, Outcome};
use crate::fd::{File, Kind, lookup, place, table};
use crate::tcp::Number;
use crate::{net, own, process, sys, tcp};

/// close(2) of a number that is ours. `native` closes the kernel's side.
pub(crate) fn close(file: &'static File, fd: i32, native: impl FnOnce() -> i32) -> Outcome<i32> {
    if file.kind() == Kind::Own {
        return Err(Errno::EBADF.into()); // not the program's to close
    }
    if process::is_foreign() {
        return Ok(native()); // a vfork child has its own descriptors and our memory
    }
    let number = before_close(file, fd);
    let _begun = (file.kind() == Kind::Kcm).then(|| Begun::close_of(fd));
    if !place::leave(fd, file) {
        return Ok(native()); // another thread was faster
    }
    let done = match number {
        Number::Free => {
            net::spare::keep(file, fd);
            native()
        }
        Number::Needed => {
            tcp::keep_number(file, fd);
            0
        }
    };
    file.release();
    Ok(done)
}

/// Numbers of KCM sockets whose close has begun: they are the kernel's alone by now, or will be at once.
/// Those that are the same by this many share a place, and the first to come has it.
static BEING_CLOSED: [AtomicI32; 64] = [const { AtomicI32::new(NONE) }; 64];
/// No number.
const NONE: i32 = -1;

fn place_of(fd: i32) -> &'static AtomicI32 {
    &BEING_CLOSED[fd as u32 as usize % BEING_CLOSED.len()]
}

/// A close that has begun, until it is over.
struct Begun(i32);

impl Begun {
    fn close_of(fd: i32) -> Option<Self> {
        let entered = place_of(fd).compare_exchange(NONE, fd, Ordering::SeqCst, Ordering::Relaxed);
        entered.is_ok().then_some(Self(fd))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        place_of(self.0).store(NONE, Ordering::SeqCst);
    }
}

/// In a forked child, where nobody goes on with them.
pub(crate) fn reset_in_child() {
    for place in &BEING_CLOSED {
        place.store(NONE, Ordering::Relaxed);
    }
}

/// What stands at `fd`, which is not ours, does not know a request of KCM's: whether that was because
/// another thread closes the number, and an AF_UNIX socket was what is left of it.
#[cold]
pub(crate) fn is_being_closed(fd: i32) -> bool {
    place_of(fd).load(Ordering::SeqCst) == fd || rustix::io::fcntl_getfd(sys::borrow(fd)).is_err()
}

pub(crate) fn before_close(file: &'static File, fd: i32) -> Number {
    match file.kind() {
        Kind::Tcp | Kind::Inherited => tcp::before_close(file, fd),
        _ => Number::Free,
    }
}

/// `new` is a fresh duplicate of `old`.
pub(crate) fn duplicated(old: i32, new: i32) {
    if lookup(old).is_none() && lookup(new).is_none() || process::is_foreign() {
        return;
    }
    table::fresh(new);
    if let Some(file) = lookup(old)
        && file.kind() != Kind::Own
        && file.retain()
    {
        table::install(new, file);
    }
}

/// dup2(2) and dup3(2) where `old` or `new` is ours: what stood at `new` is closed on the way.
pub(crate) fn dup_onto(old: i32, new: i32, native: impl FnOnce() -> i32) -> i32 {
    if own::has(old) {
        Errno::EBADF.set();
        return -1;
    }
    if process::is_foreign() || old == new {
        return native();
    }
    let mut replaced = lookup(new);
    if let Some(file) = replaced {
        if file.kind() == Kind::Own {
            Errno::EBUSY.set();
            return -1;
        }
        if before_close(file, new) == Number::Needed {
            Errno::EMFILE.set();
            return -1;
        }
    }
    replaced = replaced.filter(|file| place::leave(new, file));
    let done = native();
    match replaced {
        Some(file) if done < 0 => table::install(new, file),
        Some(file) => file.release(),
        None => {}
    }
    if done >= 0 {
        duplicated(old, done);
    }
    done
}

/// CLOSE_RANGE_CLOEXEC and CLOSE_RANGE_UNSHARE (linux/close_range.h).
const UNSHARE: u32 = 2;
const CLOEXEC: u32 = 4;

/// close_range(2) over a range that holds numbers of ours: the kernel sweeps what lies between our
/// own descriptors, which stay open.
pub(crate) fn close_range(
    first: u32,
    last: u32,
    flags: u32,
    native: impl Fn(u32, u32) -> i32,
) -> i32 {
    if first > last || flags & !(UNSHARE | CLOEXEC) != 0 || flags & CLOEXEC != 0 {
        return native(first, last);
    }
    if process::is_foreign() {
        return native(first, last);
    }
    let mut from = first;
    for fd in table::ours_in(first, last).collect::<Vec<_>>() {
        let Some(file) = lookup(fd) else { continue };
        let own = file.kind() == Kind::Own;
        let number = if own {
            Number::Needed
        } else {
            before_close(file, fd)
        };
        if number == Number::Needed {
            let at = fd as u32;
            if from < at && native(from, at - 1) != 0 {
                return -1;
            }
            from = at + 1;
        }
        if !own && place::leave(fd, file) {
            if number == Number::Needed {
                tcp::keep_number(file, fd);
            }
            file.release();
        }
    }
    if from <= last { native(from, last) } else { 0 }
}
