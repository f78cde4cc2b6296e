//! Frames out.

use super::{Belongs, Received, Stack, Transmit, shard_of};
use crate::ip::ETHERNET;
use crate::ip::iface::IfaceId;
use crate::limits::CONTROL_FRAMES_MAX;
use crate::time::Instant;

/// Bytes of IP and TCP headers in front of what a device segments.
const SEGMENT_HEADERS_MAX: usize = 100;

impl Stack {
    /// Bytes [`poll_transmit`](Self::poll_transmit) needs room for.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        let each = self.ip.iface_ids().map(|i| self.frame_bytes_max_on(i));
        each.max().unwrap_or(0)
    }

    /// Bytes [`poll_transmit_on`](Self::poll_transmit_on) needs room for.
    #[must_use]
    pub fn frame_bytes_max_on(&self, iface: IfaceId) -> usize {
        self.ip.iface(iface).map_or(0, |i| {
            ETHERNET + usize::from(i.mtu).max(i.tso_bytes as usize + SEGMENT_HEADERS_MAX)
        })
    }

    /// Writes the next frame to send, on whatever interface, into `out`, which must hold
    /// [`frame_bytes_max`](Self::frame_bytes_max) bytes; `None` when there is none.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        loop {
            for iface in self.ip.iface_ids() {
                if let Some(transmit) = self.poll_transmit_on(now, iface, out) {
                    return Some(transmit);
                }
            }
            // A connection may have moved to an interface that had its turn.
            if !self.has_output() {
                return None;
            }
        }
    }

    /// Writes the next frame to send on an interface into `out`, which must hold
    /// [`frame_bytes_max_on`](Self::frame_bytes_max_on) bytes; `None` when there is none.
    #[must_use]
    pub fn poll_transmit_on(
        &mut self,
        now: Instant,
        iface: IfaceId,
        out: &mut [u8],
    ) -> Option<Transmit> {
        loop {
            while let Some((from, frame)) = self.ip.take_looped() {
                self.comes_back(now, from, frame);
            }
            if self.ip.neighbors.has_work() {
                for frame in self.ip.run_neighbors(now) {
                    self.undeliverable(&frame, now);
                }
            }
            if let Some(control) = self.ip.poll_control(iface, out) {
                self.udp.room_again(&self.ip, iface);
                self.stats.frames_out += 1;
                return Some(control);
            }
            if let Some(segment) = self.tcp.poll_transmit(&mut self.ip, iface, out, now) {
                self.stats.frames_out += 1;
                return Some(segment);
            }
            if !self.ip.has_output_on(iface) && !self.ip.neighbors.has_work() {
                return None;
            }
        }
    }

    /// A frame of ours to ourselves, or our copy of one to a group.
    fn comes_back(&mut self, now: Instant, iface: IfaceId, frame: Vec<u8>) {
        let for_whom = match self.udp.shared.is_empty() {
            true => shard_of(&frame, self.shard.count()),
            false => self.udp.shared.shard_of(&frame, iface),
        };
        if for_whom == Belongs::All || for_whom == Belongs::To(self.shard.index()) {
            self.handle_frame_on(now, iface, &frame, Received { checksum_ok: true });
            if for_whom != Belongs::All {
                return;
            }
        }
        if self.strays.len() < CONTROL_FRAMES_MAX {
            self.strays.push_back((iface, frame));
        } else {
            self.ip.control_drops += 1;
        }
    }

    /// The next frame of ours to ourselves that another shard is to see, with the interface it seems to
    /// come from: the one that [`shard_of`](crate::shard_of) names, or all others. Its checksums are
    /// good. To be asked for when `poll_transmit` has nothing more; a stack that is the only one has
    /// none.
    #[must_use]
    pub fn take_stray(&mut self) -> Option<(IfaceId, Vec<u8>)> {
        self.strays.pop_front()
    }

    /// Whether `poll_transmit` may have something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.tcp.has_output() || self.ip.has_output() || self.ip.neighbors.has_work()
    }

    /// Whether `poll_transmit_on` may have something.
    #[must_use]
    pub fn has_output_on(&self, iface: IfaceId) -> bool {
        self.tcp.has_output_on(iface)
            || self.ip.has_output_on(iface)
            || self.ip.neighbors.has_work()
    }
}
