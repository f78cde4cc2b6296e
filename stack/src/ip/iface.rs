//! One interface: its link's properties, and the frames composed outside connections that wait for
//! its device.

use core::num::NonZeroU8;
use std::collections::VecDeque;

use smoltcp::wire::{EthernetAddress, EthernetFrame};

use crate::limits::CONTROL_FRAMES_MAX;
use crate::stack::{Checksums, InterfaceConfig, PartialChecksum, Transmit};

/// Names an interface of a [`Stack`](crate::Stack). Numbers count from 1 in the order of
/// [`add_interface`](crate::Stack::add_interface) and are the scope ids of link-local IPv6 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfaceId(NonZeroU8);

impl IfaceId {
    /// The interface every stack is made with.
    pub const FIRST: Self = Self(NonZeroU8::MIN);

    /// The `index`th interface, counted from zero; `None` beyond [`IFACES_MAX`](crate::limits::IFACES_MAX).
    pub const fn from_index(index: usize) -> Option<Self> {
        if index >= crate::limits::IFACES_MAX {
            return None;
        }
        match NonZeroU8::new(index as u8 + 1) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The interface a scope id names; `None` for 0 and for numbers no stack hands out.
    pub const fn from_scope(scope_id: u32) -> Option<Self> {
        match scope_id.checked_sub(1) {
            Some(index) => Self::from_index(index as usize),
            None => None,
        }
    }

    /// Counted from zero.
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    /// The scope id of link-local addresses on this interface (RFC 4007 §6).
    pub const fn scope_id(self) -> u32 {
        self.0.get() as u32
    }
}

/// A frame and what the device is still to do to it.
pub(super) type ControlFrame = (Vec<u8>, Option<PartialChecksum>);

#[derive(Debug)]
pub(crate) struct Iface {
    pub(crate) mac: EthernetAddress,
    pub(crate) mtu: u16,
    pub(crate) checksums: Checksums,
    pub(crate) tso_bytes: u32,
    control: VecDeque<ControlFrame>,
}

impl Iface {
    pub(crate) fn new(config: &InterfaceConfig) -> Self {
        Self {
            mac: EthernetAddress(config.mac),
            mtu: config.mtu,
            checksums: config.checksums,
            tso_bytes: config.tso_bytes,
            control: VecDeque::new(),
        }
    }

    /// Frames that still fit the queue.
    pub(crate) fn control_room(&self) -> usize {
        CONTROL_FRAMES_MAX.saturating_sub(self.control.len())
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.control.is_empty()
    }

    pub(super) fn push(&mut self, frame: ControlFrame) {
        self.control.push_back(frame);
    }

    /// Queues a complete frame that had waited for the neighbour `to`; false when there is no room.
    pub(super) fn release(&mut self, mut frame: Vec<u8>, to: EthernetAddress) -> bool {
        // What a neighbour was owed may exceed the queue for once: its bytes were bounded there.
        let fits = self.control.len() < 4 * CONTROL_FRAMES_MAX;
        if fits {
            EthernetFrame::new_unchecked(&mut frame[..]).set_dst_addr(to);
            self.control.push_back((frame, None));
        }
        fits
    }

    /// Moves the next control frame into `out`; the emptied frame, for reuse.
    pub(super) fn poll_control(
        &mut self,
        id: IfaceId,
        out: &mut [u8],
    ) -> Option<(Transmit, Vec<u8>)> {
        let (frame, checksum) = self.control.pop_front()?;
        let len = frame.len();
        out[..len].copy_from_slice(&frame);
        let transmit = Transmit {
            iface: id,
            len,
            checksum,
            gso: None,
        };
        Some((transmit, frame))
    }
}
