//! Socket addresses as C passes them: `sockaddr_in`, `sockaddr_in6`.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use kcm_stack::IfaceId;

use super::steer;
use crate::errno::{Errno, Outcome};
use crate::user_mem::{self, UserPtr};

/// Largest address the kernel copies: sizeof(struct sockaddr_storage).
const LENGTH_MAX: u32 = 128;
/// sizeof(struct sockaddr_in).
const V4_BYTES: usize = 16;
/// sizeof(struct sockaddr_in6); programs of before RFC 2553 leave the scope out.
const V6_BYTES: usize = 28;
const V6_BYTES_MIN: usize = 24;

/// An address that a program passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    /// AF_UNSPEC: dissolves a connection.
    Unspecified,
    Inet(SocketAddr),
    /// Of another family, or too short for its family.
    Other,
}

/// Reads an address as move_addr_to_kernel does.
///
/// # Errors
/// `EINVAL` for an impossible length, `EFAULT`.
pub(crate) fn read(at: UserPtr, length: u32) -> Outcome<Address> {
    if length > LENGTH_MAX {
        return Err(Errno::EINVAL.into());
    }
    let length = length as usize;
    let mut bytes = [0; V6_BYTES];
    let count = length.min(V6_BYTES);
    user_mem::read_bytes(at, bytes.get_mut(..count).unwrap_or_default())?;
    Ok(decode(&bytes, length))
}

/// An address of which the first `length` bytes were given.
fn decode(bytes: &[u8; V6_BYTES], length: usize) -> Address {
    let (family, rest) = (u16::from_ne_bytes([bytes[0], bytes[1]]), &bytes[2..]);
    let port = u16::from_be_bytes([rest[0], rest[1]]);
    match i32::from(family) {
        libc::AF_UNSPEC if length >= 2 => Address::Unspecified,
        libc::AF_INET if length >= V4_BYTES => {
            let ip = Ipv4Addr::new(rest[2], rest[3], rest[4], rest[5]);
            Address::Inet(SocketAddr::new(IpAddr::V4(ip), port))
        }
        libc::AF_INET6 if length >= V6_BYTES_MIN => {
            let mut ip = [0; 16];
            ip.copy_from_slice(&bytes[8..24]);
            let scope = u32::from_ne_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
            let ip = SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope);
            Address::Inet(SocketAddr::V6(ip))
        }
        _ => Address::Other,
    }
}

/// An address that the kernel has told.
pub(crate) fn of_kernel(told: &[u8]) -> Option<SocketAddr> {
    let mut bytes = [0; V6_BYTES];
    bytes.get_mut(..told.len())?.copy_from_slice(told);
    match decode(&bytes, told.len()) {
        Address::Inet(addr) => Some(addr),
        _ => None,
    }
}

/// The address without the IPv6 form of an IPv4 address, its scope numbered as the engine does.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    let mut plain = SocketAddr::new(addr.ip().to_canonical(), addr.port());
    if let (SocketAddr::V6(from), SocketAddr::V6(to)) = (addr, &mut plain) {
        to.set_scope_id(steer::numbered(from.scope_id()).map_or(0, IfaceId::scope_id));
    }
    plain
}

/// What a socket of the family says its address is, which the engine has told.
pub(crate) fn in_family(addr: SocketAddr, v6: bool) -> SocketAddr {
    match (addr.ip(), v6) {
        (IpAddr::V4(ip), true) if ip.is_unspecified() => {
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), addr.port())
        }
        (IpAddr::V4(ip), true) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
        (IpAddr::V6(ip), _) => {
            let scope = match addr {
                SocketAddr::V6(v6) => IfaceId::from_scope(v6.scope_id()).map_or(0, steer::number),
                SocketAddr::V4(_) => 0,
            };
            SocketAddr::V6(SocketAddrV6::new(ip, addr.port(), 0, scope))
        }
        (IpAddr::V4(_), false) => addr,
    }
}

/// The wildcard of a family with a port.
pub(crate) fn any(v6: bool, port: u16) -> SocketAddr {
    match v6 {
        true => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        false => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
    }
}

/// An address in C's form, and its length.
pub(crate) fn encode(addr: SocketAddr) -> ([u8; V6_BYTES], usize) {
    let mut bytes = [0; V6_BYTES];
    bytes[2..4].copy_from_slice(&addr.port().to_be_bytes());
    match addr {
        SocketAddr::V4(v4) => {
            bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            bytes[4..8].copy_from_slice(&v4.ip().octets());
            (bytes, V4_BYTES)
        }
        SocketAddr::V6(v6) => {
            bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            bytes[8..24].copy_from_slice(&v6.ip().octets());
            bytes[24..].copy_from_slice(&v6.scope_id().to_ne_bytes());
            (bytes, V6_BYTES)
        }
    }
}

/// Stores an address where the program has room for it, cut if need be, and its full length.
///
/// # Errors
/// `EINVAL` for a negative room, `EFAULT`.
pub(crate) fn write(addr: SocketAddr, at: UserPtr, length: UserPtr) -> Outcome<()> {
    let room = usize::try_from(user_mem::copy_in::<i32>(length)?).map_err(|_| Errno::EINVAL)?;
    let (bytes, full) = encode(addr);
    user_mem::write_bytes(at, bytes.get(..room.min(full)).unwrap_or_default())?;
    Ok(user_mem::copy_out(length, &(full as i32))?)
}
