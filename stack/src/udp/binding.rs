//! What decides which datagrams a socket hears, and who else may have its port.

use core::net::SocketAddr;

use super::{Reuse, UdpBindOptions};
use crate::addr::{Endpoint, Ip};
use crate::ip::iface::IfaceId;

/// How a socket is bound, and to whom it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpBinding {
    pub(crate) local: Endpoint,
    pub(crate) remote: Option<Endpoint>,
    pub(crate) reuse: Reuse,
    pub(crate) v6_only: bool,
    /// SO_BINDTODEVICE.
    pub(crate) iface: Option<IfaceId>,
}

/// Whether a socket on `wild` hears what is sent to `ip` because it is a wildcard.
fn covers(wild: Ip, v6_only: bool, ip: Ip) -> bool {
    wild == Ip::UNSPECIFIED_V4 && ip.is_v4()
        || wild == Ip::UNSPECIFIED_V6 && !(v6_only && ip.is_v4())
}

impl UdpBinding {
    /// Of a socket that is about to be bound.
    pub(crate) fn new(local: Endpoint, options: &UdpBindOptions) -> Self {
        Self {
            local,
            remote: None,
            reuse: options.reuse,
            v6_only: options.v6_only,
            iface: options.iface,
        }
    }

    /// How well a socket fits a flow: connected beats bound to a device beats bound to an address
    /// beats wildcard. `None`: not for it.
    pub(crate) fn score(
        &self,
        local: Endpoint,
        remote: Endpoint,
        iface: Option<IfaceId>,
    ) -> Option<u32> {
        let addr = match self.local.ip == local.ip {
            true => 1,
            false if covers(self.local.ip, self.v6_only, local.ip) => 0,
            false => return None,
        };
        let link = match self.iface {
            Some(own) if iface.is_some_and(|i| i != own) => return None,
            Some(_) => 2,
            None => 0,
        };
        match self.remote {
            Some(r) if r == remote => Some(addr + link + 4),
            Some(_) => None,
            None => Some(addr + link),
        }
    }

    /// Two sockets on one port that cannot both have it.
    pub(crate) fn clashes(&self, other: &Self) -> bool {
        let links = self.iface.is_none() || other.iface.is_none() || self.iface == other.iface;
        let (own, theirs) = (self.local.ip, other.local.ip);
        let overlap = own == theirs
            || covers(own, self.v6_only, theirs)
            || covers(theirs, other.v6_only, own);
        links && overlap && !self.reuse.shares_with(other.reuse)
    }

    /// Whether a socket bound to `local` with `options` would be one of several with this one, over
    /// which flows are spread (SO_REUSEPORT).
    pub fn is_twin_of(&self, local: SocketAddr, options: &UdpBindOptions) -> bool {
        let other = Self::new(local.into(), options);
        self.reuse.spreads()
            && other.reuse.spreads()
            && (self.local, self.v6_only, self.iface) == (other.local, other.v6_only, other.iface)
    }
}
