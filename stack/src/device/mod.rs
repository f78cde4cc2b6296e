//! Packet devices: Ethernet frames in, Ethernet frames out. Only [`pump`], which joins a device to an
//! engine, and `fanout`, which has the kernel tell engines' frames apart, know IP or TCP.
//!
//! One [`NetDevice`] is one queue: a receive ring, a transmit ring and the descriptor that wakes its
//! reader. A device with several queues is opened as several values, so that each engine, thread or
//! process pumps its own without a lock; [`Joined`] glues them together for a single engine.
//!
//! ```text
//!               receive(budget, visit)                transmit_with(room, write)         kick()
//!   kernel ──▶ ring ──▶ visit(&[RxFrame]) ──▶ engine ──▶ write(&mut [u8]) ──▶ ring ──▶ kernel
//!                        │ frame bytes where          │ a buffer where
//!                        │ the ring keeps them        │ the ring wants the frame
//! ```
//!
//! A frame is lent, never handed over: a netmap slot, an `AF_PACKET` ring frame, a UMEM chunk, a read
//! buffer and a slice of another engine's batch all are a `&[u8]` that is valid while `visit` runs,
//! and go back to their owner when it returns. Frames are lent in batches so that the engine can
//! prefetch what they belong to.
//!
//! Every call is non-blocking. A caller that found nothing to receive, or no room to transmit, waits
//! on [`NetDevice::wait_fd`] and calls again.
//!
//! `deny(unsafe_code)` holds for everything here but `sys`, which owns system calls, mappings and
//! rings. What a ring says is never believed: each length and index is copied once, then checked.
//!
//! Opening a device is by name, see [`DeviceName`] and [`open`].
#![deny(unsafe_code)]

mod doorbell;
mod error;
mod fanout;
mod fault;
mod ingress;
mod joined;
mod memory;
mod meta;
mod name;
pub mod netmap;
mod open;
mod packet;
mod parts;
mod pcap;
mod pump;
mod sys;
mod tap;
mod xdp;

pub use error::{DeviceError, NameError, OpenError, TransmitError};
pub use fault::{Fault, FaultCounters, LinkFaults, Loss};
pub use ingress::Ingress;
pub use joined::Joined;
pub use memory::{MemoryDevice, MemoryOptions};
pub use meta::{Checksum, FrameMeta, Gso, GsoKind};
pub use name::{DeviceName, IfName, NetmapPort, NetmapRings};
pub use open::{OpenOptions, XdpMode, open};
pub use packet::PacketDevice;
pub use pcap::Pcap;
pub use pump::{Pumped, flush, flush_on, pump, pump_all, pump_on};
pub use rustix::fd::BorrowedFd;
pub use tap::TapDevice;
pub use xdp::XdpDevice;

use crate::ip::iface::IfaceId;
use crate::time::Instant;
use crate::udp::SharedPorts;
use core::cell::Cell;
use parts::{copy_together, total_len};
use std::sync::Arc;

/// Ethernet header without VLAN tag, in bytes: what [`Capabilities::mtu`] does not count.
pub const ETHERNET_HEADER_LEN: usize = 14;

/// Most frames lent by one call of `visit`: enough to hide a cache miss per connection behind the
/// others' work, few enough that a batch and its connections stay in the first-level cache.
pub const RX_BATCH_FRAMES: usize = 32;

/// Longest frame that is ever received: an Ethernet header and the largest IPv4 packet (RFC 791 §3.1).
pub const GSO_FRAME_LEN_MAX: usize = ETHERNET_HEADER_LEN + 65_535;

/// Longest frame with segmentation that Linux passes on whole: an interface's `gso_max_size` is 65 536
/// by default, counts the Ethernet header and is exclusive.
const GSO_TRANSMIT_LEN_MAX: usize = 65_535;

/// A hardware address.
pub type MacAddr = [u8; 6];

/// One queue of a packet device. See the [module](self) for the life of a frame.
///
/// Order of calls: [`advance`](Self::advance) when time has passed, any number of
/// [`receive`](Self::receive) and [`transmit_with`](Self::transmit_with), then [`kick`](Self::kick) before
/// the caller sleeps.
pub trait NetDevice: Send {
    /// What the device can do. Constant for the life of the device.
    fn capabilities(&self) -> &Capabilities;

