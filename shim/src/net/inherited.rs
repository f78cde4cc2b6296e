//! Stack sockets whose bytes another process's engine moves, or this one's for others too
//! ([`super::lend`]): inherited over a fork or exec, received in a message, or accepted on an inherited
//! listener. Bytes, readiness and ends are those of the AF_UNIX socket behind the number, by the real
//! calls; names are known, and options are asked of the owner.

use core::net::SocketAddr;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags};

use super::channel::holder;
use super::name::{Door, Name};
use super::options::{self, Settings};
use super::question::Question;
use super::{address, fixed, guest, pristine, revive};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::interpose::message::native_recv;
use crate::kcm::options::{put_bytes, put_int};
use crate::kcm::recv::Received;
use crate::share::name::is_trusted;
use crate::share::stack::{ask, tell};
use crate::sys;
use crate::tcp::Attached;
use crate::user_mem::{self, Iovecs, UserPtr};

/// What is known of such a socket.
#[derive(Clone)]
pub(crate) struct Inherited {
    pub(super) name: Name,
    /// Options as far as this process knows them, should the owner not answer.
    pub(super) settings: Settings,
    /// The owner knows that others use it; of a listener: the owner is watched.
    held: bool,
    /// The kernel's listener.
    pub(super) is_kernels: bool,
    pub(super) phase: Phase,
}

/// How far connect(2) has come with a guest's connection ([`super::guest`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// It has told its outcome, or was called elsewhere.
    Open,
    Connecting,
    /// There is a connection, which a second call has yet to tell.
    Established,
    /// There is none, and why, until that is told.
    Failed(Option<Errno>),
    /// There is none, and the call has told so.
    Unconnected,
}

impl Inherited {
    /// One that the owner knows others use, but for a listener.
    pub(super) fn new(name: Name, settings: Settings) -> Self {
        Self {
            held: !name.is_listener(),
            name,
            settings,
            is_kernels: false,
            phase: Phase::Open,
        }
    }

    pub(super) fn listener(door: Door, settings: Settings) -> Self {
        Self {
            is_kernels: door.is_kernels,
            ..Self::new(door.name, settings)
        }
    }

    /// One of which that is not known.
    pub(super) fn unheld(name: Name, settings: Settings) -> Self {
        Self {
            held: false,
            ..Self::new(name, settings)
        }
    }
}

pub(super) fn set_phase(file: &File, phase: Phase) {
    if let Ok(Body::Inherited(known, _)) = file.body.lock().as_deref_mut() {
        known.phase = phase;
    }
}

/// The owner has connected the UDP socket.
pub(super) fn rename(file: &File, local: SocketAddr, peer: Option<SocketAddr>) {
    if let Ok(Body::Inherited(known, _)) = file.body.lock().as_deref_mut() {
        (known.name.local, known.name.peer) = (local, peer);
    }
}

pub(super) fn known(file: &File) -> Outcome<Inherited> {
    match &*file.body.lock()? {
        Body::Inherited(known, _) => Ok(known.clone()),
        _ => Err(Errno::EBADF.into()),
    }
}

/// Puts a file behind a descriptor that this process got with its program or in a message, if it is one
/// of these.
pub(crate) fn adopt(fd: i32) -> bool {
    let Some(name) = Name::of(sys::borrow(fd)).filter(|_| table::in_range(fd)) else {
        return false;
    };
    // Nobody is at the other end of one that is only bound; its owner answers for itself, and is asked for all.
    let is_idle = name.is_listener() && sockopt::socket_acceptconn(sys::borrow(fd)) == Ok(false);
    if !is_idle && !is_trusted(sys::borrow(fd)) {
        return false;
    }
    let known = Inherited::unheld(name, Settings::default());
    let ino = sys::inode(sys::borrow(fd));
    let Ok(file) = make(ino, known) else {
        return false;
    };
    table::install(fd, file);
    true
}

/// The file of such a socket.
pub(super) fn make(ino: u64, known: Inherited) -> Outcome<&'static File> {
    let udp = known.name.udp;
    let body = Body::Inherited(known, Attached::default());
    let file = File::new(Kind::Inherited, ino, body)?;
    file.set_stream(!udp);
    Ok(file)
}

