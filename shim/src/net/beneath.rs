//! What holds the number of a stack socket: an unconnected AF_UNIX socket, or, after a connect, the kernel's
//! TCP socket that was there. That one has no address, so it holds no port and hears nothing; to make
//! another socket and end both costs more than the connection. Copies for other processes need the AF_UNIX
//! socket: what is lent gets it before ([`own`]).

use core::sync::atomic::Ordering;

use kcm_stack::IfaceId;
use rustix::fd::AsFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::socket::{self, State};
use super::{carry, cells};
use crate::errno::Outcome;
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::sys;

/// A stack socket takes the place of the kernel's TCP socket behind `fd`, which has no address and goes on
/// holding the number.
pub(super) fn keep(fd: i32, v6: bool, device: Option<IfaceId>) -> Outcome<&'static File> {
    let file = File::new(Kind::Stack, sys::inode(sys::borrow(fd)), Body::None)?;
    file.set_stream(true);
    socket::enrol(fd, file, (v6, false), State::Unbound, device)?;
    cells::lock(file)?.socket(file)?.is_on_kernels = true;
    Ok(file)
}

/// Puts an AF_UNIX socket beneath every number of a stack socket that has [kept](keep) the kernel's; `fd`
/// is one of them.
pub(super) fn own(file: &'static File, fd: i32) -> Outcome<()> {
    let mut flags = SocketFlags::CLOEXEC;
    flags.set(SocketFlags::NONBLOCK, sys::is_nonblocking(fd));
    let made = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    carry::beneath(fd, &made);
    file.ino.store(sys::inode(made.as_fd()), Ordering::Relaxed);
    let is_it = |number: &i32| lookup(*number).is_some_and(|at| core::ptr::eq(at, file));
    for number in table::ours_in(0, u32::MAX).filter(is_it) {
        let flags = rustix::io::fcntl_getfd(sys::borrow(number))?;
        sys::put_onto(&made, number, !flags.is_empty())?;
    }
    cells::lock(file)?.socket(file)?.is_on_kernels = false;
    Ok(())
}
