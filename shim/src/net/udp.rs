//! UDP on the stack.

pub(crate) mod control;
pub(crate) mod early;
pub(crate) mod filter;
pub(crate) mod groups;
pub(crate) mod options;
pub(super) mod ports;

use core::net::SocketAddr;
use core::sync::atomic::Ordering;

use kcm_stack::{
    Cause, Datagram, IfaceId, RecvError, Reuse, SendError, UdpBindOptions, UdpId, UdpOpts,
    UdpSendOptions,
};
use rustix::event::epoll;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::sockopt;

use control::Told;
use options::Wants;

use super::cells::{self, EngineGuard, NetCell};
use super::engine::Engine;
use super::options::Settings;
use super::socket::{self, Socket, State, waits};
use super::{address, errors, ready, sleep, steer};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind};
use crate::interpose::message::native_datagram;
use crate::kcm::recv::{Received, deadline};
use crate::route::{self, Role, Verdict};
use crate::user_mem::Iovecs;
use crate::{own, sys};

fn id_of(engine: &mut Engine, file: &File) -> Outcome<UdpId> {
    match engine.socket(file)?.state {
        State::Udp(id) => Ok(id),
        _ => Err(Errno::EBADF.into()),
    }
}

/// Whether the file is a UDP socket.
pub(crate) fn is_udp(file: &File) -> Outcome<bool> {
    let mut engine = cells::lock(file)?;
    Ok(matches!(engine.socket(file)?.state, State::Udp(_)))
}

/// A UDP socket of the stack takes the place of the kernel's behind `fd`, bound to `local`. What was
/// set on the kernel's goes with it.
pub(crate) fn bind(
    fd: i32,
    v6: bool,
    local: SocketAddr,
    device: Option<IfaceId>,
) -> Outcome<&'static File> {
    let old = sys::borrow(fd);
    let sizes = [
        sockopt::socket_recv_buffer_size(old),
        sockopt::socket_send_buffer_size(old),
    ];
    let (cell, id, wants) = bound(old, v6, local, device)?;
    let file = socket::replace(fd, (v6, true), State::Udp(id), device, cell);
    let file = enrolled((cell, id), wants, file)?;
    // The kernel doubles what it is told.
    let [receive, send] = sizes.map(|size| size.unwrap_or(0) / 2);
    let new = sys::borrow(fd);
    if sockopt::socket_recv_buffer_size(new) != Ok(receive * 2) {
        let _ = sockopt::set_socket_recv_buffer_size(new, receive);
    }
    if sockopt::socket_send_buffer_size(new) != Ok(send * 2) {
        let _ = sockopt::set_socket_send_buffer_size(new, send);
    }
    options::follow_rcvbuf(file, fd)?;
    Ok(file)
}

/// A socket for another process, with the options of its own: it has no descriptor here.
pub(super) fn open_apart(
    like: &OwnedFd,
    v6: bool,
    local: SocketAddr,
    mut settings: Settings,
) -> Outcome<&'static File> {
    let bind = bind_options(like.as_fd(), v6, settings.device);
    let (opts, wants) = options::of_kernel_socket(like.as_fd(), v6);
    let (cell, id) = ports::bind(local, &bind)?;
    let mut engine = cell.lock()?;
    set_options(&mut engine, id, opts);
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(false);
    settings.wants = wants;
    engine.enlist(Socket::new(file, State::Udp(id), v6, settings));
    drop(engine);
    options::follow_rcvbuf(file, sys::number(like))?;
    Ok(file)
}

/// A UDP socket of an engine with the options of the kernel's, and what it tells beside datagrams.
fn bound(
    old: BorrowedFd<'_>,
    v6: bool,
    local: SocketAddr,
    device: Option<IfaceId>,
) -> Outcome<(&'static NetCell, UdpId, Wants)> {
    let bind = bind_options(old, v6, device);
    let (opts, wants) = options::of_kernel_socket(old, v6);
    let (cell, id) = ports::bind(local, &bind)?;
    set_options(&mut *cell.lock()?, id, opts);
    Ok((cell, id, wants))
}

