//! Sending: source, interface, size and options of one datagram.

use smoltcp::wire::{IpProtocol, UdpPacket};

use super::{CHECKSUM_AT, HEADER, PmtuDiscovery, Udp, UdpSendOptions};
use crate::addr::{Endpoint, Ip};
use crate::error::{Cause, SendError, SocketError};
use crate::ip::{IpLayer, IpMeta, NoWay};
use crate::stack::UdpId;
use crate::time::Instant;

/// Payload of the largest datagram: IPv4 counts its own header in 16 bits, IPv6 does not.
const fn payload_max(v4: bool) -> usize {
    if v4 {
        65_535 - 20 - HEADER
    } else {
        65_535 - HEADER
    }
}

impl Udp {
    pub(crate) fn send(
        &mut self,
        ip: &mut IpLayer,
        id: UdpId,
        to: Option<Endpoint>,
        options: &UdpSendOptions,
        parts: &[&[u8]],
        now: Instant,
    ) -> Result<usize, SendError> {
        let s = self.get(id).ok_or(SendError::BadHandle)?;
        if let Some(cause) = s.error.take() {
            return Err(SendError::Failed(cause));
        }
        let to = to.or(s.remote).ok_or(SendError::NoDestination)?;
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let v4 = to.ip.is_v4();
        if len > payload_max(v4) {
            return Err(SendError::TooBig);
        }
        let (local, opts) = (s.local, &s.opts);
        let is_multicast = to.ip.is_multicast();
        let is_broadcast = !is_multicast && ip.is_broadcast(to.ip);
        if is_broadcast && !opts.broadcast {
            return Err(SendError::Failed(Cause::BroadcastDenied));
        }
        let group_iface = opts.multicast_iface.filter(|_| is_multicast);
        let iface = opts.iface.or(options.iface).or(group_iface);
        let src = match options.source.map(Ip::from) {
            Some(s) if s.is_unspecified() => None,
            Some(s) if !ip.is_ours(s) => {
                return Err(SendError::Failed(Cause::SourceNotOurs));
            }
            named => named,
        };
        let src = match src.or(Some(local.ip).filter(|l| ip.is_ours(*l))) {
            Some(src) => src,
            None => ip.source_for(to.ip, iface).map_err(|e| {
                SendError::Failed(match e {
                    SocketError::AddressNotAvailable => Cause::SourceNotOurs,
                    _ => Cause::NetUnreachable,
                })
            })?,
        };
        if src.is_v4() != v4 {
            return Err(SendError::Failed(Cause::NetUnreachable));
        }
        let ttl = if is_multicast {
            opts.multicast_ttl
        } else {
            opts.ttl
        };
        let discovery = opts.pmtu_discovery;
        let meta = IpMeta {
            tos: options.tos.unwrap_or(opts.tos),
            hop_limit: options.ttl.unwrap_or(ttl),
            iface,
            dont_fragment: discovery != PmtuDiscovery::Dont,
            loops: is_broadcast || is_multicast && opts.multicast_loop,
            ..IpMeta::new(src, to.ip, IpProtocol::Udp)
        };
        let mtu = match discovery {
            PmtuDiscovery::Want | PmtuDiscovery::Do => ip.path_mtu(to.ip, iface, now),
            PmtuDiscovery::Dont | PmtuDiscovery::Probe => ip.link_mtu(to.ip, iface),
        };
        let may_cut = matches!(discovery, PmtuDiscovery::Want | PmtuDiscovery::Dont);
        if !may_cut && meta.header_len() + HEADER + len > usize::from(mtu) {
            return Err(SendError::TooBig);
        }
        let sent = ip.send_datagram(now, &meta, mtu, HEADER + len, Some(CHECKSUM_AT), |out| {
            let mut p = UdpPacket::new_unchecked(&mut *out);
            p.set_src_port(local.port);
            p.set_dst_port(to.port);
            p.set_len((HEADER + len) as u16);
            p.set_checksum(0);
            let mut at = HEADER;
            for part in parts {
                out[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
        });
        match sent {
            Ok(()) => {
                self.stats.datagrams_out += 1;
                Ok(len)
            }
            Err(NoWay::Full(iface)) => {
                if s.waits_for.is_none() {
                    self.waiting.push(id.index);
                }
                self.sockets[id.index as usize].waits_for = Some(iface);
                Err(SendError::WouldBlock)
            }
            Err(NoWay::NoRoute) => Err(SendError::Failed(Cause::NetUnreachable)),
        }
    }
}
