//! Longest-prefix routes.

use crate::addr::Ip;
use crate::error::SocketError;
use crate::limits::ROUTES_MAX;

/// Where packets for a prefix go.
#[derive(Debug, Clone, Copy)]
struct Route {
    net: Ip,
    prefix_len: u8,
    /// The router, or `None` for neighbours on the link.
    via: Option<Ip>,
}

/// Routes sorted by falling prefix length, so that the first match is the longest. A host has a
/// handful; a lookup happens per connection, not per packet.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    routes: Vec<Route>,
}

impl RouteTable {
    /// Adds or replaces the route for a prefix.
    pub(crate) fn add(
        &mut self,
        net: Ip,
        prefix_len: u8,
        via: Option<Ip>,
    ) -> Result<(), SocketError> {
        self.routes
            .retain(|r| !(r.prefix_len == prefix_len && r.net.in_prefix(net, prefix_len)));
        if self.routes.len() >= ROUTES_MAX {
            return Err(SocketError::LimitReached);
        }
        let at = self.routes.partition_point(|r| r.prefix_len >= prefix_len);
        self.routes.insert(
            at,
            Route {
                net,
                prefix_len,
                via,
            },
        );
        Ok(())
    }

    /// The neighbour to hand a packet for `dst` to; `None` without a route.
    pub(crate) fn next_hop(&self, dst: Ip) -> Option<Ip> {
        let r = self
            .routes
            .iter()
            .find(|r| dst.in_prefix(r.net, r.prefix_len))?;
        Some(r.via.unwrap_or(dst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn the_longest_prefix_wins_whatever_the_order() {
        let ip = |s: &str| Ip::from(s.parse::<IpAddr>().unwrap());
        let mut t = RouteTable::default();
        t.add(ip("0.0.0.0"), 0, Some(ip("10.0.0.1"))).unwrap();
        t.add(ip("10.0.0.0"), 24, None).unwrap();
        t.add(ip("10.0.0.128"), 25, Some(ip("10.0.0.2"))).unwrap();
        t.add(ip("fd00::"), 64, None).unwrap();
        assert_eq!(t.next_hop(ip("10.0.0.5")), Some(ip("10.0.0.5")));
        assert_eq!(t.next_hop(ip("10.0.0.200")), Some(ip("10.0.0.2")));
        assert_eq!(t.next_hop(ip("8.8.8.8")), Some(ip("10.0.0.1")));
        assert_eq!(t.next_hop(ip("2001:db8::1")), None);
        t.add(ip("10.0.0.0"), 24, Some(ip("10.0.0.3"))).unwrap();
        assert_eq!(t.next_hop(ip("10.0.0.5")), Some(ip("10.0.0.3")));
    }
}
