//! Fifth of SEGMENT ARRIVES: the ACK field. Each step in its order: the window, what was delivered, the round
//! trip, what it reveals as lost, and what the congestion window makes of it.

use super::Tcb;
use super::cc::{AckSample, Bbr, BbrAck};
use super::conn::{Flags, Rexmit, stamp};
use super::delivery::Delivery;
use super::options::Options;
use super::recovery::Phase;
use super::segment::{Control, Segment};
use super::seq::Seq;
use super::state::State;
use crate::events::Ready;

/// Of our timestamp clock.
const TIMESTAMP_TICK_US: u32 = 1_000;

impl Tcb<'_> {
    /// Processes the ACK field. False: the segment must be dropped.
    pub(crate) fn ack_arrives(&mut self, seg: &Segment<'_>, o: &Options) -> bool {
        let una = self.c.snd_una;
        if seg.ack.after(self.c.snd_nxt) {
            self.env.stats.bad_ack += 1;
            self.challenge_ack();
            return false;
        }
        if seg.ack.before(una) && seg.ack.before(una - self.c.max_window) {
            // RFC 5961 §5.2: too old to be anything but an injection.
            self.env.stats.bad_ack += 1;
            self.challenge_ack();
            return false;
        }
        self.c.last_recv_ms = self.now.as_millis() as u32;
        self.c.probes = 0;
        let window_changed = self.update_window(seg);
        let is_dup = seg.ack == una
            && seg.payload.is_empty()
            && !seg.has(Control::FIN)
            && !window_changed
            && self.c.flight() > 0;

        let fin_seq = una + self.b.tx.len() as u32;
        let awaits_fin = matches!(
            self.c.state,
            State::FinWait1 | State::Closing | State::LastAck
        );
        let limited = self.was_cwnd_limited();
        let round_start = self.round_starts(seg.ack);

        let mut d = self.deliver(seg.ack, o);
        d.is_dup = is_dup;
        if !self.c.flags.has(Flags::SACK) {
            self.count_duplicates(&mut d);
        }
        self.measure_rtt(&d, o);
        if d.cumulative > 0 {
            self.made_progress();
        }
        self.tail_probe_answered(seg.ack, &d, seg.ack == una && !window_changed);
        self.react_to_ece(seg, d.cumulative > 0);
        let lost = self.recover(&d, o);
        self.update_model(&d, lost);
        if d.cumulative > 0 && !matches!(self.b.phase, Phase::Recovery | Phase::Reduced) {
            // What was SACKed earlier has left the network earlier: the ACK that fills the hole in front of
            // it must not release a burst.
            self.grow_window(&d, d.bytes, limited, round_start);
        }
        if d.cumulative > 0 || d.bytes > 0 || window_changed {
            self.arm_rexmit(d.cumulative > 0);
        }
        if awaits_fin && seg.ack == fin_seq + 1 {
            self.our_fin_acknowledged();
        }
        true
    }

    /// The header-prediction path: an ACK that advances while nothing is lost or SACKed.
    pub(crate) fn in_order_ack(&mut self, ack: Seq) {
        let limited = self.was_cwnd_limited();
        let round_start = self.round_starts(ack);
        let d = self.deliver(ack, &Options::default());
        if let Some(rtt) = d.rtt_us {
            self.sample_rtt(rtt);
        }
        self.made_progress();
        self.tail_probe_answered(ack, &d, false);
        self.grow_window(&d, d.cumulative, limited, round_start);
        self.update_model(&d, 0);
        self.arm_rexmit(true);
    }

    /// RFC 9293 §3.10.7.4, as Linux's tcp_may_update_window.
    fn update_window(&mut self, seg: &Segment<'_>) -> bool {
        let window = self.scaled_window(seg);
        let newer = seg.ack.after(self.c.snd_una)
            || seg.seq.after(self.c.snd_wl1)
            || seg.seq == self.c.snd_wl1 && (window > self.c.snd_wnd || window == 0);
        if !newer || seg.ack.before(self.c.snd_una) {
            return false;
        }
        self.c.snd_wl1 = seg.seq;
        let changed = window != self.c.snd_wnd;
        self.c.snd_wnd = window;
        self.c.max_window = self.c.max_window.max(window);
        if changed && self.b.timers.rexmit_kind == Rexmit::Persist {
            self.b.timers.stop_rexmit();
            self.b.backoff = 0;
        }
        changed
    }

    /// Without SACK duplicate ACKs alone tell what has left the network, and what came along with an
    /// acknowledgement may have been held behind the hole for long.
    fn count_duplicates(&mut self, d: &mut Delivery) {
        d.original &= !d.retransmitted;
        let mss = u32::from(self.c.mss);
        // After a timeout only what is new tells by duplicates that it has left, as in Linux.
        let tells = self.b.phase != Phase::Loss || self.is_past_timeout();
        if d.is_dup && tells {
            self.b.dup_acks = self.b.dup_acks.saturating_add(1);
            d.bytes += mss;
        } else if d.cumulative > 0 {
            // Of the segments now acknowledged all but the hole had announced themselves.
            let segments = d.cumulative.div_ceil(mss);
            let dups = u32::from(self.b.dup_acks);
            d.bytes = d.bytes.min(segments.saturating_sub(dups).max(1) * mss);
            let left = dups.saturating_sub(segments - 1) as u8;
            self.b.dup_acks = if self.b.phase == Phase::Recovery {
                left
            } else {
                0
            };
        }
    }

    /// By what was sent once, or by the echo of our timestamp.
    fn measure_rtt(&mut self, d: &Delivery, o: &Options) {
        if let Some(rtt) = d.rtt_us {
            self.sample_rtt(rtt);
        } else if d.cumulative > 0
            && let Some(rtt) = self.c.echoed_rtt_us(o, self.now)
            && !self.is_ambiguous(rtt, d)
        {
            self.sample_rtt(rtt);
        }
    }

    /// An echo older than all that was sent again, in an ACK that may answer what was sent again. When the
    /// originals arrived and their ACKs were lost, the peer answers a retransmission and echoes the
    /// original: the time of all the timeouts between would count as a round trip. Linux takes it.
    fn is_ambiguous(&self, rtt_us: u32, d: &Delivery) -> bool {
        d.resent_at.is_some_and(|at| {
            let since_us = stamp(self.now).wrapping_sub(at);
            since_us >= self.c.rtt.min_us && rtt_us > since_us + TIMESTAMP_TICK_US
        })
    }

    /// A round trip measured ends the backoff, and nothing else does (RFC 6298 §5.7): an ACK of what was
    /// sent twice may be slower than the timeout.
    fn sample_rtt(&mut self, rtt_us: u32) {
        self.c.sample_rtt(rtt_us, self.now);
        self.b.backoff = 0;
    }

    /// SND.UNA advanced.
    fn made_progress(&mut self) {
        self.b.retries = 0;
        self.c.soft_error = None;
        self.b.stalled_since = (self.c.flight() > 0).then_some(self.now);
        self.progress = true;
        let waiting = Flags::WANTS_WRITE | Flags::FIN_QUEUED | Flags::BLACK_HOLE;
        if !self.c.flags.any(waiting) {
            return;
        }
        if self.c.flags.has(Flags::WANTS_WRITE) && self.has_send_room() {
            self.c.flags.clear(Flags::WANTS_WRITE);
            self.notify(Ready::WRITABLE);
        }
        if self.c.flags.has(Flags::FIN_QUEUED) && self.b.tx.len() == 0 {
            self.notify(Ready::FLUSHED);
        }
        if self.c.flags.has(Flags::BLACK_HOLE) {
            self.mtu_probe_acknowledged();
        }
    }

    /// The window limits the sender: it filled it, or in slow start used at least half.
    fn was_cwnd_limited(&self) -> bool {
        self.b.cwnd_limited
            || self.c.window.in_slow_start() && self.c.flight() >= self.c.window.cwnd / 2
    }

    fn round_starts(&mut self, ack: Seq) -> bool {
        if self.b.round_end.is_some_and(|end| !ack.after(end)) {
            return false;
        }
        self.b.round_end = Some(self.c.snd_nxt);
        self.b.cwnd_limited = false;
        true
    }

    /// The congestion control's turn: `bytes` have left the network, in order and not in a recovery.
    fn grow_window(&mut self, d: &Delivery, bytes: u32, cwnd_limited: bool, round_start: bool) {
        let sample = AckSample {
            now: self.now,
            bytes,
            mss: u32::from(self.c.mss),
            rtt_us: d.latest_rtt_us,
            srtt_us: self.c.rtt.srtt_us,
            cwnd_limited,
            round_start,
        };
        self.b
            .cc
            .on_ack(self.c.opts().congestion, &mut self.c.window, &sample);
    }

    /// BBR's turn: `lost` bytes are newly marked.
    fn update_model(&mut self, d: &Delivery, lost: u32) {
        if !self.c.has_model() {
            return;
        }
        let now = self.now;
        let rate = self.b.rate.take(stamp(now), self.c.rtt.min_us);
        if d.bytes == 0 && lost == 0 {
            return;
        }
        let ack = BbrAck {
            now,
            rate,
            rtt_us: d.latest_rtt_us,
            acked: d.bytes,
            lost,
            pipe: self.pipe(),
            delivered: self.b.rate.delivered(),
            mss: u32::from(self.c.mss),
            phase: self.b.phase,
        };
        let (w, srtt_us) = (&mut self.c.window, self.c.rtt.srtt_us);
        let fresh = || Box::new(Bbr::new(w.cwnd, srtt_us, now));
        let bbr = match &mut self.b.cc.bbr {
            Some(bbr) => bbr,
            none => none.insert(fresh()),
        };
        bbr.on_ack(w, &ack);
        if bbr.is_probing_rtt() {
            self.b.rate.starves(ack.pipe);
        }
    }

    /// The FIN is acknowledged: next state of FIN-WAIT-1, CLOSING and LAST-ACK.
    fn our_fin_acknowledged(&mut self) {
        self.notify(Ready::FLUSHED);
        match self.c.state {
            State::FinWait1 => {
                self.c.state = State::FinWait2;
                if !self.c.is_owned() {
                    self.b.timers.fin_wait = self.now + self.c.opts().fin_wait;
                }
            }
            State::Closing => {
                self.c.state = State::TimeWait;
                self.notify(Ready::CLOSED);
            }
            State::LastAck => {
                self.c.state = State::Closed;
                self.notify(Ready::CLOSED);
            }
            _ => {}
        }
    }
}
