//! Stack sockets of which other processes get copies. Before a fork, an exec or a message can give one
//! away, it is *lent*: the AF_UNIX socket beneath a listener listens, and the one beneath a connection
//! is connected to an end that stays here. That costs the program nothing: its own calls still go to
//! the engine. A connection becomes *shared* on first use by another process, or when this one closes
//! it: from then on everybody, this process too, reads and writes the AF_UNIX socket, and the
//! housekeeper moves the bytes ([`super::relay`]). What waits on a lent listener is [`super::handover`]'s.

use core::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

use super::cells::EngineGuard;
use super::channel::{self, Channel};
use super::engine::Engine;
use super::inherited::Inherited;
use super::name::{Door, Name};
use super::options::Settings;
use super::relay::Relay;
use super::socket::{self, Socket, State};
use super::{address, beneath, cells, handover, inherited, listeners, ready, spare};
use crate::errno::{Errno, Outcome};
use crate::fd::file::{Body, Link};
use crate::fd::{File, Kind, lookup, table};
use crate::share::owner;
use crate::sync::Mutex;
use crate::wait::Pin;
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

pub(super) fn note_door() {
    HAS_DOOR.store(true, Ordering::Relaxed);
}

pub(super) fn note_shared() {
    SERVES_OTHERS.store(true, Ordering::Relaxed);
}

/// A listener, and its address.
type Reception = Option<(own::Kept, Vec<u8>)>;

/// Where the sockets beneath connections, and beneath UDP sockets, are connected to.
static DOORS: Mutex<[Reception; 2]> = Mutex::new([None, None]);

/// Before a fork: every socket that a child can use is lent.
pub(crate) fn lend_all() {
    if !cells::is_open() {
        return;
    }
    spare::forget();
    for fd in table::ours_in(0, u32::MAX) {
        // What another thread has closed meanwhile need not be shared.
        if let Some(file) = lookup(fd).filter(|file| file.kind() == Kind::Stack)
            && lend(file, fd).is_err()
            && table::holds(fd, file)
        {
            crate::log::warn("a connection of the stack cannot be shared with other processes");
        }
    }
}

/// Makes `file`, behind `fd`, ready for copies in other processes. TCP sockets without an address stay as
/// they are: their copies are not connected. So do sockets of which another thread closes the number: nobody
/// gets a copy.
pub(crate) fn lend(file: &'static File, fd: i32) -> Outcome<()> {
    if file.link() != Link::Private {
        return Ok(());
    }
    let _in_flight = owner::in_flight();
    if file.link() != Link::Private {
        return Ok(()); // another thread was faster
    }
    let Ok(_kept) = Pin::new(file) else {
        return Ok(());
    };
    file.not_plain();
    fence(Ordering::SeqCst); // whoever closes sees this, or we that it has
    let state = cells::lock(file)?.socket(file)?.state;
    if matches!(
        state,
        State::Bound(_) | State::Listening(_) | State::Connected(_)
    ) {
        beneath::settle(file, fd)?;
    }
    // The number may be another socket's at any time from now on.
    let beneath = sys::dup_high(sys::borrow(fd));
    if !table::holds(fd, file) {
        return Ok(());
    }
    let beneath = beneath?;
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    match (state, socket.state) {
        (State::Bound(_) | State::Listening(_), State::Listening(_)) => {
            drop(engine);
            lend_listener(file, &beneath, true)
        }
        (State::Bound(_), State::Bound(_)) if !file.speaks() => {
            drop(engine);
            lend_listener(file, &beneath, false)
        }
        (State::Connected(conn), _) => {
            let (v6, settings) = (socket.v6, socket.settings.clone());
            let Some((local, peer)) = engine.stack.tcp_addresses(conn) else {
                return Ok(());
            };
            drop(engine);
            settings.show_timeouts(&beneath);
            lend_connection(file, &beneath, Name::new(v6, false, local, Some(peer))?)
        }
        (State::Udp(id), _) if !file.speaks() => {
            let (v6, settings) = (socket.v6, socket.settings.clone());
            let Some((local, peer)) = engine.stack.udp_addresses(id) else {
                return Ok(());
            };
            drop(engine);
            settings.show_timeouts(&beneath);
            lend_connection(file, &beneath, Name::new(v6, true, local, peer)?)
        }
        _ => Ok(()),
    }
}

