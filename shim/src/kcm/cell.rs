//! One mux, its lock, and the TCP descriptors beneath it: all reading and writing of attached
//! connections happens here, by whichever thread needs it done.

use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::VecDeque;
use std::io::Read;

use kcm_mux::{Event, KcmId, Mux, Nanos, PsockId, ReadOutcome, ReadResult, SocketType, TxResult};
use libc::pollfd;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self, IoSlice};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::sync::{Guard, Mutex, RawMutex};
use crate::wait::{self, BellId};
use crate::{housekeeper, own, pool, sys, tcp};

/// A mux that files and psocks refer to. Recycled, never freed; `engine` is `None` in between.
pub(crate) struct MuxCell {
    engine: Mutex<Option<Engine>>,
    /// Counts read passes made by the program's own threads: the housekeeper stays out of the way
    /// while it moves.
    passes: AtomicU32,
    /// Where [`MuxCell::by_index`] finds it.
    index: u32,
}

/// A mux of more connections asks the kernel which have something before it reads them.
const LOOK_MIN: usize = 2;

/// Every cell ever made, by index.
static ALL: Mutex<Vec<&'static MuxCell>> = Mutex::new(Vec::new());
/// Cells without a mux.
static RECYCLED: Mutex<Vec<&'static MuxCell>> = Mutex::new(Vec::new());
/// Every mux there is, for /proc/net/kcm: newest last.
static LIVE: Mutex<Vec<&'static MuxCell>> = Mutex::new(Vec::new());

impl MuxCell {
    /// A mux with one KCM socket, `file`, which gets index 0.
    pub(crate) fn create(ty: SocketType, file: &'static File, buffers: (u32, u32)) -> Outcome<()> {
        let recycled = RECYCLED.lock()?.pop();
        let cell = match recycled {
            Some(cell) => cell,
            None => {
                let mut all = ALL.lock()?;
                let index = all.len() as u32;
                let (engine, passes) = (Mutex::new(None), AtomicU32::new(0));
                let cell: &'static Self = Box::leak(Box::new(Self {
                    engine,
                    passes,
                    index,
                }));
                all.push(cell);
                cell
            }
        };
        let (mux, id) = Mux::new(ty, buffers.0, buffers.1);
        let mut engine = Engine {
            mux,
            kcms: Vec::new(),
            psocks: Vec::new(),
            sleepers: Vec::new(),
            blocked: Vec::new(),
        };
        engine.set_kcm(id, Some(file));
        *cell.engine.lock()? = Some(engine);
        LIVE.lock()?.push(cell);
        file.bind(cell, id.0);
        Ok(())
    }

    /// Names the cell in the data word of an epoll event.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn by_index(index: u32) -> Option<&'static Self> {
        ALL.lock().ok()?.get(index as usize).copied()
    }

    /// The mux, locked. EBADF when it was destroyed meanwhile, EAGAIN when this very thread holds
    /// it already: a signal handler came in between.
    pub(crate) fn lock(&'static self) -> Outcome<EngineGuard> {
        let guard = self.engine.lock()?;
        if guard.is_none() {
            return Err(Exit::Failed(Errno::EBADF));
        }
        Ok(EngineGuard { guard, cell: self })
    }

    /// Ends the mux: its last KCM socket is closed and every psock unattached.
    pub(crate) fn destroy(&'static self) {
        let Ok(mut live) = LIVE.lock() else { return };
        live.retain(|cell| !core::ptr::eq(*cell, self));
        drop(live);
        let Ok(mut engine) = self.engine.lock() else {
            return;
        };
        let ended = engine.take();
        drop(engine);
        if let Some(ended) = ended {
            crate::proc_net::retire(&ended.mux);
        }
        if let Ok(mut recycled) = RECYCLED.lock() {
            recycled.push(self);
        }
    }

    /// Runs `f` on every mux, newest first.
    pub(crate) fn for_each(mut f: impl FnMut(&mut Engine)) {
        let Ok(live) = LIVE.lock() else { return };
        for cell in live.iter().rev() {
            if let Ok(mut engine) = cell.lock() {
                f(&mut engine);
            }
        }
    }

    pub(crate) fn passes(&self) -> u32 {
        self.passes.load(Ordering::Relaxed)
    }
}

/// The engine of a mux, locked. What the state machine has to say is passed on when it is dropped.
pub(crate) struct EngineGuard {
    guard: Guard<'static, RawMutex, Option<Engine>>,
    cell: &'static MuxCell,
}

impl core::ops::Deref for EngineGuard {
    type Target = Engine;
    fn deref(&self) -> &Engine {
        match &*self.guard {
            Some(engine) => engine,
            None => unreachable!("checked when the lock was taken"),
        }
    }
}

