//! Which out-of-order ranges have arrived: a small sorted array of disjoint ranges.
//!
//! Bounded: a peer that sends one byte in each hole fills the array and then has such segments
//! dropped, as if lost. Also remembers the order of arrival for SACK blocks (RFC 2018 §4).

use super::seq::Seq;
use crate::limits::OOO_RANGES_MAX;

/// `[start, end)` in sequence space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: Seq,
    pub(crate) end: Seq,
}

/// Received ranges beyond RCV.NXT.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    /// Sorted, disjoint, not touching.
    ranges: Vec<Range>,
    /// Starts of recently changed ranges, newest first.
    recent: [Option<Seq>; 3],
}

impl Reassembly {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// End of the farthest byte received.
    pub(crate) fn highest(&self) -> Option<Seq> {
        self.ranges.last().map(|r| r.end)
    }

    /// Whether a new range between the existing ones could be recorded.
    pub(crate) fn has_room_for(&self, r: Range) -> bool {
        if self.ranges.len() < OOO_RANGES_MAX {
            return true;
        }
        let near = self.ranges.partition_point(|x| x.end.before(r.start));
        self.ranges
            .get(near)
            .is_some_and(|x| x.start.at_or_before(r.end))
    }

    /// Records a range; true if part of it had been received before (a duplicate to report by
    /// D-SACK).
    pub(crate) fn insert(&mut self, r: Range) -> bool {
        // First range that ends at or after our start, and the first that starts after our end.
        let lo = self.ranges.partition_point(|x| x.end.before(r.start));
        let hi = lo + self.ranges[lo..].partition_point(|x| x.start.at_or_before(r.end));
        let mut merged = r;
        let mut duplicate = false;
        for x in &self.ranges[lo..hi] {
            duplicate |= x.start.before(r.end) && r.start.before(x.end);
            merged.start = merged.start.earlier(x.start);
            merged.end = merged.end.later(x.end);
        }
        self.ranges.splice(lo..hi, [merged]);
        self.note_recent(merged.start);
        duplicate
    }

    /// Bytes that follow `rcv_nxt` without a hole, removed from the set: the new RCV.NXT.
    pub(crate) fn take_contiguous(&mut self, rcv_nxt: Seq) -> Seq {
        let mut next = rcv_nxt;
        let covered = self.ranges.partition_point(|x| {
            let joins = x.start.at_or_before(next);
            if joins {
                next = next.later(x.end);
            }
            joins
        });
        self.ranges.drain(..covered);
        next
    }

    /// Up to `max` SACK blocks, the most recently changed first.
    pub(crate) fn sack_blocks(&self, max: usize, out: &mut [Range; 4]) -> usize {
        let mut n = 0;
        let recent = self
            .recent
            .iter()
            .flatten()
            .filter_map(|s| self.containing(*s));
        for r in recent.chain(self.ranges.iter().copied()) {
            if n == max.min(out.len()) {
                break;
            }
            if !out[..n].contains(&r) {
                out[n] = r;
                n += 1;
            }
        }
        n
    }

    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.recent = [None; 3];
    }

    fn containing(&self, s: Seq) -> Option<Range> {
        let i = self.ranges.partition_point(|x| x.end.at_or_before(s));
        self.ranges
            .get(i)
            .copied()
            .filter(|x| x.start.at_or_before(s))
    }

    fn note_recent(&mut self, start: Seq) {
        let [a, b, _] = self.recent;
        if a != Some(start) {
            self.recent = if b == Some(start) {
                [Some(start), a, self.recent[2]]
            } else {
                [Some(start), a, b]
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Key, Rng};

    #[test]
    fn random_insertions_equal_a_bitmap() {
        for seed in 0..50u8 {
            let mut rng = Rng::new(Key([seed; 16]));
            let base = Seq(rng.next_u64() as u32); // wraps in many seeds
            let mut set = Reassembly::default();
            let mut map = [false; 400];
            let mut next = 0usize;
            for _ in 0..60 {
                let a = next + rng.below((399 - next) as u64 + 1) as usize;
                let b = (a + 1 + rng.below(30) as usize).min(400);
                let r = Range {
                    start: base + a as u32,
                    end: base + b as u32,
                };
                if a >= b || !set.has_room_for(r) {
                    continue;
                }
                let had = map[a..b].iter().any(|x| *x);
                assert_eq!(set.insert(r), had);
                map[a..b].fill(true);
                let to = set.take_contiguous(base + next as u32).since(base) as usize;
                let want = next + map[next..].iter().take_while(|x| **x).count();
                assert_eq!(to, want);
                next = to;
                let runs = map[next..].chunk_by(|x, y| x == y).filter(|c| c[0]).count();
                assert_eq!(set.ranges.len(), runs);
                if next >= 390 {
                    break;
                }
            }
        }
    }

    #[test]
    fn sack_blocks_come_newest_first_and_once() {
        let r = |a: u32, b: u32| Range {
            start: Seq(a),
            end: Seq(b),
        };
        let mut set = Reassembly::default();
        for x in [r(10, 20), r(30, 40), r(50, 60), r(70, 80), r(30, 45)] {
            set.insert(x);
        }
        let mut out = [r(0, 0); 4];
        assert_eq!(set.sack_blocks(4, &mut out), 4);
        assert_eq!(out, [r(30, 45), r(70, 80), r(50, 60), r(10, 20)]);
        assert_eq!(set.sack_blocks(2, &mut out), 2);
    }
}
