//! The connections of one mux by psock, and how the kernel is asked about them: a few by poll, many
//! through an epoll descriptor of the mux, so that work never grows with those that are idle.

use std::collections::VecDeque;

use kcm_mux::{Chunk, Mux, PsockId, ReadResult};
use libc::pollfd;
use rustix::event::{PollFlags, epoll};
use rustix::fd::OwnedFd;
use smallvec::{SmallVec, smallvec};

use super::connection::Connection;
use crate::net::cells::Engines;
use crate::net::turns;
use crate::{own, pool, sys};

/// Connections polled one by one; a mux that has had more gets an epoll descriptor.
const POLLED_MAX: usize = 16;
/// Events taken from the epoll descriptor at a time.
const BATCH: usize = 64;

#[derive(Default)]
pub(crate) struct Connections {
    slots: Vec<Option<Connection>>,
    count: usize,
    /// How many of them are on the stack in this process.
    on_stack: usize,
    /// The engines of those.
    engines: Engines,
    /// Connections that may have something to read, each once: those with `readable`.
    due: VecDeque<PsockId>,
    /// Connections whose socket did not take all bytes, and perhaps takes them now.
    full: Vec<PsockId>,
    /// Those of them that the housekeeper has not been told of.
    untold: Vec<PsockId>,
    /// Watches all connections, edge-triggered.
    reactor: Option<own::Kept>,
}

