//! Frames in: Ethernet and IP headers, fragments, and who gets what is inside.

use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};

use super::prediction::Prediction;
use super::{Belongs, Received, Stack, Strangers};
use crate::addr::{Endpoint, Ip};
use crate::checksum::Sum;
use crate::ip::icmp::{self, Complaint};
use crate::ip::iface::{Iface, IfaceId};
use crate::ip::reassembly::{Fragment, Key, Outcome};
use crate::ip::{ETHERNET, Extensions};
use crate::tcp::WARM_MAX;
use crate::time::Instant;
use crate::udp::Arrival;

/// An IP packet for us, its headers understood.
#[derive(Debug, Clone, Copy)]
struct Packet<'a> {
    iface: IfaceId,
    src: Ip,
    dst: Ip,
    protocol: IpProtocol,
    hop_limit: u8,
    /// DSCP and ECN.
    tos: u8,
    /// The whole packet, and what follows its headers.
    bytes: &'a [u8],
    transport: &'a [u8],
    checksum_ok: bool,
}

/// A TCP packet for us, its checksum not judged yet.
#[derive(Debug, Clone, Copy)]
struct Segmented<'a> {
    iface: IfaceId,
    src: Ip,
    dst: Ip,
    transport: &'a [u8],
    checksum_ok: bool,
    /// Congestion was experienced.
    ce: bool,
}

/// What is known about an IP packet besides its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) iface: IfaceId,
    pub(super) checksum_ok: bool,
    /// Made from fragments: a fragment within it is an attack.
    reassembled: bool,
}

