//! What a program passes beside its messages, as bytes: values of options, arguments of requests, control
//! data. Pure, so that `tests/fuzz` runs it on any input. `None`, unless something else is said: too short.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first `N` bytes.
fn first<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

fn int_at(bytes: &[u8], at: usize) -> Option<i32> {
    first(bytes.get(at..)?).map(i32::from_ne_bytes)
}

/// An int.
pub(crate) fn int(bytes: &[u8]) -> Option<i32> {
    int_at(bytes, 0)
}

/// `struct linger`: the seconds, if it is on (socket(7)).
pub(crate) fn linger(bytes: &[u8]) -> Option<Option<u32>> {
    let (on, seconds) = (int_at(bytes, 0)?, int_at(bytes, 4)?);
    Some((on != 0).then_some(seconds.max(0) as u32))
}

/// A name that ends with a zero, or with the value.
pub(crate) fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A group to join or leave, and the interface to do so on, by number unless that is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Membership<A> {
    pub(crate) group: A,
    /// An address of the interface, for IPv4.
    pub(crate) local: Ipv4Addr,
    pub(crate) index: u32,
}

/// `struct ip_mreqn`, or `struct ip_mreq` without the number (ip(7)).
pub(crate) fn membership_v4(bytes: &[u8]) -> Option<Membership<Ipv4Addr>> {
    let [group, local] = [0, 4].map(|at| first::<4>(bytes.get(at..)?));
    Some(Membership {
        group: group?.into(),
        local: local?.into(),
        index: int_at(bytes, 8).unwrap_or(0) as u32,
    })
}

/// `struct ipv6_mreq` (ipv6(7)).
pub(crate) fn membership_v6(bytes: &[u8]) -> Option<Membership<Ipv6Addr>> {
    Some(Membership {
        group: first::<16>(bytes)?.into(),
        local: Ipv4Addr::UNSPECIFIED,
        index: int_at(bytes, 16)? as u32,
    })
}

/// The address in a `struct sockaddr_storage`, if its family has any.
fn stored_address(bytes: &[u8]) -> Option<Option<IpAddr>> {
    const V4: usize = 4;
    const V6: usize = 8;
    let family = u16::from_ne_bytes(first(bytes)?);
    Some(match i32::from(family) {
        libc::AF_INET => Some(first::<4>(bytes.get(V4..)?)?.into()),
        libc::AF_INET6 => Some(first::<16>(bytes.get(V6..)?)?.into()),
        _ => None,
    })
}

/// Where socket addresses begin in the values of RFC 3678, and how long each is.
const GROUP: usize = 8;
pub(crate) const STORAGE: usize = size_of::<libc::sockaddr_storage>();

/// `struct group_req` (RFC 3678): the number of the interface, and the group, if its family has any.
pub(crate) fn group_request(bytes: &[u8]) -> Option<(u32, Option<IpAddr>)> {
    Some((int(bytes)? as u32, stored_address(bytes.get(GROUP..)?)?))
}

/// `struct ip_mreq_source` (ip(7)): group, address of the interface, sender.
pub(crate) fn source_v4(bytes: &[u8]) -> Option<[Ipv4Addr; 3]> {
    let [group, local, source] = [0, 4, 8].map(|at| first::<4>(bytes.get(at..)?));
    Some([group?.into(), local?.into(), source?.into()])
}

/// `struct group_source_req` (RFC 3678): behind a [`group_request`] the sender.
pub(crate) fn source_request(bytes: &[u8]) -> Option<Option<IpAddr>> {
    stored_address(bytes.get(GROUP + STORAGE..)?)
}

/// `struct ip_msfilter` (ip(7)): group, address of the interface, mode, how many senders there are; these
/// follow.
pub(crate) fn filter_v4(bytes: &[u8]) -> Option<([Ipv4Addr; 2], i32, u32)> {
    let [group, local] = [0, 4].map(|at| first::<4>(bytes.get(at..)?));
    let names = [group?.into(), local?.into()];
    Some((names, int_at(bytes, 8)?, int_at(bytes, 12)? as u32))
}

