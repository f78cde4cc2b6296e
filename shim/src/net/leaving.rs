//! What a process still uses of the addresses that it gives up ([`super::ending`]), and how the next one knows:
//! by an abstract name for each address, for each local port, and for each connection of a port that has few. The
//! kernel drops them when their process ends, however that comes, and tells at once which are there: nobody is
//! asked who could keep the next waiting.

use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};

use kcm_stack::device::DeviceName;

use crate::route::{Interface, Plan};
use crate::share::name::{Probe, Sign};

/// Half of the descriptors that a process usually may have. One that would need more names keeps its addresses.
pub(super) const NAMES_MAX: usize = 512;
/// A port with more connections is one that has been listened at: nobody connects from there.
const PEERS_MAX: usize = 4;

/// Connections by their local address.
pub(super) type Ports = BTreeMap<SocketAddr, BTreeSet<SocketAddr>>;

/// What the process that leaves holds.
pub(super) struct Leaving {
    _addresses: Vec<Sign>,
    ports: BTreeMap<SocketAddr, Vec<Sign>>,
}

/// Whether two processes can be at the devices of the plan at a time.
pub(super) fn is_possible(plan: &Plan) -> bool {
    let is_shared = |interface: &Interface| {
        !interface.dhcp && matches!(interface.device.parse(), Ok(DeviceName::Packet(_)))
    };
    plan.interfaces.iter().all(is_shared)
}

impl Leaving {
    /// Says that this process leaves the addresses of the plan. `None` if another does already.
    pub(super) fn begin(plan: &Plan) -> Option<Self> {
        let (names, ports) = (of_addresses(plan).collect(), BTreeMap::new());
        let _addresses = put_up(names)?;
        Some(Self { _addresses, ports })
    }

    /// Says which ports it still uses. `None` if they are too many.
    pub(super) fn with_ports(mut self, used: &Ports) -> Option<Self> {
        let names = |(local, peers): (&SocketAddr, &BTreeSet<SocketAddr>)| {
            let few = Some(peers).filter(|peers| peers.len() <= PEERS_MAX);
            let flows = few.into_iter().flatten().map(|peer| of_flow(*local, *peer));
            let names = core::iter::once(of_port(*local)).chain(flows);
            (*local, names.collect::<Vec<_>>())
        };
        let ports: Vec<_> = used.iter().map(names).collect();
        let count: usize = ports.iter().map(|(_, names)| names.len()).sum();
        if count > NAMES_MAX {
            return None;
        }
        for (local, names) in ports {
            self.ports.insert(local, put_up(names)?);
        }
        Some(self)
    }

    /// The other ports are free.
    pub(super) fn keep_only(&mut self, used: &Ports) {
        self.ports.retain(|local, _| used.contains_key(local));
    }
}

fn put_up(names: Vec<Vec<u8>>) -> Option<Vec<Sign>> {
    names.iter().map(|name| Sign::put_up(name).ok()).collect()
}

/// What another process still uses of addresses that are this one's.
pub(super) struct Left(Probe);

impl Left {
    /// `None` if nobody leaves addresses of the plan, or there is no descriptor to ask by.
    pub(super) fn find(plan: &Plan) -> Option<Self> {
        let left = Self(Probe::new().ok()?);
        left.is_there(plan).then_some(left)
    }

    /// Whether anything still is.
    pub(super) fn is_there(&self, plan: &Plan) -> bool {
        of_addresses(plan).any(|name| self.0.sees(&name))
    }

    /// Whether connections from this address are.
    pub(super) fn has_port(&self, local: SocketAddr) -> bool {
        self.0.sees(&of_port(local))
    }

    /// Whether the connection between these two is.
    pub(super) fn has_flow(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.0.sees(&of_flow(local, remote))
    }
}

fn of_addresses(plan: &Plan) -> impl Iterator<Item = Vec<u8>> {
    let addresses = plan.interfaces.iter().flat_map(|i| &i.addresses);
    addresses.map(|address| format!("kcmshim/leaving/{}", address.ip).into_bytes())
}

fn of_port(local: SocketAddr) -> Vec<u8> {
    format!("kcmshim/leaving/{}/{}", local.ip(), local.port()).into_bytes()
}

fn of_flow(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let port = String::from_utf8(of_port(local)).unwrap_or_default();
    format!("{port}/{}/{}", remote.ip(), remote.port()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address of AF_UNIX has room for 107 bytes behind the zero.
    #[test]
    fn the_longest_name_is_one() {
        let longest = "[2001:db00:1234:5678:9abc:def0:1234:5678]:60000";
        let longest: SocketAddr = longest.parse().unwrap();
        let name = of_flow(longest, longest);
        assert_eq!(name.len(), 107);
        let probe = Probe::new().unwrap();
        let sign = Sign::put_up(&name).unwrap();
        assert!(probe.sees(&name) && !probe.sees(&of_port(longest)));
        assert!(Sign::put_up(&name).is_err());
        drop(sign);
        assert!(!probe.sees(&name));
    }
}
