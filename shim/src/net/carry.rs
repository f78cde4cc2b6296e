//! Options that were set on a socket while it was the kernel's, and go with it to the stack. Those which
//! stack sockets do not have are not carried: asked for, they are what they are.

use kcm_stack::CongestionControl;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::options::{CONGESTION_MAX, OVERHEAD, Settings};
use super::{fixed, pristine};
use crate::errno::Outcome;
use crate::{log, sys};

/// SO_BUF_LOCK: which buffer sizes the program has set.
const SO_BUF_LOCK: i32 = 72;

/// Integer options that are the engine's or this layer's.
const CARRIED: [(i32, i32); 20] = [
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
];

/// SOL_SOCKET options that the socket beneath keeps, with the kernel's defaults. The last one locks.
const BENEATH: [(i32, i32); 7] = [
    (libc::SO_BROADCAST, 0),
    (libc::SO_BUSY_POLL, 0),
    (libc::SO_DEBUG, 0),
    (libc::SO_INCOMING_CPU, -1),
    (libc::SO_PRIORITY, 0),
    (libc::SO_SELECT_ERR_QUEUE, 0),
    (libc::SO_LOCK_FILTER, 0),
];

impl Settings {
    /// What has been set on a kernel socket.
    pub(crate) fn of_kernel_socket(fd: BorrowedFd<'_>, v6: bool, udp: bool) -> Self {
        let (mut new, default) = (Self::default(), Self::default());
        for (level, name) in CARRIED {
            if udp && level == libc::IPPROTO_TCP {
                continue;
            }
            // IPv4 and IPv6 have names of their own for some: the one that was set counts.
            if let Some(value) = sys::option_int(fd, level, name)
                && value != default.int(level, name).unwrap_or(0)
            {
                let _ = new.set_int(level, name, value);
            }
        }
        let locks = sys::option_int(fd, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
        for (bit, name) in [(1, libc::SO_SNDBUF), (2, libc::SO_RCVBUF)] {
            if locks & bit != 0
                && let Some(size) = sys::option_int(fd, libc::SOL_SOCKET, name)
            {
                let _ = new.set_int(libc::SOL_SOCKET, name, size / OVERHEAD as i32);
            }
        }
        new.linger = sockopt::socket_linger(fd)
            .ok()
            .flatten()
            .map(|t| t.as_secs() as u32);
        let timeout = |which| {
            let set = sockopt::socket_timeout(fd, which).ok().flatten();
            set.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
        };
        new.timeouts = [
            timeout(sockopt::Timeout::Recv),
            timeout(sockopt::Timeout::Send),
        ];
        if !udp && let Some(congestion) = congestion(fd) {
            new.tcp.congestion = congestion;
        }
        if log::is_debugging() {
            tell_lost(fd, v6, udp);
        }
        new
    }
}

/// A socket of the kernel's with these settings.
pub(super) fn as_kernel_socket(settings: &Settings, v6: bool) -> Outcome<OwnedFd> {
    let family = match v6 {
        true => AddressFamily::INET6,
        false => AddressFamily::INET,
    };
    let flags = SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    let default = Settings::default();
    for (level, name) in CARRIED {
        if let Some(value) = settings.int(level, name)
            && Some(value) != default.int(level, name)
        {
            sys::set_option_int(fd.as_fd(), level, name, value);
        }
    }
    Ok(fd)
}

/// TCP_CONGESTION, if it is one that the engine has too.
fn congestion(fd: BorrowedFd<'_>) -> Option<CongestionControl> {
    let name: [u8; CONGESTION_MAX] = sys::option(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION)?;
    let name = name.split(|byte| *byte == 0).next()?;
    CongestionControl::from_name(str::from_utf8(name).ok()?)
}

/// What the socket of the number `fd` has, and the one that takes its place shall have beneath.
pub(super) fn beneath(fd: i32, to: impl AsFd) {
    if pristine::has_generic_defaults(fd) {
        return;
    }
    for (name, default) in BENEATH {
        let value = sys::option_int(sys::borrow(fd), libc::SOL_SOCKET, name);
        if let Some(value) = value.filter(|value| *value != default) {
            sys::set_option_int(to.as_fd(), libc::SOL_SOCKET, name, value);
        }
    }
}

/// Says which options end here.
#[cold]
fn tell_lost(fd: BorrowedFd<'_>, v6: bool, udp: bool) {
    for (level, name, only) in fixed::all(v6, udp) {
        let value = sys::option_int(fd, level, name);
        if let Some(value) = value.filter(|value| *value != only) {
            log::debug(format_args!(
                "socket {}: option {name} of level {level} was {value}, and is {only} on the stack",
                fd.as_raw_fd()
            ));
        }
    }
}
