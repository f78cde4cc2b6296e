//! Addresses of ours, and which of them speaks to whom.

use core::cmp::Reverse;

use super::iface::IfaceId;
use super::route::Hop;
use crate::addr::Ip;
use crate::error::SocketError;
use crate::limits::ADDRESSES_MAX;

/// An address of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) ip: Ip,
    pub(super) prefix_len: u8,
    pub(super) iface: IfaceId,
}

impl Address {
    /// The all-ones address of the prefix; point-to-point links have none (RFC 3021).
    fn is_broadcast(&self, ip: Ip) -> bool {
        let host_bits = u32::MAX
            .checked_shr(u32::from(self.prefix_len))
            .unwrap_or(0);
        self.prefix_len < 31
            && ip.in_prefix(self.ip, self.prefix_len)
            && ip.to_v4().to_bits() & host_bits == host_bits
    }
}

/// All addresses, in the order they were added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Addresses {
    list: Vec<Address>,
}

impl Addresses {
    /// Adds an address; false if the interface has it.
    pub(super) fn add(
        &mut self,
        iface: IfaceId,
        ip: Ip,
        prefix_len: u8,
    ) -> Result<bool, SocketError> {
        let width = if ip.is_v4() { 32 } else { 128 };
        if !ip.is_valid_source() || prefix_len > width {
            return Err(SocketError::InvalidAddress);
        }
        if self.is_on(iface, ip) {
            return Ok(false);
        }
        if self.list.len() >= ADDRESSES_MAX {
            return Err(SocketError::LimitReached);
        }
        self.list.push(Address {
            ip,
            prefix_len,
            iface,
        });
        Ok(true)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Address> {
        self.list.iter()
    }

    pub(super) fn remove(&mut self, iface: IfaceId, ip: Ip) -> Option<Address> {
        let at = self
            .list
            .iter()
            .position(|a| a.ip == ip && a.iface == iface)?;
        Some(self.list.remove(at))
    }

    /// Whether another address of the interface lies in the prefix of `gone`.
    pub(super) fn has_prefix(&self, iface: IfaceId, gone: Address) -> bool {
        self.list.iter().any(|a| {
            a.iface == iface
                && a.prefix_len == gone.prefix_len
                && a.ip.in_prefix(gone.ip, gone.prefix_len)
        })
    }

    pub(super) fn is_ours(&self, ip: Ip) -> bool {
        self.list.iter().any(|a| a.ip == ip)
    }

    pub(super) fn is_on(&self, iface: IfaceId, ip: Ip) -> bool {
        self.list.iter().any(|a| a.ip == ip && a.iface == iface)
    }

    /// The address an interface speaks from about its link: link-local for IPv6, the first for IPv4.
    pub(super) fn for_link(&self, iface: IfaceId, v4: bool) -> Option<Ip> {
        let fits = |a: &&Address| {
            a.iface == iface && a.ip.is_v4() == v4 && (v4 || a.ip.is_link_local_v6())
        };
        self.list.iter().find(fits).map(|a| a.ip)
    }

    /// The interface that has an address of ours, `bound` if several do.
    pub(super) fn iface_of(&self, ip: Ip, bound: Option<IfaceId>) -> Option<IfaceId> {
        let mut having = self.list.iter().filter(|a| a.ip == ip).map(|a| a.iface);
        let first = having.next()?;
        let same_as_bound = || having.find(|i| Some(*i) == bound);
        (bound.is_some() && bound != Some(first))
            .then(same_as_bound)
            .flatten()
            .or(Some(first))
    }

    pub(super) fn is_broadcast(&self, ip: Ip) -> bool {
        ip.is_limited_broadcast() || ip.is_v4() && self.list.iter().any(|a| a.is_broadcast(ip))
    }

    /// RFC 6724 §5 with what a host without temporary, deprecated or mobile addresses needs: scope
    /// (rule 2), outgoing interface (5), longest match with the destination (8). For IPv4, as Linux:
    /// the first address whose prefix holds the next hop, else the interface's first.
    pub(super) fn source(&self, dst: Ip, hop: Hop) -> Option<Ip> {
        let rank = |a: &Address| {
            let scope = a.ip.is_link_local_v6() == dst.is_link_local_v6();
            let on_link = hop.ip.in_prefix(a.ip, a.prefix_len);
            let common = if dst.is_v4() {
                u32::from(on_link)
            } else {
                (a.ip.bits() ^ dst.bits())
                    .leading_zeros()
                    .min(u32::from(a.prefix_len))
            };
            (scope, a.iface == hop.iface, common)
        };
        // `min_by_key` keeps the first of equals.
        self.list
            .iter()
            .filter(|a| a.ip.is_v4() == dst.is_v4())
            // A link-local address means nothing on another link.
            .filter(|a| a.iface == hop.iface || !a.ip.is_link_local_v6())
            .min_by_key(|a| Reverse(rank(a)))
            .map(|a| a.ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn ip(s: &str) -> Ip {
        Ip::from(s.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn the_source_fits_scope_interface_and_prefix_in_this_order() {
        let (a, b) = (IfaceId::FIRST, IfaceId::from_index(1).unwrap());
        let mut t = Addresses::default();
        for (iface, s, len) in [
            (a, "10.0.0.1", 24),
            (a, "10.0.1.1", 24),
            (b, "192.168.0.1", 24),
            (a, "fe80::1", 64),
            (b, "fe80::2", 64),
            (a, "fd00:a::1", 64),
            (b, "fd00:b::1", 64),
            (b, "2001:db8::1", 64),
        ] {
            assert_eq!(t.add(iface, ip(s), len), Ok(true));
        }
        let source = |dst, iface, hop| t.source(ip(dst), Hop { iface, ip: ip(hop) });
        assert_eq!(source("10.0.1.9", a, "10.0.1.9"), Some(ip("10.0.1.1")));
        assert_eq!(source("8.8.8.8", a, "10.0.0.254"), Some(ip("10.0.0.1")));
        assert_eq!(source("8.8.8.8", a, "10.0.7.254"), Some(ip("10.0.0.1")));
        assert_eq!(
            source("8.8.8.8", b, "192.168.0.254"),
            Some(ip("192.168.0.1"))
        );
        // The interface decides, even where another one's prefix matches.
        assert_eq!(source("10.0.1.9", b, "10.0.1.9"), Some(ip("192.168.0.1")));
        assert_eq!(source("fe80::9", b, "fe80::9"), Some(ip("fe80::2")));
        assert_eq!(source("2001:db8::9", b, "fe80::9"), Some(ip("2001:db8::1")));
        assert_eq!(source("fd00:b::9", b, "fe80::9"), Some(ip("fd00:b::1")));
        assert_eq!(source("2001:db8::9", a, "fe80::9"), Some(ip("fd00:a::1")));
    }

    #[test]
    fn broadcasts_are_those_of_our_prefixes() {
        let mut t = Addresses::default();
        t.add(IfaceId::FIRST, ip("10.0.0.1"), 24).unwrap();
        t.add(IfaceId::FIRST, ip("10.9.0.1"), 31).unwrap();
        assert!(t.is_broadcast(ip("255.255.255.255")) && t.is_broadcast(ip("10.0.0.255")));
        assert!(!t.is_broadcast(ip("10.0.1.255")) && !t.is_broadcast(ip("10.9.0.1")));
        assert_eq!(
            t.add(IfaceId::FIRST, ip("224.0.0.1"), 24),
            Err(SocketError::InvalidAddress)
        );
    }
}
