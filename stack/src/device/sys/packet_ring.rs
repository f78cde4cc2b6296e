//! The version 2 receive ring of a packet socket (packet_mmap.txt): fixed slots, each handed over by
//! its status word.
//!
//! ```text
//!   slot:  | tpacket2_hdr | sockaddr_ll |  …  | virtio_net_hdr | frame …        |
//!          0 status, lengths, tp_mac             tp_mac - 10     tp_mac .. + snaplen
//! ```

use super::super::BorrowedFd;
use super::abi_packet::{
    HEADER_LEN, OFFSET_LEN, OFFSET_MAC, OFFSET_SNAPLEN, OFFSET_STATUS, PACKET_RX_RING, RingRequest,
    SOL_PACKET, TP_STATUS_COPY, TP_STATUS_KERNEL, TP_STATUS_USER, TP_STATUS_VLAN_VALID,
};
use super::call;
use super::mmap::Mapping;
use rustix::io::Errno;

/// Length of the `virtio_net_hdr` in front of each frame.
const VNET_HDR_LEN: usize = super::super::meta::VNET_HDR_LEN;

/// Bytes of one allocation of the kernel's; slots do not straddle it.
const BLOCK_BYTES: usize = 64 * 1024;

pub(in crate::device) struct PacketRing {
    map: Mapping,
    slot_bytes: usize,
    slot_count: usize,
    next: usize,
}

/// What a slot that was handed to us holds.
pub(in crate::device) enum Slot<'a> {
    /// A whole frame and the header that came with it.
    Frame {
        vnet_hdr: [u8; VNET_HDR_LEN],
        data: &'a [u8],
    },
    /// The frame was too long for the slot; all of it waits in the socket's queue.
    InQueue,
    /// The frame was too long for the slot, and the queue had no room for it.
    Truncated,
    /// The frame belongs to a VLAN; its tag was taken off.
    Tagged,
    /// Lengths or offsets that cannot be.
    Malformed,
}

impl PacketRing {
    /// Sets up a receive ring of `slot_count` slots on `socket`. Both numbers are powers of two, and a
    /// slot is at most a block.
    pub(in crate::device) fn new(
        socket: BorrowedFd<'_>,
        slot_bytes: usize,
        slot_count: usize,
    ) -> Result<Self, Errno> {
        let bytes = slot_bytes * slot_count;
        let request = RingRequest {
            block_size: BLOCK_BYTES as u32,
            block_count: (bytes / BLOCK_BYTES) as u32,
            frame_size: slot_bytes as u32,
            frame_count: slot_count as u32,
        };
        call::set_option(socket, SOL_PACKET, PACKET_RX_RING, &request)?;
        Ok(Self {
            map: Mapping::of_fd(socket, bytes, 0)?,
            slot_bytes,
            slot_count,
            next: 0,
        })
    }

