//! Control messages of datagrams: IP_PKTINFO, IP_TTL, IP_TOS and their IPv6 kin, both ways (cmsg(3)), and
//! when one arrived. Interfaces have the kernel's numbers.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use kcm_stack::{Datagram, IfaceId, Instant, UdpSendOptions};
use libc::msghdr;
use rustix::time::{ClockId, clock_gettime};

use super::options::Wants;
use crate::errno::{Errno, Outcome};
use crate::net::steer;
use crate::user_mem::{self, UserPtr};
use crate::values::{CONTROL_HEADER as HEADER, Control, Controls};

/// Longest control data that is read, net.core.optmem_max.
const BYTES_MAX: usize = 20_480;
/// sizeof(struct in_pktinfo), sizeof(struct in6_pktinfo).
const PKTINFO: usize = 12;
const PKTINFO6: usize = 20;

/// Where a control message's successor begins.
const fn aligned(length: usize) -> usize {
    length.next_multiple_of(8)
}

/// What a sender's control data says of one datagram.
///
/// # Errors
/// `ENOBUFS` beyond [`BYTES_MAX`]; `EINVAL` for a message that is cut, unknown or out of range; `ENODEV`
/// for an interface that is none; `EFAULT`.
pub(crate) fn of_send(header: &msghdr) -> Outcome<UdpSendOptions> {
    let mut options = UdpSendOptions::default();
    let length = header.msg_controllen;
    if length == 0 || header.msg_control.is_null() {
        return Ok(options);
    }
    if length > BYTES_MAX {
        return Err(Errno::ENOBUFS.into());
    }
    let mut bytes = vec![0; length];
    user_mem::read_bytes(UserPtr::new(header.msg_control), &mut bytes)?;
    for message in Controls(&bytes) {
        let Control { level, kind, data } = message.map_err(|_| Errno::EINVAL)?;
        one(level, kind, data, &mut options)?;
    }
    Ok(options)
}

/// One message. Those of other levels are other layers' (ip_cmsg_send, udp_cmsg_send).
fn one(level: i32, kind: i32, data: &[u8], options: &mut UdpSendOptions) -> Outcome<()> {
    let byte = |low: i32| match data {
        [byte] => Ok(*byte),
        _ if data.len() == 4 => match int(data, 0) {
            n if (low..=255).contains(&n) => Ok(n as u8),
            _ => Err(Errno::EINVAL),
        },
        _ => Err(Errno::EINVAL),
    };
    match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) if data.len() == PKTINFO => {
            options.iface = steer::numbered_or_any(int(data, 0) as u32)?;
            let source = Ipv4Addr::from(part::<4>(data, 4));
            options.source = (!source.is_unspecified()).then_some(IpAddr::V4(source));
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if data.len() == PKTINFO6 => {
            let source = Ipv6Addr::from(part::<16>(data, 0));
            options.iface = steer::numbered_or_any(int(data, 16) as u32)?;
            options.source = (!source.is_unspecified()).then_some(source.to_canonical());
        }
        (libc::IPPROTO_IP, libc::IP_TTL) => options.ttl = Some(byte(1)?),
        (libc::IPPROTO_IP, libc::IP_TOS) => options.tos = Some(byte(0)?),
        (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => options.ttl = Some(byte(0)?),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => options.tos = Some(byte(0)?),
        (libc::IPPROTO_IP | libc::IPPROTO_IPV6 | libc::SOL_SOCKET | libc::IPPROTO_UDP, _) => {
            return Err(Errno::EINVAL.into());
        }
        _ => {}
    }
    Ok(())
}

/// `N` bytes at `at`; zeros beyond the end, which callers have excluded.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        part.copy_from_slice(found);
    }
    part
}

fn int(bytes: &[u8], at: usize) -> i32 {
    i32::from_ne_bytes(part(bytes, at))
}

/// What a receiver is told beside the bytes of a datagram.
pub(crate) enum Told {
    /// Of one that the stack received.
    Here(Facts),
    /// Control messages of one that the kernel received, within the room that there is.
    Kernel(Vec<u8>),
}

/// What is known of a datagram.
pub(crate) struct Facts {
    wants: Wants,
    from: IpAddr,
    to: IpAddr,
    iface: IfaceId,
    ttl: u8,
    tos: u8,
    /// How long ago it arrived.
    age: Duration,
}

impl Told {
    pub(crate) fn new(datagram: &Datagram, wants: Wants, now: Instant) -> Self {
        Self::Here(Facts {
            wants,
            from: datagram.from.ip(),
            to: datagram.to.ip(),
            iface: datagram.iface,
            ttl: datagram.ttl,
            tos: datagram.tos,
            age: now.since(datagram.at),
        })
    }