/// Whether `fd` is a connection that processes share.
pub(crate) fn is_connection(fd: BorrowedFd<'_>) -> bool {
    Name::of(fd).is_some_and(|name| name.peer.is_some() && !name.udp) && is_trusted(fd)
}

/// The process whose engine has the socket.
pub(super) fn owner_of(file: &File) -> Outcome<Vec<u8>> {
    Ok(known(file)?.name.owner)
}

/// SO_RCVBUF as far as this process knows it, if the file is one of these.
pub(crate) fn rcvbuf(file: &File) -> Option<u32> {
    match file.kind() {
        Kind::Inherited => Some(known(file).ok()?.settings.rcvbuf()),
        _ => None,
    }
}

/// Sees to it that bytes flow, or of a listener that connections come. Should the owner of a connection not
/// answer, its end shows that it is gone.
pub(crate) fn hold(file: &'static File, fd: i32) {
    let (owner, listens) = match file.body.lock().as_deref_mut() {
        Ok(Body::Inherited(known, _)) if !known.held => {
            known.held = true;
            (known.name.owner.clone(), known.name.is_listener())
        }
        _ => return,
    };
    if listens {
        return revive::watch(&owner);
    }
    let _ = ask(&owner, fd, Question::Share);
}

/// In a forked child, which watches owners for itself.
pub(crate) fn reset_in_child(file: &File) {
    if let Ok(Body::Inherited(known, _)) = file.body.lock().as_deref_mut() {
        known.held &= !known.name.is_listener();
    }
}

/// As [`hold`], for a number that may be any.
pub(crate) fn hold_at(fd: i32) {
    if let Some(file) = lookup(fd).filter(|file| file.kind() == Kind::Inherited) {
        hold(file, fd);
    }
}

/// Any receive: by the socket beneath.
pub(crate) fn recv(file: &'static File, fd: i32, flags: i32) -> Outcome<Received> {
    hold(file, fd);
    guest::arrive(file, fd, flags, Timeout::Recv)?;
    Err(Exit::Native)
}

/// Any send: by the socket beneath, which has no urgent data, and would not tell of a reset.
pub(crate) fn send(file: &'static File, fd: i32, flags: i32) -> Outcome<usize> {
    if flags & libc::MSG_OOB != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    hold(file, fd);
    guest::arrive(file, fd, flags, Timeout::Send)?;
    let ended = i32::from(sys::poll_bits(fd, 0)) & i32::from(libc::POLLERR | libc::POLLHUP) != 0;
    if ended
        && let Some(error @ 1..) =
            sys::option_int(sys::borrow(fd), libc::SOL_SOCKET, libc::SO_ERROR)
    {
        return Err(Errno(error).into());
    }
    Err(Exit::Native)
}

/// A receive that asks for the sender's address, of which a connection has none to tell.
pub(crate) fn recv_unnamed(
    file: &'static File,
    fd: i32,
    dst: Iovecs<'_>,
    flags: i32,
) -> Outcome<Received> {
    /// What one call moves at most.
    const BYTES_MAX: usize = 64 << 10;
    hold(file, fd);
    guest::arrive(file, fd, flags, Timeout::Recv)?;
    let mut bytes = Vec::with_capacity(dst.total().min(BYTES_MAX));
    let got = native_recv(fd, &mut bytes, flags)?;
    dst.scatter([&*bytes], bytes.len())?;
    let bytes = got.length.min(bytes.len());
    Ok(Received { bytes, flags: 0 })
}

