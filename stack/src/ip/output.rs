//! Sending: next hops, headers, checksums, and packets composed outside connections.

use smoltcp::wire::{EthernetAddress, IpProtocol};

use super::IpLayer;
use super::iface::IfaceId;
use super::neighbor::{NeighborRef, Resolution};
use crate::addr::Ip;
use crate::checksum::Sum;
use crate::stack::PartialChecksum;
use crate::time::Instant;

pub(crate) const ETHERNET: usize = 14;
pub(super) const IPV4: usize = 20;
pub(super) const IPV6: usize = 40;
const DEFAULT_HOPS: u8 = 64;

/// What an IP packet says besides its payload, and how it may travel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IpMeta {
    pub(crate) src: Ip,
    pub(crate) dst: Ip,
    pub(crate) protocol: IpProtocol,
    /// DSCP and ECN.
    pub(crate) tos: u8,
    pub(crate) hop_limit: u8,
    /// Leave by this interface only.
    pub(crate) iface: Option<IfaceId>,
    /// No router may cut it (the DF bit of IPv4; IPv6 routers never do).
    pub(crate) dont_fragment: bool,
    /// Sockets of ours that listen to the group it goes to get a copy (IP_MULTICAST_LOOP).
    pub(crate) loops: bool,
}

impl IpMeta {
    pub(crate) const fn new(src: Ip, dst: Ip, protocol: IpProtocol) -> Self {
        Self {
            src,
            dst,
            protocol,
            tos: 0,
            hop_limit: DEFAULT_HOPS,
            iface: None,
            // Path MTU discovery depends on it (RFC 1191 §3).
            dont_fragment: true,
            loops: false,
        }
    }

    /// The answer to a packet from `peer` that arrived on `arrival`.
    pub(crate) fn reply(src: Ip, peer: Ip, protocol: IpProtocol, arrival: IfaceId) -> Self {
        Self {
            iface: IpLayer::reply_by(peer, arrival),
            ..Self::new(src, peer, protocol)
        }
    }

    pub(crate) const fn header_len(&self) -> usize {
        if self.src.is_v4() { IPV4 } else { IPV6 }
    }

    /// Sum of the pseudo header for `len` bytes.
    pub(crate) fn pseudo(&self, len: usize) -> Sum {
        Sum::default().pseudo(self.src, self.dst, self.protocol.into(), len)
    }

    /// Where the transport header begins in a frame.
    pub(crate) const fn transport_offset(&self) -> usize {
        ETHERNET + self.header_len()
    }
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextHop {
    /// To one of our own addresses, on this interface.
    Local(IfaceId),
    Link(IfaceId, EthernetAddress),
    /// Wait for the neighbour.
    Pending(IfaceId, NeighborRef),
    NoRoute,
}

/// Why a packet does not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoWay {
    /// The interface's queue has no room for it now.
    Full(IfaceId),
    NoRoute,
}

/// What is to happen to a composed frame.
#[derive(Debug, Clone, Copy)]
enum Delivery {
    Queue,
    Hold(NeighborRef),
    Loop,
}

/// The way a composed frame takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) iface: IfaceId,
    pub(super) to: EthernetAddress,
    delivery: Delivery,
}

impl IpLayer {
    /// Resolves the way to `dst`, by the cached reference if it still holds. A reference is good for
    /// one value of `bound`.
    pub(crate) fn next_hop(
        &mut self,
        cached: &mut NeighborRef,
        dst: Ip,
        bound: Option<IfaceId>,
        now: Instant,
    ) -> NextHop {
        for _ in 0..2 {
            match self.neighbors.resolve(*cached, now) {
                Some((iface, Resolution::Known(mac))) => return NextHop::Link(iface, mac),
                Some((iface, Resolution::Pending)) => return NextHop::Pending(iface, *cached),
                None => {}
            }
            if let Some(iface) = self.addresses.iface_of(dst, bound) {
                return NextHop::Local(iface);
            }
            let broadcast = self.is_broadcast(dst);
            if broadcast || dst.is_multicast() {
                let iface = self.egress(dst, bound).unwrap_or(IfaceId::FIRST);
                let to = if broadcast {
                    EthernetAddress::BROADCAST
                } else {
                    multicast_mac(dst)
                };
                return NextHop::Link(iface, to);
            }
            let Some(hop) = self.routes.next_hop(dst, bound) else {
                return NextHop::NoRoute;
            };
            *cached = self.neighbors.entry(hop.iface, hop.ip, now);
        }
        NextHop::NoRoute
    }

