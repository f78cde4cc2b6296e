//! Options of UDP sockets: those of socket(7), ip(7), ipv6(7) and udp(7) that datagrams have and
//! streams do not. Buffer sizes are kept, and bounded by the kernel's own limits, by the AF_UNIX socket
//! beneath.

use kcm_stack::{PmtuDiscovery, UdpOpts};
use rustix::fd::BorrowedFd;

use super::groups;
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::net::cells;
use crate::net::engine::Engine;
use crate::net::socket::State;
use crate::net::steer;
use crate::sys;
use crate::user_mem::{self, UserPtr};

/// Which control messages a socket wants with each datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wants(u8);

impl Wants {
    pub(crate) const PKTINFO: Self = Self(1);
    pub(crate) const TTL: Self = Self(2);
    pub(crate) const TOS: Self = Self(4);
    pub(crate) const PKTINFO6: Self = Self(8);
    pub(crate) const HOPLIMIT: Self = Self(16);
    pub(crate) const TCLASS: Self = Self(32);
    /// When it arrived, in microseconds.
    pub(crate) const TIMESTAMP: Self = Self(64);
    /// When it arrived, in nanoseconds.
    pub(crate) const TIMESTAMPNS: Self = Self(128);

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn of_bits(bits: u8) -> Self {
        Self(bits)
    }

    pub(crate) const fn has(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }

    fn set(&mut self, one: Self, on: bool) {
        let times = Self::TIMESTAMP.0 | Self::TIMESTAMPNS.0;
        if one.0 & times != 0 {
            self.0 &= !times; // one of the two, or none (sock_set_timestamp)
        }
        self.0 = if on { self.0 | one.0 } else { self.0 & !one.0 };
    }
}

/// What an option changes.
#[derive(Clone, Copy)]
enum Field {
    Ttl,
    Tos,
    MulticastTtl,
    MulticastLoop,
    MulticastAll,
    Broadcast,
    Discovery,
    Wants(Wants),
}

/// The options, and whether a value of one byte does (ip(7)).
const OPTIONS: [(i32, i32, Field); 21] = [
    (libc::SOL_SOCKET, libc::SO_BROADCAST, Field::Broadcast),
    (
        libc::SOL_SOCKET,
        libc::SO_TIMESTAMP,
        Field::Wants(Wants::TIMESTAMP),
    ),
    (
        libc::SOL_SOCKET,
        libc::SO_TIMESTAMPNS,
        Field::Wants(Wants::TIMESTAMPNS),
    ),
    (libc::IPPROTO_IP, libc::IP_TTL, Field::Ttl),
    (libc::IPPROTO_IP, libc::IP_TOS, Field::Tos),
    (
        libc::IPPROTO_IP,
        libc::IP_MULTICAST_TTL,
        Field::MulticastTtl,
    ),
    (
        libc::IPPROTO_IP,
        libc::IP_MULTICAST_LOOP,
        Field::MulticastLoop,
    ),
    (libc::IPPROTO_IP, IP_MULTICAST_ALL, Field::MulticastAll),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, Field::Discovery),
    (
        libc::IPPROTO_IP,
        libc::IP_PKTINFO,
        Field::Wants(Wants::PKTINFO),
    ),
    (libc::IPPROTO_IP, libc::IP_RECVTTL, Field::Wants(Wants::TTL)),
    (libc::IPPROTO_IP, libc::IP_RECVTOS, Field::Wants(Wants::TOS)),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, Field::Ttl),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, Field::Tos),
    (
        libc::IPPROTO_IPV6,
        libc::IPV6_MULTICAST_HOPS,
        Field::MulticastTtl,
    ),
    (
        libc::IPPROTO_IPV6,
        libc::IPV6_MULTICAST_LOOP,
        Field::MulticastLoop,
    ),
    (libc::IPPROTO_IPV6, IPV6_MULTICAST_ALL, Field::MulticastAll),
    (
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU_DISCOVER,
        Field::Discovery,
    ),
    (
        libc::IPPROTO_IPV6,
        libc::IPV6_RECVPKTINFO,
        Field::Wants(Wants::PKTINFO6),
    ),
    (
        libc::IPPROTO_IPV6,
        libc::IPV6_RECVHOPLIMIT,
        Field::Wants(Wants::HOPLIMIT),
    ),
    (
        libc::IPPROTO_IPV6,
        libc::IPV6_RECVTCLASS,
        Field::Wants(Wants::TCLASS),
    ),
];

/// linux/in.h, linux/in6.h.
const IP_MULTICAST_ALL: i32 = 49;
const IPV6_MULTICAST_ALL: i32 = 29;

fn field(level: i32, name: i32) -> Option<Field> {
    let found = OPTIONS.iter().find(|(l, n, _)| (*l, *n) == (level, name))?;
    Some(found.2)
}

/// Whether UDP sockets have the option.
pub(crate) fn is_known(level: i32, name: i32) -> bool {
    field(level, name).is_some()
}

fn read(field: Field, opts: &UdpOpts, wants: Wants) -> i32 {
    match field {
        Field::Ttl => opts.ttl.into(),
        Field::Tos => opts.tos.into(),
        Field::MulticastTtl => opts.multicast_ttl.into(),
        Field::MulticastLoop => opts.multicast_loop.into(),
        Field::MulticastAll => opts.multicast_all.into(),
        Field::Broadcast => opts.broadcast.into(),
        Field::Discovery => match opts.pmtu_discovery {
            PmtuDiscovery::Dont => 0,
            PmtuDiscovery::Want => 1,
            PmtuDiscovery::Do => 2,
            PmtuDiscovery::Probe => 3,
        },
        Field::Wants(one) => wants.has(one).into(),
    }
}

