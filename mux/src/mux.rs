//! [`Mux`]: owns the KCM sockets and psocks and has every entry point; the algorithms are in
//! the modules it delegates to.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::batch::RxBatch;
use crate::bpf::Env;
use crate::chunk::{Chunk, ReadBuf, ReadOutcome, ReadResult, Slice};
use crate::error::{EPIPE, ETIMEDOUT, SendError};
use crate::kcm::Kcm;
use crate::pool::Pool;
use crate::psock::{Psock, ReadGate, Timer};
use crate::rx_steer::{RxPass, RxSteer};
use crate::slots::Slots;
use crate::stats::{KcmStats, MuxStats, PsockStats};
use crate::strparser::{ParseEnd, Parser, StreamParser};
use crate::transmit::{SendFlags, Transmit, TxResult};
use crate::tx_steer::{TxSide, TxSteer};

/// Monotonic time in nanoseconds, as the caller passes it in.
pub type Nanos = u64;

/// Index of a KCM socket in its mux, as /proc/net/kcm shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KcmId(pub u32);

/// Index of a psock in its mux, as /proc/net/kcm shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PsockId(pub u32);

/// Type of the KCM sockets of a mux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketType {
    /// SOCK_DGRAM.
    Dgram,
    /// SOCK_SEQPACKET.
    Seqpacket,
}

/// Something the caller has to pass on or act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Messages were queued on the KCM socket.
    Readable(KcmId),
    /// The KCM socket's queue was worked on: a waiting sender may try again.
    Writable(KcmId),
    /// An error was posted on the attached TCP socket (POLLERR, SO_ERROR).
    PsockError(PsockId),
    /// [`Mux::wants_read`] has become true again.
    Resumed(PsockId),
    /// As [`ReadOutcome::NeedRcvbuf`], found while a paused parse went on.
    NeedRcvbuf(PsockId),
}

/// Events not yet polled.
#[derive(Debug, Default)]
pub(crate) struct Events(VecDeque<Event>);

impl Events {
    pub(crate) fn push(&mut self, event: Event) {
        if self.0.back() != Some(&event) {
            self.0.push_back(event);
        }
    }
}

/// What an unattached psock leaves to its TCP fd.
#[derive(Debug, Default)]
pub struct Unattached {
    /// Bytes read from TCP that no message consumed, in order: still readable on the TCP fd.
    pub unread: Vec<Slice>,
    /// The pending error; 0 for none.
    pub error: i32,
}

/// A multiplexor: N KCM sockets over M psocks.
///
/// Inputs are the `handle_*` calls, `finish_*` and the socket operations; after any of them
/// drain [`poll_event`](Self::poll_event) and [`begin_transmit`](Self::begin_transmit). The
/// deadline may have changed after any `finish_read`, `refill`, `set_*`, `unattach` and
/// `handle_deadline`.
#[derive(Debug)]
pub struct Mux {
    ty: SocketType,
    rcvbuf_default: u32,
    sndbuf_default: u32,
    kcms: Slots<Kcm>,
    psocks: Slots<Psock>,
    rx: RxSteer,
    tx: TxSteer,
    timers: BTreeSet<(Nanos, PsockId)>,
    /// What parser programs may know of the world.
    env: Env,
    events: Events,
    pool: Pool,
    /// The last serial given out; see [`Psock::serial`].
    serial: u64,
    stats: MuxStats,
    /// Counters of psocks already unattached.
    retired: PsockStats,
}

/// Life of the mux and its KCM sockets.
impl Mux {
    /// A mux with its first KCM socket. The buffer sizes are those of every new KCM socket.
    #[must_use]
    pub fn new(ty: SocketType, rcvbuf_default: u32, sndbuf_default: u32) -> (Self, KcmId) {
        let mut mux = Self {
            ty,
            rcvbuf_default,
            sndbuf_default,
            kcms: Slots::new(),
            psocks: Slots::new(),
            rx: RxSteer::default(),
            tx: TxSteer::default(),
            timers: BTreeSet::new(),
            env: Env::default(),
            events: Events::default(),
            pool: Pool::default(),
            serial: 0,
            stats: MuxStats::default(),
            retired: PsockStats::default(),
        };
        let kcm = mux.clone_kcm();
        (mux, kcm)
    }

