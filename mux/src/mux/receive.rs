//! Receive entry points of a [`Mux`]: read passes, batches, and sockets that receive again
//! (kcm-semantics §7, §9).

use alloc::vec::Vec;

use super::{Event, KcmId, Mux, Nanos, PsockId};
use crate::batch::RxBatch;
use crate::bpf::Env;
use crate::chunk::{Chunk, ReadBuf, ReadOutcome, ReadResult, Slice};
use crate::psock::{Psock, ReadGate};
use crate::rx_steer::RxPass;
use crate::strparser::{ParseEnd, StreamParser};

/// SO_RCVBUF as a parse may rely on it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rcvbuf {
    /// Read just now: a longer message is too long.
    Current,
    /// May have grown since: ask before giving a message up.
    LastKnown,
}

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
            // Stopped by the assembly timer meanwhile.
            ReadResult::Bytes(1..) if state.strp.stopped() => {
                self.events.push(Event::Unread(psock));
            }
            ReadResult::Bytes(1..) => self.parse(psock, Some(now), Rcvbuf::LastKnown),
            ReadResult::WouldBlock => {}
            ReadResult::Bytes(0) | ReadResult::Eof => {
                state.eof = true;
                self.handle_fin(psock);
            }
            ReadResult::Failed(_) => {
                state.eof = true;
                self.handle_reset(psock);
            }
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

    /// The KCM socket that the next read pass begins with: whoever reads for it might as well be
    /// the thread that waits on it.
    #[must_use]
    pub fn next_receiver(&self) -> Option<KcmId> {
        self.rx.waiters.front().copied()
    }

    /// Messages in the socket's queue, those of its batch excluded.
    #[must_use]
    pub fn rx_len(&self, kcm: KcmId) -> usize {
        self.kcms.get(kcm.0).map_or(0, |kcm| kcm.rx.len())
    }

    /// Gives all messages of a socket that left the waiters to others.
    pub(super) fn take_back(&mut self, kcm: KcmId, unread: &mut RxBatch) {
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
    pub(super) fn resume(&mut self, kcm: KcmId) {
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
                if state.rx.has_room() {
                    self.events.tap_received(kcm, psock_id, &run);
                }
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
    pub(super) fn parse(&mut self, id: PsockId, now: Option<Nanos>, rcvbuf: Rcvbuf) {
        let Some(psock) = self.psocks.get_mut(id.0) else {
            return;
        };
        let mut pass = RxPass::new(
            &mut self.kcms,
            &mut self.rx,
            &mut self.pool,
            &mut self.events,
            id,
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
    pub(super) fn abort_rx(&mut self, id: PsockId, errno: i32) {
        self.stop_timer(id);
        let Some(psock) = self.psocks.get_mut(id.0) else {
            return;
        };
        psock.strp.abort();
        psock.gate = ReadGate::Open;
        psock.stats.rx_aborts += 1;
        if psock.strp.held() > 0 {
            self.events.push(Event::Unread(id));
        }
        self.post_error(id, errno);
    }

    pub(super) fn announce_resumed(&mut self, id: PsockId) {
        if self.wants_read(id) {
            self.events.push(Event::Resumed(id));
        }
    }
}