    /// Lends up to `budget` received frames to `visit`, at most [`RX_BATCH_FRAMES`] at a time, in
    /// order of arrival. Returns how many there were; zero means nothing is waiting.
    ///
    /// # Errors
    ///
    /// [`DeviceError`]; frames lent before the error count as received.
    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError>;

    /// Queues one frame: lends at least `room` bytes, with unspecified contents, to `write`, which says
    /// how many of them are a frame, or `None` for no frame after all. The frame leaves at the next
    /// [`kick`](Self::kick) at the latest. Returns whether there was one.
    ///
    /// [`Checksum::Partial`] is accepted by every device; one without
    /// [`tx_checksum`](Capabilities::tx_checksum) computes the sum itself.
    ///
    /// # Errors
    ///
    /// Before `write` is called: [`TransmitError::Full`] until the device has caught up (kick, then wait
    /// for [`Wait::Writable`]), [`TransmitError::BadLength`] for more room than the device has.
    /// After: [`TransmitError::BadLength`] and [`TransmitError::NoGso`] for a frame that
    /// [`capabilities`](Self::capabilities) excludes; it is dropped. [`TransmitError::Device`] for the
    /// rest.
    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError>;

    /// [`transmit_with`](Self::transmit_with) of a frame whose length is known: `fill` gets exactly
    /// `len` bytes and must write them all.
    ///
    /// # Errors
    ///
    /// As for [`transmit_with`](Self::transmit_with), all of them before `fill` is called.
    fn transmit(
        &mut self,
        len: usize,
        meta: FrameMeta,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), TransmitError> {
        admit(self.capabilities(), len, meta)?;
        self.transmit_with(len, &mut |buffer| {
            fill(buffer.get_mut(..len)?);
            Some(Written { len, meta })
        })
        .map(drop)
    }

    /// [`transmit`](Self::transmit) of the concatenation of `parts`. Devices that hand large frames to
    /// the kernel by gathering spare the copy into a lent buffer.
    ///
    /// # Errors
    ///
    /// As for [`transmit`](Self::transmit).
    fn transmit_parts(&mut self, parts: &[&[u8]], meta: FrameMeta) -> Result<(), TransmitError> {
        self.transmit(total_len(parts), meta, &mut |frame| {
            copy_together(frame, parts)
        })
    }

    /// Makes sure that every queued frame is on its way, with a system call only where one is needed.
    ///
    /// # Errors
    ///
    /// [`DeviceError`]. Frames that could not leave for want of room stay queued, without an error.
    fn kick(&mut self) -> Result<(), DeviceError>;

    /// The descriptor to wait on, and for what. It reads ready as long as frames wait to be received
    /// (level). `None` for devices without a kernel side.
    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)>;

    /// Tells the device the time. Only wrappers with a clock of their own ([`Fault`], [`Pcap`]) care.
    fn advance(&mut self, now: Instant) {
        let _ = now;
    }

    /// When the device next wants [`advance`](Self::advance) although nothing arrives.
    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    /// The device is `iface` to its stack, and one of several queues: from now on, datagrams to these ports
    /// are better received by the queue of the shard they belong to. Devices that cannot choose do not.
    fn steer(&mut self, iface: IfaceId, ports: &Arc<SharedPorts>) {
        let _ = (iface, ports);
    }

    /// Where the kernel's own IP stack sees the frames that the device receives, if it does.
    fn ingress(&self) -> Option<Ingress> {
        None
    }

    /// What the device counted since it was opened.
    fn counters(&self) -> Counters;
}

/// A frame its writer has put into a lent buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Its length in bytes, from the start of the buffer.
    pub len: usize,
    /// Its offload state.
    pub meta: FrameMeta,
}

/// What to wait for on [`NetDevice::wait_fd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until a frame can be received (`POLLIN`).
    Readable,
    /// Until a frame can be received or the transmit ring has room again (`POLLIN | POLLOUT`).
    Writable,
}