    /// Type of the mux's KCM sockets.
    #[must_use]
    pub fn socket_type(&self) -> SocketType {
        self.ty
    }

    /// Adds a KCM socket with default options. It takes held and parked messages and joins
    /// the tail of the waiters (kcm-semantics §3.5).
    pub fn clone_kcm(&mut self) -> KcmId {
        let serial = self.next_serial();
        let kcm = Kcm::new(
            serial,
            self.rcvbuf_default.max(1),
            self.sndbuf_default.max(1),
        );
        let id = KcmId(self.kcms.insert(kcm));
        self.resume(id);
        self.check_invariants();
        id
    }

    /// Closes a KCM socket; `unread` is its batch. Its messages go to the first waiter or are
    /// held, what it queued for sending is dropped (§6.5, §7.6).
    ///
    /// Returns `true` for the last one: the caller then unattaches every psock.
    pub fn close_kcm(&mut self, kcm: KcmId, unread: &mut RxBatch) -> bool {
        self.tx_side().close(kcm);
        if let Some(closing) = self.kcms.get_mut(kcm.0) {
            self.rx.leave_waiters(kcm, closing);
            closing.rx.disabled = true;
        }
        self.account(kcm, unread);
        self.take_back(kcm, unread);
        self.kcms.remove(kcm.0);
        let last = self.kcms.len() == 0;
        if last {
            let pool = &mut self.pool;
            self.rx.hold.drain(..).for_each(|run| pool.give_run(run));
        }
        self.check_invariants();
        last
    }

    /// KCM sockets by index.
    pub fn kcms(&self) -> impl Iterator<Item = KcmId> {
        self.kcms.iter().map(|(index, _)| KcmId(index))
    }

    /// Psocks by index.
    pub fn psocks(&self) -> impl Iterator<Item = PsockId> {
        self.psocks.iter().map(|(index, _)| PsockId(index))
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn tx_side(&mut self) -> TxSide<'_> {
        TxSide {
            kcms: &mut self.kcms,
            psocks: &mut self.psocks,
            steer: &mut self.tx,
            pool: &mut self.pool.tx,
            events: &mut self.events,
            stats: &mut self.stats,
            retired: &mut self.retired,
        }
    }
}

/// Psocks.
impl Mux {
    /// Attaches a TCP connection. `rcvbuf` is its SO_RCVBUF as getsockopt reports it, the
    /// longest message accepted; `msg_timeout` its SO_RCVTIMEO, the time one message may
    /// take to assemble.
    pub fn attach(&mut self, program: Parser, rcvbuf: u32, msg_timeout: Option<Nanos>) -> PsockId {
        let serial = self.next_serial();
        let psock = Psock::new(serial, program, rcvbuf, msg_timeout);
        let id = PsockId(self.psocks.insert(psock));
        self.stats.psock_attach += 1;
        self.tx_side().make_available(id);
        self.check_invariants();
        id
    }

    /// Unattaches a psock: a parked message and the consumed part of an incomplete one are
    /// dropped, a message partly sent on it restarts on another psock (§3.4).
    pub fn unattach(&mut self, psock: PsockId) -> Unattached {
        let carried_for = self.tx_side().unattach(psock);
        self.stop_timer(psock);
        let Some(mut gone) = self.psocks.remove(psock.0) else {
            return Unattached::default();
        };
        self.stats.psock_unattach += 1;
        if let Some(run) = gone.ready.take() {
            self.stats.rx_ready_drops += 1;
            self.rx.ready.retain(|&ready| ready != psock);
            self.pool.give_run(run);
        }
        gone.strp.abort();
        self.retired += gone.stats;
        if let Some(kcm) = carried_for {
            self.tx_side().psock_gone(kcm);
        }
        self.check_invariants();
        Unattached {
            unread: gone.strp.take_unread(),
            error: gone.error,
        }
    }

    /// Bytes that a stopped parser leaves to the TCP fd although it is still attached (§9.5);
    /// nothing while the parser runs. Take them after [`Event::PsockError`].
    pub fn take_unread(&mut self, psock: PsockId) -> Vec<Slice> {
        self.psocks
            .get_mut(psock.0)
            .map(|psock| psock.strp.take_unread())
            .unwrap_or_default()
    }

