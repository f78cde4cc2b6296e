//! What a UDP socket and a single datagram can be told.

use core::net::IpAddr;

use crate::ip::iface::IfaceId;

/// Whether datagrams may be cut (IP_MTU_DISCOVER, IPV6_MTU_DISCOVER).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PmtuDiscovery {
    /// By us and by routers; what is known of the path is ignored.
    Dont,
    /// By us where the path asks for it; what fits travels uncut. Linux's default.
    #[default]
    Want,
    /// Never: a datagram larger than the path carries is refused.
    Do,
    /// Never, and what is known of the path is ignored.
    Probe,
}

/// Who else may have a UDP socket's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reuse {
    /// Nobody.
    #[default]
    No,
    /// SO_REUSEADDR: others that say the same; the newest receives.
    Address,
    /// SO_REUSEPORT: others that say the same; flows are spread over them.
    Port,
    /// Both: others that say either; flows are spread over them.
    Both,
}

impl Reuse {
    /// Whether flows are spread over the sockets of an address.
    pub(crate) fn spreads(self) -> bool {
        matches!(self, Self::Port | Self::Both)
    }

    /// Whether two sockets may have one address (udp_lib_lport_inuse).
    pub(crate) fn shares_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => false,
            (Self::Both, _) | (_, Self::Both) => true,
            _ => self == other,
        }
    }
}

/// What bind needs to know beyond the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UdpBindOptions {
    /// Sharing the port.
    pub reuse: Reuse,
    /// IPV6_V6ONLY for a wildcard IPv6 address.
    pub v6_only: bool,
    /// SO_BINDTODEVICE.
    pub iface: Option<IfaceId>,
    /// The port may be one of another [shard](crate::Shard): whoever binds sees to it that datagrams come
    /// here ([`SharedPorts`](crate::SharedPorts)), and that no socket elsewhere clashes.
    pub on_any_shard: bool,
}

/// Options of a UDP socket; defaults are Linux's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpOpts {
    /// SO_BINDTODEVICE: hear and use this interface only.
    pub iface: Option<IfaceId>,
    /// IP_TTL, IPV6_UNICAST_HOPS.
    pub ttl: u8,
    /// IP_TOS, IPV6_TCLASS.
    pub tos: u8,
    /// IP_MULTICAST_TTL, IPV6_MULTICAST_HOPS.
    pub multicast_ttl: u8,
    /// IP_MULTICAST_IF, IPV6_MULTICAST_IF.
    pub multicast_iface: Option<IfaceId>,
    /// IP_MULTICAST_LOOP: our own sockets hear what we send to groups.
    pub multicast_loop: bool,
    /// IP_MULTICAST_ALL: hear groups that other sockets joined, too.
    pub multicast_all: bool,
    /// SO_BROADCAST.
    pub broadcast: bool,
    /// IP_MTU_DISCOVER.
    pub pmtu_discovery: PmtuDiscovery,
}

impl Default for UdpOpts {
    fn default() -> Self {
        Self {
            iface: None,
            ttl: 64,
            tos: 0,
            multicast_ttl: 1,
            multicast_iface: None,
            multicast_loop: true,
            multicast_all: true,
            broadcast: false,
            pmtu_discovery: PmtuDiscovery::Want,
        }
    }
}

/// What one datagram has of its own (IP_PKTINFO, IP_TTL, IP_TOS and their IPv6 kin as control
/// messages); the socket decides the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UdpSendOptions {
    /// Source address, one of ours.
    pub source: Option<IpAddr>,
    /// Interface to leave by.
    pub iface: Option<IfaceId>,
    /// Time to live, or hop limit.
    pub ttl: Option<u8>,
    /// Type of service, or traffic class.
    pub tos: Option<u8>,
}
