//! netmap ports (netmap(4)): rings of slots in memory shared with the kernel, or with another engine.
//!
//! Received frames are parsed from their slots, transmitted frames are written into theirs, and frames
//! that pass through exchange buffers with the ring they leave by. Frames of several slots, which
//! VALE switches, pipes and some NICs produce, are the exception: they are gathered.
//!
//! System calls are few: a kick with something queued, and a receive that finds nothing, which is also
//! what gives consumed slots back. `poll` on the descriptor does the work of both.

mod named;
mod open;
mod pair;
mod ring;
#[cfg(test)]
mod tests;

pub use pair::{PairOptions, pair};

pub(super) use named::open_named;
pub(super) use open::open;

use super::sys::abi_netmap::{rx_sync, tx_sync};
use super::sys::netmap_region::{Region, RingKind};
use super::{
    Batch, BorrowedFd, Capabilities, Counters, DeviceError, FrameMeta, GSO_FRAME_LEN_MAX,
    NetDevice, RX_BATCH_FRAMES, RxFrame, TransmitError, Wait, Written, admit, meta::VNET_HDR_LEN,
};
use pair::PairEnd;
use ring::{Cursor, Packet};
use rustix::fd::{AsFd as _, OwnedFd};

/// Room to gather frames of several slots for one batch: two of the largest.
const GATHER_BYTES: usize = 2 * (GSO_FRAME_LEN_MAX + VNET_HDR_LEN);

/// A netmap port.
pub struct NetmapDevice {
    caps: Capabilities,
    rx: Vec<RxRing>,
    /// Receive ring asked first next time, so that a busy one does not starve the rest.
    rx_turn: usize,
    /// Of the NIC, or of whatever the port is, then of the host.
    tx: Vec<Cursor>,
    /// Transmit ring in use; the next one is tried when it is full.
    tx_turn: usize,
    /// Transmit rings before this one are the NIC's.
    tx_host: usize,
    other_side: OtherSide,
    /// Whether frames begin with a `virtio_net_hdr`.
    vnet_hdr: bool,
    gathered: Box<[u8]>,
    counters: Counters,
}

struct RxRing {
    cursor: Cursor,
    /// Frames of this ring that are not ours go to a host ring, or to a NIC ring.
    is_host: bool,
}

/// Who moves the slots.
enum OtherSide {
    /// The kernel, on a system call.
    Kernel(OwnedFd),
    /// The other half of a pair.
    Pair(Box<PairEnd>),
}

impl NetmapDevice {
    fn new(
        region: &Region,
        other_side: OtherSide,
        caps: Capabilities,
        vnet_hdr: bool,
    ) -> Result<Self, NewError> {
        let cursors = |kind| -> Result<Vec<Cursor>, NewError> {
            let mut cursors = Vec::new();
            for index in 0..region.count(kind) {
                if let Some(memory) = region.ring(kind, index)? {
                    cursors.push(Cursor::new(memory)?);
                }
            }
            Ok(cursors)
        };
        let mut tx = cursors(RingKind::NicTx)?;
        let tx_host = tx.len();
        tx.extend(cursors(RingKind::HostTx)?);
        let nic = cursors(RingKind::NicRx)?.into_iter().map(|c| RxRing {
            cursor: c,
            is_host: false,
        });
        let host = cursors(RingKind::HostRx)?.into_iter().map(|c| RxRing {
            cursor: c,
            is_host: true,
        });
        let rx: Vec<RxRing> = nic.chain(host).collect();
        if rx.is_empty() || tx.is_empty() {
            return Err(NewError::Layout("ring table"));
        }
        let caps = Capabilities {
            tx_slots: tx
                .iter()
                .take(tx_host.max(1))
                .map(|ring| ring.slot_count() as usize - 1)
                .sum(),
            forwards: tx_host > 0 && tx_host < tx.len(),
            ..caps
        };
        Ok(Self {
            caps,
            rx,
            rx_turn: 0,
            tx,
            tx_turn: 0,
            tx_host,
            other_side,
            vnet_hdr,
            gathered: vec![0; GATHER_BYTES].into_boxed_slice(),
            counters: Counters::default(),
        })
    }

