//! One mux, its lock, and the TCP descriptors beneath it: all reading and writing of attached
//! connections happens here, by whichever thread needs it done.

use core::sync::atomic::{AtomicU32, Ordering};

use kcm_mux::{
    Chunk, Event, KcmId, Mux, Nanos, PsockId, ReadBuf, ReadOutcome, ReadResult, SocketType,
    TxResult,
};

use super::connection::{self, Connection};
use super::connections::{Connections, Interest};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::share::line::Lines;
use crate::sync::{Guard, Mutex, Rank, RawMutex, Together};
use crate::wait::{self, BellId};
use crate::{housekeeper, pool, publish, sys, tcp};

/// A mux that files and psocks refer to. Recycled, never freed; `engine` is `None` in between.
pub(crate) struct MuxCell {
    engine: Mutex<Option<Engine>>,
    /// Counts read passes made by the program's own threads: the housekeeper stays out of the way
    /// while it moves.
    passes: AtomicU32,
    /// Sockets that other processes use: their messages are moved at once.
    shared: AtomicU32,
    /// Where [`MuxCell::by_index`] finds it.
    index: u32,
}

/// A mux of more connections asks the kernel which have something before it reads them.
const LOOK_MIN: usize = 2;

/// Every cell ever made, by index.
static ALL: Mutex<Vec<&'static MuxCell>> = Mutex::ranked(Rank::Leaf, Vec::new());
/// Cells without a mux.
static RECYCLED: Mutex<Vec<&'static MuxCell>> = Mutex::ranked(Rank::Leaf, Vec::new());
/// Every mux there is, for /proc/net/kcm: newest last.
static LIVE: Mutex<Vec<&'static MuxCell>> = Mutex::ranked(Rank::Directory, Vec::new());

