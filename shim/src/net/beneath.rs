//! What holds the number of a stack socket: an unconnected AF_UNIX socket, or, after a connect, the kernel's
//! TCP socket that was there. That one has no address, so it holds no port and hears nothing. Copies for
//! other processes need the AF_UNIX socket: what is lent or attached gets it before
//! ([`settle`]).
//!
//! To make a socket and to end one takes as long as several frames. So the AF_UNIX socket of an accepted
//! connection is used again ([`spare`]), unless something was done to it that a new one does not show.

use core::sync::atomic::Ordering;

use kcm_stack::IfaceId;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::carry;
use super::cells::{self, NetCell};
use super::socket::{self, State};
use crate::errno::Outcome;
use crate::fd::file::Body;
use crate::fd::{File, Kind, place, table};
use crate::sync::{Mutex, Rank};
use crate::{own, sys};

/// A stack socket takes the place of the kernel's TCP socket behind `fd`, which has no address and goes on
/// holding the number.
pub(super) fn keep(
    fd: i32,
    v6: bool,
    device: Option<IfaceId>,
    cell: &'static NetCell,
) -> Outcome<&'static File> {
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(true);
    socket::enrol((fd, file), (v6, false), State::Unbound, device, cell)?;
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
    for number in table::ours_in(0, u32::MAX) {
        let put = || {
            let flags = rustix::io::fcntl_getfd(sys::borrow(number))?;
            sys::put_onto(&made, number, !flags.is_empty())
        };
        place::exchange(number, file, put)?.unwrap_or(Ok(()))?;
    }
    cells::lock(file)?.socket(file)?.is_on_kernels = false;
    Ok(())
}

/// One, so that how many descriptors are open does not tell how many connections there were at a time.
static SPARE: Mutex<Option<OwnedFd>> = Mutex::ranked(Rank::Leaf, None);

/// The program is closing `fd`: if that is the last number of `file`, and the socket beneath is as a new one
/// would be, it is kept for another connection.
pub(crate) fn spare(file: &File, fd: i32) {
    if !file.is_plain() || SPARE.lock().map_or(true, |spare| spare.is_some()) {
        return;
    }
    let high = sys::dup_high(sys::borrow(fd)).ok();
    let Some(high) = high.filter(|high| sys::number(high) >= sys::floor()) else {
        return; // there are few numbers left
    };
    own::protect(sys::number(&high));
    let unused = match SPARE.lock() {
        Ok(mut spare) => spare.replace(high),
        Err(_) => Some(high),
    };
    give_up(unused);
}

fn give_up(spare: Option<OwnedFd>) {
    if let Some(fd) = spare {
        own::unprotect(sys::number(&fd));
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
    let spare = SPARE.lock().ok()?.take()?;
    own::unprotect(sys::number(&spare));
    let mut status = OFlags::RDWR;
    status.set(OFlags::NONBLOCK, flags.contains(SocketFlags::NONBLOCK));
    rustix::fs::fcntl_setfl(&spare, status).ok()?;
    match flags.contains(SocketFlags::CLOEXEC) {
        true => rustix::io::fcntl_dupfd_cloexec(&spare, 0).ok(),
        false => rustix::io::dup(&spare).ok(),
    }
}

/// Gives up what is kept, before a child gets a copy.
pub(super) fn forget_spare() {
    let spare = SPARE.lock().map_or(None, |mut spare| spare.take());
    give_up(spare);
}
