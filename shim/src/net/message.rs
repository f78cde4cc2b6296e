//! Message headers and addresses of sends and receives on stack sockets.

use core::net::SocketAddr;

use kcm_stack::UdpSendOptions;
use libc::msghdr;

use super::address::{self, Address};
use super::cells;
use super::channel::holder;
use super::socket::State;
use super::udp::control::Told;
use super::{stream, udp};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{File, Kind};
use crate::kcm::recv::Received;
use crate::user_mem::{self, Iovecs, UserPtr};

/// What a message header says of an address that a datagram came from.
pub(crate) struct From {
    pub(crate) got: Received,
    /// The sender, of a datagram.
    pub(crate) sender: Option<SocketAddr>,
    /// What else a datagram tells those who ask.
    pub(crate) told: Option<Told>,
}

fn is_udp(file: &File) -> Outcome<(bool, bool)> {
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    Ok((matches!(socket.state, State::Udp(_)), socket.v6))
}

/// One send; `to` is where the program wants a datagram to go.
pub(crate) fn sendto(
    file: &'static File,
    fd: i32,
    src: Iovecs<'_>,
    flags: i32,
    addr: UserPtr,
    length: u32,
) -> Outcome<isize> {
    let plain = UdpSendOptions::default();
    send_with(file, fd, src, flags, (addr, length), &plain).map(|n| n as isize)
}

fn send_with(
    file: &'static File,
    fd: i32,
    src: Iovecs<'_>,
    flags: i32,
    (addr, length): (UserPtr, u32),
    options: &UdpSendOptions,
) -> Outcome<usize> {
    if file.kind() == Kind::Inherited {
        return holder::send(file, fd, src, flags, (addr, length), options);
    }
    let (udp, v6) = is_udp(file)?;
    if !udp {
        // An address on a stream is not looked at.
        return stream::send(file, fd, src, flags);
    }
    let to = if addr.is_null() {
        None
    } else {
        match address::read(addr, length)? {
            Address::Inet(to) if to.is_ipv6() && !v6 => return Err(Errno::EAFNOSUPPORT.into()),
            Address::Inet(to) => Some(to),
            Address::Unspecified => None,
            Address::Other => return Err(Errno::EINVAL.into()),
        }
    };
    if file.speaks() && !udp::is_for_stack(file, to)? {
        return Err(Exit::Native);
    }
    match udp::send(file, fd, src, to, flags, options) {
        // Shared with another process meanwhile.
        Err(Exit::Native) if file.kind() == Kind::Inherited => {
            holder::send(file, fd, src, flags, (addr, length), options)
        }
        sent => sent,
    }
}

/// One send to where the socket is connected.
pub(crate) fn send(file: &'static File, fd: i32, src: Iovecs<'_>, flags: i32) -> Outcome<usize> {
    let nowhere = UserPtr::new(core::ptr::null_mut());
    sendto(file, fd, src, flags, nowhere, 0).map(|n| n as usize)
}

/// sendmsg(2) by a header that was copied in.
pub(crate) fn sendmsg(
    file: &'static File,
    fd: i32,
    header: &msghdr,
    src: Iovecs<'_>,
    flags: i32,
) -> Outcome<usize> {
    let name = UserPtr::new(header.msg_name);
    let length = if name.is_null() {
        0
    } else {
        header.msg_namelen
    };
    let options = udp::control::of_send(header)?;
    send_with(file, fd, src, flags, (name, length), &options)
}

/// One receive, of a stream or a datagram, with room for so many bytes of control messages.
pub(crate) fn recv(
    file: &'static File,
    fd: i32,
    dst: Iovecs<'_>,
    flags: i32,
    control: usize,
) -> Outcome<From> {
    if file.kind() == Kind::Inherited {
        return holder::recv(file, fd, dst, flags);
    }
    let (udp, v6) = is_udp(file)?;
    if !udp {
        let got = stream::recv(file, fd, dst, flags)?;
        return Ok(From {
            got,
            sender: None,
            told: None,
        });
    }
    let (got, sender, told) = match udp::recv(file, fd, dst, (flags, v6), control) {
        // Shared with another process meanwhile.
        Err(Exit::Native) if file.kind() == Kind::Inherited => {
            return holder::recv(file, fd, dst, flags);
        }
        got => got?,
    };
    Ok(From {
        got,
        sender,
        told: Some(told),
    })
}

/// recvfrom(2).
pub(crate) fn recvfrom(
    file: &'static File,
    fd: i32,
    dst: Iovecs<'_>,
    flags: i32,
    addr: UserPtr,
    length: UserPtr,
) -> Outcome<isize> {
    let from = recv(file, fd, dst, flags, 0)?;
    if !addr.is_null() && !length.is_null() {
        match from.sender {
            Some(sender) => address::write(sender, addr, length)?,
            None if user_mem::copy_in::<i32>(length)? < 0 => return Err(Errno::EINVAL.into()),
            None => user_mem::copy_out(length, &0i32)?,
        }
    }
    Ok(from.got.bytes as isize)
}
