//! Sockets of a process at an address that another process has: the child of a server, a program it
//! started, or any other of the same user. The owner's engine serves them ([`super::host`]); to this process
//! they are as inherited ones are ([`super::inherited`]), from the call on that names the address.

use core::net::SocketAddr;
use core::sync::atomic::{AtomicU64, Ordering};

use kcm_mux::Nanos;
use rustix::fd::AsFd;
use rustix::net::sockopt::{self, Timeout};

use super::channel::holder;
use super::inherited::{self, Inherited, Phase, hold, known, set_phase};
use super::name::Name;
use super::options::Settings;
use super::question::Question;
use super::socket::waits;
use super::{address, carry, claims, pristine, revive};
use crate::epoll::kernel_set;
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{File, table};
use crate::interpose::poll::native_ppoll;
use crate::kcm::recv::deadline;
use crate::own::Kept;
use crate::route::Plan;
use crate::share::guest::{self, Given, Token, What, Wish};
use crate::share::stack;
use crate::user_mem::UserPtr;
use crate::{signal, sys};

/// The process that has the address.
pub(crate) struct Host {
    /// Where it can be called.
    pub(super) claim: Vec<u8>,
}

/// A kernel socket of the program's that becomes a guest's.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub(super) fd: i32,
    pub(super) v6: bool,
    /// What bind(2) has given it, or is to.
    pub(super) local: SocketAddr,
}

/// Made with the engine, so that the children of its process, which have a copy, are let in whoever they
/// have become.
static TOKEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

pub(super) fn make_token() {
    for word in &TOKEN {
        word.store(sys::random().unwrap_or(0), Ordering::Relaxed);
    }
}

/// Zeros where neither this process nor one it comes from has had an engine.
pub(super) fn token() -> Token {
    let mut token = Token::default();
    for (bytes, word) in token.chunks_exact_mut(8).zip(&TOKEN) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    token
}

pub(super) fn wish(what: What, v6: bool) -> Wish {
    Wish {
        what,
        v6,
        backlog: 0,
        local: address::any(v6, 0),
        remote: address::any(v6, 0),
        token: token(),
    }
}

pub(super) fn wish_to_listen(v6: bool) -> Wish {
    wish(What::Listen, v6)
}

/// Makes sure that the process which has a claim is there.
///
/// # Errors
/// EPERM if it is of another user, EPIPE if it does not answer.
pub(super) fn greet(claim: &[u8]) -> Outcome<()> {
    guest::greet(claim, &wish(What::Hello, false))
}

/// Whether a process has an address of the plan and does not answer, as one that is stopped. It is asked without
/// a lock, and not by the connection of everybody.
pub(super) fn is_silent(plan: &Plan) -> bool {
    let wish = wish(What::Hello, false);
    claims::of_addresses(plan).any(|claim| guest::is_silent(&claim, &wish))
}

/// Asks for what `wish` says with the options that `of` has, which come back too.
fn ask(owner: &[u8], wish: &Wish, of: Candidate) -> Outcome<(Given<Kept>, Settings)> {
    let at = sys::borrow(of.fd);
    if pristine::is_pristine(of.fd) {
        return Ok((guest::ask(owner, wish, None)?, Settings::default()));
    }
    let settings = Settings::of_kernel_socket(at, of.v6, false);
    Ok((guest::ask(owner, wish, Some(at))?, settings))
}

/// connect(2) of a kernel socket.
pub(super) fn connect(host: &Host, of: Candidate, remote: SocketAddr) -> Outcome<i32> {
    let wish = Wish {
        local: of.local,
        remote,
        ..wish(What::Connect, of.v6)
    };
    let (given, settings) = ask(&host.claim, &wish, of)?;
    carry::beneath(of.fd, given.socket.as_ref().ok_or(Errno::EIO)?);
    let file = put(of.fd, given, settings, Phase::Connecting)?;
    first_try(file, of.fd)
}

/// bind(2) of a kernel socket.
pub(super) fn bind(host: &Host, of: Candidate) -> Outcome<&'static File> {
    let wish = Wish {
        local: of.local,
        ..wish(What::Bind, of.v6)
    };
    let (given, settings) = ask(&host.claim, &wish, of)?;
    carry::beneath(of.fd, given.socket.as_ref().ok_or(Errno::EIO)?);
    put(of.fd, given, settings, Phase::Open)
}

/// What gives a UDP socket of the kernel's an address, or sends by it.
pub(super) fn open_udp(host: &Host, of: Candidate) -> Outcome<&'static File> {
    let wish = Wish {
        local: of.local,
        ..wish(What::Udp, of.v6)
    };
    let at = sys::borrow(of.fd);
    let settings = Settings::of_kernel_socket(at, of.v6, true);
    let given = guest::ask(&host.claim, &wish, Some(at))?;
    carry::beneath(of.fd, given.socket.as_ref().ok_or(Errno::EPIPE)?);
    put(of.fd, given, settings, Phase::Open)
}

