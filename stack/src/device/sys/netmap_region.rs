//! netmap's shared memory: a `netmap_if` that points at rings, rings that point at buffers.
//!
//! ```text
//!   netmap_if ── ring_ofs[i] ──▶ netmap_ring: head cur tail, slot[n]: { buf_idx, len, flags }
//!                                     └─ buf_ofs + buf_idx * buf_size ──▶ buffer
//! ```
//!
//! Whoever wrote the memory is not believed: layout fields are checked once and kept, indices and
//! lengths each time.

use super::abi_netmap::{
    IF_HOST_RX_RINGS, IF_HOST_TX_RINGS, IF_RING_OFS, IF_RX_RINGS, IF_TX_RINGS, RING_BUF_OFS,
    RING_BUF_SIZE, RING_CUR, RING_HEAD, RING_NUM_SLOTS, RING_SLOT, RING_TAIL, SLOT_SIZE,
};
use super::mmap::Mapping;
use rustix::io::Errno;
use std::sync::Arc;

/// Most rings of one kind; far above any NIC, and a bound on what a corrupt count costs.
const RINGS_MAX: u32 = 1024;

/// Most slots of a ring.
const SLOTS_MAX: u32 = 1 << 16;

/// Smallest buffer that holds a header of each layer.
const BUF_BYTES_MIN: usize = 128;

/// Buffers 0 and 1 are netmap's own.
const FIRST_BUF_IDX: u32 = 2;

/// A slot, copied out of the shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::device) struct Slot {
    pub(in crate::device) buf_idx: u32,
    pub(in crate::device) len: u16,
    pub(in crate::device) flags: u16,
}

impl Slot {
    fn from_word(word: u64) -> Self {
        let [a, b, c, d, l0, l1, f0, f1] = word.to_ne_bytes();
        Self {
            buf_idx: u32::from_ne_bytes([a, b, c, d]),
            len: u16::from_ne_bytes([l0, l1]),
            flags: u16::from_ne_bytes([f0, f1]),
        }
    }

    fn to_word(self) -> u64 {
        let [a, b, c, d] = self.buf_idx.to_ne_bytes();
        let ([l0, l1], [f0, f1]) = (self.len.to_ne_bytes(), self.flags.to_ne_bytes());
        u64::from_ne_bytes([a, b, c, d, l0, l1, f0, f1])
    }
}

/// Kinds of rings, in the order `ring_ofs` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device) enum RingKind {
    NicTx,
    HostTx,
    NicRx,
    HostRx,
}

/// The memory behind one `netmap_if`.
pub(in crate::device) struct Region {
    map: Arc<Mapping>,
    if_at: usize,
    counts: [u32; 4],
}

/// A field that makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::device) struct BadLayout(pub(in crate::device) &'static str);

impl Region {
    /// Reads the `netmap_if` at `if_at`.
    pub(in crate::device) fn new(map: Arc<Mapping>, if_at: usize) -> Result<Self, BadLayout> {
        let count = |at| {
            let count = map.load_u32(if_at.checked_add(at)?)?;
            (count <= RINGS_MAX).then_some(count)
        };
        let counts = [IF_TX_RINGS, IF_HOST_TX_RINGS, IF_RX_RINGS, IF_HOST_RX_RINGS].map(count);
        let [Some(tx), Some(host_tx), Some(rx), Some(host_rx)] = counts else {
            return Err(BadLayout("number of rings"));
        };
        // Modules before API 13 left the counts of host rings zero and had one of each.
        Ok(Self {
            map,
            if_at,
            counts: [tx, host_tx.max(1), rx, host_rx.max(1)],
        })
    }

    /// How many rings of `kind` the port has.
    pub(in crate::device) fn count(&self, kind: RingKind) -> u32 {
        self.counts.get(kind as usize).copied().unwrap_or(0)
    }

    /// Ring `index` of `kind`; `Ok(None)` for a ring that is not bound to this descriptor.
    pub(in crate::device) fn ring(
        &self,
        kind: RingKind,
        index: u32,
    ) -> Result<Option<RingMemory>, BadLayout> {
        let before: u32 = self.counts.iter().take(kind as usize).sum();
        let at = self.if_at + IF_RING_OFS + (before + index) as usize * 8;
        let offset = self.map.load_u64(at).ok_or(BadLayout("ring table"))? as i64;
        if offset == 0 {
            return Ok(None);
        }
        let base = self
            .if_at
            .checked_add_signed(offset as isize)
            .ok_or(BadLayout("ring offset"))?;
        RingMemory::new(Arc::clone(&self.map), base).map(Some)
    }
}

