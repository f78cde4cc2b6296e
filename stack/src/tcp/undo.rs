//! Whether a recovery or a timeout was needless, and what is given back then: Eifel detection (RFC 3522),
//! D-SACK (RFC 3708), F-RTO (RFC 5682); the response is that of RFC 4015.

use super::Tcb;
use super::cc::Window;
use super::conn::Flags;
use super::delivery::Delivery;
use super::options::Options;
use super::recovery::Phase;

/// Forward RTO-recovery (RFC 5682): whether it is still open if a timeout was spurious.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Frto {
    /// Decided, or not asked.
    #[default]
    Off,
    /// The first segment went again; what the next ACKs bring tells.
    Waiting,
    /// Something new goes next and nothing again (step 2.b): an ACK of the new alone says that the rest is
    /// lost, one of an original that it is not.
    Probing,
}

impl Tcb<'_> {
    /// Eifel detection (RFC 3522) by timestamps and full D-SACK coverage (RFC 3708): the originals
    /// had arrived, so the window is given back (RFC 4015). D-SACKs tell after the recovery, too.
    pub(super) fn undo_if_spurious(&mut self, d: &Delivery, o: &Options) -> bool {
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
    pub(super) fn undo_timeout(&mut self, d: &Delivery) -> bool {
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

    /// F-RTO's step 2.b: only what was never sent may go.
    pub(super) fn is_probing_timeout(&self) -> bool {
        self.b.phase == Phase::Loss && self.b.episode.frto == Frto::Probing
    }

    /// Something new has been sent since the episode began.
    pub(super) fn is_past_timeout(&self) -> bool {
        self.c.snd_nxt.after(self.b.episode.point)
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

    /// A tail loss probe is a retransmission that may be reported as a duplicate, too.
    pub(crate) fn probe_under_way(&self) -> i64 {
        let tail = &self.b.tail;
        let is_one = tail.end.is_some() && tail.is_retransmission;
        if is_one { self.c.mss.into() } else { 0 }
    }
}
