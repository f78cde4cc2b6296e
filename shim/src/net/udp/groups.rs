//! Membership of multicast groups: IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP, MCAST_JOIN_GROUP (RFC 3678) and
//! their opposites. Whose datagrams a member hears (IP_ADD_SOURCE_MEMBERSHIP and its kin) cannot be chosen.

use core::net::{IpAddr, Ipv4Addr};

use kcm_stack::IfaceId;

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::net::socket::State;
use crate::net::steer;
use crate::net::udp::is_udp;
use crate::net::{cells, errors};
use crate::route;
use crate::user_mem::{self, UserPtr};
use crate::values;

/// Where a group is joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::net) enum Place {
    /// On the interface that leads to it.
    Any,
    Here(IfaceId),
    /// On an interface that is none of the stack's.
    Elsewhere,
}

/// What an option asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    /// Else it leaves.
    pub(super) joins: bool,
    pub(super) group: IpAddr,
    pub(super) place: Place,
}

impl Request {
    /// Whether both are about one membership; on any interface, one there is.
    pub(super) fn is_of(&self, wish: &Self) -> bool {
        let leaves_any = !wish.joins && wish.place == Place::Any;
        self.group == wish.group && (self.place == wish.place || leaves_any)
    }
}

/// Whether the option is one of these, and joins.
fn joins(level: i32, name: i32) -> Option<bool> {
    match (level, name) {
        (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP | MCAST_JOIN_GROUP)
        | (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP | MCAST_JOIN_GROUP) => Some(true),
        (libc::IPPROTO_IP, libc::IP_DROP_MEMBERSHIP | MCAST_LEAVE_GROUP)
        | (libc::IPPROTO_IPV6, libc::IPV6_DROP_MEMBERSHIP | MCAST_LEAVE_GROUP) => Some(false),
        _ => None,
    }
}

/// Whether the option is one of these.
pub(super) fn is_about_groups(level: i32, name: i32) -> bool {
    joins(level, name).is_some()
}

/// Bytes that the value of an option has at least.
fn least(level: i32, name: i32) -> usize {
    match (level, name) {
        (_, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP) => size_of::<libc::group_req>(),
        (libc::IPPROTO_IP, _) => size_of::<libc::ip_mreq>(),
        _ => size_of::<libc::ipv6_mreq>(),
    }
}

/// Room for the longest of values.
pub(super) const VALUE_MAX: usize = size_of::<libc::group_req>();

/// Bytes that the kernel reads of an option's value, if there are so many.
pub(super) fn wanted(level: i32, name: i32) -> usize {
    match level {
        libc::IPPROTO_IP if least(level, name) < VALUE_MAX => size_of::<libc::ip_mreqn>(),
        _ => least(level, name),
    }
}

/// Where a group is joined or left by an option; `None` for any other, and for what makes no sense.
pub(in crate::net) fn place(
    level: i32,
    name: i32,
    value: UserPtr,
    length: u32,
) -> Outcome<Option<Place>> {
    if !is_about_groups(level, name) {
        return Ok(None);
    }
    let mut room = [0; VALUE_MAX];
    let count = (length as usize).min(wanted(level, name));
    let bytes = room.get_mut(..count).unwrap_or_default();
    user_mem::read_bytes(value, bytes)?;
    Ok(request(level, name, bytes)
        .ok()
        .map(|request| request.place))
}

/// What the value of an option says.
///
/// # Errors
/// `EINVAL`, `EADDRNOTAVAIL` if it is too short, or names no group.
pub(super) fn request(level: i32, name: i32, value: &[u8]) -> Outcome<Request> {
    let joins = joins(level, name).ok_or(Errno::EINVAL)?;
    if value.len() < least(level, name) {
        return Err(Errno::EINVAL.into());
    }
    let (group, place) = match (level, name) {
        (_, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP) => group_of_any(level, value)?,
        (libc::IPPROTO_IP, _) => group_v4(value)?,
        _ => group_v6(value)?,
    };
    if !group.is_multicast() {
        return Err(Errno::EINVAL.into());
    }
    Ok(Request {
        joins,
        group,
        place,
    })
}