/// One ring and the buffers its slots name.
pub(in crate::device) struct RingMemory {
    map: Arc<Mapping>,
    base: usize,
    slot_count: u32,
    buf_size: usize,
    buf_base: usize,
    /// One past the last buffer that lies inside the mapping.
    buf_idx_end: u32,
}

impl RingMemory {
    fn new(map: Arc<Mapping>, base: usize) -> Result<Self, BadLayout> {
        let word = |at| base.checked_add(at).and_then(|at| map.load_u32(at));
        let slot_count = word(RING_NUM_SLOTS)
            .filter(|count| (2..=SLOTS_MAX).contains(count))
            .ok_or(BadLayout("number of slots"))?;
        let buf_size = word(RING_BUF_SIZE).ok_or(BadLayout("ring offset"))? as usize;
        let buf_ofs = map
            .load_u64(base + RING_BUF_OFS)
            .ok_or(BadLayout("ring offset"))?;
        let slots_end = base + RING_SLOT + slot_count as usize * SLOT_SIZE;
        if slots_end > map.len() || !(base + RING_SLOT).is_multiple_of(8) {
            return Err(BadLayout("number of slots"));
        }
        if !(BUF_BYTES_MIN..=usize::from(u16::MAX)).contains(&buf_size) {
            return Err(BadLayout("buffer size"));
        }
        let buf_base = base
            .checked_add_signed(buf_ofs as i64 as isize)
            .filter(|at| *at < map.len())
            .ok_or(BadLayout("buffer offset"))?;
        let buf_idx_end = u32::try_from((map.len() - buf_base) / buf_size).unwrap_or(u32::MAX);
        Ok(Self {
            map,
            base,
            slot_count,
            buf_size,
            buf_base,
            buf_idx_end,
        })
    }

    pub(in crate::device) fn slot_count(&self) -> u32 {
        self.slot_count
    }

    pub(in crate::device) fn buf_size(&self) -> usize {
        self.buf_size
    }

    fn word(&self, at: usize) -> u32 {
        // The ring's head lies inside the mapping by construction; a refusal reads as an impossible
        // index, which every caller checks for.
        self.map.load_u32(self.base + at).unwrap_or(u32::MAX)
    }

    pub(in crate::device) fn head(&self) -> u32 {
        self.word(RING_HEAD)
    }

    pub(in crate::device) fn tail(&self) -> u32 {
        self.word(RING_TAIL)
    }

    /// Shows the other side that slots before `head` are its own; `cur` follows.
    pub(in crate::device) fn set_head(&self, head: u32) {
        let _ = self.map.store_u32(self.base + RING_CUR, head);
        let _ = self.map.store_u32(self.base + RING_HEAD, head);
    }

    /// As the other side: shows that slots before `tail` are the user's.
    pub(in crate::device) fn set_tail(&self, tail: u32) {
        let _ = self.map.store_u32(self.base + RING_TAIL, tail);
    }

    fn slot_at(&self, index: u32) -> usize {
        self.base + RING_SLOT + (index % self.slot_count) as usize * SLOT_SIZE
    }

    /// A copy of a slot.
    #[inline]
    pub(in crate::device) fn slot(&self, index: u32) -> Slot {
        self.map
            .load_u64(self.slot_at(index))
            .map(Slot::from_word)
            .unwrap_or_default()
    }

    /// Writes a slot.
    #[inline]
    pub(in crate::device) fn set_slot(&self, index: u32, slot: Slot) {
        let _ = self.map.store_u64(self.slot_at(index), slot.to_word());
    }

    /// Where a buffer starts; `None` when there is no such buffer.
    fn buffer_at(&self, buf_idx: u32) -> Option<usize> {
        (FIRST_BUF_IDX..self.buf_idx_end)
            .contains(&buf_idx)
            .then(|| self.buf_base + buf_idx as usize * self.buf_size)
    }

    /// The bytes of a slot between our ring's `head` and `tail`. `None` when the slot names no buffer
    /// or more bytes than a buffer has.
    #[inline]
    pub(in crate::device) fn bytes(&self, slot: Slot) -> Option<&[u8]> {
        let len = usize::from(slot.len);
        let at = self
            .buffer_at(slot.buf_idx)
            .filter(|_| len <= self.buf_size)?;
        // SAFETY: netmap's protocol gives buffers between head and tail to the user. Two slots that
        // name one buffer, which only a misbehaving neighbour produces, are both read only.
        unsafe { self.map.payload(at, len) }
    }