/// accept4(2) on an inherited listener.
pub(crate) fn accept(
    file: &'static File,
    fd: i32,
    addr: UserPtr,
    length: UserPtr,
    flags: SocketFlags,
) -> Outcome<i32> {
    let known = known(file)?;
    if known.name.udp {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if known.name.peer.is_some() {
        return Err(Errno::EINVAL.into());
    }
    hold(file, fd);
    let (name, is_kernels) = (known.name, known.is_kernels);
    let door = Door { name, is_kernels };
    accept_beneath((&door, known.settings), fd, addr, length, flags)
}

/// accept4(2) on the socket beneath a listener.
pub(super) fn accept_beneath(
    listener: (&Door, Settings),
    fd: i32,
    addr: UserPtr,
    length: UserPtr,
    flags: SocketFlags,
) -> Outcome<i32> {
    let (door, settings) = listener;
    let accepted = rustix::net::accept_with(sys::borrow(fd), flags)?;
    if !table::in_range(sys::number(&accepted)) {
        return Err(Errno::EMFILE.into());
    }
    let (peer, name) = match door.is_kernels {
        true => handed_over(&accepted, door)?,
        false => {
            // Abstract addresses are open to everybody: a stranger could name any peer.
            let name = Name::of(accepted.as_fd()).filter(|_| is_trusted(&accepted));
            let name = name.ok_or(Errno::ECONNABORTED)?;
            mark(&accepted, fd);
            (name.peer.ok_or(Errno::ECONNABORTED)?, Some(name)) // or the owner is gone
        }
    };
    let made = name.map(|name| {
        let ino = sys::inode(accepted.as_fd());
        let known = Inherited::new(name, settings);
        make(ino, known)
    });
    let made = made.transpose()?;
    let number = sys::hand_out(accepted);
    table::fresh(number);
    pristine::changed(number);
    if let Some(file) = made {
        table::install(number, file);
    }
    if !addr.is_null() {
        let written = address::write(address::in_family(peer, door.name.v6), addr, length);
        if let Err(why) = written {
            let _ = sys::close(number);
            if let Some(file) = table::remove(number) {
                file.release();
            }
            return Err(why);
        }
    }
    Ok(number)
}

/// The peer of what the kernel's listener has accepted, and the name of the connection if it is one of
/// the owner's.
fn handed_over(accepted: &OwnedFd, door: &Door) -> Outcome<(SocketAddr, Option<Name>)> {
    let peer = rustix::net::getpeername(accepted)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
    let peer = peer.ok_or(Errno::ECONNABORTED)?;
    if !Door::may_hand_over(peer) {
        return Ok((peer, None));
    }
    let asked = ask(&door.name.owner, sys::number(accepted), Question::Name);
    let name = asked.ok().and_then(|bytes| Name::parse(&bytes));
    Ok(match name.as_ref().and_then(|name| name.peer) {
        Some(behind) => (behind, name),
        None => (peer, None),
    })
}

/// Leaves the byte at the owner's end that means nothing, which is known by the descriptor with it (see
/// [`super::relay`]).
fn mark(accepted: impl AsFd, listener: i32) {
    let mut space = [core::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [sys::borrow(listener)];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let byte = [rustix::io::IoSlice::new(&[0])];
    let _ = rustix::net::sendmsg(accepted, &byte, &mut control, flags);
}

/// getsockname(2).
pub(crate) fn local_name(file: &File, addr: UserPtr, length: UserPtr) -> Outcome<i32> {
    let known = known(file)?;
    let Name { mut local, v6, .. } = known.name;
    if let Phase::Failed(_) | Phase::Unconnected = known.phase {
        local = address::any(v6, local.port());
    }
    address::write(address::in_family(local, v6), addr, length)?;
    Ok(0)
}

/// getpeername(2).
pub(crate) fn peer_name(
    file: &'static File,
    fd: i32,
    addr: UserPtr,
    length: UserPtr,
) -> Outcome<i32> {
    if let Phase::Connecting | Phase::Failed(_) | Phase::Unconnected = guest::settle(file, fd)? {
        return Err(Errno::ENOTCONN.into());
    }
    let Name { peer, v6, .. } = known(file)?.name;
    let peer = peer.ok_or(Errno::ENOTCONN)?;
    address::write(address::in_family(peer, v6), addr, length)?;
    Ok(0)
}

/// ioctl(2): what is about the network, the owner knows.
pub(crate) fn ioctl(file: &'static File, fd: i32, request: u32, arg: UserPtr) -> Outcome<i32> {
    const SIOCOUTQ: u32 = libc::TIOCOUTQ as u32;
    const SIOCOUTQNSD: u32 = 0x894b;
    const SIOCATMARK: u32 = 0x8905;
    hold(file, fd);
    if !file.is_stream() && request == libc::FIONREAD as u32 {
        user_mem::copy_out(arg, &holder::next_length(fd))?;
        return Ok(0);
    }
    if !matches!(request, SIOCOUTQ | SIOCOUTQNSD | SIOCATMARK) {
        return Err(Exit::Native);
    }
    let answer = ask(&known(file)?.name.owner, fd, Question::Ioctl(request))?;
    user_mem::write_bytes(arg, &answer)?;
    Ok(0)
}

/// What an option of no level of ours, or of the socket beneath alone, answers.
fn refuse(level: i32, name: i32, at: &Name) -> Option<Errno> {
    let beneath = fixed::is_beneath_only(level, name).then_some(Errno::EOPNOTSUPP);
    fixed::foreign_level(level, at.udp, at.v6).or(beneath)
}

/// getsockopt(2).
pub(crate) fn get(
    file: &'static File,
    fd: i32,
    level: i32,
    name: i32,
    value: UserPtr,
    length: UserPtr,
) -> Outcome<i32> {
    let known = known(file)?;
    if known.is_kernels {
        return Err(Exit::Native);
    }
    if let Some(errno) = refuse(level, name, &known.name) {
        return Err(errno.into());
    }
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_DOMAIN) if known.name.v6 => {
            return put_int(libc::AF_INET6, value, length);
        }
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => return put_int(libc::AF_INET, value, length),
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) if known.name.udp => {
            return put_int(libc::IPPROTO_UDP, value, length);
        }
        (libc::SOL_SOCKET, libc::SO_TYPE) if known.name.udp => {
            return put_int(libc::SOCK_DGRAM, value, length);
        }
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) => return put_int(libc::IPPROTO_TCP, value, length),
        (libc::SOL_SOCKET, libc::SO_ERROR) => {
            return put_int(guest::take_error(file, fd)?, value, length);
        }
        (libc::SOL_SOCKET, libc::SO_TYPE | libc::SO_ACCEPTCONN) => {
            return Err(Exit::Native);
        }
        _ => {}
    }
    match ask(&known.name.owner, fd, Question::Get(level, name)) {
        Ok(answer) => put_bytes(&answer, value, length),
        Err(Exit::Failed(Errno::EPIPE)) => match known.settings.int(level, name) {
            Some(answer) => put_int(answer, value, length),
            None if level == libc::SOL_SOCKET => Err(Exit::Native),
            None => Err(Errno::ENOPROTOOPT.into()),
        },
        Err(why) => Err(why),
    }
}

