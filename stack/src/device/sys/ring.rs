//! The rings of an XDP socket (af_xdp.rst): single producer, single consumer, power-of-two size, free
//! running 32-bit indices. On two of the four we produce, on the others we consume.

use super::super::DeviceError;
use super::mmap::Mapping;

/// Set by the kernel when it sleeps and wants a system call (`XDP_RING_NEED_WAKEUP`).
const NEED_WAKEUP: u32 = 1;

/// Where a ring's parts stand in its mapping, in bytes.
#[derive(Clone, Copy)]
pub(in crate::device) struct RingOffsets {
    pub(in crate::device) producer: usize,
    pub(in crate::device) consumer: usize,
    pub(in crate::device) flags: usize,
    pub(in crate::device) entries: usize,
}

/// A frame descriptor (`struct xdp_desc`): where in the UMEM, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device) struct Desc {
    pub(in crate::device) addr: u64,
    pub(in crate::device) len: u32,
    pub(in crate::device) options: u32,
}

/// What a ring carries.
pub(in crate::device) trait Entry: Copy {
    /// Bytes in the ring.
    const SIZE: usize;
    fn load(map: &Mapping, at: usize) -> Option<Self>;
    fn store(self, map: &Mapping, at: usize) -> Option<()>;
}

/// UMEM address, in the fill and completion rings.
impl Entry for u64 {
    const SIZE: usize = 8;
    fn load(map: &Mapping, at: usize) -> Option<Self> {
        map.load_u64(at)
    }
    fn store(self, map: &Mapping, at: usize) -> Option<()> {
        map.store_u64(at, self)
    }
}

impl Entry for Desc {
    const SIZE: usize = 16;
    fn load(map: &Mapping, at: usize) -> Option<Self> {
        let (addr, len, options) = (
            map.load_u64(at)?,
            map.load_u32(at + 8)?,
            map.load_u32(at + 12)?,
        );
        Some(Self { addr, len, options })
    }
    fn store(self, map: &Mapping, at: usize) -> Option<()> {
        map.store_u64(at, self.addr)?;
        map.store_u32(at + 8, self.len)?;
        map.store_u32(at + 12, self.options)
    }
}

/// A ring we own one end of.
pub(in crate::device) struct Ring {
    map: Mapping,
    offsets: RingOffsets,
    size: u32,
    /// Our own index; the shared copy is written, never read back.
    own: u32,
}

impl Ring {
    /// A ring of `size` entries in `map`; `own` is where our index stands.
    pub(in crate::device) fn new(map: Mapping, offsets: RingOffsets, size: u32) -> Self {
        Self {
            map,
            offsets,
            size,
            own: 0,
        }
    }

    fn shared(&self, at: usize) -> Result<u32, DeviceError> {
        self.map
            .load_u32(at)
            .ok_or(DeviceError::Corrupt("ring offset"))
    }

    fn entry_at(&self, index: u32, size: usize) -> usize {
        self.offsets.entries + (index & (self.size - 1)) as usize * size
    }

    /// As the consumer: entries waiting.
    pub(in crate::device) fn waiting(&self) -> Result<u32, DeviceError> {
        let waiting = self.shared(self.offsets.producer)?.wrapping_sub(self.own);
        if waiting > self.size {
            Err(DeviceError::Corrupt("producer index"))
        } else {
            Ok(waiting)
        }
    }

    /// As the consumer: the entry `ahead` of the next one, which [`waiting`](Self::waiting) counted.
    pub(in crate::device) fn read<E: Entry>(&self, ahead: u32) -> Result<E, DeviceError> {
        E::load(
            &self.map,
            self.entry_at(self.own.wrapping_add(ahead), E::SIZE),
        )
        .ok_or(DeviceError::Corrupt("ring offset"))
    }

    /// As the consumer: gives `count` entries back.
    pub(in crate::device) fn release(&mut self, count: u32) {
        self.own = self.own.wrapping_add(count);
        let _ = self.map.store_u32(self.offsets.consumer, self.own);
    }

    /// As the producer: entries that can be written.
    pub(in crate::device) fn room(&self) -> Result<u32, DeviceError> {
        let used = self.own.wrapping_sub(self.shared(self.offsets.consumer)?);
        self.size
            .checked_sub(used)
            .ok_or(DeviceError::Corrupt("consumer index"))
    }

