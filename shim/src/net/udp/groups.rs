//! Membership of multicast groups, and whom a member hears there by one sender more or less:
//! IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, IP_BLOCK_SOURCE, IPV6_JOIN_GROUP, MCAST_JOIN_GROUP,
//! MCAST_JOIN_SOURCE_GROUP (RFC 3678) and their kin. Whole lists of senders: [`super::filter`].

use core::net::{IpAddr, Ipv4Addr};

use kcm_stack::{IfaceId, SourceChange};

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::net::socket::State;
use crate::net::steer;
use crate::net::udp::{filter, is_udp};
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

/// What is to become of a membership.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Join,
    Leave,
    Source(SourceChange, IpAddr),
}

/// What an option asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) change: Change,
    pub(super) group: IpAddr,
    pub(super) place: Place,
}

/// What an option is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Join,
    Leave,
    Source(SourceChange),
}

/// Whether the option is one of these, and what it asks for.
fn what(level: i32, name: i32) -> Option<What> {
    use SourceChange::{Block, Join, Leave, Unblock};
    Some(match (level, name) {
        (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP)
        | (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP)
        | (libc::IPPROTO_IP | libc::IPPROTO_IPV6, MCAST_JOIN_GROUP) => What::Join,
        (libc::IPPROTO_IP, libc::IP_DROP_MEMBERSHIP)
        | (libc::IPPROTO_IPV6, libc::IPV6_DROP_MEMBERSHIP)
        | (libc::IPPROTO_IP | libc::IPPROTO_IPV6, MCAST_LEAVE_GROUP) => What::Leave,
        (libc::IPPROTO_IP, libc::IP_ADD_SOURCE_MEMBERSHIP)
        | (libc::IPPROTO_IP | libc::IPPROTO_IPV6, MCAST_JOIN_SOURCE_GROUP) => What::Source(Join),
        (libc::IPPROTO_IP, libc::IP_DROP_SOURCE_MEMBERSHIP)
        | (libc::IPPROTO_IP | libc::IPPROTO_IPV6, MCAST_LEAVE_SOURCE_GROUP) => What::Source(Leave),
        (libc::IPPROTO_IP, libc::IP_BLOCK_SOURCE)
        | (libc::IPPROTO_IP | libc::IPPROTO_IPV6, MCAST_BLOCK_SOURCE) => What::Source(Block),
        (libc::IPPROTO_IP, libc::IP_UNBLOCK_SOURCE)
        | (libc::IPPROTO_IP | libc::IPPROTO_IPV6, MCAST_UNBLOCK_SOURCE) => What::Source(Unblock),
        _ => return None,
    })
}

/// Whether the option is one of these.
pub(super) fn is_about_groups(level: i32, name: i32) -> bool {
    what(level, name).is_some()
}

/// Whether it is one whose value names no family (RFC 3678).
fn is_of_any_family(name: i32) -> bool {
    (MCAST_JOIN_GROUP..=MCAST_LEAVE_SOURCE_GROUP).contains(&name)
}

/// Bytes that the value of an option has at least.
fn least(level: i32, name: i32) -> usize {
    let source = matches!(what(level, name), Some(What::Source(_)));
    match (level, is_of_any_family(name)) {
        (_, true) if source => SOURCE_REQUEST,
        (_, true) => size_of::<libc::group_req>(),
        (libc::IPPROTO_IP, _) if source => size_of::<libc::ip_mreq_source>(),
        (libc::IPPROTO_IP, _) => size_of::<libc::ip_mreq>(),
        _ => size_of::<libc::ipv6_mreq>(),
    }
}

/// sizeof(struct group_source_req).
const SOURCE_REQUEST: usize = size_of::<libc::group_req>() + values::STORAGE;

/// Room for the longest of values.
pub(super) const VALUE_MAX: usize = SOURCE_REQUEST;

/// Bytes that the kernel reads of an option's value, if there are so many.
pub(super) fn wanted(level: i32, name: i32) -> usize {
    match least(level, name) {
        BARE => size_of::<libc::ip_mreqn>(),
        least => least,
    }
}

/// sizeof(struct ip_mreq), behind which the number of the interface may stand.
const BARE: usize = size_of::<libc::ip_mreq>();