fn write(field: Field, value: i32, opts: &mut UdpOpts, wants: &mut Wants) -> Result<(), Errno> {
    let byte = |default: u8| match value {
        -1 => Ok(default),
        0..=255 => Ok(value as u8),
        _ => Err(Errno::EINVAL),
    };
    let default = UdpOpts::default();
    match field {
        Field::Ttl if value == 0 => return Err(Errno::EINVAL),
        Field::Ttl => opts.ttl = byte(default.ttl)?,
        Field::Tos => opts.tos = value as u8,
        Field::MulticastTtl => opts.multicast_ttl = byte(default.multicast_ttl)?,
        Field::MulticastLoop => opts.multicast_loop = value != 0,
        Field::MulticastAll => opts.multicast_all = value != 0,
        Field::Broadcast => opts.broadcast = value != 0,
        Field::Discovery => {
            opts.pmtu_discovery = match value {
                0 => PmtuDiscovery::Dont,
                1 => PmtuDiscovery::Want,
                2 => PmtuDiscovery::Do,
                3 => PmtuDiscovery::Probe,
                _ => return Err(Errno::EINVAL),
            }
        }
        Field::Wants(one) => wants.set(one, value != 0),
    }
    Ok(())
}

/// getsockopt(2): the value of an option that is a datagram's; `None` for any other.
pub(crate) fn get(engine: &mut Engine, file: &File, level: i32, name: i32) -> Outcome<Option<i32>> {
    let socket = engine.socket(file)?;
    let (State::Udp(id), wants) = (socket.state, socket.settings.wants) else {
        return Ok(None);
    };
    let found = field(level, name).zip(engine.stack.udp_opts(id));
    Ok(found.map(|(field, opts)| read(field, opts, wants)))
}

/// setsockopt(2): `None` if the option is none of a datagram's.
pub(crate) fn set(
    file: &'static File,
    level: i32,
    name: i32,
    value: UserPtr,
    length: u32,
) -> Outcome<Option<i32>> {
    let Some(field) = field(level, name) else {
        return Ok(None);
    };
    {
        let mut engine = cells::lock(file)?;
        if !matches!(engine.socket(file)?.state, State::Udp(_)) {
            return Ok(None);
        }
    }
    let value = match length as i32 {
        4.. => user_mem::copy_in::<i32>(value)?,
        1..4 if level == libc::IPPROTO_IP => user_mem::copy_in::<u8>(value)?.into(),
        0 if level == libc::IPPROTO_IP => 0,
        _ => return Err(Errno::EINVAL.into()),
    };
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    let State::Udp(id) = socket.state else {
        return Ok(None);
    };
    let mut wants = socket.settings.wants;
    let mut opts = engine.stack.udp_opts(id).cloned().ok_or(Errno::EBADF)?;
    write(field, value, &mut opts, &mut wants)?;
    engine.socket(file)?.settings.wants = wants;
    let _ = engine.stack.udp_set_opts(id, opts);
    Ok(Some(0))
}

/// What has been set on the kernel's socket that a stack socket takes the place of.
pub(super) fn of_kernel_socket(old: BorrowedFd<'_>, v6: bool) -> (UdpOpts, Wants) {
    let (mut opts, mut wants) = (UdpOpts::default(), Wants::default());
    for (level, name, field) in OPTIONS {
        // IPv6 sockets are born with IP_MULTICAST_ALL off.
        let is_odd = v6 && (level, name) == (libc::IPPROTO_IP, IP_MULTICAST_ALL);
        if level == libc::IPPROTO_IPV6 && !v6 || is_odd {
            continue;
        }
        // IPv4 and IPv6 have names of their own for some: the one that was set counts.
        let default = read(field, &UdpOpts::default(), Wants::default());
        if let Some(value) = sys::option_int(old, level, name).filter(|value| *value != default) {
            let _ = write(field, value, &mut opts, &mut wants);
        }
    }
    let address = sys::option_int(old, libc::IPPROTO_IP, libc::IP_MULTICAST_IF);
    let number = v6.then(|| sys::option_int(old, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF));
    let by_address = address.and_then(|a| groups::owner(a.to_ne_bytes().into()));
    let by_number = number.flatten().and_then(|n| steer::numbered(n as u32));
    opts.multicast_iface = by_address.or(by_number);
    (opts, wants)
}

/// Options that the AF_UNIX socket beneath keeps, within the kernel's own limits.
pub(crate) fn is_beneath(level: i32, name: i32) -> bool {
    const SIZES: [i32; 4] = [
        libc::SO_RCVBUF,
        libc::SO_RCVBUFFORCE,
        libc::SO_SNDBUF,
        libc::SO_SNDBUFFORCE,
    ];
    level == libc::SOL_SOCKET && SIZES.contains(&name)
}

/// The engine takes the size of the receive queue over from the socket beneath: both count bytes and an
/// overhead for each datagram.
pub(crate) fn follow_rcvbuf(file: &File, fd: i32) -> Outcome<()> {
    let size = sys::option_int(sys::borrow(fd), libc::SOL_SOCKET, libc::SO_RCVBUF);
    let mut engine = cells::lock(file)?;
    if let (State::Udp(id), Some(bytes)) = (engine.socket(file)?.state, size) {
        engine.stack.udp_set_rcvbuf(id, bytes.max(0) as usize);
    }
    Ok(())
}
