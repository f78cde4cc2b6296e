//! Connections that wait on lent listeners. What no thread of the owner accepts within the grace is handed
//! over: at the AF_UNIX socket beneath the listener, or at the kernel's listener where the address is the
//! kernel's too. Nothing tells when the last process that could accept is gone; it is looked for.

use core::sync::atomic::{AtomicU64, Ordering};

use kcm_mux::Nanos;
use kcm_stack::{ListenerId, TcpId};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::address;
use super::cells::{self, EngineGuard};
use super::lend::{look_for_end, note_shared, socket_of, unix_stream};
use super::name::{Door, Name};
use super::options::Settings;
use super::relay::Relay;
use super::socket::{Socket, State};
use crate::errno::{Errno, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind};
use crate::share::owner;
use crate::{housekeeper, own, sys};

/// Whether any process has the listener: nobody else can take its address then.
pub(super) fn is_alive(door: &Door) -> bool {
    if door.is_kernels {
        return is_port_taken(&door.name).unwrap_or(true);
    }
    let name = door.name.encode();
    let (Ok(probe), Ok(name)) = (unix_stream(), SocketAddrUnix::new_abstract_name(&name)) else {
        return true;
    };
    rustix::net::bind(&probe, &name).is_err()
}

fn is_port_taken(name: &Name) -> Outcome<bool> {
    let family = if name.v6 {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
    let probe = sys::raise(rustix::net::socket_with(family, kind, flags, None)?);
    sockopt::set_socket_reuseaddr(&probe, true)?; // else a connection would do
    let local = address::in_family(name.local, name.v6);
    Ok(rustix::net::bind(&probe, &local) == Err(rustix::io::Errno::ADDRINUSE))
}

/// When listeners that only others hold are looked at again; 0 for never. Nothing tells of their end.
static LOOK_AT: AtomicU64 = AtomicU64::new(0);
const LOOK_INTERVAL: Nanos = 1_000_000_000;

/// Other processes call at the claims of the addresses: they want sockets there. Perhaps nobody needs the
/// addresses here any more.
pub(crate) fn on_claim() {
    let mut callers = Vec::new();
    let in_flight = owner::in_flight(); // whom this process takes in no child of it knows
    for engine in cells::all().filter_map(|cell| cell.lock().ok()) {
        callers.extend(engine.claims().iter().filter_map(owner::let_in));
    }
    callers.into_iter().for_each(owner::welcome);
    drop(in_flight);
    look_now();
}

/// The claims are watched, again.
pub(crate) fn watch_claims() {
    for engine in cells::all().filter_map(|cell| cell.lock().ok()) {
        engine.claims().iter().for_each(housekeeper::add_claim);
    }
}

/// Lets go of listeners that nobody holds any more.
pub(super) fn look_now() {
    LOOK_AT.store(1, Ordering::Relaxed);
    serve();
}

pub(super) fn look_again() {
    let at = sys::now().saturating_add(LOOK_INTERVAL);
    LOOK_AT.store(at, Ordering::Relaxed);
    housekeeper::wake_by(at);
}

/// How long a thread of the owner that accepts may take to come for a connection.
const GRACE: Nanos = 2_000_000;

/// Hands over what waits on lent listeners, and lets go of those that nobody holds any more.
pub(crate) fn serve() {
    let lent = |socket: &Socket| match (&socket.door, socket.state) {
        (Some(_), State::Listening(id)) => Some((socket.file, Some(id))),
        (Some(_), State::Bound(_)) => Some((socket.file, None)),
        _ => None,
    };
    let mut all = Vec::new();
    for mut engine in cells::all().filter_map(|cell| cell.lock().ok()) {
        let here: Vec<_> = engine.sockets().filter_map(lent).collect();
        for (file, id) in &here {
            if let Some(id) = *id {
                serve_listener(&mut engine, file, id);
            }
        }
        all.extend(here);
    }
    let at = LOOK_AT.load(Ordering::Relaxed);
    if at == 0 {
        return;
    }
    if sys::now() < at {
        return housekeeper::wake_by(at);
    }
    LOOK_AT.store(0, Ordering::Relaxed);
    for (file, _) in all {
        if file.is_only_lent() {
            look_for_end(file);
        }
    }
}

fn serve_listener(engine: &mut EngineGuard, file: &'static File, id: ListenerId) {
    if engine.stack.tcp_accept_queue_len(id).unwrap_or(0) == 0 {
        return socket_of(engine, file, |socket| socket.waits_since = 0);
    }
    let now = sys::now();
    let Ok(socket) = engine.socket(file) else {
        return;
    };
    if socket.waits_since == 0 {
        socket.waits_since = now;
    }
    let since = socket.waits_since;
    if socket.accepts && !file.is_only_lent() && now < since.saturating_add(GRACE) {
        return housekeeper::wake_by(since);
    }
    let Some(door) = socket.door.clone() else {
        return;
    };
    let settings = socket.settings.inherited();
    while let Some(conn) = engine.stack.tcp_accept(id) {
        if hand_over(engine, conn, &door, settings.clone()).is_err() {
            let now = engine.now();
            engine.stack.tcp_abort(now, conn);
        }
    }
}

/// Gives a connection to whoever accepts at the socket beneath its listener.
fn hand_over(
    engine: &mut EngineGuard,
    conn: TcpId,
    door: &Door,
    settings: Settings,
) -> Outcome<()> {
    let (local, peer) = engine.stack.tcp_addresses(conn).ok_or(Errno::EBADF)?;
    let v6 = door.name.v6;
    let name = Name::new(v6, false, local, Some(peer))?;
    let number = name.number;
    let end = match door.is_kernels {
        true => knock_by_tcp(door, settings.v6_only)?,
        false => {
            let end = own::keep_raised(unix_stream()?);
            rustix::net::bind(&end, &SocketAddrUnix::new_abstract_name(&name.encode())?)?;
            let at = door.name.encode();
            rustix::net::connect(&end, &SocketAddrUnix::new_abstract_name(&at)?)?;
            end
        }
    };
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(true);
    let mut socket = Socket::new(file, State::Connected(conn), v6, settings);
    socket.relay = Some(number);
    engine.enlist(socket);
    engine.add_relay(Relay::handed(name, end, file, door.is_kernels));
    note_shared();
    engine.relay_is_due(number);
    Ok(())
}

/// A connection to the kernel's listener.
fn knock_by_tcp(door: &Door, v6_only: bool) -> Outcome<own::Kept> {
    let (to, from) = door.loopback(v6_only);
    let family = match to.is_ipv4() {
        true => AddressFamily::INET,
        false => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let end = own::keep(rustix::net::socket_with(
        family,
        SocketType::STREAM,
        flags,
        None,
    )?);
    sockopt::set_tcp_nodelay(&end, true)?;
    rustix::net::bind(&end, &from)?;
    match rustix::net::connect(&end, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(end),
        Err(why) => Err(why.into()),
    }
}
