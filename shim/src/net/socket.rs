//! Life of a stack socket: bind, listen, accept, connect, shutdown, close, and its names.

use core::net::SocketAddr;
use core::sync::atomic::Ordering;
use std::sync::Arc;

use kcm_mux::Nanos;
use kcm_stack::{IfaceId, ListenOptions, ListenerId, State as TcpState, TcpId, UdpId};
use rustix::net::{AddressFamily, SocketFlags, SocketType as UnixType};

use super::address::{self, Address};
use super::cells::{self, EngineGuard};
use super::engine::Engine;
use super::name::Door;
use super::options::Settings;
use super::psock::Bell;
use super::{beneath, carry, errors, inherited, pristine, sleep};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, table};
use crate::kcm::recv::deadline;
use crate::sync::{Mutex, Rank};
use crate::user_mem::{self, UserPtr};
use crate::{epoll, sys};

/// What a socket is to the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Unbound,
    /// Has a local address, and is no more yet.
    Bound(SocketAddr),
    Listening(ListenerId),
    /// connect(2) was called, and has not told the outcome yet.
    Connecting(TcpId),
    Connected(TcpId),
    Udp(UdpId),
}

/// One stack socket.
pub(crate) struct Socket {
    pub(crate) file: &'static File,
    pub(crate) state: State,
    /// AF_INET6.
    pub(crate) v6: bool,
    pub(crate) settings: Settings,
    /// Has no connection, and was shut down, or lost the one it had: reads find the end.
    pub(crate) ended: bool,
    /// Other processes may accept too.
    pub(crate) door: Option<Door>,
    /// Threads of this process have accepted since then.
    pub(crate) accepts: bool,
    /// Since when a connection waits that nobody accepts, 0 for none.
    pub(crate) waits_since: Nanos,
    /// Copies of the connection may be with other processes: number of the relay.
    pub(crate) relay: Option<u32>,
    /// Attached to a mux: how its psock hears of the connection.
    pub(crate) psock: Option<Arc<Bell>>,
    /// Without a connection: the pending error, 0 for none.
    pub(crate) error: i32,
    /// The address bind(2) gave it, kept over a connection that failed.
    pub(crate) bound: Option<SocketAddr>,
    /// Its number still is the kernel's TCP socket, unconnected (see [`super::beneath`]).
    pub(crate) is_on_kernels: bool,
}

impl Socket {
    pub(crate) fn new(file: &'static File, state: State, v6: bool, settings: Settings) -> Self {
        Self {
            file,
            state,
            v6,
            settings,
            ended: false,
            door: None,
            accepts: false,
            waits_since: 0,
            relay: None,
            psock: None,
            error: 0,
            bound: None,
            is_on_kernels: false,
        }
    }

    /// The connection, if it is one that bytes may flow on.
    pub(crate) fn conn(&self) -> Option<TcpId> {
        match self.state {
            State::Connecting(id) | State::Connected(id) => Some(id),
            _ => None,
        }
    }
}

/// Whether a blocking call on the file may wait, and until when.
pub(crate) fn waits(file: &File, fd: i32, flags: i32) -> bool {
    flags & libc::MSG_DONTWAIT == 0 && !file.is_nonblocking(fd)
}

/// A stack socket takes the place of the kernel's socket behind `fd`: `state` is what it is from now
/// on. Options set so far go with it.
pub(crate) fn replace(
    fd: i32,
    v6: bool,
    udp: bool,
    state: State,
    device: Option<IfaceId>,
) -> Outcome<&'static File> {
    let mut flags = SocketFlags::empty();
    flags.set(SocketFlags::NONBLOCK, sys::is_nonblocking(fd));
    let (beneath, file) = make(flags, udp)?;
    enrol(fd, file, (v6, udp), state, device)?.show_timeouts(&beneath);
    let stays_open = rustix::io::fcntl_getfd(sys::borrow(fd)).is_ok_and(|f| f.is_empty());
    carry::beneath(fd, &beneath);
    sys::put_onto(&beneath, fd, !stays_open)?;
    Ok(file)
}

/// A stack socket joins the kernel's socket behind `fd`, which goes on beneath it.
pub(crate) fn join(
    fd: i32,
    v6: bool,
    udp: bool,
    state: State,
    device: Option<IfaceId>,
) -> Outcome<&'static File> {
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(!udp);
    file.set_speaks(true);
    let _ = enrol(fd, file, (v6, udp), state, device)?;
    Ok(file)
}

