//! Packetization layer path MTU discovery (RFC 4821, RFC 8899) as Linux does it with net.ipv4.tcp_mtu_probing
//! at 1: off until full-sized segments vanish without a word from anybody. Then the segment size falls, and a
//! binary search by probes of ordinary data brings it back to what the path carries.
//!
//! ```text
//!   MSS_MIN ◂─halves─ mss ──▸ probe ◂── high ── ceiling
//!                    (gets through)    (does not, or was not tried)
//! ```

use super::conn::{Flags, stamp};
use super::reassembly::Range;
use super::recovery::{DUP_ACK_THRESHOLD, Episode, Phase};
use super::segment::Plan;
use super::{Tcb, mss};
use crate::limits::{
    BLACK_HOLE_MSS, BLACK_HOLE_TIME, MSS_MIN, MTU_PROBE_CWND_SEGMENTS, MTU_PROBE_INTERVAL,
    MTU_PROBE_THRESHOLD, SENT_SEGMENTS_MAX,
};
use crate::time::Instant;

/// The search of a connection with `Flags::BLACK_HOLE`. Sizes are of payload, options deducted; the largest
/// known to get through is the connection's MSS.
#[derive(Debug)]
pub(crate) struct MtuSearch {
    /// Nothing larger is tried.
    high: u16,
    began: Instant,
    /// Under way.
    probe: Option<Range>,
}

/// What a search wants of the data that would go next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probing {
    /// Nothing.
    Idle,
    /// To wait, until there is room for a probe.
    Waits,
    /// It is planned as a probe.
    Planned,
}

