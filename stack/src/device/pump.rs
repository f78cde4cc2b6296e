//! Carries frames between a device and the engine: the loop every user of both would write.

use super::{
    Capabilities, Checksum, DeviceError, ETHERNET_HEADER_LEN, FrameMeta, Gso, GsoKind, NetDevice,
    RX_BATCH_FRAMES, RxChecksum, RxFrame, TransmitError, Written,
};
use crate::addr::Ip;
use crate::checksum::Sum;
use crate::{Checksums, Config, IfaceId, Instant, InterfaceConfig, Received, Stack, Transmit};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of headers the engine may put around the payload of a super-frame: Ethernet, IPv6, and TCP
/// with all its options.
const HEADER_BYTES_MAX: usize = ETHERNET_HEADER_LEN + 100;

/// What one [`pump`] moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pumped {
    /// Frames received.
    pub received: usize,
    /// Frames handed to the device.
    pub transmitted: usize,
    /// The device had no room for more: wait for [`Wait::Writable`](super::Wait::Writable).
    pub is_full: bool,
}

impl Capabilities {
    /// What an engine's interface is made with on this device.
    pub fn interface(&self) -> InterfaceConfig {
        let segments = self.tx_checksum && self.tx_gso.tcp_v4 && self.tx_gso.tcp_v6;
        let payload = self.max_frame_len.saturating_sub(HEADER_BYTES_MAX);
        InterfaceConfig {
            mac: self.mac,
            mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
            checksums: Checksums {
                tx_offload: self.tx_checksum,
                rx_verified: false,
            },
            tso_bytes: if segments { payload as u32 } else { 0 },
        }
    }

    /// Fills in what of an engine's configuration follows from its first device.
    pub fn configure(&self, config: &mut Config) {
        let InterfaceConfig {
            mac,
            mtu,
            checksums,
            tso_bytes,
        } = self.interface();
        config.mac = mac;
        config.mtu = mtu;
        config.checksums = checksums;
        config.tso_bytes = tso_bytes;
    }
}

impl From<Transmit> for Written {
    fn from(sent: Transmit) -> Self {
        let csum = sent
            .checksum
            .map_or(Checksum::Complete, |partial| Checksum::Partial {
                start: partial.start,
                offset: partial.offset,
            });
        let gso = sent.gso.map(|gso| Gso {
            kind: if gso.ipv6 {
                GsoKind::TcpV6
            } else {
                GsoKind::TcpV4
            },
            size: gso.segment_bytes,
            hdr_len: gso.header_bytes,
            ecn: false,
        });
        Self {
            len: sent.len,
            meta: FrameMeta { csum, gso },
        }
    }
}

/// One round for the engine's first interface, see [`pump_on`].
///
/// # Errors
///
/// As [`pump_on`].
pub fn pump(
    stack: &mut Stack,
    device: &mut dyn NetDevice,
    now: Instant,
    budget: usize,
) -> Result<Pumped, DeviceError> {
    pump_on(stack, IfaceId::FIRST, device, now, budget)
}

/// One round for an interface: up to `budget` frames from its device into the engine, what is due at
/// `now`, then up to `budget` frames the other way, and a kick. Never blocks.
///
/// Where the device [forwards](Capabilities::forwards), frames for other addresses are passed on.
///
/// # Errors
///
/// [`DeviceError`], after what could be done: what a device that is gone does not take counts as sent,
/// so that connections over it end by their timers. A frame the device refuses for its length or kind is
/// dropped, as a router would.
pub fn pump_on(
    stack: &mut Stack,
    iface: IfaceId,
    device: &mut dyn NetDevice,
    now: Instant,
    budget: usize,
) -> Result<Pumped, DeviceError> {
    let received = pump_in(stack, iface, device, now, budget);
    stack.handle_timeout(now);
    let flushed = flush_on(stack, iface, device, now, budget);
    let pumped = Pumped {
        received: received?,
        ..flushed?
    };
    Ok(pumped)
}

/// One round for several interfaces, each with its device: what all of them received is handled
/// before any of them transmits, so that answers leave in the same round whatever the interface.
///
/// # Errors
///
/// As [`pump_on`], with the interface whose device failed; the others had their turn.
pub fn pump_all(
    stack: &mut Stack,
    devices: &mut [(IfaceId, Box<dyn NetDevice>)],
    now: Instant,
    budget: usize,
) -> Result<Pumped, (IfaceId, DeviceError)> {
    let mut all = Pumped::default();
    let mut failed = None;
    for (iface, device) in devices.iter_mut() {
        match pump_in(stack, *iface, device, now, budget) {
            Ok(received) => all.received += received,
            Err(error) => failed = failed.or(Some((*iface, error))),
        }
    }
    stack.handle_timeout(now);
    for (iface, device) in devices {
        match flush_on(stack, *iface, device, now, budget) {
            Ok(pumped) => {
                all.transmitted += pumped.transmitted;
                all.is_full |= pumped.is_full;
            }
            Err(error) => failed = failed.or(Some((*iface, error))),
        }
    }
    failed.map_or(Ok(all), Err)
}

/// Frames that are in one batch, by bit.
type FrameSet = u32;
const _: () = assert!(RX_BATCH_FRAMES <= FrameSet::BITS as usize);

