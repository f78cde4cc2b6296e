//! Abstract AF_UNIX addresses of this library.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::errno::{Errno, Outcome};
use crate::{own, sys};

/// What every name of ours begins with.
const PREFIX: &[u8] = b"kcmshim/";

/// The name of an owner's control socket: unguessable, so that nobody takes it beforehand.
pub(crate) fn fresh() -> Outcome<Vec<u8>> {
    let nonce = sys::random().ok_or(Errno::EAGAIN)?;
    let pid = rustix::process::getpid().as_raw_nonzero();
    Ok(format!("kcmshim/{pid}/{nonce:016x}").into_bytes())
}

/// The name a KCM socket of this owner is connected to.
pub(crate) fn of_line(owner: &[u8], number: u32) -> Vec<u8> {
    let mut name = owner.to_vec();
    name.extend_from_slice(format!("/{number}").as_bytes());
    name
}

/// The owner of the line that the socket `fd` is connected to; `None` when it is no tied socket.
pub(crate) fn owner_of(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let peer = rustix::net::getpeername(fd).ok()??;
    let peer = SocketAddrUnix::try_from(peer).ok()?;
    let name = peer.abstract_name()?;
    name.strip_prefix(PREFIX)?;
    let end = name.iter().rposition(|b| *b == b'/')?;
    let owner = name.get(..end)?;
    (owner.iter().filter(|b| **b == b'/').count() == 2).then(|| owner.to_vec())
}

/// The process that made the name of an owner; 0 for a name that is none.
pub(crate) fn process_of(owner: &[u8]) -> u64 {
    let number = owner.strip_prefix(PREFIX).unwrap_or_default();
    let digits = number.split(|byte| *byte == b'/').next();
    let digits = digits.and_then(|digits| core::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Whether the process at the other end is of this user, or of root, who may have given up being so for us.
pub(crate) fn is_trusted(fd: impl AsFd) -> bool {
    let me = rustix::process::geteuid();
    sockopt::socket_peercred(fd).is_ok_and(|of| of.uid == me || of.uid.is_root())
}

pub(crate) fn socket() -> Outcome<OwnedFd> {
    unix(SocketType::SEQPACKET)
}

fn unix(kind: SocketType) -> Outcome<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?)
}

/// A name that says, while this is there, that something is so. Whoever knows it can see it ([`Probe`]).
pub(crate) struct Sign(#[expect(dead_code, reason = "closing it takes the name down")] own::Kept);

impl Sign {
    /// # Errors
    /// EADDRINUSE if the name is up already.
    pub(crate) fn put_up(name: &[u8]) -> Outcome<Self> {
        let fd = unix(SocketType::DGRAM)?;
        rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(name)?)?;
        Ok(Self(own::keep(fd)))
    }
}

/// Sees which signs are up, one system call for each.
pub(crate) struct Probe(own::Kept);

impl Probe {
    pub(crate) fn new() -> Outcome<Self> {
        Ok(Self(own::keep(unix(SocketType::DGRAM)?)))
    }

    /// The kernel connects datagram sockets without asking the other end, and as often as one likes.
    pub(crate) fn sees(&self, name: &[u8]) -> bool {
        let Ok(name) = SocketAddrUnix::new_abstract_name(name) else {
            return false;
        };
        rustix::net::connect(&self.0, &name) != Err(rustix::io::Errno::CONNREFUSED)
    }
}

/// A socket that nobody can call, and that keeps others from the name.
pub(crate) fn bind(name: &[u8]) -> Outcome<OwnedFd> {
    let fd = socket()?;
    rustix::net::bind(&fd, &SocketAddrUnix::new_abstract_name(name)?)?;
    Ok(fd)
}

pub(crate) fn listen(name: &[u8], backlog: i32) -> Outcome<OwnedFd> {
    let fd = bind(name)?;
    rustix::net::listen(&fd, backlog)?;
    Ok(fd)
}

/// A listener at which the housekeeper accepts: whoever called may be gone by then, or taken in by a process
/// that has the listener too.
pub(crate) fn door(name: &[u8]) -> Outcome<OwnedFd> {
    /// Processes that may stand at it at a time.
    const BACKLOG: i32 = 128;
    let fd = listen(name, BACKLOG)?;
    rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK)?;
    Ok(fd)
}

pub(crate) fn connect(fd: impl AsFd, name: &[u8]) -> Outcome<()> {
    Ok(rustix::net::connect(
        fd,
        &SocketAddrUnix::new_abstract_name(name)?,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno as Kernels;

    /// Whoever called may have been taken in by the process that hands its sockets over to this one.
    #[test]
    fn nobody_at_the_door_keeps_nobody_waiting() {
        let door = door(&fresh().unwrap()).unwrap();
        let accept = || rustix::net::accept_with(&door, SocketFlags::CLOEXEC);
        assert_eq!(accept().unwrap_err(), Kernels::AGAIN);
        let (caller, name) = (socket().unwrap(), rustix::net::getsockname(&door).unwrap());
        rustix::net::connect(&caller, &name).unwrap();
        accept().unwrap();
        assert_eq!(accept().unwrap_err(), Kernels::AGAIN);
    }
}