    /// Stores what the socket wants to know where the header has room for it. Returns how much was
    /// stored, and MSG_CTRUNC if it was not all.
    pub(crate) fn store(&self, header: &msghdr) -> Outcome<(usize, i32)> {
        match self {
            Self::Here(facts) => facts.store(header),
            Self::Kernel(messages) => {
                user_mem::write_bytes(UserPtr::new(header.msg_control), messages)?;
                Ok((messages.len(), 0))
            }
        }
    }
}

impl Facts {
    fn store(&self, header: &msghdr) -> Outcome<(usize, i32)> {
        let mut to = Room {
            at: UserPtr::new(header.msg_control),
            left: match header.msg_control.is_null() {
                true => 0,
                false => header.msg_controllen,
            },
            used: 0,
            flags: 0,
        };
        for (wanted, kind, part) in [
            (Wants::TIMESTAMP, libc::SCM_TIMESTAMP, 1_000),
            (Wants::TIMESTAMPNS, libc::SCM_TIMESTAMPNS, 1),
        ] {
            if self.wants.has(wanted) {
                to.put(libc::SOL_SOCKET, kind, &before_now(self.age, part))?;
            }
        }
        let number = steer::number(self.iface);
        let v4 = self.from.is_ipv4();
        let ttl = i32::from(self.ttl).to_ne_bytes();
        if self.wants.has(Wants::PKTINFO)
            && let IpAddr::V4(dst) = self.to
        {
            let mut info = [0; PKTINFO];
            info[..4].copy_from_slice(&number.to_ne_bytes());
            // Answers to a group or to everybody come from an address of the socket's choice.
            if !dst.is_multicast() && !dst.is_broadcast() {
                info[4..8].copy_from_slice(&dst.octets());
            }
            info[8..].copy_from_slice(&dst.octets());
            to.put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info)?;
        }
        if self.wants.has(Wants::TTL) && v4 {
            to.put(libc::IPPROTO_IP, libc::IP_TTL, &ttl)?;
        }
        if self.wants.has(Wants::TOS) && v4 {
            to.put(libc::IPPROTO_IP, libc::IP_TOS, &[self.tos])?;
        }
        if self.wants.has(Wants::PKTINFO6) {
            let dst = match self.to {
                IpAddr::V4(dst) => dst.to_ipv6_mapped(),
                IpAddr::V6(dst) => dst,
            };
            let mut info = [0; PKTINFO6];
            info[..16].copy_from_slice(&dst.octets());
            info[16..].copy_from_slice(&number.to_ne_bytes());
            to.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)?;
        }
        if self.wants.has(Wants::HOPLIMIT) && !v4 {
            to.put(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &ttl)?;
        }
        if self.wants.has(Wants::TCLASS) && !v4 {
            let tos = i32::from(self.tos).to_ne_bytes();
            to.put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &tos)?;
        }
        Ok((to.used, to.flags))
    }
}

/// The time of day so long ago: a `timeval` if a fraction's unit is a thousand nanoseconds, a `timespec`
/// if it is one.
fn before_now(age: Duration, unit: u32) -> [u8; 16] {
    let now = clock_gettime(ClockId::Realtime);
    let now = Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec.max(0) as u32);
    let then = now.saturating_sub(age);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&then.as_secs().to_ne_bytes());
    bytes[8..].copy_from_slice(&u64::from(then.subsec_nanos() / unit).to_ne_bytes());
    bytes
}

/// The program's control buffer.
struct Room {
    at: UserPtr,
    left: usize,
    used: usize,
    flags: i32,
}

impl Room {
    /// Adds a message, cut to the room there is (put_cmsg).
    fn put(&mut self, level: i32, kind: i32, data: &[u8]) -> Outcome<()> {
        if self.left < HEADER {
            self.flags |= libc::MSG_CTRUNC;
            return Ok(());
        }
        let mut length = HEADER + data.len();
        if length > self.left {
            self.flags |= libc::MSG_CTRUNC;
            length = self.left;
        }
        let mut message = Vec::with_capacity(HEADER + data.len());
        message.extend_from_slice(&length.to_ne_bytes());
        message.extend_from_slice(&level.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(data);
        let place = self.at.offset(self.used);
        user_mem::write_bytes(place, message.get(..length).unwrap_or_default())?;
        let space = aligned(HEADER + data.len()).min(self.left);
        self.left -= space;
        self.used += space;
        Ok(())
    }
}
