//! RACK loss detection and the tail loss probe (RFC 8985).

use super::scoreboard::{Scoreboard, Sent, Stamp, elapsed, stamp_at_or_after};
use super::seq::Seq;

/// RFC 8985 §6.2: recoveries a widened reordering window persists.
const REO_WND_PERSIST: u8 = 16;
/// RFC 8985 §7.2: allowance for the peer's delayed ACK when one segment is in flight; Linux uses
/// its minimum RTO.
const TLP_DELAYED_ACK_US: u64 = 200_000;
/// What Linux adds to 2·SRTT when more is in flight.
const TLP_SLACK_US: u64 = 2_000;

/// By how many quarters of the minimum RTT D-SACKs have widened the reordering window, at most 15, and
/// for how many more recoveries: in one byte, because it outlives the flight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Widening(u8);

impl Widening {
    fn new(steps: u8, recoveries: u8) -> Self {
        if steps == 0 || recoveries == 0 {
            return Self::default();
        }
        Self(steps.min(15) << 4 | (recoveries - 1).min(15))
    }

    fn steps(self) -> u8 {
        self.0 >> 4
    }

    fn grow(&mut self) {
        *self = Self::new(self.steps() + 1, REO_WND_PERSIST);
    }

    fn age(&mut self) {
        *self = Self::new(self.steps(), self.0 & 15);
    }
}

/// RACK's view of a connection with data in flight.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rack {
    valid: bool,
    /// Send time and end of the most recently sent segment that has been delivered.
    xmit: Stamp,
    end: Seq,
    rtt_us: u32,
    /// Farthest delivered sequence.
    fack: Option<Seq>,
    pub(crate) reordering_seen: bool,
    pub(crate) widening: Widening,
    dsack_round: Option<Seq>,
}

impl Rack {
    /// Steps 1 to 3 of §6.2 for one newly delivered segment.
    pub(crate) fn on_delivered(&mut self, s: &Sent, now: Stamp, min_rtt_us: u32) {
        match self.fack {
            Some(fack) if s.end.before(fack) => {
                if !s.ever_retransmitted() {
                    self.reordering_seen = true;
                }
            }
            _ => self.fack = Some(s.end),
        }
        let rtt = elapsed(now, s.at);
        if s.ever_retransmitted() && rtt < min_rtt_us {
            // The ACK answers the original: too early for the retransmission.
            return;
        }
        if !self.valid || sent_after(s.at, s.end, self.xmit, self.end) {
            self.valid = true;
            self.xmit = s.at;
            self.end = s.end;
            self.rtt_us = rtt;
        }
    }

    /// A D-SACK says a retransmission was needless: widen the window, once per round (§6.2 step 4).
    pub(crate) fn on_dsack(&mut self, una: Seq, nxt: Seq) {
        if self.dsack_round.is_some_and(|r| una.before(r)) {
            return;
        }
        self.dsack_round = Some(nxt);
        self.widening.grow();
    }

    /// Recovery ended without a D-SACK.
    pub(crate) fn on_recovery_end(&mut self) {
        self.widening.age();
    }

    fn reo_wnd_us(
        &self,
        board: &Scoreboard,
        recovering: bool,
        srtt_us: u32,
        min_rtt_us: u32,
    ) -> u32 {
        if !self.reordering_seen && (recovering || board.sacked_entries() >= 3) {
            return 0;
        }
        let quarters = u32::from(self.widening.steps()) + 1;
        (min_rtt_us / 4).saturating_mul(quarters).min(srtt_us)
    }

    /// Whether an ACK of `s` would have come by now, reordering apart. `srtt_us` tells before the first ACK.
    pub(crate) fn is_overdue(&self, s: &Sent, now: Stamp, srtt_us: u32) -> bool {
        let rtt_us = if self.valid { self.rtt_us } else { srtt_us };
        stamp_at_or_after(now, s.at.wrapping_add(rtt_us))
    }

    /// Step 5: marks lost what was sent long enough before something delivered. Returns the bytes
    /// marked and, if some segments may yet be lost, the microseconds after which to look again.
    pub(crate) fn detect_loss(
        &self,
        board: &mut Scoreboard,
        now: Stamp,
        recovering: bool,
        srtt_us: u32,
        min_rtt_us: u32,
    ) -> (u32, Option<u32>) {
        if !self.valid {
            return (0, None);
        }
        let allowance = self.rtt_us + self.reo_wnd_us(board, recovering, srtt_us, min_rtt_us);
        let mut again: Option<u32> = None;
        let marked = board.mark_lost(|s| {
            if !sent_after(self.xmit, self.end, s.at, s.end) {
                return false;
            }
            let deadline = s.at.wrapping_add(allowance);
            if stamp_at_or_after(now, deadline) {
                return true;
            }
            let left = deadline.wrapping_sub(now);
            again = Some(again.map_or(left, |a| a.max(left)));
            false
        });
        (marked, again)
    }
}

/// §6.1: ties between segments sent at one instant are broken by sequence.
const fn sent_after(t1: Stamp, end1: Seq, t2: Stamp, end2: Seq) -> bool {
    if t1 == t2 {
        end1.after(end2)
    } else {
        stamp_at_or_after(t1, t2)
    }
}

/// Probe timeout (§7.2) in microseconds: two round trips, plus the peer's delayed ACK if it may wait
/// for more.
pub(crate) fn probe_timeout_us(srtt_us: u32, single_segment: bool, rto_us: u64) -> u64 {
    if srtt_us == 0 {
        return rto_us;
    }
    let slack = if single_segment {
        TLP_DELAYED_ACK_US
    } else {
        TLP_SLACK_US
    };
    (u64::from(srtt_us) * 2 + slack).min(rto_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_widening_grows_to_fifteen_steps_and_lasts_sixteen_recoveries() {
        let mut w = Widening::default();
        for steps in 1..=40 {
            w.grow();
            assert_eq!(w.steps(), steps.min(15));
        }
        for _ in 1..REO_WND_PERSIST {
            w.age();
            assert_eq!(w.steps(), 15);
        }
        w.age();
        assert_eq!(w, Widening::default());
        w.age();
        assert_eq!(w, Widening::default());
    }
}