impl core::ops::DerefMut for EngineGuard {
    fn deref_mut(&mut self) -> &mut Engine {
        match &mut *self.guard {
            Some(engine) => engine,
            None => unreachable!("checked when the lock was taken"),
        }
    }
}

impl Drop for EngineGuard {
    fn drop(&mut self) {
        let cell = self.cell;
        if let Some(engine) = &mut *self.guard {
            engine.settle(cell);
        }
    }
}

impl EngineGuard {
    pub(crate) fn cell(&self) -> &'static MuxCell {
        self.cell
    }

    /// Reads what the connections hold, on behalf of a thread of the program.
    pub(crate) fn pump(&mut self) {
        self.cell.passes.fetch_add(1, Ordering::Relaxed);
        if self.psocks.len() > LOOK_MIN || self.any_full() {
            self.look();
        } else {
            for conn in self.psocks.iter_mut().flatten() {
                conn.readable = true; // reading tells as cheaply as asking
            }
        }
        self.read_all();
        self.write_all();
    }

    /// Reads what the connections are known to hold.
    pub(crate) fn pump_known(&mut self) {
        self.cell.passes.fetch_add(1, Ordering::Relaxed);
        self.read_all();
        self.write_all();
    }
}

/// What the lock of a [`MuxCell`] guards.
pub(crate) struct Engine {
    pub(crate) mux: Mux,
    /// KCM sockets by index.
    kcms: Vec<Option<&'static File>>,
    /// Attached connections by index.
    psocks: Vec<Option<Connection>>,
    /// Threads asleep on this mux; the first also watches the connections.
    sleepers: Vec<BellId>,
    /// Connections that turned full since the housekeeper was last told.
    blocked: Vec<PsockId>,
}

/// One attached TCP socket.
pub(crate) struct Connection {
    fd: ConnFd,
    /// The file behind the program's own descriptor, until the program closes it.
    pub(crate) file: Option<&'static File>,
    /// SO_COOKIE: names the socket whatever its number.
    pub(super) cookie: u64,
    /// There may be something to read.
    readable: bool,
    /// The stream has ended or failed; reading shows how, once the data is drained.
    hup: bool,
    /// The peer's FIN came before the attach: its end is no news (no state change to report).
    pub(super) half_closed: bool,
    /// Bytes of the stream that an earlier attach took from the socket and did not consume: read
    /// before the socket is.
    pub(super) unread: VecDeque<u8>,
}

/// The descriptor a connection is read and written through.
enum ConnFd {
    /// The program's own, while it has it open.
    Lent(i32),
    /// Ours, since the program closed its own.
    Kept(OwnedFd),
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let ConnFd::Kept(fd) = &self.fd {
            own::unprotect(sys::number(fd));
        }
    }
}

impl Connection {
    /// The connection behind the program's number `fd`.
    pub(crate) fn new(fd: i32, file: &'static File, cookie: u64) -> Self {
        Self {
            fd: ConnFd::Lent(fd),
            file: Some(file),
            cookie,
            readable: true,
            hup: false,
            half_closed: false,
            unread: VecDeque::new(),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            ConnFd::Lent(fd) => sys::borrow(*fd),
            ConnFd::Kept(fd) => fd.as_fd(),
        }
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        match &self.fd {
            ConnFd::Lent(fd) => *fd,
            ConnFd::Kept(fd) => sys::number(fd),
        }
    }

    /// Takes note of what poll or epoll said of the socket.
    fn note(&mut self, flags: PollFlags) {
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        self.readable |= flags.intersects(ended | PollFlags::IN);
        self.hup |= flags.intersects(ended);
    }

    fn recv(&mut self, buf: &mut [u8]) -> ReadResult {
        let room = buf.len();
        if !self.unread.is_empty() {
            let n = self.unread.read(buf).unwrap_or(0);
            return ReadResult::Bytes(n);
        }
        loop {
            return match rustix::net::recv(self.fd(), &mut *buf, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => {
                    self.readable = false;
                    if self.half_closed {
                        ReadResult::WouldBlock
                    } else {
                        ReadResult::Eof
                    }
                }
                Ok((_, n)) => {
                    // A short read drains the socket; what comes later is reported anew.
                    self.readable = self.hup || n == room;
                    ReadResult::Bytes(n)
                }
                Err(io::Errno::INTR) => continue,
                Err(io::Errno::AGAIN) => {
                    self.readable = false;
                    ReadResult::WouldBlock
                }
                Err(err) => {
                    self.readable = false;
                    ReadResult::Failed(err.raw_os_error())
                }
            };
        }
    }
}

/// SO_RCVBUF of a TCP socket: the longest message its psock accepts.
pub(crate) fn rcvbuf(fd: BorrowedFd<'_>) -> u32 {
    sockopt::socket_recv_buffer_size(fd)
        .unwrap_or(0)
        .min(u32::MAX as usize) as u32
}