    /// Lends `len` bytes of a slot between our ring's `head` and `tail` to `fill`. False, without a
    /// call, when the slot names no buffer or a buffer is shorter.
    #[inline]
    pub(in crate::device) fn fill(
        &mut self,
        slot: Slot,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> bool {
        let Some(at) = self
            .buffer_at(slot.buf_idx)
            .filter(|_| len <= self.buf_size)
        else {
            return false;
        };
        // SAFETY: netmap's protocol gives buffers between head and tail to the user, and no slot is
        // filled while another is lent: receive and transmit of a port both need it exclusively.
        let Some(buffer) = (unsafe { self.map.payload_mut(at, len) }) else {
            return false;
        };
        fill(buffer);
        true
    }
}

/// What an in-memory region is made of.
#[derive(Clone, Copy, Debug)]
pub(in crate::device) struct Shape {
    /// `netmap_if`s, each with a transmit, a receive and a host ring of each direction.
    pub(in crate::device) ports: u32,
    /// NIC ring pairs of a port.
    pub(in crate::device) rings: u32,
    pub(in crate::device) slots: u32,
    pub(in crate::device) buf_size: usize,
}

impl Shape {
    fn rings_per_port(self) -> usize {
        2 * (self.rings as usize + 1)
    }

    fn if_bytes(self) -> usize {
        (IF_RING_OFS + self.rings_per_port() * 8).next_multiple_of(64)
    }

    fn ring_bytes(self) -> usize {
        (RING_SLOT + self.slots as usize * SLOT_SIZE).next_multiple_of(64)
    }

    fn ring_count(self) -> usize {
        self.ports as usize * self.rings_per_port()
    }

    fn buffers_at(self) -> usize {
        let head = self.ports as usize * self.if_bytes() + self.ring_count() * self.ring_bytes();
        head.next_multiple_of(4096)
    }

    /// Where the `netmap_if` of a port stands.
    pub(in crate::device) fn if_at(self, port: u32) -> usize {
        port as usize * self.if_bytes()
    }

    /// Length of the region in bytes.
    pub(in crate::device) fn len(self) -> usize {
        let buffers = self.ring_count() * self.slots as usize + FIRST_BUF_IDX as usize;
        self.buffers_at() + buffers * self.buf_size
    }

    /// The region in anonymous memory, laid out.
    #[cfg(test)]
    pub(in crate::device) fn build(self) -> Result<Arc<Mapping>, Errno> {
        let map = Mapping::anonymous(self.len())?;
        self.lay_out(&map)?;
        Ok(Arc::new(map))
    }

    /// Lays zeroed memory out as the kernel would: every slot has a buffer of its own, transmit rings
    /// are the user's but for one slot, receive rings are empty.
    pub(in crate::device) fn lay_out(self, map: &Mapping) -> Result<(), Errno> {
        let mut buf_idx = FIRST_BUF_IDX;
        let mut ring_at = self.ports as usize * self.if_bytes();
        for port in 0..self.ports {
            let if_at = self.if_at(port);
            for (at, count) in [
                (IF_TX_RINGS, self.rings),
                (IF_RX_RINGS, self.rings),
                (IF_HOST_TX_RINGS, 1),
                (IF_HOST_RX_RINGS, 1),
            ] {
                map.store_u32(if_at + at, count).ok_or(Errno::INVAL)?;
            }
            for index in 0..self.rings_per_port() {
                let entry = if_at + IF_RING_OFS + index * 8;
                map.store_u64(entry, (ring_at - if_at) as u64)
                    .ok_or(Errno::INVAL)?;
                map.store_u64(ring_at + RING_BUF_OFS, (self.buffers_at() - ring_at) as u64)
                    .ok_or(Errno::INVAL)?;
                map.store_u32(ring_at + RING_NUM_SLOTS, self.slots)
                    .ok_or(Errno::INVAL)?;
                map.store_u32(ring_at + RING_BUF_SIZE, self.buf_size as u32)
                    .ok_or(Errno::INVAL)?;
                let is_tx = index < self.rings_per_port() / 2;
                let tail = if is_tx { self.slots - 1 } else { 0 };
                map.store_u32(ring_at + RING_TAIL, tail)
                    .ok_or(Errno::INVAL)?;
                for slot in 0..self.slots as usize {
                    let word = Slot {
                        buf_idx,
                        len: 0,
                        flags: 0,
                    }
                    .to_word();
                    map.store_u64(ring_at + RING_SLOT + slot * SLOT_SIZE, word)
                        .ok_or(Errno::INVAL)?;
                    buf_idx += 1;
                }
                ring_at += self.ring_bytes();
            }
        }
        Ok(())
    }
}