impl Stack {
    /// Processes one Ethernet frame received on the first interface. Anything wrong with it is
    /// counted and dropped.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8], received: Received) {
        self.handle_frame_on(now, IfaceId::FIRST, frame, received);
    }

    /// Processes one Ethernet frame received on an interface; one the stack does not have receives
    /// nothing.
    pub fn handle_frame_on(
        &mut self,
        now: Instant,
        iface: IfaceId,
        frame: &[u8],
        received: Received,
    ) {
        self.stats.frames_in += 1;
        let Ok(eth) = EthernetFrame::new_checked(frame) else {
            self.stats.malformed += 1;
            return;
        };
        let dst = eth.dst_addr();
        let Some(link) = self.ip.iface(iface) else {
            self.stats.not_ours += 1;
            return;
        };
        if dst != link.mac && !dst.is_multicast() {
            self.stats.not_ours += 1;
            return;
        }
        let origin = Origin {
            iface,
            checksum_ok: received.checksum_ok || link.checksums.rx_verified,
            reassembled: false,
        };
        match eth.ethertype() {
            EthernetProtocol::Ipv4 => self.ipv4(now, &frame[ETHERNET..], origin),
            EthernetProtocol::Ipv6 => self.ipv6(now, &frame[ETHERNET..], origin),
            EthernetProtocol::Arp => {
                if !self.ip.arp_arrives(iface, &frame[ETHERNET..], now) {
                    self.stats.malformed += 1;
                }
            }
            EthernetProtocol::Unknown(_) => self.stats.malformed += 1,
        }
    }

    /// As [`handle_frame`](Self::handle_frame) for a batch in order. With many connections this is
    /// several times cheaper: the records of a batch are brought into the cache together.
    pub fn handle_frames<'a, I>(&mut self, now: Instant, frames: I)
    where
        I: Iterator<Item = (&'a [u8], Received)> + Clone,
    {
        self.handle_frames_on(now, IfaceId::FIRST, frames);
    }

    /// As [`handle_frames`](Self::handle_frames), for an interface.
    pub fn handle_frames_on<'a, I>(&mut self, now: Instant, iface: IfaceId, frames: I)
    where
        I: Iterator<Item = (&'a [u8], Received)> + Clone,
    {
        self.tcp.begin_batch();
        // A few flows stay in the cache by themselves.
        if self.flow_count() < WARM_FLOWS_MIN {
            for (frame, received) in frames {
                self.handle_next(now, iface, frame, received);
            }
            self.end_batch(now);
            return;
        }
        let mut rest = frames;
        loop {
            let mut tags = [0; WARM_MAX];
            let mut known = 0;
            let mut taken = 0;
            for (frame, _) in rest.clone().take(WARM_MAX) {
                taken += 1;
                if let Some((src, dst, ports)) = tcp_flow(frame) {
                    tags[known] = self.tcp.tag_of(src, dst, ports[0], ports[1]);
                    known += 1;
                }
            }
            if taken == 0 {
                self.end_batch(now);
                return;
            }
            self.tcp.warm(&tags[..known]);
            for (frame, received) in rest.by_ref().take(taken) {
                self.handle_next(now, iface, frame, received);
            }
        }
    }

    /// One frame of a batch.
    fn handle_next(&mut self, now: Instant, iface: IfaceId, frame: &[u8], received: Received) {
        if let Some(prediction) = &mut self.prediction
            && let Some(p) = prediction.predicts(iface, frame)
            && (p.src == prediction.src || p.src.is_valid_source() && !self.ip.is_broadcast(p.src))
        {
            prediction.src = p.src;
            self.stats.frames_in += 1;
            let verified = |i: &Iface| i.checksums.rx_verified;
            let packet = Segmented {
                iface,
                src: p.src,
                dst: p.dst,
                transport: p.transport,
                checksum_ok: received.checksum_ok || self.ip.iface(iface).is_some_and(verified),
                ce: p.ce,
            };
            self.tcp_segment(now, &packet);
            return;
        }
        self.was_segment = false;
        self.handle_frame_on(now, iface, frame, received);
        let behind = || Prediction::behind(iface, frame);
        self.prediction = self.was_segment.then(behind).flatten();
    }

    /// Between batches addresses change.
    fn end_batch(&mut self, now: Instant) {
        self.prediction = None;
        self.tcp.end_batch(now);
    }

    fn ipv4(&mut self, now: Instant, bytes: &[u8], origin: Origin) {
        let Ok(p) = Ipv4Packet::new_checked(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let header = usize::from(p.header_len());
        if p.version() != 4 || !Sum::default().bytes(&bytes[..header]).is_valid() {
            self.stats.bad_checksum += 1;
            return;
        }
        let packet = &bytes[..usize::from(p.total_len())];
        let (src, dst) = (Ip::v4(p.src_addr()), Ip::v4(p.dst_addr()));
        let iface = origin.iface;
        let cut = p.more_frags() || p.frag_offset() != 0;
        // Before there is an address, answers come to the one we are to have.
        if !self.dhcp.is_empty()
            && p.next_header() == IpProtocol::Udp
            && !cut
            && self.dhcp_arrives(now, origin, (src, dst), &packet[header..])
        {
            return;
        }
        if !self.ip.is_ours(dst)
            && !self.ip.is_broadcast(dst)
            && !self.ip.is_our_multicast(iface, dst)
        {
            self.stats.not_ours += 1;
            return;
        }
        // Hosts without an address speak to everybody.
        let nobody = src.is_unspecified() && dst.is_limited_broadcast();
        if !src.is_valid_source() && !nobody || self.ip.is_broadcast(src) {
            self.stats.bad_source += 1;
            return;
        }
        if cut {
            let fragment = Fragment {
                key: Key {
                    src,
                    dst,
                    ident: p.ident().into(),
                    protocol: p.next_header().into(),
                },
                iface,
                head: &packet[..header],
                next_header_at: 0,
                offset: p.frag_offset().into(),
                more: p.more_frags(),
                ecn: p.ecn(),
                data: &packet[header..],
            };
            self.fragment(now, &fragment, packet, origin);
            return;
        }
        self.deliver(
            now,
            &Packet {
                iface,
                src,
                dst,
                protocol: p.next_header(),
                hop_limit: p.hop_limit(),
                tos: packet[1],
                bytes: packet,
                transport: &packet[header..],
                checksum_ok: origin.checksum_ok,
            },
        );
    }

    fn ipv6(&mut self, now: Instant, bytes: &[u8], origin: Origin) {
        let p = match Ipv6Packet::new_checked(bytes) {
            Ok(p) if p.version() == 6 => p,
            _ => {
                self.stats.malformed += 1;
                return;
            }
        };
        let packet = &bytes[..p.total_len()];
        let (src, dst) = (Ip::v6(p.src_addr()), Ip::v6(p.dst_addr()));
        let iface = origin.iface;
        if !self.ip.is_ours_on(iface, dst) && !self.ip.is_our_multicast(iface, dst) {
            self.stats.not_ours += 1;
            return;
        }
        // Duplicate address detection solicits from the unspecified address.
        let unspecified_icmp = src.is_unspecified() && p.next_header() == IpProtocol::Icmpv6;
        // A v4-mapped source would pass for an IPv4 peer in the compact form.
        if !src.is_valid_source() && !unspecified_icmp || src.is_v4() {
            self.stats.bad_source += 1;
            return;
        }
        let Some(found) = Extensions::walk(packet) else {
            self.stats.malformed += 1;
            return;
        };
        let tos = p.traffic_class();
        let Some(fragment) = found.fragment else {
            self.deliver(
                now,
                &Packet {
                    iface,
                    src,
                    dst,
                    protocol: found.protocol,
                    hop_limit: p.hop_limit(),
                    tos,
                    bytes: packet,
                    transport: &packet[found.at..],
                    checksum_ok: origin.checksum_ok,
                },
            );
            return;
        };
        let data = &packet[found.at..];
        if fragment.offset == 0 && !Extensions::is_chain_whole(found.protocol, data) {
            self.stats.fragments += 1;
            self.stats.fragment_malformed += 1;
            self.complain(now, iface, (src, dst), Complaint::HeaderChain, packet);
            return;
        }
        let fragment = Fragment {
            key: Key {
                src,
                dst,
                ident: fragment.ident,
                protocol: 0,
            },
            iface,
            head: &packet[..found.at],
            next_header_at: fragment.next_header_at,
            offset: fragment.offset,
            more: fragment.more,
            ecn: tos & 3,
            data,
        };
        self.fragment(now, &fragment, packet, origin);
    }

    fn fragment(&mut self, now: Instant, f: &Fragment<'_>, packet: &[u8], origin: Origin) {
        self.stats.fragments += 1;
        if origin.reassembled {
            // Recursion would be the sender's to decide.
            self.stats.fragment_malformed += 1;
            return;
        }
        match self.ip.fragments.arrives(f, now) {
            Outcome::Waiting => {}
            Outcome::Refused(complaint) => {
                self.complain(now, f.iface, (f.key.src, f.key.dst), complaint, packet);
            }
            Outcome::Whole(packet) => {
                let origin = Origin {
                    checksum_ok: false,
                    reassembled: true,
                    ..origin
                };
                if f.key.src.is_v4() {
                    self.ipv4(now, &packet, origin);
                } else {
                    self.ipv6(now, &packet, origin);
                }
            }
        }
    }

    /// Ends datagrams whose fragments did not all come, and tells their senders.
    pub(super) fn fragments_expire(&mut self, now: Instant) {
        while let Some(e) = self.ip.fragments.expire(now) {
            let flow = (e.key.src, e.key.dst);
            self.complain(now, e.iface, flow, Complaint::ReassemblyTime, &e.packet);
        }
    }

    fn deliver(&mut self, now: Instant, p: &Packet<'_>) {
        let &Packet {
            iface,
            src,
            dst,
            transport,
            ..
        } = p;
        match p.protocol {
            IpProtocol::Icmp if src.is_v4() => {
                if let Some(report) =
                    icmp::v4_arrives(&mut self.ip, iface, src, dst, transport, now)
                {
                    self.icmp_report(&report, now);
                }
            }
            IpProtocol::Icmpv6 if !src.is_v4() => {
                let hops = p.hop_limit;
                let report = icmp::v6_arrives(&mut self.ip, iface, src, dst, hops, transport, now);
                if let Some(report) = report {
                    self.icmp_report(&report, now);
                }
            }
            IpProtocol::Igmp if src.is_v4() => {
                if !self.ip.igmp_arrives(iface, transport, now) {
                    self.stats.malformed += 1;
                }
            }
            IpProtocol::Tcp | IpProtocol::Udp if !self.is_own(p) => {}
            IpProtocol::Tcp => self.tcp_packet(now, p),
            IpProtocol::Udp => {
                let is_group = !self.ip.is_ours_on(iface, dst);
                if is_group && !self.ip.groups.hears(iface, dst, src) {
                    return;
                }
                let arrival = Arrival {
                    iface,
                    src,
                    dst,
                    ttl: p.hop_limit,
                    tos: p.tos,
                    at: now,
                    is_group,
                };
                let found = self.udp.packet_arrives(&arrival, transport, p.checksum_ok);
                if !found {
                    self.complain(now, iface, (src, dst), Complaint::PortUnreachable, p.bytes);
                }
            }
            _ => self.stats.malformed += 1,
        }
    }

    /// Whether a TCP or UDP packet is this shard's. Fragments come to all of them, and made whole still do.
    fn is_own(&self, p: &Packet<'_>) -> bool {
        if self.shard.count() == 1 {
            return true;
        }
        // What has no ports is counted as malformed, once.
        let Some(&[a, b, c, d]) = p.transport.first_chunk() else {
            return self.shard.speaks_for_host();
        };
        let (src, dst) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        match p.protocol {
            IpProtocol::Tcp => self.shard.has_flow(dst, src),
            _ if self.udp.shared.has(dst) => {
                let at = |ip, port| Endpoint { ip, port };
                let to_group = !self.ip.is_ours_on(p.iface, p.dst);
                let (local, remote) = (at(p.dst, dst), at(p.src, src));
                let whose = self
                    .udp
                    .shared
                    .shard_of_datagram(local, remote, p.iface, to_group);
                whose == Belongs::All || whose == Belongs::To(self.shard.index())
            }
            _ => self.shard.has_udp(dst),
        }
    }

    fn tcp_packet(&mut self, now: Instant, p: &Packet<'_>) {
        if !self.ip.is_ours_on(p.iface, p.dst) {
            // RFC 9293 §3.9.2.3: TCP ignores broadcast and multicast.
            self.stats.not_ours += 1;
            return;
        }
        self.tcp_segment(
            now,
            &Segmented {
                iface: p.iface,
                src: p.src,
                dst: p.dst,
                transport: p.transport,
                checksum_ok: p.checksum_ok,
                ce: p.tos & 3 == 3,
            },
        );
    }

    fn tcp_segment(&mut self, now: Instant, s: &Segmented<'_>) {
        let sum = || {
            Sum::default()
                .pseudo(s.src, s.dst, IpProtocol::Tcp.into(), s.transport.len())
                .bytes(s.transport)
                .is_valid()
        };
        if !s.checksum_ok && !sum() {
            self.stats.bad_checksum += 1;
            return;
        }
        let (ip, tcp) = (&mut self.ip, &mut self.tcp);
        tcp.packet_arrives(ip, s.iface, s.src, s.dst, s.transport, s.ce, now);
        self.was_segment = true;
    }

    /// Sends an ICMP error about a packet from `flow.0` to `flow.1`, where the rules allow one: not
    /// about groups (RFC 1122 §3.2.2), and within the budget. Ports are the shard's own; what all shards
    /// find wrong, one says. [Ignored strangers](Strangers::Ignored) hear of nothing.
    fn complain(
        &mut self,
        now: Instant,
        iface: IfaceId,
        flow: (Ip, Ip),
        complaint: Complaint,
        packet: &[u8],
    ) {
        let is_ours_to_say = match complaint {
            Complaint::PortUnreachable => self.ip.strangers != Strangers::Ignored,
            _ => self.ip.speaks_for_host(),
        };
        if is_ours_to_say
            && self.ip.is_ours_on(iface, flow.1)
            && flow.0.is_valid_source()
            && self.icmp_budget.take(now)
        {
            icmp::complain(&mut self.ip, iface, flow, complaint, packet, now);
        }
    }
}

/// Flows from which on bringing records into the cache pays.
const WARM_FLOWS_MIN: usize = 64;

/// Addresses and ports of a plain TCP frame, nothing verified; for cache warming only.
fn tcp_flow(frame: &[u8]) -> Option<(Ip, Ip, [u16; 2])> {
    let v4 = |at| Some(Ip::v4(u32::from_be_bytes(*field(frame, at)?).into()));
    let v6 = |at| Some(Ip::v6((*field::<16>(frame, at)?).into()));
    let ports = |at| {
        let [a, b, c, d] = *field(frame, at)?;
        Some([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
    };
    match (*frame.get(12)?, *frame.get(13)?) {
        (8, 0) if *frame.get(14)? == 0x45 && *frame.get(23)? == 6 => {
            Some((v4(26)?, v4(30)?, ports(34)?))
        }
        (0x86, 0xdd) if *frame.get(20)? == 6 => Some((v6(22)?, v6(38)?, ports(54)?)),
        _ => None,
    }
}

/// The `N` bytes at `at`.
fn field<const N: usize>(frame: &[u8], at: usize) -> Option<&[u8; N]> {
    frame.get(at..)?.first_chunk()
}
