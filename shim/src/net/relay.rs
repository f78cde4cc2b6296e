//! Moving the bytes of a connection that other processes use. The engine stays with the process that
//! opened it, the *owner*; what the others hold is an AF_UNIX socket, whose other end the owner has, and
//! between that and the connection its housekeeper moves bytes. Whoever reads and writes does so with
//! the kernel's socket; a process that is killed closes it, and harms nobody.
//!
//! An AF_UNIX socket shows ECONNRESET when the other end closes with something unread. So the last byte
//! that came through is left in the queue after it has been passed on: when the peer resets the
//! connection, or the owner is killed, the others see what they would see of TCP. Not after many bytes at
//! once, though: it would hold their buffer, and the others would never see room again.

use core::mem::MaybeUninit;
use core::time::Duration;

use kcm_stack::{Ready, RecvError, SendError, State as TcpState, TcpId};
use rustix::io::{Errno as Sys, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendFlags, Shutdown, sockopt};

use super::engine::{Engine, instant};
use super::name::Name;
use super::socket::State;
use super::{cells, channel, errors, host, lend};
use crate::errno::Errno;
use crate::fd::File;
use crate::{heap, own, sys};

/// Bytes moved at a time towards the connection.
const PIECE_BYTES: usize = 32 << 10;
/// Pieces moved for one connection before the others have their turn.
const PIECES_MAX: usize = 32;
/// Bytes whose buffer may stay charged to those who wrote them: an AF_UNIX socket is writable while at
/// most a quarter of its send buffer is in use, which is 208 KiB unless somebody has changed it.
const KEPT_MAX: usize = 24 << 10;

/// A connection that other processes hold copies of.
pub(crate) struct Relay {
    pub(super) name: Name,
    /// The owner's end.
    pub(super) fd: own::Kept,
    /// The socket's file: the program's, until others use it.
    pub(super) file: &'static File,
    /// Others use it: bytes are moved.
    pub(super) is_shared: bool,
    /// The connection is being made: so many bytes that mean nothing fill our end's queue.
    opening: Option<usize>,
    front: Front,
    /// Bytes passed on since the queue was last empty.
    burst: usize,
    /// The peer's end of stream has been passed on.
    is_read: bool,
    /// The other processes' end of stream has been passed on.
    pub(super) is_written: bool,
    /// Nobody writes at the other end any more.
    ended: bool,
    /// Nobody holds the other end any more.
    gone: bool,
}

/// What is at the front of our end's queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Front {
    /// Not known: the first byte is one that means nothing if a descriptor comes along with it.
    Unknown,
    /// Bytes of the stream.
    Fresh,
    /// One byte that has been passed on.
    Stale,
    /// Bytes of the stream, none of which stays: our end is the kernel's TCP, which tells of a reset.
    Tcp,
}

/// What moving bytes has come to.
enum Moved {
    /// As far as it goes now.
    Enough,
    /// More at once, after others.
    More,
    /// All is done, or nobody is there any more.
    Over,
    /// The peer has reset the connection, or bytes were lost: neither side may take it for the end.
    Broken,
}

/// Where pieces pass through: too much for the stack of whatever thread of the program it is that moves
/// them. Made when the first one does.
#[derive(Default)]
pub(super) struct Through(Vec<u8>);

impl Through {
    /// Room for a piece and for the byte that stays before it; `None` when memory is short.
    fn space(&mut self) -> Option<&mut [u8]> {
        if self.0.is_empty() {
            heap::check_room().ok()?;
            self.0.resize(PIECE_BYTES + 1, 0);
        }
        Some(&mut self.0)
    }
}

impl Relay {
    /// What a process of ours has connected: the byte that means nothing is in the queue.
    pub(super) fn lent(name: Name, fd: own::Kept, file: &'static File) -> Self {
        Self::new(name, fd, file, Front::Stale)
    }