impl Engine {
    pub(crate) fn kcm(&self, id: KcmId) -> Option<&'static File> {
        self.kcms.get(id.0 as usize).copied().flatten()
    }

    pub(crate) fn set_kcm(&mut self, id: KcmId, file: Option<&'static File>) {
        let at = id.0 as usize;
        if self.kcms.len() <= at {
            self.kcms.resize(at + 1, None);
        }
        if let Some(slot) = self.kcms.get_mut(at) {
            *slot = file;
        }
    }

    pub(crate) fn connection(&self, id: PsockId) -> Option<&Connection> {
        self.psocks.get(id.0 as usize)?.as_ref()
    }

    fn connection_mut(&mut self, id: PsockId) -> Option<&mut Connection> {
        self.psocks.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn add_connection(&mut self, id: PsockId, conn: Connection) {
        let at = id.0 as usize;
        if self.psocks.len() <= at {
            self.psocks.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.psocks.get_mut(at) {
            *slot = Some(conn);
        }
    }

    pub(crate) fn remove_connection(&mut self, id: PsockId) -> Option<Connection> {
        self.psocks.get_mut(id.0 as usize)?.take()
    }

    /// The psock of the TCP socket with this cookie, however the program names it.
    pub(crate) fn psock_by_cookie(&self, cookie: u64) -> Option<PsockId> {
        let is = |c: &Option<Connection>| c.as_ref().is_some_and(|c| c.cookie == cookie);
        self.psocks.iter().position(is).map(|at| PsockId(at as u32))
    }

    /// The program closes the number a connection was lent: from now on it lives on one of ours.
    pub(crate) fn keep_connection(&mut self, id: PsockId) -> io::Result<()> {
        let Some(conn) = self.connection_mut(id) else {
            return Ok(());
        };
        if let ConnFd::Lent(fd) = conn.fd {
            let kept = sys::dup_high(sys::borrow(fd))?;
            own::protect(sys::number(&kept));
            conn.fd = ConnFd::Kept(kept);
        }
        Ok(())
    }

    /// The program has closed its last descriptor of a connection.
    pub(crate) fn forget_file(&mut self, id: PsockId) {
        if let Some(conn) = self.connection_mut(id) {
            conn.file = None;
        }
    }

    /// A poll entry for every connection that has something to wait for.
    pub(crate) fn interest<'a>(&'a self) -> impl Iterator<Item = (PsockId, pollfd)> + 'a {
        self.psocks.iter().enumerate().filter_map(|(at, conn)| {
            let (id, conn) = (PsockId(at as u32), conn.as_ref()?);
            let mut flags = PollFlags::empty();
            if self.mux.wants_read(id) {
                flags |= PollFlags::IN | PollFlags::RDHUP;
            }
            if self.mux.wants_write(id) {
                flags |= PollFlags::OUT;
            }
            let events = flags.bits() as i16;
            (events != 0).then_some((
                id,
                pollfd {
                    fd: conn.raw_fd(),
                    events,
                    revents: 0,
                },
            ))
        })
    }

    /// What waiting said of a connection.
    pub(crate) fn note(&mut self, id: PsockId, flags: PollFlags) {
        if let Some(conn) = self.connection_mut(id) {
            conn.note(flags);
        }
        if flags.intersects(PollFlags::OUT | PollFlags::HUP | PollFlags::ERR)
            && self.mux.wants_write(id)
        {
            self.mux.handle_writable(id);
        }
    }

    /// Whether a connection has bytes that its socket did not take.
    fn any_full(&self) -> bool {
        (0..self.psocks.len()).any(|at| self.mux.wants_write(PsockId(at as u32)))
    }

    /// Asks the kernel which connections have something, without waiting.
    pub(crate) fn look(&mut self) {
        let (ids, mut fds): (Vec<_>, Vec<_>) = self.interest().unzip();
        if !sys::poll_now(&mut fds) {
            return;
        }
        for (id, fd) in ids.into_iter().zip(&fds) {
            if fd.revents != 0 {
                self.note(id, PollFlags::from_bits_retain(fd.revents as u16));
            }
        }
    }

    /// One read pass over each connection that may have something.
    pub(crate) fn read_all(&mut self) {
        for at in 0..self.psocks.len() {
            self.read_pass(PsockId(at as u32));
        }
    }

    fn read_pass(&mut self, id: PsockId) {
        let wants = self.mux.wants_read(id);
        let Some(conn) = self.psocks.get_mut(id.0 as usize).and_then(Option::as_mut) else {
            return;
        };
        if !conn.readable || !wants {
            return;
        }
        let mut buf = self.mux.begin_read(id, pool::take());
        let result = conn.recv(buf.spare());
        let now = sys::now();
        self.mux.set_env(sys::env(now));
        match self.mux.finish_read(id, buf, result, now) {
            ReadOutcome::Done | ReadOutcome::Unattached(_) => {} // the lock is held throughout
            ReadOutcome::NeedRcvbuf => self.mux.set_psock_rcvbuf(id, rcvbuf(conn.fd())),
        }
        while let Some(chunk) = self.mux.take_free_chunk() {
            pool::give(chunk);
        }
    }

    /// Writes what the connections take without waiting.
    pub(crate) fn write_all(&mut self) {
        while let Some(transmit) = self.mux.begin_transmit() {
            let result = match self.connection(transmit.psock()) {
                Some(conn) => send_parts(conn.fd(), transmit.slices()),
                None => TxResult::Failed(libc::EPIPE),
            };
            let psock = transmit.psock();
            self.mux.finish_transmit(transmit, result);
            self.note_blocked(psock);
        }
    }

    /// If the connection is full, the housekeeper shall hear when it takes bytes again.
    pub(crate) fn note_blocked(&mut self, psock: PsockId) {
        if self.mux.wants_write(psock) {
            self.blocked.push(psock);
        }
    }

    pub(crate) fn take_blocked(&mut self) -> Option<PsockId> {
        self.blocked.pop()
    }

    /// Timers that are due, at most once a pass.
    pub(crate) fn expire(&mut self, now: Nanos) {
        if self.mux.next_deadline().is_some_and(|at| at <= now) {
            self.mux.handle_deadline(now);
        }
    }

    /// Passes on what the state machine has to say: readiness to those who watch, blocked
    /// connections and timers to the housekeeper.
    fn settle(&mut self, cell: &'static MuxCell) {
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Readable(id) => self.notify(id, libc::POLLIN | libc::POLLOUT),
                Event::Writable(id) => self.notify(id, libc::POLLOUT),
                Event::PsockError(id) => {
                    if let Some(file) = self.connection(id).and_then(|c| c.file) {
                        file.watch.notify(libc::POLLERR as u32);
                    }
                }
                Event::Resumed(id) => {
                    if let Some(conn) = self.connection_mut(id) {
                        conn.readable = true;
                    }
                }
                Event::Unread(id) => self.give_back(id),
                Event::NeedRcvbuf(id) => {
                    if let Some(conn) = self.connection(id) {
                        let limit = rcvbuf(conn.fd());
                        self.mux.set_psock_rcvbuf(id, limit);
                    }
                }
            }
        }
        housekeeper::settle(cell, self);
    }

    /// A parser has stopped: what it did not consume is the TCP descriptor's to read.
    fn give_back(&mut self, id: PsockId) {
        let unread = self.mux.take_unread(id);
        if let Some(conn) = self.connection_mut(id)
            && let Some(file) = conn.file
        {
            tcp::keep_unread(file, &unread, core::mem::take(&mut conn.unread));
        }
    }

    fn notify(&self, id: KcmId, events: i16) {
        if let Some(file) = self.kcm(id) {
            file.watch.notify(events as u32);
        }
    }

    /// This thread is about to sleep on the mux. True when it is the one to watch the connections.
    pub(crate) fn enter_sleep(&mut self, bell: BellId) -> bool {
        self.sleepers.push(bell);
        self.sleepers.len() == 1
    }

    /// The thread is awake again; if it watched the connections, the next sleeper takes over.
    pub(crate) fn leave_sleep(&mut self, bell: BellId) {
        let led = self.sleepers.first() == Some(&bell);
        self.sleepers.retain(|b| *b != bell);
        if led && let Some(next) = self.sleepers.first() {
            wait::ring(*next);
        }
    }
}

/// Writes `parts` without waiting and without SIGPIPE. A short count means that the socket is full.
pub(super) fn send_parts<'a>(
    fd: BorrowedFd<'_>,
    mut parts: impl Iterator<Item = &'a [u8]>,
) -> TxResult {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let Some(first) = parts.next() else {
        return TxResult::Sent(0);
    };
    let rest: Vec<IoSlice<'_>> = parts.map(IoSlice::new).collect();
    loop {
        let sent = if rest.is_empty() {
            rustix::net::send(fd, first, flags)
        } else {
            let all: Vec<_> = [IoSlice::new(first)]
                .into_iter()
                .chain(rest.iter().copied())
                .collect();
            rustix::net::sendmsg(fd, &all, &mut SendAncillaryBuffer::default(), flags)
        };
        return match sent {
            Ok(n) => TxResult::Sent(n),
            Err(io::Errno::INTR) => continue,
            Err(io::Errno::AGAIN) => TxResult::Sent(0),
            Err(err) => TxResult::Failed(err.raw_os_error()),
        };
    }
}