/// setsockopt(2): `None` if the option is none of these, or the socket no UDP socket. An interface is
/// named by an address of it, or by its number (see [`steer`]).
///
/// # Errors
/// As ip(7) and ipv6(7) have them. Native for an interface of the kernel's, if the socket is its too.
pub(crate) fn set(
    file: &File,
    level: i32,
    name: i32,
    value: UserPtr,
    length: u32,
) -> Outcome<Option<i32>> {
    if !is_about_groups(level, name) {
        return Ok(None);
    }
    match (level, name, is_udp(file)?) {
        (_, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP, false) => return Ok(None),
        // A stream belongs to no group (do_ip_setsockopt, do_ipv6_setsockopt).
        (libc::IPPROTO_IP, _, false) => return Err(Errno::EPROTO.into()),
        _ => {}
    }
    let mut room = [0; VALUE_MAX];
    let value = user_mem::value(value, length, least(level, name), &mut room)?;
    let request = request(level, name, value)?;
    let iface = match request.place {
        Place::Any => None,
        Place::Here(iface) => Some(iface),
        Place::Elsewhere if file.speaks() => return Err(Exit::Native),
        Place::Elsewhere => return Err(Errno::ENODEV.into()),
    };
    let mut engine = cells::lock(file)?;
    let State::Udp(id) = engine.socket(file)?.state else {
        return Err(Errno::EPROTO.into());
    };
    let done = match request.joins {
        true => engine.stack.udp_join(id, request.group, iface),
        false => engine.stack.udp_leave(id, request.group, iface),
    };
    done.map_err(errors::socket)?;
    Ok(Some(0))
}

/// linux/in.h; the same for IPv6.
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_LEAVE_GROUP: i32 = 45;

fn numbered(index: u32) -> Place {
    match steer::numbered_or_any(index) {
        Ok(None) => Place::Any,
        Ok(Some(iface)) => Place::Here(iface),
        Err(_) => Place::Elsewhere,
    }
}

/// The interface that has the address; any, if that is unspecified.
pub(in crate::net) fn place_of(address: Ipv4Addr) -> Place {
    match address.is_unspecified() {
        true => Place::Any,
        false => owner(address).map_or(Place::Elsewhere, Place::Here),
    }
}

/// `struct group_req`.
fn group_of_any(level: i32, value: &[u8]) -> Outcome<(IpAddr, Place)> {
    let (index, group) = values::group_request(value).ok_or(Errno::EINVAL)?;
    let group = match (level, group) {
        (libc::IPPROTO_IP, Some(group @ IpAddr::V4(_))) => group,
        (libc::IPPROTO_IPV6, Some(group @ IpAddr::V6(_))) => group,
        (libc::IPPROTO_IP, _) => return Err(Errno::EINVAL.into()),
        _ => return Err(Errno::EADDRNOTAVAIL.into()),
    };
    Ok((group, numbered(index)))
}

/// `struct ip_mreq`, or `struct ip_mreqn` with a number of an interface.
fn group_v4(value: &[u8]) -> Outcome<(IpAddr, Place)> {
    let wish = values::membership_v4(value).ok_or(Errno::EINVAL)?;
    let place = match wish.index {
        0 => place_of(wish.local),
        index => numbered(index),
    };
    Ok((IpAddr::V4(wish.group), place))
}

/// The interface that has the address.
pub(in crate::net) fn owner(address: Ipv4Addr) -> Option<IfaceId> {
    let at = route::owner(route::plan()?, address.into())?;
    IfaceId::from_index(at)
}

fn group_v6(value: &[u8]) -> Outcome<(IpAddr, Place)> {
    let wish = values::membership_v6(value).ok_or(Errno::EINVAL)?;
    Ok((IpAddr::V6(wish.group), numbered(wish.index)))
}
