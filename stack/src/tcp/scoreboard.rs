//! What is in flight: one entry per transmitted range, in sequence order, with its send time and
//! fate. Feeds SACK recovery (RFC 6675), RACK (RFC 8985), RTT samples (Karn) and pipe.
//!
//! ```text
//!  SND.UNA                         SND.NXT
//!   │ sent │ SACKED │ LOST │ LOST+RETRANS │
//! ```

use std::collections::VecDeque;

use super::cc::Snapshot;
use super::reassembly::Range;
use super::seq::Seq;

const SACKED: u8 = 1;
/// Deemed lost; not in the network unless RETRANS is set too.
const LOST: u8 = 2;
/// A retransmission is in the network.
const RETRANS: u8 = 4;
/// Retransmitted at least once: ambiguous for RTT samples.
const EVER_RETRANS: u8 = 8;

/// Send times are 32-bit microseconds: they wrap after 71 minutes, compare within 35.
pub(crate) type Stamp = u32;

/// Whether `a` is at or after `b` on the 32-bit clock.
pub(crate) const fn stamp_at_or_after(a: Stamp, b: Stamp) -> bool {
    (a.wrapping_sub(b) as i32) >= 0
}

/// Microseconds from `at` to `now`: none if a caller's clock has gone back, as that of a thread does which
/// read it before it waited for a lock.
pub(crate) const fn elapsed(now: Stamp, at: Stamp) -> u32 {
    match stamp_at_or_after(now, at) {
        true => now.wrapping_sub(at),
        false => 0,
    }
}

/// A transmitted range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) start: Seq,
    pub(crate) end: Seq,
    /// Time of the last (re)transmission.
    pub(crate) at: Stamp,
    pub(crate) snapshot: Snapshot,
    flags: u8,
}

impl Sent {
    pub(crate) fn bytes(&self) -> u32 {
        self.end.since(self.start)
    }

    fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn ever_retransmitted(&self) -> bool {
        self.is(EVER_RETRANS)
    }

    pub(crate) fn is_sacked(&self) -> bool {
        self.is(SACKED)
    }
}

/// The flight. All counts are bytes.
#[derive(Debug, Default)]
pub(crate) struct Scoreboard {
    sent: VecDeque<Sent>,
    total: u32,
    sacked: u32,
    lost: u32,
    retrans: u32,
    /// Entries before this index need no retransmission.
    lost_hint: usize,
    /// Entries with SACKED set.
    sacked_entries: u32,
}

