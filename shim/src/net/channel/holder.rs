//! The side of whoever holds a copy, the owner's own program among them once the socket is shared.

use core::net::SocketAddr;

use kcm_stack::UdpSendOptions;
use rustix::io::{Errno as Sys, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendFlags, sockopt::Timeout};

use super::PAYLOAD_MAX;
use super::head::{HEAD_BYTES, Head};
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::interpose::message::native_recv;
use crate::kcm::recv::Received;
use crate::net::address::{self, Address};
use crate::net::engine::instant;
use crate::net::inherited::{self, known};
use crate::net::message::From;
use crate::net::name::Name;
use crate::net::socket::waits;
use crate::net::udp::control::Told;
use crate::net::{guest, steer};
use crate::share::guest::What;
use crate::sys;
use crate::user_mem::{Iovecs, UserPtr};

/// The owner is gone, and with it the network.
const GONE: Errno = Errno(libc::ENETDOWN);

/// One datagram in.
pub(crate) fn recv(file: &'static File, fd: i32, dst: Iovecs<'_>, flags: i32) -> Outcome<From> {
    if flags & libc::MSG_ERRQUEUE != 0 {
        return Err(Errno::EAGAIN.into());
    }
    if flags & libc::MSG_OOB != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    inherited::hold(file, fd);
    let v6 = known(file)?.name.v6;
    let mut message = Vec::with_capacity(HEAD_BYTES + dst.total().min(PAYLOAD_MAX));
    let wanted = flags & (libc::MSG_PEEK | libc::MSG_DONTWAIT) | libc::MSG_TRUNC;
    let got = match native_recv(fd, &mut message, wanted) {
        Ok(got) if got.length > 0 => got,
        Ok(_) | Err(Errno::ECONNRESET | Errno::ENOTCONN) => return Err(GONE.into()),
        Err(why) => return Err(why.into()),
    };
    let (head, payload) = Head::parse(&message).ok_or(Errno::EIO)?;
    if head.error != 0 {
        return Err(Errno(head.error).into());
    }
    let total = got.length - HEAD_BYTES;
    let count = payload.len().min(dst.total());
    dst.scatter([payload], count)?;
    let datagram = head.to_datagram().ok_or(Errno::EIO)?;
    let told = Told::new(&datagram, head.wants, instant(sys::now()));
    let is_cut = count < total;
    Ok(From {
        got: Received {
            bytes: if flags & libc::MSG_TRUNC != 0 {
                total
            } else {
                count
            },
            flags: if is_cut { libc::MSG_TRUNC } else { 0 },
        },
        sender: Some(address::in_family(datagram.from, v6)),
        told: Some(told),
    })
}

/// One datagram out. What becomes of it, the next receive tells.
pub(crate) fn send(
    file: &'static File,
    fd: i32,
    src: Iovecs<'_>,
    flags: i32,
    (addr, length): (UserPtr, u32),
    options: &UdpSendOptions,
) -> Outcome<usize> {
    if flags & (libc::MSG_OOB | libc::MSG_MORE) != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    inherited::hold(file, fd);
    let Name { v6, peer, .. } = known(file)?.name;
    let to = match addr.is_null() {
        true => None,
        false => match address::read(addr, length)? {
            Address::Inet(to) if to.is_ipv6() && !v6 => return Err(Errno::EAFNOSUPPORT.into()),
            Address::Inet(to) if to.port() == 0 => return Err(Errno::EINVAL.into()),
            Address::Inet(to) => Some(to),
            Address::Unspecified => None,
            Address::Other => return Err(Errno::EINVAL.into()),
        },
    };
    if to.or(peer).is_none() {
        return Err(Errno::EDESTADDRREQ.into());
    }
    if src.total() > PAYLOAD_MAX {
        return Err(Errno::EMSGSIZE.into());
    }
    let by_rule = to.and_then(steer::by_rule);
    let options = UdpSendOptions {
        iface: options.iface.or(by_rule),
        ..*options
    };
    let head = Head::to_send(to.map(address::canonical), &options).encode();
    let parts = src.gather()?;
    let all = core::iter::once(&*head).chain(parts.iter().copied());
    let parts: Vec<_> = all.map(IoSlice::new).collect();
    let until = guest::timeout(fd, Timeout::Send);
    loop {
        let control = &mut SendAncillaryBuffer::default();
        let how = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::sendmsg(sys::borrow(fd), &parts, control, how) {
            Ok(_) => return Ok(src.total()),
            Err(Sys::INTR) => {}
            Err(Sys::AGAIN) if waits(file, fd, flags) => guest::wait(fd, until)?,
            Err(Sys::PIPE | Sys::CONNRESET | Sys::NOTCONN) => return Err(GONE.into()),
            Err(why) => return Err(why.into()),
        }
    }
}

/// connect(2): the owner fixes the peer, for everybody.
pub(crate) fn connect(file: &'static File, fd: i32, addr: UserPtr, length: u32) -> Outcome<i32> {
    inherited::hold(file, fd);
    let v6 = known(file)?.name.v6;
    let remote = match address::read(addr, length)? {
        Address::Inet(to) if to.is_ipv6() && !v6 => return Err(Errno::EAFNOSUPPORT.into()),
        Address::Inet(to) => Some(address::canonical(to)),
        Address::Unspecified => None,
        Address::Other => return Err(Errno::EINVAL.into()),
    };
    connect_to(file, fd, remote)
}

pub(crate) fn connect_to(file: &'static File, fd: i32, remote: Option<SocketAddr>) -> Outcome<i32> {
    let Name { owner, v6, .. } = known(file)?.name;
    let mut wish = guest::wish(What::Connect, v6);
    wish.remote = remote.unwrap_or(address::any(v6, 0));
    let given = crate::share::guest::ask(&owner, &wish, Some(sys::borrow(fd)))?;
    let name = Name::parse(&given.name).ok_or(Errno::EIO)?;
    inherited::rename(file, name.local, remote);
    Ok(0)
}

/// shutdown(2) of a UDP socket only needs a peer.
pub(crate) fn shutdown(file: &'static File) -> Outcome<i32> {
    match known(file)?.name.peer {
        Some(_) => Ok(0),
        None => Err(Errno::ENOTCONN.into()),
    }
}

/// FIONREAD: the length of the next datagram.
pub(crate) fn next_length(fd: i32) -> i32 {
    let mut message = Vec::with_capacity(HEAD_BYTES);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    let got = native_recv(fd, &mut message, flags);
    got.map_or(0, |got| got.length.saturating_sub(HEAD_BYTES) as i32)
}