/// The mode and the number of senders of a `struct group_filter` (RFC 3678), behind a [`group_request`].
pub(crate) fn group_filter(bytes: &[u8]) -> Option<(i32, u32)> {
    let mode = int_at(bytes, GROUP + STORAGE)?;
    Some((mode, int_at(bytes, GROUP + STORAGE + 4)? as u32))
}

/// The senders of a list of `struct sockaddr_storage`, where their family has any.
pub(crate) fn stored_addresses(bytes: &[u8]) -> impl Iterator<Item = Option<IpAddr>> {
    let each = bytes.chunks_exact(STORAGE);
    each.map(|one| stored_address(one).flatten())
}

/// One control message (cmsg(3)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Control<'a> {
    pub(crate) level: i32,
    pub(crate) kind: i32,
    pub(crate) data: &'a [u8],
}

/// The control messages of a header.
pub(crate) struct Controls<'a>(pub(crate) &'a [u8]);

/// sizeof(struct cmsghdr).
pub(crate) const CONTROL_HEADER: usize = size_of::<libc::cmsghdr>();

/// One that is cut, or shorter than its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cut;

impl<'a> Iterator for Controls<'a> {
    /// [`Cut`] is the last.
    type Item = Result<Control<'a>, Cut>;

    fn next(&mut self) -> Option<Self::Item> {
        /// Where the level and the kind stand, behind the length.
        const LEVEL: usize = size_of::<usize>();
        const KIND: usize = LEVEL + size_of::<i32>();
        let bytes = core::mem::take(&mut self.0);
        let head = first::<CONTROL_HEADER>(bytes)?;
        let length = usize::from_ne_bytes(first(&head)?);
        let (level, kind) = (int_at(&head, LEVEL)?, int_at(&head, KIND)?);
        let Some(data) = bytes.get(CONTROL_HEADER..length) else {
            return Some(Err(Cut));
        };
        let next = length.next_multiple_of(size_of::<usize>());
        self.0 = bytes.get(next..).unwrap_or_default();
        Some(Ok(Control { level, kind, data }))
    }
}

/// The ints in a value, whole ones.
pub(crate) fn ints(bytes: &[u8]) -> impl Iterator<Item = i32> {
    bytes.chunks_exact(size_of::<i32>()).filter_map(int)
}

/// An ioctl(2) on a KCM socket (linux/kcm.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KcmRequest {
    Attach {
        tcp: i32,
        program: i32,
    },
    Unattach {
        tcp: i32,
    },
    Clone,
    /// What an AF_UNIX socket would answer, and KCM does not: its name.
    Unsupported(&'static str),
    /// For the socket beneath.
    Beneath,
}

const SIOCKCMATTACH: u32 = 0x89e0;
const SIOCKCMUNATTACH: u32 = 0x89e1;
const SIOCKCMCLONE: u32 = 0x89e2;
const FIONREAD: u32 = libc::FIONREAD as u32;
const TIOCOUTQ: u32 = libc::TIOCOUTQ as u32;
const SIOCATMARK: u32 = 0x8905;

impl KcmRequest {
    /// Whether it is one that only KCM sockets know.
    pub(crate) fn is_own(request: u32) -> bool {
        matches!(request, SIOCKCMATTACH | SIOCKCMUNATTACH | SIOCKCMCLONE)
    }

    /// The longest argument.
    pub(crate) const BYTES_MAX: usize = 8;

    /// How much of the argument is read.
    pub(crate) fn length(request: u32) -> usize {
        match request {
            SIOCKCMATTACH => 8,
            SIOCKCMUNATTACH => 4,
            _ => 0,
        }
    }

    /// The request and as many bytes of its argument as it has.
    pub(crate) fn new(request: u32, argument: &[u8]) -> Option<Self> {
        Some(match request {
            SIOCKCMATTACH => Self::Attach {
                tcp: int_at(argument, 0)?,
                program: int_at(argument, 4)?,
            },
            SIOCKCMUNATTACH => Self::Unattach {
                tcp: int(argument)?,
            },
            SIOCKCMCLONE => Self::Clone,
            FIONREAD => Self::Unsupported("FIONREAD"),
            TIOCOUTQ => Self::Unsupported("TIOCOUTQ"),
            SIOCATMARK => Self::Unsupported("SIOCATMARK"),
            _ => Self::Beneath,
        })
    }
}
