//! Four-tuple demultiplexing: an open-addressing table of (hash tag, entry).
//!
//! Linear probing with backward-shift deletion, so lookups never meet tombstones. The table holds
//! no keys: a tag match is confirmed on the record itself, which the caller touches next anyway.
//! Growth moves a bounded number of slots per insertion, so no packet pays for a whole rehash.

use crate::addr::FourTuple;
use crate::secret::Key;

/// What a slot points at. Two bits of kind, thirty of slab index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A full connection record.
    Conn(u32),
    /// A TIME-WAIT record.
    TimeWait(u32),
    /// An embryonic connection of the SYN queue.
    Embryo(u32),
}

const KIND_SHIFT: u32 = 30;
/// Most records of one kind the table can address.
pub(crate) const INDEX_MAX: u32 = (1 << KIND_SHIFT) - 1;

impl Entry {
    const fn pack(self) -> u32 {
        match self {
            Self::Conn(i) => i,
            Self::TimeWait(i) => 1 << KIND_SHIFT | i,
            Self::Embryo(i) => 2 << KIND_SHIFT | i,
        }
    }

    const fn unpack(bits: u32) -> Self {
        let i = bits & INDEX_MAX;
        match bits >> KIND_SHIFT {
            0 => Self::Conn(i),
            1 => Self::TimeWait(i),
            _ => Self::Embryo(i),
        }
    }
}

/// Tag in the high half, packed entry plus one in the low half; zero is vacant, so that a fresh
/// table is untouched zero pages.
type Slot = u64;
const VACANT: Slot = 0;

const fn slot(tag: u32, entry: Entry) -> Slot {
    (tag as u64) << 32 | (entry.pack() as u64 + 1)
}

const fn tag_of(s: Slot) -> u32 {
    (s >> 32) as u32
}

const fn entry_of(s: Slot) -> Entry {
    Entry::unpack(s as u32 - 1)
}

const INITIAL_SLOTS: usize = 64;
/// Slots of the old table scanned per insertion while growing: the scan ends long before the new
/// table, twice as large, reaches its own limit.
const MIGRATE_PER_INSERT: usize = 8;

#[derive(Debug, Default)]
struct Table {
    slots: Vec<Slot>,
    len: usize,
}

impl Table {
    fn with_slots(n: usize) -> Self {
        Self {
            slots: vec![VACANT; n],
            len: 0,
        }
    }

    /// High bits of the tag choose the slot: no power of two needed, no division paid.
    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.slots.len() as u64) >> 32) as usize
    }

    fn find(&self, tag: u32, mut is: impl FnMut(Entry) -> bool) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let n = self.slots.len();
        let mut i = self.home(tag);
        loop {
            let s = self.slots[i];
            if s == VACANT {
                return None;
            }
            if tag_of(s) == tag && is(entry_of(s)) {
                return Some(i);
            }
            i = if i + 1 == n { 0 } else { i + 1 };
        }
    }

    fn insert(&mut self, s: Slot) {
        let n = self.slots.len();
        let mut i = self.home(tag_of(s));
        while self.slots[i] != VACANT {
            i = if i + 1 == n { 0 } else { i + 1 };
        }
        self.slots[i] = s;
        self.len += 1;
    }

    fn remove_at(&mut self, mut hole: usize) {
        let n = self.slots.len();
        self.len -= 1;
        let mut i = hole;
        loop {
            i = if i + 1 == n { 0 } else { i + 1 };
            let s = self.slots[i];
            if s == VACANT {
                break;
            }
            // `s` may fill the hole unless its home lies cyclically after the hole.
            let distance = |from: usize| if i >= from { i - from } else { i + n - from };
            if distance(self.home(tag_of(s))) >= distance(hole) {
                self.slots[hole] = s;
                hole = i;
            }
        }
        self.slots[hole] = VACANT;
    }
}

/// The table of all flows: connections, TIME-WAIT records and embryonic connections.
#[derive(Debug)]
pub(crate) struct Demux {
    key: [u64; 4],
    table: Table,
    /// Being emptied into `table`, from its end; slots from `scan` on are vacant.
    old: Table,
    scan: usize,
}

impl Demux {
    pub(crate) fn new(key: Key, expected: usize) -> Self {
        let key = core::array::from_fn(|i| key.siphash(&[i as u64]) | 1);
        let slots = (expected + expected / 2).max(INITIAL_SLOTS);
        Self {
            key,
            table: Table::with_slots(slots),
            old: Table::default(),
            scan: 0,
        }
    }