    /// As the producer: entries the other side has not taken yet.
    pub(in crate::device) fn pending(&self) -> Result<u32, DeviceError> {
        Ok(self.size - self.room()?)
    }

    /// As the producer: writes the entry `ahead` of the next one, for which there is
    /// [`room`](Self::room).
    pub(in crate::device) fn write<E: Entry>(
        &self,
        ahead: u32,
        entry: E,
    ) -> Result<(), DeviceError> {
        entry
            .store(
                &self.map,
                self.entry_at(self.own.wrapping_add(ahead), E::SIZE),
            )
            .ok_or(DeviceError::Corrupt("ring offset"))
    }

    /// As the producer: shows `count` written entries to the other side.
    pub(in crate::device) fn submit(&mut self, count: u32) {
        self.own = self.own.wrapping_add(count);
        let _ = self.map.store_u32(self.offsets.producer, self.own);
    }

    /// Whether the kernel wants a system call before it looks at the ring.
    pub(in crate::device) fn needs_wakeup(&self) -> bool {
        // Full barrier: our index must be visible before the flag is read, or both sides could sleep.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.map
            .load_u32(self.offsets.flags)
            .is_none_or(|flags| flags & NEED_WAKEUP != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFFSETS: RingOffsets = RingOffsets {
        producer: 0,
        consumer: 64,
        flags: 128,
        entries: 192,
    };

    fn ring(size: u32, start: u32) -> Ring {
        let mut ring = Ring::new(Mapping::anonymous(8192).unwrap(), OFFSETS, size);
        ring.own = start;
        ring.map.store_u32(OFFSETS.producer, start).unwrap();
        ring.map.store_u32(OFFSETS.consumer, start).unwrap();
        ring
    }

    proptest! {
        /// Both ends over one memory, from any index, including those that wrap.
        #[test]
        fn entries_come_out_as_they_went_in(start: u32, steps in prop::collection::vec(0u32..9, 1..60)) {
            let mut producer = ring(8, start);
            let (mut sent, mut received) = (0u64, 0u64);
            let mut consumed = start;
            for step in steps {
                let count = producer.room().unwrap().min(step);
                for ahead in 0..count {
                    let desc = Desc { addr: sent, len: sent as u32, options: 0 };
                    producer.write(ahead, desc).unwrap();
                    sent += 1;
                }
                producer.submit(count);
                // The other end: the same memory seen from where the consumer stands.
                let map = core::mem::replace(&mut producer.map, Mapping::anonymous(4096).unwrap());
                let mut consumer = Ring { map, offsets: OFFSETS, size: 8, own: consumed };
                let waiting = consumer.waiting().unwrap();
                prop_assert_eq!(u64::from(waiting), sent - received);
                let taken = waiting.min(step / 2 + 1);
                for ahead in 0..taken {
                    let desc: Desc = consumer.read(ahead).unwrap();
                    prop_assert_eq!(desc.addr, received);
                    received += 1;
                }
                consumer.release(taken);
                consumed = consumer.own;
                producer.map = consumer.map;
                prop_assert_eq!(u64::from(producer.pending().unwrap()), sent - received);
            }
        }

        #[test]
        fn hostile_indices_are_refused(own: u32, ahead in prop_oneof![0u32..20, any::<u32>()]) {
            let ring = ring(8, own);
            ring.map.store_u32(OFFSETS.producer, own.wrapping_add(ahead)).unwrap();
            ring.map.store_u32(OFFSETS.consumer, own.wrapping_sub(ahead)).unwrap();
            prop_assert_eq!(ring.waiting().ok(), Some(ahead).filter(|n| *n <= 8));
            prop_assert_eq!(ring.pending().ok(), Some(ahead).filter(|n| *n <= 8));
        }
    }

    #[test]
    fn wakeup_flag_is_read_each_time() {
        let ring = ring(8, 0);
        assert!(!ring.needs_wakeup());
        ring.map.store_u32(OFFSETS.flags, NEED_WAKEUP).unwrap();
        assert!(ring.needs_wakeup());
    }
}
