//! Addresses and routes as a whole: read from one stack, set in another that shares them.

use super::IpLayer;
use super::addresses::Addresses;
use super::iface::IfaceId;
use super::route::RouteTable;
use crate::addr::Ip;
use crate::error::SocketError;

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