    /// Keyed hash of a flow: multiply-fold with secret words, so a peer cannot aim at one chain.
    pub(crate) fn hash(&self, t: &FourTuple) -> u32 {
        let (lhi, llo) = t.local.ip.words();
        let (rhi, rlo) = t.remote.ip.words();
        let ports = u64::from(t.local.port) << 16 | u64::from(t.remote.port);
        let a = fold(rlo ^ self.key[0], llo.rotate_left(32) ^ ports ^ self.key[1]);
        let b = fold(rhi ^ self.key[2], lhi ^ self.key[3]);
        let h = fold(a ^ self.key[1], b ^ self.key[2]);
        (h >> 32) as u32 ^ h as u32
    }

    /// The entry filed under `tag` that `is` confirms.
    pub(crate) fn find(&self, tag: u32, mut is: impl FnMut(Entry) -> bool) -> Option<Entry> {
        if let Some(i) = self.table.find(tag, &mut is) {
            return Some(entry_of(self.table.slots[i]));
        }
        self.old.find(tag, is).map(|i| entry_of(self.old.slots[i]))
    }

    /// The slot a search for `tag` begins at: reading it early brings it into the cache.
    pub(crate) fn peek(&self, tag: u32) -> u64 {
        self.table.slots[self.table.home(tag)]
    }

    /// The entry a search for `tag` most likely ends at, not confirmed.
    pub(crate) fn guess(&self, tag: u32) -> Option<Entry> {
        let i = self.table.find(tag, |_| true)?;
        Some(entry_of(self.table.slots[i]))
    }

    pub(crate) fn insert(&mut self, tag: u32, entry: Entry) {
        self.migrate();
        if self.old.len == 0 && (self.table.len + 1) * 4 > self.table.slots.len() * 3 {
            let grown = Table::with_slots(self.table.slots.len() * 2);
            self.old = core::mem::replace(&mut self.table, grown);
            self.scan = self.old.slots.len();
        }
        self.table.insert(slot(tag, entry));
    }

    /// Removes exactly `entry` filed under `tag`.
    pub(crate) fn remove(&mut self, tag: u32, entry: Entry) {
        for t in [&mut self.table, &mut self.old] {
            if let Some(i) = t.find(tag, |e| e == entry) {
                t.remove_at(i);
                return;
            }
        }
    }

    /// Changes what a flow points at, in place.
    pub(crate) fn replace(&mut self, tag: u32, from: Entry, to: Entry) {
        for t in [&mut self.table, &mut self.old] {
            if let Some(i) = t.find(tag, |e| e == from) {
                t.slots[i] = slot(tag, to);
                return;
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len + self.old.len
    }

    fn migrate(&mut self) {
        for _ in 0..MIGRATE_PER_INSERT {
            if self.old.len == 0 {
                if !self.old.slots.is_empty() {
                    self.old = Table::default();
                }
                return;
            }
            let last = self.scan - 1;
            let s = self.old.slots[last];
            if s == VACANT {
                self.scan = last;
            } else {
                // Slots above are vacant, so removal shifts nothing, except at the very end where
                // a chain wraps: then the slot is looked at again.
                self.old.remove_at(last);
                self.table.insert(s);
            }
        }
    }
}

/// 64 × 64 → 128 multiplication, halves folded together.
fn fold(a: u64, b: u64) -> u64 {
    let p = u128::from(a) * u128::from(b);
    (p >> 64) as u64 ^ p as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Rng;
    use std::collections::HashMap;

    #[test]
    fn random_operations_equal_a_hash_map() {
        for seed in 0..20u8 {
            let mut rng = Rng::new(Key([seed; 16]));
            let mut demux = Demux::new(Key([seed; 16]), 0);
            let mut model: HashMap<u32, u32> = HashMap::new();
            let clustered = seed % 2 == 0;
            for _ in 0..20_000 {
                let index = rng.below(3_000) as u32;
                // Clustered tags make long chains that wrap around the table's end.
                let fresh = if clustered {
                    u32::MAX - rng.below(40) as u32
                } else {
                    rng.next_u64() as u32
                };
                if rng.below(3) > 0 {
                    model.entry(index).or_insert_with(|| {
                        demux.insert(fresh, Entry::Conn(index));
                        fresh
                    });
                } else if let Some(tag) = model.remove(&index) {
                    demux.remove(tag, Entry::Conn(index));
                }
                assert_eq!(demux.len(), model.len());
            }
            for (&index, &tag) in &model {
                assert_eq!(
                    demux.find(tag, |e| e == Entry::Conn(index)),
                    Some(Entry::Conn(index))
                );
                demux.replace(tag, Entry::Conn(index), Entry::TimeWait(index));
            }
            for (index, tag) in model {
                assert!(demux.find(tag, |e| e == Entry::Conn(index)).is_none());
                demux.remove(tag, Entry::TimeWait(index));
            }
            assert_eq!(demux.len(), 0);
        }
    }
}
