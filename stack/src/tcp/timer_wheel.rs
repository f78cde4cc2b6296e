//! Hierarchical timer wheel (Varghese, Lauck 1987): set, cancel and expire in O(1).
//!
//! Four levels of 256 slots; a tick is 64 µs, so the levels span 16 ms, 4.2 s, 18 min and 76 h.
//! One timer per index: the owner keeps its many deadlines and sets the earliest. Timers never
//! fire early; they fire at most one tick late. Knows nothing of TCP.
//!
//! Deadlines of a busy connection change with every packet, nearly always to a later time, and a
//! wheel of a million timers does not stay in the cache. So a timer put off stays where it is filed,
//! and moves when the wheel comes by; and one brought forward waits in a short list, because it is
//! often put off again within the same round (a delayed ACK that the answer carries). A slot is an
//! array, not a linked list: walking it waits for no load.

use core::hint::black_box;

use crate::time::Instant;

/// log2 of a tick in microseconds.
const TICK_SHIFT: u32 = 6;
const LEVELS: usize = 4;
const SLOT_BITS: u32 = 8;
const SLOTS: usize = 1 << SLOT_BITS;
/// Farthest deadline the wheel represents; later ones are clamped and set again by their owner.
const SPAN_TICKS: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;
/// Timers brought forward that wait to be filed: a few batches of packets, still in the cache.
const FRESH_MAX: usize = 1024;
/// An emptied slot keeps room for as many timers, 1 MiB in all slots.
const SLOT_KEEPS: usize = 256;
/// How far ahead of its use a node of a slot is read.
const AHEAD: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Node {
    /// Low 32 bits of the tick it is due; the wheel's span makes them unambiguous.
    due: u32,
    /// Low 32 bits of the tick at which the wheel comes by the slot it is filed in.
    comes_by: u32,
    /// Its place in the slot.
    place: u32,
    /// `level * SLOTS + slot`, or `UNFILED`.
    slot: u16,
    is_set: bool,
    /// In the list of those to be filed.
    is_fresh: bool,
}

const UNFILED: u16 = u16::MAX;
const EMPTY: Node = Node {
    due: 0,
    comes_by: 0,
    place: 0,
    slot: UNFILED,
    is_set: false,
    is_fresh: false,
};

/// Timers addressed by small dense indices.
#[derive(Debug)]
pub(crate) struct TimerWheel {
    nodes: Vec<Node>,
    slots: Box<[Vec<u32>]>,
    occupied: [[u64; SLOTS / 64]; LEVELS],
    /// The next tick to be expired.
    now: u64,
    /// Timers in slots, those no longer set included.
    filed: usize,
    /// Timers whose slot the wheel may come by too late.
    fresh: Vec<u32>,
    /// No later than any of them is due.
    fresh_due: u64,
}