    /// Tells the current SO_RCVBUF of the TCP socket. A parse that waits for it goes on.
    pub fn set_psock_rcvbuf(&mut self, psock: PsockId, rcvbuf: u32) {
        let Some(state) = self.psocks.get_mut(psock.0) else {
            return;
        };
        state.rcvbuf = rcvbuf;
        if core::mem::replace(&mut state.gate, ReadGate::Open) == ReadGate::NeedRcvbuf {
            self.parse(psock, None, Rcvbuf::Current);
            self.announce_resumed(psock);
        }
        self.check_invariants();
    }

    /// Tells SO_RCVTIMEO of the TCP socket; messages started later obey it (§9.4).
    pub fn set_msg_timeout(&mut self, psock: PsockId, timeout: Option<Nanos>) {
        if let Some(psock) = self.psocks.get_mut(psock.0) {
            psock.msg_timeout = timeout;
        }
    }

    /// The pending error of the TCP socket; 0 for none.
    #[must_use]
    pub fn pending_error(&self, psock: PsockId) -> i32 {
        self.psocks.get(psock.0).map_or(0, |psock| psock.error)
    }

    /// Reads and clears the pending error, as SO_ERROR does.
    pub fn take_error(&mut self, psock: PsockId) -> i32 {
        self.psocks
            .get_mut(psock.0)
            .map_or(0, |psock| core::mem::take(&mut psock.error))
    }

    /// The TCP state changed: local shutdown, connect completed, FIN acknowledged. Posts EPIPE
    /// (§6.1). The peer's FIN and a reset have calls of their own, which count once.
    pub fn handle_state_change(&mut self, psock: PsockId) {
        self.post_error(psock, EPIPE);
    }

    /// The peer's FIN arrived. [`ReadResult::Eof`] implies it; a psock that is not read
    /// learns it from here.
    pub fn handle_fin(&mut self, psock: PsockId) {
        if let Some(state) = self.psocks.get_mut(psock.0)
            && !core::mem::replace(&mut state.fin_seen, true)
        {
            self.post_error(psock, EPIPE);
        }
    }

    /// The connection was reset or timed out: a message partly sent on it fails over at once.
    /// [`ReadResult::Failed`] implies it.
    pub fn handle_reset(&mut self, psock: PsockId) {
        let Some(state) = self.psocks.get_mut(psock.0) else {
            return;
        };
        state.eof = true;
        if !core::mem::replace(&mut state.dead, true) {
            self.post_error(psock, EPIPE);
            self.tx_side().handle_reset(psock);
        }
        self.check_invariants();
    }

    fn post_error(&mut self, psock: PsockId, errno: i32) {
        if let Some(state) = self.psocks.get_mut(psock.0) {
            state.error = errno;
            self.events.push(Event::PsockError(psock));
        }
    }
}

/// Options of a KCM socket; values are those getsockopt reports.
impl Mux {
    /// SO_RCVBUF.
    pub fn set_rcvbuf(&mut self, kcm: KcmId, bytes: u32) {
        if let Some(kcm) = self.kcms.get_mut(kcm.0) {
            kcm.rx.rcvbuf = bytes.max(1);
        }
    }

    /// SO_SNDBUF.
    pub fn set_sndbuf(&mut self, kcm: KcmId, bytes: u32) {
        if let Some(state) = self.kcms.get_mut(kcm.0) {
            state.tx.sndbuf = bytes.max(1);
            self.events.push(Event::Writable(kcm));
        }
    }

    /// SO_RCVLOWAT: the charge below which a full socket receives again (§7.3).
    pub fn set_rcvlowat(&mut self, kcm: KcmId, bytes: u32) {
        if let Some(kcm) = self.kcms.get_mut(kcm.0) {
            kcm.rx.rcvlowat = bytes.max(1);
        }
    }

    /// KCM_RECV_DISABLE; `unread` is the socket's batch. Disabling moves its messages to the
    /// first waiter or holds them, enabling takes held and parked messages (§7.5).
    pub fn set_rx_disabled(&mut self, kcm: KcmId, disabled: bool, unread: &mut RxBatch) {
        let Some(state) = self.kcms.get_mut(kcm.0) else {
            return;
        };
        let changed = core::mem::replace(&mut state.rx.disabled, disabled) != disabled;
        if disabled {
            self.rx.leave_waiters(kcm, state);
        }
        self.account(kcm, unread);
        match (changed, disabled) {
            (false, _) => {}
            (true, true) => self.take_back(kcm, unread),
            (true, false) => self.resume(kcm),
        }
        self.check_invariants();
    }

