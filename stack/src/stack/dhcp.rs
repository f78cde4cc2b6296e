//! DHCP clients on interfaces: their messages travel outside UDP sockets, because they have to before
//! there is an address.

use core::net::Ipv4Addr;

use smoltcp::wire::{IpProtocol, UdpPacket};

use super::Stack;
use super::input::Origin;
use crate::addr::Ip;
use crate::checksum::Sum;
use crate::dhcp::{CLIENT_PORT, Change, Client, DhcpLease, Message, SERVER_PORT};
use crate::error::SocketError;
use crate::ip::IpMeta;
use crate::ip::iface::IfaceId;
use crate::time::Instant;

const UDP_HEADER: usize = 8;
const UDP_CHECKSUM_AT: usize = 6;

impl Stack {
    /// Gets an address for an interface by DHCP, and keeps it. Address and default route are set when
    /// a lease is granted and removed when it ends.
    ///
    /// # Errors
    /// `NoInterface`; `InvalidState` if a client runs there, or on a shard that is not the first.
    pub fn dhcp_start(&mut self, now: Instant, iface: IfaceId) -> Result<(), SocketError> {
        let link = self.ip.iface(iface).ok_or(SocketError::NoInterface)?;
        let runs = self.dhcp.iter().any(|(i, _)| *i == iface);
        if runs || !self.shard.speaks_for_host() {
            return Err(SocketError::InvalidState);
        }
        let key = self.dhcp_key.derive(iface.scope_id().into());
        let client = Client::new(link.mac, key, now);
        self.dhcp.push((iface, client));
        Ok(())
    }

    /// Gives the lease back, if there is one, and stops.
    ///
    /// # Errors
    /// `InvalidState` if no client runs there.
    pub fn dhcp_stop(&mut self, now: Instant, iface: IfaceId) -> Result<(), SocketError> {
        let at = self.dhcp.iter().position(|(i, _)| *i == iface);
        let (_, mut client) = self.dhcp.remove(at.ok_or(SocketError::InvalidState)?);
        if let Some((message, lease)) = client.release(now) {
            self.dhcp_send(now, iface, &message);
            self.dhcp_unset(iface, &lease);
        }
        Ok(())
    }

    /// The lease in force.
    pub fn dhcp_lease(&self, iface: IfaceId) -> Option<&DhcpLease> {
        let client = self.dhcp.iter().find(|(i, _)| *i == iface);
        client.and_then(|(_, c)| c.lease())
    }

    pub(super) fn dhcp_next_deadline(&self) -> Instant {
        let each = self.dhcp.iter().map(|(_, c)| c.next_deadline());
        each.min().unwrap_or(Instant::FAR_FUTURE)
    }

    pub(super) fn dhcp_run(&mut self, now: Instant) {
        for n in 0..self.dhcp.len() {
            let (iface, client) = &mut self.dhcp[n];
            let iface = *iface;
            let (message, change) = client.poll(now);
            if let Some(message) = message {
                self.dhcp_send(now, iface, &message);
            }
            if let Some(change) = change {
                self.dhcp_changed(iface, change, now);
            }
        }
    }

    /// Whether a UDP packet was for the client of its interface.
    pub(super) fn dhcp_arrives(
        &mut self,
        now: Instant,
        origin: Origin,
        (src, dst): (Ip, Ip),
        udp: &[u8],
    ) -> bool {
        let iface = origin.iface;
        let Some((_, client)) = self.dhcp.iter_mut().find(|(i, _)| *i == iface) else {
            return false;
        };
        let Ok(p) = UdpPacket::new_checked(udp) else {
            return false;
        };
        if p.dst_port() != CLIENT_PORT {
            return false;
        }
        let udp = &udp[..usize::from(p.len())];
        let sum = Sum::default().pseudo(src, dst, IpProtocol::Udp.into(), udp.len());
        let is_checked = origin.checksum_ok || p.checksum() == 0;
        if !is_checked && !sum.bytes(udp).is_valid() {
            self.stats.bad_checksum += 1;
        } else if let Some(change) = client.arrives(&udp[UDP_HEADER..], now) {
            self.dhcp_changed(iface, change, now);
        }
        true
    }

    fn dhcp_changed(&mut self, iface: IfaceId, change: Change, now: Instant) {
        match change {
            Change::Granted(lease) => {
                // The same again when it was extended. What does not fit the tables' limits is
                // missing then, as if it had been refused by hand.
                let ip = Ip::v4(lease.address);
                let is_new = !self.ip.is_ours(ip);
                let _ = self.ip.add_address(iface, ip, lease.prefix_len);
                if is_new {
                    self.ip.announce(iface, ip, now);
                }
                if let Some(router) = lease.router {
                    let any = Ip::UNSPECIFIED_V4;
                    let _ = self.ip.add_route(any, 0, Some(iface), Some(Ip::v4(router)));
                }
            }
            Change::Lost(lease) => self.dhcp_unset(iface, &lease),
        }
    }

    fn dhcp_unset(&mut self, iface: IfaceId, lease: &DhcpLease) {
        self.ip.remove_address(iface, Ip::v4(lease.address));
        if lease.router.is_some() {
            self.ip.remove_route(Ip::UNSPECIFIED_V4, 0, iface);
        }
    }

    fn dhcp_send(&mut self, now: Instant, iface: IfaceId, m: &Message) {
        let ip = |a: Ipv4Addr| Ip::v4(a);
        let meta = IpMeta {
            iface: Some(iface),
            dont_fragment: false,
            ..IpMeta::new(ip(m.src), ip(m.dst), IpProtocol::Udp)
        };
        let len = UDP_HEADER + m.bytes.len();
        self.ip.send(now, &meta, len, Some(UDP_CHECKSUM_AT), |out| {
            let mut p = UdpPacket::new_unchecked(&mut *out);
            p.set_src_port(CLIENT_PORT);
            p.set_dst_port(SERVER_PORT);
            p.set_len(len as u16);
            p.set_checksum(0);
            out[UDP_HEADER..].copy_from_slice(&m.bytes);
        });
    }
}