fn pump_in(
    stack: &mut Stack,
    iface: IfaceId,
    device: &mut dyn NetDevice,
    now: Instant,
    budget: usize,
) -> Result<usize, DeviceError> {
    device.advance(now);
    let (rx_checksum, forwards) = {
        let caps = device.capabilities();
        (caps.rx_checksum, caps.forwards)
    };
    device.receive(budget, &mut |frames| {
        let (mut ours, mut verified): (FrameSet, FrameSet) = (0, 0);
        for (n, frame) in frames.iter().enumerate() {
            let audience = if forwards {
                audience(stack, frame.data)
            } else {
                Audience::Us
            };
            if audience != Audience::Us {
                frame.forward();
            }
            ours |= FrameSet::from(audience != Audience::Others) << n;
            verified |= FrameSet::from(is_checksum_ok(frame, rx_checksum)) << n;
        }
        let batch = frames
            .iter()
            .enumerate()
            .filter(|(n, _)| ours >> n & 1 != 0);
        let batch = batch.map(|(n, frame)| {
            let checksum_ok = verified >> n & 1 != 0;
            (frame.data, Received { checksum_ok })
        });
        stack.handle_frames_on(now, iface, batch);
    })
}

/// The second half of [`pump`]: up to `budget` frames from the engine to the device, and a kick.
///
/// # Errors
///
/// As for [`pump`].
pub fn flush(
    stack: &mut Stack,
    device: &mut dyn NetDevice,
    now: Instant,
    budget: usize,
) -> Result<Pumped, DeviceError> {
    flush_on(stack, IfaceId::FIRST, device, now, budget)
}

/// As [`flush`], for an interface.
///
/// # Errors
///
/// As for [`pump`].
pub fn flush_on(
    stack: &mut Stack,
    iface: IfaceId,
    device: &mut dyn NetDevice,
    now: Instant,
    budget: usize,
) -> Result<Pumped, DeviceError> {
    let mut pumped = Pumped::default();
    let room = stack.frame_bytes_max_on(iface);
    while pumped.transmitted < budget && stack.has_output_on(iface) {
        match device.transmit_with(room, &mut |buffer| {
            stack
                .poll_transmit_on(now, iface, buffer)
                .map(Written::from)
        }) {
            Ok(true) => pumped.transmitted += 1,
            Ok(false) => break,
            Err(TransmitError::Full) => {
                pumped.is_full = true;
                break;
            }
            Err(TransmitError::BadLength { .. } | TransmitError::NoGso(_)) => {}
            Err(TransmitError::Device(error)) => return Err(error),
        }
    }
    device.kick()?;
    Ok(pumped)
}

/// Whether the engine may skip the transport checksum of a frame.
fn is_checksum_ok(frame: &RxFrame<'_>, rx_checksum: RxChecksum) -> bool {
    match rx_checksum {
        RxChecksum::Unverified => false,
        RxChecksum::PerFrame => frame.meta.csum != Checksum::Complete,
        RxChecksum::MaybePartial => is_partial(frame.data).unwrap_or(false),
    }
}

/// Whether a frame's TCP or UDP checksum field holds the pseudo header's sum alone, as a kernel on this
/// machine leaves it for hardware that is not there. A complete checksum looks like that once in 65 536
/// frames, and is then not verified.
fn is_partial(frame: &[u8]) -> Option<bool> {
    let packet = frame.get(ETHERNET_HEADER_LEN..)?;
    let (src, dst, protocol, transport) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header_len = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(*packet.get(2..)?.first_chunk()?));
            let src = Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?);
            let dst = Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?);
            let transport = packet.get(header_len..total)?;
            (
                Ip::from(IpAddr::V4(src)),
                Ip::from(IpAddr::V4(dst)),
                *packet.get(9)?,
                transport,
            )
        }
        [0x86, 0xdd] => {
            let len = usize::from(u16::from_be_bytes(*packet.get(4..)?.first_chunk()?));
            let src = Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?);
            let dst = Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?);
            let transport = packet.get(40..40 + len)?;
            (
                Ip::from(IpAddr::V6(src)),
                Ip::from(IpAddr::V6(dst)),
                *packet.get(6)?,
                transport,
            )
        }
        _ => return None,
    };
    let at = match protocol {
        6 => 16,
        17 => 6,
        _ => return None,
    };
    let field = transport.get(at..at + 2)?;
    let pseudo = Sum::default().pseudo(src, dst, protocol, transport.len());
    Some(field == pseudo.partial())
}

/// Whom a frame on a device with host rings concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    Us,
    Others,
    Everyone,
}

/// Decides by the destination address: ours, another host's (or the kernel's), or a group's. ARP has no
/// use for one side only, and neither side minds the other's.
fn audience(stack: &Stack, frame: &[u8]) -> Audience {
    let destination = match (frame.get(12..14), frame.get(..6)) {
        (_, Some([first, ..])) if first & 1 != 0 => None,
        (Some([0x08, 0x00]), _) => frame
            .get(30..)
            .and_then(<[u8]>::first_chunk::<4>)
            .map(|a| IpAddr::from(*a)),
        (Some([0x86, 0xdd]), _) => frame
            .get(38..)
            .and_then(<[u8]>::first_chunk::<16>)
            .map(|a| IpAddr::from(*a)),
        (Some([0x08, 0x06]), _) => None,
        _ => return Audience::Others,
    };
    match destination {
        Some(address) if stack.is_local(address) => Audience::Us,
        Some(_) => Audience::Others,
        None => Audience::Everyone,
    }
}

#[cfg(test)]
mod tests;
