//! What holds the number of a stack socket: an unconnected AF_UNIX socket, or, after a connect, the kernel's
//! TCP socket that was there. That one has no address, so it holds no port and hears nothing. Copies for
//! other processes need the AF_UNIX socket: what is lent or attached gets it before
//! ([`settle`]).
//!
//! Some are used again: [`spare`].

use core::sync::atomic::Ordering;

use kcm_stack::IfaceId;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::cells::{self, NetCell};
use super::socket::{self, State};
use super::{carry, pristine, spare};
use crate::errno::Outcome;
use crate::fd::file::Body;
use crate::fd::{File, Kind, place, table};
use crate::sys;

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
    spare::stays(fd);
    if pristine::is_pristine(fd) && pristine::is_unwatched(fd) {
        file.set_plain(if v6 {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        });
    }
    socket::enrol((fd, file), (v6, false), State::Unbound, device, cell)?;
    cells::lock(file)?.socket(file)?.is_on_kernels = true;
    Ok(file)
}

/// The socket beneath is about to be known by itself: it is an AF_UNIX socket from now on, the same for as
/// long as the stack socket is there. `fd` is one of the numbers.
pub(crate) fn settle(file: &'static File, fd: i32) -> Outcome<()> {
    file.not_plain();
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
