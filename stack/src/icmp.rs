//! ICMP and ICMPv6: echo, errors in (handed up as [`Report`]s) and out, neighbour discovery.

use core::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv6DstUnreachable,
    Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv6Packet,
    NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

use crate::addr::{Endpoint, FourTuple, Ip};
use crate::checksum::Sum;
use crate::error::Cause;
use crate::iface::{Iface, IpMeta, solicited_node};
use crate::tcp::Seq;
use crate::time::Instant;

const CHECKSUM_AT: usize = 2;
const HEADER: usize = 8;
/// RFC 4861 §7.1: anything less has crossed a router.
const NDISC_HOPS: u8 = 255;
/// An ICMPv4 error quotes the header and eight bytes (RFC 792); more helps, within 576 bytes.
const QUOTE_BYTES_MAX: usize = 548;

/// An ICMP error about a packet of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) protocol: IpProtocol,
    /// The flow of the quoted packet, seen from us.
    pub(crate) tuple: FourTuple,
    /// Sequence number of a quoted TCP segment.
    pub(crate) seq: Seq,
    pub(crate) kind: ReportKind,
}

/// What an ICMP error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportKind {
    /// `hard`: ends a connection attempt (RFC 1122 §4.2.3.9).
    Unreachable {
        cause: Cause,
        hard: bool,
    },
    PacketTooBig {
        mtu: u16,
    },
}