/// `listens`: it does so already; else whoever has a copy may have it listen, or connect it.
fn lend_listener(file: &'static File, beneath: &OwnedFd, listens: bool) -> Outcome<()> {
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    let (v6, bound) = (socket.v6, socket.bound);
    drop(engine);
    let name = Name::new(v6, false, bound.unwrap_or(address::any(v6, 0)), None)?;
    let mut engine = cells::lock(file)?;
    engine.socket(file)?;
    let is_kernels = file.speaks(); // a listener of the kernel's is there already
    if !is_kernels {
        rustix::net::bind(beneath, &SocketAddrUnix::new_abstract_name(&name.encode())?)?;
        if listens {
            listen_beneath(beneath)?;
        }
    }
    if !file.retain() {
        return Err(Errno::EBADF.into());
    }
    engine.socket(file)?.door = Some(Door { name, is_kernels });
    let door = engine.socket(file)?.door.clone();
    note_door();
    file.set_link(Link::Tied);
    drop(engine);
    listeners::each(file, |socket| socket.door = door.clone());
    if listens && !is_kernels {
        speak(file);
    }
    Ok(())
}

fn listen_beneath(beneath: impl AsFd) -> Outcome<()> {
    let backlog = kcm_stack::limits::BACKLOG_MAX as i32;
    Ok(rustix::net::listen(beneath, backlog)?)
}

/// What is handed over at the socket beneath is accepted here too.
fn speak(file: &'static File) {
    file.set_speaks(true);
    for set in file.watch.sets() {
        epoll::watch_anew(set, file);
    }
}

/// A socket that was lent before it listened does now: by the program's own call at `fd`, or because another
/// process has listened at a copy.
pub(super) fn listens_now(file: &'static File, fd: Option<i32>) -> Outcome<()> {
    let is_lent = {
        let mut engine = cells::lock(file)?;
        let door = &engine.socket(file)?.door;
        door.as_ref().is_some_and(|door| !door.is_kernels)
    };
    if is_lent && !file.speaks() {
        fd.map_or(Ok(()), |fd| listen_beneath(sys::borrow(fd)))?;
        speak(file);
    }
    Ok(())
}

/// The program connects a socket that was lent when it was only bound: copies elsewhere are no more than a name.
pub(super) fn take_back(file: &'static File, fd: i32) -> Outcome<()> {
    if file.link() != Link::Tied {
        return Ok(());
    }
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    if !matches!(socket.state, State::Bound(_)) || socket.door.take().is_none() {
        return Ok(());
    }
    let settings = socket.settings.clone();
    drop(engine);
    let fresh = unix_stream()?;
    let flags = rustix::fs::fcntl_getfl(sys::borrow(fd))?;
    rustix::fs::fcntl_setfl(&fresh, flags & rustix::fs::OFlags::NONBLOCK)?;
    settings.show_timeouts(&fresh);
    let stays_open = rustix::io::fcntl_getfd(sys::borrow(fd)).is_ok_and(|f| f.is_empty());
    sys::put_onto(&fresh, fd, !stays_open)?;
    file.set_link(Link::Private);
    file.release();
    Ok(())
}

/// Another process connects a socket that was lent when it was only bound: what this one has of it is no more
/// than a name from now on. Who has the socket.
pub(super) fn give_bound(file: &'static File) -> Outcome<&'static File> {
    if file.is_only_lent() {
        return Ok(file);
    }
    let mut engine = cells::lock(file)?;
    let door = engine.socket(file)?.door.clone().ok_or(Errno::EINVAL)?;
    let (keeper, settings) = part(&mut engine, file, true).ok_or(Errno::ENOMEM)?;
    keeper.set_link(Link::Tied);
    let known = Inherited::listener(door, settings);
    become_copy(file, known, ready::UNCONNECTED);
    Ok(keeper)
}

fn lend_connection(file: &'static File, beneath: &OwnedFd, name: Name) -> Outcome<()> {
    let end = connect_beneath(beneath, &name)?;
    let mut engine = cells::lock(file)?;
    engine.socket(file)?;
    if !file.retain() {
        return Err(Errno::EBADF.into());
    }
    let number = name.number;
    engine.socket(file)?.relay = Some(number);
    file.set_link(Link::Tied);
    match name.udp {
        true => engine.add_channel(Channel::new(name, end, file, false)),
        false => engine.add_relay(Relay::lent(name, end, file)),
    }
    Ok(())
}

/// Connects the socket `beneath`, whose own address becomes `name`, and returns the other end, with
/// the byte in its queue that means nothing (see [`super::relay`]).
pub(super) fn connect_beneath(beneath: &OwnedFd, name: &Name) -> Outcome<own::Kept> {
    let mut doors = DOORS.lock()?;
    let [streams, packets] = &mut *doors;
    let door = if name.udp { packets } else { streams };
    if door.is_none() {
        let at = crate::share::name::fresh()?;
        let fd = own::keep_raised(if name.udp {
            unix_packet()?
        } else {
            unix_stream()?
        });
        rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(&at)?)?;
        rustix::net::listen(&fd, 1)?;
        *door = Some((fd, at));
    }
    let (listener, at) = door.as_ref().ok_or(Errno::EIO)?;
    let (udp, name) = (name.udp, name.encode());
    let name = SocketAddrUnix::new_abstract_name(&name)?;
    rustix::net::bind(beneath, &name)?;
    rustix::net::connect(beneath, &SocketAddrUnix::new_abstract_name(at)?)?;
    let end = loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (end, from) = rustix::net::acceptfrom_with(listener, flags)?;
        let from = from.and_then(|from| SocketAddrUnix::try_from(from).ok());
        if from.as_ref() == Some(&name) {
            break own::keep(end); // not a stranger who found the door
        }
    };
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if !udp {
        rustix::net::send(beneath, &[0], flags)?;
    }
    Ok(end)
}

