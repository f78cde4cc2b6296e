//! What other threads find at the numbers of our sockets while the process ends. The sockets are closed, since
//! whoever is at their other end, or holds copies, shall see that; but the program has not closed them, and
//! where the kernel serves, its threads never see such a thing. What takes their place is a socket on which
//! nothing comes, as if the network had fallen silent.

use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::errno::Outcome;
use crate::share::name;
use crate::sys;

/// The sockets that take the place of others, made as they are needed: for each of what blocks and does not,
/// one that accepts, and the two ends of one that receives.
#[derive(Default)]
pub(crate) struct Silence([[Vec<OwnedFd>; 2]; 2]);

impl Silence {
    /// Closes the socket at `fd`, and puts one there on which nothing comes. Whether that could be done.
    pub(crate) fn fall(&mut self, fd: i32, listens: bool) -> bool {
        let blocks_not = sys::is_nonblocking(fd);
        let silent = &mut self.0[usize::from(listens)][usize::from(blocks_not)];
        if silent.is_empty() {
            *silent = make(listens, blocks_not).unwrap_or_default();
        }
        let put = silent.first().map(|it| sys::put_onto(it, fd, true));
        matches!(put, Some(Ok(())))
    }

    /// They stay for as long as the process is there.
    pub(crate) fn stay(self) {
        core::mem::forget(self);
    }
}

fn make(listens: bool, blocks_not: bool) -> Outcome<Vec<OwnedFd>> {
    let made = if listens {
        vec![name::listen(&name::fresh()?, 0)?]
    } else {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        vec![one, other]
    };
    if blocks_not {
        rustix::fs::fcntl_setfl(&made[0], OFlags::NONBLOCK)?;
    }
    Ok(made)
}