    /// Lends one batch from a receive ring. Returns how many frames there were, and how many slots.
    fn receive_batch(
        &mut self,
        index: usize,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> (usize, u32) {
        let Some(RxRing { cursor, is_host }) = self.rx.get_mut(index) else {
            return (0, 0);
        };
        let mut batch = Batch::new();
        // Where each frame of the batch lies: slots ahead of head, and how many.
        let mut places = [(0u32, 0u32); RX_BATCH_FRAMES];
        let mut gathered: &mut [u8] = &mut self.gathered;
        let mut ahead = 0;
        while ahead < cursor.avail() && !batch.is_full() && batch.len < budget {
            let (packet, slots) = match cursor.packet(ahead) {
                Packet::InPlace(bytes) => (Some(bytes), 1),
                Packet::Scattered { slots, len } => {
                    if len > gathered.len() {
                        break;
                    }
                    let (frame, rest) = core::mem::take(&mut gathered).split_at_mut(len);
                    gathered = rest;
                    cursor.gather(ahead, slots, frame);
                    (Some(&*frame), slots)
                }
                Packet::Incomplete => break,
                Packet::Malformed { slots } => (None, slots),
            };
            match packet.and_then(|bytes| split_header(bytes, self.vnet_hdr)) {
                Some((data, meta)) => {
                    if let Some(place) = places.get_mut(batch.len) {
                        *place = (ahead, slots);
                    }
                    batch.push(data, meta);
                }
                None => self.counters.rx_malformed += 1,
            }
            ahead += slots;
        }
        let frames = batch.as_slice();
        if !frames.is_empty() {
            visit(frames);
            self.counters.received(frames);
        }
        let received = frames.len();
        if self.caps.forwards {
            let (nic, host) = self.tx.split_at_mut(self.tx_host);
            let to = if *is_host { nic } else { host };
            for (frame, (ahead, slots)) in frames.iter().zip(places) {
                if !frame.is_forwarded() {
                    continue;
                }
                if to
                    .first_mut()
                    .is_some_and(|to| cursor.swap_to(ahead, slots, to))
                {
                    self.counters.rx_forwarded += 1;
                } else {
                    self.counters.rx_forward_drops += 1;
                }
            }
        }
        cursor.advance(ahead);
        cursor.publish();
        (received, ahead)
    }

    /// Slots waiting on all receive rings.
    fn refresh_rx(&mut self) -> Result<bool, DeviceError> {
        let mut any = false;
        for ring in &mut self.rx {
            any |= ring.cursor.refresh()? > 0;
        }
        Ok(any)
    }

    /// Index of a transmit ring with `slots` free slots, the current one if possible: frames of a flow
    /// keep their order as long as no ring fills up.
    fn tx_ring_with(&mut self, slots: u32) -> Result<Option<usize>, DeviceError> {
        let count = self.tx_host.max(1);
        for _ in 0..count {
            if let Some(ring) = self.tx.get_mut(self.tx_turn)
                && (ring.avail() >= slots || ring.refresh()? >= slots)
            {
                return Ok(Some(self.tx_turn));
            }
            self.tx_turn = (self.tx_turn + 1) % count;
        }
        Ok(None)
    }

    /// Tells the other side what is queued, and learns what has left.
    fn sync_tx(&mut self) -> Result<(), DeviceError> {
        for ring in &mut self.tx {
            ring.publish();
        }
        self.counters.kicks += 1;
        match &mut self.other_side {
            OtherSide::Kernel(fd) => {
                tx_sync(fd.as_fd()).map_err(|errno| DeviceError::of("NIOCTXSYNC", errno))
            }
            OtherSide::Pair(end) => end.push(),
        }
    }
}

/// Takes the `virtio_net_hdr` off a frame that has one. `None` when it makes no sense.
fn split_header(bytes: &[u8], vnet_hdr: bool) -> Option<(&[u8], FrameMeta)> {
    if !vnet_hdr {
        return Some((bytes, FrameMeta::NONE));
    }
    let (hdr, data) = bytes.split_first_chunk()?;
    Some((data, FrameMeta::from_vnet_hdr(*hdr, data.len())?))
}

/// Lets `write` write a frame behind room for the header, checks it and puts its offload state where
/// it belongs. Returns the frame's length, without the header.
fn write_frame(
    caps: &Capabilities,
    buffer: &mut [u8],
    vnet_hdr: bool,
    write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
) -> Result<Option<usize>, TransmitError> {
    let (hdr, data) = if vnet_hdr {
        buffer.split_at_mut(VNET_HDR_LEN.min(buffer.len()))
    } else {
        (&mut [][..], buffer)
    };
    let Some(Written { len, meta }) = write(data) else {
        return Ok(None);
    };
    admit(caps, len, meta)?;
    match hdr.first_chunk_mut() {
        Some(hdr) => *hdr = meta.to_vnet_hdr(),
        None => meta.finish_checksum(data.get_mut(..len).unwrap_or_default()),
    }
    Ok(Some(len))
}

impl NetDevice for NetmapDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        if !self.refresh_rx()? {
            match &self.other_side {
                OtherSide::Kernel(fd) => {
                    rx_sync(fd.as_fd()).map_err(|errno| DeviceError::of("NIOCRXSYNC", errno))?;
                }
                OtherSide::Pair(end) => end.found_nothing(),
            }
            if !self.refresh_rx()? {
                return Ok(0);
            }
            if let OtherSide::Pair(end) = &self.other_side {
                end.found_late();
            }
        }
        let mut received = 0;
        let (first, count) = (self.rx_turn, self.rx.len());
        self.rx_turn = (first + 1) % count;
        for index in (first..count).chain(0..first) {
            while received < budget {
                let (frames, slots) = self.receive_batch(index, budget - received, visit);
                received += frames;
                if slots == 0 {
                    break;
                }
            }
        }
        if let OtherSide::Pair(end) = &self.other_side {
            end.made_room();
        }
        Ok(received)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        let hdr_len = if self.vnet_hdr { VNET_HDR_LEN } else { 0 };
        let max = GSO_FRAME_LEN_MAX;
        if room > max {
            return Err(TransmitError::BadLength { len: room, max });
        }
        let slots = self
            .tx
            .first()
            .map_or(1, |ring| ring.slots_for(hdr_len + room));
        let mut index = self.tx_ring_with(slots)?;
        if index.is_none() {
            // The other side may have finished slots and only wait to be asked.
            self.sync_tx()?;
            index = self.tx_ring_with(slots)?;
        }
        let Self {
            tx,
            caps,
            vnet_hdr,
            gathered,
            counters,
            ..
        } = self;
        let Some(ring) = index.and_then(|index| tx.get_mut(index)) else {
            counters.tx_full += 1;
            return Err(TransmitError::Full);
        };
        let mut outcome = Ok(None);
        let mut write = |buffer: &mut [u8]| -> Option<usize> {
            outcome = write_frame(caps, buffer, *vnet_hdr, write);
            outcome
                .as_ref()
                .ok()
                .copied()
                .flatten()
                .map(|len| len + hdr_len)
        };
        let placed = if slots == 1 {
            ring.put(write)
        } else {
            let total = write(gathered);
            match total.and_then(|total| gathered.get(..total)) {
                Some(frame) => ring.scatter(frame),
                None => true,
            }
        };
        if !placed {
            // The slot would stay in the way for ever.
            self.counters.tx_malformed += 1;
            return Err(DeviceError::Corrupt("buffer index").into());
        }
        let written = outcome?;
        if let Some(len) = written {
            self.counters.queued(len);
        }
        Ok(written.is_some())
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        let mut news = match &self.other_side {
            OtherSide::Kernel(_) => false,
            OtherSide::Pair(end) => end.has_backlog(),
        };
        for ring in &mut self.tx {
            news |= ring.publish();
        }
        if news { self.sync_tx() } else { Ok(()) }
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        match &self.other_side {
            OtherSide::Kernel(fd) => Some((fd.as_fd(), wait)),
            OtherSide::Pair(end) => Some((end.wait_fd()?, Wait::Readable)),
        }
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

/// Why a port could not be made from its memory.
enum NewError {
    Layout(&'static str),
}

impl From<super::sys::netmap_region::BadLayout> for NewError {
    fn from(bad: super::sys::netmap_region::BadLayout) -> Self {
        Self::Layout(bad.0)
    }
}

impl From<DeviceError> for NewError {
    fn from(error: DeviceError) -> Self {
        Self::Layout(match error {
            DeviceError::Corrupt(field) => field,
            _ => "ring",
        })
    }
}
