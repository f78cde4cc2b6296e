//! What a process without an engine asks the owner of an address for: a socket of that one's engine
//! (`net::guest` asks, `net::host` gives).

use core::net::SocketAddr;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use super::owner::Reply;
use super::wire::{Op, Request};
use super::{name, parcel, remote};
use crate::errno::{Errno, Outcome};
use crate::net::host;
use crate::net::name::{ADDRESS_BYTES, get, put};
use crate::own::Kept;

/// What whoever knows it has from the owner's memory.
pub(crate) type Token = [u8; TOKEN_BYTES];
pub(crate) const TOKEN_BYTES: usize = 16;

/// A socket that does what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum What {
    /// None: whether the owner is there, and will be.
    Hello,
    /// Connects.
    Connect,
    /// Is bound.
    Bind,
    /// Listens.
    Listen,
    /// Sends and receives datagrams.
    Udp,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) what: What,
    /// AF_INET6.
    pub(crate) v6: bool,
    pub(crate) backlog: i32,
    /// The wildcard and port 0 where the program has not bound the socket.
    pub(crate) local: SocketAddr,
    /// Of a connect.
    pub(crate) remote: SocketAddr,
    /// Of whoever forked this process, zeros if there is none.
    pub(crate) token: Token,
}

/// What the owner gives, and what arrives.
pub(crate) struct Given<Socket = OwnedFd> {
    /// What takes the place of the asking program's socket; a listener of the kernel's stays.
    pub(crate) socket: Option<Socket>,
    /// The name of the socket.
    pub(crate) name: Vec<u8>,
}

impl Wish {
    fn encode(&self) -> (Request, Vec<u8>) {
        let mut data = self.token.to_vec();
        put(&mut data, self.local);
        put(&mut data, self.remote);
        let (op, handle) = (Op::Open, 0);
        let a = self.what as u64 | u64::from(self.v6) << 8;
        let b = u64::from(self.backlog as u32);
        (Request { op, handle, a, b }, data)
    }

    fn parse(request: &Request, data: &[u8]) -> Option<Self> {
        const ALL: [What; 5] = [
            What::Hello,
            What::Connect,
            What::Bind,
            What::Listen,
            What::Udp,
        ];
        let (token, addresses) = data.split_first_chunk::<TOKEN_BYTES>()?;
        let (local, remote) = addresses.split_at_checked(ADDRESS_BYTES)?;
        Some(Self {
            what: { ALL.into_iter() }.find(|what| *what as u64 == request.a & 0xff)?,
            v6: request.a >> 8 & 1 != 0,
            backlog: request.b as i32,
            local: get(local)?,
            remote: get(remote)?,
            token: *token,
        })
    }
}

/// Makes sure that who has an address is there and lets this process in.
///
/// # Errors
/// EPERM if it is of another user, or will not have us; EPIPE if it does not answer.
pub(crate) fn greet(owner: &[u8], wish: &Wish) -> Outcome<()> {
    let (request, data) = wish.encode();
    remote::greet(owner, request, &data)
}

/// Whether who has an address is there and does not answer.
pub(crate) fn is_silent(owner: &[u8], wish: &Wish) -> bool {
    let (request, data) = wish.encode();
    remote::is_silent(owner, request, &data)
}

/// Asks for a socket with the options of `like`.
///
/// # Errors
/// What the owner answers; EPIPE if it does not.
pub(crate) fn ask(owner: &[u8], wish: &Wish, like: Option<BorrowedFd<'_>>) -> Outcome<Given<Kept>> {
    let (request, data) = wish.encode();
    let fds: Vec<_> = like.into_iter().collect();
    let (_, passed) = remote::call(owner, request, &data, &fds)?;
    let mut passed = passed.into_iter();
    let name = parcel::open(passed.next().ok_or(Errno::EPIPE)?)?;
    let socket = passed.next();
    Ok(Given { socket, name })
}

/// The owner's side. `client` is the connection that the request came over.
pub(super) fn answer(
    client: impl AsFd,
    request: Request,
    data: &[u8],
    like: Option<&OwnedFd>,
) -> Outcome<Reply> {
    let wish = Wish::parse(&request, data).ok_or(Errno::EINVAL)?;
    if !host::knows(&wish.token) && !name::is_trusted(client) {
        return Err(Errno::EPERM.into());
    }
    let Some(given) = host::give(&wish, like)? else {
        return Ok((0, 0, Vec::new()));
    };
    let mut passed = vec![parcel::post(&given.name)?];
    passed.extend(given.socket);
    Ok((0, 0, passed))
}
