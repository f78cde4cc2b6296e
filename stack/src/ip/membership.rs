//! IGMP and MLD on the wire. smoltcp knows IGMPv1 and v2; the report of IGMPv3 and the messages of MLD are
//! composed here.

use core::time::Duration;

use smoltcp::wire::{IgmpPacket, IgmpRepr, IgmpVersion, IpProtocol, Ipv4Packet};

use super::filter::FilterMode;
use super::groups::{Change, GroupReport, Query, Version};
use super::icmp::CHECKSUM_AT;
use super::iface::IfaceId;
use super::output::{ETHERNET, IPV4, IPV6};
use super::{IpLayer, IpMeta};
use crate::addr::Ip;
use crate::checksum::Sum;
use crate::time::Instant;

const IGMP_QUERY: u8 = 0x11;
const IGMP_REPORT_V3: u8 = 0x22;
const MLD_REPORT_V1: u8 = 131;
pub(super) const MLD_DONE_V1: u8 = 132;
pub(super) const MLD_QUERY: u8 = 130;
const MLD_REPORT_V2: u8 = 143;

/// Router Alert: routers look at packets that are not addressed to them (RFC 2113, RFC 2711).
const ALERT_V4: [u8; 4] = [0x94, 4, 0, 0];
const ALERT_V6: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];

/// IGMPv1 queries name no time.
const V1_WITHIN: Duration = Duration::from_secs(10);

/// The report of a current version before its record, and that before its senders (RFC 3376 §4.2,
/// RFC 3810 §5.2).
const REPORT: usize = 8;
const fn record_bytes(v4: bool) -> usize {
    4 + address_bytes(v4)
}

const fn address_bytes(v4: bool) -> usize {
    if v4 { 4 } else { 16 }
}

const fn record_type(change: Change) -> u8 {
    match change {
        Change::Is(FilterMode::Include) => 1,
        Change::Is(FilterMode::Exclude) => 2,
        Change::To(FilterMode::Include) => 3,
        Change::To(FilterMode::Exclude) => 4,
        Change::Allow => 5,
        Change::Block => 6,
    }
}

/// The senders that a query of a current version names, in front of which their number stands; `None` if
/// they are not all there.
fn asked_sources(bytes: &[u8], v4: bool) -> Option<Vec<Ip>> {
    let (count, rest) = bytes.split_first_chunk::<2>()?;
    let size = address_bytes(v4);
    let list = rest.get(..usize::from(u16::from_be_bytes(*count)) * size)?;
    list.chunks_exact(size).map(address).collect()
}

fn address(bytes: &[u8]) -> Option<Ip> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| Ip::v4((*b).into())),
        _ => bytes.first_chunk::<16>().map(|b| Ip::v6((*b).into())),
    }
}

fn put_address(to: &mut [u8], ip: Ip) {
    match to.len() {
        4 => to.copy_from_slice(&ip.to_v4().octets()),
        _ => to.copy_from_slice(&ip.to_v6().octets()),
    }
}

/// The body of a report of a current version, one record, without type and checksum.
fn put_record(report: &mut [u8], r: &GroupReport, sources: &[Ip]) {
    let size = address_bytes(r.group.is_v4());
    report[7] = 1;
    let record = &mut report[REPORT..];
    record[0] = record_type(r.change);
    record[2..4].copy_from_slice(&(sources.len() as u16).to_be_bytes());
    let addresses = core::iter::once(&r.group).chain(sources);
    for (to, ip) in record[4..].chunks_exact_mut(size).zip(addresses) {
        put_address(to, *ip);
    }
}

impl IpLayer {
    /// An IGMP message arrived; false if it is malformed.
    pub(crate) fn igmp_arrives(&mut self, iface: IfaceId, bytes: &[u8], now: Instant) -> bool {
        let Ok(p) = IgmpPacket::new_checked(bytes) else {
            return false;
        };
        if !Sum::default().bytes(bytes).is_valid() {
            return false;
        }
        let group = Ip::v4(p.group_addr());
        if bytes[0] == IGMP_QUERY {
            // RFC 3376 §7.1: length and time tell the versions apart.
            let (version, within) = match (p.max_resp_code(), bytes.len()) {
                (0, 8) => (Version::One, V1_WITHIN),
                (code, 8) => (Version::Two, Duration::from_millis(u64::from(code) * 100)),
                (code, 12..) => (Version::Three, Duration::from_millis(tenths(code) * 100)),
                _ => return false,
            };
            let sources = match version {
                Version::Three => asked_sources(&bytes[10..], true),
                _ => Some(Vec::new()),
            };
            let Some(sources) = sources else {
                return false;
            };
            self.query_arrives(iface, group, sources, (version, within), now);
        } else if let Ok(IgmpRepr::MembershipReport { .. }) = IgmpRepr::parse(&p) {
            self.groups.report_arrives(iface, group, now);
        }
        true
    }

