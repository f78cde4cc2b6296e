//! Decides what a connection sends next: one segment per call, until there is nothing.

use super::conn::{Flags, Rexmit, stamp};
use super::mtu_search::Probing;
use super::options::{OptionBytes, Timestamps};
use super::reassembly::Range;
use super::recovery::Phase;
use super::segment::{Control, Plan};
use super::seq::Seq;
use super::state::State;
use super::undo::Frto;
use super::{Tcb, mss};
use crate::events::Ready;
use crate::limits::{CORK, SENT_SEGMENTS_MAX};
use crate::time::Instant;

/// ECN codepoints of the IP header (RFC 3168 §5).
const ECT0: u8 = 2;

/// Most lateness of its timer that pacing makes up for; the window bounds what leaves at once.
const PACING_CREDIT_US: u64 = 4_000;

impl Tcb<'_> {
    /// Plans the next segment due now; false if there is none. The scoreboard, timers and sequence
    /// variables then count it as sent.
    #[inline(always)]
    pub(crate) fn next_segment(&mut self, plan: &mut Plan) -> bool {
        if self.c.flags.any(Flags::SEND_RST | Flags::BLACK_HOLE) {
            if self.c.flags.has(Flags::SEND_RST) {
                self.reset(plan);
                return true;
            }
            match self.probe_mtu(plan) {
                Probing::Idle => {}
                Probing::Planned => return true,
                Probing::Waits => {
                    return self.probe(plan) || self.keepalive_probe(plan) || self.pure_ack(plan);
                }
            }
        }
        match self.c.state {
            State::Closed => return false,
            // The ACK of the peer's FIN, before the compact record takes over.
            State::TimeWait => return self.pure_ack(plan),
            State::SynSent | State::SynReceived => return self.syn(plan),
            _ => {}
        }
        let sent = self.c.state.transmits()
            && (self.retransmission(plan)
                || self.new_data(plan)
                || self.nothing_new(plan)
                || self.probe(plan));
        sent || self.keepalive_probe(plan) || self.pure_ack(plan)
    }

    /// Bytes queued beyond SND.NXT.
    pub(crate) fn unsent(&self) -> u32 {
        (self.b.tx.len() as u32).saturating_sub(self.c.flight())
    }

    /// Whether a FIN is queued and has not been sent.
    fn fin_unsent(&self) -> bool {
        self.c.flags.has(Flags::FIN_QUEUED) && self.c.flight() <= self.b.tx.len() as u32
    }

    /// Linux's sk_stream_is_writeable: a third of the buffer is free.
    pub(crate) fn has_send_room(&self) -> bool {
        let used = self.b.tx.len() as u32;
        used + used / 2 <= self.c.sndbuf() && !self.env.pool.under_pressure()
    }

    fn syn(&mut self, plan: &mut Plan) -> bool {
        if !self.c.flags.has(Flags::SEND_SYN) {
            return self.c.state == State::SynReceived && self.pure_ack(plan);
        }
        self.c.flags.clear(Flags::SEND_SYN | Flags::ACK_NOW);
        let iss = self.c.snd_una;
        let now = stamp(self.now);
        if self.b.board.is_empty() {
            let snapshot = self.b.rate.sent(now, true);
            self.b.board.push(iss, iss + 1, now, snapshot);
            self.c.snd_nxt = iss + 1;
            self.b.stalled_since = Some(self.now);
        } else {
            let snapshot = self.b.rate.sent(now, false);
            let end = iss + 1;
            self.b
                .board
                .retransmitted(Range { start: iss, end }, now, snapshot);
            self.c.total_retrans += 1;
            self.env.stats.segments_retransmitted += 1;
            let ts = self.c.ts_now(self.now);
            self.b.episode.retrans_ts.get_or_insert(ts);
        }
        let rto = self.c.rtt.backed_off_us(self.b.backoff);
        self.b.timers.arm_rexmit(Rexmit::Rto, self.now.plus_us(rto));
        let answers = self.c.state == State::SynReceived;
        // RFC 3168 §6.1.1: an ECN-setup SYN carries both bits. Not on a retransmission, in case a
        // middlebox drops it (§6.1.1.1).
        let ecn = !answers && self.c.flags.has(Flags::ECN) && self.b.backoff == 0;
        let ts = self.c.flags.has(Flags::TIMESTAMPS).then(|| Timestamps {
            val: self.c.ts_now(self.now),
            ecr: if answers { self.c.ts_recent } else { 0 },
        });
        let scale = self
            .c
            .flags
            .has(Flags::WINDOW_SCALE)
            .then_some(self.c.rcv_wscale);
        let mut our_mss = mss::of_mtu(self.c.local_ip, self.link().mtu);
        if let Some(max) = self.c.opts().max_seg {
            our_mss = our_mss.min(max);
        }
        self.c.rcv_wnd = self.c.rcvbuf.min(u32::from(u16::MAX));
        self.c.rcv_wup = self.c.rcv_nxt;
        *plan = Plan {
            seq: iss,
            ack: if answers { self.c.rcv_nxt } else { Seq(0) },
            control: Control::SYN
                .with_if(Control::ACK, answers)
                .with_if(Control::ECE, ecn)
                .with_if(Control::CWR, ecn),
            window: self.c.rcv_wnd as u16,
            options: OptionBytes::syn(our_mss, scale, self.c.flags.has(Flags::SACK), ts),
            ..Plan::new()
        };
        true
    }

    /// Lost ranges first, as pipe allows (RFC 6675 §5 (C)).
    fn retransmission(&mut self, plan: &mut Plan) -> bool {
        let Some(range) = self.b.board.next_lost(u32::from(self.c.mss)) else {
            return false;
        };
        let pipe = self.pipe();
        if pipe > 0 && pipe + range.end.since(range.start) > self.c.window.cwnd {
            return false;
        }
        if self.is_probing_timeout() || self.is_paced_out() {
            return false;
        }
        self.retransmit(range, plan);
        true
    }

    /// What F-RTO would send cannot go now: back to what is lost (RFC 5682 §2.1 step 2.b).
    fn nothing_new(&mut self, plan: &mut Plan) -> bool {
        if !self.is_probing_timeout() || self.is_past_timeout() {
            return false;
        }
        self.b.episode.frto = Frto::Off;
        self.retransmission(plan)
    }

    fn retransmit(&mut self, range: Range, plan: &mut Plan) {
        let len = range.end.since(range.start);
        let now = stamp(self.now);
        let snapshot = self.b.rate.sent(now, false);
        self.b.board.retransmitted(range, now, snapshot);
        self.mtu_probe_tells_nothing();
        self.pace(len);
        self.c.total_retrans = self.c.total_retrans.wrapping_add(1);
        self.env.stats.segments_retransmitted += 1;
        let ts = self.c.ts_now(self.now);
        let e = &mut self.b.episode;
        e.prr_out += len;
        e.undo_bytes += i64::from(len);
        e.retrans_ts.get_or_insert(ts);
        let kind = self.b.timers.rexmit_kind;
        // What the timeout waits for starts anew, with a backoff that may be over by now.
        let is_first = range.start == self.c.snd_una;
        if kind == Rexmit::Off || kind == Rexmit::Rto && is_first {
            self.arm_rexmit(true);
        }
        self.text(range, plan);
    }

    /// New data, as far as both windows, Nagle and silly-window avoidance allow; or the FIN.
    #[inline(always)]
    fn new_data(&mut self, plan: &mut Plan) -> bool {
        let unsent = self.unsent();
        let fin = self.fin_unsent();
        if unsent == 0 && !fin {
            if self.b.cc.bbr.is_some() && self.pipe() < self.c.window.cwnd {
                self.b.rate.starves(self.pipe());
            }
            return false;
        }
        if self.is_paced_out() {
            return false;
        }
        if self.b.board.len() >= SENT_SEGMENTS_MAX {
            return false;
        }
        if unsent == 0 {
            self.send_new(0, true, plan);
            return true;
        }
        self.restart_after_idle();
        let mss = u32::from(self.c.mss);
        let pipe = self.pipe();
        let cwnd = self.c.window.cwnd;
        if pipe > 0 && pipe + mss.min(unsent) > cwnd {
            self.b.cwnd_limited = true;
            return false;
        }
        let window = self.c.snd_limit().since(self.c.snd_nxt);
        let burst = if self.link().tso_bytes > 0 {
            self.link().tso_bytes.max(mss)
        } else {
            mss
        };
        let burst = burst.min(self.quantum().unwrap_or(burst));
        let mut len = unsent.min(window).min(burst);
        if len > mss {
            let cwnd_room = cwnd.saturating_sub(pipe).max(mss);
            len = len.min(cwnd_room);
            len -= len % mss;
        }
        if len < mss {
            if len < unsent {
                // The peer's window is the limit: wait for at least half of the largest it ever
                // offered (RFC 9293 §3.8.6.2.1), or probe.
                if len == 0 || len < self.c.max_window / 2 {
                    if self.b.board.is_empty() {
                        self.start_persist();
                    }
                    return false;
                }
            } else if self.held_back() {
                return false;
            }
        }
        let with_fin = fin && len == unsent;
        self.send_new(len, with_fin, plan);
        true
    }

    /// Nagle's rule as Minshall refined it, TCP_CORK and MSG_MORE, for a last segment below the
    /// MSS.
    fn held_back(&mut self) -> bool {
        if self.c.flags.has(Flags::FIN_QUEUED) || self.is_probing_timeout() {
            return false;
        }
        if self
            .b
            .urgent
            .snd_up
            .is_some_and(|up| up.after(self.c.snd_nxt))
        {
            return false;
        }
        if core::mem::take(&mut self.b.uncork_once) {
            return false;
        }
        if self.c.flags.any(Flags::CORK | Flags::MORE) {
            if self.b.timers.cork == Instant::FAR_FUTURE {
                self.b.timers.cork = self.now + CORK;
            }
            return true;
        }
        let small_in_flight = self
            .b
            .small_end
            .is_some_and(|end| end.after(self.c.snd_una) && end.at_or_before(self.c.snd_nxt));
        !self.c.flags.has(Flags::NODELAY) && self.c.flight() > 0 && small_in_flight
    }

    /// RFC 5681 §4.1: after an idle RTO the window says nothing about the path.
    pub(crate) fn restart_after_idle(&mut self) {
        let idle_ms = (self.now.as_millis() as u32).wrapping_sub(self.c.last_send_ms);
        if self.c.flight() > 0 || self.c.segs_out == 0 || self.c.has_model() {
            return;
        }
        let rto_us = self.c.rtt.rto_us();
        if u64::from(idle_ms) * 1_000 > rto_us {
            let initial = super::cc::Window::initial(u32::from(self.c.mss)).cwnd;
            let w = &mut self.c.window;
            w.ssthresh = w.ssthresh.max(w.cwnd - w.cwnd / 4);
            // Halved per RTO of silence, as Linux does, down to the initial window.
            let rounds = (u64::from(idle_ms) * 1_000 / rto_us).min(31) as u32;
            w.cwnd = w
                .cwnd
                .checked_shr(rounds)
                .unwrap_or(0)
                .max(initial.min(w.cwnd));
            self.b.cc.on_idle_restart();
        }
    }

    fn start_persist(&mut self) {
        if self.b.timers.rexmit_kind == Rexmit::Off {
            let at = self.now.plus_us(self.c.rtt.backed_off_us(self.b.backoff));
            self.b.timers.arm_rexmit(Rexmit::Persist, at);
        }
    }

    #[inline(always)]
    pub(crate) fn send_new(&mut self, len: u32, fin: bool, plan: &mut Plan) {
        let start = self.c.snd_nxt;
        let end = start + len + u32::from(fin);
        let was_empty = self.b.board.is_empty();
        let now = stamp(self.now);
        if was_empty
            && self.b.rate.is_starved()
            && let Some(bbr) = &mut self.b.cc.bbr
        {
            bbr.on_restart();
        }
        let snapshot = self.b.rate.sent(now, was_empty);
        self.b.board.push(start, end, now, snapshot);
        self.c.snd_nxt = end;
        if was_empty {
            self.b.stalled_since = Some(self.now);
            self.b.round_end.get_or_insert(start);
        }
        if len > 0 && len < u32::from(self.c.mss) {
            self.b.small_end = Some(end);
        }
        if len > 0 {
            // Data in answer to recent data: the exchange is interactive.
            let since = (self.now.as_millis() as u32).wrapping_sub(self.c.last_recv_ms);
            if since < 40 && self.c.bytes_received > 0 {
                self.c.flags.set(Flags::PINGPONG);
            }
            self.b.timers.cork = Instant::FAR_FUTURE;
            self.pace(len);
        }
        if self.is_recovering() {
            self.b.episode.prr_out += len;
        }
        self.c.last_send_ms = self.now.as_millis() as u32;
        self.arm_rexmit(was_empty);
        self.text(Range { start, end }, plan);
    }

    /// Bytes the model lets go at once.
    fn quantum(&self) -> Option<u32> {
        let mss = u32::from(self.c.mss);
        let model = self.b.cc.bbr.as_ref()?;
        Some(if self.link().tso_bytes > 0 {
            model.send_quantum(mss)
        } else {
            model.burst(mss)
        })
    }

    /// Whether data must wait for its time; then the timer is set for it. A model lets a burst go before
    /// it, so that a thread wakes once for the burst and not for each segment.
    pub(crate) fn is_paced_out(&mut self) -> bool {
        self.pace_timer_expires();
        if self.now >= self.b.pace_at {
            return false;
        }
        let model = self.b.cc.bbr.as_ref().zip(self.quantum());
        let early_us = model.map_or(0, |(bbr, quantum)| {
            u64::from(quantum) * 1_000_000 / bbr.pacing_rate()
        });
        let is_early = self.now.plus_us(early_us) <= self.b.pace_at;
        if is_early {
            self.b.timers.pace = self.b.pace_at;
        }
        is_early
    }

    /// Takes note of how late the timer came: it will again. What is forgotten of it is an eighth each time.
    pub(crate) fn pace_timer_expires(&mut self) {
        let b = &mut *self.b;
        if b.timers.pace > self.now {
            return;
        }
        let late_us = self.now.since(b.timers.pace).as_micros();
        let late_us = late_us.min(PACING_CREDIT_US.into()) as u16;
        b.pace_late_us = late_us.max(b.pace_late_us - b.pace_late_us / 8);
        b.timers.pace = Instant::FAR_FUTURE;
    }

    /// Puts the next segment off by the time `len` bytes take at the model's or the socket's rate.
    fn pace(&mut self, len: u32) {
        let model = self.b.cc.bbr.as_ref().map(|b| b.pacing_rate());
        let rate = match (self.c.opts().pacing_rate, model) {
            (Some(a), Some(b)) => a.min(b),
            (Some(rate), None) | (None, Some(rate)) => rate,
            (None, None) => return,
        };
        // A timer that comes late must not lower the rate of the model. What the window held back, though,
        // is not made up for: it would leave in a bunch, which a full queue drops.
        let credit_us = model.map_or(0, |_| self.b.pace_late_us.into());
        let earliest = Instant::from_micros(self.now.as_micros().saturating_sub(credit_us));
        let wait_us = u64::from(len) * 1_000_000 / rate.max(1);
        self.b.pace_at = earliest.max(self.b.pace_at).plus_us(wait_us);
    }

    /// Tail loss probe, then zero-window probe.
    fn probe(&mut self, plan: &mut Plan) -> bool {
        if self.c.flags.has(Flags::PROBE_TAIL) {
            self.c.flags.clear(Flags::PROBE_TAIL);
            if self.tail_probe(plan) {
                return true;
            }
        }
        if self.c.flags.has(Flags::PROBE_WINDOW) {
            self.c.flags.clear(Flags::PROBE_WINDOW);
            let window = self.c.snd_limit().since(self.c.snd_nxt);
            let len = self.unsent().min(window).min(u32::from(self.c.mss));
            self.env.stats.window_probes += 1;
            if len > 0 {
                // The window is silly but open: what fits is the best probe.
                self.send_new(len, false, plan);
            } else {
                self.empty(self.c.snd_una - 1, plan);
            }
            return true;
        }
        false
    }

    /// RFC 8985 §7.3: new data if the window allows, else the last segment again.
    fn tail_probe(&mut self, plan: &mut Plan) -> bool {
        let Some(&last) = self.b.board.back() else {
            return false;
        };
        self.env.stats.tail_probes += 1;
        let mss = u32::from(self.c.mss);
        let window = self.c.snd_limit().since(self.c.snd_nxt);
        let len = self.unsent().min(mss);
        let fresh = len > 0 && len <= window;
        if fresh {
            let fin = self.fin_unsent() && len == self.unsent();
            self.send_new(len, fin, plan);
        } else {
            let start = if last.end.since(last.start) > mss {
                last.end - mss
            } else {
                last.start
            };
            let end = last.end;
            self.retransmit(Range { start, end }, plan);
        }
        self.b.tail.end = Some(self.c.snd_nxt);
        self.b.tail.is_retransmission = !fresh;
        let rto = self.c.rtt.backed_off_us(self.b.backoff);
        self.b.timers.arm_rexmit(Rexmit::Rto, self.now.plus_us(rto));
        true
    }

    fn keepalive_probe(&mut self, plan: &mut Plan) -> bool {
        if !self.c.flags.has(Flags::PROBE_KEEPALIVE) {
            return false;
        }
        self.c.flags.clear(Flags::PROBE_KEEPALIVE);
        self.env.stats.keepalive_probes += 1;
        self.empty(self.c.snd_una - 1, plan);
        true
    }

    fn pure_ack(&mut self, plan: &mut Plan) -> bool {
        if !self.c.flags.has(Flags::ACK_NOW) {
            return false;
        }
        let owed = self.b.dup_acks_owed;
        self.empty(self.c.snd_nxt, plan);
        if owed > 0 {
            self.b.dup_acks_owed = owed - 1;
            self.c.flags.set(Flags::ACK_NOW);
        }
        self.env.stats.pure_acks_out += 1;
        true
    }

    fn reset(&mut self, plan: &mut Plan) {
        self.c.flags.clear(Flags::SEND_RST);
        let synchronized = self.c.state != State::SynSent;
        self.empty(self.c.snd_nxt, plan);
        plan.control = Control::RST.with_if(Control::ACK, synchronized);
        if !synchronized {
            plan.ack = Seq(0);
        }
        self.env.stats.resets_out += 1;
        self.c.state = State::Closed;
        self.notify(Ready::CLOSED | Ready::READABLE | Ready::WRITABLE);
        if self.c.error.is_some() {
            self.notify(Ready::ERROR);
        }
    }

    /// A segment carrying `range`, which may include our FIN.
    #[inline(always)]
    fn text(&mut self, range: Range, plan: &mut Plan) {
        let offset = range.start.since(self.c.snd_una) as usize;
        let queued = self.b.tx.len();
        let data_len = (range.end.since(range.start) as usize).min(queued.saturating_sub(offset));
        let fin = data_len < range.end.since(range.start) as usize;
        let last = offset + data_len == queued;
        self.empty(range.start, plan);
        // SACK blocks take room the MSS does not allow for: a full segment goes without, and a
        // pure ACK follows with them.
        let extra = plan.options.as_slice().len();
        if extra > 0 && data_len + extra > usize::from(self.c.mss) {
            plan.options.clear();
            self.c.flags.set(Flags::ACK_NOW);
        }
        plan.data_offset = offset;
        plan.data_len = data_len;
        plan.control = plan
            .control
            .with_if(Control::FIN, fin)
            .with_if(Control::PSH, last && data_len > 0);
        if let Some(up) = self.b.urgent.snd_up
            && up.after(range.start)
        {
            plan.control = plan.control.with(Control::URG);
            plan.urgent = up.since(range.start).min(u32::from(u16::MAX)) as u16;
        }
        if self.c.flags.has(Flags::ECN) && data_len > 0 {
            let is_new = range.end == self.c.snd_nxt && self.b.phase != Phase::Loss;
            // RFC 3168 §6.1.5: retransmissions are not ECN-capable.
            if is_new {
                plan.ecn = ECT0;
                if self.c.flags.has(Flags::ECN_CWR) {
                    self.c.flags.clear(Flags::ECN_CWR);
                    plan.control = plan.control.with(Control::CWR);
                }
            }
        }
    }

    /// A segment without payload; every segment of a synchronized connection starts here, so this
    /// is where an ACK is accounted as sent.
    #[inline(always)]
    fn empty(&mut self, seq: Seq, plan: &mut Plan) {
        let window = self.select_window();
        let unacked = self.c.rcv_nxt != self.c.rcv_wup;
        if unacked && self.c.quick_acks > 0 {
            self.c.quick_acks -= 1;
        }
        self.c.rcv_wup = self.c.rcv_nxt;
        self.c.rcv_wnd = window;
        self.c.flags.clear(Flags::ACK_NOW);
        self.b.timers.delayed_ack = Instant::FAR_FUTURE;
        self.b.holds_ack = false;
        self.c.segs_out = self.c.segs_out.wrapping_add(1);
        plan.seq = seq;
        plan.ack = self.c.rcv_nxt;
        plan.control = Control::ACK.with_if(Control::ECE, self.c.flags.has(Flags::ECN_ECHO));
        plan.window = (window >> self.c.rcv_wscale).min(u32::from(u16::MAX)) as u16;
        plan.urgent = 0;
        plan.timestamps = self.c.flags.has(Flags::TIMESTAMPS).then(|| Timestamps {
            val: self.c.ts_now(self.now),
            ecr: self.c.ts_recent,
        });
        plan.options.clear();
        plan.data_offset = 0;
        plan.data_len = 0;
        plan.ecn = 0;
        if self.c.flags.has(Flags::SACK) && (!self.b.reasm.is_empty() || self.b.dsack.is_some()) {
            self.add_sack(plan);
        }
    }

    /// D-SACK first (RFC 2883 §4), then the ranges held, newest first (RFC 2018 §4).
    #[cold]
    fn add_sack(&mut self, plan: &mut Plan) {
        let mut blocks = [Range {
            start: Seq(0),
            end: Seq(0),
        }; 4];
        let mut n = 0;
        if let Some(dsack) = self.b.dsack.take() {
            blocks[0] = dsack;
            n = 1;
        }
        let mut held = [blocks[0]; 4];
        let room = OptionBytes::sack_room(plan.timestamps.is_some()) - n;
        let m = self.b.reasm.sack_blocks(room, &mut held);
        blocks[n..n + m].copy_from_slice(&held[..m]);
        plan.options.add_sack(&blocks[..n + m]);
    }
}
