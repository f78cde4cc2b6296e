//! The socket at which tracers call: `PID.trace` beside the page.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, CWD, Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen, sockopt,
};
use rustix::process::geteuid;

use super::wire::{WORD, request};
use crate::{own, sys};

/// Tracers that may stand at the door at a time.
const BACKLOG: i32 = 8;
/// Longest path that the address of a socket holds, with its NUL (unix(7)).
const ADDRESS_MAX: usize = 108;

/// A listening socket in the file system.
pub(super) struct Door {
    listener: own::Kept,
    path: Vec<u8>,
}

impl Drop for Door {
    fn drop(&mut self) {}
}

impl Door {
    /// Opens a door beside the page at `page`.
    pub(super) fn open(page: &[u8]) -> io::Result<Self> {
        let path = [page, b".trace"].concat();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let family = AddressFamily::UNIX;
        let listener = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        // Left by an earlier process of this number that was killed.
        let _ = fs::unlinkat(CWD, path.as_slice(), fs::AtFlags::empty());
        bind_to(&listener, &path)?;
        listen(&listener, BACKLOG)?;
        let listener = own::keep(listener);
        Ok(Self { listener, path })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The next caller who may look: the same user or root. `None` when nobody is there.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(caller) => {
                    let uid = sockopt::socket_peercred(&caller).map(|cred| cred.uid);
                    if uid.is_ok_and(|uid| uid == geteuid() || uid.is_root()) {
                        return Some(caller);
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return None,
            }
        }
    }

    /// Takes the door away.
    pub(super) fn remove(self) {
        let _ = fs::unlinkat(CWD, self.path.as_slice(), fs::AtFlags::empty());
    }
}

/// Binds to a path, through a descriptor of its directory if it is too long for an address.
fn bind_to(socket: &OwnedFd, path: &[u8]) -> io::Result<()> {
    if path.len() < ADDRESS_MAX {
        return bind(socket, &SocketAddrUnix::new(path)?);
    }
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (directory, name) = path.split_at(slash.ok_or(Errno::INVAL)?);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = fs::open(directory, flags, Mode::empty())?;
    let through = format!("/proc/self/fd/{}", sys::number(&directory));
    bind(
        socket,
        &SocketAddrUnix::new([through.as_bytes(), name].concat())?,
    )
}

/// The caller's request. `Ok(None)`: not all of it is there yet.
pub(super) fn request_of(caller: &OwnedFd) -> io::Result<Option<[u64; request::WORDS]>> {
    let number = sys::number(caller);
    let mut bytes = [0; request::WORDS * WORD];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(caller, &mut bytes, flags) {
        Ok((_, count)) if count == bytes.len() => {
            let mut words = [0; request::WORDS];
            for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(WORD)) {
                *word = u64::from_ne_bytes(chunk.try_into().unwrap_or_default());
            }
            let _ = rustix::net::recv(caller, &mut bytes, RecvFlags::DONTWAIT);
            Ok(Some(words))
        }
        Ok((_, 0)) => Err(Errno::CONNRESET),
        // The rest of it will not come if the caller has gone.
        Ok(_) if sys::poll_bits(number, libc::POLLRDHUP) != 0 => Err(Errno::CONNRESET),
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(err) => Err(err),
    }
}
