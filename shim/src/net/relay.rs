//! Listeners that children of a fork accept on. The engine stays with the process that opened it, the
//! *owner*; the AF_UNIX socket beneath a listener, which every copy shares, listens too. A
//! connection that no thread of the owner accepts is handed over there: the owner keeps the TCP
//! connection and one end of an AF_UNIX one, and its housekeeper moves bytes between them. Whoever
//! accepts reads and writes the kernel's socket; a child that is killed closes it, and harms nobody.

use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, Ordering};

use kcm_stack::{RecvError, SendError, TcpId};
use rustix::fd::OwnedFd;
use rustix::io::Errno as Sys;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};

use super::engine::{CELL, Engine, EngineGuard};
use super::socket::State;
use crate::errno::Outcome;
use crate::fd::{Kind, lookup, table};
use crate::{epoll, housekeeper, own, sys};

/// Bytes moved at a time towards the connection.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces moved for one connection before the others have their turn.
const PIECES_MAX: usize = 64;
/// What the names of our ends begin with.
const PREFIX: &str = "kcmshim-conn/";

/// Some connection has been handed over: from now on the housekeeper does not wait for the program.
static SERVES_OTHERS: AtomicBool = AtomicBool::new(false);

pub(crate) fn serves_others() -> bool {
    SERVES_OTHERS.load(Ordering::Relaxed)
}

/// A connection that another process has accepted.
pub(crate) struct Relay {
    conn: TcpId,
    fd: OwnedFd,
    /// The peer's end of stream has been passed on.
    is_read: bool,
    /// The other process's end of stream has been passed on.
    is_written: bool,
}

impl Drop for Relay {
    fn drop(&mut self) {
        own::unprotect(sys::number(&self.fd));
    }
}

/// What moving bytes has come to.
enum Moved {
    /// As far as it goes now.
    Enough,
    /// More at once, after others.
    More,
    /// Both ends are done, or the other process is gone.
    Over,
    /// Bytes were lost: the peer must not take it for the end.
    Broken,
}

/// Before a fork: the sockets beneath listeners listen, so that a child's accept finds them.
pub(crate) fn prepare() {
    if !CELL.is_open() {
        return;
    }
    for fd in table::ours_in(0, u32::MAX) {
        let Some(file) = lookup(fd).filter(|f| f.kind() == Kind::Stack && !f.speaks()) else {
            continue;
        };
        let Ok(mut engine) = CELL.lock() else { return };
        let listening = engine.socket(file);
        let Some(socket) = listening
            .ok()
            .filter(|s| matches!(s.state, State::Listening(_)) && s.shared.is_none())
        else {
            continue;
        };
        let Ok(name) = listen_beneath(fd) else {
            continue;
        };
        socket.shared = Some(name);
        drop(engine);
        file.set_speaks(true);
        for set in file.watch.sets() {
            epoll::watch_shared(set, file);
        }
    }
}

/// The socket behind `fd` listens under a name of its own, which it returns.
fn listen_beneath(fd: i32) -> Outcome<Vec<u8>> {
    let name = crate::share::name::fresh()?;
    let beneath = sys::borrow(fd);
    rustix::net::bind(beneath, &SocketAddrUnix::new_abstract_name(&name)?)?;
    rustix::net::listen(beneath, kcm_stack::limits::BACKLOG_MAX as i32)?;
    Ok(name)
}