impl Connections {
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn get(&self, id: PsockId) -> Option<&Connection> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: PsockId) -> Option<&mut Connection> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn add(&mut self, id: PsockId, conn: Connection) {
        let at = id.0 as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.count += 1;
        self.on_stack += usize::from(conn.source().is_some());
        self.engines |= conn.engines();
        if let Some(reactor) = &self.reactor {
            watch(reactor, id, &conn);
        }
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = Some(conn);
        }
        if self.count > POLLED_MAX && self.reactor.is_none() {
            self.start_reactor();
        }
        self.mark_readable(id);
    }

    pub(crate) fn remove(&mut self, id: PsockId) -> Option<Connection> {
        let conn = self.slots.get_mut(id.0 as usize)?.take()?;
        self.count -= 1;
        self.on_stack -= usize::from(conn.source().is_some());
        if self.on_stack == 0 {
            self.engines = Engines::NONE;
        }
        if let Some(reactor) = &self.reactor {
            let _ = epoll::delete(reactor, conn.fd());
        }
        Some(conn)
    }

    /// More connections than are polled one by one: the kernel keeps the list from now on. Without
    /// a descriptor to spare they go on being polled.
    fn start_reactor(&mut self) {
        let Ok(reactor) = epoll::create(epoll::CreateFlags::CLOEXEC) else {
            return;
        };
        let reactor = own::keep(reactor);
        for (at, conn) in self.slots.iter().enumerate() {
            if let Some(conn) = conn {
                watch(&reactor, PsockId(at as u32), conn);
            }
        }
        self.reactor = Some(reactor);
    }

    /// The engines of those on the stack in this process.
    pub(crate) fn engines(&self) -> Engines {
        self.engines
    }

    /// Whether some are on the stack in this process: who sleeps watches its device too.
    pub(crate) fn any_on_stack(&self) -> bool {
        self.on_stack != 0
    }

    /// Lets the stack see what its device has, if a connection is there.
    pub(super) fn move_frames(&self) {
        if self.any_on_stack() {
            turns::look(self.engines);
        }
    }

    /// There may be something to read.
    pub(crate) fn mark_readable(&mut self, id: PsockId) {
        let Some(conn) = self.get_mut(id) else {
            return;
        };
        if conn.being_read {
            conn.heard = true;
        } else if !conn.readable {
            conn.readable = true;
            self.due.push_back(id);
        }
    }

    /// Reading tells as cheaply as asking when there are few.
    pub(super) fn mark_all_readable(&mut self) {
        for at in 0..self.slots.len() {
            self.mark_readable(PsockId(at as u32));
        }
    }

    /// How many connections are due for a read.
    pub(crate) fn due(&self) -> usize {
        self.due.len()
    }

    /// The next connection that may have something; it stays `readable` until it has been read.
    pub(super) fn next_due(&mut self) -> Option<PsockId> {
        self.due.pop_front()
    }

    /// A read has been made, or was not wanted: what may have more comes again later.
    pub(super) fn settle_due(&mut self, id: PsockId, wants_read: bool) {
        let Some(conn) = self.get_mut(id).filter(|c| c.readable) else {
            return;
        };
        if wants_read {
            self.due.push_back(id);
        } else {
            conn.readable = false; // marked again when the psock resumes
        }
    }

    /// The calling thread reads the connection and gives up the lock meanwhile. `None` if what it has to
    /// say is not the kernel's alone, or memory is short.
    pub(super) fn begin_apart(&mut self, id: PsockId) -> Option<(i32, Chunk)> {
        let conn = self.get_mut(id)?;
        if conn.claimed || conn.source().is_some() || !conn.unread.is_empty() {
            return None;
        }
        let chunk = pool::take()?;
        (conn.readable, conn.heard, conn.being_read) = (false, false, true);
        Some((conn.raw_fd(), chunk))
    }

    /// The read has been made, of `room` bytes: what it says of the connection.
    pub(super) fn end_apart(&mut self, id: PsockId, read: ReadResult, room: usize) -> ReadResult {
        let Some(conn) = self.get_mut(id) else {
            return read;
        };
        conn.being_read = false;
        let read = conn.take_in(read, room);
        let more = core::mem::take(&mut conn.readable) || conn.heard;
        if more {
            self.mark_readable(id);
        }
        read
    }

    /// Whether nobody reads the connection without the lock. Otherwise nobody will do so again until
    /// this says yes.
    pub(super) fn claim(&mut self, id: PsockId) -> bool {
        let Some(conn) = self.get_mut(id) else {
            return true;
        };
        conn.claimed = conn.being_read;
        !conn.being_read
    }

    /// Whether a thread reads the connection without the lock.
    pub(crate) fn is_being_read(&self, id: PsockId) -> bool {
        self.get(id).is_some_and(|conn| conn.being_read)
    }

    /// Whether the connection is to be watched for input, by whoever sleeps.
    pub(crate) fn expects_input(&self, mux: &Mux, id: PsockId) -> bool {
        mux.wants_read(id) || self.is_being_read(id)
    }

    /// The socket did not take all bytes.
    pub(super) fn note_full(&mut self, id: PsockId) {
        if !self.full.contains(&id) {
            self.full.push(id);
        }
        self.untold.push(id);
    }

    /// The housekeeper is to look at the connection again.
    pub(super) fn tell(&mut self, id: PsockId) {
        self.untold.push(id);
    }

    /// Whether a connection waits for its socket to take bytes.
    pub(super) fn any_full(&mut self, mux: &Mux) -> bool {
        self.full.retain(|id| mux.wants_write(*id));
        !self.full.is_empty()
    }

    /// A connection the housekeeper should hear of.
    pub(crate) fn take_untold(&mut self) -> Option<PsockId> {
        self.untold.pop()
    }

    /// Poll entries that cover every connection with something to wait for.
    pub(crate) fn interest(&self, mux: &Mux) -> Interest {
        if let Some(reactor) = &self.reactor {
            let entry = pollfd {
                fd: sys::number(reactor),
                events: libc::POLLIN,
                revents: 0,
            };
            return Interest {
                ids: smallvec![None],
                fds: smallvec![entry],
            };
        }
        let mut interest = Interest {
            ids: Few::new(),
            fds: Few::new(),
        };
        for (at, conn) in self.slots.iter().enumerate() {
            let (id, Some(conn)) = (PsockId(at as u32), conn) else {
                continue;
            };
            let mut events = 0;
            if self.expects_input(mux, id) {
                events |= libc::POLLIN | libc::POLLRDHUP;
            }
            if mux.wants_write(id) {
                events |= libc::POLLOUT;
            }
            if events != 0 && conn.source().is_some() {
                events = libc::POLLIN; // its bell tells of both
            }
            if events != 0 {
                interest.ids.push(Some(id));
                interest.fds.push(pollfd {
                    fd: conn.raw_fd(),
                    events,
                    revents: 0,
                });
            }
        }
        interest
    }

    /// Takes in what poll said of one entry of [`interest`](Self::interest).
    pub(crate) fn note(&mut self, mux: &mut Mux, id: Option<PsockId>, seen: i16) {
        match id {
            Some(id) => self.note_one(mux, id, seen),
            None if seen != 0 => self.drain_reactor(mux),
            None => {}
        }
    }

    fn note_one(&mut self, mux: &mut Mux, id: PsockId, seen: i16) {
        let seen = PollFlags::from_bits_retain(seen as u16);
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        if let Some(source) = self.get(id).and_then(Connection::source) {
            if seen.contains(PollFlags::IN) {
                let has_room = source.look();
                self.mark_readable(id);
                if has_room && mux.wants_write(id) {
                    mux.handle_writable(id);
                }
            }
            return;
        }
        if let Some(conn) = self.get_mut(id) {
            conn.hup |= seen.intersects(ended);
        }
        if seen.intersects(ended | PollFlags::IN) {
            self.mark_readable(id);
        }
        if seen.intersects(PollFlags::OUT | PollFlags::HUP | PollFlags::ERR) && mux.wants_write(id)
        {
            mux.handle_writable(id);
        }
    }

    fn drain_reactor(&mut self, mux: &mut Mux) {
        let none = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        loop {
            let Some(reactor) = &self.reactor else { return };
            let mut seen = [epoll::Event {
                flags: epoll::EventFlags::empty(),
                data: epoll::EventData::new_u64(0),
            }; BATCH];
            let count = epoll::wait(reactor, &mut seen[..], Some(&none)).unwrap_or(0);
            for event in seen.into_iter().take(count) {
                let flags = event.flags;
                let id = PsockId(event.data.u64() as u32);
                self.note_one(mux, id, flags.bits() as i16);
            }
            if count < BATCH {
                return;
            }
        }
    }

    /// Asks the kernel which connections have something, without waiting.
    pub(super) fn look(&mut self, mux: &mut Mux) {
        self.move_frames();
        if self.reactor.is_some() {
            return self.drain_reactor(mux);
        }
        let Interest { ids, mut fds } = self.interest(mux);
        if sys::poll_now(&mut fds) {
            for (id, fd) in ids.into_iter().zip(&fds) {
                self.note(mux, id, fd.revents);
            }
        }
    }
}

/// Poll entries, and whose they are: a psock, or `None` for the mux's epoll descriptor.
pub(crate) struct Interest {
    pub(crate) ids: Few<Option<PsockId>>,
    pub(crate) fds: Few<pollfd>,
}

/// On the stack while a mux has few connections: a sleep allocates nothing.
pub(crate) type Few<T> = SmallVec<[T; 4]>;

fn watch(reactor: &OwnedFd, id: PsockId, conn: &Connection) {
    let flags = epoll::EventFlags::IN
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::ET;
    let _ = epoll::add(
        reactor,
        conn.fd(),
        epoll::EventData::new_u64(id.0.into()),
        flags,
    );
}