/// What bind(2) takes from the options of the kernel's socket.
fn bind_options(old: BorrowedFd<'_>, v6: bool, device: Option<IfaceId>) -> UdpBindOptions {
    let is_on = |level, name| sys::option_int(old, level, name).unwrap_or(0) != 0;
    UdpBindOptions {
        reuse: match [libc::SO_REUSEPORT, libc::SO_REUSEADDR].map(|o| is_on(libc::SOL_SOCKET, o)) {
            [true, true] => Reuse::Both,
            [true, false] => Reuse::Port,
            [false, true] => Reuse::Address,
            [false, false] => Reuse::No,
        },
        v6_only: v6 && is_on(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        iface: device,
        on_any_shard: false,
    }
}

/// The interface stays that of the bind.
fn set_options(engine: &mut Engine, id: UdpId, opts: UdpOpts) {
    let iface = engine.stack.udp_opts(id).and_then(|bound| bound.iface);
    let _ = engine.stack.udp_set_opts(id, UdpOpts { iface, ..opts });
}

/// The outcome of putting the socket `id` behind a number; it ends if that failed.
fn enrolled(
    (cell, id): (&'static NetCell, UdpId),
    wants: Wants,
    file: Outcome<&'static File>,
) -> Outcome<&'static File> {
    match file {
        Ok(file) => cells::lock(file)?.socket(file)?.settings.wants = wants,
        Err(_) => cell.lock()?.stack.udp_close(id),
    }
    file
}

/// A UDP socket of the stack joins the kernel's behind `fd`, which is bound to the same: all addresses, or a
/// group.
pub(crate) fn join(
    fd: i32,
    v6: bool,
    local: SocketAddr,
    device: Option<IfaceId>,
) -> Outcome<&'static File> {
    let (cell, id, wants) = bound(sys::borrow(fd), v6, local, device)?;
    let file = socket::join(fd, (v6, true), State::Udp(id), device, cell);
    let file = enrolled((cell, id), wants, file)?;
    options::follow_rcvbuf(file, fd)?;
    Ok(file)
}

/// Whether what a socket of both kernel and stack sends goes to the stack: by `to`, or by its peer.
pub(crate) fn is_for_stack(file: &File, to: Option<SocketAddr>) -> Outcome<bool> {
    let to = match to {
        Some(to) => to,
        None => {
            let mut engine = cells::lock(file)?;
            let id = id_of(&mut engine, file)?;
            match engine.stack.udp_addresses(id) {
                Some((_, Some(peer))) => peer,
                _ => return Ok(false), // the kernel's peer, or none
            }
        }
    };
    if to.ip().is_multicast() && sends_to_groups(file)? {
        return Ok(true);
    }
    let plan = route::plan().ok_or(Errno::EBADF)?;
    match route::decide(plan, Role::UdpSend, to).verdict {
        Verdict::Refuse(errno) => Err(Errno(errno).into()),
        Verdict::Kernel => Ok(false),
        Verdict::Stack { .. } | Verdict::Both { .. } => Ok(true),
    }
}

/// Whether an interface of the stack's has been chosen for what the socket sends to groups.
fn sends_to_groups(file: &File) -> Outcome<bool> {
    let mut engine = cells::lock(file)?;
    let id = id_of(&mut engine, file)?;
    let opts = engine.stack.udp_opts(id);
    Ok(opts.is_some_and(|opts| opts.multicast_iface.is_some()))
}

/// connect(2): fixes the peer, or dissolves. Of a socket of both kernel and stack, the one that the peer
/// does not belong to hears nobody any more.
pub(crate) fn connect(
    engine: &mut EngineGuard,
    file: &'static File,
    remote: Option<SocketAddr>,
) -> Outcome<i32> {
    let id = id_of(engine, file)?;
    let connected = engine.stack.udp_connect(id, remote);
    if file.speaks() {
        let for_stack = remote.is_some_and(|to| {
            let decision = route::plan().map(|plan| route::decide(plan, Role::UdpSend, to));
            decision.is_some_and(|d| matches!(d.verdict, Verdict::Stack { .. }))
        });
        if !for_stack {
            return Err(Exit::Native);
        }
    }
    connected.map_err(errors::connect)?;
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
    file.watch.notify(ready::IN | ready::OUT);
    Ok(0)
}