    /// Writes Ethernet and IP headers for `len` bytes of transport data at the front of `frame`.
    pub(crate) fn write_headers(
        &mut self,
        frame: &mut [u8],
        meta: &IpMeta,
        iface: IfaceId,
        to: EthernetAddress,
        len: usize,
    ) {
        let v4 = meta.src.is_v4();
        let (ethernet, packet) = frame.split_at_mut(ETHERNET);
        ethernet[..6].copy_from_slice(&to.0);
        ethernet[6..12].copy_from_slice(&self.ifaces[iface.index()].mac.0);
        let kind: u16 = if v4 { 0x0800 } else { 0x86dd };
        ethernet[12..].copy_from_slice(&kind.to_be_bytes());
        if v4 {
            self.ident = self.ident.wrapping_add(1);
            let header = ipv4_header(meta, self.ident, len);
            packet[..IPV4].copy_from_slice(&header);
        } else {
            let class = u32::from(meta.tos) << 20;
            packet[..4].copy_from_slice(&(6 << 28 | class).to_be_bytes());
            packet[4..6].copy_from_slice(&(len as u16).to_be_bytes());
            packet[6] = meta.protocol.into();
            packet[7] = meta.hop_limit;
            packet[8..24].copy_from_slice(&meta.src.bits().to_be_bytes());
            packet[24..IPV6].copy_from_slice(&meta.dst.bits().to_be_bytes());
        }
    }

    /// Makes a packet of the IPv4 packet before it: another identification. `sum` is what
    /// [`sum_without_ident`] said.
    #[inline]
    pub(crate) fn identify(&mut self, packet: &mut [u8], sum: u32) {
        self.ident = self.ident.wrapping_add(1);
        let sum = sum + u32::from(self.ident);
        let sum = (sum & 0xffff) + (sum >> 16);
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        packet[4..6].copy_from_slice(&self.ident.to_be_bytes());
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Fills the transport checksum at `field` of `transport`, or leaves the pseudo header's sum
    /// there for the interface's device to finish.
    pub(crate) fn fill_checksum(
        &self,
        iface: IfaceId,
        meta: &IpMeta,
        transport: &mut [u8],
        field: usize,
    ) -> Option<PartialChecksum> {
        let offload = self.ifaces[iface.index()].checksums.tx_offload
            && matches!(meta.protocol, IpProtocol::Tcp | IpProtocol::Udp);
        if !offload {
            self.fill_full_checksum(meta, transport, field);
            return None;
        }
        let bytes = meta.pseudo(transport.len()).partial();
        transport[field..field + 2].copy_from_slice(&bytes);
        Some(PartialChecksum {
            start: meta.transport_offset() as u16,
            offset: field as u16,
        })
    }

    /// Fills the whole checksum: frames that wait or loop back pass no device that could finish it.
    pub(crate) fn fill_full_checksum(&self, meta: &IpMeta, transport: &mut [u8], field: usize) {
        let mut sum = meta.pseudo(transport.len()).bytes(transport).finish();
        // UDP reads zero as "no checksum" (RFC 768); to everyone else both zeros are equal.
        if sum == [0, 0] && meta.protocol == IpProtocol::Udp {
            sum = [0xff, 0xff];
        }
        transport[field..field + 2].copy_from_slice(&sum);
    }

    /// Composes and queues a packet outside any connection. `fill` writes the transport data into
    /// zeroed bytes; `checksum_at` is its checksum field, if it covers the pseudo header.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        meta: &IpMeta,
        len: usize,
        checksum_at: Option<usize>,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let Ok(way) = self.way(meta, 1, now) else {
            self.control_drops += 1;
            return;
        };
        let mut frame = self.blank_frame(meta.transport_offset() + len);
        let transport = &mut frame[meta.transport_offset()..];
        fill(transport);
        let partial = match (checksum_at, way.delivery) {
            (Some(at), Delivery::Queue) if !meta.loops => {
                self.fill_checksum(way.iface, meta, transport, at)
            }
            (Some(at), _) => {
                self.fill_full_checksum(meta, transport, at);
                None
            }
            (None, _) => None,
        };
        self.deliver(frame, meta, len, way, partial);
    }

    /// The way a packet takes, if there is one and its queue has room for `frames`.
    pub(super) fn way(&mut self, meta: &IpMeta, frames: usize, now: Instant) -> Result<Way, NoWay> {
        let mut cached = NeighborRef::default();
        let (iface, to, delivery) = match self.next_hop(&mut cached, meta.dst, meta.iface, now) {
            NextHop::Link(iface, mac) => (iface, mac, Delivery::Queue),
            NextHop::Pending(iface, r) => (iface, EthernetAddress([0; 6]), Delivery::Hold(r)),
            NextHop::Local(iface) => (iface, self.ifaces[iface.index()].mac, Delivery::Loop),
            NextHop::NoRoute => return Err(NoWay::NoRoute),
        };
        if self.ifaces[iface.index()].control_room() < frames {
            return Err(NoWay::Full(iface));
        }
        Ok(Way {
            iface,
            to,
            delivery,
        })
    }