    /// KCM_RECV_DISABLE as set.
    #[must_use]
    pub fn rx_disabled(&self, kcm: KcmId) -> bool {
        self.kcms.get(kcm.0).is_some_and(|kcm| kcm.rx.disabled)
    }
}

/// SO_RCVBUF as a parse may rely on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rcvbuf {
    /// Read just now: a longer message is too long.
    Current,
    /// May have grown since: ask before giving a message up.
    LastKnown,
}

/// Receiving.
impl Mux {
    /// What parser programs learn from their helpers: time, CPU, random seed. Each
    /// [`finish_read`](Self::finish_read) moves both times on to its `now`.
    pub fn set_env(&mut self, env: Env) {
        self.env = env;
    }

    /// Whether a read of the psock's TCP socket is wanted: not paused behind a parked message,
    /// stopped, at its end, or already being read.
    #[must_use]
    pub fn wants_read(&self, psock: PsockId) -> bool {
        self.psocks.get(psock.0).is_some_and(Psock::wants_read)
    }

    /// Starts a read pass; call only when [`wants_read`](Self::wants_read). The lock may be
    /// released until [`finish_read`](Self::finish_read).
    pub fn begin_read(&mut self, psock: PsockId, mut fresh: Chunk) -> ReadBuf {
        let state = self
            .psocks
            .get_mut(psock.0)
            .filter(|state| state.wants_read());
        let Some(state) = state else {
            return ReadBuf {
                chunk: fresh,
                carried: 0,
                serial: 0,
            };
        };
        state.reading = true;
        let carried = state.strp.carry_into(fresh.bytes_mut());
        ReadBuf {
            chunk: fresh,
            carried,
            serial: state.serial,
        }
    }

    /// Ends a read pass: parses what came and queues the messages.
    pub fn finish_read(
        &mut self,
        psock: PsockId,
        mut buf: ReadBuf,
        result: ReadResult,
        now: Nanos,
    ) -> ReadOutcome {
        let n = match result {
            ReadResult::Bytes(n) => n.min(buf.spare().len()),
            ReadResult::WouldBlock | ReadResult::Eof | ReadResult::Failed(_) => 0,
        };
        let state = self
            .psocks
            .get_mut(psock.0)
            .filter(|state| state.serial == buf.serial);
        let Some(state) = state else {
            let (start, end) = (buf.carried, buf.carried + n);
            let unread = (n > 0).then(|| Slice::new(buf.chunk.into_shared(), start, end));
            return ReadOutcome::Unattached(unread);
        };
        state.reading = false;
        self.env.boot_ns += now.saturating_sub(self.env.now_ns);
        self.env.now_ns = now;
        let freed = match result {
            ReadResult::Bytes(1..) => state.strp.push(buf, n),
            _ => Some(buf.chunk.into_shared()),
        };
        freed
            .into_iter()
            .for_each(|bytes| self.pool.give_chunk(bytes));
        match result {
            ReadResult::Bytes(1..) => self.parse(psock, Some(now), Rcvbuf::LastKnown),
            ReadResult::WouldBlock => {}
            ReadResult::Bytes(0) | ReadResult::Eof => {
                state.eof = true;
                self.handle_fin(psock);
            }
            ReadResult::Failed(_) => self.handle_reset(psock),
        }
        self.check_invariants();
        match self.psocks.get(psock.0) {
            Some(state) if state.gate == ReadGate::NeedRcvbuf => ReadOutcome::NeedRcvbuf,
            _ => ReadOutcome::Done,
        }
    }

    /// A chunk in which no message lies any more.
    pub fn take_free_chunk(&mut self) -> Option<Chunk> {
        self.pool.take_chunk()
    }

