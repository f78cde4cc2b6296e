//! Receiving from and sending on a file of ours, whatever its kind.

use crate::errno::{Exit, Outcome};
use crate::fd::{File, Kind};
use crate::kcm::recv::Received;
use crate::user_mem::Iovecs;
use crate::{kcm, net, tcp};

/// One receive into `dst`. Native when the socket beneath has the answer.
#[inline(always)]
pub(crate) fn recv(file: &'static File, fd: i32, dst: Iovecs<'_>, flags: i32) -> Outcome<Received> {
    match file.kind() {
        Kind::Kcm => kcm::recv::recv(file, fd, dst, flags),
        Kind::Tcp => tcp::recv(file, dst, flags).map(|bytes| Received { bytes, flags: 0 }),
        Kind::Stack if file.was_attached() => match tcp::recv(file, dst, flags) {
            Err(Exit::Native) => net::stream::recv(file, fd, dst, flags),
            first => first.map(|bytes| Received { bytes, flags: 0 }),
        },
        Kind::Stack if file.is_stream() => net::stream::recv(file, fd, dst, flags),
        Kind::Stack => net::message::recv(file, fd, dst, flags, 0).map(|from| from.got),
        Kind::Inherited if !file.is_stream() => {
            net::message::recv(file, fd, dst, flags, 0).map(|from| from.got)
        }
        Kind::Inherited if file.was_attached() => match tcp::recv(file, dst, flags) {
            Err(Exit::Native) => net::inherited::recv(file, fd, flags),
            first => first.map(|bytes| Received { bytes, flags: 0 }),
        },
        Kind::Inherited => net::inherited::recv(file, fd, flags),
        Kind::Epoll | Kind::Bpf | Kind::Own | Kind::Free => Err(Exit::Native),
    }
}

/// One send of all of `src`. An attached TCP socket is written as any other (kcm-semantics §3.3).
#[inline]
pub(crate) fn send(file: &'static File, fd: i32, src: Iovecs<'_>, flags: i32) -> Outcome<usize> {
    match file.kind() {
        Kind::Kcm => kcm::send::send(file, fd, src, flags),
        Kind::Stack if file.is_stream() => net::stream::send(file, fd, src, flags),
        Kind::Stack => net::message::send(file, fd, src, flags),
        Kind::Inherited if !file.is_stream() => net::message::send(file, fd, src, flags),
        Kind::Inherited => net::inherited::send(file, fd, flags),
        Kind::Tcp | Kind::Epoll | Kind::Bpf | Kind::Own | Kind::Free => Err(Exit::Native),
    }
}