/// listen(2) of a kernel socket that listens already, for the kernel's addresses.
pub(super) fn listen_both(host: &Host, of: Candidate, backlog: i32) -> Outcome<i32> {
    let wish = Wish {
        local: of.local,
        backlog,
        ..wish(What::Listen, of.v6)
    };
    let at = sys::borrow(of.fd);
    let given = guest::ask(&host.claim, &wish, Some(at))?;
    let name = Name::parse(&given.name).ok_or(Errno::EPIPE)?;
    let known = Inherited::listener(
        super::name::Door {
            name,
            is_kernels: true,
        },
        Settings::default(),
    );
    let file = inherited::make(sys::inode(at), known)?;
    table::install(of.fd, file);
    hold(file, of.fd);
    Ok(0)
}

/// listen(2) of one that is a guest's already, and bound.
pub(crate) fn listen(file: &'static File, fd: i32, backlog: i32) -> Outcome<i32> {
    let known = known(file)?;
    if known.name.udp {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if known.name.peer.is_some() {
        return Err(Errno::EINVAL.into());
    }
    if known.is_kernels {
        return Err(Exit::Native);
    }
    let at = sys::borrow(fd);
    let listens = sockopt::socket_acceptconn(at)?;
    if !listens {
        rustix::net::listen(at, kcm_stack::limits::BACKLOG_MAX as i32)?;
        let wish = Wish {
            backlog,
            ..wish(What::Listen, known.name.v6)
        };
        match guest::ask(&known.name.owner, &wish, Some(at)) {
            // It has ended since bind(2), or is about to: whoever has the address next serves the listener.
            Err(Exit::Failed(Errno::EPIPE)) => revive::listen(file, fd, backlog)?,
            asked => drop(asked?),
        }
        hold(file, fd);
    }
    Ok(0)
}

/// connect(2) of one that is a guest's already, or inherited.
pub(crate) fn connect_again(
    file: &'static File,
    fd: i32,
    addr: UserPtr,
    length: u32,
) -> Outcome<i32> {
    if !file.is_stream() {
        return holder::connect(file, fd, addr, length);
    }
    let address::Address::Inet(remote) = address::read(addr, length)? else {
        return Err(Errno::EISCONN.into());
    };
    let at = known(file)?;
    let (name, at) = (at.name, sys::borrow(fd));
    match settle(file, fd)? {
        Phase::Connecting | Phase::Established | Phase::Failed(_) => {
            return await_connection(file, fd);
        }
        Phase::Open if name.peer.is_some() || sockopt::socket_acceptconn(at)? => {
            return Err(Errno::EISCONN.into());
        }
        Phase::Open | Phase::Unconnected => {}
    }
    let wish = Wish {
        remote: address::canonical(remote),
        ..wish(What::Connect, name.v6)
    };
    let settings = known(file)?.settings;
    let like = match name.peer {
        None => None,
        Some(_) => Some(carry::as_kernel_socket(&settings, name.v6)?),
    };
    let like = like.as_ref().map_or(at, AsFd::as_fd);
    let given = guest::ask(&name.owner, &wish, Some(like))?;
    let file = put(fd, given, settings, Phase::Connecting)?;
    first_try(file, fd)
}

/// Linux tells no outcome to a call that does not wait, however fast it is known.
fn first_try(file: &'static File, fd: i32) -> Outcome<i32> {
    match waits(file, fd, 0) {
        true => await_connection(file, fd),
        false => Err(Errno::EINPROGRESS.into()),
    }
}

/// What was given takes the place of the socket behind `fd`.
fn put(fd: i32, given: Given<Kept>, settings: Settings, phase: Phase) -> Outcome<&'static File> {
    let socket = given.socket.ok_or(Errno::EPIPE)?;
    let name = Name::parse(&given.name).ok_or(Errno::EPIPE)?;
    if !table::in_range(fd) {
        return Err(Errno::EMFILE.into());
    }
    settings.show_timeouts(&socket);
    let flags = if sys::is_nonblocking(fd) {
        rustix::fs::OFlags::NONBLOCK
    } else {
        rustix::fs::OFlags::empty()
    };
    rustix::fs::fcntl_setfl(&socket, flags)?;
    let mut known = Inherited::new(name, settings);
    known.phase = phase;
    let ino = sys::inode(socket.as_fd());
    let file = inherited::make(ino, known)?;
    replace(fd, socket)?;
    pristine::changed(fd);
    table::install(fd, file);
    Ok(file)
}

