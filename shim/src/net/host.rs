//! Sockets of this process's engine for other processes, its *guests* ([`super::guest`]): a connection is
//! relayed from its first moment, and what comes to a listener is handed over, as if they had been lent.

use core::net::SocketAddr;
use std::collections::VecDeque;

use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{SendFlags, SocketAddrUnix, sockopt};

use super::channel::Channel;
use super::engine::Engine;
use super::lend::{self, unix_stream};
use super::name::{Door, Name};
use super::options::Settings;
use super::relay::Relay;
use super::socket::{self, Socket, State};
use super::{
    address, cells, ending, errors, guest, handover, homes, listeners, question, steer, udp,
};
use crate::errno::{Errno, Outcome};
use crate::fd::file::{Body, Link};
use crate::fd::{File, Kind};
use crate::route::{self, Role, Verdict};
use crate::share::guest::{Given, Token, What, Wish};
use crate::share::owner;
use crate::sync::{Mutex, Rank};
use crate::sys;

/// Whether whoever has this token has it from our memory.
pub(crate) fn knows(token: &Token) -> bool {
    *token != Token::default() && guest::token() == *token
}

/// Gives a guest the socket it wants, with the options of `like`, its own of the kernel's or one that was
/// given to it before.
///
/// # Errors
/// What the call would answer here; EPIPE if the addresses are given up already, or are about to be.
pub(crate) fn give(wish: &Wish, like: Option<&OwnedFd>) -> Outcome<Option<Given>> {
    if ending::has_begun() || cells::first().lock()?.claims().is_empty() {
        return Err(Errno::EPIPE.into());
    }
    match wish.what {
        What::Hello => Ok(None),
        What::Connect => connect(wish, like).map(Some),
        What::Bind => bind(wish, like).map(Some),
        What::Listen => listen(wish, like).map(Some),
        What::Udp => open_udp(wish, like).map(Some),
    }
}

/// The options that a guest has set on its socket of the kernel's; the interface is by our own rules.
fn settings(wish: &Wish, like: Option<&OwnedFd>, role: Role, at: SocketAddr) -> Settings {
    let mut settings = like.map_or_else(Settings::default, |like| {
        Settings::of_kernel_socket(like.as_fd(), wish.v6, wish.what == What::Udp)
    });
    if let Some(plan) = route::plan() {
        let decision = route::decide(plan, role, at);
        let fd = like.map_or(-1, sys::number);
        if !matches!(decision.verdict, Verdict::Kernel | Verdict::Refuse(_)) {
            settings.device = steer::wanted(&decision, fd, like.is_none()).unwrap_or(None);
        }
    }
    settings
}

/// A socket of the engine without a descriptor.
struct Kept(&'static File);

impl Kept {
    fn new(v6: bool, settings: Settings) -> Outcome<Self> {
        let file = File::new(Kind::Stack, 0, Body::None)?;
        file.set_stream(true);
        let kept = Self(file);
        let mut engine = cells::first().lock()?;
        engine.enlist(Socket::new(file, State::Unbound, v6, settings));
        Ok(kept)
    }

    /// The engine keeps it from now on.
    fn keep(self) -> &'static File {
        let file = self.0;
        core::mem::forget(self);
        file
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.release();
    }
}

fn connect(wish: &Wish, like: Option<&OwnedFd>) -> Outcome<Given> {
    let bound = like.and_then(|like| Name::of(like.as_fd()));
    if let Some(name) = bound.as_ref().filter(|name| name.udp) {
        return connect_udp(name, wish.remote);
    }
    let kept = match &bound {
        None => {
            let settings = settings(wish, like, Role::Connect, wish.remote);
            let kept = Kept::new(wish.v6, settings)?;
            if wish.local.port() != 0 || !wish.local.ip().is_unspecified() {
                socket::bind_in(kept.0, wish.local)?;
            }
            kept
        }
        Some(name) => Kept(lend::give_bound(lent_as(name)?)?),
    };
    let file = kept.0;
    homes::before_connect(file, wish.remote)?;
    let mut engine = cells::lock(file)?;
    let started = match engine.socket(file)?.state {
        State::Unbound | State::Bound(_) => socket::start(&mut engine, file, wish.remote),
        _ => Err(Errno::EISCONN.into()),
    };
    if let Err(why) = started {
        drop(engine);
        if bound.is_some() {
            kept.keep(); // still bound
        }
        return Err(why);
    }
    let socket = engine.socket(file)?;
    socket.door = None;
    let (v6, settings, conn) = (socket.v6, socket.settings.clone(), socket.conn());
    let names = conn.and_then(|conn| engine.stack.tcp_addresses(conn));
    let (local, peer) = names.ok_or(Errno::EADDRNOTAVAIL)?;
    drop(engine);
    file.set_link(Link::Private);
    let _in_flight = owner::in_flight();
    let name = Name::new(v6, false, local, Some(peer))?;
    let beneath = unix_stream()?;
    settings.show_timeouts(&beneath);
    let end = lend::connect_beneath(&beneath, &name)?;
    let filled = fill(&beneath)?;
    hand_out(kept, name, beneath, |engine, name| {
        engine.add_relay(Relay::opening(name, end, file, filled));
    })
}

