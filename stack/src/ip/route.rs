//! Longest-prefix routes over all interfaces.

use super::iface::IfaceId;
use crate::addr::Ip;
use crate::error::SocketError;
use crate::limits::ROUTES_MAX;

/// Where packets for a prefix go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    net: Ip,
    prefix_len: u8,
    iface: IfaceId,
    /// The router, or `None` for neighbours on the link.
    via: Option<Ip>,
}

impl Route {
    fn is_for(&self, net: Ip, prefix_len: u8, iface: IfaceId) -> bool {
        self.prefix_len == prefix_len && self.iface == iface && self.net.in_prefix(net, prefix_len)
    }
}

/// The next hop of a packet: a neighbour on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) iface: IfaceId,
    pub(crate) ip: Ip,
}

/// Routes sorted by falling prefix length, so that the first match is the longest; among equals the
/// one added first. A host has a handful; a lookup happens per connection, not per packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RouteTable {
    routes: Vec<Route>,
}

impl RouteTable {
    /// Adds or replaces the route for a prefix on an interface.
    pub(crate) fn add(
        &mut self,
        net: Ip,
        prefix_len: u8,
        iface: IfaceId,
        via: Option<Ip>,
    ) -> Result<(), SocketError> {
        let route = Route {
            net,
            prefix_len,
            iface,
            via,
        };
        let mut same = self.routes.iter_mut();
        if let Some(old) = same.find(|r| r.is_for(net, prefix_len, iface)) {
            *old = route;
            return Ok(());
        }
        if self.routes.len() >= ROUTES_MAX {
            return Err(SocketError::LimitReached);
        }
        let at = self.routes.partition_point(|r| r.prefix_len >= prefix_len);
        self.routes.insert(at, route);
        Ok(())
    }

    /// Removes the route for a prefix on an interface; false if there is none.
    pub(crate) fn remove(&mut self, net: Ip, prefix_len: u8, iface: IfaceId) -> bool {
        let before = self.routes.len();
        self.routes.retain(|r| !r.is_for(net, prefix_len, iface));
        self.routes.len() < before
    }

    /// Interfaces that routes name, with repetitions.
    pub(super) fn ifaces(&self) -> impl Iterator<Item = IfaceId> {
        self.routes.iter().map(|r| r.iface)
    }

    /// The neighbour to hand a packet for `dst` to, over `bound` if the socket insists; `None`
    /// without a route.
    pub(crate) fn next_hop(&self, dst: Ip, bound: Option<IfaceId>) -> Option<Hop> {
        let found = self
            .routes
            .iter()
            .find(|r| dst.in_prefix(r.net, r.prefix_len) && bound.is_none_or(|b| b == r.iface));
        match (found, bound) {
            (Some(r), _) => Some(Hop {
                iface: r.iface,
                ip: r.via.unwrap_or(dst),
            }),
            // As Linux: who names the device and has no route means a neighbour on its link.
            (None, Some(iface)) => Some(Hop { iface, ip: dst }),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    const A: IfaceId = IfaceId::FIRST;

    fn ip(s: &str) -> Ip {
        Ip::from(s.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn the_longest_prefix_wins_whatever_the_order() {
        let mut t = RouteTable::default();
        t.add(ip("0.0.0.0"), 0, A, Some(ip("10.0.0.1"))).unwrap();
        t.add(ip("10.0.0.0"), 24, A, None).unwrap();
        t.add(ip("10.0.0.128"), 25, A, Some(ip("10.0.0.2")))
            .unwrap();
        t.add(ip("fd00::"), 64, A, None).unwrap();
        let next = |t: &RouteTable, s| t.next_hop(ip(s), None).map(|h| h.ip);
        assert_eq!(next(&t, "10.0.0.5"), Some(ip("10.0.0.5")));
        assert_eq!(next(&t, "10.0.0.200"), Some(ip("10.0.0.2")));
        assert_eq!(next(&t, "8.8.8.8"), Some(ip("10.0.0.1")));
        assert_eq!(next(&t, "2001:db8::1"), None);
        t.add(ip("10.0.0.0"), 24, A, Some(ip("10.0.0.3"))).unwrap();
        assert_eq!(next(&t, "10.0.0.5"), Some(ip("10.0.0.3")));
        assert!(t.remove(ip("10.0.0.9"), 24, A));
        assert!(!t.remove(ip("10.0.0.9"), 24, A));
        assert_eq!(next(&t, "10.0.0.5"), Some(ip("10.0.0.1")));
    }

    #[test]
    fn routes_name_interfaces_and_a_bound_socket_leaves_by_its_own() {
        let b = IfaceId::from_index(1).unwrap();
        let mut t = RouteTable::default();
        t.add(ip("10.0.0.0"), 8, A, None).unwrap();
        t.add(ip("10.1.0.0"), 16, b, None).unwrap();
        t.add(ip("0.0.0.0"), 0, b, Some(ip("10.1.0.1"))).unwrap();
        let hop = |iface, s| Some(Hop { iface, ip: ip(s) });
        assert_eq!(t.next_hop(ip("10.1.2.3"), None), hop(b, "10.1.2.3"));
        assert_eq!(t.next_hop(ip("10.1.2.3"), Some(A)), hop(A, "10.1.2.3"));
        assert_eq!(t.next_hop(ip("10.2.2.3"), None), hop(A, "10.2.2.3"));
        assert_eq!(t.next_hop(ip("10.2.2.3"), Some(b)), hop(b, "10.1.0.1"));
        // No route over A: on its link, then.
        assert_eq!(t.next_hop(ip("9.9.9.9"), Some(A)), hop(A, "9.9.9.9"));
    }
}
