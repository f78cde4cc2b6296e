//! Two netmap ports over one region of memory, joined as the ends of a netmap pipe are: the layout, the
//! rings and the zero-copy exchange of buffers are netmap's, the module is not needed. The region is
//! anonymous, for two engines of one process, or a file in `/dev/shm` that two processes share.
//!
//! The kernel's part is played by each sender for its own direction: on a kick it moves slots from its
//! transmit ring to the peer's receive ring. So each index has one writer, and there is no lock that a
//! dying process could leave behind.

use super::super::doorbell::Doorbell;
use super::super::sys::mmap::Mapping;
use super::super::sys::netmap_region::{Region, RingKind, Shape};
use super::super::{
    BorrowedFd, Capabilities, DeviceError, ETHERNET_HEADER_LEN, GSO_TRANSMIT_LEN_MAX, GsoSet,
    RxChecksum, meta::VNET_HDR_LEN,
};
use super::named::Names;
use super::ring::KernelEnd;
use super::{NetmapDevice, NewError, OtherSide};
use core::convert::identity;
use core::sync::atomic::{Ordering, fence};
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

impl PairOptions {
    fn shape(&self) -> Result<Shape, DeviceError> {
        let invalid = |call| DeviceError::System {
            call,
            errno: Errno::INVAL,
        };
        if !(2..=1 << 16).contains(&self.slots) {
            return Err(invalid("netmap pair slots"));
        }
        if self.buf_size < 128 || self.buf_size > 65_472 || !self.buf_size.is_multiple_of(64) {
            return Err(invalid("netmap pair buf_size"));
        }
        Ok(Shape {
            ports: 2,
            rings: 1,
            slots: self.slots,
            buf_size: self.buf_size,
        })
    }

    /// Bytes of memory the pair takes.
    pub(super) fn memory_len(&self) -> Result<usize, DeviceError> {
        Ok(self.shape()?.len().next_multiple_of(4096) + CONTROL_BYTES)
    }

    /// Writes rings and buffers into zeroed memory of that length.
    pub(super) fn lay_out(&self, map: &Mapping) -> Result<(), DeviceError> {
        let _ = map.store_u32(Self::format_at(map), self.format());
        self.shape()?
            .lay_out(map)
            .map_err(|errno| DeviceError::of("netmap pair", errno))
    }

    /// Whether memory that another process laid out holds frames as these options have them.
    pub(super) fn agree_with(&self, map: &Mapping) -> bool {
        map.load_u32(Self::format_at(map)) == Some(self.format())
    }

    /// What both sides must agree on beside the rings.
    fn format(&self) -> u32 {
        1 + u32::from(self.vnet_hdr)
    }

    fn format_at(map: &Mapping) -> usize {
        map.len() - size_of::<u32>()
    }
}

/// The flags' page, behind the region.
const CONTROL_BYTES: usize = 4096;

/// What the two sides tell each other beside the rings, one flag to a cache line.
struct Control {
    map: Arc<Mapping>,
    /// 0 or 1: which side we are.
    side: usize,
}

/// A flag a side sets to be woken by the other, which takes it down again.
#[derive(Clone, Copy)]
enum Wish {
    /// The side found nothing to receive.
    Frames = 0,
    /// The side has slots that found no room.
    Room = 1,
}

impl Control {
    fn at(&self, side: usize, wish: Wish) -> usize {
        self.map.len() - CONTROL_BYTES + (side * 2 + wish as usize) * 64
    }

    /// Says, or takes back, that our side wants to be woken. What the wish is about must be looked at
    /// again afterwards: the other side may have acted before it saw the flag.
    fn wish(&self, wish: Wish, wanted: bool) {
        let _ = self
            .map
            .store_u32(self.at(self.side, wish), u32::from(wanted));
        fence(Ordering::SeqCst);
    }

    /// After something the other side may wait for: whether it does. Takes its flag down.
    fn take_wish_of_peer(&self, wish: Wish) -> bool {
        fence(Ordering::SeqCst);
        let at = self.at(1 - self.side, wish);
        let wanted = self.map.load_u32(at).is_some_and(|flag| flag != 0);
        if wanted {
            let _ = self.map.store_u32(at, 0);
        }
        wanted
    }
}

/// Both bells of a pair, as one side sees them.
pub(super) struct Bells {
    pub(super) ours: Arc<Doorbell>,
    pub(super) peers: Arc<Doorbell>,
}

/// What a port needs beside its rings.
pub(super) struct PairEnd {
    /// Our transmit ring and the peer's receive ring, from behind.
    from: KernelEnd,
    to: KernelEnd,
    control: Control,
    bells: Option<Bells>,
    /// Slots are queued that found no room.
    has_backlog: bool,
    /// Removes the files of a shared pair with its last user.
    _names: Option<Names>,
}

