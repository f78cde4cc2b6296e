//! Hierarchical timer wheel (Varghese, Lauck 1987): arm, cancel and expire in O(1).
//!
//! Four levels of 256 slots; a tick is 64 µs, so the levels span 16 ms, 4.2 s, 18 min and 76 h.
//! One timer per index: the owner keeps its many deadlines and arms the earliest. Timers never
//! fire early; they fire at most one tick late. Knows nothing of TCP.

use crate::time::Instant;

/// log2 of a tick in microseconds.
const TICK_SHIFT: u32 = 6;
const LEVELS: usize = 4;
const SLOT_BITS: u32 = 8;
const SLOTS: usize = 1 << SLOT_BITS;
const NIL: u32 = u32::MAX;
/// Farthest deadline the wheel represents; later ones are clamped and re-armed by their owner.
const SPAN_TICKS: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;

#[derive(Debug, Clone, Copy)]
struct Node {
    prev: u32,
    next: u32,
    /// Low 32 bits of the expiry tick; the wheel's span makes them unambiguous.
    tick: u32,
    /// `level * SLOTS + slot`, or `UNARMED`.
    slot: u16,
}

const UNARMED: u16 = u16::MAX;
const EMPTY: Node = Node {
    prev: NIL,
    next: NIL,
    tick: 0,
    slot: UNARMED,
};

/// Timers addressed by small dense indices.
#[derive(Debug)]
pub(crate) struct TimerWheel {
    nodes: Vec<Node>,
    heads: Box<[u32]>,
    occupied: [[u64; SLOTS / 64]; LEVELS],
    /// The next tick to be expired.
    now: u64,
    armed: usize,
}

