//! listen(2) and accept(2).

use core::net::SocketAddr;
use core::sync::atomic::Ordering;

use kcm_stack::ListenerId;
use rustix::net::{AddressFamily, SocketFlags};

use super::{Socket, State, waits};
use crate::errno::{Errno, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, table};
use crate::kcm::recv::deadline;
use crate::net::cells::{self, NetCell};
use crate::net::engine::Engine;
use crate::net::name::Door;
use crate::net::options::Settings;
use crate::net::{address, errors, homes, inherited, lend, listeners, sleep, spare};
use crate::sync::{Mutex, Rank};
use crate::sys;
use crate::user_mem::UserPtr;

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
    flags: SocketFlags,
    native: impl Fn() -> i32,
) -> Outcome<i32> {
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
    flags: SocketFlags,
) -> Outcome<Option<(i32, SocketAddr)>> {
    let beneath = spare::take(flags)?;
    let file = File::new(Kind::Stack, 0, Body::None)?;
    file.set_stream(true);
    file.set_plain(AddressFamily::UNIX);
    file.set_nonblocking(flags.contains(SocketFlags::NONBLOCK));
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
