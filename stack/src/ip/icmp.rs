//! ICMP and ICMPv6: echo, errors in (handed up as [`Report`]s) and out.

use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4TimeExceeded, Icmpv6DstUnreachable,
    Icmpv6Message, Icmpv6Packet, Icmpv6ParamProblem, Icmpv6TimeExceeded, IpProtocol, Ipv4Packet,
    Ipv6Packet,
};

use super::iface::IfaceId;
use super::membership::{MLD_DONE_V1, MLD_QUERY};
use super::{Extensions, IpLayer, IpMeta};
use crate::addr::{Endpoint, FourTuple, Ip};
use crate::checksum::Sum;
use crate::error::Cause;
use crate::tcp::Seq;
use crate::time::Instant;

pub(super) const CHECKSUM_AT: usize = 2;
const HEADER: usize = 8;
/// RFC 7112 §5, not among smoltcp's codes.
const INCOMPLETE_HEADER_CHAIN: u8 = 3;

/// An ICMPv4 error quotes the header and eight bytes (RFC 792); more helps, within 576 bytes. An
/// ICMPv6 error quotes what fits the least MTU (RFC 4443 §2.4).
const fn quote_bytes_max(v4: bool) -> usize {
    if v4 { 576 - 28 } else { 1280 - 48 }
}

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

impl IpLayer {
    /// Sends an echo reply: as large as what was asked, and so in fragments where that came in fragments.
    /// One that finds no room is lost, as any answer of a busy host.
    fn echo(
        &mut self,
        now: Instant,
        meta: &IpMeta,
        len: usize,
        checksum_at: Option<usize>,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let mtu = self.path_mtu(meta.dst, meta.iface, now);
        if self
            .send_datagram(now, meta, mtu, len, checksum_at, fill)
            .is_err()
        {
            self.control_drops += 1;
        }
    }
}

/// An ICMPv4 message addressed to us.
pub(crate) fn v4_arrives(
    ip: &mut IpLayer,
    arrival: IfaceId,
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
        Icmpv4Message::EchoRequest if ip.is_ours(dst) && ip.speaks_for_host() => {
            let meta = IpMeta::reply(dst, src, IpProtocol::Icmp, arrival);
            ip.echo(now, &meta, bytes.len(), None, |out| {
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
    ip: &mut IpLayer,
    arrival: IfaceId,
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
    // RFC 3810 §6.2: from a neighbour that says who it is. smoltcp does not know MLDv1.
    if matches!(bytes[0], MLD_QUERY..=MLD_DONE_V1) {
        if src.is_link_local_v6() && hops == 1 {
            ip.mld_arrives(arrival, bytes, now);
        }
        return None;
    }
    let p = Icmpv6Packet::new_checked(bytes).ok()?;
    match p.msg_type() {
        Icmpv6Message::EchoRequest if ip.speaks_for_host() => {
            let from = if dst.is_multicast() {
                ip.source_for(src, IpLayer::reply_by(src, arrival)).ok()?
            } else {
                dst
            };
            let meta = IpMeta::reply(from, src, IpProtocol::Icmpv6, arrival);
            ip.echo(now, &meta, bytes.len(), Some(CHECKSUM_AT), |out| {
                out.copy_from_slice(bytes);
                out[0] = Icmpv6Message::EchoReply.into();
                out[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
            });
            None
        }
        Icmpv6Message::NeighborSolicit | Icmpv6Message::NeighborAdvert
            if hops == super::ndisc::HOPS =>
        {
            ip.neighbor_message(arrival, src, bytes, now);
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
    let found = Extensions::walk(bytes)?;
    if p.version() != 6 || found.fragment.is_some_and(|f| f.offset != 0) {
        return None;
    }
    quoted(
        Ip::v6(p.src_addr()),
        Ip::v6(p.dst_addr()),
        found.protocol,
        bytes.get(found.at..)?,
        kind,
    )
}

/// An ICMP error of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// No socket on the port.
    PortUnreachable,
    /// The fragments of a packet did not all come in time.
    ReassemblyTime,
    /// IPv6: the field at this offset of the packet makes no sense.
    BadField(u32),
    /// IPv6: a first fragment without the whole chain of headers (RFC 7112 §5).
    HeaderChain,
}

/// Queues an error to `src` about `packet`, its IP packet to `dst`. The caller has seen to it that
/// the packet was for a unicast address and that the budget of errors allows it.
pub(crate) fn complain(
    ip: &mut IpLayer,
    arrival: IfaceId,
    (src, dst): (Ip, Ip),
    complaint: Complaint,
    packet: &[u8],
    now: Instant,
) {
    let v4 = src.is_v4();
    let (kind, code, pointer): (u8, u8, u32) = match complaint {
        Complaint::PortUnreachable if v4 => (
            Icmpv4Message::DstUnreachable.into(),
            Icmpv4DstUnreachable::PortUnreachable.into(),
            0,
        ),
        Complaint::PortUnreachable => (
            Icmpv6Message::DstUnreachable.into(),
            Icmpv6DstUnreachable::PortUnreachable.into(),
            0,
        ),
        Complaint::ReassemblyTime if v4 => (
            Icmpv4Message::TimeExceeded.into(),
            Icmpv4TimeExceeded::FragExpired.into(),
            0,
        ),
        Complaint::ReassemblyTime => (
            Icmpv6Message::TimeExceeded.into(),
            Icmpv6TimeExceeded::FragReassemExceeded.into(),
            0,
        ),
        Complaint::BadField(at) => (
            Icmpv6Message::ParamProblem.into(),
            Icmpv6ParamProblem::ErroneousHdrField.into(),
            at,
        ),
        Complaint::HeaderChain => (
            Icmpv6Message::ParamProblem.into(),
            INCOMPLETE_HEADER_CHAIN,
            0,
        ),
    };
    let quote = &packet[..packet.len().min(quote_bytes_max(v4))];
    let protocol = if v4 {
        IpProtocol::Icmp
    } else {
        IpProtocol::Icmpv6
    };
    let meta = IpMeta::reply(dst, src, protocol, arrival);
    let checksum_at = (!v4).then_some(CHECKSUM_AT);
    ip.send(now, &meta, HEADER + quote.len(), checksum_at, |out| {
        out[0] = kind;
        out[1] = code;
        out[4..HEADER].copy_from_slice(&pointer.to_be_bytes());
        out[HEADER..].copy_from_slice(quote);
        if v4 {
            let sum = Sum::default().bytes(out).finish();
            out[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum);
        }
    });
}
