//! Stack sockets of which other processes get copies. Before a fork, an exec or a message can give one
//! away, it is *lent*: the AF_UNIX socket beneath a listener listens, and the one beneath a connection
//! is connected to an end that stays here. That costs the program nothing: its own calls still go to
//! the engine. A connection becomes *shared* on first use by another process, or when this one closes
//! it: from then on everybody, this process too, reads and writes the AF_UNIX socket, and the
//! housekeeper moves the bytes ([`super::relay`]). A connection that no thread of the owner accepts is
//! handed over at the socket beneath its listener.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use core::net::SocketAddr;
use kcm_mux::Nanos;
use kcm_stack::{ListenerId, TcpId};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

use super::engine::{CELL, Engine, EngineGuard};
use super::inherited::Inherited;
use super::name::{Door, Name};
use super::options::Settings;
use super::relay::Relay;
use super::socket::{Socket, State};
use super::{address, inherited, ioctl, options, ready};
use crate::errno::{Errno, Outcome};
use crate::fd::file::{Body, Link};
use crate::fd::{File, Kind, lookup, table};
use crate::share::owner;
use crate::sync::Mutex;
use crate::user_mem::UserPtr;
use crate::{epoll, housekeeper, own, sys};

/// Something is shared: from now on the housekeeper does not wait for the program.
static SERVES_OTHERS: AtomicBool = AtomicBool::new(false);

/// A listener is lent: what waits on it may be for others to accept.
static HAS_DOOR: AtomicBool = AtomicBool::new(false);

pub(crate) fn has_door() -> bool {
    HAS_DOOR.load(Ordering::Relaxed)
}

pub(crate) fn serves_others() -> bool {
    SERVES_OTHERS.load(Ordering::Relaxed)
}

/// Where the sockets beneath connections are connected to: a listener, and its address.
static DOOR: Mutex<Option<(OwnedFd, Vec<u8>)>> = Mutex::new(None);

/// Before a fork: every socket that a child can use is lent.
pub(crate) fn lend_all() {
    if !CELL.is_open() {
        return;
    }
    for fd in table::ours_in(0, u32::MAX) {
        if let Some(file) = lookup(fd).filter(|file| file.kind() == Kind::Stack)
            && lend(file, fd).is_err()
            // Another thread may have closed it meanwhile.
            && lookup(fd).is_some_and(|now| core::ptr::eq(now, file))
        {
            crate::log::warn("a connection of the stack cannot be shared with other processes");
        }
    }
}

/// Makes `file`, behind `fd`, ready for copies in other processes. Sockets that are neither listeners
/// nor connections stay as they are: their copies are not connected.
pub(crate) fn lend(file: &'static File, fd: i32) -> Outcome<()> {
    if file.link() != Link::Private {
        return Ok(());
    }
    let mut engine = CELL.lock()?;
    let socket = engine.socket(file)?;
    match socket.state {
        State::Listening(_) => {
            drop(engine);
            lend_listener(file, fd)
        }
        State::Connected(conn) if socket.psock.is_none() => {
            let (v6, settings) = (socket.v6, socket.settings.clone());
            let Some((local, peer)) = engine.stack.tcp_addresses(conn) else {
                return Ok(());
            };
            drop(engine);
            settings.show_timeouts(sys::borrow(fd));
            let peer = Some(peer);
            lend_connection(file, fd, move |(owner, number)| Name {
                owner,
                number,
                v6,
                local,
                peer,
            })
        }
        _ => Ok(()),
    }
}

fn lend_listener(file: &'static File, fd: i32) -> Outcome<()> {
    let (owner, number) = owner::next()?;
    let mut engine = CELL.lock()?;
    let socket = engine.socket(file)?;
    let (v6, peer) = (socket.v6, None);
    let local = socket.bound.unwrap_or(address::any(v6, 0));
    let name = Name {
        owner,
        number,
        v6,
        local,
        peer,
    };
    let is_kernels = file.speaks(); // a listener of the kernel's is there already
    if !is_kernels {
        let beneath = sys::borrow(fd);
        rustix::net::bind(beneath, &SocketAddrUnix::new_abstract_name(&name.encode())?)?;
        rustix::net::listen(beneath, kcm_stack::limits::BACKLOG_MAX as i32)?;
    }
    if !file.retain() {
        return Err(Errno::EBADF.into());
    }
    engine.socket(file)?.door = Some(Door { name, is_kernels });
    HAS_DOOR.store(true, Ordering::Relaxed);
    file.set_link(Link::Tied);
    drop(engine);
    if is_kernels {
        return Ok(());
    }
    file.set_speaks(true);
    for set in file.watch.sets() {
        epoll::watch_shared(set, file);
    }
    Ok(())
}