    /// Accounts what `batch` handed out and moves the socket's queued messages into it. When
    /// that leaves its charge below SO_RCVLOWAT, a socket that was full receives again: held
    /// messages, then parked ones, whose psocks go on parsing.
    ///
    /// Returns whether the batch holds a message.
    pub fn refill(&mut self, kcm: KcmId, batch: &mut RxBatch) -> bool {
        self.account(kcm, batch);
        if let Some(state) = self.kcms.get_mut(kcm.0) {
            let (mut runs, msgs) = state.rx.take_queue();
            state.rx.in_batch += msgs;
            batch.append(&mut runs, msgs);
        }
        self.check_invariants();
        !batch.is_empty()
    }

    /// Puts the unread messages of a batch back in front of the socket's queue.
    pub fn return_batch(&mut self, kcm: KcmId, batch: &mut RxBatch) {
        self.account(kcm, batch);
        if let Some(state) = self.kcms.get_mut(kcm.0) {
            state.rx.put_front(batch.take_unread());
            state.rx.in_batch = 0;
        }
        self.check_invariants();
    }

    /// Accounts what `batch` handed out without moving messages, so that counters and
    /// /proc/net/kcm are exact.
    pub fn account(&mut self, kcm: KcmId, batch: &mut RxBatch) {
        let handed = core::mem::take(&mut batch.handed);
        let pool = &mut self.pool;
        batch.spent.drain(..).for_each(|run| pool.give_run(run));
        let Some(state) = self.kcms.get_mut(kcm.0) else {
            return;
        };
        state.stats.rx_msgs += handed.msgs_finished;
        state.stats.rx_bytes += handed.bytes_returned;
        state.rx.charge = state.rx.charge.saturating_sub(handed.charge);
        state.rx.in_batch = batch.len();
        if handed.charge > 0 && state.rx.charge < state.rx.rcvlowat as usize {
            self.resume(kcm);
        }
    }

    /// Messages in the socket's queue, those of its batch excluded.
    #[must_use]
    pub fn rx_len(&self, kcm: KcmId) -> usize {
        self.kcms.get(kcm.0).map_or(0, |kcm| kcm.rx.len())
    }

    /// Gives all messages of a socket that left the waiters to others.
    fn take_back(&mut self, kcm: KcmId, unread: &mut RxBatch) {
        let mut runs = unread.take_unread();
        let pool = &mut self.pool;
        unread.spent.drain(..).for_each(|run| pool.give_run(run));
        if let Some(state) = self.kcms.get_mut(kcm.0) {
            runs.append(&mut state.rx.take_queue().0);
            state.rx.in_batch = 0;
            state.rx.charge = 0;
        }
        self.rx
            .requeue(runs, &mut self.kcms, &mut self.pool, &mut self.events);
    }

    /// A socket receives again: held messages first, then parked ones, then it joins the tail
    /// of the waiters and the psocks it relieved go on parsing (§7.3).
    fn resume(&mut self, kcm: KcmId) {
        let Some(state) = self.kcms.get_mut(kcm.0) else {
            return;
        };
        if state.rx.waiting || state.rx.disabled {
            return;
        }
        let before = state.rx.len();
        let mut relieved = Vec::new();
        let mut full = false;
        while !full && let Some(run) = self.rx.hold.pop_front() {
            if let Some(left) = state.rx.fill(run, &mut self.pool) {
                self.rx.hold.push_front(left);
                full = true;
            }
        }
        while !full && let Some(&psock_id) = self.rx.ready.front() {
            if let Some(psock) = self.psocks.get_mut(psock_id.0)
                && let Some(run) = psock.ready.take()
            {
                psock.ready = state.rx.fill(run, &mut self.pool);
                if psock.ready.is_some() {
                    full = true;
                    break;
                }
                relieved.push(psock_id);
            }
            self.rx.ready.pop_front();
        }
        if !full {
            self.rx.join_waiters(kcm, state);
        }
        if state.rx.len() > before {
            self.events.push(Event::Readable(kcm));
        }
        for psock in relieved {
            self.parse(psock, None, Rcvbuf::LastKnown);
            self.announce_resumed(psock);
        }
    }

