//! Loss recovery: detection by RACK or duplicate ACKs, the phases of a recovery, and the window meanwhile,
//! by proportional rate reduction.
//!
//! RFCs to read first: 5681 §3.2, 6582 and 6675 (fast recovery), 6937 (PRR), 8985 (RACK, tail loss probe),
//! 3168 §6.1.2 (ECN).

use super::Tcb;
use super::cc::Window;
use super::conn::{Flags, Rexmit, stamp};
use super::delivery::Delivery;
use super::options::Options;
use super::scoreboard::Sent;
use super::segment::{Control, Segment};
use super::seq::Seq;
use super::undo::Frto;

/// RFC 5681 §3.2.
pub(crate) const DUP_ACK_THRESHOLD: u8 = 3;

/// Congestion and recovery phase (Linux's names: Open, CWR, Recovery, Loss).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    #[default]
    Open,
    /// Window cut after ECN; nothing lost.
    Reduced,
    /// Fast recovery.
    Recovery,
    /// After a timeout.
    Loss,
}

/// Proportional rate reduction and undo state of one recovery episode.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Episode {
    /// SND.NXT when the episode began; its end is an ACK at or beyond.
    pub(crate) point: Seq,
    pub(crate) prr_delivered: u32,
    pub(crate) prr_out: u32,
    /// The window before the reduction: what PRR reduces from and undo goes back to.
    pub(crate) prior: Option<Window>,
    /// Retransmitted bytes not yet reported as duplicates (D-SACK undo).
    pub(crate) undo_bytes: i64,
    /// Our timestamp at the first retransmission (Eifel detection, RFC 3522).
    pub(crate) retrans_ts: Option<u32>,
    /// After a timeout.
    pub(crate) frto: Frto,
}

impl Episode {
    /// Whether `s` was on its way when the episode began, and has not been sent again.
    pub(crate) fn began_with(&self, s: &Sent) -> bool {
        !s.ever_retransmitted() && s.end.at_or_before(self.point)
    }
}

/// One tail loss probe episode (RFC 8985 §7.4).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TailProbe {
    /// SND.NXT when the probe went out.
    pub(crate) end: Option<Seq>,
    /// The probe repeated old data.
    pub(crate) is_retransmission: bool,
}

impl Tcb<'_> {
    /// Whether recovery or a timeout is in progress.
    pub(crate) fn is_recovering(&self) -> bool {
        matches!(self.b.phase, Phase::Recovery | Phase::Loss)
    }

    /// Loss detection and the phases of recovery; bytes newly lost.
    pub(super) fn recover(&mut self, d: &Delivery, o: &Options) -> u32 {
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
            self.congestion_event();
        }
        self.b.phase = Phase::Recovery;
        self.b.tail = Default::default();
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

    /// What was retransmitted and is still under way counts in the next episode, too: its arrival would
    /// else look like that of an original (Linux keeps its retrans_stamp alike). D-SACKs may still come,
    /// and show that all of it was needless.
    pub(super) fn end_episode(&mut self) {
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

    /// The congestion control lowers its threshold (RFC 5681 §3.1 (4)); the window is the caller's to close.
    pub(super) fn congestion_event(&mut self) {
        let mss = u32::from(self.c.mss);
        self.b
            .cc
            .on_congestion(self.c.opts().congestion, &mut self.c.window, mss);
    }

    /// The window a reduction ends at, unless a model has its own idea.
    fn close_to_threshold(&mut self) {
        if !self.c.has_model() {
            self.c.window.cwnd = self.c.window.ssthresh;
        }
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

    /// RFC 3168 §6.1.2: once per window of data.
    pub(super) fn react_to_ece(&mut self, seg: &Segment<'_>, advanced: bool) {
        if !seg.has(Control::ECE)
            || !self.c.flags.has(Flags::ECN)
            || !advanced
            || self.b.phase != Phase::Open
        {
            return;
        }
        self.congestion_event();
        self.close_to_threshold();
        self.b.phase = Phase::Reduced;
        self.b.episode = Episode {
            point: self.c.snd_nxt,
            ..Episode::default()
        };
        self.c.flags.set(Flags::ECN_CWR);
    }

    /// RFC 8985 §7.4.2: a probe that repaired a loss silently must not hide the congestion. Whether it
    /// did shows after the ACK of the probe: a duplicate says that the original had arrived, too.
    pub(super) fn tail_probe_answered(&mut self, ack: Seq, d: &Delivery, is_dup: bool) {
        let Some(end) = self.b.tail.end else { return };
        let is_spurious = !self.b.tail.is_retransmission || d.dsack || is_dup && d.bytes == 0;
        if ack.before(end) || ack == end && !is_spurious {
            return;
        }
        self.b.tail = Default::default();
        if !is_spurious && self.b.phase == Phase::Open {
            self.congestion_event();
            self.close_to_threshold();
        }
    }

    /// Bytes in the network; without SACK each duplicate ACK stands for one segment that left.
    pub(crate) fn pipe(&self) -> u32 {
        let sent = self.b.board.pipe();
        if self.c.flags.has(Flags::SACK) {
            return sent;
        }
        sent.saturating_sub(u32::from(self.b.dup_acks) * u32::from(self.c.mss))
    }
}
