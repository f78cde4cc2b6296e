//! Life of a stack socket: bind, listen, accept, connect, shutdown, close, and its names.

use core::net::SocketAddr;
use core::sync::atomic::Ordering;
use std::sync::Arc;

use kcm_mux::Nanos;
use kcm_stack::{IfaceId, ListenerId, State as TcpState, TcpId, UdpId};
use rustix::net::{AddressFamily, SocketFlags, SocketType as UnixType};

use super::address::{self, Address};
use super::cells::{self, EngineGuard, NetCell};
use super::engine::Engine;
use super::name::Door;
use super::options::Settings;
use super::psock::Bell;
use super::{
    beneath, carry, ending, errors, handover, homes, inherited, lend, listeners, pristine, sleep,
};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, table};
use crate::kcm::recv::deadline;
use crate::sync::{Mutex, Rank};
use crate::user_mem::{self, UserPtr};
use crate::{epoll, housekeeper, sys};

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
    /// Of a listener: its home is another engine.
    pub(crate) is_copy: bool,
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
            is_copy: false,
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

    /// The same listener in another engine.
    pub(super) fn copy(&self) -> Self {
        Self {
            is_copy: true,
            ..self.relocated()
        }
    }

    /// The same socket in another engine: it has no connection.
    pub(super) fn relocated(&self) -> Self {
        Self {
            ended: self.ended,
            error: self.error,
            bound: self.bound,
            door: self.door.clone(),
            is_on_kernels: self.is_on_kernels,
            ..Self::new(self.file, self.state, self.v6, self.settings.clone())
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
/// on, in the engine `cell`. Options set so far go with it.
pub(crate) fn replace(
    fd: i32,
    (v6, udp): (bool, bool),
    state: State,
    device: Option<IfaceId>,
    cell: &'static NetCell,
) -> Outcome<&'static File> {
    let mut flags = SocketFlags::empty();
    flags.set(SocketFlags::NONBLOCK, sys::is_nonblocking(fd));
    let (beneath, file) = make(flags, udp)?;
    enrol((fd, file), (v6, udp), state, device, cell)?.show_timeouts(&beneath);
    let stays_open = rustix::io::fcntl_getfd(sys::borrow(fd)).is_ok_and(|f| f.is_empty());
    carry::beneath(fd, &beneath);
    sys::put_onto(&beneath, fd, !stays_open)?;
    Ok(file)
}

/// A stack socket joins the kernel's socket behind `fd`, which goes on beneath it.
pub(crate) fn join(
    fd: i32,
    (v6, udp): (bool, bool),
    state: State,
    device: Option<IfaceId>,
    cell: &'static NetCell,
) -> Outcome<&'static File> {
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(!udp);
    file.set_speaks(true);
    let _ = enrol((fd, file), (v6, udp), state, device, cell)?;
    Ok(file)
}

/// Puts `file` behind `fd`, where a kernel socket stands, with that one's options, which it returns.
pub(super) fn enrol(
    (fd, file): (i32, &'static File),
    (v6, udp): (bool, bool),
    state: State,
    device: Option<IfaceId>,
    cell: &'static NetCell,
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
    cell.lock()?.enlist(Socket {
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
        UnixType::SEQPACKET // which can be connected, and tells of the other end's close
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
    {
        let mut engine = cells::lock(file)?;
        check_local(&engine, local)?;
        if engine.socket(file)?.state != State::Unbound {
            return Err(Errno::EINVAL.into());
        }
    }
    bind_in(file, local).map(|()| 0)
}

fn check_local(engine: &Engine, local: SocketAddr) -> Outcome<()> {
    match local.ip().is_unspecified() || engine.stack.is_local(local.ip()) {
        true => Ok(()),
        false => Err(Errno::EADDRNOTAVAIL.into()),
    }
}

/// Gives an unbound socket a local address. Tries once more if what was in the way has lost its last holder,
/// in another process.
pub(crate) fn bind_in(file: &'static File, local: SocketAddr) -> Outcome<()> {
    let bind = || {
        let _placing = listeners::PLACING.lock()?;
        bind_placed(file, local).map(drop)
    };
    match bind() {
        Err(Exit::Failed(Errno::EADDRINUSE)) if lend::has_door() => {
            handover::look_now();
            bind()
        }
        done => done,
    }
}

/// As [`bind_in`] for a thread that is placing sockets; the address with its port.
pub(super) fn bind_placed(file: &'static File, local: SocketAddr) -> Outcome<SocketAddr> {
    let claim = {
        let mut engine = cells::lock(file)?;
        check_local(&engine, local)?;
        let settings = &engine.socket(file)?.settings;
        Claim {
            file,
            reuse_address: settings.reuse_address,
            reuse_port: settings.reuse_port,
            device: settings.device,
        }
    };
    let local = match local.port() {
        0 => SocketAddr::new(local.ip(), claim.free_port(local)?),
        _ if claim.is_taken(local) => return Err(Errno::EADDRINUSE.into()),
        _ => local,
    };
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    if socket.state != State::Unbound {
        return Err(Errno::EINVAL.into()); // another thread was faster
    }
    socket.bound = Some(local);
    engine.set_state(file, State::Bound(local))?;
    Ok(local)
}

/// Who wants an address, and how far it shares one.
struct Claim {
    file: &'static File,
    reuse_address: bool,
    reuse_port: bool,
    device: Option<IfaceId>,
}

impl Claim {
    /// Whether another socket has the address, and does not share it.
    fn is_taken(&self, local: SocketAddr) -> bool {
        let clashes = |other: &Socket| {
            let Some(at) = other
                .bound
                .filter(|_| !core::ptr::eq(other.file, self.file))
            else {
                return false;
            };
            let overlaps = at.ip() == local.ip()
                || at.ip().is_unspecified() && at.is_ipv4() == local.is_ipv4()
                || local.ip().is_unspecified() && at.is_ipv4() == local.is_ipv4();
            let theirs = &other.settings;
            let apart =
                self.device.is_some() && theirs.device.is_some() && self.device != theirs.device;
            let listens = matches!(other.state, State::Listening(_));
            let shared = self.reuse_address && theirs.reuse_address && !listens
                || self.reuse_port && theirs.reuse_port;
            at.port() == local.port() && overlaps && !apart && !shared
        };
        cells::all().any(|cell| { cell.lock() }.is_ok_and(|engine| engine.sockets().any(clashes)))
    }

    fn free_port(&self, local: SocketAddr) -> Outcome<u16> {
        let range = kcm_stack::limits::EPHEMERAL_PORTS;
        let count = u64::from(range.end() - range.start()) + 1;
        let start = sys::random().unwrap_or(sys::now()) % count;
        (0..count)
            .map(|n| range.start() + ((start + n) % count) as u16)
            .find(|port| !self.is_taken(SocketAddr::new(local.ip(), *port)))
            .ok_or(Exit::Failed(Errno::EADDRINUSE))
    }
}

/// listen(2) by the program.
pub(crate) fn listen_at(file: &'static File, fd: i32, backlog: i32) -> Outcome<i32> {
    let done = listen(file, backlog)?;
    lend::listens_now(file, Some(fd))?;
    Ok(done)
}

/// listen(2).
pub(crate) fn listen(file: &'static File, backlog: i32) -> Outcome<i32> {
    let backlog = usize::try_from(backlog).unwrap_or(usize::MAX);
    if cells::are_several() {
        return listeners::listen(file, backlog);
    }
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    let Some(local) = listeners::wants_to_listen(socket)? else {
        return Ok(0);
    };
    let options = listeners::options(&socket.settings, backlog);
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
        if let Some(cell) = waiting(file)? {
            match take_connection(file, cell, flags)? {
                Some((number, peer)) => return hand_out(number, peer, addr, length),
                None => continue, // another thread was faster
            }
        }
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
            listener_of(engine, file).is_none_or(|id| listeners::is_waiting(engine, id))
        })?;
    }
}