    /// One read pass over the bytes a psock holds. `now` starts the assembly timer; without
    /// it the timer starts with the next [`handle_deadline`](Self::handle_deadline).
    fn parse(&mut self, id: PsockId, now: Option<Nanos>, rcvbuf: Rcvbuf) {
        let Some(psock) = self.psocks.get_mut(id.0) else {
            return;
        };
        let mut pass = RxPass::new(
            &mut self.kcms,
            &mut self.rx,
            &mut self.pool,
            &mut self.events,
        );
        let parsed = psock
            .strp
            .run(psock.rcvbuf, &mut self.env, &mut psock.stats, &mut pass);
        psock.ready = pass.finish();
        if psock.ready.is_some() {
            self.rx.ready.push_back(id);
        }
        if parsed.completed {
            self.stop_timer(id);
        }
        match parsed.end {
            ParseEnd::Drained if parsed.began => self.start_timer(id, now),
            ParseEnd::Drained | ParseEnd::Paused => {}
            ParseEnd::OverRcvbuf => self.over_rcvbuf(id, now, rcvbuf),
            ParseEnd::Abort(errno) => self.abort_rx(id, errno),
        }
    }

    fn over_rcvbuf(&mut self, id: PsockId, now: Option<Nanos>, rcvbuf: Rcvbuf) {
        let Some(psock) = self.psocks.get_mut(id.0) else {
            return;
        };
        match rcvbuf {
            Rcvbuf::Current => {
                let errno = StreamParser::too_big(&mut psock.stats);
                self.abort_rx(id, errno);
            }
            Rcvbuf::LastKnown => {
                psock.gate = ReadGate::NeedRcvbuf;
                // A caller that passes the time is a read, and told by its result.
                if now.is_none() {
                    self.events.push(Event::NeedRcvbuf(id));
                }
            }
        }
    }

    /// Stops a psock's parser for good and posts `errno` (§9.5).
    fn abort_rx(&mut self, id: PsockId, errno: i32) {
        self.stop_timer(id);
        let Some(psock) = self.psocks.get_mut(id.0) else {
            return;
        };
        psock.strp.abort();
        psock.gate = ReadGate::Open;
        psock.stats.rx_aborts += 1;
        self.post_error(id, errno);
    }

    fn announce_resumed(&mut self, id: PsockId) {
        if self.wants_read(id) {
            self.events.push(Event::Resumed(id));
        }
    }
}

/// The assembly timer (§9.4).
impl Mux {
    fn start_timer(&mut self, id: PsockId, now: Option<Nanos>) {
        let Some(psock) = self.psocks.get_mut(id.0) else {
            return;
        };
        let Some(timeout) = psock.msg_timeout else {
            return;
        };
        psock.timer = match now {
            Some(now) => Timer::At(now.saturating_add(timeout)),
            None => Timer::Unarmed,
        };
        let due = match psock.timer {
            Timer::At(deadline) => deadline,
            Timer::Off | Timer::Unarmed => 0,
        };
        self.timers.insert((due, id));
    }

    fn stop_timer(&mut self, id: PsockId) {
        let Some(psock) = self.psocks.get_mut(id.0) else {
            return;
        };
        match core::mem::replace(&mut psock.timer, Timer::Off) {
            Timer::Off => {}
            Timer::Unarmed => drop(self.timers.remove(&(0, id))),
            Timer::At(deadline) => drop(self.timers.remove(&(deadline, id))),
        }
    }

    /// When [`handle_deadline`](Self::handle_deadline) is due; 0 means now.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.timers.first().map(|&(due, _)| due)
    }

    /// Aborts the psocks whose message took too long to assemble.
    pub fn handle_deadline(&mut self, now: Nanos) {
        while let Some(&(due, id)) = self.timers.first()
            && due <= now
        {
            self.timers.pop_first();
            let Some(psock) = self.psocks.get_mut(id.0) else {
                continue;
            };
            match core::mem::replace(&mut psock.timer, Timer::Off) {
                Timer::Off => {}
                Timer::Unarmed => self.start_timer(id, Some(now)),
                Timer::At(_) => {
                    psock.stats.rx_msg_timeouts += 1;
                    self.abort_rx(id, ETIMEDOUT);
                }
            }
        }
        self.check_invariants();
    }
}

/// Sending.
impl Mux {
    /// Whether a message may start, or one is open: queued bytes are below SO_SNDBUF.
    #[must_use]
    pub fn may_start(&self, kcm: KcmId) -> bool {
        self.kcms.get(kcm.0).is_some_and(|kcm| {
            kcm.tx.open.is_some() || kcm.tx.queued_bytes < kcm.tx.sndbuf as usize
        })
    }