fn lend_connection(
    file: &'static File,
    fd: i32,
    name: impl FnOnce((Vec<u8>, u32)) -> Name,
) -> Outcome<()> {
    let _in_flight = owner::in_flight();
    let name = name(owner::next()?);
    let end = connect_beneath(fd, &name)?;
    let mut engine = CELL.lock()?;
    engine.socket(file)?;
    if !file.retain() {
        return Err(Errno::EBADF.into());
    }
    let number = name.number;
    engine.socket(file)?.relay = Some(number);
    file.set_link(Link::Tied);
    engine.add_relay(Relay::lent(name, end, file));
    Ok(())
}

/// Connects the socket behind `fd`, whose own address becomes `name`, and returns the other end, with
/// the byte in its queue that means nothing (see [`super::relay`]).
fn connect_beneath(fd: i32, name: &Name) -> Outcome<OwnedFd> {
    let mut door = DOOR.lock()?;
    if door.is_none() {
        let at = crate::share::name::fresh()?;
        let fd = unix_stream()?;
        rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(&at)?)?;
        rustix::net::listen(&fd, 1)?;
        own::protect(sys::number(&fd));
        *door = Some((fd, at));
    }
    let (listener, at) = door.as_ref().ok_or(Errno::EIO)?;
    let (beneath, name) = (sys::borrow(fd), name.encode());
    let name = SocketAddrUnix::new_abstract_name(&name)?;
    rustix::net::bind(beneath, &name)?;
    rustix::net::connect(beneath, &SocketAddrUnix::new_abstract_name(at)?)?;
    let end = loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (end, from) = rustix::net::acceptfrom_with(listener, flags)?;
        let from = from.and_then(|from| SocketAddrUnix::try_from(from).ok());
        if from.as_ref() == Some(&name) {
            break end; // not a stranger who found the door
        }
    };
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(beneath, &[0], flags)?;
    let end = sys::raise(end);
    own::protect(sys::number(&end));
    Ok(end)
}

fn unix_stream() -> Outcome<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::STREAM;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    Ok(sys::raise(fd))
}

/// Others use the connection from now on. What this process still has of it becomes a copy like theirs.
pub(super) fn share(engine: &mut Engine, number: u32) {
    let Some(relay) = engine.relays.get_mut(&number).filter(|r| !r.is_shared) else {
        return;
    };
    let (program, name) = (relay.file, relay.name.clone());
    let Ok(keeper) = File::new(Kind::Stack, 0, Body::None) else {
        return;
    };
    keeper.set_stream(true);
    keeper.set_net_index(program.net_index());
    let socket = engine.socket(program).ok();
    let Some(socket) = socket.filter(|socket| socket.psock.is_none()) else {
        return keeper.release();
    };
    socket.file = keeper;
    let (conn, settings) = (socket.conn(), socket.settings.clone());
    let writes = conn.is_some_and(|conn| engine.stack.tcp_may_send(conn));
    if let Some(relay) = engine.relays.get_mut(&number) {
        (relay.file, relay.is_shared) = (keeper, true);
        if !writes {
            relay.is_written = true;
            let _ = rustix::net::shutdown(&relay.fd, Shutdown::Read);
        }
    }
    program.become_inherited(Inherited::new(name, settings, true));
    let all = ready::IN | ready::OUT | ready::RDHUP | ready::HUP;
    program.watch.notify(all);
    for set in program.watch.sets() {
        epoll::leave_to_kernel(set, program);
    }
    program.set_link(Link::Private);
    program.release();
    SERVES_OTHERS.store(true, Ordering::Relaxed);
    engine.relay_is_due(number);
}

/// A lent socket has lost its last descriptor here, or its other end reports that the last copy
/// anywhere is gone.
pub(crate) fn look_for_end(file: &'static File) {
    let Ok(mut engine) = CELL.lock() else { return };
    let Ok(socket) = engine.socket(file) else {
        return;
    };
    if let Some(number) = socket.relay {
        match engine.relays.get(&number) {
            Some(relay) if !relay.is_gone() => return share(&mut engine, number),
            _ => {}
        }
        socket_of(&mut engine, file, |socket| socket.relay = None);
        engine.relays.remove(&number);
    } else if let Some(door) = &socket.door {
        if is_alive(door) {
            return look_again();
        }
        socket.door = None;
    } else {
        return;
    }
    drop(engine);
    file.set_link(Link::Private);
    file.release();
}

fn socket_of(engine: &mut Engine, file: &File, change: impl FnOnce(&mut Socket)) {
    if let Ok(socket) = engine.socket(file) {
        change(socket);
    }
}

