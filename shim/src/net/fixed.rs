//! Options that stack sockets have with one value only: the kernel's default. Asked, they say it; told
//! it, they agree; told anything else, they answer ENOPROTOOPT, for it would not be so.
//! tests/notes/stack-options.md lists them.

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SOL_SOCKET};

use crate::errno::Errno;

/// Numbers that the libc crate has no name for (linux/in.h, linux/in6.h, linux/tcp.h).
const IP_PASSSEC: i32 = 18;
const IP_MULTICAST_ALL: i32 = 49;
const IP_UNICAST_IF: i32 = 50;
const IP_RECVFRAGSIZE: i32 = 25;
const IPV6_MULTICAST_ALL: i32 = 29;
const IPV6_MINHOPCOUNT: i32 = 73;
const IPV6_UNICAST_IF: i32 = 76;
const IPV6_RECVFRAGSIZE: i32 = 77;
const IPV6_FREEBIND: i32 = 78;
const TCP_THIN_LINEAR_TIMEOUTS: i32 = 16;
const TCP_INQ: i32 = 36;
/// asm-generic/socket.h: of programs with a 64-bit time on 32-bit machines.
const SO_TIMESTAMP_NEW: i32 = 63;
const SO_TIMESTAMPNS_NEW: i32 = 64;
const SO_TIMESTAMPING_NEW: i32 = 65;
/// As above: a filter for what a group of sockets shares.
const SO_DETACH_REUSEPORT_BPF: i32 = 68;

/// Level, name and value, for both kinds of socket unless another module answers for one.
const FIXED: [(i32, i32, i32); 59] = [
    (SOL_SOCKET, libc::SO_DONTROUTE, 0),
    (SOL_SOCKET, libc::SO_MARK, 0),
    (SOL_SOCKET, libc::SO_NOFCS, 0),
    (SOL_SOCKET, libc::SO_NO_CHECK, 0),
    (SOL_SOCKET, libc::SO_PEEK_OFF, -1),
    (SOL_SOCKET, libc::SO_RXQ_OVFL, 0),
    (SOL_SOCKET, libc::SO_TIMESTAMP, 0),
    (SOL_SOCKET, SO_TIMESTAMP_NEW, 0),
    (SOL_SOCKET, libc::SO_TIMESTAMPNS, 0),
    (SOL_SOCKET, SO_TIMESTAMPNS_NEW, 0),
    (SOL_SOCKET, libc::SO_WIFI_STATUS, 0),
    (IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 0),
    (IPPROTO_IP, libc::IP_FREEBIND, 0),
    (IPPROTO_IP, libc::IP_MINTTL, 0),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER, 1),
    (IPPROTO_IP, IP_MULTICAST_ALL, 1),
    (IPPROTO_IP, libc::IP_MULTICAST_IF, 0),
    (IPPROTO_IP, libc::IP_MULTICAST_LOOP, 1),
    (IPPROTO_IP, libc::IP_MULTICAST_TTL, 1),
    (IPPROTO_IP, IP_PASSSEC, 0),
    (IPPROTO_IP, libc::IP_PKTINFO, 0),
    (IPPROTO_IP, libc::IP_RECVERR, 0),
    (IPPROTO_IP, IP_RECVFRAGSIZE, 0),
    (IPPROTO_IP, libc::IP_RECVOPTS, 0),
    (IPPROTO_IP, libc::IP_RECVORIGDSTADDR, 0),
    (IPPROTO_IP, libc::IP_RECVTOS, 0),
    (IPPROTO_IP, libc::IP_RECVTTL, 0),
    (IPPROTO_IP, libc::IP_RETOPTS, 0),
    (IPPROTO_IP, libc::IP_TRANSPARENT, 0),
    (IPPROTO_IP, IP_UNICAST_IF, 0),
    (IPPROTO_IPV6, libc::IPV6_AUTOFLOWLABEL, 1),
    (IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0),
    (IPPROTO_IPV6, IPV6_FREEBIND, 0),
    (IPPROTO_IPV6, IPV6_MINHOPCOUNT, 0),
    (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, 1),
    (IPPROTO_IPV6, IPV6_MULTICAST_ALL, 1),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, 1),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, 0),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 1),
    (IPPROTO_IPV6, libc::IPV6_RECVERR, 0),
    (IPPROTO_IPV6, IPV6_RECVFRAGSIZE, 0),
    (IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 0),
    (IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR, 0),
    (IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 0),
    (IPPROTO_IPV6, libc::IPV6_RECVRTHDR, 0),
    (IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 0),
    (IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 0),
    (IPPROTO_IPV6, IPV6_UNICAST_IF, 0),
    (IPPROTO_TCP, libc::TCP_FASTOPEN, 0),
    (IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 0),
    (IPPROTO_TCP, TCP_INQ, 0),
    (IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, 0),
    (IPPROTO_TCP, libc::TCP_REPAIR, 0),
    (IPPROTO_TCP, libc::TCP_SAVE_SYN, 0),
    (IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 0),
    (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, 0),
    (IPPROTO_UDP, libc::UDP_CORK, 0),
    (IPPROTO_UDP, libc::UDP_GRO, 0),
    (IPPROTO_UDP, libc::UDP_SEGMENT, 0),
];

/// Those that a socket has: level, name and value.
pub(super) fn all(v6: bool, udp: bool) -> impl Iterator<Item = (i32, i32, i32)> {
    let has = move |(level, name, _): &(i32, i32, i32)| {
        let is_kept = udp && super::udp::options::is_known(*level, *name);
        foreign_level(*level, udp, v6).is_none() && !is_kept
    };
    FIXED.into_iter().filter(has)
}

/// The one value of an option.
pub(super) fn value(level: i32, name: i32) -> Option<i32> {
    let found = FIXED.iter().find(|(l, n, _)| (*l, *n) == (level, name))?;
    Some(found.2)
}

/// What the socket beneath would take, and the stack's has not: EOPNOTSUPP, asked or told.
pub(super) fn is_beneath_only(level: i32, name: i32) -> bool {
    level == SOL_SOCKET
        && matches!(
            name,
            libc::SO_ATTACH_BPF
                | libc::SO_ATTACH_FILTER
                | libc::SO_ATTACH_REUSEPORT_CBPF
                | libc::SO_ATTACH_REUSEPORT_EBPF
                | SO_DETACH_REUSEPORT_BPF
                | libc::SO_MAX_PACING_RATE
                | libc::SO_PASSCRED
                | libc::SO_PASSSEC
                | libc::SO_PEERCRED
                | libc::SO_TIMESTAMPING
                | SO_TIMESTAMPING_NEW
                | libc::SO_TXTIME
        )
}

/// Whether a socket has options of the level at all. If not, what asking for one answers: IPv4
/// sockets and IPv6 ones differ (ip_getsockopt, ipv6_getsockopt).
pub(super) fn foreign_level(level: i32, udp: bool, v6: bool) -> Option<Errno> {
    let is_own = match level {
        SOL_SOCKET | IPPROTO_IP => true,
        IPPROTO_IPV6 => v6,
        IPPROTO_TCP => !udp,
        IPPROTO_UDP => udp,
        _ => false,
    };
    match (is_own, v6) {
        (true, _) => None,
        (false, false) => Some(Errno::EOPNOTSUPP),
        (false, true) => Some(Errno::ENOPROTOOPT),
    }
}
