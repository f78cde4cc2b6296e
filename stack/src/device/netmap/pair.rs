//! Two netmap ports over one region of anonymous memory, joined as the ends of a netmap pipe are: the
//! layout, the rings and the zero-copy exchange of buffers are netmap's, the module is not needed.

use super::super::doorbell::{Bells, Doorbell};
use super::super::sys::netmap_region::{Region, RingKind, Shape};
use super::super::{
    BorrowedFd, Capabilities, DeviceError, ETHERNET_HEADER_LEN, GSO_FRAME_LEN_MAX, GsoSet,
    RxChecksum, meta::VNET_HDR_LEN,
};
use super::ring::KernelEnd;
use super::{NetmapDevice, NewError, OtherSide};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::sync::Arc;

/// Shape of an in-memory pair of ports.
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// MTU in bytes; a frame larger than a buffer takes several slots.
    pub mtu: usize,
    /// Slots of each ring, from 2 to 65 536; one of them is always the other side's.
    pub slots: u32,
    /// Bytes of a buffer, a multiple of 64 of at least 128; netmap's own default is 2048.
    pub buf_size: usize,
    /// Whether frames carry a `virtio_net_hdr`: checksums stay partial, super-frames pass whole.
    pub vnet_hdr: bool,
    /// Whether each port has a descriptor to wait on.
    pub doorbell: bool,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            slots: 1024,
            buf_size: 2048,
            vnet_hdr: false,
            doorbell: false,
        }
    }
}

/// One direction: the sender's transmit ring and the receiver's receive ring, both from behind.
struct Wire {
    from: KernelEnd,
    to: KernelEnd,
    bells: Bells,
}

/// What a port knows of the other.
pub(super) struct PairEnd {
    outgoing: Arc<Mutex<Wire>>,
    incoming: Arc<Mutex<Wire>>,
    doorbell: Option<Arc<Doorbell>>,
}

impl PairEnd {
    /// As `NIOCTXSYNC`.
    pub(super) fn push(&mut self) -> Result<(), DeviceError> {
        let wire = &mut *self.outgoing.lock();
        let moved = wire.from.move_to(&mut wire.to)?;
        wire.bells.looked_for_room(wire.from.pending()? == 0);
        if moved > 0 {
            wire.bells.arrived();
        }
        Ok(())
    }

    /// As `NIOCRXSYNC`.
    pub(super) fn pull(&mut self) -> Result<(), DeviceError> {
        let mut lock = self.incoming.lock();
        let wire = &mut *lock;
        let moved = wire.from.move_to(&mut wire.to)?;
        if moved > 0 {
            wire.bells.made_room();
        } else if self.doorbell.is_some() {
            wire.bells.drained();
            drop(lock);
            self.outgoing.lock().bells.recall();
        }
        Ok(())
    }

    /// Slots were given back: what the sender has queued can move up.
    pub(super) fn made_room(&mut self) {
        if self.doorbell.is_some() {
            self.incoming.lock().bells.made_room();
        }
    }

    pub(super) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.doorbell.as_ref()?.as_fd())
    }
}

/// Makes two ports; what one transmits the other receives.
///
/// # Errors
///
/// [`DeviceError::System`] when memory or descriptors are short, or the shape is out of range.
pub fn pair(options: &PairOptions) -> Result<(NetmapDevice, NetmapDevice), DeviceError> {
    if !(2..=1 << 16).contains(&options.slots) {
        return Err(DeviceError::System {
            call: "netmap pair slots",
            errno: Errno::INVAL,
        });
    }
    if options.buf_size < 128 || options.buf_size > 65_472 || options.buf_size % 64 != 0 {
        return Err(DeviceError::System {
            call: "netmap pair buf_size",
            errno: Errno::INVAL,
        });
    }
    let shape = Shape {
        ports: 2,
        rings: 1,
        slots: options.slots,
        buf_size: options.buf_size,
    };
    let map = shape
        .build()
        .map_err(|errno| DeviceError::of("mmap", errno))?;
    let region = |port| Region::new(Arc::clone(&map), shape.if_at(port));
    let corrupt = |error: NewError| {
        let NewError::Layout(field) = error;
        DeviceError::Corrupt(field)
    };
    let regions = [region(0), region(1)].map(|region| region.map_err(|bad| corrupt(bad.into())));
    let [first, second] = regions;
    let (first, second) = (first?, second?);
    let end = |region: &Region, kind| match region.ring(kind, 0) {
        Ok(Some(memory)) => Ok(KernelEnd::new(memory)),
        _ => Err(DeviceError::Corrupt("ring table")),
    };
    let wire = |from: &Region, to: &Region, bells| -> Result<_, DeviceError> {
        let (from, to) = (end(from, RingKind::NicTx)?, end(to, RingKind::NicRx)?);
        Ok(Arc::new(Mutex::new(Wire { from, to, bells })))
    };
    let [to_second, to_first] = Bells::pair(options.doorbell)?;
    let bells = [to_first.receiver(), to_second.receiver()];
    let there = wire(&first, &second, to_second)?;
    let back = wire(&second, &first, to_first)?;
    let port = |region: &Region, last, outgoing: &Arc<_>, incoming: &Arc<_>, doorbell| {
        let end = PairEnd {
            outgoing: Arc::clone(outgoing),
            incoming: Arc::clone(incoming),
            doorbell,
        };
        let caps = capabilities(options, last);
        NetmapDevice::new(region, OtherSide::Pair(end), caps, options.vnet_hdr).map_err(corrupt)
    };
    let [first_bell, second_bell] = bells;
    let mut first = port(&first, 1, &there, &back, first_bell)?;
    let mut second = port(&second, 2, &back, &there, second_bell)?;
    // Host rings lead nowhere here.
    for device in [&mut first, &mut second] {
        device.caps.forwards = false;
    }
    Ok((first, second))
}

fn capabilities(options: &PairOptions, last: u8) -> Capabilities {
    let wire_len = options.mtu + ETHERNET_HEADER_LEN;
    // A frame must leave room for a second one, or sender and receiver take turns at best.
    let ring_bytes = options.buf_size * (options.slots as usize / 2).clamp(1, 64) - VNET_HDR_LEN;
    let max = if options.vnet_hdr {
        GSO_FRAME_LEN_MAX.max(wire_len)
    } else {
        wire_len
    };
    Capabilities {
        mtu: options.mtu.min(ring_bytes - ETHERNET_HEADER_LEN),
        max_frame_len: max.min(ring_bytes),
        mac: [0x02, 0, 0, 0, 1, last],
        tx_checksum: options.vnet_hdr,
        rx_checksum: if options.vnet_hdr {
            RxChecksum::PerFrame
        } else {
            RxChecksum::Unverified
        },
        tx_gso: if options.vnet_hdr {
            GsoSet::ALL
        } else {
            GsoSet::default()
        },
        rx_gro: options.vnet_hdr,
        tx_slots: 0,
        forwards: false,
    }
}