/// Sets of the kernel's that have the old socket get the new one.
fn replace(fd: i32, socket: Kept) -> Outcome<()> {
    let stays_open = rustix::io::fcntl_getfd(sys::borrow(fd)).is_ok_and(|f| f.is_empty());
    let registered = kernel_set::take_registrations(fd);
    let moved = sys::put_onto(&socket, fd, !stays_open);
    kernel_set::register_again(fd, registered);
    Ok(moved?)
}

/// Tells the outcome of a connect, and waits for it if the socket does.
fn await_connection(file: &'static File, fd: i32) -> Outcome<i32> {
    let until = timeout(fd, Timeout::Send);
    loop {
        match settle(file, fd)? {
            Phase::Failed(why) => {
                set_phase(file, Phase::Unconnected);
                return Err(why.unwrap_or(Errno::ECONNABORTED).into());
            }
            Phase::Established => {
                set_phase(file, Phase::Open);
                return Ok(0);
            }
            Phase::Open | Phase::Unconnected => return Ok(0), // another thread was told
            Phase::Connecting if !waits(file, fd, 0) => {
                return Err(Errno::EALREADY.into());
            }
            Phase::Connecting => match wait(fd, until) {
                Err(Exit::Failed(Errno::EAGAIN)) => return Err(Errno::EINPROGRESS.into()),
                done => done?,
            },
        }
    }
}

/// Before bytes are moved: the connection is there, or the call cannot wait for it.
pub(super) fn arrive(file: &'static File, fd: i32, flags: i32, which: Timeout) -> Outcome<()> {
    let mut until = None;
    loop {
        match settle(file, fd)? {
            Phase::Connecting if !waits(file, fd, flags) => return Err(Errno::EAGAIN.into()),
            Phase::Connecting => {
                let at = *until.get_or_insert_with(|| timeout(fd, which));
                wait(fd, at)?;
            }
            Phase::Failed(Some(why)) => {
                set_phase(file, Phase::Failed(None));
                return Err(why.into());
            }
            Phase::Unconnected if which == Timeout::Recv => return Err(Errno::ENOTCONN.into()),
            Phase::Open | Phase::Established | Phase::Failed(None) | Phase::Unconnected => {
                return Ok(());
            }
        }
    }
}

/// The error that a connect has come to, once.
pub(super) fn take_error(file: &'static File, fd: i32) -> Outcome<i32> {
    match settle(file, fd)? {
        Phase::Connecting => Ok(0),
        Phase::Failed(Some(why)) => {
            set_phase(file, Phase::Failed(None));
            Ok(why.0)
        }
        _ => Err(Exit::Native),
    }
}

/// Where the connection stands. The socket beneath tells: it is not writable until there is one.
pub(super) fn settle(file: &'static File, fd: i32) -> Outcome<Phase> {
    let known = known(file)?;
    if known.phase != Phase::Connecting {
        return Ok(known.phase);
    }
    let bits = sys::poll_bits(fd, libc::POLLOUT);
    let phase = if bits & (libc::POLLERR | libc::POLLHUP) != 0 {
        match failure(&known.name.owner, fd) {
            0 => Phase::Established,
            why => {
                let _ = sockopt::socket_error(sys::borrow(fd));
                Phase::Failed(Some(Errno(why)))
            }
        }
    } else if bits & libc::POLLOUT != 0 {
        Phase::Established
    } else {
        return Ok(Phase::Connecting);
    };
    set_phase(file, phase);
    Ok(phase)
}

/// Why the connection could not be made; 0 if it was, and ended since. An owner that is gone has reset it.
fn failure(owner: &[u8], fd: i32) -> i32 {
    let asked = stack::ask(owner, fd, Question::Failure).ok();
    let number = asked.and_then(|bytes| bytes.first_chunk().copied());
    number.map_or(libc::ECONNRESET, i32::from_ne_bytes)
}

/// When a blocking call on the socket gives up.
pub(super) fn timeout(fd: i32, which: Timeout) -> Option<Nanos> {
    let set = sockopt::socket_timeout(sys::borrow(fd), which)
        .ok()
        .flatten();
    deadline(set.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)))
}

/// Sleeps until the outcome of a connect is known.
///
/// # Errors
/// `EAGAIN` when `until` has passed; `EINTR` as signal(7) has it for sockets.
pub(super) fn wait(fd: i32, until: Option<Nanos>) -> Outcome<()> {
    let mut entry = [libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    }];
    match native_ppoll(&mut entry, until) {
        Ok(0) => Err(Errno::EAGAIN.into()),
        Ok(_) => Ok(()),
        Err(Errno::EINTR) if until.is_none() && signal::handlers_restart() => Ok(()),
        Err(why) => Err(why.into()),
    }
}
