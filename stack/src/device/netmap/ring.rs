//! Cursors over netmap rings: which slots are ours, and what packets lie in them.
//!
//! ```text
//!          head                    tail
//!   ────────┬───────────────────────┬──────────
//!   kernel's│ ours: avail slots     │ kernel's
//!   ────────┴───────────────────────┴──────────   indices run modulo the number of slots
//! ```
//!
//! `head` is ours to write and kept here; the shared copy is never read back. `tail` is the other
//! side's: it may only move forward, and never beyond the slot before `head`.

use super::super::sys::abi_netmap::{NETMAP_MAX_FRAGS, NS_BUF_CHANGED, NS_MOREFRAG};
use super::super::sys::netmap_region::{RingMemory, Slot};
use super::super::{DeviceError, GSO_FRAME_LEN_MAX, meta::VNET_HDR_LEN};

/// One ring, transmit or receive, seen from the user's side.
pub(super) struct Cursor {
    memory: RingMemory,
    head: u32,
    avail: u32,
    /// Slots have passed to the kernel's side since the last [`publish`](Self::publish).
    dirty: bool,
}

/// What lies at some place of a receive ring.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// A frame in one slot, where it lies.
    InPlace(&'a [u8]),
    /// A frame over this many slots and bytes.
    Scattered { slots: u32, len: usize },
    /// The first slots of a frame whose rest has not arrived.
    Incomplete,
    /// This many slots that make no frame.
    Malformed { slots: u32 },
}

impl Cursor {
    /// Starts where the ring stands.
    pub(super) fn new(memory: RingMemory) -> Result<Self, DeviceError> {
        let head = memory.head();
        if head >= memory.slot_count() {
            return Err(DeviceError::Corrupt("ring head"));
        }
        let mut cursor = Self {
            memory,
            head,
            avail: 0,
            dirty: false,
        };
        cursor.refresh()?;
        Ok(cursor)
    }

    /// Learns how far the other side has come. Returns the number of slots that are ours.
    #[inline]
    pub(super) fn refresh(&mut self) -> Result<u32, DeviceError> {
        let (tail, count) = (self.memory.tail(), self.memory.slot_count());
        if tail >= count {
            return Err(DeviceError::Corrupt("ring tail"));
        }
        let avail = if tail >= self.head {
            tail - self.head
        } else {
            tail + count - self.head
        };
        if avail < self.avail {
            return Err(DeviceError::Corrupt("ring tail"));
        }
        self.avail = avail;
        Ok(avail)
    }

    pub(super) fn avail(&self) -> u32 {
        self.avail
    }

    pub(super) fn slot_count(&self) -> u32 {
        self.memory.slot_count()
    }

    pub(super) fn buf_size(&self) -> usize {
        self.memory.buf_size()
    }

    /// Index of the slot `ahead` of head; `ahead` is at most [`avail`](Self::avail), which is less than
    /// the number of slots.
    #[inline]
    fn index(&self, ahead: u32) -> u32 {
        let (index, count) = (self.head + ahead, self.memory.slot_count());
        if index >= count { index - count } else { index }
    }

    #[inline]
    fn slot(&self, ahead: u32) -> Slot {
        self.memory.slot(self.index(ahead))
    }

    /// Passes `count` slots, of those that are ours, to the other side; it learns at the next
    /// [`publish`](Self::publish).
    #[inline]
    pub(super) fn advance(&mut self, count: u32) {
        let count = count.min(self.avail);
        self.head = self.index(count);
        self.avail -= count;
        self.dirty |= count > 0;
    }

    /// Shows `head` to the other side. Returns whether there was anything new.
    pub(super) fn publish(&mut self) -> bool {
        if self.dirty {
            self.memory.set_head(self.head);
        }
        core::mem::take(&mut self.dirty)
    }