impl MuxCell {
    /// A mux with one KCM socket, `file`, which gets index 0.
    pub(crate) fn create(ty: SocketType, file: &'static File, buffers: (u32, u32)) -> Outcome<()> {
        let recycled = RECYCLED.lock()?.pop();
        let cell = match recycled {
            Some(cell) => cell,
            None => {
                let mut all = ALL.lock()?;
                let index = all.len() as u32;
                let (engine, passes) = (Mutex::ranked(Rank::Mux, None), AtomicU32::new(0));
                let cell: &'static Self = Box::leak(Box::new(Self {
                    engine,
                    passes,
                    shared: AtomicU32::new(0),
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
            conns: Connections::default(),
            lines: Lines::default(),
            leader: None,
            followers: Vec::new(),
            published: 0,
        };
        engine.set_kcm(id, Some(file));
        *cell.engine.lock()? = Some(engine);
        LIVE.lock()?.push(cell);
        publish::trace::join(cell);
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

    /// One socket more, or less, is used by other processes.
    pub(crate) fn sharing(&self, change: i32) {
        self.shared.fetch_add(change as u32, Ordering::Relaxed);
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed) != 0
    }

    /// In a forked child, which has no mux yet: those in its memory are its parent's.
    pub(crate) fn reset_in_child() {
        if let Ok(mut live) = LIVE.lock() {
            live.clear();
        }
    }

    /// Holds every mux still, and what was taken from it, for the length of a fork whose child goes
    /// on with them.
    pub(crate) fn freeze_all() -> impl Sized {
        let live = LIVE.lock().ok();
        let cells: Vec<&'static Self> = live.iter().flat_map(|live| live.iter().copied()).collect();
        let mut files = Vec::new();
        for engine in cells.iter().filter_map(|cell| cell.lock().ok()) {
            files.extend(engine.mux.kcms().filter_map(|id| engine.kcm(id)));
        }
        let together = Together::begin();
        let taken: Vec<_> = files
            .iter()
            .filter_map(|file| file.rx.lock().ok())
            .collect();
        drop(together);
        let engines: Vec<_> = cells
            .iter()
            .filter_map(|cell| cell.engine.lock().ok())
            .collect();
        (live, taken, engines)
    }

    /// Connections stop working through the program's descriptors.
    pub(crate) fn keep_connections() {
        Self::for_each(|engine| {
            let psocks: Vec<_> = engine.mux.psocks().collect();
            for psock in psocks {
                if let Some(conn) = engine.conns.get_mut(psock) {
                    let _ = conn.keep();
                }
            }
        });
    }

    /// In a forked child that goes on with the muxes of its parent: whoever slept on them is not
    /// here.
    pub(crate) fn revive() {
        let live = LIVE.lock().map_or(Vec::new(), |live| live.clone());
        for cell in live {
            let Ok(mut engine) = cell.lock() else {
                continue;
            };
            (engine.leader, engine.followers) = (None, Vec::new());
            let psocks: Vec<_> = engine.mux.psocks().collect();
            for psock in psocks {
                housekeeper::watch(cell, &engine, psock);
            }
            for (id, line) in engine.lines.iter() {
                housekeeper::add_line(cell.index, id, line);
            }
        }
    }

    /// Whether there is a mux.
    pub(crate) fn any() -> bool {
        LIVE.lock().is_ok_and(|live| !live.is_empty())
    }

    /// Holds the list of live muxes still for the length of a fork.
    pub(crate) fn freeze_live() -> impl Sized {
        LIVE.lock().ok()
    }

    /// Holds the other lists of muxes still for the length of a fork.
    pub(crate) fn freeze() -> impl Sized {
        (ALL.lock().ok(), RECYCLED.lock().ok())
    }

    /// Shows `f` every mux, oldest first, with its number, and changes none. Unless `patient`, a mux
    /// that is in use ends the tour. Whether every mux was shown.
    pub(crate) fn observe(patient: bool, mut f: impl FnMut(u32, &Engine)) -> bool {
        let live = if patient {
            LIVE.lock().ok()
        } else {
            LIVE.try_lock()
        };
        let Some(live) = live else { return false };
        live.iter().all(|cell| {
            let lock = &cell.engine;
            let engine = if patient {
                lock.lock().ok()
            } else {
                lock.try_lock()
            };
            if let Some(engine) = engine.as_deref().and_then(Option::as_ref) {
                f(cell.index, engine);
            }
            engine.is_some()
        })
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
        self.find_readable();
        self.read_all();
        self.write_all();
    }

    fn find_readable(&mut self) {
        self.cell.passes.fetch_add(1, Ordering::Relaxed);
        self.conns.move_frames();
        if self.conns.count() > LOOK_MIN || self.any_full() {
            self.look();
        } else {
            self.conns.mark_all_readable();
        }
    }

    /// As [`pump`](Self::pump) for one of several sockets, each perhaps with a thread of its own: the lock
    /// is given up for each read, so that threads read different connections at the same time. What is
    /// `known` to have something is read, or whatever the kernel says has. The caller holds the batch of
    /// its socket: a fork that goes on with the mux waits for it, and a handler that comes in between
    /// finds a lock held.
    pub(crate) fn pump_apart(mut self, known: bool) -> Outcome<Self> {
        if known {
            self.cell.passes.fetch_add(1, Ordering::Relaxed);
        } else {
            self.find_readable();
        }
        for _ in 0..self.conns.due() {
            let Some(id) = self.conns.next_due() else {
                break;
            };
            let wanted = self.mux.wants_read(id);
            match wanted.then(|| self.conns.begin_apart(id)).flatten() {
                Some((fd, chunk)) => self = self.read_apart(id, fd, chunk)?,
                None => self.read_one(id),
            }
        }
        self.write_all();
        Ok(self)
    }

    /// One read pass over the connection, which is [taken](Connections::begin_apart).
    fn read_apart(mut self, id: PsockId, fd: i32, chunk: Chunk) -> Outcome<Self> {
        let cell = self.cell;
        let mut buf = self.mux.begin_read(id, chunk);
        drop(self);
        let room = buf.spare().len();
        let read = connection::read_now(sys::borrow(fd), buf.spare());
        let mut engine = cell.lock()?;
        let read = engine.conns.end_apart(id, read, room);
        engine.finish_pass(id, buf, read);
        Ok(engine)
    }

    /// The lock, with the connection left alone; `None` after a moment when a thread was reading it
    /// without the lock, and the caller looks again: that read does not wait for anything, and the next
    /// one will be made under the lock.
    pub(crate) fn unless_being_read(mut self, id: PsockId) -> Option<Self> {
        /// About as long as a read takes.
        const READ_NANOS: i64 = 20_000;
        if self.conns.claim(id) {
            return Some(self);
        }
        drop(self);
        sys::nap(READ_NANOS);
        None
    }

    /// All the work there is, for sockets that other processes use.
    pub(crate) fn serve(&mut self) {
        /// Passes before others get the lock: the housekeeper comes back for the rest.
        const PASSES_MAX: u32 = 16;
        self.look();
        for _ in 0..PASSES_MAX {
            self.read_all();
            self.write_all();
            let cell = self.cell;
            self.settle(cell);
            if self.conns.due() == 0 {
                break;
            }
        }
    }

    fn any_full(&mut self) -> bool {
        let engine = &mut **self;
        engine.conns.any_full(&engine.mux)
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
    pub(crate) conns: Connections,
    /// The sleeping thread that also watches the connections.
    leader: Option<BellId>,
    /// The other threads asleep on this mux.
    followers: Vec<(BellId, KcmId)>,
    /// KCM sockets that other processes may hold.
    pub(crate) lines: Lines,
    /// The [`publish::epoch`] in which a change was last told.
    published: u32,
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
        self.conns.get(id)
    }

    /// Poll entries that cover every connection with something to wait for.
    pub(crate) fn interest(&self) -> Interest {
        self.conns.interest(&self.mux)
    }

    /// What waiting said of one of these entries.
    pub(crate) fn note(&mut self, id: Option<PsockId>, seen: i16) {
        self.conns.note(&mut self.mux, id, seen);
    }

    /// Asks the kernel which connections have something, without waiting.
    pub(crate) fn look(&mut self) {
        self.conns.look(&mut self.mux);
    }

    /// One read pass over each connection that may have something.
    pub(crate) fn read_all(&mut self) {
        for _ in 0..self.conns.due() {
            let Some(id) = self.conns.next_due() else {
                return;
            };
            self.read_one(id);
        }
    }

    /// One read pass over a connection that was due, if its psock wants one.
    fn read_one(&mut self, id: PsockId) {
        if self.mux.wants_read(id)
            && let Some(conn) = self.conns.get_mut(id)
            && let Some(chunk) = pool::take()
        {
            let mut buf = self.mux.begin_read(id, chunk);
            let result = conn.recv(buf.spare(), self.mux.wants_write(id));
            self.finish_pass(id, buf, result);
        }
        self.conns.settle_due(id, self.mux.wants_read(id));
    }

    fn finish_pass(&mut self, id: PsockId, buf: ReadBuf, result: ReadResult) {
        let now = sys::now();
        self.mux.set_env(sys::env(now));
        match self.mux.finish_read(id, buf, result, now) {
            ReadOutcome::Done | ReadOutcome::Unattached(_) => {} // none is unattached during a read
            ReadOutcome::NeedRcvbuf => self.refresh_rcvbuf(id),
        }
        while let Some(chunk) = self.mux.take_free_chunk() {
            pool::give(chunk);
        }
    }

    /// The mux asks whether SO_RCVBUF has grown since it was last told.
    fn refresh_rcvbuf(&mut self, id: PsockId) {
        if let Some(conn) = self.connection(id) {
            let limit = conn.rcvbuf();
            self.mux.set_psock_rcvbuf(id, limit);
        }
    }

    /// Writes what the connections take without waiting.
    pub(crate) fn write_all(&mut self) {
        while let Some(transmit) = self.mux.begin_transmit() {
            let result = match self.connection(transmit.psock()) {
                Some(conn) => conn.send(transmit.slices()),
                None => TxResult::Failed(libc::EPIPE),
            };
            let psock = transmit.psock();
            self.mux.finish_transmit(transmit, result);
            self.note_blocked(psock);
        }
    }

    /// If the socket did not take all, somebody has to notice when it takes more.
    pub(crate) fn note_blocked(&mut self, psock: PsockId) {
        if self.mux.wants_write(psock) {
            self.conns.note_full(psock);
        }
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
                Event::Readable(id) => {
                    self.notify(id, libc::POLLIN | libc::POLLOUT);
                    self.push(cell.index, id);
                }
                Event::Writable(id) => {
                    self.notify(id, libc::POLLOUT);
                    self.drain(id);
                }
                Event::PsockError(id) => {
                    if let Some(file) = self.connection(id).and_then(|c| c.file) {
                        file.watch.notify(libc::POLLERR as u32);
                    }
                }
                Event::Resumed(id) => {
                    self.conns.mark_readable(id);
                    if cell.is_shared() {
                        self.conns.tell(id);
                    }
                }
                Event::Unread(id) => self.give_back(id),
                Event::Tapped => publish::trace::take(cell.index, self),
                Event::NeedRcvbuf(id) => self.refresh_rcvbuf(id),
            }
        }
        housekeeper::settle(cell, self);
        let epoch = publish::epoch();
        if self.published != epoch {
            self.published = epoch;
            publish::changed();
        }
    }

    /// A parser has stopped: what it did not consume is the TCP descriptor's to read.
    fn give_back(&mut self, id: PsockId) {
        let unread = self.mux.take_unread(id);
        let Some(conn) = self.conns.get_mut(id) else {
            return;
        };
        match conn.file {
            Some(file) => tcp::keep_unread(file, &unread, core::mem::take(&mut conn.unread)),
            // The process that has the descriptor gets them when it unattaches.
            None => {
                let before = unread.iter().flat_map(|slice| slice.iter().copied());
                conn.unread = before.chain(core::mem::take(&mut conn.unread)).collect();
            }
        }
    }

    fn notify(&self, id: KcmId, events: i16) {
        if let Some(file) = self.kcm(id) {
            file.watch.notify(events as u32);
        }
    }

    /// This thread is about to sleep on the KCM socket `kcm`. True when it is the one to watch the
    /// connections.
    pub(crate) fn enter_sleep(&mut self, bell: BellId, kcm: KcmId) -> bool {
        if self.leader.is_none() {
            self.leader = Some(bell);
            return true;
        }
        self.followers.push((bell, kcm));
        false
    }

    /// The thread is awake again. If it watched the connections, a follower is woken, which finds
    /// nobody watching when it goes back to sleep: best the one that the next message is for, so
    /// that no other thread has to be woken when it comes.
    pub(crate) fn leave_sleep(&mut self, bell: BellId) {
        if self.leader != Some(bell) {
            self.followers.retain(|(b, _)| *b != bell);
            return;
        }
        self.leader = None;
        let next = self.mux.next_receiver();
        let is_next = |(_, kcm): &&(BellId, KcmId)| Some(*kcm) == next;
        let follower = self
            .followers
            .iter()
            .find(is_next)
            .or(self.followers.last());
        if let Some((bell, _)) = follower {
            wait::ring(*bell);
        }
    }
}
