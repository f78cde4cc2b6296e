//! Writes what passes a device as pcapng (draft-ietf-opsawg-pcapng), to any byte sink.

use super::{
    BorrowedFd, Capabilities, Counters, DeviceError, Ingress, NetDevice, RxFrame, TransmitError,
    Wait, Written,
};
use crate::ip::iface::IfaceId;
use crate::time::Instant;
use crate::udp::SharedPorts;
use core::time::Duration;
use std::io::{self, Write};
use std::sync::Arc;

/// Section Header Block (§4.1), in the writer's byte order.
const BLOCK_SECTION: u32 = 0x0a0d_0d0a;
/// Tells the reader the byte order.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Interface Description Block (§4.2).
const BLOCK_INTERFACE: u32 = 1;
/// Enhanced Packet Block (§4.3).
const BLOCK_PACKET: u32 = 6;
/// LINKTYPE_ETHERNET.
const LINK_ETHERNET: u32 = 1;
/// Packet option with direction and reception type (§4.3.1).
const OPT_EPB_FLAGS: u16 = 2;

#[derive(Clone, Copy)]
enum Direction {
    /// `epb_flags` bits 0-1.
    Inbound = 1,
    Outbound = 2,
}

/// A device whose frames are written to `W` as they are received and queued. Segmentation and
/// checksum offload are shown as they are: super-frames, and checksums with the pseudo header only.
pub struct Pcap<D, W> {
    inner: D,
    capture: Capture<W>,
}

struct Capture<W> {
    sink: W,
    /// What to add to the engine's time to get time since 1970.
    epoch: Duration,
    now: Instant,
    /// The first failure; nothing is written after it.
    failed: Option<io::Error>,
    block: Vec<u8>,
}

impl<D: NetDevice, W: Write + Send> Pcap<D, W> {
    /// Wraps `inner` and writes the file's head. `epoch` is the time of the engine's origin since
    /// 1970; zero is fine for simulations.
    ///
    /// # Errors
    ///
    /// What the sink returns.
    pub fn new(inner: D, mut sink: W, epoch: Duration) -> io::Result<Self> {
        let mut block = Vec::with_capacity(2048);
        // Version 1.0, section length unknown.
        start(&mut block, BLOCK_SECTION);
        put_u32(&mut block, BYTE_ORDER_MAGIC);
        put_u32(&mut block, u32::from_ne_bytes(pair(1, 0)));
        block.extend_from_slice(&(-1i64).to_ne_bytes());
        finish(&mut block);
        sink.write_all(&block)?;
        // Snap length 0: no limit. The default resolution is a microsecond, as the engine's.
        start(&mut block, BLOCK_INTERFACE);
        put_u32(&mut block, LINK_ETHERNET);
        put_u32(&mut block, 0);
        finish(&mut block);
        sink.write_all(&block)?;
        let capture = Capture {
            sink,
            epoch,
            now: Instant::ZERO,
            failed: None,
            block,
        };
        Ok(Self { inner, capture })
    }

    /// The sink's first failure. The device goes on without a capture after one.
    pub fn sink_error(&self) -> Option<&io::Error> {
        self.capture.failed.as_ref()
    }

    /// The wrapped device and the sink, which is not flushed.
    pub fn into_parts(self) -> (D, W) {
        (self.inner, self.capture.sink)
    }
}

impl<W: Write> Capture<W> {
    fn packet(&mut self, data: &[u8], direction: Direction) {
        if self.failed.is_some() {
            return;
        }
        let at = self.epoch + self.now.since(Instant::ZERO);
        let micros = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        let block = &mut self.block;
        start(block, BLOCK_PACKET);
        put_u32(block, 0);
        put_u32(block, (micros >> 32) as u32);
        put_u32(block, micros as u32);
        put_u32(block, data.len() as u32);
        put_u32(block, data.len() as u32);
        block.extend_from_slice(data);
        block.resize(block.len().next_multiple_of(4), 0);
        put_u32(block, u32::from_ne_bytes(pair(OPT_EPB_FLAGS, 4)));
        put_u32(block, direction as u32);
        put_u32(block, 0);
        finish(block);
        self.failed = self.sink.write_all(block).err();
    }
}

/// Begins a block in `block`; its length is not known yet.
fn start(block: &mut Vec<u8>, kind: u32) {
    block.clear();
    put_u32(block, kind);
    put_u32(block, 0);
}

/// Ends the block: its length stands at both ends.
fn finish(block: &mut Vec<u8>) {
    let len = (block.len() as u32 + 4).to_ne_bytes();
    block.extend_from_slice(&len);
    if let Some(field) = block.get_mut(4..8) {
        field.copy_from_slice(&len);
    }
}

fn put_u32(block: &mut Vec<u8>, value: u32) {
    block.extend_from_slice(&value.to_ne_bytes());
}

/// Two 16-bit fields in the writer's byte order.
fn pair(first: u16, second: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    [a, b, c, d]
}

impl<D: NetDevice, W: Write + Send> NetDevice for Pcap<D, W> {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let Self { inner, capture } = self;
        inner.receive(budget, &mut |frames| {
            for frame in frames {
                capture.packet(frame.data, Direction::Inbound);
            }
            visit(frames);
        })
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        let Self { inner, capture } = self;
        inner.transmit_with(room, &mut |buffer| {
            let written = write(buffer)?;
            capture.packet(buffer.get(..written.len)?, Direction::Outbound);
            Some(written)
        })
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        self.inner.kick()
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        self.inner.wait_fd(wait)
    }

    fn ingress(&self) -> Option<Ingress> {
        self.inner.ingress()
    }

    fn advance(&mut self, now: Instant) {
        self.capture.now = now;
        self.inner.advance(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.inner.next_deadline()
    }

    fn steer(&mut self, iface: IfaceId, ports: &Arc<SharedPorts>) {
        self.inner.steer(iface, ports);
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }
}

#[cfg(test)]
mod tests;
