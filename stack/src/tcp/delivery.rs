//! What an ACK delivers: cumulatively, by SACK (RFC 2018), and as a duplicate (RFC 2883).

use super::Tcb;
use super::conn::{Flags, stamp};
use super::options::Options;
use super::reassembly::Range;
use super::recovery::Phase;
use super::scoreboard::{Sent, Stamp, elapsed, stamp_at_or_after};
use super::seq::Seq;

/// What one ACK brought.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// Bytes newly known to have arrived, cumulatively or selectively.
    pub(super) bytes: u32,
    /// Of them, cumulatively.
    pub(super) cumulative: u32,
    pub(super) rtt_us: Option<u32>,
    pub(super) latest_rtt_us: Option<u32>,
    pub(super) retransmitted: bool,
    /// Of what was retransmitted and is acknowledged, when the first was sent again (the last time).
    pub(super) resent_at: Option<Stamp>,
    /// Something sent once, before the timeout that is being recovered from.
    pub(super) original: bool,
    /// By SACK.
    pub(super) sacked: bool,
    pub(super) dsack: bool,
    /// A duplicate ACK.
    pub(super) is_dup: bool,
}

impl Tcb<'_> {
    /// Takes acknowledged and SACKed ranges off the scoreboard.
    pub(super) fn deliver(&mut self, ack: Seq, o: &Options) -> Delivery {
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
                // Without SACK it may have been held, too, and says nothing of the timeout (as in Linux).
                d.original &= self.c.flags.has(Flags::SACK);
            }
            let data = (d.cumulative as usize).min(self.b.tx.len());
            self.b.tx.advance(&mut self.env.pool, data);
            self.c.bytes_acked += data as u64;
            self.c.snd_una = ack;
            if self.b.urgent.snd_up.is_some_and(|up| up.at_or_before(ack)) {
                self.b.urgent.snd_up = None;
            }
        }
        if self.c.flags.has(Flags::SACK) && !o.sack.is_empty() {
            self.deliver_sacked(ack, o, &mut d);
        }
        d
    }

    /// The SACK blocks (RFC 2018), the first of which may report a duplicate (RFC 2883).
    fn deliver_sacked(&mut self, ack: Seq, o: &Options, d: &mut Delivery) {
        let now = stamp(self.now);
        let min_rtt = self.c.rtt.min_us;
        let in_loss = self.b.phase == Phase::Loss;
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
    }
}
