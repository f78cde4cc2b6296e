//! After every piece of work on a connection: its deadline, its readiness and its wish to send are filed,
//! and what it needs no longer goes back: busy state, the record itself.

use super::conn::{Busy, Conn, Flags, NONE};
use super::demux::Entry;
use super::state::State;
use super::timewait::Last;
use super::{Engine, Tcb, WARM_MAX};
use crate::ip::IpLayer;
use crate::limits::{TIME_WAIT_MAX, TIMERS_PER_POLL_MAX};
use crate::time::Instant;

impl Engine {
    /// Borrows a connection to work on, lending it busy state if it has none.
    #[inline(always)]
    pub(super) fn tcb(&mut self, i: u32, now: Instant) -> Tcb<'_> {
        self.run = None;
        if self.conns[i].busy == NONE {
            self.lend_busy(i);
        }
        let c = &mut self.conns[i];
        let b = &mut self.busy[c.busy];
        Tcb {
            c,
            b,
            env: &mut self.env,
            now,
            progress: false,
        }
    }

    /// Apart, so that the common case does not pay for room on the stack.
    #[cold]
    #[inline(never)]
    fn lend_busy(&mut self, i: u32) {
        let c = &mut self.conns[i];
        c.busy = self.busy.insert(|_| Busy::default());
        let rack = &mut self.busy[c.busy].rack;
        rack.reordering_seen = c.flags.has(Flags::REORDERING);
        rack.widening = c.widening;
    }

    /// After any work on a connection: files its deadline, its readiness and its wish to send, and
    /// lets go of what it needs no longer.
    pub(super) fn settle(&mut self, i: u32, now: Instant) {
        self.settle_as(i, now, true);
    }

    /// As `settle`, for a connection that just said it has nothing to send: what blocks it will
    /// mark it again.
    pub(super) fn settle_quietly(&mut self, i: u32, now: Instant) {
        self.settle_as(i, now, false);
    }

    #[inline]
    fn settle_as(&mut self, i: u32, now: Instant, may_send: bool) {
        match self.conns[i].state {
            State::TimeWait => self.enter_time_wait(i, now),
            State::Closed => {}
            _ => return self.settle_living(i, now, may_send),
        }
        self.bury(i);
    }

    fn settle_living(&mut self, i: u32, now: Instant, may_send: bool) {
        let t = self.tcb(i, now);
        let wants_output = may_send && t.wants_output();
        let deadline = t.b.timers.earliest().min(t.keepalive_at());
        let is_done = !wants_output && t.b.is_idle();
        let holds = may_send && t.b.holds_ack && !core::mem::replace(&mut t.b.is_held, true);
        let joins_egress = wants_output && t.c.joins_egress();
        let joins_events = t.c.joins_events();
        let iface = t.c.iface;
        self.wheel.set(i, deadline);
        if holds {
            self.held.push(i);
        }
        if joins_egress {
            self.egress[iface.index()].dirty.push_back(i);
        }
        if is_done {
            self.release_busy(i);
        }
        if joins_events {
            self.events.push_back(i);
        }
    }

    /// The ACKs held so far go out.
    pub(crate) fn release_acks(&mut self, now: Instant) {
        for i in core::mem::take(&mut self.held) {
            // The connection may have ended, and another have its place.
            let c = &mut self.conns[i];
            if c.busy == NONE {
                continue;
            }
            let b = &mut self.busy[c.busy];
            b.is_held = false;
            if core::mem::take(&mut b.holds_ack) && c.state != State::Closed {
                c.flags.set(Flags::ACK_NOW);
                self.settle(i, now);
            }
        }
    }

    pub(super) fn mark_dirty(&mut self, i: u32) {
        let c = &mut self.conns[i];
        if c.joins_egress() {
            self.egress[c.iface.index()].dirty.push_back(i);
        }
    }

    pub(super) fn queue_event(&mut self, i: u32) {
        if self.conns[i].joins_events() {
            self.events.push_back(i);
        }
    }

    pub(super) fn release_busy(&mut self, i: u32) {
        let c = &mut self.conns[i];
        if c.busy == NONE {
            return;
        }
        let b = &mut self.busy[c.busy];
        if b.rack.reordering_seen {
            c.flags.set(Flags::REORDERING);
        }
        c.widening = b.rack.widening;
        b.reset(&mut self.env.pool);
        self.busy.remove(c.busy);
        c.busy = NONE;
    }

    /// Replaces a finished connection's place in the table by a compact record.
    fn enter_time_wait(&mut self, i: u32, now: Instant) {
        // The ACK of the peer's FIN is still owed; the compact record cannot send by itself, so it
        // goes out first and the move happens when the egress list comes by.
        let c = &mut self.conns[i];
        if c.flags.has(Flags::ACK_NOW) {
            return;
        }
        c.state = State::Closed;
        if !c.flags.has(Flags::FILED) || self.time_waits.records.len() >= TIME_WAIT_MAX {
            self.env.stats.time_wait_overflow += 1;
            return;
        }
        let last = Last {
            tuple: c.tuple(),
            snd_nxt: c.snd_nxt,
            rcv_nxt: c.rcv_nxt,
            ts: c.flags.has(Flags::TS_RECENT).then_some(c.ts_recent),
            ts_offset: c.ts_offset,
            tag: c.tag,
        };
        let record = self.time_waits.insert(&last, now);
        let c = &mut self.conns[i];
        self.demux
            .replace(c.tag, Entry::Conn(i), Entry::TimeWait(record));
        c.flags.clear(Flags::FILED);
    }

    /// Takes a closed connection out of every index; frees it once the application let go.
    pub(super) fn bury(&mut self, i: u32) {
        let c = &mut self.conns[i];
        if c.state == State::TimeWait {
            self.mark_dirty(i);
            self.queue_event(i);
            return;
        }
        if c.flags.has(Flags::FILED) {
            c.flags.clear(Flags::FILED);
            self.demux.remove(c.tag, Entry::Conn(i));
        }
        self.wheel.cancel(i);
        if c.is_owned() {
            // Unread data stays readable; nothing more is sent.
            let keep = c.busy != NONE && self.busy[c.busy].rx.len() > 0;
            if keep {
                let b = &mut self.busy[c.busy];
                b.tx.clear(&mut self.env.pool);
                b.board.clear();
                b.timers = Default::default();
            } else {
                self.release_busy(i);
            }
            self.queue_event(i);
        } else if !c.flags.any(Flags::DIRTY | Flags::EVENT_QUEUED) {
            self.free(i);
        } else {
            // Freed when the list that still names it comes by.
            self.release_busy(i);
        }
    }

    pub(super) fn free(&mut self, i: u32) {
        self.release_busy(i);
        let c = &mut self.conns[i];
        c.generation = c.generation.wrapping_add(1);
        c.opts = None;
        self.conns.remove(i);
    }

    /// Runs due timers, a bounded number per call.
    pub(crate) fn timers_expire(&mut self, ip: &mut IpLayer, now: Instant) {
        for _ in 0..TIMERS_PER_POLL_MAX / WARM_MAX {
            let mut due = [NONE; WARM_MAX];
            let expired = core::iter::from_fn(|| self.wheel.pop_expired(now));
            let n = due.iter_mut().zip(expired).map(|(d, i)| *d = i).count();
            if n == 0 {
                break;
            }
            self.warm_records(&due[..n]);
            for &i in &due[..n] {
                if self.conns[i].state != State::Closed {
                    self.tcb(i, now).timers_expire();
                    self.settle(i, now);
                }
            }
        }
        for _ in 0..TIMERS_PER_POLL_MAX {
            let Some(i) = self.embryo_wheel.pop_expired(now) else {
                break;
            };
            self.embryo_timer(ip, i, now);
        }
        for _ in 0..TIMERS_PER_POLL_MAX {
            let Some(i) = self.time_waits.pop_expired(now) else {
                break;
            };
            self.end_time_wait(i);
        }
    }

    /// No later than the next timer.
    pub(crate) fn next_deadline(&self) -> Instant {
        let far = Instant::FAR_FUTURE;
        self.wheel
            .next_deadline()
            .unwrap_or(far)
            .min(self.embryo_wheel.next_deadline().unwrap_or(far))
            .min(self.time_waits.next_deadline())
    }
}