/// The addresses that the name of an owner's end tells: the peer's, and ours.
pub(super) fn addresses(name: &SocketAddrUnix) -> Option<(SocketAddr, SocketAddr)> {
    let text = str::from_utf8(name.abstract_name()?).ok()?;
    let mut words = text.strip_prefix(PREFIX)?.split('/').skip(1);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Hands over what waits on shared listeners.
pub(crate) fn serve() {
    let Ok(mut engine) = CELL.lock() else { return };
    let listeners: Vec<_> = engine
        .sockets()
        .filter_map(|socket| match (&socket.shared, socket.state) {
            (Some(name), State::Listening(id)) => Some((name.clone(), id)),
            _ => None,
        })
        .collect();
    for (name, id) in listeners {
        while let Some(conn) = engine.stack.tcp_accept(id) {
            if start(&mut engine, conn, &name).is_err() {
                let now = engine.now();
                engine.stack.tcp_abort(now, conn);
            }
        }
    }
}

fn start(engine: &mut EngineGuard, conn: TcpId, listener: &[u8]) -> Outcome<()> {
    let (local, peer) = engine
        .stack
        .tcp_addresses(conn)
        .ok_or(crate::errno::Errno::EBADF)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::STREAM;
    let fd = sys::raise(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?);
    let nonce = sys::random().unwrap_or_else(sys::now);
    let name = format!("{PREFIX}{nonce:016x}/{peer}/{local}");
    rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    rustix::net::connect(&fd, &SocketAddrUnix::new_abstract_name(listener)?)?;
    own::protect(sys::number(&fd));
    SERVES_OTHERS.store(true, Ordering::Relaxed);
    let relay = Relay {
        conn,
        fd,
        is_read: false,
        is_written: false,
    };
    engine.add_relay(relay);
    Ok(())
}

/// The other process has done something at its end; `gone` when it has closed it.
pub(crate) fn on_event(index: u32, gone: bool) {
    let Ok(mut engine) = CELL.lock() else { return };
    if gone {
        // What it had written is still ours to send.
        engine.move_relay(index);
        engine.end_relay(index, false);
    } else {
        engine.relay_is_due(index);
    }
}

impl Engine {
    fn add_relay(&mut self, relay: Relay) {
        let index = match self.relays.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.relays.push(None);
                self.relays.len() - 1
            }
        } as u32;
        self.note_relay(relay.conn, index);
        housekeeper::add_relay(index, &relay.fd);
        if let Some(slot) = self.relays.get_mut(index as usize) {
            *slot = Some(relay);
        }
        self.relay_is_due(index);
    }

    /// Moves bytes both ways.
    pub(super) fn move_relay(&mut self, index: u32) {
        let slot = self.relays.get_mut(index as usize);
        let Some(mut relay) = slot.and_then(Option::take) else {
            return;
        };
        let moved = relay.run(self);
        if let Some(slot) = self.relays.get_mut(index as usize) {
            *slot = Some(relay);
        }
        match moved {
            Moved::Enough => {}
            Moved::More => self.relay_is_due(index),
            Moved::Over => self.end_relay(index, false),
            Moved::Broken => self.end_relay(index, true),
        }
    }

    fn end_relay(&mut self, index: u32, broken: bool) {
        let slot = self.relays.get_mut(index as usize);
        if let Some(relay) = slot.and_then(Option::take) {
            self.forget_relay(relay.conn);
            let now = super::engine::instant(sys::now());
            match broken {
                true => self.stack.tcp_abort(now, relay.conn),
                false => self.stack.tcp_close(now, relay.conn),
            }
        }
    }
}

impl Relay {
    fn run(&mut self, engine: &mut Engine) -> Moved {
        for _ in 0..PIECES_MAX {
            let (read, written) = (self.feed_process(engine), self.feed_peer(engine));
            match (read, written) {
                (_, Moved::Broken) => return Moved::Broken,
                (Moved::Over, _) | (_, Moved::Over) => return Moved::Over,
                _ if self.is_read && self.is_written => return Moved::Over,
                (Moved::Enough, Moved::Enough) => return Moved::Enough,
                _ => {}
            }
        }
        Moved::More
    }

    /// One piece from the connection to the other process.
    fn feed_process(&mut self, engine: &mut Engine) -> Moved {
        if self.is_read {
            return Moved::Enough;
        }
        let now = super::engine::instant(sys::now());
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let piece = engine.stack.tcp_peek_slices(self.conn).next();
        let sent = piece.map(|piece| rustix::net::send(&self.fd, piece, flags));
        match sent {
            Some(Ok(count)) => {
                engine.stack.tcp_consume(now, self.conn, count);
                Moved::More
            }
            Some(Err(Sys::AGAIN | Sys::INTR)) => Moved::Enough,
            Some(Err(_)) => Moved::Over,
            None => match engine.stack.tcp_recv(now, self.conn, &mut [0]) {
                Err(RecvError::WouldBlock) => Moved::Enough,
                Ok(0) => {
                    self.is_read = true;
                    let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
                    Moved::Enough
                }
                _ => Moved::Over,
            },
        }
    }

    /// One piece from the other process to the connection.
    fn feed_peer(&mut self, engine: &mut Engine) -> Moved {
        if self.is_written {
            return Moved::Enough;
        }
        let now = super::engine::instant(sys::now());
        let room = engine.stack.tcp_send_room(self.conn).min(PIECE_BYTES);
        if room == 0 {
            let _ = engine.conn_bits(self.conn); // asks for the event
            return Moved::Enough;
        }
        let mut bytes = [0; PIECE_BYTES];
        let part = bytes.get_mut(..room).unwrap_or_default();
        match rustix::net::recv(&self.fd, &mut *part, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => {
                self.is_written = true;
                let _ = engine.stack.tcp_shutdown(now, self.conn, false, true);
                Moved::Enough
            }
            Ok((_, count)) => {
                let part = bytes.get(..count).unwrap_or_default();
                match engine.stack.tcp_send(now, self.conn, &[part], false) {
                    Ok(sent) if sent == count => Moved::More,
                    Ok(_) | Err(SendError::WouldBlock) => Moved::Broken, // memory is short
                    Err(_) => Moved::Over,
                }
            }
            Err(Sys::AGAIN | Sys::INTR) => Moved::Enough,
            Err(_) => Moved::Over,
        }
    }
}
