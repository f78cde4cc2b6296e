//! Addresses and routes as a whole: read from one stack, set in another that shares them.

use super::IpLayer;
use super::addresses::Addresses;
use super::iface::IfaceId;
use super::route::RouteTable;
use crate::addr::Ip;
use crate::error::SocketError;
use crate::time::Instant;

/// The addresses and routes of all interfaces of a stack
/// ([`Stack::addressing`](crate::Stack::addressing)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressing {
    addresses: Addresses,
    routes: RouteTable,
}

impl Addressing {
    fn ifaces(&self) -> impl Iterator<Item = IfaceId> {
        let of_addresses = self.addresses.iter().map(|a| a.iface);
        of_addresses.chain(self.routes.ifaces())
    }
}

impl IpLayer {
    pub(crate) fn addressing(&self) -> Addressing {
        Addressing {
            addresses: self.addresses.clone(),
            routes: self.routes.clone(),
        }
    }

    /// All of it is set, or nothing.
    pub(crate) fn set_addressing(&mut self, to: &Addressing) -> Result<(), SocketError> {
        if to.ifaces().any(|i| self.iface(i).is_none()) {
            return Err(SocketError::NoInterface);
        }
        // What both have is joined before it is left: nothing is told of it.
        let new = solicited(&to.addresses);
        for (n, (iface, group)) in new.iter().enumerate() {
            if let Err(e) = self.groups.join(*iface, *group) {
                self.leave_all(&new[..n]);
                return Err(e);
            }
        }
        self.leave_all(&solicited(&self.addresses));
        self.addresses = to.addresses.clone();
        self.routes = to.routes.clone();
        self.neighbors.forget_references();
        Ok(())
    }

    /// Tells the link of each address of an interface.
    pub(crate) fn announce_all(&mut self, iface: IfaceId, now: Instant) {
        let ours = self.addresses.iter().filter(|a| a.iface == iface);
        for ip in ours.map(|a| a.ip).collect::<Vec<_>>() {
            self.announce(iface, ip, now);
        }
    }

    /// Tells the link of an address. Who has asked for it while nobody had it sends what waits at once,
    /// instead of after asking again, a second later; who remembers another host for it forgets that.
    pub(crate) fn announce(&mut self, iface: IfaceId, ip: Ip, now: Instant) {
        match ip.is_v4() {
            _ if !self.speaks_for_host() => {}
            true => self.announce_arp(iface, ip),
            false => self.advertise_to_all(iface, ip, now),
        }
    }

    fn leave_all(&mut self, groups: &[(IfaceId, Ip)]) {
        for (iface, group) in groups {
            self.groups.leave(*iface, *group);
        }
    }
}

/// The groups in which our IPv6 addresses are solicited.
fn solicited(addresses: &Addresses) -> Vec<(IfaceId, Ip)> {
    let v6 = addresses.iter().filter(|a| !a.ip.is_v4());
    v6.map(|a| (a.iface, a.ip.solicited_node())).collect()
}