    /// The slot `ahead` of the next one, if the kernel has handed it over.
    pub(in crate::device) fn peek(&self, ahead: usize) -> Option<Slot<'_>> {
        if ahead >= self.slot_count {
            return None;
        }
        let base = (self.next + ahead) % self.slot_count * self.slot_bytes;
        let status = self.map.load_u32(base + OFFSET_STATUS)?;
        if status & TP_STATUS_USER == 0 {
            return None;
        }
        Some(self.read(base, status).unwrap_or(Slot::Malformed))
    }

    fn read(&self, base: usize, status: u32) -> Option<Slot<'_>> {
        if status & TP_STATUS_COPY != 0 {
            return Some(Slot::InQueue);
        }
        if status & TP_STATUS_VLAN_VALID != 0 {
            return Some(Slot::Tagged);
        }
        let len = self.map.load_u32(base + OFFSET_LEN)? as usize;
        let snaplen = self.map.load_u32(base + OFFSET_SNAPLEN)? as usize;
        let mac = usize::from(self.map.load_u16(base + OFFSET_MAC)?);
        if snaplen < len {
            return Some(Slot::Truncated);
        }
        if mac < HEADER_LEN + VNET_HDR_LEN || mac + snaplen > self.slot_bytes {
            return None;
        }
        // SAFETY: the kernel handed the slot over by its status word and does not touch it until
        // `release`, which needs `&mut self` and so outlives no slice.
        let bytes = unsafe {
            self.map
                .payload(base + mac - VNET_HDR_LEN, VNET_HDR_LEN + snaplen)
        }?;
        let (vnet_hdr, data) = bytes.split_first_chunk()?;
        Some(Slot::Frame {
            vnet_hdr: *vnet_hdr,
            data,
        })
    }

    /// Gives the next `count` slots back to the kernel.
    pub(in crate::device) fn release(&mut self, count: usize) {
        for _ in 0..count {
            let status = self.next * self.slot_bytes + OFFSET_STATUS;
            // The ring lies inside the mapping by construction.
            let _ = self.map.store_u32(status, TP_STATUS_KERNEL);
            self.next = (self.next + 1) % self.slot_count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLOT: usize = 2048;

    /// A ring in memory whose kernel the test plays.
    fn ring(slot_count: usize) -> PacketRing {
        let map = Mapping::anonymous(SLOT * slot_count).unwrap();
        PacketRing {
            map,
            slot_bytes: SLOT,
            slot_count,
            next: 0,
        }
    }

    fn hand_over(ring: &PacketRing, slot: usize, status: u32, len: u32, snaplen: u32, mac: u16) {
        let base = slot * SLOT;
        ring.map.store_u32(base + OFFSET_LEN, len).unwrap();
        ring.map.store_u32(base + OFFSET_SNAPLEN, snaplen).unwrap();
        ring.map
            .store_u32(base + OFFSET_MAC, u32::from(mac))
            .unwrap();
        ring.map.store_u32(base + OFFSET_STATUS, status).unwrap();
    }

    fn payload_len(slot: Option<Slot<'_>>) -> Option<usize> {
        match slot? {
            Slot::Frame { data, .. } => Some(data.len()),
            _ => None,
        }
    }

    #[test]
    fn frames_come_in_order_around_the_ring() {
        let mut ring = ring(4);
        for round in 0..10u32 {
            for n in 0..3 {
                let slot = (round as usize * 3 + n) % 4;
                hand_over(&ring, slot, TP_STATUS_USER, 60 + round, 60 + round, 82);
            }
            for n in 0..3 {
                assert_eq!(payload_len(ring.peek(n)), Some(60 + round as usize));
            }
            assert!(ring.peek(3).is_none() && ring.peek(4).is_none());
            ring.release(3);
            assert!(ring.peek(0).is_none());
        }
    }

    #[test]
    fn special_slots_are_told_apart() {
        let ring = ring(4);
        hand_over(&ring, 0, TP_STATUS_USER | TP_STATUS_COPY, 9000, 1966, 82);
        hand_over(&ring, 1, TP_STATUS_USER, 9000, 1966, 82);
        hand_over(&ring, 2, TP_STATUS_USER | TP_STATUS_VLAN_VALID, 60, 60, 82);
        hand_over(&ring, 3, TP_STATUS_USER, 60, 60, 40);
        assert!(matches!(ring.peek(0), Some(Slot::InQueue)));
        assert!(matches!(ring.peek(1), Some(Slot::Truncated)));
        assert!(matches!(ring.peek(2), Some(Slot::Tagged)));
        assert!(matches!(ring.peek(3), Some(Slot::Malformed)));
    }

    proptest! {
        #[test]
        fn hostile_headers_never_lend_bytes_outside_the_slot(
            status in prop_oneof![Just(TP_STATUS_USER), any::<u32>()],
            len in 0u32..3000,
            snaplen in prop_oneof![0u32..3000, any::<u32>()],
            mac in prop_oneof![0u16..3000, any::<u16>()],
            slot in 0usize..4,
        ) {
            let mut ring = ring(4);
            ring.next = slot;
            hand_over(&ring, slot, status, len, snaplen, mac);
            if let Some(Slot::Frame { data, .. }) = ring.peek(0) {
                let start = data.as_ptr() as u64 - ring.map.address() - slot as u64 * SLOT as u64;
                prop_assert!(start as usize >= HEADER_LEN + VNET_HDR_LEN);
                prop_assert!(start as usize + data.len() <= SLOT);
                prop_assert_eq!(data.len(), snaplen as usize);
            }
        }
    }
}