/// Whether any process has the listener: nobody else can take its address then.
fn is_alive(door: &Door) -> bool {
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

/// Another process wants an address that this one has: perhaps nobody needs it here any more.
pub(crate) fn on_claim() {
    if let Ok(engine) = CELL.lock() {
        for claim in engine.claims() {
            let _ = rustix::net::recv(claim, &mut [0], RecvFlags::DONTWAIT);
        }
    }
    LOOK_AT.store(1, Ordering::Relaxed);
    serve();
}

fn look_again() {
    let at = sys::now().saturating_add(LOOK_INTERVAL);
    LOOK_AT.store(at, Ordering::Relaxed);
    housekeeper::wake_by(at);
}

/// How long a thread of the owner that accepts may take to come for a connection.
const GRACE: Nanos = 2_000_000;

/// Hands over what waits on lent listeners, and lets go of those that nobody holds any more.
pub(crate) fn serve() {
    let Ok(mut engine) = CELL.lock() else { return };
    let lent = |socket: &Socket| match (&socket.door, socket.state) {
        (Some(_), State::Listening(id)) => Some((socket.file, id)),
        _ => None,
    };
    let listeners: Vec<_> = engine.sockets().filter_map(lent).collect();
    for (file, id) in &listeners {
        serve_listener(&mut engine, file, *id);
    }
    drop(engine);
    let at = LOOK_AT.load(Ordering::Relaxed);
    if at == 0 {
        return;
    }
    if sys::now() < at {
        return housekeeper::wake_by(at);
    }
    LOOK_AT.store(0, Ordering::Relaxed);
    for (file, _) in listeners {
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
    let (owner, number) = owner::next()?;
    let (v6, peer) = (door.name.v6, Some(peer));
    let name = Name {
        owner,
        number,
        v6,
        local,
        peer,
    };
    let end = match door.is_kernels {
        true => knock_by_tcp(door, settings.v6_only)?,
        false => {
            let end = unix_stream()?;
            rustix::net::bind(&end, &SocketAddrUnix::new_abstract_name(&name.encode())?)?;
            let at = door.name.encode();
            rustix::net::connect(&end, &SocketAddrUnix::new_abstract_name(&at)?)?;
            end
        }
    };
    own::protect(sys::number(&end));
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(true);
    let mut socket = Socket::new(file, State::Connected(conn), v6, settings);
    socket.relay = Some(number);
    let index = engine.add(socket);
    file.set_net_index(index);
    engine.add_relay(Relay::handed(name, end, file, door.is_kernels));
    SERVES_OTHERS.store(true, Ordering::Relaxed);
    engine.relay_is_due(number);
    Ok(())
}

/// A connection to the kernel's listener.
fn knock_by_tcp(door: &Door, v6_only: bool) -> Outcome<OwnedFd> {
    let (to, from) = door.loopback(v6_only);
    let family = match to.is_ipv4() {
        true => AddressFamily::INET,
        false => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let end = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    let end = sys::raise(end);
    sockopt::set_tcp_nodelay(&end, true)?;
    rustix::net::bind(&end, &from)?;
    match rustix::net::connect(&end, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(end),
        Err(why) => Err(why.into()),
    }
}

/// In the child of a fork, while the parent's engine can still be read: its copies of what is lent.
pub(crate) fn inherit() {
    if !CELL.is_open() {
        return;
    }
    let Ok(mut engine) = CELL.lock() else { return };
    for fd in table::ours_in(0, u32::MAX) {
        let Some(file) = lookup(fd).filter(|file| file.kind() == Kind::Stack) else {
            continue;
        };
        let Ok(socket) = engine.socket(file) else {
            continue;
        };
        let (relay, settings) = (socket.relay, socket.settings.clone());
        let door = socket.door.clone();
        let known = match relay {
            Some(number) => {
                let relay = engine.relays.get(&number);
                relay.map(|relay| Inherited::new(relay.name.clone(), settings, false))
            }
            None => door.map(|door| Inherited::listener(door, settings)),
        };
        if let Some(known) = known {
            file.become_inherited(known);
            file.set_link(Link::Private);
            file.release();
        }
    }
}

/// Whether other processes hold sockets of this engine.
pub(crate) fn is_needed() -> bool {
    if !CELL.is_open() {
        return false;
    }
    let Ok(engine) = CELL.lock() else {
        return false;
    };
    !engine.relays.is_empty() || { engine.sockets() }.any(|socket| socket.door.is_some())
}

/// A program is about to be executed that gets copies of these sockets. One that knows us finds them by
/// itself; for any other they have to be shared.
pub(crate) fn before_program(sockets: &[(i32, &'static File)], knows_us: bool) {
    for (fd, file) in sockets {
        match file.kind() {
            Kind::Inherited if !knows_us => inherited::hold(file, *fd),
            Kind::Stack if lend(file, *fd).is_ok() && !knows_us => give_away(file),
            _ => {}
        }
    }
}

/// Somebody who may know nothing of us gets a copy of a lent socket.
fn give_away(file: &'static File) {
    let Ok(mut engine) = CELL.lock() else { return };
    if let Ok(Some(number)) = engine.socket(file).map(|socket| socket.relay) {
        share(&mut engine, number);
    }
}

/// The socket at `fd`, of a kind that other processes can use.
pub(crate) fn lendable(fd: i32) -> Option<(i32, &'static File)> {
    let file = lookup(fd).filter(|file| matches!(file.kind(), Kind::Stack | Kind::Inherited))?;
    Some((fd, file))
}

/// In a process that goes on with the engine of its parent.
pub(super) fn watch_again(engine: &Engine) {
    for (number, relay) in &engine.relays {
        housekeeper::add_relay(*number, &relay.fd);
    }
    for claim in engine.claims() {
        housekeeper::add_claim(claim);
    }
    for socket in engine.sockets() {
        let file = socket.file;
        if file.link() == Link::Tied {
            let is_it = |fd: &i32| lookup(*fd).is_some_and(|at| core::ptr::eq(at, file));
            file.forget_pins(1 + table::ours_in(0, u32::MAX).filter(is_it).count() as u32);
        }
    }
    look_again();
}

/// The socket of which `copy` is a copy, from now on shared.
fn shared_by(copy: &OwnedFd) -> Outcome<&'static File> {
    let Some(name) = Name::of(copy.as_fd()) else {
        return handed_over(copy);
    };
    if !owner::is_ours(&name.owner) {
        return Err(Errno::EBADF.into());
    }
    let mut engine = CELL.lock()?;
    // Nobody else can have the whole name while the socket lives.
    if engine
        .relays
        .get(&name.number)
        .is_some_and(|relay| relay.name == name)
    {
        share(&mut engine, name.number);
    }
    if let Some(relay) = engine
        .relays
        .get(&name.number)
        .filter(|relay| relay.name == name)
    {
        return Ok(relay.file);
    }
    if !sockopt::socket_acceptconn(copy)? {
        return Err(Errno::EBADF.into()); // only connected to the listener
    }
    let is_it = |socket: &&Socket| socket.door.as_ref().is_some_and(|door| door.name == name);
    let listener = { engine.sockets() }.find(is_it);
    Ok(listener.ok_or(Errno::EBADF)?.file)
}

/// The socket of a connection that was handed over at a listener of the kernel's, of which `copy` is the
/// end that was accepted there.
fn handed_over(copy: &OwnedFd) -> Outcome<&'static File> {
    let inet = |name: rustix::net::SocketAddrAny| SocketAddr::try_from(name).ok();
    let peer = rustix::net::getpeername(copy)?.and_then(inet);
    let peer = peer
        .filter(|peer| Door::may_hand_over(*peer))
        .ok_or(Errno::EBADF)?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let engine = CELL.lock()?;
    let is_it = |relay: &&Relay| {
        relay.is_tcp() && rustix::net::getsockname(&relay.fd).ok().and_then(inet) == Some(peer)
    };
    let found = { engine.relays.values() }.find(is_it);
    Ok(found.ok_or(Errno::EBADF)?.file)
}

/// What another process asks of the socket of which `copy` is a copy.
pub(crate) fn answer(copy: &OwnedFd, question: Question<'_>) -> Outcome<Vec<u8>> {
    /// Room for the longest option, `struct tcp_info`.
    const ANSWER_MAX: usize = 256;
    let file = shared_by(copy)?;
    let mut room = [0; ANSWER_MAX];
    let mut length = ANSWER_MAX as u32;
    let value = UserPtr::new(room.as_mut_ptr().cast());
    match question {
        Question::Share => return Ok(Vec::new()),
        Question::Name => {
            let mut engine = CELL.lock()?;
            let number = engine.socket(file)?.relay.ok_or(Errno::EBADF)?;
            let relay = engine.relays.get(&number).ok_or(Errno::EBADF)?;
            return Ok(relay.name.encode());
        }
        Question::Get(level, name) => {
            let length = UserPtr::new(core::ptr::from_mut(&mut length).cast());
            options::get(file, level, name, value, length)?;
        }
        Question::Set(level, name, bytes) => {
            let value = UserPtr::new(bytes.as_ptr().cast_mut().cast());
            let length = bytes.len() as u32;
            // What only the socket beneath has, the asking process has set there.
            options::set(file, -1, level, name, value, length, || 0)?;
            return Ok(Vec::new());
        }
        Question::Ioctl(request) => {
            ioctl::ioctl(file, request, value)?;
            length = size_of::<i32>() as u32;
        }
    }
    Ok(room.get(..length as usize).unwrap_or_default().to_vec())
}

/// What may be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question<'a> {
    /// That it be shared.
    Share,
    /// What it is called.
    Name,
    /// An option's value: level and name.
    Get(i32, i32),
    /// That an option get a value.
    Set(i32, i32, &'a [u8]),
    /// An ioctl(2) that stores an int.
    Ioctl(u32),
}
