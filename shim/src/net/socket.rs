//! Life of a stack socket: how it comes to be, shutdown, close, and its names.

mod accept;
mod bind;
mod connect;

pub(crate) use accept::{accept, listen, listen_at};
pub(super) use bind::bind_placed;
pub(crate) use bind::{bind, bind_in};
pub(super) use connect::start;
pub(crate) use connect::{connect, connect_to, lose};

use core::net::SocketAddr;
use std::sync::Arc;

use kcm_mux::Nanos;
use kcm_stack::{IfaceId, ListenerId, State as TcpState, TcpId, UdpId};
use rustix::net::{AddressFamily, SocketFlags, SocketType as UnixType};

use super::cells::{self, EngineGuard, NetCell};
use super::engine::Engine;
use super::name::Door;
use super::options::Settings;
use super::psock::Bell;
use super::{address, carry, ending, listeners, pristine, sleep};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, table};
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
    if let Ok(mut engine) = cells::lock(file) {
        close_in(&mut engine, file);
    }
}

/// Takes the socket of `file` out of the engine, and closes it there. Without one there is nothing to do.
pub(super) fn close_in(engine: &mut EngineGuard, file: &'static File) {
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
