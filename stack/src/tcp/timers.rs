//! A connection's deadlines: what the retransmission timer waits for, and what happens when one passes.

use super::Tcb;
use super::conn::{Flags, Rexmit, stamp};
use super::rack;
use super::recovery::{Episode, Phase};
use super::state::State;
use super::undo::Frto;
use crate::error::Cause;
use crate::limits;
use crate::time::Instant;

impl Tcb<'_> {
    /// Runs every deadline at or before `now`.
    pub(crate) fn timers_expire(&mut self) {
        let now = self.now;
        if self.b.timers.rexmit <= now {
            self.rexmit_expires();
        }
        if self.b.timers.delayed_ack <= now {
            self.b.timers.delayed_ack = Instant::FAR_FUTURE;
            if self.b.holds_ack {
                self.c.flags.set(Flags::ACK_NOW);
            } else if self.c.rcv_nxt != self.c.rcv_wup {
                self.env.stats.delayed_acks += 1;
                self.c.flags.set(Flags::ACK_NOW);
                // The guess that a reply would carry the ACK was wrong.
                self.c.flags.clear(Flags::PINGPONG);
            }
        }
        if self.b.timers.cork <= now {
            self.b.timers.cork = Instant::FAR_FUTURE;
            self.c.flags.clear(Flags::MORE);
            self.b.uncork_once = true;
        }
        self.pace_timer_expires();
        if self.b.timers.fin_wait <= now {
            self.b.timers.fin_wait = Instant::FAR_FUTURE;
            if self.c.state == State::FinWait2 {
                self.c.state = State::Closed;
            }
        }
        self.keepalive_expires();
    }

    fn rexmit_expires(&mut self) {
        let kind = self.b.timers.rexmit_kind;
        self.b.timers.stop_rexmit();
        match kind {
            Rexmit::Off => {}
            Rexmit::Rto => self.rto_expires(),
            Rexmit::Persist => self.persist_expires(),
            Rexmit::Reorder => {
                self.reordering_is_loss();
                if self.b.timers.rexmit_kind == Rexmit::Off {
                    self.arm_rexmit(true);
                }
            }
            Rexmit::Tlp => {
                if !self.b.board.is_empty() {
                    self.c.flags.set(Flags::PROBE_TAIL);
                }
            }
        }
    }

    /// (Re)arms the retransmission timer for what is in flight: probe, timeout or nothing.
    pub(crate) fn arm_rexmit(&mut self, restart: bool) {
        if self.b.board.is_empty() {
            if self.b.timers.rexmit_kind != Rexmit::Persist {
                self.b.timers.stop_rexmit();
            }
            return;
        }
        if self.b.timers.rexmit_kind == Rexmit::Reorder {
            return;
        }
        let rto = self.c.rtt.backed_off_us(self.b.backoff);
        let probe = matches!(self.b.phase, Phase::Open | Phase::Reduced)
            && self.c.flags.has(Flags::SACK)
            && self.c.state.is_synchronized()
            && self.b.board.sacked_bytes() == 0
            && self.b.tail.end.is_none()
            && self.c.rtt.srtt_us != 0;
        if probe {
            let single = self.c.flight() <= u32::from(self.c.mss);
            let pto = rack::probe_timeout_us(self.c.rtt.srtt_us, single, rto);
            if pto < rto {
                self.b.timers.arm_rexmit(Rexmit::Tlp, self.now.plus_us(pto));
                return;
            }
        }
        let running = self.b.timers.rexmit_kind == Rexmit::Rto;
        if restart || !running {
            self.b.timers.arm_rexmit(Rexmit::Rto, self.now.plus_us(rto));
        }
    }

    /// RFC 6298 §5.4 to §5.7.
    fn rto_expires(&mut self) {
        if self.b.board.is_empty() {
            return;
        }
        if self.retries_exhausted() {
            self.env.stats.timeouts_fatal += 1;
            self.die(self.c.soft_error.unwrap_or(Cause::TimedOut));
            return;
        }
        self.env.stats.timeouts += 1;
        let is_first = self.b.retries == 0;
        if is_first {
            self.b.timed_out_at = stamp(self.now);
        }
        self.b.retries = self.b.retries.saturating_add(1);
        self.b.backoff = self.b.backoff.saturating_add(1);
        if !self.c.state.is_synchronized() {
            self.c.flags.set(Flags::SEND_SYN);
            self.b.board.time_out(|_| true);
            return;
        }
        self.suspect_black_hole();
        let mss = u32::from(self.c.mss);
        // A recovery and an answer to ECE have reduced already, and so has a timeout that nothing got
        // through after. One after progress is a congestion event of its own, as in Linux.
        let is_event = match self.b.phase {
            Phase::Open => true,
            Phase::Loss => is_first,
            Phase::Recovery | Phase::Reduced => false,
        };
        if is_event {
            let prior = self.c.window;
            self.congestion_event();
            self.b.episode = Episode {
                prior: Some(prior),
                retrans_ts: self.b.episode.retrans_ts,
                undo_bytes: self.probe_under_way(),
                ..Episode::default()
            };
        }
        // RFC 5682 §2.1 step 1: not within a recovery, where old ACKs say nothing about this timeout, unless
        // it is another of the same segment (§3.2).
        let is_clear = matches!(self.b.phase, Phase::Open | Phase::Reduced) || !is_first;
        self.b.episode.frto = if is_clear { Frto::Waiting } else { Frto::Off };
        let congestion = self.c.opts().congestion;
        self.b.cc.on_timeout(congestion, &mut self.c.window);
        self.b.episode.point = self.c.snd_nxt;
        self.b.phase = Phase::Loss;
        self.b.dup_acks = 0;
        self.b.tail = Default::default();
        self.timeout_marks_lost();
        self.c.window.cwnd = self.pipe() + mss;
        self.b.timers.arm_rexmit(
            Rexmit::Rto,
            self.now.plus_us(self.c.rtt.backed_off_us(self.b.backoff)),
        );
    }

    /// RFC 8985 §6.3: all is lost but what was sent too recently to have been acknowledged. Without SACK
    /// nothing would ever tell that it was lost, too.
    fn timeout_marks_lost(&mut self) {
        let sacks = self.c.flags.has(Flags::SACK);
        let (rack, srtt_us, now) = (self.b.rack, self.c.rtt.srtt_us, stamp(self.now));
        self.b
            .board
            .time_out(|s| !sacks || rack.is_overdue(s, now, srtt_us));
    }

    /// RFC 9293 §3.8.3's R2, with Linux's counts, or the user timeout.
    fn retries_exhausted(&self) -> bool {
        if let (Some(limit), Some(since)) = (self.c.opts().user_timeout, self.b.stalled_since)
            && self.c.state.is_synchronized()
        {
            return self.now.since(since) >= limit;
        }
        let max = match self.c.state {
            State::SynSent => self.c.opts().syn_retries,
            State::SynReceived => limits::SYNACK_RETRIES,
            _ if !self.c.is_owned() => limits::ORPHAN_RETRIES,
            _ => limits::RETRIES2,
        };
        self.b.retries >= max
    }

    /// RFC 9293 §3.8.6.1: the probe's interval backs off like the RTO.
    fn persist_expires(&mut self) {
        let unsent = self.unsent();
        if unsent == 0 || !self.b.board.is_empty() {
            self.arm_rexmit(true);
            return;
        }
        let max = if self.c.is_owned() {
            limits::RETRIES2
        } else {
            limits::ORPHAN_RETRIES
        };
        let stalled = self.b.stalled_since.get_or_insert(self.now);
        let too_long = self
            .c
            .opts()
            .user_timeout
            .is_some_and(|limit| self.now.since(*stalled) >= limit);
        if self.c.probes >= max || too_long && self.c.probes > 0 {
            self.env.stats.timeouts_fatal += 1;
            self.die(Cause::TimedOut);
            return;
        }
        self.c.probes += 1;
        self.b.backoff = self.b.backoff.saturating_add(1);
        self.c.flags.set(Flags::PROBE_WINDOW);
        let at = self.now.plus_us(self.c.rtt.backed_off_us(self.b.backoff));
        self.b.timers.arm_rexmit(Rexmit::Persist, at);
    }

    /// When the keepalive timer of this connection is due; `FAR_FUTURE` if it has none.
    pub(crate) fn keepalive_at(&self) -> Instant {
        if !self.c.flags.has(Flags::KEEPALIVE)
            || !self.c.state.is_synchronized()
            || self.c.flight() > 0
        {
            return Instant::FAR_FUTURE;
        }
        let opts = self.c.opts();
        let quiet_limit = opts.keep_idle + opts.keep_interval * u32::from(self.c.probes);
        // `last_recv_ms` is the truth; the wheel only wakes us to look.
        let left = quiet_limit.saturating_sub(self.c.quiet(self.now));
        self.now + left
    }

    /// RFC 9293 §3.8.4.
    fn keepalive_expires(&mut self) {
        if self.keepalive_at() > self.now {
            return;
        }
        let opts = self.c.opts();
        let too_long = opts
            .user_timeout
            .is_some_and(|t| self.c.quiet(self.now) >= t);
        if self.c.probes >= opts.keep_count || too_long && self.c.probes > 0 {
            self.env.stats.timeouts_fatal += 1;
            self.c.flags.set(Flags::SEND_RST);
            self.c.error = Some(self.c.soft_error.unwrap_or(Cause::TimedOut));
            return;
        }
        self.c.probes += 1;
        self.c.flags.set(Flags::PROBE_KEEPALIVE);
    }
}
