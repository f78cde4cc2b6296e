//! Sockets beneath that are used again: to make one and to end it takes as long as several frames. The AF_UNIX
//! socket of an accepted connection is there for another accept(2), the kernel's TCP socket that a connect has
//! left beneath for another socket(2), unless something was done to it that a new one does not show.
//!
//! Who calls socket(2) may want the kernel's after all, and gets one made by the process as it is then, with its
//! network namespace, credentials and defaults: until it has become a stack socket's, the first call that would
//! do something to it is preceded by [`renew`].

use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::pristine;
use crate::fd::{File, table};
use crate::sync::{Mutex, Rank};
use crate::{own, route, sys};

/// One of a kind, so that how many descriptors are open does not tell how many connections there were at a time.
static SPARE: [Mutex<Option<own::Kept>>; 3] = [
    Mutex::ranked(Rank::Leaf, None),
    Mutex::ranked(Rank::Leaf, None),
    Mutex::ranked(Rank::Leaf, None),
];

fn place(family: AddressFamily) -> &'static Mutex<Option<own::Kept>> {
    match family {
        AddressFamily::INET => &SPARE[1],
        AddressFamily::INET6 => &SPARE[2],
        _ => &SPARE[0],
    }
}

/// The program is closing `fd`: if that is the last number of `file`, and the socket beneath is as a new one
/// would be, it is kept for another.
pub(crate) fn keep(file: &File, fd: i32) {
    let Some(family) = file.plain() else {
        return;
    };
    if place(family).lock().map_or(true, |spare| spare.is_some()) {
        return;
    }
    let high = sys::dup_high(sys::borrow(fd)).ok();
    let Some(high) = high.filter(|high| sys::number(high) >= sys::floor()) else {
        return; // there are few numbers left
    };
    let high = own::keep_raised(high);
    let unused = match place(family).lock() {
        Ok(mut spare) => spare.replace(high),
        Err(_) => Some(high),
    };
    drop(unused); // without the lock
}

/// An AF_UNIX socket at the lowest number that is free.
pub(super) fn take(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    match again(AddressFamily::UNIX, flags) {
        Some((_, taken)) => Ok(taken),
        None => rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None),
    }
}

/// The one that was kept, and a copy at the lowest number that is free.
fn again(family: AddressFamily, flags: SocketFlags) -> Option<(own::Kept, OwnedFd)> {
    let spare = place(family).lock().ok()?.take()?;
    let mut status = OFlags::RDWR;
    status.set(OFlags::NONBLOCK, flags.contains(SocketFlags::NONBLOCK));
    rustix::fs::fcntl_setfl(&spare, status).ok()?;
    let copy = match flags.contains(SocketFlags::CLOEXEC) {
        true => rustix::io::fcntl_dupfd_cloexec(&spare, 0),
        false => rustix::io::dup(&spare),
    };
    Some((spare, copy.ok()?))
}

/// The number that has a used TCP socket of which it is not decided yet whose it will be, one at a time.
static LENT: AtomicI32 = AtomicI32::new(NONE);
const NONE: i32 = -1;
/// A number is about to get one.
const SOON: i32 = -2;
/// Inode of the socket at [`LENT`], so that nothing else is taken for it.
static INODE: AtomicU64 = AtomicU64::new(0);

/// socket(2) of a TCP socket, if one was kept.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> Option<i32> {
    if !route::is_set() || !matches!(protocol, 0 | libc::IPPROTO_TCP) {
        return None;
    }
    let family = match family {
        libc::AF_INET => AddressFamily::INET,
        libc::AF_INET6 => AddressFamily::INET6,
        _ => return None,
    };
    if kind & !sys::SOCKET_FLAGS != libc::SOCK_STREAM {
        return None;
    }
    LENT.compare_exchange(NONE, SOON, Ordering::Acquire, Ordering::Relaxed)
        .ok()?;
    let Some((_, copy)) = again(family, sys::socket_flags(kind)) else {
        LENT.store(NONE, Ordering::Release);
        return None;
    };
    INODE.store(sys::inode(copy.as_fd()), Ordering::Relaxed);
    let number = sys::hand_out(copy);
    pristine::changed(number);
    table::fresh(number);
    LENT.store(number, Ordering::Release);
    Some(number)
}

/// The socket of `fd` stays what it is: a stack socket has it, or others may have copies.
#[inline]
pub(crate) fn stays(fd: i32) {
    if fd >= 0 && LENT.load(Ordering::Relaxed) == fd {
        let _ = LENT.compare_exchange(fd, NONE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Something is about to be done to the kernel's socket of `fd`, to which nothing was done before.
#[inline]
pub(crate) fn renew(fd: i32) {
    if fd >= 0 && LENT.load(Ordering::Relaxed) == fd {
        put_new(fd);
    }
}

#[cold]
fn put_new(fd: i32) {
    let inode = INODE.load(Ordering::Relaxed);
    let was = LENT.compare_exchange(fd, NONE, Ordering::Acquire, Ordering::Relaxed);
    if was.is_ok() && sys::inode(sys::borrow(fd)) == inode {
        let _ = put_new_in_place_of(fd); // without room for another, the used one is as good
    }
}

fn put_new_in_place_of(fd: i32) -> rustix::io::Result<()> {
    let old = sys::borrow(fd);
    let family = rustix::net::getsockname(old)?.address_family();
    let new = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fcntl_setfl(&new, rustix::fs::fcntl_getfl(old)?)?;
    let closes = !rustix::io::fcntl_getfd(old)?.is_empty();
    sys::put_onto(&new, fd, closes)
}

/// Gives up what is kept, before a child gets a copy.
pub(super) fn forget() {
    LENT.store(NONE, Ordering::Relaxed);
    for place in &SPARE {
        drop(place.lock().map_or(None, |mut spare| spare.take()));
    }
}

/// In the child of a fork, which has closed what another thread of its parent kept meanwhile.
pub(super) fn reset_in_child() {
    LENT.store(NONE, Ordering::Relaxed);
    for place in &SPARE {
        core::mem::forget(place.lock().map_or(None, |mut spare| spare.take()));
    }
}