pub(super) fn unix_stream() -> Outcome<OwnedFd> {
    unix(SocketType::STREAM)
}

pub(super) fn unix_packet() -> Outcome<OwnedFd> {
    unix(SocketType::SEQPACKET)
}

fn unix(kind: SocketType) -> Outcome<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    Ok(sys::raise(fd))
}

/// Others use the connection from now on. What this process still has of it becomes a copy like theirs, but
/// while a mux here reads it: until then what others write is moved, and what arrives is the mux's.
pub(super) fn share(engine: &mut Engine, number: u32) {
    let Some(relay) = engine.relays.get_mut(&number).filter(|r| !r.is_shared) else {
        return;
    };
    let file = relay.file;
    match engine.socket(file) {
        Ok(socket) if socket.psock.is_some() => {}
        _ => return give_up(engine, number),
    }
    if let Some(relay) = engine.relays.get_mut(&number) {
        relay.is_shared = true;
    }
    note_shared();
    engine.relay_is_due(number);
}

/// The mux that read the connection has let go of it.
pub(super) fn unattached(engine: &mut Engine, number: u32) {
    if engine.relays.get(&number).is_some_and(|r| r.is_shared) {
        give_up(engine, number);
    }
}

/// This process has no more of the connection than the others.
fn give_up(engine: &mut Engine, number: u32) {
    let Some(relay) = engine.relays.get(&number) else {
        return;
    };
    let (program, name) = (relay.file, relay.name.clone());
    let Some((keeper, settings)) = part(engine, program, true) else {
        return;
    };
    let conn = { engine.socket(keeper).ok() }.and_then(|socket| socket.conn());
    let writes = conn.is_some_and(|conn| engine.stack.tcp_may_send(conn));
    if let Some(relay) = engine.relays.get_mut(&number) {
        (relay.file, relay.is_shared) = (keeper, true);
        if !writes {
            relay.is_written = true;
            let _ = rustix::net::shutdown(&relay.fd, Shutdown::Read);
        }
    }
    let shown = ready::IN | ready::OUT | ready::RDHUP | ready::HUP;
    become_copy(program, Inherited::new(name, settings), shown);
    engine.relay_is_due(number);
}

/// Others use the UDP socket from now on. What this process has of it becomes a copy like theirs.
pub(super) fn share_channel(engine: &mut Engine, number: u32) {
    let Some(channel) = engine.channels.get(&number).filter(|c| !c.is_shared) else {
        return;
    };
    let (program, name) = (channel.file, channel.name.clone());
    let Some((keeper, settings)) = part(engine, program, false) else {
        return;
    };
    if let Some(channel) = engine.channels.get_mut(&number) {
        (channel.file, channel.is_shared) = (keeper, true);
    }
    become_copy(program, Inherited::new(name, settings), channel::ALL);
    engine.relay_is_due(number);
}

/// The engine's socket parts from the program's file and gets one of its own; that, and its options.
fn part(
    engine: &mut Engine,
    program: &'static File,
    is_stream: bool,
) -> Option<(&'static File, Settings)> {
    let keeper = File::new(Kind::Stack, 0, Body::None).ok()?;
    keeper.set_stream(is_stream);
    keeper.share_net_place(program);
    match engine.socket(program) {
        Ok(socket) => {
            socket.file = keeper;
            Some((keeper, socket.settings.clone()))
        }
        Err(_) => {
            keeper.release();
            None
        }
    }
}

