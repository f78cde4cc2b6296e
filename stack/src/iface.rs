//! The interface and the IP layer's sending half: addresses, routes, neighbours, headers, and the
//! queue of frames composed outside connections.

use std::collections::{BTreeMap, VecDeque};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, Ipv6Packet,
};

use crate::addr::Ip;
use crate::checksum::Sum;
use crate::error::SocketError;
use crate::limits::{
    ADDRESSES_MAX, CONTROL_FRAMES_MAX, PMTU_ENTRIES_MAX, PMTU_EXPIRES, PMTU_MIN_V4, PMTU_MIN_V6,
};
use crate::neighbor::{NeighborCache, NeighborRef, Resolution};
use crate::route::RouteTable;
use crate::stack::{Checksums, Config, PartialChecksum, Transmit};
use crate::time::Instant;

pub(crate) const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const DEFAULT_HOPS: u8 = 64;

/// An address of ours.
#[derive(Debug, Clone, Copy)]
struct Address {
    ip: Ip,
    prefix_len: u8,
}

/// What an IP packet says besides its payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IpMeta {
    pub(crate) src: Ip,
    pub(crate) dst: Ip,
    pub(crate) protocol: IpProtocol,
    /// DSCP and ECN.
    pub(crate) tos: u8,
    pub(crate) hop_limit: u8,
}

impl IpMeta {
    pub(crate) const fn new(src: Ip, dst: Ip, protocol: IpProtocol) -> Self {
        Self {
            src,
            dst,
            protocol,
            tos: 0,
            hop_limit: DEFAULT_HOPS,
        }
    }

    pub(crate) const fn header_len(&self) -> usize {
        if self.src.is_v4() { IPV4 } else { IPV6 }
    }

    /// Where the transport header begins in a frame.
    pub(crate) const fn transport_offset(&self) -> usize {
        ETHERNET + self.header_len()
    }
}

/// Where a packet goes on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextHop {
    /// To one of our own addresses.
    Local,
    Link(EthernetAddress),
    /// Wait for the neighbour.
    Pending(NeighborRef),
    Unreachable,
    NoRoute,
}

#[derive(Debug)]
pub(crate) struct Iface {
    pub(crate) mac: EthernetAddress,
    pub(crate) mtu: u16,
    pub(crate) checksums: Checksums,
    addresses: Vec<Address>,
    pub(crate) routes: RouteTable,
    pub(crate) neighbors: NeighborCache,
    control: VecDeque<(Vec<u8>, Option<PartialChecksum>)>,
    spare: Vec<Vec<u8>>,
    looped: VecDeque<Vec<u8>>,
    ident: u16,
    pmtu: BTreeMap<Ip, (u16, Instant)>,
    pub(crate) control_drops: u64,
}