/// An engine in which a connection waits for accept.
fn waiting(file: &'static File) -> Outcome<Option<&'static NetCell>> {
    let home = cells::of(file);
    for cell in homes::in_turn(file.engines()) {
        let mut engine = cell.lock()?;
        match listener(&mut engine, file) {
            Ok(id) => {
                if !listeners::is_waiting(&mut engine, id) {
                    engine.pump();
                }
                if listeners::is_waiting(&mut engine, id) {
                    return Ok(Some(cell));
                }
            }
            Err(why) if core::ptr::eq(cell, home) => return Err(why),
            Err(_) => {} // moved meanwhile
        }
    }
    Ok(None)
}

/// What is known of a listener on which other processes may accept too.
fn shared(file: &File) -> Outcome<Option<(Door, Settings)>> {
    listeners::each(file, |socket| socket.accepts |= socket.door.is_some());
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
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

/// Gives the oldest connection of an engine a descriptor of its own. `None` when there is none any more.
fn take_connection(
    listener_file: &'static File,
    cell: &'static NetCell,
    flags: i32,
) -> Outcome<Option<(i32, SocketAddr)>> {
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
    let taken = adopt_connection(listener_file, cell, file);
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
    cell: &'static NetCell,
    file: &'static File,
) -> Outcome<Option<SocketAddr>> {
    let mut engine = cell.lock()?;
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
    homes::settle(cell);
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
    lend::take_back(file, fd)?;
    homes::before_connect(file, remote)?;
    let mut engine = cells::lock(file)?;
    match engine.socket(file)?.state {
        State::Connected(_) | State::Listening(_) => return Err(Errno::EISCONN.into()),
        State::Connecting(id) => {
            engine.pump();
            if !is_settled(&mut engine, id) && !waits(file, fd, 0) {
                return Err(Errno::EALREADY.into());
            }
        }
        State::Udp(_) => return connect_datagrams(engine, file, Some(remote)),
        State::Unbound | State::Bound(_) => {
            start(&mut engine, file, remote)?;
            engine.pump();
        }
    }
    await_connection(engine, file, fd)
}

fn connect_datagrams(
    mut engine: EngineGuard,
    file: &'static File,
    remote: Option<SocketAddr>,
) -> Outcome<i32> {
    let done = super::udp::connect(&mut engine, file, remote);
    drop(engine);
    super::udp::ports::changed(file);
    done
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
        State::Udp(_) => return connect_datagrams(engine, file, None),
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
            drop(engine);
            listeners::close(file);
            let mut engine = cells::lock(file)?;
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
                drop(engine);
                listeners::close(file);
                let mut engine = cells::lock(file)?;
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
    if file.is_stream() && cells::are_several() {
        let state = { cells::lock(file) }.and_then(|mut engine| Ok(engine.socket(file)?.state));
        if let Ok(State::Listening(_)) = state {
            listeners::close(file);
        }
    }
    super::udp::ports::leave(file);
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
    if housekeeper::is_me() || ending::has_begun() {
        return; // nobody waits for this close; others wait for the housekeeper
    }
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