    /// The packet that begins `ahead` slots after head, of which there are more than `ahead`.
    #[inline]
    pub(super) fn packet(&self, ahead: u32) -> Packet<'_> {
        let first = self.slot(ahead);
        if first.flags & NS_MOREFRAG == 0 {
            return match self.memory.bytes(first) {
                Some(bytes) => Packet::InPlace(bytes),
                None => Packet::Malformed { slots: 1 },
            };
        }
        self.scattered(ahead)
    }

    #[cold]
    fn scattered(&self, ahead: u32) -> Packet<'_> {
        let limit = (self.avail - ahead).min(NETMAP_MAX_FRAGS as u32);
        let mut len = 0;
        let mut valid = true;
        for slots in 1..=limit {
            let slot = self.slot(ahead + slots - 1);
            valid &= self.memory.bytes(slot).is_some();
            len += usize::from(slot.len);
            if slot.flags & NS_MOREFRAG == 0 {
                valid &= len <= GSO_FRAME_LEN_MAX + VNET_HDR_LEN;
                return if valid {
                    Packet::Scattered { slots, len }
                } else {
                    Packet::Malformed { slots }
                };
            }
        }
        // A frame that fills the ring or has more slots than netmap allows will never be complete.
        let hopeless = limit == NETMAP_MAX_FRAGS as u32 || self.avail + 1 == self.slot_count();
        if hopeless {
            Packet::Malformed { slots: limit }
        } else {
            Packet::Incomplete
        }
    }

    /// Copies a scattered packet into `frame`, which is as long as the packet was. Slots that changed
    /// meanwhile leave the rest of it as it is.
    pub(super) fn gather(&self, ahead: u32, slots: u32, frame: &mut [u8]) {
        let mut rest = frame;
        for n in 0..slots {
            let bytes = self.memory.bytes(self.slot(ahead + n)).unwrap_or_default();
            let len = bytes.len().min(rest.len());
            let (place, tail) = rest.split_at_mut(len);
            place.copy_from_slice(bytes.get(..len).unwrap_or_default());
            rest = tail;
        }
    }

    /// Lends the buffer of the first slot that is ours and queues as many bytes of it as `write` says;
    /// none for `None`. False, without a call, when the slot names no buffer.
    #[inline]
    pub(super) fn put(&mut self, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let slot = self.slot(0);
        let buf_size = self.memory.buf_size();
        let mut written = None;
        if !self
            .memory
            .fill(slot, buf_size, |buffer| written = write(buffer))
        {
            return false;
        }
        if let Some(len) = written.and_then(|len| u16::try_from(len).ok()) {
            self.memory.set_slot(
                self.head,
                Slot {
                    len,
                    flags: 0,
                    ..slot
                },
            );
            self.advance(1);
        }
        true
    }

    /// Slots a frame of `len` bytes takes.
    pub(super) fn slots_for(&self, len: usize) -> u32 {
        u32::try_from(len.div_ceil(self.buf_size()))
            .unwrap_or(u32::MAX)
            .max(1)
    }

    /// Queues `frame` over as many slots as it takes, which are ours. False, with nothing queued, when
    /// one of them names no buffer.
    pub(super) fn scatter(&mut self, frame: &[u8]) -> bool {
        let buf_size = self.buf_size();
        let count = frame.len().div_ceil(buf_size);
        for (ahead, part) in (0u32..).zip(frame.chunks(buf_size)) {
            let slot = self.slot(ahead);
            if !self
                .memory
                .fill(slot, part.len(), |buffer| buffer.copy_from_slice(part))
            {
                return false;
            }
            let flags = if ahead as usize + 1 < count {
                NS_MOREFRAG
            } else {
                0
            };
            let len = part.len() as u16;
            self.memory
                .set_slot(self.index(ahead), Slot { len, flags, ..slot });
        }
        self.advance(count as u32);
        true
    }

    /// Queues the packet of `slots` slots, `ahead` of this receive ring's head, on `to` by exchanging
    /// buffers: no byte moves. False when `to` has no room. Both rings are of one memory region.
    pub(super) fn swap_to(&self, ahead: u32, slots: u32, to: &mut Self) -> bool {
        if to.avail < slots {
            return false;
        }
        for n in 0..slots {
            let (ours, theirs) = (self.slot(ahead + n), to.slot(0));
            let flags = NS_BUF_CHANGED | (ours.flags & NS_MOREFRAG);
            to.memory.set_slot(to.head, Slot { flags, ..ours });
            let given = Slot {
                buf_idx: theirs.buf_idx,
                len: 0,
                flags: NS_BUF_CHANGED,
            };
            self.memory.set_slot(self.index(ahead + n), given);
            to.advance(1);
        }
        true
    }
}