    /// An ICMPv6 message of MLD's types arrived, its checksum valid.
    pub(super) fn mld_arrives(&mut self, iface: IfaceId, bytes: &[u8], now: Instant) {
        let Some(group) = bytes.get(8..24).and_then(<[u8]>::first_chunk::<16>) else {
            return;
        };
        let group = Ip::v6((*group).into());
        if bytes[0] == MLD_QUERY {
            let code = u16::from_be_bytes([bytes[4], bytes[5]]);
            let (version, within) = match bytes.len() {
                24 => (Version::Two, Duration::from_millis(code.into())),
                28.. => (Version::Three, Duration::from_millis(millis(code))),
                _ => return,
            };
            let sources = match version {
                Version::Three => asked_sources(&bytes[26..], false),
                _ => Some(Vec::new()),
            };
            if let Some(sources) = sources {
                self.query_arrives(iface, group, sources, (version, within), now);
            }
        } else if bytes[0] == MLD_REPORT_V1 {
            self.groups.report_arrives(iface, group, now);
        }
    }

    fn query_arrives(
        &mut self,
        iface: IfaceId,
        group: Ip,
        sources: Vec<Ip>,
        (version, within): (Version, Duration),
        now: Instant,
    ) {
        let query = Query {
            group: (!group.is_unspecified()).then_some(group),
            sources,
            version,
            within,
        };
        // Senders without a group are nobody's (RFC 3376 §4.1.9).
        if query.group.is_some() || query.sources.is_empty() {
            self.groups.query_arrives(iface, group.is_v4(), &query, now);
        }
    }

    /// Sends the reports that are due.
    pub(crate) fn run_groups(&mut self, now: Instant) {
        for report in self.groups.due(now) {
            let v4 = report.group.is_v4();
            let headers = if v4 {
                IPV4 + ALERT_V4.len()
            } else {
                IPV6 + ALERT_V6.len()
            };
            let room = usize::from(self.ifaces[report.iface.index()].mtu)
                .saturating_sub(headers + REPORT + record_bytes(v4));
            let fits = (room / address_bytes(v4)).max(1);
            // Of those that nobody wants, routers learn as many as one report holds (RFC 3376 §4.2.16).
            let is_cut = matches!(
                report.change,
                Change::Is(FilterMode::Exclude) | Change::To(FilterMode::Exclude)
            );
            let mut rest = &report.sources[..];
            loop {
                let (sources, beyond) = rest.split_at(rest.len().min(fits));
                if v4 {
                    self.send_igmp(&report, sources, now);
                } else {
                    self.send_mld(&report, sources, now);
                }
                rest = beyond;
                if rest.is_empty() || is_cut || report.version < Version::Three {
                    break;
                }
            }
        }
    }