/// Puts `file` behind `fd`, where a kernel socket stands, with that one's options, which it returns.
pub(super) fn enrol(
    fd: i32,
    file: &'static File,
    (v6, udp): (bool, bool),
    state: State,
    device: Option<IfaceId>,
) -> Outcome<Settings> {
    if !table::in_range(fd) {
        file.release();
        return Err(Errno::EMFILE.into());
    }
    let (mut settings, ended) = match pristine::is_pristine(fd) {
        true => (Settings::default(), false),
        false => (
            Settings::of_kernel_socket(sys::borrow(fd), v6, udp),
            sys::poll_bits(fd, libc::POLLRDHUP) & libc::POLLRDHUP != 0,
        ),
    };
    settings.device = device;
    settings.keep_timeouts(file);
    cells::first().lock()?.enlist(Socket {
        ended,
        ..Socket::new(file, state, v6, settings.clone())
    });
    table::install(fd, file);
    epoll::kernel_set::move_registrations(fd, file);
    Ok(settings)
}

/// A descriptor for a stack socket, and its file: an unconnected AF_UNIX socket, so that its number,
/// flags and `fstat` are the kernel's own.
fn make(flags: SocketFlags, udp: bool) -> Outcome<(rustix::fd::OwnedFd, &'static File)> {
    let ty = if udp {
        UnixType::DGRAM
    } else {
        UnixType::STREAM
    };
    let fd = rustix::net::socket_with(AddressFamily::UNIX, ty, flags, None)?;
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(!udp);
    Ok((fd, file))
}