impl Scoreboard {
    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.sent.len()
    }

    pub(crate) fn sacked_bytes(&self) -> u32 {
        self.sacked
    }

    pub(crate) fn sacked_entries(&self) -> u32 {
        self.sacked_entries
    }

    pub(crate) fn lost_bytes(&self) -> u32 {
        self.lost
    }

    pub(crate) fn retrans_bytes(&self) -> u32 {
        self.retrans
    }

    /// Bytes believed to be in the network (RFC 6675 §4, pipe).
    pub(crate) fn pipe(&self) -> u32 {
        self.total - self.sacked - self.lost + self.retrans
    }

    pub(crate) fn front(&self) -> Option<&Sent> {
        self.sent.front()
    }

    pub(crate) fn back(&self) -> Option<&Sent> {
        self.sent.back()
    }

    /// Records the first transmission of `[start, end)`, which must follow the last.
    pub(crate) fn push(&mut self, start: Seq, end: Seq, at: Stamp, snapshot: Snapshot) {
        debug_assert!(self.sent.back().is_none_or(|s| s.end == start));
        self.total += end.since(start);
        self.sent.push_back(Sent {
            start,
            end,
            at,
            snapshot,
            flags: 0,
        });
    }

    /// Records the first transmission of `bytes` more, when and as the last range was sent.
    pub(crate) fn push_alike(&mut self, bytes: u32) {
        if let Some(&Sent {
            end, at, snapshot, ..
        }) = self.sent.back()
        {
            self.push(end, end + bytes, at, snapshot);
        }
    }

    /// Removes what `una` acknowledges, calling `newly` with each entry (or part of one) that was
    /// not SACKed before. Returns the bytes so delivered.
    pub(crate) fn ack(&mut self, una: Seq, mut newly: impl FnMut(&Sent)) -> u32 {
        let mut delivered = 0;
        while let Some(front) = self.sent.front().copied() {
            if !front.start.before(una) {
                break;
            }
            let whole = front.end.at_or_before(una);
            let acked = if whole {
                front
            } else {
                Sent { end: una, ..front }
            };
            self.uncount(&acked);
            if !front.is(SACKED) {
                delivered += acked.bytes();
                newly(&acked);
            }
            if whole {
                self.sent.pop_front();
                self.lost_hint = self.lost_hint.saturating_sub(1);
                if front.is(SACKED) {
                    self.sacked_entries -= 1;
                }
            } else {
                self.sent[0].start = una;
            }
        }
        delivered
    }

    /// Marks what lies wholly within a SACK block, splitting entries at its edges so that blocks
    /// inside a large TSO segment count. Returns the bytes newly SACKed.
    pub(crate) fn sack(&mut self, block: Range, mut newly: impl FnMut(&Sent)) -> u32 {
        let mut delivered = 0;
        let mut i = self
            .sent
            .partition_point(|s| s.end.at_or_before(block.start));
        while let Some(&s) = self.sent.get(i) {
            if !s.start.before(block.end) {
                break;
            }
            if s.is(SACKED) {
                i += 1;
                continue;
            }
            if s.start.before(block.start) {
                self.split(i, block.start);
                i += 1;
                continue;
            }
            if s.end.after(block.end) {
                self.split(i, block.end);
            }
            let s = self.sent[i];
            newly(&s);
            delivered += s.bytes();
            self.uncount(&s);
            let e = &mut self.sent[i];
            e.flags = e.flags & EVER_RETRANS | SACKED;
            self.total += s.bytes();
            self.sacked += s.bytes();
            self.sacked_entries += 1;
            i += 1;
        }
        delivered
    }

    /// Visits each entry still expected to arrive and marks LOST those for which `lost` is true.
    /// A retransmission deemed lost again becomes eligible again. Returns the bytes marked.
    pub(crate) fn mark_lost(&mut self, mut lost: impl FnMut(&Sent) -> bool) -> u32 {
        let mut marked = 0;
        for i in 0..self.sent.len() {
            let s = self.sent[i];
            if s.is(SACKED) || s.is(LOST) && !s.is(RETRANS) || !lost(&s) {
                continue;
            }
            let bytes = s.bytes();
            if s.is(RETRANS) {
                self.retrans -= bytes;
            }
            if !s.is(LOST) {
                self.lost += bytes;
            }
            let e = &mut self.sent[i];
            e.flags = e.flags & !RETRANS | LOST;
            self.lost_hint = self.lost_hint.min(i);
            marked += bytes;
        }
        marked
    }

    /// RTO: the first entry is lost, and those not SACKed that are `overdue`. If the peer reneged on the
    /// first entry, SACK marks are forgotten (RFC 2018 §8), and everything is lost.
    pub(crate) fn time_out(&mut self, overdue: impl Fn(&Sent) -> bool) {
        let Some(&first) = self.sent.front() else {
            return;
        };
        let reneged = first.is_sacked();
        if reneged {
            self.forget_sacks();
        }
        self.mark_lost(|s| reneged || s.start == first.start || overdue(s));
    }

    /// Marks the first unSACKed entry lost, at most `mss` bytes of it (NewReno without SACK).
    pub(crate) fn mark_front_lost(&mut self, mss: u32) -> u32 {
        if let Some(f) = self.sent.front().copied()
            && f.bytes() > mss
        {
            self.split(0, f.start + mss);
        }
        let Some(first) = self.sent.front().map(|f| f.start) else {
            return 0;
        };
        self.mark_lost(|s| s.start == first)
    }

    pub(crate) fn forget_sacks(&mut self) {
        for s in &mut self.sent {
            s.flags &= !SACKED;
        }
        self.sacked = 0;
        self.sacked_entries = 0;
        self.lost_hint = 0;
    }

    /// Whether some range not acknowledged was retransmitted and has not been SACKed.
    pub(crate) fn has_retransmitted(&self) -> bool {
        let under_way = |s: &Sent| s.is(EVER_RETRANS) && !s.is(SACKED);
        self.sent.iter().any(under_way)
    }

    /// Undo: nothing is lost after all.
    pub(crate) fn forget_losses(&mut self) {
        for s in &mut self.sent {
            s.flags &= !LOST;
        }
        self.lost = 0;
        // A retransmission still in the network counts with its original as one.
        for s in &mut self.sent {
            s.flags &= !RETRANS;
        }
        self.retrans = 0;
        self.lost_hint = 0;
    }

    /// The next range to retransmit: the first LOST one without a retransmission in the network,
    /// cut to `max` bytes.
    pub(crate) fn next_lost(&mut self, max: u32) -> Option<Range> {
        if self.lost == self.retrans {
            return None;
        }
        while let Some(s) = self.sent.get(self.lost_hint) {
            if s.is(LOST) && !s.is(RETRANS) {
                let end = if s.bytes() > max {
                    s.start + max
                } else {
                    s.end
                };
                return Some(Range {
                    start: s.start,
                    end,
                });
            }
            self.lost_hint += 1;
        }
        None
    }

    /// Records the retransmission of a range given by [`Self::next_lost`] or of the flight's tail.
    pub(crate) fn retransmitted(&mut self, r: Range, at: Stamp, snapshot: Snapshot) {
        let mut i = self.sent.partition_point(|s| s.end.at_or_before(r.start));
        if self.sent.get(i).is_some_and(|s| s.start.before(r.start)) {
            self.split(i, r.start);
            i += 1;
        }
        if self.sent.get(i).is_some_and(|s| s.end.after(r.end)) {
            self.split(i, r.end);
        }
        while let Some(s) = self.sent.get_mut(i) {
            if !s.start.before(r.end) {
                break;
            }
            s.at = at;
            s.snapshot = snapshot;
            s.flags |= EVER_RETRANS;
            // Only a LOST original has left the network: a probe of the tail adds no second copy
            // to the count.
            if s.is(LOST) && !s.is(RETRANS) {
                s.flags |= RETRANS;
                self.retrans += s.bytes();
            }
            i += 1;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.sent.clear();
        *self = Self {
            sent: core::mem::take(&mut self.sent),
            ..Self::default()
        };
    }

    fn uncount(&mut self, s: &Sent) {
        let bytes = s.bytes();
        self.total -= bytes;
        for (flag, count) in [
            (SACKED, &mut self.sacked),
            (LOST, &mut self.lost),
            (RETRANS, &mut self.retrans),
        ] {
            if s.is(flag) {
                *count -= bytes;
            }
        }
    }

    fn split(&mut self, i: usize, at: Seq) {
        let s = self.sent[i];
        debug_assert!(at.after(s.start) && at.before(s.end));
        self.sent[i].end = at;
        self.sent.insert(i + 1, Sent { start: at, ..s });
        if s.is(SACKED) {
            self.sacked_entries += 1;
        }
        if self.lost_hint > i {
            self.lost_hint += 1;
        }
    }

    /// Counts agree with the entries, which are contiguous.
    pub(crate) fn check_invariants(&self) {
        let sum = |f: fn(&Sent) -> bool| {
            self.sent
                .iter()
                .filter(|s| f(s))
                .map(Sent::bytes)
                .sum::<u32>()
        };
        assert_eq!(self.total, sum(|_| true));
        assert_eq!(self.sacked, sum(|s| s.is(SACKED)));
        assert_eq!(self.lost, sum(|s| s.is(LOST)));
        assert_eq!(self.retrans, sum(|s| s.is(RETRANS)));
        assert_eq!(
            self.sacked_entries as usize,
            self.sent.iter().filter(|s| s.is(SACKED)).count()
        );
        assert!(
            self.sent
                .iter()
                .all(|s| !(s.is(SACKED) && s.is(LOST)) && s.start.before(s.end))
        );
        assert!(
            self.sent
                .iter()
                .zip(self.sent.iter().skip(1))
                .all(|(a, b)| a.end == b.start)
        );
        let needy = self.sent.iter().position(|s| s.is(LOST) && !s.is(RETRANS));
        assert!(needy.is_none_or(|i| self.lost_hint <= i));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Key, Rng};

    #[test]
    fn random_operations_keep_the_counts() {
        for seed in 0..60u8 {
            let mut rng = Rng::new(Key([seed; 16]));
            let mut una = Seq(rng.next_u64() as u32);
            let mut nxt = una;
            let mut board = Scoreboard::default();
            for now in 0..800 {
                let span = u64::from(nxt.since(una));
                match rng.below(7) {
                    0 | 1 => {
                        let end = nxt + 1 + rng.below(4_000) as u32;
                        board.push(nxt, end, now, Snapshot::default());
                        nxt = end;
                    }
                    2 => {
                        una += rng.below(span + 1) as u32;
                        board.ack(una, |_| {});
                    }
                    3 => {
                        let start = una + rng.below(span + 1) as u32;
                        let block = Range {
                            start,
                            end: (start + rng.below(6_000) as u32).earlier(nxt),
                        };
                        if block.start.before(block.end) {
                            let before = board.sacked_bytes();
                            let newly = board.sack(block, |_| {});
                            assert_eq!(board.sacked_bytes(), before + newly);
                            assert_eq!(board.sack(block, |_| {}), 0, "a block counts once");
                        }
                    }
                    4 => {
                        board.mark_lost(|_| rng.below(3) == 0);
                    }
                    5 => {
                        if let Some(r) = board.next_lost(1_000) {
                            assert!(r.end.since(r.start) <= 1_000);
                            board.retransmitted(r, now, Snapshot::default());
                        }
                    }
                    _ => match rng.below(12) {
                        0 => board.time_out(|s| s.at % 3 > 0),
                        1 => board.forget_losses(),
                        2 => drop(board.mark_front_lost(700)),
                        _ => {}
                    },
                }
                board.check_invariants();
                assert_eq!(board.front().map_or(nxt, |s| s.start), una);
            }
        }
    }

    #[test]
    fn lost_ranges_come_in_order_and_once() {
        let mut board = Scoreboard::default();
        for i in 0..6 {
            board.push(Seq(i * 100), Seq(i * 100 + 100), i, Snapshot::default());
        }
        board.sack(
            Range {
                start: Seq(300),
                end: Seq(400),
            },
            |_| {},
        );
        board.mark_lost(|s| s.start.before(Seq(300)));
        assert_eq!(board.pipe(), 200);
        let mut got = Vec::new();
        while let Some(r) = board.next_lost(100) {
            board.retransmitted(r, 9, Snapshot::default());
            got.push(r.start.0);
        }
        assert_eq!(got, [0, 100, 200]);
        assert_eq!(board.pipe(), 500);
    }
}
