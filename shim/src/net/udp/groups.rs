//! Membership of multicast groups: IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP, MCAST_JOIN_GROUP (RFC 3678) and
//! their opposites. Whose datagrams a member hears (IP_ADD_SOURCE_MEMBERSHIP and its kin) cannot be chosen.

use core::net::{IpAddr, Ipv4Addr};

use kcm_stack::IfaceId;

use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::net::socket::State;
use crate::net::steer;
use crate::net::udp::is_udp;
use crate::net::{cells, errors};
use crate::route;
use crate::user_mem::{self, UserPtr};
use crate::values;

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
    let mut room = [0; size_of::<libc::group_req>()]; // the longest
    let least = match (level, name) {
        (_, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP) => room.len(),
        (libc::IPPROTO_IP, _) => size_of::<libc::ip_mreq>(),
        _ => size_of::<libc::ipv6_mreq>(),
    };
    let value = user_mem::value(value, length, least, &mut room)?;
    let (group, iface) = match (level, name) {
        (_, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP) => group_of_any(level, value)?,
        (libc::IPPROTO_IP, _) => group_v4(value)?,
        _ => group_v6(value)?,
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

/// `struct group_req`.
fn group_of_any(level: i32, value: &[u8]) -> Outcome<(IpAddr, Option<IfaceId>)> {
    let (index, group) = values::group_request(value).ok_or(Errno::EINVAL)?;
    let group = match (level, group) {
        (libc::IPPROTO_IP, Some(group @ IpAddr::V4(_))) => group,
        (libc::IPPROTO_IPV6, Some(group @ IpAddr::V6(_))) => group,
        (libc::IPPROTO_IP, _) => return Err(Errno::EINVAL.into()),
        _ => return Err(Errno::EADDRNOTAVAIL.into()),
    };
    Ok((group, steer::numbered_or_any(index)?))
}

/// `struct ip_mreq`, or `struct ip_mreqn` with a number of an interface.
fn group_v4(value: &[u8]) -> Outcome<(IpAddr, Option<IfaceId>)> {
    let wish = values::membership_v4(value).ok_or(Errno::EINVAL)?;
    if let Some(iface) = steer::numbered_or_any(wish.index)? {
        return Ok((IpAddr::V4(wish.group), Some(iface)));
    }
    let iface = match wish.local.is_unspecified() {
        true => None,
        false => Some(owner(wish.local).ok_or(Errno::ENODEV)?),
    };
    Ok((IpAddr::V4(wish.group), iface))
}

/// The interface that has the address.
pub(in crate::net) fn owner(address: Ipv4Addr) -> Option<IfaceId> {
    let at = route::owner(route::plan()?, address.into())?;
    IfaceId::from_index(at)
}

fn group_v6(value: &[u8]) -> Outcome<(IpAddr, Option<IfaceId>)> {
    let wish = values::membership_v6(value).ok_or(Errno::EINVAL)?;
    let iface = steer::numbered_or_any(wish.index)?;
    Ok((IpAddr::V6(wish.group), iface))
}