/// Closes a socket that has no number any more, whoever else may hold its file: calls that are under way go on
/// at what has taken its place there.
pub(super) fn close_under_sleepers(engine: &mut EngineGuard, program: &'static File) {
    let Ok(socket) = engine.socket(program) else {
        return;
    };
    socket.psock = None;
    let (v6, is_stream) = (socket.v6, program.is_stream());
    let Some((keeper, settings)) = part(engine, program, is_stream) else {
        return;
    };
    let name = Name::nobodys(v6, !is_stream);
    program.become_inherited(Inherited::new(name, settings));
    // At once: under the lock the file is only put aside, and another thread may be about to take it down
    // when the process looks for what is unfinished, and ends.
    socket::close_in(engine, keeper);
    keeper.release();
}

/// What the program has of a socket is a copy like those of others, which shows `shown` at once.
fn become_copy(program: &'static File, known: Inherited, shown: ready::Bits) {
    program.become_inherited(known);
    program.watch.notify(shown);
    for set in program.watch.sets() {
        match program.was_attached() {
            true => epoll::watch_anew(set, program),
            false => epoll::leave_to_kernel(set, program),
        }
    }
    program.set_link(Link::Private);
    program.release();
    note_shared();
}

/// A lent socket has lost its last descriptor here, or its other end reports that the last copy
/// anywhere is gone.
pub(crate) fn look_for_end(file: &'static File) {
    let Ok(mut engine) = cells::lock(file) else {
        return;
    };
    let Ok(socket) = engine.socket(file) else {
        return;
    };
    if let Some(number) = socket.relay {
        match (engine.relays.get(&number), engine.channels.get(&number)) {
            (Some(relay), _) if !relay.is_gone() => return share(&mut engine, number),
            (_, Some(channel)) if !channel.is_gone() => return share_channel(&mut engine, number),
            _ => {}
        }
        socket_of(&mut engine, file, |socket| socket.relay = None);
        engine.relays.remove(&number);
        engine.channels.remove(&number);
    } else if let Some(door) = &socket.door {
        if handover::is_alive(door) {
            return handover::look_again();
        }
        (socket.door, socket.bound) = (None, None);
        // Its place is free at once; the file may have to wait for a lock to be given back.
        let now = engine.now();
        if let Ok(State::Listening(id)) = engine.set_state(file, State::Unbound) {
            engine.stack.tcp_unlisten(now, id);
        }
    } else {
        return;
    }
    drop(engine);
    listeners::each(file, |socket| socket.door = None);
    listeners::close(file);
    file.set_link(Link::Private);
    file.release();
}

pub(super) fn socket_of(engine: &mut Engine, file: &File, change: impl FnOnce(&mut Socket)) {
    if let Ok(socket) = engine.socket(file) {
        change(socket);
    }
}

/// In the child of a fork, while the parent's engine can still be read: its copies of what is lent.
pub(crate) fn inherit() {
    if let Ok(mut doors) = DOORS.lock() {
        core::mem::forget(core::mem::take(&mut *doors)); // closed with all others of ours
    }
    spare::reset_in_child();
    if !cells::is_open() {
        return;
    }
    for fd in table::ours_in(0, u32::MAX) {
        let Some(file) = lookup(fd).filter(|file| file.kind() == Kind::Stack) else {
            continue;
        };
        let Ok(mut engine) = cells::lock(file) else {
            continue;
        };
        let Ok(socket) = engine.socket(file) else {
            continue;
        };
        let (relay, settings) = (socket.relay, socket.settings.clone());
        let door = socket.door.clone();
        let known = match relay {
            Some(number) => {
                let relay = engine.relays.get(&number).map(|relay| &relay.name);
                let channel = engine.channels.get(&number).map(|channel| &channel.name);
                let name = relay.or(channel);
                name.map(|name| Inherited::unheld(name.clone(), settings))
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
    cells::all().any(|cell| {
        cell.lock().is_ok_and(|engine| {
            !engine.relays.is_empty() || !engine.channels.is_empty() || { engine.sockets() }
                .any(|socket| socket.door.is_some())
        })
    })
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
pub(super) fn give_away(file: &'static File) {
    let Ok(mut engine) = cells::lock(file) else {
        return;
    };
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
        housekeeper::add_relay(engine.index, *number, &relay.fd);
    }
    for (number, channel) in &engine.channels {
        housekeeper::add_relay(engine.index, *number, &channel.fd);
    }
    for claim in engine.claims() {
        housekeeper::add_claim(claim);
    }
    for socket in engine.sockets() {
        let file = socket.file;
        if file.link() == Link::Tied {
            let is_it = |fd: &i32| table::holds(*fd, file);
            let numbers = table::ours_in(0, u32::MAX).filter(is_it).count() as u32;
            file.forget_pins(1 + u32::from(socket.psock.is_some()) + numbers);
        }
    }
    handover::look_again();
}