impl TimerWheel {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            nodes: Vec::new(),
            heads: vec![NIL; LEVELS * SLOTS].into_boxed_slice(),
            occupied: [[0; SLOTS / 64]; LEVELS],
            now: now.as_micros() >> TICK_SHIFT,
            armed: 0,
        }
    }

    /// Arms `index` for `at`, replacing what was armed.
    pub(crate) fn arm(&mut self, index: u32, at: Instant) {
        self.cancel(index);
        if self.nodes.len() <= index as usize {
            self.nodes.resize(index as usize + 1, EMPTY);
        }
        // Round up: a timer must not fire before its deadline.
        let tick = at.as_micros().saturating_add((1 << TICK_SHIFT) - 1) >> TICK_SHIFT;
        let tick = tick.clamp(self.now, self.now + SPAN_TICKS);
        self.link(index, tick);
        self.armed += 1;
    }

    /// Arms `index` for `at` unless it is already armed for an earlier or equal time.
    pub(crate) fn arm_earlier(&mut self, index: u32, at: Instant) {
        if self.deadline(index).is_none_or(|armed| at < armed) {
            self.arm(index, at);
        }
    }

    /// Disarms `index`; nothing happens if it is not armed.
    pub(crate) fn cancel(&mut self, index: u32) {
        if self
            .nodes
            .get(index as usize)
            .is_some_and(|n| n.slot != UNARMED)
        {
            self.unlink(index);
            self.armed -= 1;
        }
    }

    /// Reads what arming `index` will touch, to bring it into the cache.
    pub(crate) fn peek(&self, index: u32) -> u32 {
        self.nodes.get(index as usize).map_or(0, |n| n.tick)
    }

    /// The time `index` is armed for, at tick resolution.
    pub(crate) fn deadline(&self, index: u32) -> Option<Instant> {
        let n = self
            .nodes
            .get(index as usize)
            .filter(|n| n.slot != UNARMED)?;
        Some(Instant::from_micros(self.full_tick(n.tick) << TICK_SHIFT))
    }

    /// Takes one timer due at `now`; `None` once all due timers are taken.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        let target = now.as_micros() >> TICK_SHIFT;
        loop {
            if self.armed == 0 {
                self.now = self.now.max(target);
                return None;
            }
            if self.now > target {
                return None;
            }
            let slot = (self.now & 0xff) as usize;
            let head = self.heads[slot];
            if head != NIL {
                self.unlink(head);
                self.armed -= 1;
                return Some(head);
            }
            // Nothing lies between here and the lower bound: no slot to fire, none to cascade.
            let stop = self.lower_bound();
            if stop > target {
                // All ticks up to the target are empty.
                self.now = target;
                return None;
            }
            self.now = stop;
            if stop & 0xff == 0 {
                self.cascade();
            }
        }
    }

    /// A time no later than the next expiry: exact within 16 ms, else where the next level turns.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        (self.armed > 0).then(|| Instant::from_micros(self.lower_bound() << TICK_SHIFT))
    }

    /// The first tick at which something fires or cascades; `u64::MAX` if nothing is armed.
    fn lower_bound(&self) -> u64 {
        let mut best = u64::MAX;
        for level in 0..LEVELS {
            let shift = SLOT_BITS * level as u32;
            let pos = (self.now >> shift) as usize & (SLOTS - 1);
            // Above level 0 the current slot has been cascaded: what it holds is a turn away.
            let from = if level == 0 { pos } else { pos + 1 };
            let base = (self.now >> shift) & !0xff;
            let tick = match (
                self.next_occupied(level, from),
                self.next_occupied(level, 0),
            ) {
                (Some(s), _) => (base + s as u64) << shift,
                (None, Some(s)) => (base + (SLOTS + s) as u64) << shift,
                (None, None) => continue,
            };
            best = best.min(tick);
        }
        best
    }

    fn full_tick(&self, low: u32) -> u64 {
        self.now
            .wrapping_add(u64::from(low.wrapping_sub(self.now as u32)))
    }

    fn link(&mut self, index: u32, tick: u64) {
        let ahead = tick - self.now;
        let mut level = 0;
        while level < LEVELS - 1 && ahead >> (SLOT_BITS * (level as u32 + 1)) != 0 {
            level += 1;
        }
        let pos = (tick >> (SLOT_BITS * level as u32)) as usize & (SLOTS - 1);
        let slot = level * SLOTS + pos;
        let head = self.heads[slot];
        self.nodes[index as usize] = Node {
            prev: NIL,
            next: head,
            tick: tick as u32,
            slot: slot as u16,
        };
        if head != NIL {
            self.nodes[head as usize].prev = index;
        }
        self.heads[slot] = index;
        self.occupied[level][pos / 64] |= 1 << (pos % 64);
    }

    fn unlink(&mut self, index: u32) {
        let n = self.nodes[index as usize];
        if n.prev == NIL {
            let slot = usize::from(n.slot);
            self.heads[slot] = n.next;
            if n.next == NIL {
                let (level, pos) = (slot / SLOTS, slot % SLOTS);
                self.occupied[level][pos / 64] &= !(1 << (pos % 64));
            }
        } else {
            self.nodes[n.prev as usize].next = n.next;
        }
        if n.next != NIL {
            self.nodes[n.next as usize].prev = n.prev;
        }
        self.nodes[index as usize].slot = UNARMED;
    }

    /// Spreads the slots that begin at tick `now` over the levels below.
    fn cascade(&mut self) {
        for level in 1..LEVELS {
            let shift = SLOT_BITS * level as u32;
            let pos = (self.now >> shift) as usize & (SLOTS - 1);
            let mut index = core::mem::replace(&mut self.heads[level * SLOTS + pos], NIL);
            self.occupied[level][pos / 64] &= !(1 << (pos % 64));
            while index != NIL {
                let n = self.nodes[index as usize];
                self.link(index, self.full_tick(n.tick));
                index = n.next;
            }
            if pos != 0 {
                break;
            }
        }
    }

    fn next_occupied(&self, level: usize, from: usize) -> Option<usize> {
        let words = &self.occupied[level];
        let mut i = from / 64;
        let mut word = *words.get(i)? & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(i * 64 + word.trailing_zeros() as usize);
            }
            i += 1;
            word = *words.get(i)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Key, Rng};
    use std::collections::BTreeMap;

    /// Random operations against a sorted map; the model is the specification.
    #[test]
    fn random_operations_equal_a_sorted_map() {
        for seed in 0..40u8 {
            let mut rng = Rng::new(Key([seed; 16]));
            let mut now = Instant::from_micros(rng.below(1 << 40));
            let mut wheel = TimerWheel::new(now);
            let mut model: BTreeMap<u32, Instant> = BTreeMap::new();
            for _ in 0..4_000 {
                let index = rng.below(64) as u32;
                match rng.below(8) {
                    0..=3 => {
                        let far = [200, 20_000, 3_000_000, 2_000_000_000][rng.below(4) as usize];
                        let at = now.plus_us(rng.below(far));
                        wheel.arm(index, at);
                        model.insert(index, at);
                    }
                    4 => {
                        wheel.cancel(index);
                        model.remove(&index);
                    }
                    _ => {
                        let step = [50, 5_000, 800_000, 500_000_000][rng.below(4) as usize];
                        now = now.plus_us(rng.below(step));
                        if let (Some(d), Some(first)) =
                            (wheel.next_deadline(), model.values().min())
                        {
                            assert!(
                                d <= first.plus_us(64).max(now),
                                "deadline after first timer"
                            );
                        }
                        while let Some(i) = wheel.pop_expired(now) {
                            let at = model.remove(&i).expect("fired a timer that was not armed");
                            assert!(at <= now, "fired early");
                        }
                        for at in model.values() {
                            assert!(at.plus_us(64) > now, "timer at {at:?} missed at {now:?}");
                        }
                    }
                }
                assert_eq!(wheel.next_deadline().is_some(), !model.is_empty());
            }
        }
    }
}
