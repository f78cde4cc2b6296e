//! Stack sockets whose engine is in another process: a listener inherited over a fork, and the
//! connections accepted on it. Bytes, readiness and ends are those of the AF_UNIX socket behind the
//! number, by the real calls; names and options are answered here.

use core::net::SocketAddr;

use rustix::net::{SocketAddrUnix, SocketFlags};

use super::engine::CELL;
use super::options::Settings;
use super::socket::State;
use super::{address, relay};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::kcm::options::put_int;
use crate::sys;
use crate::user_mem::{self, UserPtr};

/// What is known of such a socket.
#[derive(Clone)]
pub(crate) struct Inherited {
    v6: bool,
    local: SocketAddr,
    /// None for a listener.
    peer: Option<SocketAddr>,
    settings: Settings,
}

/// In the child of a fork, while the parent's engine can still be read.
pub(crate) fn note() {
    if !CELL.is_open() {
        return;
    }
    let Ok(mut engine) = CELL.lock() else { return };
    for fd in table::ours_in(0, u32::MAX) {
        let Some(file) = lookup(fd).filter(|f| f.kind() == Kind::Stack) else {
            continue;
        };
        let Ok(socket) = engine.socket(file) else {
            continue;
        };
        if let (State::Listening(_), Some(local), true) =
            (socket.state, socket.bound, socket.shared.is_some())
        {
            let known = Inherited {
                v6: socket.v6,
                local,
                peer: None,
                settings: socket.settings.clone(),
            };
            file.become_inherited(known);
        }
    }
}

fn known(file: &File) -> Outcome<Inherited> {
    match &*file.body.lock()? {
        Body::Inherited(known) => Ok(known.clone()),
        _ => Err(Errno::EBADF.into()),
    }
}

/// accept4(2) on an inherited listener.
pub(crate) fn accept(
    file: &'static File,
    fd: i32,
    addr: UserPtr,
    length: UserPtr,
    flags: i32,
) -> Outcome<i32> {
    let listener = known(file)?;
    accept_as(&listener, fd, addr, length, flags)
}

/// accept4(2) on the socket beneath a listener.
pub(super) fn accept_beneath(
    listener: (bool, SocketAddr, Settings),
    fd: i32,
    addr: UserPtr,
    length: UserPtr,
    flags: i32,
) -> Outcome<i32> {
    let (v6, local, settings) = listener;
    let listener = Inherited {
        v6,
        local,
        peer: None,
        settings,
    };
    accept_as(&listener, fd, addr, length, flags)
}

fn accept_as(
    listener: &Inherited,
    fd: i32,
    addr: UserPtr,
    length: UserPtr,
    flags: i32,
) -> Outcome<i32> {
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let flags = SocketFlags::from_bits_truncate(flags as u32);
    let (accepted, name) = rustix::net::acceptfrom_with(sys::borrow(fd), flags)?;
    let name = name.and_then(|name| SocketAddrUnix::try_from(name).ok());
    let (peer, local) = name
        .as_ref()
        .and_then(relay::addresses)
        .unwrap_or((address::any(listener.v6, 0), listener.local));
    if !table::in_range(sys::number(&accepted)) {
        return Err(Errno::EMFILE.into());
    }
    let ino = sys::inode(sys::borrow(sys::number(&accepted)));
    let known = Inherited {
        local,
        peer: Some(peer),
        ..listener.clone()
    };
    let file = File::new(Kind::Inherited, ino, Body::Inherited(known))?;
    let number = sys::hand_out(accepted);
    table::install(number, file);
    if !addr.is_null() {
        let written = address::write(address::in_family(peer, listener.v6), addr, length);
        if let Err(why) = written {
            if let Some(file) = table::remove(number) {
                let _ = sys::close(number);
                file.release();
            }
            return Err(why);
        }
    }
    Ok(number)
}

/// getsockname(2).
pub(crate) fn local_name(file: &File, addr: UserPtr, length: UserPtr) -> Outcome<i32> {
    let known = known(file)?;
    address::write(address::in_family(known.local, known.v6), addr, length)?;
    Ok(0)
}

/// getpeername(2).
pub(crate) fn peer_name(file: &File, addr: UserPtr, length: UserPtr) -> Outcome<i32> {
    let known = known(file)?;
    let peer = known.peer.ok_or(Errno::ENOTCONN)?;
    address::write(address::in_family(peer, known.v6), addr, length)?;
    Ok(0)
}

/// getsockopt(2).
pub(crate) fn get(
    file: &File,
    level: i32,
    name: i32,
    value: UserPtr,
    length: UserPtr,
) -> Outcome<i32> {
    let known = known(file)?;
    let answer = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_DOMAIN) if known.v6 => libc::AF_INET6,
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => libc::AF_INET,
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) => libc::IPPROTO_TCP,
        (libc::SOL_SOCKET, _) => return Err(Exit::Native),
        _ => known.settings.int(level, name).ok_or(Errno::ENOPROTOOPT)?,
    };
    put_int(answer, value, length)
}

/// setsockopt(2). What a connection of the owner's could do with an option it does by default: bytes
/// leave at once.
pub(crate) fn set(file: &File, level: i32, name: i32, value: UserPtr, length: u32) -> Outcome<i32> {
    if level == libc::SOL_SOCKET {
        return Err(Exit::Native);
    }
    if (length as i32) < size_of::<i32>() as i32 {
        return Err(Errno::EINVAL.into());
    }
    let value = user_mem::copy_in::<i32>(value)?;
    match &mut *file.body.lock()? {
        Body::Inherited(known) => Ok(known.settings.set_int(level, name, value).map(|()| 0)?),
        _ => Err(Errno::EBADF.into()),
    }
}
