//! UDP on the stack.

use core::net::SocketAddr;
use core::sync::atomic::Ordering;

use kcm_stack::{Datagram, RecvError, SendError, UdpId};

use super::address;
use super::engine::{CELL, Engine, EngineGuard};
use super::socket::{self, State, waits};
use super::{errors, sleep};
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::kcm::recv::{Received, deadline};
use crate::sys;
use crate::user_mem::Iovecs;

fn id_of(engine: &mut Engine, file: &File) -> Outcome<UdpId> {
    match engine.socket(file)?.state {
        State::Udp(id) => Ok(id),
        _ => Err(Errno::EBADF.into()),
    }
}

/// A UDP socket of the stack takes the place of the kernel's behind `fd`, bound to `local`.
pub(crate) fn bind(fd: i32, v6: bool, local: SocketAddr) -> Outcome<&'static File> {
    let reuse = [libc::SO_REUSEADDR, libc::SO_REUSEPORT]
        .into_iter()
        .any(|name| sys::option_int(sys::borrow(fd), libc::SOL_SOCKET, name).unwrap_or(0) != 0);
    let broadcast = sys::option_int(sys::borrow(fd), libc::SOL_SOCKET, libc::SO_BROADCAST);
    let opts = kcm_stack::UdpOpts {
        broadcast: broadcast.unwrap_or(0) != 0,
        ..kcm_stack::UdpOpts::default()
    };
    let mut engine = CELL.lock()?;
    let id = engine
        .stack
        .udp_bind(local, reuse)
        .map_err(errors::socket)?;
    engine
        .stack
        .udp_set_opts(id, opts)
        .map_err(errors::socket)?;
    drop(engine);
    socket::replace(fd, v6, true, State::Udp(id))
}

/// connect(2): fixes the peer, or dissolves.
pub(crate) fn connect(
    engine: &mut EngineGuard,
    file: &'static File,
    remote: Option<SocketAddr>,
) -> Outcome<i32> {
    let id = id_of(engine, file)?;
    engine
        .stack
        .udp_connect(id, remote)
        .map_err(errors::connect)?;
    Ok(0)
}

/// shutdown(2) of a UDP socket only needs a peer.
pub(crate) fn shutdown(
    engine: &mut EngineGuard,
    file: &'static File,
    id: UdpId,
    _read: bool,
    _write: bool,
) -> Outcome<i32> {
    let connected = engine
        .stack
        .udp_addresses(id)
        .is_some_and(|(_, peer)| peer.is_some());
    if !connected {
        return Err(Errno::ENOTCONN.into());
    }
    file.watch.notify(super::ready::IN | super::ready::OUT);
    Ok(0)
}

/// One datagram out.
pub(crate) fn send(
    file: &'static File,
    fd: i32,
    src: Iovecs<'_>,
    to: Option<SocketAddr>,
    flags: i32,
) -> Outcome<usize> {
    let parts = src.gather()?;
    let to = to.map(address::canonical);
    let mut until = None;
    let mut pin = None;
    let mut slept = false;
    loop {
        let mut engine = CELL.lock()?;
        let id = id_of(&mut engine, file)?;
        let now = engine.now();
        match engine.stack.udp_send(now, id, to, &parts) {
            Ok(count) => return Ok(count),
            Err(SendError::WouldBlock) => {}
            Err(why) => return Err(errors::send(why).into()),
        }
        engine.pump();
        drop(engine);
        if !slept {
            if !waits(file, fd, flags) {
                return Err(Errno::EAGAIN.into());
            }
            until = deadline(file.sndtimeo.load(Ordering::Relaxed));
            slept = true;
        }
        sleep::until(file, until, &mut pin, |_| true)?;
    }
}

/// One datagram in, and where it came from.
pub(crate) fn recv(
    file: &'static File,
    fd: i32,
    dst: Iovecs<'_>,
    flags: i32,
) -> Outcome<(Received, Datagram)> {
    let mut until = None;
    let mut pin = None;
    let mut slept = false;
    loop {
        let mut engine = CELL.lock()?;
        let id = id_of(&mut engine, file)?;
        if engine.stack.udp_peek(id).is_none() {
            engine.pump();
        }
        match take(&mut engine, id, flags) {
            Ok(datagram) => return deliver(datagram, dst, flags),
            Err(RecvError::WouldBlock) => {}
            Err(why) => return Err(errors::recv(why)),
        }
        drop(engine);
        if !slept {
            if !waits(file, fd, flags) {
                return Err(Errno::EAGAIN.into());
            }
            until = deadline(file.rcvtimeo.load(Ordering::Relaxed));
            slept = true;
        }
        sleep::until(file, until, &mut pin, |engine| match id_of(engine, file) {
            Ok(id) => engine.udp_bits(id).contains(kcm_stack::Ready::READABLE),
            Err(_) => true,
        })?;
    }
}

fn take(engine: &mut Engine, id: UdpId, flags: i32) -> Result<Datagram, RecvError> {
    if flags & libc::MSG_PEEK != 0
        && let Some(front) = engine.stack.udp_peek(id)
    {
        return Ok(front.clone());
    }
    engine.stack.udp_recv(id)
}

fn deliver(datagram: Datagram, dst: Iovecs<'_>, flags: i32) -> Outcome<(Received, Datagram)> {
    let length = datagram.data.len();
    let count = length.min(dst.total());
    dst.scatter([&*datagram.data], count)?;
    let cut = count < length;
    let got = Received {
        bytes: if flags & libc::MSG_TRUNC != 0 {
            length
        } else {
            count
        },
        flags: if cut { libc::MSG_TRUNC } else { 0 },
    };
    Ok((got, datagram))
}