impl PairEnd {
    /// As `NIOCTXSYNC`.
    pub(super) fn push(&mut self) -> Result<(), DeviceError> {
        let mut moved = self.from.move_to(&mut self.to)?;
        let mut left = self.from.pending()?;
        if let Some(bells) = &self.bells {
            if left > 0 {
                self.control.wish(Wish::Room, true);
                moved += self.from.move_to(&mut self.to)?;
                left = self.from.pending()?;
            }
            if moved > 0 && self.control.take_wish_of_peer(Wish::Frames) {
                bells.peers.ring();
            }
        }
        self.has_backlog = left > 0;
        Ok(())
    }

    /// Whether a push may move slots that an earlier one could not.
    pub(super) fn has_backlog(&self) -> bool {
        self.has_backlog
    }

    /// The receive ring is empty: the bell falls silent until it is not. The caller looks again.
    pub(super) fn found_nothing(&self) {
        if let Some(bells) = &self.bells {
            bells.ours.clear();
            self.control.wish(Wish::Frames, true);
        }
    }

    /// The second look found frames after all.
    pub(super) fn found_late(&self) {
        if let Some(bells) = &self.bells {
            bells.ours.ring();
        }
    }

    /// Slots were given back: what the sender has queued can move up.
    pub(super) fn made_room(&self) {
        if let Some(bells) = &self.bells
            && self.control.take_wish_of_peer(Wish::Room)
        {
            bells.peers.ring();
        }
    }

    pub(super) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.bells.as_ref()?.ours.as_fd())
    }
}

/// Makes two ports; what one transmits the other receives.
///
/// # Errors
///
/// [`DeviceError::System`] when memory or descriptors are short, or the shape is out of range.
pub fn pair(options: &PairOptions) -> Result<(NetmapDevice, NetmapDevice), DeviceError> {
    let map = Mapping::anonymous(options.memory_len()?);
    let map = Arc::new(map.map_err(|errno| DeviceError::of("mmap", errno))?);
    options.lay_out(&map)?;
    let bell = || match options.doorbell {
        true => Doorbell::new(identity).map(|bell| Some(Arc::new(bell))),
        false => Ok(None),
    };
    let (first, second) = (bell()?, bell()?);
    let bells = |ours: &Option<Arc<Doorbell>>, peers: &Option<Arc<Doorbell>>| {
        Some(Bells {
            ours: Arc::clone(ours.as_ref()?),
            peers: Arc::clone(peers.as_ref()?),
        })
    };
    Ok((
        port(options, &map, 0, bells(&first, &second), None)?,
        port(options, &map, 1, bells(&second, &first), None)?,
    ))
}

/// The port of one side over memory that is laid out.
pub(super) fn port(
    options: &PairOptions,
    map: &Arc<Mapping>,
    side: usize,
    bells: Option<Bells>,
    names: Option<Names>,
) -> Result<NetmapDevice, DeviceError> {
    let shape = options.shape()?;
    let corrupt = |error: NewError| {
        let NewError::Layout(field) = error;
        DeviceError::Corrupt(field)
    };
    let region = |side: usize| {
        Region::new(Arc::clone(map), shape.if_at(side as u32)).map_err(|bad| corrupt(bad.into()))
    };
    let (ours, peers) = (region(side)?, region(1 - side)?);
    let ring = |region: &Region, kind| match region.ring(kind, 0) {
        Ok(Some(memory)) => Ok(memory),
        _ => Err(DeviceError::Corrupt("ring table")),
    };
    let end = PairEnd {
        from: KernelEnd::of_tx(ring(&ours, RingKind::NicTx)?)?,
        to: KernelEnd::of_rx(ring(&peers, RingKind::NicRx)?)?,
        control: Control {
            map: Arc::clone(map),
            side,
        },
        bells,
        // An earlier user of this side may have left some.
        has_backlog: true,
        _names: names,
    };
    // Whoever has never looked wants to hear of the first frame.
    end.control.wish(Wish::Frames, true);
    let caps = capabilities(options, side);
    let mut device = NetmapDevice::new(
        &ours,
        OtherSide::Pair(Box::new(end)),
        caps,
        options.vnet_hdr,
    )
    .map_err(corrupt)?;
    // Host rings lead nowhere here.
    device.caps.forwards = false;
    Ok(device)
}

fn capabilities(options: &PairOptions, side: usize) -> Capabilities {
    let wire_len = options.mtu + ETHERNET_HEADER_LEN;
    // A frame must leave room for a second one, or sender and receiver take turns at best.
    let ring_bytes = options.buf_size * (options.slots as usize / 2).clamp(1, 64) - VNET_HDR_LEN;
    let max = if options.vnet_hdr {
        GSO_TRANSMIT_LEN_MAX.max(wire_len)
    } else {
        wire_len
    };
    Capabilities {
        mtu: options.mtu.min(ring_bytes - ETHERNET_HEADER_LEN),
        max_frame_len: max.min(ring_bytes),
        mac: [0x02, 0, 0, 0, 1, 1 + side as u8],
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
