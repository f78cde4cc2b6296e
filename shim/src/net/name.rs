//! What a socket that processes share says of itself: the abstract AF_UNIX address of one of its ends
//! names the process whose engine has it, and both addresses, so that whoever holds a copy knows them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::fd::BorrowedFd;
use rustix::net::SocketAddrUnix;

use crate::errno::Outcome;
use crate::share::owner;

/// What every such address begins with. The owner follows, a number, flags and two addresses.
const PREFIX: &[u8] = b"kcmshim-conn/";
/// What the name of an owner begins with (`share::name`).
const OWNER: &[u8] = b"kcmshim/";

const V6: u8 = 1;
const LISTENS: u8 = 2;
const UDP: u8 = 4;
/// One address: sixteen bytes and the port.
pub(crate) const ADDRESS_BYTES: usize = 18;
const TAIL_BYTES: usize = 1 + 2 * ADDRESS_BYTES;

/// The parts of such an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Name {
    /// Address of the owner's control socket.
    pub(crate) owner: Vec<u8>,
    /// What the owner calls the socket.
    pub(crate) number: u32,
    /// AF_INET6.
    pub(crate) v6: bool,
    /// A UDP socket.
    pub(crate) udp: bool,
    pub(crate) local: SocketAddr,
    /// None for a listener, and for a UDP socket without one.
    pub(crate) peer: Option<SocketAddr>,
}

/// Where other processes accept what the engine does not hand to threads of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Door {
    pub(crate) name: Name,
    /// The kernel's listener, where the address is everybody's: connections come there over loopback. Else
    /// an AF_UNIX listener of this name.
    pub(crate) is_kernels: bool,
}

/// Where connections come from that are handed over at a listener of the kernel's: an address of this
/// host that nobody else uses. The owner tells who is behind it.
pub(super) const HANDED: Ipv4Addr = Ipv4Addr::new(127, 107, 99, 109);

impl Door {
    /// The address to hand connections over at, and the one to do so from.
    pub(super) fn loopback(&self, v6_only: bool) -> (SocketAddr, SocketAddr) {
        let port = self.name.local.port();
        let (to, from) = match v6_only {
            true => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
            false => (IpAddr::from(Ipv4Addr::LOCALHOST), HANDED.into()),
        };
        (SocketAddr::new(to, port), SocketAddr::new(from, 0))
    }

    /// Whether a connection from this address may be one that was handed over.
    pub(super) fn may_hand_over(from: SocketAddr) -> bool {
        let from = from.ip().to_canonical();
        from == HANDED || from == Ipv6Addr::LOCALHOST
    }
}

impl Name {
    /// Of what has no owner any more.
    pub(super) fn nobodys(v6: bool, udp: bool) -> Self {
        let any = super::address::any(v6, 0);
        Self {
            owner: Vec::new(),
            number: 0,
            v6,
            udp,
            local: any,
            peer: Some(any),
        }
    }

    /// The name of a socket of this process's engine that others are to know, under a new number.
    pub(super) fn new(
        v6: bool,
        udp: bool,
        local: SocketAddr,
        peer: Option<SocketAddr>,
    ) -> Outcome<Self> {
        let (owner, number) = owner::next()?;
        Ok(Self {
            owner,
            number,
            v6,
            udp,
            local,
            peer,
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = PREFIX.to_vec();
        bytes.extend_from_slice(self.owner.strip_prefix(OWNER).unwrap_or_default());
        bytes.extend_from_slice(format!("/{}/", self.number).as_bytes());
        let listens = if self.peer.is_none() { LISTENS } else { 0 };
        let udp = if self.udp { UDP } else { 0 };
        bytes.push(listens | udp | if self.v6 { V6 } else { 0 });
        put(&mut bytes, self.local);
        put(&mut bytes, self.peer.unwrap_or(self.local));
        bytes
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(PREFIX)?;
        let (text, tail) = rest.split_at_checked(rest.len().checked_sub(TAIL_BYTES)?)?;
        let mut words = str::from_utf8(text).ok()?.strip_suffix('/')?.split('/');
        let (process, nonce, number) = (words.next()?, words.next()?, words.next()?);
        let (flags, addresses) = tail.split_first()?;
        let (local, peer) = addresses.split_at_checked(ADDRESS_BYTES)?;
        let peer = get(peer)?;
        Some(Self {
            owner: [OWNER, process.as_bytes(), b"/", nonce.as_bytes()].concat(),
            number: number.parse().ok()?,
            v6: flags & V6 != 0,
            udp: flags & UDP != 0,
            local: get(local)?,
            peer: (flags & LISTENS == 0).then_some(peer),
        })
    }

    /// Whether the socket accepts connections, or is to.
    pub(crate) fn is_listener(&self) -> bool {
        self.peer.is_none() && !self.udp
    }

    /// The name of what is behind `fd`: its own address, or that of the end it is connected to. `None`
    /// for any other file. A connection accepted on a shared listener has both.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        let parse = |name: SocketAddrUnix| Self::parse(name.abstract_name()?);
        let peer = rustix::net::getpeername(fd);
        if matches!(
            peer,
            Err(rustix::io::Errno::NOTSOCK | rustix::io::Errno::BADF)
        ) {
            return None;
        }
        let peer = peer.ok().flatten();
        let peer = peer.and_then(|peer| SocketAddrUnix::try_from(peer).ok());
        if let Some(name) = peer.and_then(parse) {
            return Some(name);
        }
        let own = SocketAddrUnix::try_from(rustix::net::getsockname(fd).ok()?).ok()?;
        parse(own)
    }
}

/// Writes one address.
pub(crate) fn put(bytes: &mut Vec<u8>, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    bytes.extend_from_slice(&ip.octets());
    bytes.extend_from_slice(&address.port().to_be_bytes());
}

/// Reads one address.
pub(crate) fn get(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_first_chunk::<16>()?;
    let port = u16::from_be_bytes(port.try_into().ok()?);
    Some(SocketAddr::new(IpAddr::from(*ip).to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn a_name_tells_what_went_in_and_fits_an_address() {
        let name = Name {
            owner: b"kcmshim/4194304/0123456789abcdef".to_vec(),
            number: u32::MAX,
            v6: true,
            udp: false,
            local: "[2001:db8:1:2:3:4:5:6]:65535".parse().expect("an address"),
            peer: Some("10.9.0.1:1".parse().expect("an address")),
        };
        let bytes = name.encode();
        assert!(bytes.len() <= 107, "{}", bytes.len());
        assert_eq!(Name::parse(&bytes), Some(name.clone()));
        let listener = Name { peer: None, ..name };
        assert_eq!(Name::parse(&listener.encode()), Some(listener));
        assert_eq!(Name::parse(b"kcmshim-conn/1/2/3/"), None);
    }
}