    /// A zeroed frame.
    pub(super) fn blank_frame(&mut self, len: usize) -> Vec<u8> {
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        frame.resize(len, 0);
        frame
    }

    /// Completes a frame with `len` bytes behind its IP header and sends it on its way.
    fn deliver(
        &mut self,
        mut frame: Vec<u8>,
        meta: &IpMeta,
        len: usize,
        way: Way,
        partial: Option<PartialChecksum>,
    ) {
        self.write_headers(&mut frame, meta, way.iface, way.to, len);
        self.loop_group(&frame, meta, way.iface);
        self.dispatch(frame, way, partial);
    }

    /// Our own copy of a frame to a group we are in, or to everybody.
    pub(super) fn loop_group(&mut self, frame: &[u8], meta: &IpMeta, iface: IfaceId) {
        // Of several shards another may be a member.
        let is_heard = self.is_our_multicast(iface, meta.dst)
            || self.is_broadcast(meta.dst)
            || meta.dst.is_multicast() && self.shard.count() > 1;
        if meta.loops && is_heard {
            self.loop_back(iface, frame);
        }
    }

    /// Sends a complete frame on its way.
    pub(super) fn dispatch(&mut self, frame: Vec<u8>, way: Way, partial: Option<PartialChecksum>) {
        match way.delivery {
            Delivery::Hold(r) => {
                self.neighbors.hold(r, &frame);
                self.recycle(frame);
            }
            Delivery::Loop => {
                self.loop_back(way.iface, &frame);
                self.recycle(frame);
            }
            Delivery::Queue => self.ifaces[way.iface.index()].push((frame, partial)),
        }
    }
}

/// An IPv4 header without options for `len` bytes. Its checksum comes from the fields, not from the
/// bytes, which would have to be waited for.
fn ipv4_header(meta: &IpMeta, ident: u16, len: usize) -> [u8; IPV4] {
    let ((_, src), (_, dst)) = (meta.src.words(), meta.dst.words());
    let dont_fragment = u32::from(meta.dont_fragment) << 14;
    let words = [
        0x4500_0000 | u32::from(meta.tos) << 16 | (IPV4 + len) as u32 & 0xffff,
        u32::from(ident) << 16 | dont_fragment,
        u32::from(meta.hop_limit) << 24 | u32::from(u8::from(meta.protocol)) << 16,
        src as u32,
        dst as u32,
    ];
    let sum: u64 = words.iter().map(|w| u64::from(*w)).sum();
    let sum = (sum >> 32) + (sum >> 16 & 0xffff) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let checksum = !((sum >> 16) + sum) as u16;
    let [a, b, c, d, e] = words;
    let pair = |high: u32, low: u32| (u64::from(high) << 32 | u64::from(low)).to_be_bytes();
    let mut header = [0; IPV4];
    header[..8].copy_from_slice(&pair(a, b));
    header[8..16].copy_from_slice(&pair(c | u32::from(checksum), d));
    header[16..].copy_from_slice(&e.to_be_bytes());
    header
}

/// What the checksum of an IPv4 header adds up, without the identification; `None` for IPv6.
pub(crate) fn sum_without_ident(header: &[u8]) -> Option<u32> {
    let header: &[u8; IPV4] = header.try_into().ok()?;
    let (words, _) = header.as_chunks::<2>();
    let all: u32 = words
        .iter()
        .map(|w| u32::from(u16::from_be_bytes(*w)))
        .sum();
    let word = |at: usize| u32::from(u16::from_be_bytes([header[at], header[at + 1]]));
    Some(all - word(4) - word(10))
}

/// Fills the checksum of a 20-byte IPv4 header.
pub(super) fn fill_header_checksum(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = Sum::default().bytes(&packet[..IPV4]).finish();
    packet[10..12].copy_from_slice(&sum);
}

/// RFC 1112 §6.4 and RFC 2464 §7.
pub(super) fn multicast_mac(ip: Ip) -> EthernetAddress {
    let [a, b, c, d] = (ip.bits() as u32).to_be_bytes();
    if ip.is_v4() {
        EthernetAddress([1, 0, 0x5e, b & 0x7f, c, d])
    } else {
        EthernetAddress([0x33, 0x33, a, b, c, d])
    }
}