/// Where a group is joined or left by an option; `None` for any other, and for what makes no sense.
pub(in crate::net) fn place(
    level: i32,
    name: i32,
    value: UserPtr,
    length: u32,
) -> Outcome<Option<Place>> {
    if filter::is_filter(level, name) {
        return filter::place(level, name, value, length);
    }
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
    let what = what(level, name).ok_or(Errno::EINVAL)?;
    if value.len() < least(level, name) {
        return Err(Errno::EINVAL.into());
    }
    let (change, group, place) = match what {
        What::Source(change) => {
            let (group, place, source) = source(level, name, value)?;
            (Change::Source(change, source), group, place)
        }
        What::Join | What::Leave => {
            let (group, place) = match (level, is_of_any_family(name)) {
                (_, true) => group_of_any(level, value)?,
                (libc::IPPROTO_IP, _) => group_v4(value)?,
                _ => group_v6(value)?,
            };
            let change = match what {
                What::Join => Change::Join,
                _ => Change::Leave,
            };
            (change, group, place)
        }
    };
    if !group.is_multicast() {
        return Err(Errno::EINVAL.into());
    }
    Ok(Request {
        change,
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
        // A stream belongs to no group (do_ip_setsockopt, do_ipv6_setsockopt).
        (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP | libc::IP_DROP_MEMBERSHIP, false) => {
            return Err(Errno::EPROTO.into());
        }
        (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP | libc::IPV6_DROP_MEMBERSHIP, _) => {}
        (_, _, false) => return Ok(None),
        _ => {}
    }
    // Of these the kernel takes one length only.
    let is_exact = least(level, name) == size_of::<libc::ip_mreq_source>();
    if is_exact && length as usize != size_of::<libc::ip_mreq_source>() {
        return Err(Errno::EINVAL.into());
    }
    let mut room = [0; VALUE_MAX];
    let value = user_mem::value(value, length, least(level, name), &mut room)?;
    let request = request(level, name, value)?;
    let iface = request.place.of_stack(file)?;
    let mut engine = cells::lock(file)?;
    let State::Udp(id) = engine.socket(file)?.state else {
        return Err(Errno::EPROTO.into());
    };
    let (stack, group) = (&mut engine.stack, request.group);
    let done = match request.change {
        Change::Join => stack.udp_join(id, group, iface),
        Change::Leave => stack.udp_leave(id, group, iface),
        Change::Source(change, source) => stack.udp_change_source(id, group, iface, source, change),
    };
    done.map_err(errors::socket)?;
    Ok(Some(0))
}

/// linux/in.h; the same for IPv6.
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_BLOCK_SOURCE: i32 = 43;
const MCAST_UNBLOCK_SOURCE: i32 = 44;
const MCAST_LEAVE_GROUP: i32 = 45;
const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
const MCAST_LEAVE_SOURCE_GROUP: i32 = 47;

impl Place {
    /// The interface of the stack's; any, if `None`. Native for one of the kernel's, if the socket is its too.
    pub(super) fn of_stack(self, file: &File) -> Outcome<Option<IfaceId>> {
        match self {
            Self::Any => Ok(None),
            Self::Here(iface) => Ok(Some(iface)),
            Self::Elsewhere if file.speaks() => Err(Exit::Native),
            Self::Elsewhere => Err(Errno::ENODEV.into()),
        }
    }
}

/// The interface with that number; any, if it is 0.
pub(super) fn numbered(index: u32) -> Place {
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

/// A group, where, and a sender to it: `struct group_source_req`, or `struct ip_mreq_source`.
fn source(level: i32, name: i32, value: &[u8]) -> Outcome<(IpAddr, Place, IpAddr)> {
    if !is_of_any_family(name) {
        let [group, local, source] = values::source_v4(value).ok_or(Errno::EINVAL)?;
        return Ok((group.into(), place_of(local), source.into()));
    }
    let (index, group) = values::group_request(value).ok_or(Errno::EINVAL)?;
    let source = values::source_request(value).ok_or(Errno::EINVAL)?;
    match (group, source) {
        (Some(group), Some(source)) if [group, source].iter().all(|ip| is_of(level, *ip)) => {
            Ok((group, numbered(index), source))
        }
        _ => Err(Errno::EADDRNOTAVAIL.into()),
    }
}

/// Whether an address is of the family that a level is for.
pub(super) fn is_of(level: i32, ip: IpAddr) -> bool {
    ip.is_ipv4() == (level == libc::IPPROTO_IP)
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