/// One datagram out.
pub(crate) fn send(
    file: &'static File,
    fd: i32,
    src: Iovecs<'_>,
    to: Option<SocketAddr>,
    flags: i32,
    options: &UdpSendOptions,
) -> Outcome<usize> {
    // A datagram in several sends, or with urgent data, is not to be had here.
    if flags & (libc::MSG_OOB | libc::MSG_MORE) != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if to.is_some_and(|to| to.port() == 0) {
        return Err(Errno::EINVAL.into());
    }
    let parts = src.gather()?;
    let by_rule = to.and_then(steer::by_rule);
    let options = UdpSendOptions {
        iface: options.iface.or(by_rule),
        ..*options
    };
    let to = to.map(address::canonical);
    let mut until = None;
    let mut pin = None;
    let mut slept = false;
    loop {
        let mut engine = cells::lock(file)?;
        let id = id_of(&mut engine, file)?;
        let now = engine.now();
        match engine.stack.udp_send_with(now, id, to, &options, &parts) {
            Ok(count) => return Ok(count),
            Err(SendError::WouldBlock) => {}
            // A source of IP_PKTINFO has no route to go by (ip_route_output, ip6_datagram_send_ctl).
            Err(SendError::Failed(Cause::SourceNotOurs)) => {
                return Err(match options.source {
                    Some(source) if source.is_ipv6() => Errno::EINVAL.into(),
                    _ => Errno::ENETUNREACH.into(),
                });
            }
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

/// One datagram in, with its sender and what else there is to tell of it, for which there is so much room.
pub(crate) fn recv(
    file: &'static File,
    fd: i32,
    dst: Iovecs<'_>,
    (flags, v6): (i32, bool),
    control: usize,
) -> Outcome<(Received, Option<SocketAddr>, Told)> {
    if flags & libc::MSG_ERRQUEUE != 0 {
        return Err(Errno::EAGAIN.into()); // IP_RECVERR is not to be had, so nothing is queued
    }
    if flags & libc::MSG_OOB != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let mut until = None;
    let mut pin = None;
    let mut slept = false;
    let mut arrivals: Option<Arrivals> = None;
    loop {
        let mut engine = cells::lock(file)?;
        let id = id_of(&mut engine, file)?;
        if engine.stack.udp_peek(id).is_none() {
            engine.pump();
        }
        match take(&mut engine, id, flags) {
            Ok(datagram) => {
                let wants = engine.socket(file)?.settings.wants;
                let told = Told::new(&datagram, wants, engine.now());
                drop(engine);
                let from = address::in_family(datagram.from, v6);
                return Ok((deliver(&datagram, dst, flags)?, Some(from), told));
            }
            Err(RecvError::WouldBlock) => {}
            Err(why) => return Err(errors::recv(why)),
        }
        drop(engine);
        let beneath = file.speaks().then_some(fd);
        let watched = arrivals.as_ref().map(Arrivals::begin).or(beneath);
        if let Some(fd) = beneath.filter(|fd| sys::poll_one(*fd, libc::POLLIN)) {
            if let Some(received) = recv_beneath(fd, dst, flags, control)? {
                return Ok(received);
            }
            if arrivals.is_none() && flags & libc::MSG_PEEK != 0 {
                arrivals = Some(Arrivals::of(fd)?); // what is queued lies before SO_PEEK_OFF
                continue;
            }
        }
        if !slept {
            if !waits(file, fd, flags) {
                return Err(Errno::EAGAIN.into());
            }
            until = deadline(file.rcvtimeo.load(Ordering::Relaxed));
            slept = true;
        }
        sleep::beside(file, watched, until, &mut pin, |engine| {
            match id_of(engine, file) {
                Ok(id) => engine.udp_bits(id) & (ready::IN | ready::ERR) != 0,
                Err(_) => true,
            }
        })?;
    }
}

/// Tells of datagrams that arrive at the kernel's socket beneath, however many are queued there.
struct Arrivals(own::Kept);

impl Arrivals {
    fn of(fd: i32) -> Outcome<Self> {
        let set = own::keep(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let (nothing, flags) = (
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        );
        let arrivals = Self(set);
        epoll::add(&arrivals.0, sys::borrow(fd), nothing, flags)?;
        Ok(arrivals)
    }

    /// The descriptor that is readable once another datagram arrives.
    fn begin(&self) -> i32 {
        sys::epoll_now(sys::number(&self.0), 1);
        sys::number(&self.0)
    }
}

/// A datagram of the kernel's socket beneath, unless another thread was faster: none may wait there, for
/// the next one may be the stack's.
fn recv_beneath(
    fd: i32,
    dst: Iovecs<'_>,
    flags: i32,
    control: usize,
) -> Outcome<Option<(Received, Option<SocketAddr>, Told)>> {
    let datagram = match native_datagram(fd, (dst.total(), control), flags) {
        Ok(datagram) => datagram,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(why) => return Err(why.into()),
    };
    dst.scatter([&*datagram.data], datagram.data.len())?;
    let got = Received {
        bytes: datagram.length,
        flags: datagram.flags & !libc::MSG_CMSG_CLOEXEC,
    };
    let told = Told::Kernel(datagram.control);
    Ok(Some((got, address::of_kernel(&datagram.from), told)))
}

fn take(engine: &mut Engine, id: UdpId, flags: i32) -> Result<Datagram, RecvError> {
    if flags & libc::MSG_PEEK != 0
        && let Some(front) = engine.stack.udp_peek(id)
    {
        return Ok(front.clone());
    }
    engine.stack.udp_recv(id)
}

fn deliver(datagram: &Datagram, dst: Iovecs<'_>, flags: i32) -> Outcome<Received> {
    let length = datagram.data.len();
    let count = length.min(dst.total());
    dst.scatter([&*datagram.data], count)?;
    let cut = count < length;
    Ok(Received {
        bytes: if flags & libc::MSG_TRUNC != 0 {
            length
        } else {
            count
        },
        flags: if cut { libc::MSG_TRUNC } else { 0 },
    })
}