    /// What waits to be accepted, by the kernel's TCP or by an AF_UNIX socket.
    pub(super) fn handed(name: Name, fd: own::Kept, file: &'static File, by_tcp: bool) -> Self {
        let front = if by_tcp { Front::Tcp } else { Front::Unknown };
        let mut relay = Self::new(name, fd, file, front);
        relay.is_shared = true;
        relay
    }

    /// A connection that is being made for another process, of which the queue is `filled`.
    pub(super) fn opening(name: Name, fd: own::Kept, file: &'static File, filled: usize) -> Self {
        let mut relay = Self::new(name, fd, file, Front::Stale);
        (relay.is_shared, relay.opening) = (true, Some(filled));
        relay
    }

    fn new(name: Name, fd: own::Kept, file: &'static File, front: Front) -> Self {
        Self {
            name,
            fd,
            file,
            is_shared: false,
            opening: None,
            front,
            burst: 0,
            is_read: false,
            is_written: false,
            ended: false,
            gone: false,
        }
    }

    /// Whether our end is the kernel's TCP.
    pub(super) fn is_tcp(&self) -> bool {
        self.front == Front::Tcp
    }

    /// Whether no copy of the other end is left anywhere.
    pub(super) fn is_gone(&self) -> bool {
        self.gone || sys::poll_bits(sys::number(&self.fd), 0) & libc::POLLHUP != 0
    }
}

/// Something has happened at our end of a connection: others have written, closed for writing (`ended`),
/// or closed (`gone`).
pub(crate) fn on_event(engine: u8, number: u32, ended: bool, gone: bool) {
    let Ok(mut engine) = cells::at(engine).lock() else {
        return;
    };
    let Some(relay) = engine.relays.get_mut(&number) else {
        if let Some(file) = channel::on_event(&mut engine, number, gone) {
            drop(engine);
            lend::look_for_end(file);
        }
        return;
    };
    relay.ended |= ended || gone;
    relay.gone |= gone;
    if relay.is_shared {
        return engine.relay_is_due(number);
    }
    let file = relay.file;
    let used = ended || sys::unread_bytes(sys::borrow(sys::number(&relay.fd))) > 1;
    if used {
        lend::share(&mut engine, number);
    } else if gone {
        drop(engine);
        lend::look_for_end(file);
    }
}

impl Engine {
    /// Moves bytes both ways.
    pub(super) fn move_relay(&mut self, number: u32) {
        let Some(mut relay) = self.relays.remove(&number) else {
            return self.move_channel(number);
        };
        let conn = self.socket(relay.file).ok().and_then(|s| s.conn());
        let mut through = core::mem::take(&mut self.through);
        let moved = match (conn, through.space()) {
            (Some(conn), Some(space)) if relay.opening.is_some() => relay.open(self, conn, space),
            (Some(conn), Some(space)) => relay.run(self, conn, space),
            (Some(_), None) => Moved::Broken, // memory is short
            (None, _) => Moved::Over,
        };
        self.through = through;
        match moved {
            Moved::Enough | Moved::More => {
                self.relays.insert(number, relay);
                if matches!(moved, Moved::More) {
                    self.relay_is_due(number);
                }
            }
            Moved::Over | Moved::Broken => self.end_relay(&relay, conn, moved),
        }
    }

    fn end_relay(&mut self, relay: &Relay, conn: Option<TcpId>, moved: Moved) {
        if let (Some(conn), Moved::Broken) = (conn, moved) {
            if relay.front == Front::Tcp {
                let _ = sockopt::set_socket_linger(&relay.fd, Some(Duration::ZERO));
            }
            // The engine may give its place to another connection at once; the file goes later.
            let _ = self.set_state(relay.file, State::Unbound);
            self.stack.tcp_abort(instant(sys::now()), conn);
        }
        if let Ok(socket) = self.socket(relay.file) {
            socket.relay = None;
            // The close that lingers would be the housekeeper's; a reset is one all the same.
            socket.settings.linger = socket.settings.linger.filter(|seconds| *seconds == 0);
        }
        relay.file.release();
    }
}

