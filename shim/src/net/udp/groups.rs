//! Membership of multicast groups: IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP, MCAST_JOIN_GROUP (RFC 3678) and
//! their opposites. Whose datagrams a member hears (IP_ADD_SOURCE_MEMBERSHIP and its kin) cannot be chosen.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kcm_stack::IfaceId;

use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::net::socket::State;
use crate::net::steer;
use crate::net::udp::is_udp;
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
        (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP | MCAST_JOIN_GROUP)
        | (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP | MCAST_JOIN_GROUP) => true,
        (libc::IPPROTO_IP, libc::IP_DROP_MEMBERSHIP | MCAST_LEAVE_GROUP)
        | (libc::IPPROTO_IPV6, libc::IPV6_DROP_MEMBERSHIP | MCAST_LEAVE_GROUP) => false,
        _ => return Ok(None),
    };
    match (level, name, is_udp(file)?) {
        (_, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP, false) => return Ok(None),
        // A stream belongs to no group (do_ip_setsockopt, do_ipv6_setsockopt).
        (libc::IPPROTO_IP, _, false) => return Err(Errno::EPROTO.into()),
        _ => {}
    }
    let (group, iface) = match (level, name) {
        (_, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP) => group_of_any(level, value, length)?,
        (libc::IPPROTO_IP, _) => group_v4(value, length)?,
        _ => group_v6(value, length)?,
    };
    let mut engine = cells::lock(file)?;
    let State::Udp(id) = engine.socket(file)?.state else {
        return Err(Errno::EPROTO.into());
    };
    let done = match joins {
        true => engine.stack.udp_join(id, group, iface),
        false => engine.stack.udp_leave(id, group, iface),
    };
    done.map_err(errors::socket)?;
    Ok(Some(0))
}

/// linux/in.h; the same for IPv6.
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_LEAVE_GROUP: i32 = 45;

/// `struct group_req`: a number of an interface, and at 8 the group's `struct sockaddr_storage`.
fn group_of_any(level: i32, value: UserPtr, length: u32) -> Outcome<(IpAddr, Option<IfaceId>)> {
    if (length as usize) < size_of::<libc::group_req>() {
        return Err(Errno::EINVAL.into());
    }
    let index = user_mem::copy_in::<u32>(value)?;
    let group = user_mem::copy_in::<[u8; 24]>(value.offset(8))?;
    let [a, b, ..] = group;
    let group = match (level, i32::from(u16::from_ne_bytes([a, b]))) {
        (libc::IPPROTO_IP, libc::AF_INET) => {
            let [_, _, _, _, a, b, c, d, ..] = group;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        (libc::IPPROTO_IPV6, libc::AF_INET6) => {
            let [_, _, _, _, _, _, _, _, address @ ..] = group;
            IpAddr::V6(Ipv6Addr::from_octets(address))
        }
        (libc::IPPROTO_IP, _) => return Err(Errno::EINVAL.into()),
        _ => return Err(Errno::EADDRNOTAVAIL.into()),
    };
    Ok((group, steer::numbered_or_any(index)?))
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