/// The guest gets `beneath`; from the first moment bytes or datagrams are moved by what `begin` adds.
fn hand_out(
    kept: Kept,
    name: Name,
    beneath: OwnedFd,
    begin: impl FnOnce(&mut Engine, Name),
) -> Outcome<Given> {
    let number = name.number;
    let mut engine = cells::lock(kept.0)?;
    engine.socket(kept.keep())?.relay = Some(number);
    let given = Given {
        socket: Some(beneath),
        name: name.encode(),
    };
    begin(&mut engine, name);
    lend::note_shared();
    engine.relay_is_due(number);
    Ok(given)
}

fn open_udp(wish: &Wish, like: Option<&OwnedFd>) -> Outcome<Given> {
    let like = like.ok_or(Errno::EINVAL)?;
    let settings = settings(wish, Some(like), Role::UdpBind, wish.local);
    let beneath = lend::unix_packet()?;
    settings.show_timeouts(&beneath);
    let kept = Kept(udp::open_apart(like, wish.v6, wish.local, settings)?);
    let file = kept.0;
    let mut engine = cells::lock(file)?;
    let local = match engine.socket(file)?.state {
        State::Udp(id) => engine.stack.udp_addresses(id).map(|(local, _)| local),
        _ => None,
    };
    drop(engine);
    let _in_flight = owner::in_flight();
    let name = Name::new(wish.v6, true, local.unwrap_or(wish.local), None)?;
    let end = lend::connect_beneath(&beneath, &name)?;
    hand_out(kept, name, beneath, |engine, name| {
        engine.add_channel(Channel::new(name, end, file, true));
    })
}

/// Fixes the peer of a UDP socket that others hold, or dissolves it.
fn connect_udp(name: &Name, remote: SocketAddr) -> Outcome<Given> {
    let found = question::find(|engine| {
        let channel = { engine.channels.get(&name.number) }.filter(|c| c.name == *name)?;
        Some(channel.file)
    });
    let file = found?.ok_or(Errno::EBADF)?;
    let mut engine = cells::lock(file)?;
    engine.move_outbound(name.number);
    let State::Udp(id) = engine.socket(file)?.state else {
        return Err(Errno::EBADF.into());
    };
    let peer = Some(remote).filter(|to| to.port() != 0);
    engine
        .stack
        .udp_connect(id, peer)
        .map_err(errors::connect)?;
    let local = engine.stack.udp_addresses(id).map(|(local, _)| local);
    drop(engine);
    udp::ports::changed(file);
    let name = Name {
        local: local.unwrap_or(name.local),
        peer,
        ..name.clone()
    };
    let (socket, name) = (None, name.encode());
    Ok(Given { socket, name })
}

/// Fills the queue of a connection that is not there yet: it looks to poll(2) like one that is being made,
/// neither readable nor writable. How many bytes are in the queue.
fn fill(beneath: &OwnedFd) -> Outcome<usize> {
    const PIECE: [u8; 16 << 10] = [0; 16 << 10];
    /// More than a socket takes whose send buffer is the largest that net.core.wmem_default is set to.
    const PIECES_MAX: usize = 1 << 10;
    let mut filled = 1; // it came connected
    for _ in 0..PIECES_MAX {
        if !sys::poll_one(sys::number(beneath), libc::POLLOUT) {
            return Ok(filled);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        filled += rustix::net::send(beneath, &PIECE, flags)?;
    }
    Err(Errno::ENOBUFS.into())
}

fn bind(wish: &Wish, like: Option<&OwnedFd>) -> Outcome<Given> {
    let settings = settings(wish, like, Role::Listen, wish.local);
    let kept = Kept::new(wish.v6, settings.clone())?;
    socket::bind_in(kept.0, wish.local)?;
    let beneath = unix_stream()?;
    settings.show_timeouts(&beneath);
    let name = let_in(kept, false, |name| {
        let at = SocketAddrUnix::new_abstract_name(&name.encode())?;
        Ok(rustix::net::bind(&beneath, &at)?)
    })?;
    Ok(Given {
        socket: Some(beneath),
        name,
    })
}

/// What comes to the socket is for others to accept, by its name, which `ready` uses first.
fn let_in(
    kept: Kept,
    is_kernels: bool,
    ready: impl FnOnce(&Name) -> Outcome<()>,
) -> Outcome<Vec<u8>> {
    let mut engine = cells::lock(kept.0)?;
    let socket = engine.socket(kept.0)?;
    let (v6, bound) = (socket.v6, socket.bound);
    drop(engine);
    let name = Name::new(v6, false, bound.unwrap_or(address::any(v6, 0)), None)?;
    ready(&name)?;
    let encoded = name.encode();
    open_door(kept, name, is_kernels)?;
    Ok(encoded)
}

fn open_door(kept: Kept, name: Name, is_kernels: bool) -> Outcome<()> {
    let mut engine = cells::lock(kept.0)?;
    engine.socket(kept.0)?;
    let door = Door { name, is_kernels };
    let file = kept.keep();
    drop(engine);
    listeners::each(file, |socket| socket.door = Some(door.clone()));
    file.set_link(Link::Tied);
    lend::note_door();
    lend::note_shared();
    handover::look_again();
    Ok(())
}

/// The socket of this name that others have.
fn lent_as(name: &Name) -> Outcome<&'static File> {
    let is_it = |socket: &&Socket| socket.door.as_ref().is_some_and(|door| door.name == *name);
    let found = question::find(|engine| { engine.sockets() }.find(is_it).map(|socket| socket.file));
    Ok(found?.ok_or(Errno::EINVAL)?)
}