    fn send_igmp(&mut self, r: &GroupReport, sources: &[Ip], now: Instant) {
        let group_addr = r.group.to_v4();
        let report = |version| IgmpRepr::MembershipReport {
            group_addr,
            version,
        };
        let (repr, dst) = match (r.version, r.change) {
            (Version::Three, _) => (None, Ip::IGMPV3_ROUTERS),
            // IGMPv1 knows no leave: who is not heard is gone.
            (Version::One, Change::To(FilterMode::Include)) => return,
            (Version::One, _) => (Some(report(IgmpVersion::Version1)), r.group),
            (Version::Two, Change::To(FilterMode::Include)) => (
                Some(IgmpRepr::LeaveGroup { group_addr }),
                Ip::ALL_ROUTERS_V4,
            ),
            (Version::Two, _) => (Some(report(IgmpVersion::Version2)), r.group),
        };
        let len = ALERT_V4.len()
            + match repr {
                Some(_) => 8,
                None => REPORT + record_bytes(true) + sources.len() * 4,
            };
        let mut meta = self.local_meta(r.iface, dst, IpProtocol::Igmp);
        // Internetwork control (RFC 3376 §4).
        meta.tos = 0xc0;
        self.send_patched(now, &meta, len, |packet| {
            let (header, igmp) = packet.split_at_mut(IPV4 + ALERT_V4.len());
            header[IPV4..].copy_from_slice(&ALERT_V4);
            if let Some(repr) = repr {
                repr.emit(&mut IgmpPacket::new_unchecked(&mut *igmp));
            } else {
                igmp[0] = IGMP_REPORT_V3;
                put_record(igmp, r, sources);
                let sum = Sum::default().bytes(igmp).finish();
                igmp[2..4].copy_from_slice(&sum);
            }
            let header_len = header.len() as u8;
            Ipv4Packet::new_unchecked(&mut *header).set_header_len(header_len);
            header[10..12].fill(0);
            let sum = Sum::default().bytes(header).finish();
            header[10..12].copy_from_slice(&sum);
        });
    }

    fn send_mld(&mut self, r: &GroupReport, sources: &[Ip], now: Instant) {
        let is_left = r.change == Change::To(FilterMode::Include);
        let (dst, len) = match r.version {
            Version::Three => (
                Ip::MLDV2_ROUTERS,
                REPORT + record_bytes(false) + sources.len() * 16,
            ),
            _ if is_left => (Ip::ALL_ROUTERS_V6, 24),
            _ => (r.group, 24),
        };
        let meta = self.local_meta(r.iface, dst, IpProtocol::HopByHop);
        self.send(now, &meta, ALERT_V6.len() + len, None, |out| {
            let (alert, mld) = out.split_at_mut(ALERT_V6.len());
            alert.copy_from_slice(&ALERT_V6);
            if r.version == Version::Three {
                mld[0] = MLD_REPORT_V2;
                put_record(mld, r, sources);
            } else {
                mld[0] = if is_left { MLD_DONE_V1 } else { MLD_REPORT_V1 };
                mld[8..].copy_from_slice(&r.group.to_v6().octets());
            }
            let icmp = IpProtocol::Icmpv6.into();
            let pseudo = Sum::default().pseudo(meta.src, meta.dst, icmp, mld.len());
            let sum = pseudo.bytes(mld).finish();
            mld[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum);
        });
    }

    /// A packet that stays on its link, from the address that is good for this.
    fn local_meta(&self, iface: IfaceId, dst: Ip, protocol: IpProtocol) -> IpMeta {
        let unspecified = if dst.is_v4() {
            Ip::UNSPECIFIED_V4
        } else {
            Ip::UNSPECIFIED_V6
        };
        let src = self.addresses.for_link(iface, dst.is_v4());
        IpMeta {
            hop_limit: 1,
            iface: Some(iface),
            ..IpMeta::new(src.unwrap_or(unspecified), dst, protocol)
        }
    }

    /// As `send`, with `patch` of the finished packet.
    fn send_patched(
        &mut self,
        now: Instant,
        meta: &IpMeta,
        len: usize,
        patch: impl FnOnce(&mut [u8]),
    ) {
        let Ok(way) = self.way(meta, 1, now) else {
            self.control_drops += 1;
            return;
        };
        let mut frame = self.blank_frame(meta.transport_offset() + len);
        self.write_headers(&mut frame, meta, way.iface, way.to, len);
        patch(&mut frame[ETHERNET..]);
        self.dispatch(frame, way, None);
    }
}

/// RFC 3376 §4.1.1: a small floating-point number.
const fn tenths(code: u8) -> u64 {
    if code < 128 {
        return code as u64;
    }
    (code as u64 & 15 | 16) << ((code >> 4 & 7) + 3)
}

/// RFC 3810 §5.1.3: a larger one.
const fn millis(code: u16) -> u64 {
    if code < 32_768 {
        return code as u64;
    }
    (code as u64 & 0xfff | 0x1000) << ((code >> 12 & 7) + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_beyond_the_linear_range_are_floating_point() {
        assert_eq!((tenths(127), tenths(128), tenths(255)), (127, 128, 31_744));
        assert_eq!((millis(32_767), millis(32_768)), (32_767, 32_768));
        assert_eq!(millis(u16::MAX), 8_191 << 10);
    }
}