/// An ICMPv4 message addressed to us.
pub(crate) fn v4_arrives(
    iface: &mut Iface,
    src: Ip,
    dst: Ip,
    bytes: &[u8],
    now: Instant,
) -> Option<Report> {
    let p = Icmpv4Packet::new_checked(bytes).ok()?;
    if !Sum::default().bytes(bytes).is_valid() {
        return None;
    }
    match p.msg_type() {
        Icmpv4Message::EchoRequest if !iface.is_broadcast(dst) => {
            let meta = IpMeta::new(dst, src, IpProtocol::Icmp);
            iface.send(now, &meta, bytes.len(), None, |out| {
                out.copy_from_slice(bytes);
                out[0] = Icmpv4Message::EchoReply.into();
                out[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
                let sum = Sum::default().bytes(out).finish();
                out[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum);
            });
            None
        }
        Icmpv4Message::DstUnreachable => {
            let kind = match Icmpv4DstUnreachable::from(p.msg_code()) {
                Icmpv4DstUnreachable::FragRequired => {
                    let mtu = u16::from_be_bytes([bytes[6], bytes[7]]);
                    ReportKind::PacketTooBig { mtu }
                }
                Icmpv4DstUnreachable::PortUnreachable => ReportKind::Unreachable {
                    cause: Cause::Refused,
                    hard: true,
                },
                Icmpv4DstUnreachable::ProtoUnreachable => ReportKind::Unreachable {
                    cause: Cause::ProtocolUnreachable,
                    hard: true,
                },
                Icmpv4DstUnreachable::NetUnreachable | Icmpv4DstUnreachable::DstNetUnknown => {
                    ReportKind::Unreachable {
                        cause: Cause::NetUnreachable,
                        hard: true,
                    }
                }
                Icmpv4DstUnreachable::NetProhibited
                | Icmpv4DstUnreachable::HostProhibited
                | Icmpv4DstUnreachable::CommProhibited => ReportKind::Unreachable {
                    cause: Cause::Prohibited,
                    hard: true,
                },
                _ => ReportKind::Unreachable {
                    cause: Cause::HostUnreachable,
                    hard: true,
                },
            };
            quoted_v4(bytes.get(HEADER..)?, kind)
        }
        Icmpv4Message::TimeExceeded | Icmpv4Message::ParamProblem => {
            let kind = ReportKind::Unreachable {
                cause: Cause::HostUnreachable,
                hard: false,
            };
            quoted_v4(bytes.get(HEADER..)?, kind)
        }
        _ => None,
    }
}

/// The flow of an IP packet, whole or cut short.
pub(crate) fn quoted_packet(bytes: &[u8], kind: ReportKind) -> Option<Report> {
    match bytes.first()? >> 4 {
        4 => quoted_v4(bytes, kind),
        6 => quoted_v6(bytes, kind),
        _ => None,
    }
}

fn quoted_v4(bytes: &[u8], kind: ReportKind) -> Option<Report> {
    // The quote is cut short, so only the header's own lengths can be checked.
    let p = Ipv4Packet::new_unchecked(bytes);
    if bytes.len() < 20 || p.version() != 4 || p.frag_offset() != 0 {
        return None;
    }
    let transport = bytes.get(usize::from(p.header_len())..)?;
    quoted(
        Ip::v4(p.src_addr()),
        Ip::v4(p.dst_addr()),
        p.next_header(),
        transport,
        kind,
    )
}

fn quoted(
    src: Ip,
    dst: Ip,
    protocol: IpProtocol,
    transport: &[u8],
    kind: ReportKind,
) -> Option<Report> {
    let (b, _) = transport.split_first_chunk::<8>()?;
    let local = Endpoint {
        ip: src,
        port: u16::from_be_bytes([b[0], b[1]]),
    };
    let remote = Endpoint {
        ip: dst,
        port: u16::from_be_bytes([b[2], b[3]]),
    };
    let seq = Seq(u32::from_be_bytes([b[4], b[5], b[6], b[7]]));
    Some(Report {
        protocol,
        tuple: FourTuple { local, remote },
        seq,
        kind,
    })
}

/// An ICMPv6 message addressed to us; `hops` is the packet's hop limit.
pub(crate) fn v6_arrives(
    iface: &mut Iface,
    src: Ip,
    dst: Ip,
    hops: u8,
    bytes: &[u8],
    now: Instant,
) -> Option<Report> {
    let sum = Sum::default()
        .pseudo(src, dst, IpProtocol::Icmpv6.into(), bytes.len())
        .bytes(bytes);
    if bytes.len() < HEADER || !sum.is_valid() {
        return None;
    }
    let p = Icmpv6Packet::new_checked(bytes).ok()?;
    match p.msg_type() {
        Icmpv6Message::EchoRequest => {
            let from = if dst.is_multicast() {
                iface.source_for(src).ok()?
            } else {
                dst
            };
            let meta = IpMeta::new(from, src, IpProtocol::Icmpv6);
            iface.send(now, &meta, bytes.len(), Some(CHECKSUM_AT), |out| {
                out.copy_from_slice(bytes);
                out[0] = Icmpv6Message::EchoReply.into();
                out[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
            });
            None
        }
        Icmpv6Message::NeighborSolicit | Icmpv6Message::NeighborAdvert if hops == NDISC_HOPS => {
            neighbor_message(iface, src, bytes, now);
            None
        }
        Icmpv6Message::PktTooBig => {
            let mtu = p.pkt_too_big_mtu().min(u32::from(u16::MAX)) as u16;
            quoted_v6(bytes.get(HEADER..)?, ReportKind::PacketTooBig { mtu })
        }
        Icmpv6Message::DstUnreachable => {
            let cause = match Icmpv6DstUnreachable::from(p.msg_code()) {
                Icmpv6DstUnreachable::NoRoute => Cause::NetUnreachable,
                Icmpv6DstUnreachable::AdminProhibit
                | Icmpv6DstUnreachable::FailedPolicy
                | Icmpv6DstUnreachable::RejectRoute => Cause::Prohibited,
                Icmpv6DstUnreachable::PortUnreachable => Cause::Refused,
                _ => Cause::HostUnreachable,
            };
            quoted_v6(
                bytes.get(HEADER..)?,
                ReportKind::Unreachable { cause, hard: true },
            )
        }
        Icmpv6Message::TimeExceeded | Icmpv6Message::ParamProblem => {
            let kind = ReportKind::Unreachable {
                cause: Cause::HostUnreachable,
                hard: false,
            };
            quoted_v6(bytes.get(HEADER..)?, kind)
        }
        _ => None,
    }
}

fn quoted_v6(bytes: &[u8], kind: ReportKind) -> Option<Report> {
    if bytes.len() < 40 {
        return None;
    }
    let p = Ipv6Packet::new_unchecked(bytes);
    if p.version() != 6 {
        return None;
    }
    let transport = &bytes[40..];
    quoted(
        Ip::v6(p.src_addr()),
        Ip::v6(p.dst_addr()),
        p.next_header(),
        transport,
        kind,
    )
}

/// RFC 4861 §7.2.3 to §7.2.5.
fn neighbor_message(iface: &mut Iface, src: Ip, bytes: &[u8], now: Instant) {
    let p = Icmpv6Packet::new_unchecked(bytes);
    let ethernet = |l: RawHardwareAddress| {
        (l.as_bytes().len() == 6).then(|| EthernetAddress::from_bytes(l.as_bytes()))
    };
    match NdiscRepr::parse(&p) {
        Ok(NdiscRepr::NeighborSolicit {
            target_addr,
            lladdr,
        }) => {
            let target = Ip::v6(target_addr);
            if !iface.is_ours(target) {
                return;
            }
            let dad = src.is_unspecified();
            if !dad && let Some(mac) = lladdr.and_then(ethernet) {
                iface.learn(src, mac, true, now);
            }
            let all_nodes = Ip::v6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
            let flags = if dad {
                NdiscNeighborFlags::OVERRIDE
            } else {
                NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::SOLICITED
            };
            let repr = NdiscRepr::NeighborAdvert {
                flags,
                target_addr,
                lladdr: Some(RawHardwareAddress::from_bytes(iface.mac.as_bytes())),
            };
            send_ndisc(iface, target, if dad { all_nodes } else { src }, repr, now);
        }
        Ok(NdiscRepr::NeighborAdvert {
            target_addr,
            lladdr,
            ..
        }) => {
            if let Some(mac) = lladdr.and_then(ethernet) {
                iface.learn(Ip::v6(target_addr), mac, false, now);
            }
        }
        _ => {}
    }
}

/// Queues a neighbour solicitation.
pub(crate) fn solicit(iface: &mut Iface, target: Ip, now: Instant) {
    let Ok(source) = iface.source_for(target) else {
        return;
    };
    let repr = NdiscRepr::NeighborSolicit {
        target_addr: target.to_v6(),
        lladdr: Some(RawHardwareAddress::from_bytes(iface.mac.as_bytes())),
    };
    send_ndisc(iface, source, solicited_node(target), repr, now);
}

fn send_ndisc(iface: &mut Iface, src: Ip, dst: Ip, repr: NdiscRepr<'_>, now: Instant) {
    let mut meta = IpMeta::new(src, dst, IpProtocol::Icmpv6);
    meta.hop_limit = NDISC_HOPS;
    let repr = Icmpv6Repr::Ndisc(repr);
    let len = repr.buffer_len();
    iface.send(now, &meta, len, Some(CHECKSUM_AT), |out| {
        let caps = ChecksumCapabilities::ignored();
        repr.emit(
            &meta.src.to_v6(),
            &meta.dst.to_v6(),
            &mut Icmpv6Packet::new_unchecked(out),
            &caps,
        );
        out[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
    });
}

/// Queues "port unreachable" about a datagram that found no socket; `packet` is its IP packet.
pub(crate) fn port_unreachable(iface: &mut Iface, src: Ip, dst: Ip, packet: &[u8], now: Instant) {
    let quote = &packet[..packet.len().min(QUOTE_BYTES_MAX)];
    let len = HEADER + quote.len();
    if src.is_v4() {
        let meta = IpMeta::new(dst, src, IpProtocol::Icmp);
        iface.send(now, &meta, len, None, |out| {
            out[0] = Icmpv4Message::DstUnreachable.into();
            out[1] = Icmpv4DstUnreachable::PortUnreachable.into();
            out[HEADER..].copy_from_slice(quote);
            let sum = Sum::default().bytes(out).finish();
            out[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum);
        });
    } else {
        let meta = IpMeta::new(dst, src, IpProtocol::Icmpv6);
        iface.send(now, &meta, len, Some(CHECKSUM_AT), |out| {
            out[0] = Icmpv6Message::DstUnreachable.into();
            out[1] = Icmpv6DstUnreachable::PortUnreachable.into();
            out[HEADER..].copy_from_slice(quote);
        });
    }
}
