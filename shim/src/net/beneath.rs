//! What holds the number of a stack socket: an unconnected AF_UNIX socket, or, after a connect, the kernel's
//! TCP socket that was there. That one has no address, so it holds no port and hears nothing. Copies for
//! other processes need the AF_UNIX socket: what is lent or attached gets it before
//! ([`settle`]).
//!
//! To make a socket and to end one takes as long as several frames. So the AF_UNIX sockets of accepted
//! connections are used again ([`spare`]), unless something was done to them that a new one does not show.

use core::sync::atomic::Ordering;

use kcm_stack::IfaceId;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::socket::{self, State};
use super::{carry, cells};
use crate::errno::Outcome;
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::sync::{Mutex, Rank};
use crate::{own, sys};

/// A stack socket takes the place of the kernel's TCP socket behind `fd`, which has no address and goes on
/// holding the number.
pub(super) fn keep(fd: i32, v6: bool, device: Option<IfaceId>) -> Outcome<&'static File> {
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(true);
    socket::enrol(fd, file, (v6, false), State::Unbound, device)?;
    cells::lock(file)?.socket(file)?.is_on_kernels = true;
    Ok(file)
}

/// The socket beneath is about to be known by itself: it is an AF_UNIX socket from now on, the same for as
/// long as the stack socket is there. `fd` is one of the numbers.
pub(crate) fn settle(file: &'static File, fd: i32) -> Outcome<()> {
    file.set_plain(false);
    if cells::lock(file)?.socket(file)?.is_on_kernels {
        own(file, fd)?;
    }
    Ok(())
}

/// Puts an AF_UNIX socket beneath every number of a stack socket that has [kept](keep) the kernel's.
fn own(file: &'static File, fd: i32) -> Outcome<()> {
    let mut flags = SocketFlags::CLOEXEC;
    flags.set(SocketFlags::NONBLOCK, sys::is_nonblocking(fd));
    let made = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    carry::beneath(fd, &made);
    file.ino.store(0, Ordering::Relaxed);
    let is_it = |number: &i32| lookup(*number).is_some_and(|at| core::ptr::eq(at, file));
    for number in table::ours_in(0, u32::MAX).filter(is_it) {
        let flags = rustix::io::fcntl_getfd(sys::borrow(number))?;
        sys::put_onto(&made, number, !flags.is_empty())?;
    }
    cells::lock(file)?.socket(file)?.is_on_kernels = false;
    Ok(())
}

/// Most sockets kept for connections to come: those of a server that has few connections at a time.
const SPARE_MAX: i32 = 16;
/// One in so many numbers that a program may have is held for them at most.
const SPARE_PART: i32 = 64;

static SPARE: Mutex<Vec<OwnedFd>> = Mutex::ranked(Rank::Leaf, Vec::new());

/// The program is closing `fd`: if that is the last number of `file`, and the socket beneath is as a new one
/// would be, it is kept for another connection.
pub(crate) fn spare(file: &File, fd: i32) {
    if !file.is_plain() {
        return;
    }
    let (floor, kept) = (
        sys::floor(),
        SPARE.lock().map_or(usize::MAX, |spare| spare.len()),
    );
    if kept >= (floor / SPARE_PART).min(SPARE_MAX) as usize {
        return;
    }
    let high = sys::dup_high(sys::borrow(fd));
    let Some(high) = high.ok().filter(|high| sys::number(high) >= floor) else {
        return;
    };
    let number = sys::number(&high);
    own::protect(number);
    match SPARE.lock() {
        Ok(mut spare) => spare.push(high),
        Err(_) => own::unprotect(number),
    }
}

/// An AF_UNIX socket at the lowest number that is free.
pub(super) fn take(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    match again(flags) {
        Some(taken) => Ok(taken),
        None => rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None),
    }
}

fn again(flags: SocketFlags) -> Option<OwnedFd> {
    let spare = SPARE.lock().ok()?.pop()?;
    own::unprotect(sys::number(&spare));
    let mut status = OFlags::RDWR;
    status.set(OFlags::NONBLOCK, flags.contains(SocketFlags::NONBLOCK));
    rustix::fs::fcntl_setfl(&spare, status).ok()?;
    match flags.contains(SocketFlags::CLOEXEC) {
        true => rustix::io::fcntl_dupfd_cloexec(&spare, 0).ok(),
        false => rustix::io::dup(&spare).ok(),
    }
}

/// Gives up what is kept, before a child gets copies.
pub(super) fn forget_spare() {
    let spare = SPARE.lock().map(|mut spare| core::mem::take(&mut *spare));
    for fd in spare.into_iter().flatten() {
        own::unprotect(sys::number(&fd));
    }
}