fn listen(wish: &Wish, like: Option<&OwnedFd>) -> Outcome<Given> {
    if let Some((like, name)) = like.and_then(|like| Some((like, Name::of(like.as_fd())?))) {
        match lent_as(&name) {
            Ok(file) => {
                socket::listen(file, wish.backlog)?;
                lend::listens_now(file, None)?;
            }
            Err(_) => adopt(like, &name, wish)?,
        }
        let (socket, name) = (None, name.encode());
        return Ok(Given { socket, name });
    }
    if let Some(name) = known_to_kernel(wish.local)? {
        return Ok(Given { socket: None, name });
    }
    let settings = settings(wish, like, Role::Listen, wish.local);
    let kept = Kept::new(wish.v6, settings)?;
    socket::bind_in(kept.0, wish.local)?;
    socket::listen(kept.0, wish.backlog)?;
    let (socket, name) = (None, let_in(kept, true, |_| Ok(()))?);
    Ok(Given { socket, name })
}

/// What a guest's listener of the kernel's at `local` is called, if one has told of it: the kernel spreads what
/// comes over all that there are.
fn known_to_kernel(local: SocketAddr) -> Outcome<Option<Vec<u8>>> {
    let mut name = None;
    question::find(|engine| {
        let socket = { engine.sockets() }.find(|socket| {
            let door = socket.door.as_ref().filter(|door| door.is_kernels);
            door.is_some() && socket.bound == Some(local) && socket.file.is_only_lent()
        })?;
        name = socket.door.as_ref().map(|door| door.name.encode());
        Some(socket.file)
    })?;
    Ok(name)
}

/// Goes on with a listener whose owner has ended. Several on one address had SO_REUSEPORT, all of them.
fn adopt(like: &OwnedFd, name: &Name, wish: &Wish) -> Outcome<()> {
    if name.peer.is_some() || !sockopt::socket_acceptconn(like)? {
        return Err(Errno::EINVAL.into());
    }
    let mut settings = settings(wish, None, Role::Listen, name.local);
    (settings.reuse_address, settings.reuse_port) = (true, true);
    let kept = Kept::new(name.v6, settings)?;
    socket::bind_in(kept.0, name.local)?;
    socket::listen(kept.0, wish.backlog)?;
    open_door(kept, name.clone(), false)
}

/// Why connections of guests failed of which nobody has asked yet, oldest first.
static FAILURES: Mutex<VecDeque<(Name, Errno)>> = Mutex::ranked(Rank::Leaf, VecDeque::new());

/// A connection could not be made.
pub(super) fn note_failure(name: Name, why: Errno) {
    /// As many connections as one program opens at a time: what nobody asks about goes after that.
    const FAILURES_MAX: usize = 4096;
    if let Ok(mut failures) = FAILURES.lock() {
        if failures.len() >= FAILURES_MAX {
            failures.pop_front();
        }
        failures.push_back((name, why));
    }
}

/// Why the connection of which `copy` is a copy could not be made; 0 if it was.
pub(super) fn failure(copy: &OwnedFd) -> Outcome<i32> {
    let name = Name::of(copy.as_fd()).ok_or(Errno::EBADF)?;
    let mut failures = FAILURES.lock()?;
    let at = failures.iter().position(|(of, _)| *of == name);
    let found = at.and_then(|at| failures.remove(at));
    Ok(found.map_or(0, |(_, why)| why.0))
}
