//! Whole lists of whom a member of a multicast group hears, or does not: IP_MSFILTER and MCAST_MSFILTER
//! (RFC 3678), set and asked.

use core::net::IpAddr;

use kcm_stack::FilterMode;
use kcm_stack::limits::{SOCKET_SOURCES_MAX_V4, SOCKET_SOURCES_MAX_V6};

use super::groups::{self, Place, is_of};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::net::engine::Engine;
use crate::net::socket::State;
use crate::net::udp::is_udp;
use crate::net::{cells, errors};
use crate::user_mem::{self, UserPtr};
use crate::values::{self, STORAGE};

/// linux/in.h; the same for IPv6.
const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: i32 = 0;
const MCAST_INCLUDE: i32 = 1;

/// The values without their lists: `struct ip_msfilter`, `struct group_filter`.
const HEAD_V4: usize = 16;
const HEAD: usize = 16 + STORAGE;

/// Whether the option is one of these.
pub(super) fn is_filter(level: i32, name: i32) -> bool {
    matches!(
        (level, name),
        (libc::IPPROTO_IP, libc::IP_MSFILTER | MCAST_MSFILTER)
            | (libc::IPPROTO_IPV6, MCAST_MSFILTER)
    )
}

/// Which list the value of an option is about, and what it says of it.
struct Head {
    /// If it is of the option's family.
    group: Option<IpAddr>,
    place: Place,
    mode: i32,
    count: u32,
    /// Bytes of this, and of each sender that follows.
    length: usize,
    each: usize,
}

impl Head {
    fn read(level: i32, name: i32, value: UserPtr, length: u32) -> Outcome<Self> {
        let mut room = [0; HEAD];
        if name == libc::IP_MSFILTER {
            let bytes = room.get_mut(..HEAD_V4).unwrap_or_default();
            let bytes = user_mem::value(value, length, HEAD_V4, bytes)?;
            let found = values::filter_v4(bytes).ok_or(Errno::EINVAL)?;
            let ([group, local], mode, count) = found;
            return Ok(Self {
                group: Some(group.into()),
                place: groups::place_of(local),
                mode,
                count,
                length: HEAD_V4,
                each: size_of::<libc::in_addr>(),
            });
        }
        let bytes = user_mem::value(value, length, HEAD, &mut room)?;
        let (index, group) = values::group_request(bytes).ok_or(Errno::EINVAL)?;
        let (mode, count) = values::group_filter(bytes).ok_or(Errno::EINVAL)?;
        Ok(Self {
            group: group.filter(|group| is_of(level, *group)),
            place: groups::numbered(index),
            mode,
            count,
            length: HEAD,
            each: STORAGE,
        })
    }
}

/// Where the group of a list is; `None` for what makes no sense.
pub(super) fn place(level: i32, name: i32, value: UserPtr, length: u32) -> Outcome<Option<Place>> {
    match Head::read(level, name, value, length) {
        Ok(head) => Ok(Some(head.place)),
        Err(Exit::Failed(Errno::EFAULT)) => Err(Errno::EFAULT.into()),
        Err(_) => Ok(None),
    }
}

/// setsockopt(2): `None` if the option is none of these, or the socket no UDP socket.
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
    if !is_filter(level, name) || !is_udp(file)? {
        return Ok(None);
    }
    let head = Head::read(level, name, value, length)?;
    let count = head.count as usize;
    let most = match level {
        libc::IPPROTO_IP => SOCKET_SOURCES_MAX_V4,
        _ => SOCKET_SOURCES_MAX_V6,
    };
    if count > most {
        return Err(Errno::ENOBUFS.into());
    }
    let bytes = count * head.each;
    if (length as usize) < head.length + bytes {
        return Err(Errno::EINVAL.into());
    }
    let mut list = vec![0; bytes];
    user_mem::read_bytes(value.offset(head.length), &mut list)?;
    let sources: Option<Vec<IpAddr>> = match head.each {
        STORAGE => values::stored_addresses(&list)
            .map(|ip| ip.filter(|ip| is_of(level, *ip)))
            .collect(),
        _ => {
            let all = list.as_chunks::<4>().0;
            Some(all.iter().map(|octets| (*octets).into()).collect())
        }
    };
    let sources = sources.ok_or(Errno::EADDRNOTAVAIL)?;
    let group = head.group.ok_or(Errno::EADDRNOTAVAIL)?;
    let mode = match head.mode {
        MCAST_INCLUDE => FilterMode::Include,
        MCAST_EXCLUDE => FilterMode::Exclude,
        _ => return Err(Errno::EINVAL.into()),
    };
    let iface = head.place.of_stack(file)?;
    let mut engine = cells::lock(file)?;
    let State::Udp(id) = engine.socket(file)?.state else {
        return Err(Errno::EPROTO.into());
    };
    let stack = &mut engine.stack;
    let done = stack.udp_set_filter(id, group, iface, mode, &sources);
    done.map_err(errors::socket)?;
    Ok(Some(0))
}

/// getsockopt(2): `None` if the option is none of these. Says how many senders there are, and names as many as
/// the program has room for.
///
/// # Errors
/// As ip(7) and ipv6(7) have them. Native for an interface of the kernel's, if the socket is its too.
pub(crate) fn get(
    engine: &mut Engine,
    file: &File,
    (level, name): (i32, i32),
    value: UserPtr,
    length: UserPtr,
) -> Outcome<Option<i32>> {
    let State::Udp(id) = engine.socket(file)?.state else {
        return Ok(None);
    };
    if !is_filter(level, name) {
        return Ok(None);
    }
    let head = Head::read(level, name, value, user_mem::copy_in::<u32>(length)?)?;
    let iface = head.place.of_stack(file)?;
    let group = head.group.ok_or(Errno::EINVAL)?;
    let found = engine.stack.udp_filter(id, group, iface);
    let (mode, sources) = found.map_err(errors::socket)?;
    let mode = match mode {
        FilterMode::Include => MCAST_INCLUDE,
        FilterMode::Exclude => MCAST_EXCLUDE,
    };
    let mut answer = Vec::new();
    answer.extend(mode.to_ne_bytes());
    answer.extend((sources.len() as u32).to_ne_bytes());
    let room = head.count as usize;
    let named = sources.iter().take(room);
    let count = named.len();
    for ip in named {
        match (ip, head.each) {
            (IpAddr::V4(ip), STORAGE) => put_stored(&mut answer, libc::AF_INET, 4, &ip.octets()),
            (IpAddr::V6(ip), _) => put_stored(&mut answer, libc::AF_INET6, 8, &ip.octets()),
            (IpAddr::V4(ip), _) => answer.extend(ip.octets()),
        }
    }
    let total = (head.length + count * head.each) as u32;
    user_mem::copy_out(length, &total)?;
    // The mode and the number are the last of the head.
    user_mem::write_bytes(value.offset(head.length - 8), &answer)?;
    Ok(Some(0))
}

/// A `struct sockaddr_storage` with an address at an offset.
fn put_stored(to: &mut Vec<u8>, family: i32, at: usize, octets: &[u8]) {
    let end = to.len() + STORAGE;
    to.extend((family as u16).to_ne_bytes());
    to.resize(end - STORAGE + at, 0);
    to.extend(octets);
    to.resize(end, 0);
}
