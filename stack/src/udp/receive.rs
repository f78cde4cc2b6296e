//! Receiving: which socket a datagram is for, or which sockets if it was sent to a group.

use smoltcp::wire::{IpProtocol, UdpPacket};

use super::{Datagram, HEADER, Udp};
use crate::addr::{Endpoint, Ip};
use crate::checksum::Sum;
use crate::events::Ready;
use crate::ip::iface::IfaceId;
use crate::limits::UDP_OVERHEAD_BYTES;
use crate::time::Instant;

/// What IP says of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) iface: IfaceId,
    pub(crate) src: Ip,
    pub(crate) dst: Ip,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) at: Instant,
    /// Sent to a group or to everybody: each socket that listens gets a copy.
    pub(crate) is_group: bool,
}

impl Udp {
    /// The socket for a flow. Among equals the newest, or one that the flow's hash chooses if they
    /// share the port by SO_REUSEPORT.
    pub(super) fn lookup(
        &self,
        local: Endpoint,
        remote: Endpoint,
        iface: Option<IfaceId>,
    ) -> Option<u32> {
        let list = self.by_port.get(&local.port)?;
        let score = |i: u32| {
            self.sockets[i as usize]
                .binding()
                .score(local, remote, iface)
        };
        let (best, newest) = list
            .iter()
            .filter_map(|i| score(*i).map(|n| (n, *i)))
            .max_by_key(|(n, _)| *n)?;
        if !self.sockets[newest as usize].reuse.spreads() {
            return Some(newest);
        }
        let mut group = list.iter().copied().filter(|i| score(*i) == Some(best));
        let n = group.clone().count() as u128;
        let (hi, lo) = remote.ip.words();
        let hash = self
            .port_key
            .siphash(&[hi, lo, remote.port.into(), local.port.into()]);
        group.nth(((u128::from(hash) * n) >> 64) as usize)
    }

    /// A UDP packet for us, `checksum_ok` if a device vouches for it. False: no socket, tell the
    /// sender.
    pub(crate) fn packet_arrives(&mut self, a: &Arrival, bytes: &[u8], checksum_ok: bool) -> bool {
        let Ok(p) = UdpPacket::new_checked(bytes) else {
            self.stats.errors_in += 1;
            return true;
        };
        let len = usize::from(p.len());
        let missing_allowed = p.checksum() == 0 && a.src.is_v4();
        if !checksum_ok && !missing_allowed {
            let sum = Sum::default().pseudo(a.src, a.dst, IpProtocol::Udp.into(), len);
            if !sum.bytes(&bytes[..len]).is_valid() {
                self.stats.errors_in += 1;
                return true;
            }
        }
        let local = Endpoint {
            ip: a.dst,
            port: p.dst_port(),
        };
        let remote = Endpoint {
            ip: a.src,
            port: p.src_port(),
        };
        let data = &bytes[HEADER..len];
        if a.is_group {
            let list = self.by_port.get(&local.port).cloned().unwrap_or_default();
            for i in list {
                let s = &self.sockets[i as usize];
                if s.binding().score(local, remote, Some(a.iface)).is_some() && s.hears_group(a) {
                    self.enqueue(i, a, local, remote, data);
                }
            }
            return true;
        }
        match self.lookup(local, remote, Some(a.iface)) {
            Some(i) => {
                self.enqueue(i, a, local, remote, data);
                true
            }
            None => {
                self.stats.no_ports += 1;
                false
            }
        }
    }

    fn enqueue(&mut self, i: u32, a: &Arrival, local: Endpoint, remote: Endpoint, data: &[u8]) {
        let s = &mut self.sockets[i as usize];
        let cost = data.len() + UDP_OVERHEAD_BYTES;
        if s.queued_bytes + cost > s.rcvbuf {
            self.stats.rcvbuf_errors += 1;
            return;
        }
        s.queued_bytes += cost;
        s.queue.push_back(Datagram {
            from: remote.to_std_on(a.iface),
            to: local.to_std_on(a.iface),
            iface: a.iface,
            ttl: a.ttl,
            tos: a.tos,
            at: a.at,
            data: data.into(),
        });
        self.stats.datagrams_in += 1;
        self.notify(i, Ready::READABLE);
    }
}
