//! Addresses in the engine's compact form: 16 bytes, IPv4 as v4-mapped IPv6.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ip::iface::IfaceId;

#[cfg(test)]
use smoltcp::wire::IpAddress;

/// An IPv4 or IPv6 address in 16 bytes without a tag. Two words, so that a connection record
/// needs no 16-byte alignment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ip {
    hi: u64,
    lo: u64,
}

impl Ip {
    pub(crate) const UNSPECIFIED_V4: Self = Self {
        hi: 0,
        lo: 0xffff_0000_0000,
    };
    pub(crate) const UNSPECIFIED_V6: Self = Self { hi: 0, lo: 0 };
    /// All hosts on the link, 224.0.0.1.
    pub(crate) const ALL_HOSTS: Self = Self::v4(Ipv4Addr::new(224, 0, 0, 1));
    /// 224.0.0.2.
    pub(crate) const ALL_ROUTERS_V4: Self = Self::v4(Ipv4Addr::new(224, 0, 0, 2));
    /// 224.0.0.22 (RFC 3376 §4.2.14).
    pub(crate) const IGMPV3_ROUTERS: Self = Self::v4(Ipv4Addr::new(224, 0, 0, 22));
    /// ff02::2.
    pub(crate) const ALL_ROUTERS_V6: Self = Self {
        hi: 0xff02 << 48,
        lo: 2,
    };
    /// ff02::16 (RFC 3810 §5.2.14).
    pub(crate) const MLDV2_ROUTERS: Self = Self {
        hi: 0xff02 << 48,
        lo: 0x16,
    };
    /// All nodes on the link, ff02::1.
    pub(crate) const ALL_NODES: Self = Self {
        hi: 0xff02 << 48,
        lo: 1,
    };

    pub(crate) const fn v4(a: Ipv4Addr) -> Self {
        Self {
            hi: 0,
            lo: 0xffff_0000_0000 | a.to_bits() as u64,
        }
    }

    pub(crate) const fn v6(a: Ipv6Addr) -> Self {
        let bits = a.to_bits();
        Self {
            hi: (bits >> 64) as u64,
            lo: bits as u64,
        }
    }

    pub(crate) const fn is_v4(self) -> bool {
        self.hi == 0 && self.lo >> 32 == 0xffff
    }

    pub(crate) const fn words(self) -> (u64, u64) {
        (self.hi, self.lo)
    }

    pub(crate) const fn bits(self) -> u128 {
        (self.hi as u128) << 64 | self.lo as u128
    }

    pub(crate) const fn to_v4(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.lo as u32)
    }

    pub(crate) const fn to_v6(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.bits())
    }

    pub(crate) const fn to_std(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(self.to_v4())
        } else {
            IpAddr::V6(self.to_v6())
        }
    }

    #[cfg(test)]
    pub(crate) const fn to_wire(self) -> IpAddress {
        if self.is_v4() {
            IpAddress::Ipv4(self.to_v4())
        } else {
            IpAddress::Ipv6(self.to_v6())
        }
    }

    pub(crate) fn is_unspecified(self) -> bool {
        self == Self::UNSPECIFIED_V4 || self == Self::UNSPECIFIED_V6
    }

    pub(crate) const fn is_multicast(self) -> bool {
        if self.is_v4() {
            self.to_v4().is_multicast()
        } else {
            self.to_v6().is_multicast()
        }
    }

    /// fe80::/10: means nothing without an interface.
    pub(crate) const fn is_link_local_v6(self) -> bool {
        self.hi >> 54 == 0xfe80 >> 6
    }

    /// The group in which an IPv6 address is solicited (RFC 4291 §2.7.1).
    pub(crate) const fn solicited_node(self) -> Self {
        Self {
            hi: 0xff02 << 48,
            lo: 0x1_ff00_0000 | self.lo & 0xff_ffff,
        }
    }

    /// One of those groups.
    pub(crate) const fn is_solicited_node(self) -> bool {
        self.hi == 0xff02 << 48 && self.lo >> 24 == 0x1_ff
    }

    /// Link-local, multicast and limited broadcast destinations never leave by a router.
    pub(crate) const fn is_limited_broadcast(self) -> bool {
        self.is_v4() && self.to_v4().is_broadcast()
    }

    /// An address a unicast peer may legitimately use as a source.
    pub(crate) fn is_valid_source(self) -> bool {
        !self.is_unspecified()
            && !self.is_multicast()
            && !self.is_limited_broadcast()
            && !self.to_std().is_loopback()
    }

    /// Whether `self` lies in `net/prefix_len`, with the prefix length of its own family.
    pub(crate) const fn in_prefix(self, net: Self, prefix_len: u8) -> bool {
        if self.is_v4() != net.is_v4() {
            return false;
        }
        let width = if self.is_v4() { 32 } else { 128 };
        let shift = width
            - if prefix_len > width {
                width
            } else {
                prefix_len
            };
        shift == 128 || (self.bits() ^ net.bits()) >> shift == 0
    }
}

impl From<IpAddr> for Ip {
    fn from(a: IpAddr) -> Self {
        match a {
            IpAddr::V4(a) => Self::v4(a),
            IpAddr::V6(a) => Self::v6(a),
        }
    }
}

impl core::fmt::Debug for Ip {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.to_std().fmt(f)
    }
}

/// One side of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    pub(crate) ip: Ip,
    pub(crate) port: u16,
}

impl Endpoint {
    pub(crate) fn to_std(self) -> SocketAddr {
        SocketAddr::new(self.ip.to_std(), self.port)
    }

    /// With the scope id that a link-local address needs to be of use.
    pub(crate) fn to_std_on(self, iface: IfaceId) -> SocketAddr {
        let mut a = self.to_std();
        if let SocketAddr::V6(v6) = &mut a
            && self.ip.is_link_local_v6()
        {
            v6.set_scope_id(iface.scope_id());
        }
        a
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(a: SocketAddr) -> Self {
        Self {
            ip: a.ip().into(),
            port: a.port(),
        }
    }
}

/// The four-tuple that names a flow, seen from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FourTuple {
    pub(crate) local: Endpoint,
    pub(crate) remote: Endpoint,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_compare_within_their_family() {
        let ip = |s: &str| Ip::from(s.parse::<IpAddr>().unwrap());
        assert!(ip("10.1.2.3").in_prefix(ip("10.1.0.0"), 16));
        assert!(!ip("10.2.2.3").in_prefix(ip("10.1.0.0"), 16));
        assert!(ip("10.2.2.3").in_prefix(ip("0.0.0.0"), 0));
        assert!(!ip("fe80::1").in_prefix(ip("0.0.0.0"), 0));
        assert!(ip("fe80::1").in_prefix(ip("::"), 0));
        assert!(ip("fd00::1:2").in_prefix(ip("fd00::"), 64));
        assert_eq!(
            ip("192.0.2.7").to_std(),
            "192.0.2.7".parse::<IpAddr>().unwrap()
        );
    }
}