impl Conn {
    /// Whether it is to be put on the list of those with something to send, which it then counts as.
    fn joins_egress(&mut self) -> bool {
        let joins = !self.flags.has(Flags::DIRTY);
        self.flags.set(Flags::DIRTY);
        joins
    }

    /// Whether it is to be put on the list of those with news for the application.
    fn joins_events(&mut self) -> bool {
        let joins = !self.events.is_empty()
            && !self.flags.any(Flags::EVENT_QUEUED | Flags::IN_ACCEPT_QUEUE)
            && self.is_owned();
        if joins {
            self.flags.set(Flags::EVENT_QUEUED);
        }
        joins
    }
}

impl Tcb<'_> {
    /// Whether anything might be sent now; the egress pass decides.
    pub(crate) fn wants_output(&self) -> bool {
        let c = &*self.c;
        if c.flags.any(Flags::OUTPUT) {
            return true;
        }
        c.state.transmits()
            && (self.b.board.lost_bytes() > self.b.board.retrans_bytes()
                || self.unsent() > 0
                || c.flags.has(Flags::FIN_QUEUED) && c.flight() <= self.b.tx.len() as u32)
    }

    /// Whether the egress pass need not ask again. It does ask for a model, which is told of silence.
    pub(super) fn has_said_all(&self) -> bool {
        !self.wants_output() && !self.c.has_model()
    }
}