impl TimerWheel {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            nodes: Vec::new(),
            slots: vec![Vec::new(); LEVELS * SLOTS].into_boxed_slice(),
            occupied: [[0; SLOTS / 64]; LEVELS],
            now: now.as_micros() >> TICK_SHIFT,
            filed: 0,
            fresh: Vec::new(),
            fresh_due: u64::MAX,
        }
    }

    /// Sets `index` to fire at `at`, whatever it was set to; at `FAR_FUTURE`, not to fire.
    pub(crate) fn set(&mut self, index: u32, at: Instant) {
        if at == Instant::FAR_FUTURE {
            if let Some(n) = self.nodes.get_mut(index as usize) {
                n.is_set = false;
            }
            return;
        }
        if self.nodes.len() <= index as usize {
            self.nodes.resize(index as usize + 1, EMPTY);
        }
        // Round up: a timer must not fire before its deadline.
        let tick = at.as_micros().saturating_add((1 << TICK_SHIFT) - 1) >> TICK_SHIFT;
        let tick = tick.clamp(self.now, self.now + SPAN_TICKS);
        let comes_by = self.full_tick(self.nodes[index as usize].comes_by);
        let n = &mut self.nodes[index as usize];
        n.due = tick as u32;
        n.is_set = true;
        if n.slot != UNFILED && comes_by <= tick {
            return;
        }
        self.fresh_due = self.fresh_due.min(tick);
        if !n.is_fresh {
            n.is_fresh = true;
            self.fresh.push(index);
            if self.fresh.len() == FRESH_MAX {
                self.file_fresh();
            }
        }
    }

    /// Forgets `index`, whose owner is gone.
    pub(crate) fn cancel(&mut self, index: u32) {
        if let Some(n) = self.nodes.get_mut(index as usize) {
            n.is_set = false;
            if n.slot != UNFILED {
                self.unfile(index);
            }
        }
    }

    /// Reads what setting `index` will touch, to bring it into the cache.
    pub(crate) fn peek(&self, index: u32) -> u32 {
        self.nodes.get(index as usize).map_or(0, |n| n.due)
    }

    /// Takes one timer due at `now`; `None` once all due timers are taken.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        let target = now.as_micros() >> TICK_SHIFT;
        if self.fresh_due <= target {
            self.file_fresh();
        }
        loop {
            if self.filed == 0 {
                self.now = self.now.max(target);
                return None;
            }
            if self.now > target {
                return None;
            }
            if let Some(index) = self.take((self.now & 0xff) as usize) {
                let n = self.nodes[index as usize];
                let due = self.full_tick(n.due);
                if n.is_set && due > self.now {
                    self.file(index, due);
                } else if n.is_set {
                    self.nodes[index as usize].is_set = false;
                    return Some(index);
                }
                continue;
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

    /// A time no later than the next expiry. Within 16 ms it is exact, unless a timer was put off;
    /// else it may be where the next level turns.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let filed = (self.filed > 0).then(|| self.lower_bound());
        let fresh = (!self.fresh.is_empty()).then_some(self.fresh_due);
        let tick = filed.into_iter().chain(fresh).min()?;
        Some(Instant::from_micros(tick << TICK_SHIFT))
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

    /// Files what waits, as it is due by now.
    fn file_fresh(&mut self) {
        let mut fresh = core::mem::take(&mut self.fresh);
        self.fresh_due = u64::MAX;
        for index in fresh.drain(..) {
            let n = &mut self.nodes[index as usize];
            n.is_fresh = false;
            let n = *n;
            let due = self.full_tick(n.due);
            if !n.is_set || n.slot != UNFILED && self.full_tick(n.comes_by) <= due {
                continue;
            }
            if n.slot != UNFILED {
                self.unfile(index);
            }
            self.file(index, due);
        }
        self.fresh = fresh;
    }

    fn file(&mut self, index: u32, due: u64) {
        let ahead = due - self.now;
        let mut level = 0;
        while level < LEVELS - 1 && ahead >> (SLOT_BITS * (level as u32 + 1)) != 0 {
            level += 1;
        }
        let shift = SLOT_BITS * level as u32;
        let pos = (due >> shift) as usize & (SLOTS - 1);
        let slot = level * SLOTS + pos;
        let n = &mut self.nodes[index as usize];
        n.slot = slot as u16;
        n.comes_by = (due >> shift << shift) as u32;
        n.place = self.slots[slot].len() as u32;
        self.slots[slot].push(index);
        self.occupied[level][pos / 64] |= 1 << (pos % 64);
        self.filed += 1;
    }

    fn unfile(&mut self, index: u32) {
        let n = &mut self.nodes[index as usize];
        let (slot, place) = (usize::from(n.slot), n.place as usize);
        n.slot = UNFILED;
        self.filed -= 1;
        let members = &mut self.slots[slot];
        members.swap_remove(place);
        if let Some(moved) = members.get(place) {
            self.nodes[*moved as usize].place = place as u32;
        }
        self.note_emptied(slot);
    }

    /// Takes any timer out of a slot.
    fn take(&mut self, slot: usize) -> Option<u32> {
        let members = &mut self.slots[slot];
        let index = members.pop()?;
        if let Some(ahead) = members.len().checked_sub(AHEAD) {
            black_box(self.nodes[members[ahead] as usize].due);
        }
        self.nodes[index as usize].slot = UNFILED;
        self.filed -= 1;
        self.note_emptied(slot);
        Some(index)
    }

    fn note_emptied(&mut self, slot: usize) {
        if self.slots[slot].is_empty() {
            self.slots[slot].shrink_to(SLOT_KEEPS);
            let (level, pos) = (slot / SLOTS, slot % SLOTS);
            self.occupied[level][pos / 64] &= !(1 << (pos % 64));
        }
    }

    /// Spreads the slots that begin at tick `now` over the levels below.
    fn cascade(&mut self) {
        for level in 1..LEVELS {
            let pos = (self.now >> (SLOT_BITS * level as u32)) as usize & (SLOTS - 1);
            let slot = level * SLOTS + pos;
            // None comes back to this slot: what is a turn of the level away is filed a level up.
            while let Some(index) = self.take(slot) {
                let n = self.nodes[index as usize];
                if n.is_set {
                    self.file(index, self.full_tick(n.due));
                }
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
                match rng.below(9) {
                    0..=3 => {
                        let far = [200, 20_000, 3_000_000, 2_000_000_000][rng.below(4) as usize];
                        let at = now.plus_us(rng.below(far));
                        wheel.set(index, at);
                        model.insert(index, at);
                    }
                    4 => {
                        wheel.cancel(index);
                        model.remove(&index);
                    }
                    5 => {
                        wheel.set(index, Instant::FAR_FUTURE);
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
                assert!(wheel.next_deadline().is_some() || model.is_empty());
            }
            let end = now.plus_us(2_000_000_001);
            while wheel.pop_expired(end).is_some() {}
            assert_eq!(wheel.next_deadline(), None, "what was put off is forgotten");
        }
    }

    #[test]
    fn a_timer_put_off_moves_when_the_wheel_comes_by() {
        let at = Instant::from_millis;
        let mut wheel = TimerWheel::new(at(0));
        wheel.set(7, at(10));
        assert_eq!(wheel.pop_expired(at(9)), None);
        for later in 11..200 {
            wheel.set(7, at(later));
        }
        assert_eq!(wheel.next_deadline(), Some(Instant::from_micros(157 * 64)));
        assert_eq!(
            wheel.pop_expired(at(199).plus_us(0)),
            None,
            "a tick is 64 µs"
        );
        assert_eq!(wheel.pop_expired(at(199).plus_us(64)), Some(7));
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn more_timers_than_wait_to_be_filed_all_fire() {
        let mut wheel = TimerWheel::new(Instant::ZERO);
        let n = 3 * FRESH_MAX as u32 / 2;
        for round in [40, 20, 30] {
            for i in 0..n {
                wheel.set(i, Instant::from_millis(round + u64::from(i % 16)));
            }
        }
        assert_eq!(wheel.pop_expired(Instant::from_millis(29)), None);
        let fired = core::iter::from_fn(|| wheel.pop_expired(Instant::from_millis(46)));
        assert_eq!(fired.count(), n as usize);
    }
}
