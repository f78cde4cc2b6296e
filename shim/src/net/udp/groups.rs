//! Membership of multicast groups: IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP and their opposites.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kcm_stack::IfaceId;

use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::net::socket::State;
use crate::net::steer;
use crate::net::{cells, errors};
use crate::route;
use crate::user_mem::{self, UserPtr};

/// setsockopt(2): `None` if the option is none of these, or the socket no UDP socket. An interface is
/// named by an address of it, or by its number (see [`steer`]).
///
/// # Errors
/// As ip(7) and ipv6(7) have them.
pub(crate) fn set(
    file: &File,
    level: i32,
    name: i32,
    value: UserPtr,
    length: u32,
) -> Outcome<Option<i32>> {
    let joins = match (level, name) {
        (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP)
        | (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP) => true,
        (libc::IPPROTO_IP, libc::IP_DROP_MEMBERSHIP)
        | (libc::IPPROTO_IPV6, libc::IPV6_DROP_MEMBERSHIP) => false,
        _ => return Ok(None),
    };
    let (group, iface) = match level {
        libc::IPPROTO_IP => group_v4(value, length)?,
        _ => group_v6(value, length)?,
    };
    let mut engine = cells::lock(file)?;
    let State::Udp(id) = engine.socket(file)?.state else {
        return Ok(None);
    };
    let done = match joins {
        true => engine.stack.udp_join(id, group, iface),
        false => engine.stack.udp_leave(id, group, iface),
    };
    done.map_err(errors::socket)?;
    Ok(Some(0))
}

/// `struct ip_mreq`, or `struct ip_mreqn` with a number of an interface.
fn group_v4(value: UserPtr, length: u32) -> Outcome<(IpAddr, Option<IfaceId>)> {
    let ([group, local], index) = match length as i32 {
        12.. => {
            let [group, local, index] = user_mem::copy_in::<[[u8; 4]; 3]>(value)?;
            ([group, local], i32::from_ne_bytes(index))
        }
        8.. => (user_mem::copy_in::<[[u8; 4]; 2]>(value)?, 0),
        _ => return Err(Errno::EINVAL.into()),
    };
    if let Some(iface) = steer::numbered_or_any(index as u32)? {
        return Ok((IpAddr::V4(group.into()), Some(iface)));
    }
    let local = Ipv4Addr::from(local);
    let iface = match local.is_unspecified() {
        true => None,
        false => Some(owner(local).ok_or(Errno::ENODEV)?),
    };
    Ok((IpAddr::V4(group.into()), iface))
}

/// The interface that has the address.
pub(in crate::net) fn owner(address: Ipv4Addr) -> Option<IfaceId> {
    let at = route::owner(route::plan()?, address.into())?;
    IfaceId::from_index(at)
}

/// `struct ipv6_mreq`.
fn group_v6(value: UserPtr, length: u32) -> Outcome<(IpAddr, Option<IfaceId>)> {
    if (length as i32) < 20 {
        return Err(Errno::EINVAL.into());
    }
    let [a, b, c, d, index] = user_mem::copy_in::<[[u8; 4]; 5]>(value)?;
    let iface = steer::numbered_or_any(u32::from_ne_bytes(index))?;
    let bits = [a, b, c, d].map(u32::from_be_bytes);
    let group = bits
        .iter()
        .fold(0, |all, word| all << 32 | u128::from(*word));
    Ok((IpAddr::V6(Ipv6Addr::from_bits(group)), iface))
}