/// What a device can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Largest IP packet in bytes that fits one frame on the wire.
    pub mtu: usize,
    /// Longest frame [`NetDevice::transmit`] takes, Ethernet header included: `mtu` + 14 without
    /// segmentation offload, more with it.
    pub max_frame_len: usize,
    /// Address frames for this device carry as their destination, and the source to send from.
    pub mac: MacAddr,
    /// Whether [`Checksum::Partial`] is finished behind the device, at no cost to the sender.
    pub tx_checksum: bool,
    /// How far the checksums of received frames can be trusted.
    pub rx_checksum: RxChecksum,
    /// Kinds of segmentation accepted in [`FrameMeta::gso`] by transmit.
    pub tx_gso: GsoSet,
    /// Whether received frames may exceed the MTU and carry [`FrameMeta::gso`].
    pub rx_gro: bool,
    /// Frames the transmit ring holds.
    pub tx_slots: usize,
    /// Whether [`RxFrame::forward`] has somewhere to send the frame.
    pub forwards: bool,
}

/// How far checksums of received frames can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxChecksum {
    /// Not at all: [`FrameMeta::csum`] is always [`Checksum::Complete`], the receiver verifies.
    Unverified,
    /// As [`FrameMeta::csum`] says, frame by frame.
    PerFrame,
    /// The neighbour is a kernel on this machine that leaves checksums unfinished, and the device has
    /// no way to say which: accept a field that holds the pseudo header's sum alone as well.
    MaybePartial,
}

/// Kinds of segmentation offload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GsoSet {
    /// TCP over IPv4.
    pub tcp_v4: bool,
    /// TCP over IPv6.
    pub tcp_v6: bool,
    /// UDP datagrams of equal size.
    pub udp: bool,
}

impl GsoSet {
    /// Every kind.
    pub const ALL: Self = Self {
        tcp_v4: true,
        tcp_v6: true,
        udp: true,
    };

    /// Whether frames of `kind` are segmented.
    pub const fn contains(self, kind: GsoKind) -> bool {
        match kind {
            GsoKind::TcpV4 => self.tcp_v4,
            GsoKind::TcpV6 => self.tcp_v6,
            GsoKind::Udp => self.udp,
        }
    }
}

/// One received frame, lent for the time of a `visit`.
#[derive(Debug)]
pub struct RxFrame<'a> {
    /// The frame from its Ethernet header to its last payload byte, without checksum trailer.
    ///
    /// The bytes are read where the ring keeps them. Their number is checked; a neighbour that shares
    /// the memory and breaks the ring's ownership rule can still change their values meanwhile.
    pub data: &'a [u8],
    /// Offload state of the frame.
    pub meta: FrameMeta,
    forward: Cell<bool>,
}

impl<'a> RxFrame<'a> {
    /// A frame over `data`.
    pub const fn new(data: &'a [u8], meta: FrameMeta) -> Self {
        Self {
            data,
            meta,
            forward: Cell::new(false),
        }
    }

    /// Marks the frame as not ours: a device with [`Capabilities::forwards`] passes it on when the
    /// visit ends, from the network to the host's own stack or the other way; others ignore the mark.
    pub fn forward(&self) {
        self.forward.set(true);
    }

    /// Whether [`forward`](Self::forward) was called.
    pub fn is_forwarded(&self) -> bool {
        self.forward.get()
    }
}

/// Frames on their way to one `visit`.
struct Batch<'a> {
    frames: [RxFrame<'a>; RX_BATCH_FRAMES],
    len: usize,
}

impl<'a> Batch<'a> {
    fn new() -> Self {
        Self {
            frames: [const { RxFrame::new(&[], FrameMeta::NONE) }; RX_BATCH_FRAMES],
            len: 0,
        }
    }