impl Iface {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            mac: EthernetAddress(config.mac),
            mtu: config.mtu,
            checksums: config.checksums,
            addresses: Vec::new(),
            routes: RouteTable::default(),
            neighbors: NeighborCache::new(),
            control: VecDeque::new(),
            spare: Vec::new(),
            looped: VecDeque::new(),
            ident: 0,
            pmtu: BTreeMap::new(),
            control_drops: 0,
        }
    }

    /// Adds an address and the on-link route of its prefix.
    pub(crate) fn add_address(&mut self, ip: Ip, prefix_len: u8) -> Result<(), SocketError> {
        let width = if ip.is_v4() { 32 } else { 128 };
        if !ip.is_valid_source() || prefix_len > width {
            return Err(SocketError::InvalidAddress);
        }
        if self.addresses.len() >= ADDRESSES_MAX {
            return Err(SocketError::LimitReached);
        }
        if !self.is_ours(ip) {
            self.addresses.push(Address { ip, prefix_len });
            self.routes.add(ip, prefix_len, None)?;
        }
        Ok(())
    }

    pub(crate) fn is_ours(&self, ip: Ip) -> bool {
        self.addresses.iter().any(|a| a.ip == ip)
    }

    /// Limited broadcast, or the all-ones address of one of our IPv4 prefixes.
    pub(crate) fn is_broadcast(&self, ip: Ip) -> bool {
        ip.is_limited_broadcast()
            || ip.is_v4()
                && self.addresses.iter().any(|a| {
                    let host_bits = u32::MAX.checked_shr(u32::from(a.prefix_len)).unwrap_or(0);
                    a.prefix_len < 31
                        && ip.in_prefix(a.ip, a.prefix_len)
                        && ip.to_v4().to_bits() & host_bits == host_bits
                })
    }

    /// All-nodes and the solicited-node groups of our IPv6 addresses (RFC 4291 §2.7.1).
    pub(crate) fn is_our_multicast(&self, ip: Ip) -> bool {
        if ip.is_v4() || !ip.is_multicast() {
            return false;
        }
        let all_nodes = core::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        ip == Ip::v6(all_nodes)
            || self
                .addresses
                .iter()
                .any(|a| !a.ip.is_v4() && solicited_node(a.ip) == ip)
    }

    /// The address to speak to `dst` from: on the same prefix as the next hop, else the first of
    /// the family (RFC 6724 rules 1, 2 and 8 in the form that one interface needs).
    pub(crate) fn source_for(&self, dst: Ip) -> Result<Ip, SocketError> {
        if self.is_ours(dst) {
            return Ok(dst);
        }
        let hop = self.routes.next_hop(dst).ok_or(SocketError::NoRoute)?;
        let same_family = || {
            self.addresses
                .iter()
                .filter(|a| a.ip.is_v4() == dst.is_v4())
        };
        let is_link_local = |ip: Ip| !ip.is_v4() && ip.to_v6().is_unicast_link_local();
        same_family()
            .filter(|a| {
                hop.in_prefix(a.ip, a.prefix_len) && is_link_local(a.ip) == is_link_local(dst)
            })
            .max_by_key(|a| a.prefix_len)
            .or_else(|| same_family().find(|a| is_link_local(a.ip) == is_link_local(dst)))
            .or_else(|| same_family().next())
            .map(|a| a.ip)
            .ok_or(SocketError::AddressNotAvailable)
    }

    /// Resolves the way to `dst`, by the cached reference if it still holds.
    pub(crate) fn next_hop(&mut self, cached: &mut NeighborRef, dst: Ip, now: Instant) -> NextHop {
        for _ in 0..2 {
            match self.neighbors.resolve(*cached, now) {
                Some(Resolution::Known(mac)) => return NextHop::Link(mac),
                Some(Resolution::Pending) => return NextHop::Pending(*cached),
                Some(Resolution::Unreachable) => return NextHop::Unreachable,
                None => {}
            }
            if self.is_ours(dst) {
                return NextHop::Local;
            }
            if self.is_broadcast(dst) {
                return NextHop::Link(EthernetAddress::BROADCAST);
            }
            if dst.is_multicast() {
                return NextHop::Link(multicast_mac(dst));
            }
            let Some(hop) = self.routes.next_hop(dst) else {
                return NextHop::NoRoute;
            };
            *cached = self.neighbors.entry(hop, now);
        }
        NextHop::NoRoute
    }

    /// Writes Ethernet and IP headers for `len` bytes of transport data at the front of `frame`.
    pub(crate) fn write_headers(
        &mut self,
        frame: &mut [u8],
        meta: &IpMeta,
        to: EthernetAddress,
        len: usize,
    ) {
        let v4 = meta.src.is_v4();
        let mut eth = EthernetFrame::new_unchecked(&mut *frame);
        eth.set_dst_addr(to);
        eth.set_src_addr(self.mac);
        eth.set_ethertype(if v4 {
            EthernetProtocol::Ipv4
        } else {
            EthernetProtocol::Ipv6
        });
        let packet = &mut frame[ETHERNET..];
        if v4 {
            self.ident = self.ident.wrapping_add(1);
            let mut p = Ipv4Packet::new_unchecked(&mut packet[..IPV4 + len]);
            p.set_version(4);
            p.set_header_len(IPV4 as u8);
            p.set_dscp(meta.tos >> 2);
            p.set_ecn(meta.tos & 3);
            p.set_total_len((IPV4 + len) as u16);
            p.set_ident(self.ident);
            p.clear_flags();
            p.set_more_frags(false);
            p.set_frag_offset(0);
            // Path MTU discovery depends on it (RFC 1191 §3).
            p.set_dont_frag(true);
            p.set_hop_limit(meta.hop_limit);
            p.set_next_header(meta.protocol);
            p.set_src_addr(meta.src.to_v4());
            p.set_dst_addr(meta.dst.to_v4());
            p.set_checksum(0);
            let sum = Sum::default().bytes(&packet[..IPV4]).finish();
            packet[10..12].copy_from_slice(&sum);
        } else {
            let mut p = Ipv6Packet::new_unchecked(&mut packet[..IPV6 + len]);
            p.set_version(6);
            p.set_traffic_class(meta.tos);
            p.set_flow_label(0);
            p.set_payload_len(len as u16);
            p.set_next_header(meta.protocol);
            p.set_hop_limit(meta.hop_limit);
            p.set_src_addr(meta.src.to_v6());
            p.set_dst_addr(meta.dst.to_v6());
        }
    }

    /// Fills the transport checksum at `field` of `transport`, or leaves the pseudo header's sum
    /// there for the device to finish.
    pub(crate) fn fill_checksum(
        &self,
        meta: &IpMeta,
        transport: &mut [u8],
        field: usize,
    ) -> Option<PartialChecksum> {
        let pseudo =
            Sum::default().pseudo(meta.src, meta.dst, meta.protocol.into(), transport.len());
        let offload =
            self.checksums.tx_offload && matches!(meta.protocol, IpProtocol::Tcp | IpProtocol::Udp);
        let bytes = if offload {
            pseudo.partial()
        } else {
            pseudo.bytes(transport).finish()
        };
        transport[field..field + 2].copy_from_slice(&bytes);
        offload.then(|| PartialChecksum {
            start: meta.transport_offset() as u16,
            offset: field as u16,
        })
    }

    /// Fills the whole checksum: frames that wait or loop back pass no device that could finish it.
    pub(crate) fn fill_full_checksum(&self, meta: &IpMeta, transport: &mut [u8], field: usize) {
        let sum = Sum::default()
            .pseudo(meta.src, meta.dst, meta.protocol.into(), transport.len())
            .bytes(transport)
            .finish();
        transport[field..field + 2].copy_from_slice(&sum);
    }

    /// Composes and queues a frame outside any connection. `fill` writes the transport data into
    /// zeroed bytes; `checksum_at` is its checksum field, if it covers the pseudo header.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        meta: &IpMeta,
        len: usize,
        checksum_at: Option<usize>,
        fill: impl FnOnce(&mut [u8]),
    ) {
        if self.control.len() >= CONTROL_FRAMES_MAX {
            self.control_drops += 1;
            return;
        }
        let mut cached = NeighborRef::default();
        let hop = self.next_hop(&mut cached, meta.dst, now);
        let to = match hop {
            NextHop::Link(mac) => mac,
            NextHop::Pending(_) => EthernetAddress([0; 6]),
            NextHop::Local => self.mac,
            NextHop::Unreachable | NextHop::NoRoute => {
                self.control_drops += 1;
                return;
            }
        };
        let mut frame = self.spare.pop().unwrap_or_default();
        let offset = meta.transport_offset();
        frame.clear();
        frame.resize(offset + len, 0);
        fill(&mut frame[offset..]);
        let partial = match checksum_at {
            Some(at) if !matches!(hop, NextHop::Local | NextHop::Pending(_)) => {
                self.fill_checksum(meta, &mut frame[offset..], at)
            }
            Some(at) => {
                self.fill_full_checksum(meta, &mut frame[offset..], at);
                None
            }
            None => None,
        };
        self.write_headers(&mut frame, meta, to, len);
        match hop {
            NextHop::Pending(r) => self.neighbors.hold(r, &frame),
            NextHop::Local => self.looped.push_back(frame),
            _ => self.control.push_back((frame, partial)),
        }
    }

    /// A frame to one of our own addresses: it comes back in by `take_looped`.
    pub(crate) fn loop_back(&mut self, frame: &[u8]) {
        if self.looped.len() < CONTROL_FRAMES_MAX {
            self.looped.push_back(frame.to_vec());
        } else {
            self.control_drops += 1;
        }
    }

    pub(crate) fn take_looped(&mut self) -> Option<Vec<u8>> {
        self.looped.pop_front()
    }

    pub(crate) fn control_is_full(&self) -> bool {
        self.control.len() >= CONTROL_FRAMES_MAX
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.control.is_empty() || !self.looped.is_empty()
    }

    /// Moves the next control frame into `out`.
    pub(crate) fn poll_control(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let (frame, checksum) = self.control.pop_front()?;
        let len = frame.len();
        out[..len].copy_from_slice(&frame);
        self.recycle(frame);
        Some(Transmit {
            len,
            checksum,
            gso: None,
        })
    }

    /// Queues a complete frame that had waited for `to`.
    fn release(&mut self, mut frame: Vec<u8>, to: EthernetAddress) {
        EthernetFrame::new_unchecked(&mut frame[..]).set_dst_addr(to);
        if self.control.len() < 4 * CONTROL_FRAMES_MAX {
            self.control.push_back((frame, None));
        } else {
            self.control_drops += 1;
        }
    }

    fn recycle(&mut self, frame: Vec<u8>) {
        if self.spare.len() < 64 {
            self.spare.push(frame);
        }
    }

    /// Records a neighbour's address and sends what waited for it.
    pub(crate) fn learn(&mut self, ip: Ip, mac: EthernetAddress, create: bool, now: Instant) {
        let (mac, frames) = self.neighbors.learn(ip, mac, create, now);
        for f in frames {
            self.release(f, mac);
        }
    }

    /// Sends due solicitations; returns frames that found no neighbour.
    pub(crate) fn run_neighbors(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let work = self.neighbors.take_work(now);
        for (ip, known) in work.solicit {
            if ip.is_v4() {
                self.send_arp(ArpOperation::Request, ip, known);
            } else {
                crate::icmp::solicit(self, ip, now);
            }
        }
        work.undeliverable
    }

    /// Queues an ARP request for `ip`, or a reply to it.
    pub(crate) fn send_arp(
        &mut self,
        operation: ArpOperation,
        ip: Ip,
        to: Option<EthernetAddress>,
    ) {
        let Ok(source) = self.source_for(ip) else {
            return;
        };
        let dst = to.unwrap_or(EthernetAddress::BROADCAST);
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: self.mac,
            source_protocol_addr: source.to_v4(),
            target_hardware_addr: to.unwrap_or(EthernetAddress([0; 6])),
            target_protocol_addr: ip.to_v4(),
        };
        self.queue_arp(&repr, dst);
    }

    fn queue_arp(&mut self, repr: &ArpRepr, dst: EthernetAddress) {
        if self.control.len() >= CONTROL_FRAMES_MAX {
            self.control_drops += 1;
            return;
        }
        let mut frame = vec![0; ETHERNET + repr.buffer_len()];
        let mut eth = EthernetFrame::new_unchecked(&mut frame[..]);
        eth.set_dst_addr(dst);
        eth.set_src_addr(self.mac);
        eth.set_ethertype(EthernetProtocol::Arp);
        repr.emit(&mut ArpPacket::new_unchecked(eth.payload_mut()));
        self.control.push_back((frame, None));
    }

    /// An ARP packet arrived (RFC 826's algorithm).
    pub(crate) fn arp_arrives(&mut self, bytes: &[u8], now: Instant) -> bool {
        let Ok(packet) = ArpPacket::new_checked(bytes) else {
            return false;
        };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: sha,
            source_protocol_addr: spa,
            target_protocol_addr: tpa,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return false;
        };
        let (sender, target) = (Ip::v4(spa), Ip::v4(tpa));
        let for_us = self.is_ours(target);
        if sender.is_valid_source() && !self.is_ours(sender) {
            self.learn(sender, sha, for_us, now);
        }
        if for_us && operation == ArpOperation::Request && sha.is_unicast() {
            let repr = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: self.mac,
                source_protocol_addr: tpa,
                target_hardware_addr: sha,
                target_protocol_addr: spa,
            };
            self.queue_arp(&repr, sha);
        }
        true
    }

    /// MTU of the path to `dst`.
    pub(crate) fn path_mtu(&self, dst: Ip, now: Instant) -> u16 {
        match self.pmtu.get(&dst) {
            Some(&(mtu, until)) if now < until => mtu.min(self.mtu),
            _ => self.mtu,
        }
    }

    /// Believes an ICMP report, within reason. Returns the new MTU if it shrank.
    pub(crate) fn learn_pmtu(&mut self, dst: Ip, claimed: u16, now: Instant) -> Option<u16> {
        let floor = if dst.is_v4() {
            PMTU_MIN_V4
        } else {
            PMTU_MIN_V6
        };
        let mtu = claimed.max(floor);
        if mtu >= self.path_mtu(dst, now) {
            return None;
        }
        if self.pmtu.len() >= PMTU_ENTRIES_MAX && !self.pmtu.contains_key(&dst) {
            self.pmtu.retain(|_, (_, until)| now < *until);
            if self.pmtu.len() >= PMTU_ENTRIES_MAX {
                self.pmtu.pop_first();
            }
        }
        self.pmtu.insert(dst, (mtu, now + PMTU_EXPIRES));
        Some(mtu)
    }
}

/// RFC 4291 §2.7.1.
pub(crate) fn solicited_node(ip: Ip) -> Ip {
    let prefix: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ip::v6(core::net::Ipv6Addr::from_bits(
        prefix | ip.bits() & 0xff_ffff,
    ))
}

/// RFC 1112 §6.4 and RFC 2464 §7.
fn multicast_mac(ip: Ip) -> EthernetAddress {
    let [a, b, c, d] = (ip.bits() as u32).to_be_bytes();
    if ip.is_v4() {
        EthernetAddress([1, 0, 0x5e, b & 0x7f, c, d])
    } else {
        EthernetAddress([0x33, 0x33, a, b, c, d])
    }
}