/// bind(2) on a stack socket.
pub(crate) fn bind(file: &'static File, addr: UserPtr, length: u32) -> Outcome<i32> {
    let local = match address::read(addr, length)? {
        Address::Inet(local) => address::canonical(local),
        Address::Unspecified | Address::Other => return Err(Errno::EINVAL.into()),
    };
    let mut engine = cells::lock(file)?;
    check_local(&engine, local)?;
    match engine.socket(file)?.state {
        State::Unbound => bind_in(&mut engine, file, local).map(|()| 0),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn check_local(engine: &Engine, local: SocketAddr) -> Outcome<()> {
    match local.ip().is_unspecified() || engine.stack.is_local(local.ip()) {
        true => Ok(()),
        false => Err(Errno::EADDRNOTAVAIL.into()),
    }
}

/// Gives an unbound socket a local address.
pub(crate) fn bind_in(engine: &mut Engine, file: &File, local: SocketAddr) -> Outcome<()> {
    check_local(engine, local)?;
    let local = match local.port() {
        0 => SocketAddr::new(local.ip(), free_port(engine, file, local)?),
        _ if is_taken(engine, file, local) => return Err(Errno::EADDRINUSE.into()),
        _ => local,
    };
    engine.socket(file)?.bound = Some(local);
    engine.set_state(file, State::Bound(local))?;
    Ok(())
}

/// Whether another socket has the address, and does not share it.
fn is_taken(engine: &Engine, file: &File, local: SocketAddr) -> bool {
    let me = engine.sockets().find(|s| core::ptr::eq(s.file, file));
    let (address, port, device) = me.map_or((false, false, None), |s| {
        let settings = &s.settings;
        (settings.reuse_address, settings.reuse_port, settings.device)
    });
    engine.sockets().any(|other| {
        let Some(at) = other.bound.filter(|_| !core::ptr::eq(other.file, file)) else {
            return false;
        };
        let overlaps = at.ip() == local.ip()
            || at.ip().is_unspecified() && at.is_ipv4() == local.is_ipv4()
            || local.ip().is_unspecified() && at.is_ipv4() == local.is_ipv4();
        let apart =
            device.is_some() && other.settings.device.is_some() && device != other.settings.device;
        let listens = matches!(other.state, State::Listening(_));
        let shared = address && other.settings.reuse_address && !listens
            || port && other.settings.reuse_port;
        at.port() == local.port() && overlaps && !apart && !shared
    })
}

fn free_port(engine: &Engine, file: &File, local: SocketAddr) -> Outcome<u16> {
    let range = kcm_stack::limits::EPHEMERAL_PORTS;
    let count = u64::from(range.end() - range.start()) + 1;
    let start = sys::random().unwrap_or(sys::now()) % count;
    (0..count)
        .map(|n| range.start() + ((start + n) % count) as u16)
        .find(|port| !is_taken(engine, file, SocketAddr::new(local.ip(), *port)))
        .ok_or(Exit::Failed(Errno::EADDRINUSE))
}

/// listen(2).
pub(crate) fn listen(file: &'static File, backlog: i32) -> Outcome<i32> {
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    let local = match socket.state {
        State::Unbound => address::any(socket.v6, 0),
        State::Bound(local) => local,
        State::Listening(_) => return Ok(0),
        State::Connecting(_) | State::Connected(_) => return Err(Errno::EINVAL.into()),
        State::Udp(_) => return Err(Errno::EOPNOTSUPP.into()),
    };
    let settings = &socket.settings;
    let options = ListenOptions {
        backlog: usize::try_from(backlog).unwrap_or(usize::MAX),
        reuse_port: settings.reuse_port,
        v6_only: settings.v6_only,
        defer_accept: settings.defer_accept,
        opts: Some(settings.tcp.clone()),
        flags: settings.flags(),
        iface: settings.device,
    };
    let id = engine
        .stack
        .tcp_listen(local, &options)
        .map_err(errors::socket)?;
    let port = engine.stack.tcp_listener_port(id).unwrap_or(local.port());
    engine.socket(file)?.bound = Some(SocketAddr::new(local.ip(), port));
    engine.set_state(file, State::Listening(id))?;
    Ok(0)
}

/// accept4(2).
pub(crate) fn accept(
    file: &'static File,
    fd: i32,
    addr: UserPtr,
    length: UserPtr,
    flags: i32,
    native: impl Fn() -> i32,
) -> Outcome<i32> {
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut until = None;
    let mut pin = None;
    let mut slept = false;
    loop {
        let mut engine = cells::lock(file)?;
        let listener = listener(&mut engine, file)?;
        if !has_connection(&mut engine, listener) {
            engine.pump();
        }
        if has_connection(&mut engine, listener) {
            drop(engine);
            match take_connection(file, flags)? {
                Some((number, peer)) => return hand_out(number, peer, addr, length),
                None => continue, // another thread was faster
            }
        }
        drop(engine);
        if file.speaks() {
            if let Some((door, settings)) = shared(file)? {
                let _accepting = ACCEPTING.lock()?;
                if sys::poll_one(fd, libc::POLLIN) {
                    return inherited::accept_beneath((&door, settings), fd, addr, length, flags);
                }
            } else if let Some(number) = accept_beneath(fd, &native) {
                return Ok(number);
            }
        }
        if !slept {
            if !waits(file, fd, 0) {
                return Err(Errno::EAGAIN.into());
            }
            until = deadline(file.rcvtimeo.load(Ordering::Relaxed));
            slept = true;
        }
        let beneath = file.speaks().then_some(fd);
        sleep::beside(file, beneath, until, &mut pin, |engine| {
            listener_of(engine, file).is_none_or(|id| has_connection(engine, id))
        })?;
    }
}

/// What is known of a listener on which other processes may accept too.
fn shared(file: &File) -> Outcome<Option<(Door, Settings)>> {
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    socket.accepts |= socket.door.is_some();
    let door = socket.door.clone();
    Ok(door.map(|door| (door, socket.settings.clone())))
}

/// One thread at a time asks the kernel's listener, which must not block it.
static ACCEPTING: Mutex<()> = Mutex::ranked(Rank::Any, ());

/// A connection of the kernel's listener beneath, or its error: what accept(2) returned.
fn accept_beneath(fd: i32, native: impl Fn() -> i32) -> Option<i32> {
    let _accepting = ACCEPTING.lock().ok()?;
    sys::poll_one(fd, libc::POLLIN).then(native)
}

fn listener_of(engine: &mut Engine, file: &File) -> Option<ListenerId> {
    listener(engine, file).ok()
}

fn listener(engine: &mut Engine, file: &File) -> Outcome<ListenerId> {
    match engine.socket(file)?.state {
        State::Listening(id) => Ok(id),
        State::Udp(_) => Err(Errno::EOPNOTSUPP.into()),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn has_connection(engine: &mut Engine, id: ListenerId) -> bool {
    engine.stack.tcp_accept_queue_len(id).unwrap_or(0) > 0
}

/// Gives the oldest connection a descriptor of its own. `None` when there is none any more.
fn take_connection(listener_file: &'static File, flags: i32) -> Outcome<Option<(i32, SocketAddr)>> {
    let mut socket_flags = SocketFlags::empty();
    socket_flags.set(SocketFlags::CLOEXEC, flags & libc::SOCK_CLOEXEC != 0);
    socket_flags.set(SocketFlags::NONBLOCK, flags & libc::SOCK_NONBLOCK != 0);
    let beneath = beneath::take(socket_flags)?;
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(true);
    file.set_plain(true);
    file.set_nonblocking(socket_flags.contains(SocketFlags::NONBLOCK));
    if !table::in_range(sys::number(&beneath)) {
        file.release();
        return Err(Errno::EMFILE.into());
    }
    let taken = adopt_connection(listener_file, file);
    match taken {
        Ok(Some(peer)) => {
            let number = sys::hand_out(beneath);
            table::install(number, file);
            Ok(Some((number, peer)))
        }
        Ok(None) => {
            file.release();
            Ok(None)
        }
        Err(why) => {
            file.release();
            Err(why)
        }
    }
}

fn adopt_connection(
    listener_file: &'static File,
    file: &'static File,
) -> Outcome<Option<SocketAddr>> {
    let mut engine = cells::lock(listener_file)?;
    let id = listener(&mut engine, listener_file)?;
    let Some(conn) = engine.stack.tcp_accept(id) else {
        return Ok(None);
    };
    let (v6, settings) = {
        let parent = engine.socket(listener_file)?;
        (parent.v6, parent.settings.inherited())
    };
    settings.keep_timeouts(file);
    let peer = engine.stack.tcp_addresses(conn).map(|(_, peer)| peer);
    engine.enlist(Socket::new(file, State::Connected(conn), v6, settings));
    let peer = peer.unwrap_or(address::any(v6, 0));
    Ok(Some(address::in_family(peer, v6)))
}

/// Stores the peer's address; without room for it the connection is lost, as in the kernel.
fn hand_out(number: i32, peer: SocketAddr, addr: UserPtr, length: UserPtr) -> Outcome<i32> {
    if addr.is_null() {
        return Ok(number);
    }
    match address::write(peer, addr, length) {
        Ok(()) => Ok(number),
        Err(why) => {
            if let Some(file) = table::remove(number) {
                let _ = sys::close(number);
                file.release();
            }
            Err(why)
        }
    }
}

/// connect(2).
pub(crate) fn connect(file: &'static File, fd: i32, addr: UserPtr, length: u32) -> Outcome<i32> {
    match address::read(addr, length)? {
        Address::Inet(remote) => connect_to(file, fd, address::canonical(remote)),
        Address::Unspecified => disconnect(file),
        Address::Other => Err(match length {
            0..16 => Errno::EINVAL.into(),
            _ => Errno::EAFNOSUPPORT.into(),
        }),
    }
}

/// connect(2) to an address whose family is the socket's.
pub(crate) fn connect_to(file: &'static File, fd: i32, remote: SocketAddr) -> Outcome<i32> {
    let mut engine = cells::lock(file)?;
    match engine.socket(file)?.state {
        State::Connected(_) | State::Listening(_) => return Err(Errno::EISCONN.into()),
        State::Connecting(id) => {
            engine.pump();
            if !is_settled(&mut engine, id) && !waits(file, fd, 0) {
                return Err(Errno::EALREADY.into());
            }
        }
        State::Udp(_) => return super::udp::connect(&mut engine, file, Some(remote)),
        State::Unbound | State::Bound(_) => {
            start(&mut engine, file, remote)?;
            engine.pump();
        }
    }
    await_connection(engine, file, fd)
}

/// Sends the SYN.
pub(super) fn start(
    engine: &mut EngineGuard,
    file: &'static File,
    remote: SocketAddr,
) -> Outcome<()> {
    let now = engine.now();
    let socket = engine.socket(file)?;
    let options = kcm_stack::ConnectOptions {
        local: socket.bound,
        opts: Some(socket.settings.tcp.clone()),
        flags: socket.settings.flags(),
        iface: socket.settings.device,
    };
    // Linux takes the wildcard for this host.
    let id = engine
        .stack
        .tcp_connect(now, remote, &options)
        .map_err(errors::connect)?;
    let socket = engine.socket(file)?;
    (socket.ended, socket.error) = (false, 0);
    engine.set_state(file, State::Connecting(id))?;
    Ok(())
}

/// Whether the outcome of a connect is known.
fn is_settled(engine: &mut Engine, id: TcpId) -> bool {
    !matches!(
        engine.stack.tcp_state(id),
        Some(TcpState::SynSent | TcpState::SynReceived)
    )
}

/// Tells the outcome of a connect, and waits for it if the socket does.
fn await_connection(mut engine: EngineGuard, file: &'static File, fd: i32) -> Outcome<i32> {
    let mut pin = None;
    let mut until = None;
    let mut slept = false;
    loop {
        let State::Connecting(id) = engine.socket(file)?.state else {
            return Ok(0); // another thread has seen it through
        };
        if is_settled(&mut engine, id) {
            return conclude(&mut engine, file, id);
        }
        drop(engine);
        if !slept {
            if !waits(file, fd, 0) {
                return Err(Errno::EINPROGRESS.into());
            }
            until = deadline(file.sndtimeo.load(Ordering::Relaxed));
            slept = true;
        }
        let done = sleep::until(file, until, &mut pin, |engine| is_settled(engine, id));
        match done {
            Err(Exit::Failed(Errno::EAGAIN)) => return Err(Errno::EINPROGRESS.into()),
            done => done?,
        }
        engine = cells::lock(file)?;
    }
}

/// The handshake is over: the socket is connected, or free for another try.
fn conclude(engine: &mut Engine, file: &'static File, id: TcpId) -> Outcome<i32> {
    if engine
        .stack
        .tcp_state(id)
        .is_some_and(|s| s != TcpState::Closed)
    {
        engine.set_state(file, State::Connected(id))?;
        return Ok(0);
    }
    let cause = engine.stack.tcp_take_error(id);
    lose(engine, file)?;
    engine.stack.tcp_close(kcm_stack::Instant::ZERO, id);
    Err(cause.map_or(Errno::ECONNABORTED, errors::cause).into())
}

/// A connect has failed: the socket is free for another try.
pub(crate) fn lose(engine: &mut Engine, file: &File) -> Outcome<()> {
    let socket = engine.socket(file)?;
    socket.ended = true;
    let state = socket.bound.map_or(State::Unbound, State::Bound);
    engine.set_state(file, state).map(drop)
}

/// connect(2) with AF_UNSPEC.
fn disconnect(file: &'static File) -> Outcome<i32> {
    let mut engine = cells::lock(file)?;
    let now = engine.now();
    match engine.socket(file)?.state {
        State::Udp(_) => return super::udp::connect(&mut engine, file, None),
        State::Connecting(id) | State::Connected(id) => {
            // tcp_disconnect resets a connection, and reports it as one that was.
            let open = engine
                .stack
                .tcp_state(id)
                .is_some_and(|s| s != TcpState::Closed);
            engine.stack.tcp_abort(now, id);
            let socket = engine.socket(file)?;
            socket.error = if open { libc::ECONNRESET } else { 0 };
            let state = socket.bound.map_or(State::Unbound, State::Bound);
            engine.set_state(file, state)?;
        }
        State::Listening(_) => {
            let old = engine.set_state(file, State::Unbound)?;
            if let State::Listening(id) = old {
                engine.stack.tcp_unlisten(now, id);
            }
        }
        State::Unbound | State::Bound(_) => {}
    }
    Ok(0)
}

/// shutdown(2).
pub(crate) fn shutdown(file: &'static File, how: i32) -> Outcome<i32> {
    let (read, write) = match how {
        libc::SHUT_RD => (true, false),
        libc::SHUT_WR => (false, true),
        libc::SHUT_RDWR => (true, true),
        _ => return Err(Errno::EINVAL.into()),
    };
    let mut engine = cells::lock(file)?;
    let now = engine.now();
    match engine.socket(file)?.state {
        State::Connecting(id) | State::Connected(id) => {
            let done = engine.stack.tcp_shutdown(now, id, read, write);
            done.map_err(|_| Errno::ENOTCONN)?;
            file.watch
                .notify(super::ready::IN | super::ready::OUT | libc::POLLHUP as u32);
            Ok(0)
        }
        // A listener stops listening when it is shut down for reading.
        State::Listening(id) => {
            if read {
                let bound = engine.socket(file)?.bound;
                engine.set_state(file, bound.map_or(State::Unbound, State::Bound))?;
                engine.stack.tcp_unlisten(now, id);
                file.watch.notify(super::ready::UNCONNECTED);
            }
            Ok(0)
        }
        State::Udp(id) => super::udp::shutdown(&mut engine, file, id, read, write),
        State::Unbound | State::Bound(_) => {
            engine.socket(file)?.ended |= read;
            Err(Errno::ENOTCONN.into())
        }
    }
}

/// getsockname(2).
pub(crate) fn local_name(file: &'static File, addr: UserPtr, length: UserPtr) -> Outcome<i32> {
    if file.speaks() && super::udp::is_udp(file)? && !super::udp::is_for_stack(file, None)? {
        return Err(Exit::Native); // bound to the same port, or connected
    }
    let mut engine = cells::lock(file)?;
    let (local, v6) = local_of(&mut engine, file)?;
    drop(engine);
    address::write(address::in_family(local, v6), addr, length)?;
    Ok(0)
}

fn local_of(engine: &mut Engine, file: &File) -> Outcome<(SocketAddr, bool)> {
    let socket = engine.socket(file)?;
    let (state, v6, bound) = (socket.state, socket.v6, socket.bound);
    let local = match state {
        State::Connecting(id) | State::Connected(id) => {
            engine.stack.tcp_addresses(id).map(|(local, _)| local)
        }
        State::Udp(id) => engine.stack.udp_addresses(id).map(|(local, _)| local),
        State::Unbound | State::Bound(_) | State::Listening(_) => bound,
    };
    Ok((local.unwrap_or(address::any(v6, 0)), v6))
}

/// getpeername(2).
pub(crate) fn peer_name(file: &'static File, addr: UserPtr, length: UserPtr) -> Outcome<i32> {
    if file.speaks() && super::udp::is_udp(file)? && !super::udp::is_for_stack(file, None)? {
        return Err(Exit::Native);
    }
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    let (state, v6) = (socket.state, socket.v6);
    let peer = match state {
        State::Connecting(id) | State::Connected(id) => {
            let open = engine
                .stack
                .tcp_state(id)
                .is_some_and(|s| !matches!(s, TcpState::Closed | TcpState::SynSent));
            let names = engine.stack.tcp_addresses(id).filter(|_| open);
            names.map(|(_, peer)| peer)
        }
        State::Udp(id) => engine.stack.udp_addresses(id).and_then(|(_, peer)| peer),
        _ => None,
    };
    drop(engine);
    let peer = peer.ok_or(Errno::ENOTCONN)?;
    if user_mem::copy_in::<i32>(length)? < 0 {
        return Err(Errno::EINVAL.into());
    }
    address::write(address::in_family(peer, v6), addr, length)?;
    Ok(0)
}

/// The last descriptor of a stack socket is gone.
pub(crate) fn last_close(file: &'static File) {
    linger(file);
    let Ok(mut engine) = cells::lock(file) else {
        return;
    };
    let now = engine.now();
    if engine.socket(file).is_err() {
        return;
    }
    let Some(socket) = engine.remove(file.net_index()) else {
        return;
    };
    match socket.state {
        State::Unbound | State::Bound(_) => {}
        State::Listening(id) => engine.stack.tcp_unlisten(now, id),
        State::Connecting(id) | State::Connected(id) => match socket.settings.linger {
            Some(0) => engine.stack.tcp_abort(now, id),
            _ => engine.stack.tcp_close(now, id),
        },
        State::Udp(id) => engine.stack.udp_close(id),
    }
}

/// SO_LINGER: close(2) waits until the peer has everything, or the time is over. Signals end it too.
fn linger(file: &'static File) {
    let Ok(mut engine) = cells::lock(file) else {
        return;
    };
    let now = engine.now();
    let Ok(socket) = engine.socket(file) else {
        return;
    };
    let (Some(id), Some(seconds @ 1..)) = (socket.conn(), socket.settings.linger) else {
        return;
    };
    if engine.stack.tcp_shutdown(now, id, false, true).is_err() {
        return;
    }
    drop(engine);
    let until = sys::now().saturating_add(u64::from(seconds) * 1_000_000_000);
    let done = |engine: &mut Engine| engine.stack.tcp_queues(id).is_none_or(|q| q.1 == 0);
    let _ = sleep::unpinned(file, until, done);
}