/// setsockopt(2).
pub(crate) fn set(
    file: &File,
    fd: i32,
    level: i32,
    name: i32,
    value: UserPtr,
    length: u32,
) -> Outcome<i32> {
    let known = known(file)?;
    if known.is_kernels {
        return Err(Exit::Native);
    }
    let (at, settings) = (known.name, known.settings);
    match refuse(level, name, &at) {
        Some(Errno::EOPNOTSUPP) if level == libc::SOL_SOCKET => {
            return Err(Errno::EOPNOTSUPP.into());
        }
        Some(_) => return Err(Errno::ENOPROTOOPT.into()),
        None => {}
    }
    let is_known = settings.int(level, name).is_some();
    let asks = options::is_composite(level, name);
    if level == libc::SOL_SOCKET && !is_known && !asks {
        return Err(Exit::Native);
    }
    /// The longest of values, a `struct group_source_req`; of a `struct group_filter` one that lists nobody.
    const VALUE_MAX: u32 = 264;
    let mut room = [0; VALUE_MAX as usize];
    let bytes = room
        .get_mut(..length.min(VALUE_MAX) as usize)
        .unwrap_or_default();
    user_mem::read_bytes(value, bytes)?;
    if !is_known {
        return ask(&at.owner, fd, Question::Set(level, name, bytes)).map(|_| 0);
    }
    let (number, _) = bytes.split_first_chunk().ok_or(Errno::EINVAL)?;
    if let Body::Inherited(known, _) = &mut *file.body.lock()? {
        known
            .settings
            .set_int(level, name, i32::from_ne_bytes(*number))?;
    }
    let _ = tell(&at.owner, fd, level, name, bytes); // an owner that is gone shows at the next read
    Ok(0)
}