    /// Appends a frame; a full batch ignores it, callers ask [`is_full`](Self::is_full) first.
    fn push(&mut self, data: &'a [u8], meta: FrameMeta) {
        if let Some(place) = self.frames.get_mut(self.len) {
            *place = RxFrame::new(data, meta);
            self.len += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.len == RX_BATCH_FRAMES
    }

    fn as_slice(&self) -> &[RxFrame<'a>] {
        self.frames.get(..self.len).unwrap_or_default()
    }
}

/// What a device counts. Bytes include the Ethernet header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames lent to `visit`.
    pub rx_frames: u64,
    /// Bytes of those frames.
    pub rx_bytes: u64,
    /// Frames lost before the ring because it was full, as far as the kernel tells.
    pub rx_missed: u64,
    /// Ring entries refused because their lengths, indices or offload fields make no sense.
    pub rx_malformed: u64,
    /// Frames passed on by [`RxFrame::forward`].
    pub rx_forwarded: u64,
    /// Frames that were to be passed on and were dropped for want of room.
    pub rx_forward_drops: u64,
    /// Frames queued by [`NetDevice::transmit`].
    pub tx_frames: u64,
    /// Bytes of those frames.
    pub tx_bytes: u64,
    /// Transmits refused for want of room.
    pub tx_full: u64,
    /// Frames the kernel refused after they were queued.
    pub tx_errors: u64,
    /// Ring entries on the transmit side refused because they make no sense.
    pub tx_malformed: u64,
    /// System calls made by `kick`.
    pub kicks: u64,
}

impl core::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.rx_frames += other.rx_frames;
        self.rx_bytes += other.rx_bytes;
        self.rx_missed += other.rx_missed;
        self.rx_malformed += other.rx_malformed;
        self.rx_forwarded += other.rx_forwarded;
        self.rx_forward_drops += other.rx_forward_drops;
        self.tx_frames += other.tx_frames;
        self.tx_bytes += other.tx_bytes;
        self.tx_full += other.tx_full;
        self.tx_errors += other.tx_errors;
        self.tx_malformed += other.tx_malformed;
        self.kicks += other.kicks;
    }
}

impl Counters {
    fn received(&mut self, frames: &[RxFrame<'_>]) {
        self.rx_frames += frames.len() as u64;
        self.rx_bytes += frames
            .iter()
            .map(|frame| frame.data.len() as u64)
            .sum::<u64>();
    }

    fn queued(&mut self, len: usize) {
        self.tx_frames += 1;
        self.tx_bytes += len as u64;
    }
}

/// Checks a frame against what a device takes.
fn admit(caps: &Capabilities, len: usize, meta: FrameMeta) -> Result<(), TransmitError> {
    let max = match meta.gso {
        Some(gso) if !caps.tx_gso.contains(gso.kind) => return Err(TransmitError::NoGso(gso.kind)),
        Some(_) => caps.max_frame_len,
        None => caps.max_frame_len.min(caps.mtu + ETHERNET_HEADER_LEN),
    };
    if len > max || len < ETHERNET_HEADER_LEN {
        return Err(TransmitError::BadLength { len, max });
    }
    Ok(())
}

macro_rules! forward_to_inner {
    ($($head:tt)+) => {
        $($head)+ {
            fn capabilities(&self) -> &Capabilities {
                (**self).capabilities()
            }
            fn receive(
                &mut self,
                budget: usize,
                visit: &mut dyn FnMut(&[RxFrame<'_>]),
            ) -> Result<usize, DeviceError> {
                (**self).receive(budget, visit)
            }
            fn transmit_with(
                &mut self,
                room: usize,
                write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
            ) -> Result<bool, TransmitError> {
                (**self).transmit_with(room, write)
            }
            fn transmit_parts(
                &mut self,
                parts: &[&[u8]],
                meta: FrameMeta,
            ) -> Result<(), TransmitError> {
                (**self).transmit_parts(parts, meta)
            }
            fn kick(&mut self) -> Result<(), DeviceError> {
                (**self).kick()
            }
            fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
                (**self).wait_fd(wait)
            }
            fn advance(&mut self, now: Instant) {
                (**self).advance(now);
            }
            fn next_deadline(&self) -> Option<Instant> {
                (**self).next_deadline()
            }
            fn steer(&mut self, iface: IfaceId, ports: &Arc<SharedPorts>) {
                (**self).steer(iface, ports);
            }
            fn ingress(&self) -> Option<Ingress> {
                (**self).ingress()
            }
            fn counters(&self) -> Counters {
                (**self).counters()
            }
        }
    };
}

forward_to_inner!(impl<D: NetDevice + ?Sized> NetDevice for Box<D>);
forward_to_inner!(impl<D: NetDevice + ?Sized> NetDevice for &mut D);
