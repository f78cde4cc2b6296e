//! Which process has the addresses of the plan: two engines with one address would reset each other's
//! connections, and so would two that ask a DHCP server for the address of one device. A claim is an
//! abstract name, which is the network namespace's, and free again when its last holder ends, however that
//! comes. Who finds an address taken calls there, to be served by the engine of the one that has it.
//!
//! A process that only finishes what a program has left ([`super::ending`]) gives its claims up, so that
//! the next has an engine of its own. Both hear what is for either, so neither answers what it does not
//! know: the one that leaves nothing at all, the other no segment without a connection, until the name that
//! says so is free ([`super::leaving`]).

use core::net::IpAddr;

use crate::own;
use crate::route::{Interface, Plan};
use crate::share::name;

/// Why a claim cannot be made.
pub(super) enum Taken {
    /// Another process has the address; it can be called at this name.
    Address(IpAddr, Vec<u8>),
    /// Another process leases an address for this device.
    Lease(String),
}

/// Takes the interface's addresses for this process.
pub(super) fn claim(interface: &Interface, claims: &mut Vec<own::Kept>) -> Result<(), Taken> {
    for address in &interface.addresses {
        let what = of_address(address.ip);
        match take(&what) {
            Some(claim) => claims.push(claim),
            None => return Err(Taken::Address(address.ip, what)),
        }
    }
    if interface.dhcp {
        let device = &interface.device;
        let lease = take(format!("kcmshim/dhcp/{device}").as_bytes());
        claims.push(lease.ok_or_else(|| Taken::Lease(device.clone()))?);
    }
    Ok(())
}

/// Where the process that has an address can be called.
fn of_address(ip: IpAddr) -> Vec<u8> {
    format!("kcmshim/address/{ip}").into_bytes()
}

/// Where the processes can be called that have the addresses of the plan.
pub(super) fn of_addresses(plan: &Plan) -> impl Iterator<Item = Vec<u8>> {
    let addresses = plan.interfaces.iter().flat_map(|i| &i.addresses);
    addresses.map(|address| of_address(address.ip))
}

/// Takes a name for this process, if no other has it.
fn take(name: &[u8]) -> Option<own::Kept> {
    name::door(name).ok().map(own::keep)
}