impl Relay {
    /// Looks whether the connection has come about, and moves bytes once it has. If it failed, our end is
    /// closed with something unread: the others see an error, and ask which.
    fn open(&mut self, engine: &mut Engine, conn: TcpId, space: &mut [u8]) -> Moved {
        match engine.stack.tcp_state(conn) {
            Some(TcpState::SynSent | TcpState::SynReceived) if self.gone => Moved::Over,
            Some(TcpState::SynSent | TcpState::SynReceived) => Moved::Enough,
            Some(TcpState::Closed) | None => {
                let cause = engine.stack.tcp_take_error(conn);
                let why = cause.map_or(Errno::ECONNABORTED, errors::cause);
                host::note_failure(self.name.clone(), why);
                Moved::Over
            }
            Some(_) => {
                let _ = engine.set_state(self.file, State::Connected(conn));
                self.empty(space);
                self.run(engine, conn, space)
            }
        }
    }

    /// Takes what fills the queue, but for the one byte that always is there.
    fn empty(&mut self, space: &mut [u8]) {
        let mut left = self.opening.take().map_or(0, |filled| filled - 1);
        while left > 0 {
            let most = left.min(PIECE_BYTES);
            let piece = space.get_mut(..most).unwrap_or_default();
            match rustix::net::recv(&self.fd, piece, RecvFlags::DONTWAIT) {
                Ok((_, count @ 1..)) => left -= count,
                Err(Sys::INTR) => {}
                _ => return,
            }
        }
    }

    fn run(&mut self, engine: &mut Engine, conn: TcpId, space: &mut [u8]) -> Moved {
        for _ in 0..PIECES_MAX {
            let (read, written) = (
                self.feed_process(engine, conn),
                self.feed_peer(engine, conn, space),
            );
            match (read, written) {
                (Moved::Broken, _) | (_, Moved::Broken) => return Moved::Broken,
                (Moved::Over, _) | (_, Moved::Over) => return Moved::Over,
                (Moved::Enough, Moved::Enough) => return Moved::Enough,
                _ => {}
            }
        }
        Moved::More
    }

    /// One piece from the connection to the other processes.
    fn feed_process(&mut self, engine: &mut Engine, conn: TcpId) -> Moved {
        if { engine.socket(self.file) }.is_ok_and(|socket| socket.psock.is_some()) {
            return self.feed_only_end(engine, conn);
        }
        if self.is_read {
            // A reset after the end of the stream.
            let closed = matches!(engine.stack.tcp_state(conn), None | Some(TcpState::Closed));
            return match closed && !self.is_written {
                true => Moved::Broken,
                false => Moved::Enough,
            };
        }
        let now = instant(sys::now());
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let piece = engine.stack.tcp_peek_slices(conn).next();
        let piece = piece.map(|piece| (piece.len(), rustix::net::send(&self.fd, piece, flags)));
        match piece {
            Some((_, Ok(count))) => {
                engine.stack.tcp_consume(now, conn, count);
                Moved::More
            }
            Some((_, Err(Sys::AGAIN | Sys::INTR))) => Moved::Enough,
            // They have shut it down for reading: what arrives is nobody's.
            Some((length, Err(Sys::PIPE))) if !self.gone => {
                engine.stack.tcp_consume(now, conn, length);
                Moved::More
            }
            // The close finds it unread.
            Some((_, Err(_))) => Moved::Enough,
            None => match engine.stack.tcp_recv(now, conn, &mut [0]) {
                Err(RecvError::WouldBlock) => Moved::Enough,
                Ok(0) => {
                    self.is_read = true;
                    let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
                    Moved::Enough
                }
                _ => Moved::Broken,
            },
        }
    }

    /// As [`feed_process`](Self::feed_process) while a mux here takes the bytes.
    fn feed_only_end(&mut self, engine: &mut Engine, conn: TcpId) -> Moved {
        let ended = engine.stack.tcp_ready(conn).contains(Ready::READ_CLOSED);
        let unread = engine
            .stack
            .tcp_queues(conn)
            .is_some_and(|(unread, ..)| unread != 0);
        if ended && !unread && !self.is_read {
            self.is_read = true;
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        }
        Moved::Enough
    }