    /// Queues the bytes of `parts`; returns how many. Without bytes, `flags.end` completes an
    /// open message and flushes batched ones.
    ///
    /// # Errors
    /// [`SendError`]; nothing of `parts` was accepted, an open message is kept, and batched
    /// messages were flushed.
    pub fn send(
        &mut self,
        kcm: KcmId,
        parts: &[&[u8]],
        flags: SendFlags,
    ) -> Result<usize, SendError> {
        let sent = self.tx_side().send(kcm, parts, flags);
        self.check_invariants();
        sent
    }

    /// Discards the open message (a DGRAM send failed, §5.2) and flushes batched ones.
    pub fn abort_open(&mut self, kcm: KcmId) {
        self.tx_side().abort_open(kcm);
        self.check_invariants();
    }

    /// Starts transmission of batched messages.
    pub fn flush_batch(&mut self, kcm: KcmId) {
        self.tx_side().kick(kcm);
        self.check_invariants();
    }

    /// Reserves a psock for one whole message that the caller writes to TCP from its own
    /// memory and then reports with [`finish_direct`](Self::finish_direct). `None` when
    /// messages are queued or open, or no psock is free: use [`send`](Self::send).
    pub fn reserve_direct(&mut self, kcm: KcmId) -> Option<PsockId> {
        let psock = self.tx_side().reserve_direct(kcm);
        self.check_invariants();
        psock
    }

    /// Ends a direct write. What was not sent of the message `parts` is copied and queued in
    /// front, so that a failure can still restart it from its first byte.
    pub fn finish_direct(&mut self, kcm: KcmId, psock: PsockId, parts: &[&[u8]], result: TxResult) {
        self.tx_side().finish_direct(kcm, psock, parts, result);
        self.check_invariants();
    }

    /// The next bytes to write to a TCP socket. The lock may be released until
    /// [`finish_transmit`](Self::finish_transmit).
    pub fn begin_transmit(&mut self) -> Option<Transmit> {
        let transmit = self.tx_side().begin_transmit();
        self.check_invariants();
        transmit
    }

    /// Ends a write of [`begin_transmit`](Self::begin_transmit).
    pub fn finish_transmit(&mut self, transmit: Transmit, result: TxResult) {
        self.tx_side().finish_transmit(transmit, result);
        self.check_invariants();
    }

    /// Whether write space of the TCP socket is awaited.
    #[must_use]
    pub fn wants_write(&self, psock: PsockId) -> bool {
        self.psocks
            .get(psock.0)
            .is_some_and(|psock| psock.tx.blocked)
    }

    /// The TCP socket has write space.
    pub fn handle_writable(&mut self, psock: PsockId) {
        self.tx_side().handle_writable(psock);
        self.check_invariants();
    }
}

/// Output.
impl Mux {
    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.0.pop_front()
    }

    /// Counters of the mux itself.
    #[must_use]
    pub fn stats(&self) -> MuxStats {
        self.stats
    }

    /// Counters of one KCM socket.
    #[must_use]
    pub fn kcm_stats(&self, kcm: KcmId) -> KcmStats {
        self.kcms
            .get(kcm.0)
            .map(|kcm| kcm.stats)
            .unwrap_or_default()
    }

    /// Counters of one psock.
    #[must_use]
    pub fn psock_stats(&self, psock: PsockId) -> PsockStats {
        self.psocks
            .get(psock.0)
            .map(|psock| psock.stats)
            .unwrap_or_default()
    }

    /// Counters of all psocks, unattached ones included.
    #[must_use]
    pub fn psock_totals(&self) -> PsockStats {
        let mut totals = self.retired;
        self.psocks
            .iter()
            .for_each(|(_, psock)| totals += psock.stats);
        totals
    }

    pub(crate) fn kcm(&self, id: KcmId) -> Option<&Kcm> {
        self.kcms.get(id.0)
    }

    pub(crate) fn psock(&self, id: PsockId) -> Option<&Psock> {
        self.psocks.get(id.0)
    }

    pub(crate) fn check_invariants(&self) {
        if cfg!(debug_assertions) {
            self.kcms.iter().for_each(|(_, kcm)| kcm.check_invariants());
        }
    }
}