/// One ring seen from the kernel's side, for a region without a kernel.
pub(super) struct KernelEnd {
    memory: RingMemory,
    /// Transmit: the next slot to take. Receive: the next slot to fill.
    next: u32,
}

impl KernelEnd {
    /// Behind a transmit ring: takes up where the last one stopped.
    pub(super) fn of_tx(memory: RingMemory) -> Result<Self, DeviceError> {
        // One slot always stays with the kernel: the one before the next to take.
        let next = memory
            .tail()
            .checked_add(1)
            .ok_or(DeviceError::Corrupt("ring tail"))?;
        Self::at(next % memory.slot_count(), memory)
    }

    /// Behind a receive ring: takes up where the last one stopped.
    pub(super) fn of_rx(memory: RingMemory) -> Result<Self, DeviceError> {
        Self::at(memory.tail(), memory)
    }

    fn at(next: u32, memory: RingMemory) -> Result<Self, DeviceError> {
        if next >= memory.slot_count() {
            return Err(DeviceError::Corrupt("ring tail"));
        }
        Ok(Self { memory, next })
    }

    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from {
            to - from
        } else {
            to + self.memory.slot_count() - from
        }
    }

    /// As a transmit ring: slots the user has queued.
    pub(super) fn pending(&self) -> Result<u32, DeviceError> {
        let head = self.memory.head();
        if head >= self.memory.slot_count() {
            return Err(DeviceError::Corrupt("ring head"));
        }
        Ok(self.distance(self.next, head))
    }

    fn step(&mut self) {
        self.next += 1;
        if self.next == self.memory.slot_count() {
            self.next = 0;
        }
    }

    /// As a netmap pipe does on either end's sync: moves whole packets from the transmit ring `self` to
    /// the receive ring `to`, exchanging buffers. Returns the number of slots moved.
    pub(super) fn move_to(&mut self, to: &mut Self) -> Result<u32, DeviceError> {
        let queued = self.pending()?;
        // One slot of a ring always stays with the kernel, so that full and empty differ.
        let room = (to.memory.slot_count() - 1).saturating_sub(to.in_use()?);
        let (mut moved, mut whole) = (0, 0);
        for n in 0..queued.min(room) {
            let index = (self.next + n) % self.memory.slot_count();
            moved = n + 1;
            if self.memory.slot(index).flags & NS_MOREFRAG == 0 {
                whole = moved;
            }
        }
        // A frame larger than the receive ring can only be broken off.
        if whole == 0 && moved + 1 == to.memory.slot_count() {
            whole = moved;
        }
        for _ in 0..whole {
            let (sent, spare) = (self.memory.slot(self.next), to.memory.slot(to.next));
            let flags = NS_BUF_CHANGED | (sent.flags & NS_MOREFRAG);
            to.memory.set_slot(to.next, Slot { flags, ..sent });
            let spare = Slot {
                buf_idx: spare.buf_idx,
                len: 0,
                flags: NS_BUF_CHANGED,
            };
            self.memory.set_slot(self.next, spare);
            self.step();
            to.step();
        }
        if whole > 0 {
            to.memory.set_tail(to.next);
            let count = self.memory.slot_count();
            self.memory.set_tail((self.next + count - 1) % count);
        }
        Ok(whole)
    }

    /// As a receive ring: slots handed to the user and not given back.
    fn in_use(&self) -> Result<u32, DeviceError> {
        let head = self.memory.head();
        if head >= self.memory.slot_count() {
            return Err(DeviceError::Corrupt("ring head"));
        }
        Ok(self.distance(head, self.next))
    }
}