    /// One piece from the other processes to the connection.
    fn feed_peer(&mut self, engine: &mut Engine, conn: TcpId, space: &mut [u8]) -> Moved {
        let now = instant(sys::now());
        if self.front == Front::Unknown && !self.look_at_front() {
            return if self.gone {
                Moved::Over
            } else {
                Moved::Enough
            };
        }
        let kept = usize::from(self.front == Front::Stale);
        let queued = sys::unread_bytes(sys::borrow(sys::number(&self.fd))) as usize;
        if queued <= kept {
            if self.gone {
                // Closed with bytes unread, as TCP sees it.
                return match sockopt::socket_error(&self.fd) {
                    Ok(Err(Sys::CONNRESET)) => Moved::Broken,
                    _ => self.finish(),
                };
            }
            if core::mem::take(&mut self.burst) > KEPT_MAX && self.front == Front::Stale {
                self.drop_stale();
            }
            if self.ended && !self.is_written {
                self.is_written = true;
                let _ = engine.stack.tcp_shutdown(now, conn, false, true);
            }
            return Moved::Enough;
        }
        let room = engine.stack.tcp_send_room(conn).min(PIECE_BYTES);
        if room == 0 {
            let _ = engine.conn_bits(conn); // asks for the event
            return match engine.stack.tcp_may_send(conn) {
                true => Moved::Enough,
                false => Moved::Broken,
            };
        }
        let wanted = kept + (queued - kept).min(room);
        let Some(count) = self.take(space.get_mut(..wanted).unwrap_or_default()) else {
            return Moved::Broken;
        };
        let piece = space.get(kept..count).unwrap_or_default();
        if self.front != Front::Tcp {
            self.front = Front::Stale;
        }
        self.burst += piece.len();
        match engine.stack.tcp_send(now, conn, &[piece], false) {
            Ok(sent) if sent == piece.len() => Moved::More,
            Ok(_) | Err(SendError::WouldBlock) => Moved::Broken, // memory is short
            Err(_) => Moved::Broken,
        }
    }

    /// Nothing will come any more. Both ends may have been shut down while copies are open, which a poll
    /// does not tell from their close: whoever has one shall not take ours for a reset.
    fn finish(&mut self) -> Moved {
        if self.is_read && self.is_written && self.front == Front::Stale {
            self.drop_stale();
        }
        Moved::Over
    }

    fn drop_stale(&mut self) {
        let _ = rustix::net::recv(&self.fd, &mut [0], RecvFlags::DONTWAIT);
        self.front = Front::Fresh;
    }

    /// Finds out what the first byte is, if there is one.
    fn look_at_front(&mut self) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(&self.fd, &mut parts, &mut control, flags) {
            Ok(got) if got.bytes > 0 => {
                let marked = control.drain().next().is_some();
                self.front = if marked { Front::Stale } else { Front::Fresh };
                true
            }
            _ => {
                if self.ended {
                    self.front = Front::Fresh; // there will be none
                }
                self.ended
            }
        }
    }

    /// Fills `bytes` from the queue, and leaves the last of them there; how many. `None` when there is
    /// nothing, which the caller had seen.
    fn take(&self, bytes: &mut [u8]) -> Option<usize> {
        if self.front == Front::Tcp {
            let got = rustix::net::recv(&self.fd, bytes, RecvFlags::DONTWAIT).ok();
            return got.map(|(_, got)| got);
        }
        let mut count = 0;
        if let Some((_, most)) = bytes.split_last_mut().filter(|(_, most)| !most.is_empty()) {
            let (_, got) = rustix::net::recv(&self.fd, most, RecvFlags::DONTWAIT).ok()?;
            count = got;
        }
        let last = bytes.get_mut(count..count + 1)?;
        let peek = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let (_, got) = rustix::net::recv(&self.fd, last, peek).ok()?;
        Some(count + got)
    }
}
