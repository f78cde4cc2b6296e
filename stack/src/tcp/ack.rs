//! Fifth of SEGMENT ARRIVES: the ACK field. What it delivers, what it reveals as lost, and what
//! the congestion window makes of it.

use super::Tcb;
use super::cc::{AckSample, Bbr, BbrAck, Window};
use super::conn::{Episode, Flags, Frto, Phase, Rexmit, stamp};
use super::options::Options;
use super::rack;
use super::reassembly::Range;
use super::scoreboard::{Sent, Stamp, elapsed, stamp_at_or_after};
use super::segment::{Control, Segment};
use super::seq::Seq;
use super::state::State;
use crate::events::Ready;

/// Of our timestamp clock.
const TIMESTAMP_TICK_US: u32 = 1_000;
/// RFC 5681 §3.2.
pub(crate) const DUP_ACK_THRESHOLD: u8 = 3;

/// What one ACK brought.
#[derive(Debug, Default)]
struct Delivery {
    /// Bytes newly known to have arrived, cumulatively or selectively.
    bytes: u32,
    /// Of them, cumulatively.
    cumulative: u32,
    rtt_us: Option<u32>,
    latest_rtt_us: Option<u32>,
    retransmitted: bool,
    /// Of what was retransmitted and is acknowledged, when the first was sent again (the last time).
    resent_at: Option<Stamp>,
    /// Something sent once, before the timeout that is being recovered from.
    original: bool,
    /// By SACK.
    sacked: bool,
    dsack: bool,
    /// A duplicate ACK.
    is_dup: bool,
}

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
            // Without SACK marks, what came along may have been held behind the hole for long.
            d.original &= !d.retransmitted;
            let mss = u32::from(self.c.mss);
            // After a timeout only what is new tells by duplicates that it has left, as in Linux.
            let tells = self.b.phase != Phase::Loss || self.is_past_timeout();
            if is_dup && tells {
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
        if let Some(rtt) = d.rtt_us {
            self.sample_rtt(rtt);
        } else if d.cumulative > 0
            && let Some(rtt) = self.c.echoed_rtt_us(o, self.now)
            && !self.is_ambiguous(rtt, &d)
        {
            self.sample_rtt(rtt);
        }
        if d.cumulative > 0 {
            self.made_progress();
        }
        self.tail_probe_answered(seg.ack, &d, seg.ack == una && !window_changed);
        self.react_to_ece(seg, d.cumulative > 0);
        let lost = self.recover(&d, o);
        self.update_model(&d, lost);
        if d.cumulative > 0 && !matches!(self.b.phase, Phase::Recovery | Phase::Reduced) {
            let sample = AckSample {
                now: self.now,
                // What was SACKed earlier has left the network earlier: the ACK that fills the hole
                // in front of it must not release a burst.
                bytes: d.bytes,
                mss: u32::from(self.c.mss),
                rtt_us: d.latest_rtt_us,
                srtt_us: self.c.rtt.srtt_us,
                cwnd_limited: limited,
                round_start,
            };
            self.b
                .cc
                .on_ack(self.c.opts().congestion, &mut self.c.window, &sample);
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
    pub(crate) fn in_order_ack(&mut self, ack: Seq, _ecr: Option<u32>) {
        let limited = self.was_cwnd_limited();
        let round_start = self.round_starts(ack);
        let d = self.deliver(ack, &Options::default());
        if let Some(rtt) = d.rtt_us {
            self.sample_rtt(rtt);
        }
        self.made_progress();
        self.tail_probe_answered(ack, &d, false);
        let sample = AckSample {
            now: self.now,
            bytes: d.cumulative,
            mss: u32::from(self.c.mss),
            rtt_us: d.latest_rtt_us,
            srtt_us: self.c.rtt.srtt_us,
            cwnd_limited: limited,
            round_start,
        };
        self.b
            .cc
            .on_ack(self.c.opts().congestion, &mut self.c.window, &sample);
        self.update_model(&d, 0);
        self.arm_rexmit(true);
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

    /// Takes acknowledged and SACKed ranges off the scoreboard.
    fn deliver(&mut self, ack: Seq, o: &Options) -> Delivery {
        let now = stamp(self.now);
        let mut d = Delivery::default();
        let min_rtt = self.c.rtt.min_us;
        let (in_loss, episode) = (self.b.phase == Phase::Loss, &self.b.episode);
        let (rack, rate) = (&mut self.b.rack, &mut self.b.rate);
        let mut newly = |s: &Sent, d: &mut Delivery| {
            rack.on_delivered(s, now, min_rtt);
            rate.on_delivered(s, s.bytes(), now);
            d.original |= in_loss && episode.began_with(s);
            if s.ever_retransmitted() {
                d.retransmitted = true;
                let is_first = |at: &Stamp| stamp_at_or_after(s.at, *at);
                d.resent_at = d.resent_at.filter(is_first).or(Some(s.at));
            } else {
                let rtt = elapsed(now, s.at);
                d.rtt_us.get_or_insert(rtt);
                d.latest_rtt_us = Some(rtt);
            }
        };
        if ack.after(self.c.snd_una) {
            d.cumulative = ack.since(self.c.snd_una);
            d.bytes += self.b.board.ack(ack, |s| newly(s, &mut d));
            if d.retransmitted {
                // Karn: what was held behind the hole arrived long before this ACK.
                d.rtt_us = None;
                d.latest_rtt_us = None;
            }
            let data = (d.cumulative as usize).min(self.b.tx.len());
            self.b.tx.advance(&mut self.env.pool, data);
            self.c.bytes_acked += data as u64;
            self.c.snd_una = ack;
            if self.b.urgent.snd_up.is_some_and(|up| up.at_or_before(ack)) {
                self.b.urgent.snd_up = None;
            }
        }
        if !self.c.flags.has(Flags::SACK) || o.sack.is_empty() {
            return d;
        }
        let una = self.c.snd_una;
        let mut blocks = o.sack.iter();
        let second = o.sack.iter().nth(1);
        if let Some(first) = o.sack.iter().next() {
            // RFC 2883 §4: below the cumulative ACK, or within the second block.
            let inside = second.is_some_and(|s| {
                s.start.at_or_before(first.start) && first.end.at_or_before(s.end)
            });
            if first.end.at_or_before(ack) || inside {
                d.dsack = true;
                blocks.next();
                self.env.stats.dsacks_in += 1;
                self.b.rack.on_dsack(una, self.c.snd_nxt);
                self.b.episode.undo_bytes -= i64::from(first.end.since(first.start));
            }
        }
        let episode = &self.b.episode;
        let (rack, rate) = (&mut self.b.rack, &mut self.b.rate);
        for b in blocks {
            let start = b.start.later(una);
            if !start.before(b.end) || b.end.after(self.c.snd_nxt) {
                continue;
            }
            let mut rtt = None;
            d.bytes += self.b.board.sack(Range { start, end: b.end }, |s| {
                rack.on_delivered(s, now, min_rtt);
                rate.on_delivered(s, s.bytes(), now);
                d.sacked = true;
                d.original |= in_loss && episode.began_with(s);
                if !s.ever_retransmitted() {
                    rtt = Some(elapsed(now, s.at));
                }
            });
            d.latest_rtt_us = d.latest_rtt_us.or(rtt);
            if d.cumulative == 0 {
                d.rtt_us = d.rtt_us.or(rtt);
            }
        }
        d
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

    /// Bytes in the network; without SACK each duplicate ACK stands for one segment that left.
    pub(crate) fn pipe(&self) -> u32 {
        let left = u32::from(self.b.dup_acks) * u32::from(self.c.mss);
        let left = if self.c.flags.has(Flags::SACK) {
            0
        } else {
            left
        };
        self.b.board.pipe().saturating_sub(left)
    }

    /// Loss detection and the phases of recovery; bytes newly lost.
    fn recover(&mut self, d: &Delivery, o: &Options) -> u32 {
        if self.undo_if_spurious(d, o) || self.undo_timeout(d) {
            return 0;
        }
        let mut newly_lost = 0;
        let mut is_lost_again = false;
        if self.c.flags.has(Flags::SACK) {
            let board = &self.b.board;
            if board.sacked_bytes() > 0
                || board.retrans_bytes() > 0
                || board.lost_bytes() > 0
                || d.retransmitted
            {
                let under_way = board.retrans_bytes();
                newly_lost = self.rack_detect();
                is_lost_again = self.b.board.retrans_bytes() < under_way;
            }
        } else if !self.is_recovering() && self.b.dup_acks >= DUP_ACK_THRESHOLD {
            newly_lost = self.b.board.mark_front_lost(u32::from(self.c.mss));
        }
        match self.b.phase {
            Phase::Open | Phase::Reduced => {
                if newly_lost > 0 && self.is_mtu_probe_lost() {
                    return newly_lost;
                }
                if newly_lost > 0 {
                    self.enter_recovery();
                    self.reduce_proportionally(d, newly_lost);
                } else if self.b.phase == Phase::Reduced
                    && self.c.snd_una.at_or_after(self.b.episode.point)
                {
                    self.b.phase = Phase::Open;
                }
            }
            Phase::Recovery if self.c.snd_una.at_or_after(self.b.episode.point) => {
                self.close_to_threshold();
                self.end_episode();
                self.b.rack.on_recovery_end();
                self.continue_recovery(d);
            }
            Phase::Recovery => {
                if !self.c.flags.has(Flags::SACK) && d.cumulative > 0 {
                    // RFC 6582 §3.2 step 3: a partial ACK names the next hole.
                    newly_lost = self.b.board.mark_front_lost(u32::from(self.c.mss));
                }
                if d.bytes > 0 {
                    self.reduce_proportionally(d, newly_lost);
                }
            }
            Phase::Loss => {
                if self.c.snd_una.at_or_after(self.b.episode.point) {
                    self.end_episode();
                    self.continue_recovery(d);
                } else if is_lost_again {
                    // A loss of what was sent after the timeout: congestion of its own.
                    self.enter_recovery();
                    self.reduce_proportionally(d, newly_lost);
                }
            }
        }
        newly_lost
    }

    /// A recovery is over, but what was sent during it is known to be lost, too (RFC 6675 §5): the next
    /// begins with the same ACK. To a model it is one and the same, as in Linux: a path that always loses
    /// a little would else cost it the window again each round.
    fn continue_recovery(&mut self, d: &Delivery) {
        if self.b.board.lost_bytes() > 0 {
            self.enter_recovery();
            self.reduce_proportionally(d, 0);
        }
    }

    /// The window a reduction ends at, unless a model has its own idea.
    fn close_to_threshold(&mut self) {
        if !self.c.has_model() {
            self.c.window.cwnd = self.c.window.ssthresh;
        }
    }

    /// RACK's step 5, also run by the reordering timer. Bytes newly lost.
    pub(crate) fn rack_detect(&mut self) -> u32 {
        let recovering = self.is_recovering();
        let rtt = self.c.rtt;
        let (lost, again) = self.b.rack.detect_loss(
            &mut self.b.board,
            stamp(self.now),
            recovering,
            rtt.srtt_us,
            rtt.min_us,
        );
        if let Some(us) = again {
            let at = self.now.plus_us(u64::from(us));
            if at < self.b.timers.rexmit {
                self.b.timers.arm_rexmit(Rexmit::Reorder, at);
            }
        } else if self.b.timers.rexmit_kind == Rexmit::Reorder {
            self.b.timers.stop_rexmit();
        }
        lost
    }

    /// RFC 5681 §3.2 step 2 with PRR (RFC 6937) in charge of the window.
    pub(crate) fn enter_recovery(&mut self) {
        self.env.stats.fast_recoveries += 1;
        let prior = self.c.window;
        self.b.episode = Episode {
            point: self.c.snd_nxt,
            prior: Some(prior),
            retrans_ts: self.b.episode.retrans_ts,
            undo_bytes: self.probe_under_way(),
            ..Episode::default()
        };
        if self.b.phase != Phase::Reduced {
            let mss = u32::from(self.c.mss);
            self.b
                .cc
                .on_congestion(self.c.opts().congestion, &mut self.c.window, mss);
        }
        self.b.phase = Phase::Recovery;
        self.b.tail = Default::default();
    }

    /// The reordering timer found what was waited for to be lost.
    pub(crate) fn reordering_is_loss(&mut self) {
        if self.rack_detect() == 0 || self.b.phase == Phase::Recovery || self.is_mtu_probe_lost() {
            return;
        }
        self.enter_recovery();
        let bytes = u32::from(self.c.mss);
        let delivered = Delivery {
            bytes,
            ..Delivery::default()
        };
        self.reduce_proportionally(&delivered, 0);
    }

    /// PRR with the slow-start reduction bound and its conservative guard (RFC 6937bis). As in Linux it
    /// reduces from the window, as limited transmit has the flight grow beyond it, and grants whole segments.
    fn reduce_proportionally(&mut self, d: &Delivery, newly_lost: u32) {
        if self.c.has_model() {
            return;
        }
        let mss = u32::from(self.c.mss);
        let pipe = self.pipe();
        let ssthresh = self.c.window.ssthresh;
        let e = &mut self.b.episode;
        let from = e.prior.map_or(ssthresh, |w| w.cwnd).max(1);
        e.prr_delivered = e.prr_delivered.saturating_add(d.bytes);
        let allowed = if pipe > ssthresh {
            let share = u64::from(e.prr_delivered) * u64::from(ssthresh);
            let share = share.div_ceil(u64::from(from));
            let grant = share.next_multiple_of(mss.into());
            grant.saturating_sub(e.prr_out.into()).min(ssthresh.into()) as u32
        } else {
            let mut grant = e.prr_delivered.saturating_sub(e.prr_out).max(d.bytes);
            if d.cumulative > 0 && newly_lost == 0 {
                grant += mss;
            }
            grant.min(ssthresh - pipe)
        };
        // The fast retransmission itself is never held back, nor is NewReno's next hole.
        let next_hole = newly_lost > 0 && !self.c.flags.has(Flags::SACK);
        let allowed = if e.prr_out == 0 || next_hole {
            allowed.max(mss)
        } else {
            allowed
        };
        self.c.window.cwnd = pipe + allowed;
    }

    /// A tail loss probe is a retransmission that may be reported as a duplicate, too.
    pub(crate) fn probe_under_way(&self) -> i64 {
        let tail = &self.b.tail;
        let is_one = tail.end.is_some() && tail.is_retransmission;
        if is_one { self.c.mss.into() } else { 0 }
    }

    /// What was retransmitted and is still under way counts in the next episode, too: its arrival would
    /// else look like that of an original (Linux keeps its retrans_stamp alike). D-SACKs may still come,
    /// and show that all of it was needless.
    fn end_episode(&mut self) {
        self.b.phase = Phase::Open;
        self.b.dup_acks = 0;
        let is_under_way = self.b.board.has_retransmitted();
        let e = &mut self.b.episode;
        *e = Episode {
            retrans_ts: e.retrans_ts.filter(|_| is_under_way),
            prior: e.prior.filter(|_| e.undo_bytes > 0),
            undo_bytes: e.undo_bytes,
            ..Episode::default()
        };
    }

    /// Eifel detection (RFC 3522) by timestamps and full D-SACK coverage (RFC 3708): the originals
    /// had arrived, so the window is given back (RFC 4015). D-SACKs tell after the recovery, too.
    fn undo_if_spurious(&mut self, d: &Delivery, o: &Options) -> bool {
        if !self.is_recovering() && !d.dsack {
            return false;
        }
        let e = &self.b.episode;
        let Some(prior) = e.prior else { return false };
        let is_echo_older = |first: u32| {
            let ts = o.timestamps.filter(|t| t.ecr != 0);
            ts.is_some_and(|t| (t.ecr.wrapping_sub(first) as i32) < 0)
        };
        let by_echo = self.is_recovering()
            && d.cumulative > 0
            && self.c.flags.has(Flags::TIMESTAMPS)
            && e.retrans_ts.is_some_and(is_echo_older);
        let by_dsack = d.dsack && e.undo_bytes <= 0;
        if !by_echo && !by_dsack {
            return false;
        }
        self.undo(Some(prior));
        true
    }

    /// F-RTO (RFC 5682 §3.1 and, as what was acknowledged without SACK counts alike, §2.1): whether a
    /// timeout was spurious shows in the next two ACKs that say anything.
    fn undo_timeout(&mut self, d: &Delivery) -> bool {
        if self.b.phase != Phase::Loss || self.b.episode.frto == Frto::Off {
            return false;
        }
        if d.original {
            // Step 3.b: what was not sent again has arrived.
            self.env.stats.spurious_timeouts += 1;
            self.undo(self.b.episode.prior);
            return true;
        }
        let point = self.b.episode.point;
        let may_send = self.unsent() > 0 && self.c.snd_limit().after(self.c.snd_nxt);
        let has_probed = self.is_past_timeout();
        let frto = &mut self.b.episode.frto;
        if has_probed {
            // Step 3.a: what is new arrived, and nothing of what was before it.
            let is_loss = d.sacked || d.is_dup;
            *frto = if is_loss { Frto::Off } else { Frto::Waiting };
        } else if d.cumulative > 0 && self.c.snd_una.before(point) {
            *frto = if may_send { Frto::Probing } else { Frto::Off };
        }
        false
    }

    /// Nothing was lost: the window is as it was, and the recovery over.
    fn undo(&mut self, prior: Option<Window>) {
        self.env.stats.spurious_undone += 1;
        let w = &mut self.c.window;
        if let Some(prior) = prior {
            w.cwnd = w.cwnd.max(prior.cwnd);
            w.ssthresh = w.ssthresh.max(prior.ssthresh);
            w.w_max = prior.w_max;
        }
        self.b.board.forget_losses();
        if let Some(bbr) = &mut self.b.cc.bbr {
            bbr.on_undo();
        }
        self.b.episode.prior = None;
        self.end_episode();
    }

    /// RFC 8985 §7.4.2: a probe that repaired a loss silently must not hide the congestion. Whether it
    /// did shows after the ACK of the probe: a duplicate says that the original had arrived, too.
    fn tail_probe_answered(&mut self, ack: Seq, d: &Delivery, is_dup: bool) {
        let Some(end) = self.b.tail.end else { return };
        let is_spurious = !self.b.tail.is_retransmission || d.dsack || is_dup && d.bytes == 0;
        if ack.before(end) || ack == end && !is_spurious {
            return;
        }
        self.b.tail = Default::default();
        if !is_spurious && self.b.phase == Phase::Open {
            let mss = u32::from(self.c.mss);
            self.b
                .cc
                .on_congestion(self.c.opts().congestion, &mut self.c.window, mss);
            self.close_to_threshold();
        }
    }

    /// RFC 3168 §6.1.2: once per window of data.
    fn react_to_ece(&mut self, seg: &Segment<'_>, advanced: bool) {
        if !seg.has(Control::ECE)
            || !self.c.flags.has(Flags::ECN)
            || !advanced
            || self.b.phase != Phase::Open
        {
            return;
        }
        let mss = u32::from(self.c.mss);
        self.b
            .cc
            .on_congestion(self.c.opts().congestion, &mut self.c.window, mss);
        self.close_to_threshold();
        self.b.phase = Phase::Reduced;
        self.b.episode = Episode {
            point: self.c.snd_nxt,
            ..Episode::default()
        };
        self.c.flags.set(Flags::ECN_CWR);
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