impl Tcb<'_> {
    /// Several timeouts of a full-sized segment look like a path that drops large packets without saying so
    /// (RFC 2923 §2.1): goes on with a size that nearly every path carries, and with half of that after each
    /// timeout more (RFC 4821 §7.7, Linux's tcp_mtu_probing).
    pub(crate) fn suspect_black_hole(&mut self) {
        let mss = self.c.mss;
        let front = self.b.board.front();
        let is_full = front.is_some_and(|f| f.bytes() >= u32::from(mss));
        let since_us = stamp(self.now).wrapping_sub(self.b.timed_out_at);
        if !is_full || u128::from(since_us) < BLACK_HOLE_TIME.as_micros() {
            return;
        }
        self.env.stats.black_holes += 1;
        let less = if self.b.mtu_search.is_some() {
            (mss / 2).max(MSS_MIN)
        } else {
            self.c.flags.set(Flags::BLACK_HOLE);
            self.b.mtu_search = Some(Box::new(MtuSearch {
                high: mss,
                began: self.now,
                probe: None,
            }));
            mss
        };
        self.c.mss = mss.min(less).min(BLACK_HOLE_MSS);
    }

    /// Linux's tcp_mtu_probe: half way between what gets through and what may not, in calm weather only, and
    /// with so much behind it that its loss shows in duplicate ACKs.
    #[cold]
    pub(crate) fn probe_mtu(&mut self, plan: &mut Plan) -> Probing {
        let (c, b) = (&*self.c, &*self.b);
        let Some(search) = b.mtu_search.as_deref() else {
            return Probing::Idle;
        };
        let is_calm = c.state.transmits()
            && b.phase == Phase::Open
            && b.board.lost_bytes() == 0
            && b.board.sacked_bytes() == 0
            && b.dup_acks == 0;
        // SACK blocks of ours would not leave a probe the room it is to fill.
        let reports = !b.reasm.is_empty() || b.dsack.is_some();
        let mss = u32::from(c.mss);
        if search.probe.is_some() || !is_calm || reports || b.board.len() >= SENT_SEGMENTS_MAX {
            return Probing::Idle;
        }
        let ceiling = mss::ceiling(c, self.link().mtu);
        let interval = search.high.min(ceiling).saturating_sub(c.mss);
        if interval < MTU_PROBE_THRESHOLD {
            self.search_again(ceiling);
            return Probing::Idle;
        }
        let size = mss + u32::from(interval) / 2;
        let needed = size + (u32::from(DUP_ACK_THRESHOLD) + 1) * mss;
        if self.unsent() < needed || c.snd_wnd < needed {
            return Probing::Idle;
        }
        self.restart_after_idle();
        let cwnd = self.c.window.cwnd;
        if cwnd < needed.max(MTU_PROBE_CWND_SEGMENTS * mss) {
            return Probing::Idle;
        }
        let start = self.c.snd_nxt;
        if self.c.snd_limit().since(start) < needed || self.is_paced_out() {
            return Probing::Waits;
        }
        if self.pipe() + size > cwnd {
            self.b.cwnd_limited = true;
            return Probing::Waits;
        }
        let probe = Range {
            start,
            end: start + size,
        };
        self.send_new(size, false, plan);
        if let Some(search) = &mut self.b.mtu_search {
            search.probe = Some(probe);
        }
        Probing::Planned
    }

    /// The path may have widened: the search begins anew once its result is old (RFC 4821 §7.8). An MTU that a
    /// router told is as old by then.
    fn search_again(&mut self, ceiling: u16) {
        let now = self.now;
        if let Some(search) = &mut self.b.mtu_search
            && now.since(search.began) >= MTU_PROBE_INTERVAL
        {
            search.high = ceiling;
            search.began = now;
        }
    }

    /// Whether the segment at `plan` is a probe, which no device may cut.
    pub(crate) fn is_mtu_probe(&self, plan: &Plan) -> bool {
        let probe = self.b.mtu_search.as_deref().and_then(|s| s.probe);
        probe.is_some_and(|p| p.start == plan.seq)
    }

    /// SND.UNA advanced. Beyond a probe, its size becomes the segment size. The window counts bytes, and stays.
    #[cold]
    pub(crate) fn mtu_probe_acknowledged(&mut self) {
        let ceiling = mss::ceiling(self.c, self.link().mtu);
        let Some(search) = &mut self.b.mtu_search else {
            return;
        };
        let una = self.c.snd_una;
        let Some(probe) = search.probe.take_if(|p| p.end.at_or_before(una)) else {
            return;
        };
        let size = probe.end.since(probe.start) as u16;
        self.c.mss = size.min(ceiling).max(self.c.mss);
        self.env.stats.mtu_probes_acknowledged += 1;
        self.remember_window();
    }

    /// Whether a loss is that of the probe at SND.UNA, which says nothing about congestion: its data goes
    /// again in segments that get through, and the window stays.
    pub(crate) fn is_mtu_probe_lost(&mut self) -> bool {
        let una = self.c.snd_una;
        let probe = self.b.mtu_search.as_deref().and_then(|s| s.probe);
        match probe.filter(|p| p.start == una && self.b.phase == Phase::Open) {
            Some(probe) => self.mtu_probe_lost(probe),
            None => return false,
        }
        true
    }

    #[cold]
    fn mtu_probe_lost(&mut self, probe: Range) {
        if let Some(search) = &mut self.b.mtu_search {
            let smaller = (probe.end.since(probe.start) - 1) as u16;
            search.high = search.high.min(smaller);
            search.probe = None;
        }
        self.env.stats.mtu_probes_lost += 1;
        self.b
            .board
            .mark_lost(|s| s.start.at_or_after(probe.start) && s.start.before(probe.end));
        self.remember_window();
        self.b.episode = Episode {
            point: self.c.snd_nxt,
            retrans_ts: self.b.episode.retrans_ts,
            ..Episode::default()
        };
        self.b.phase = Phase::Loss;
        self.b.tail = Default::default();
    }

    /// Something is sent again while a probe is under way: an ACK would not say what of it arrived.
    pub(crate) fn mtu_probe_tells_nothing(&mut self) {
        if let Some(search) = &mut self.b.mtu_search {
            search.probe = None;
        }
    }

    /// A router said that no more than `max` gets through; a probe that is larger has not.
    pub(crate) fn limit_mtu_search(&mut self, max: u16) {
        let Some(search) = &mut self.b.mtu_search else {
            return;
        };
        search.high = search.high.min(max);
        let too_large = |p: &Range| p.end.since(p.start) > max.into();
        // In a recovery it is sent again with the rest.
        if let Some(probe) = search.probe.filter(too_large)
            && self.b.phase == Phase::Open
        {
            self.mtu_probe_lost(probe);
        }
    }

    /// Linux's tcp_current_ssthresh: slow start resumes below three quarters of the window, should it shrink
    /// while idle.
    fn remember_window(&mut self) {
        let w = &mut self.c.window;
        if !matches!(self.b.phase, Phase::Recovery | Phase::Reduced) {
            w.ssthresh = w.ssthresh.max(w.cwnd - w.cwnd / 4);
        }
    }
}
