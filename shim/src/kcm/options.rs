//! Socket options of a KCM socket (kcm-semantics §2, §4). The AF_UNIX socket beneath keeps and
//! answers what any socket would; what differs is answered here.

use core::sync::atomic::Ordering;

use kcm_mux::SocketType;
use rustix::net::sockopt;

use super::{AF_KCM, KCM_RECV_DISABLE, SOL_KCM, socket};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::fd::file::Link;
use crate::share::{owner, remote};
use crate::sys;
use crate::user_mem::{self, UserPtr};

/// getsockopt(2).
pub(crate) fn get(
    file: &'static File,
    fd: i32,
    level: i32,
    name: i32,
    value: UserPtr,
    length: UserPtr,
) -> Outcome<i32> {
    let answer = match (level, name) {
        (SOL_KCM, _) => return get_kcm(file, fd, name, value, length),
        (libc::SOL_SOCKET, libc::SO_TYPE) => {
            if file.link() == Link::Remote {
                remote::hold(file, fd);
            }
            match file.socket_type() {
                SocketType::Dgram => libc::SOCK_DGRAM,
                SocketType::Seqpacket => libc::SOCK_SEQPACKET,
            }
        }
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => AF_KCM,
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) => 0,
        (libc::SOL_SOCKET, libc::SO_PEEK_OFF) => return Err(Errno::EOPNOTSUPP.into()),
        (libc::SOL_SOCKET, _) => return Err(Exit::Native),
        _ => return Err(Errno::ENOPROTOOPT.into()),
    };
    put_int(answer, value, length)
}

fn get_kcm(
    file: &'static File,
    fd: i32,
    name: i32,
    value: UserPtr,
    length: UserPtr,
) -> Outcome<i32> {
    if user_mem::copy_in::<i32>(length)? < 0 {
        return Err(Errno::EINVAL.into());
    }
    if name != KCM_RECV_DISABLE {
        return Err(Errno::ENOPROTOOPT.into());
    }
    let disabled = if file.link() == Link::Remote {
        remote::rx_disabled(file, fd)?
    } else {
        let engine = socket::checked(file, file.mux()?)?;
        engine.mux.rx_disabled(file.kcm_id())
    };
    put_int(i32::from(disabled), value, length)
}

/// Writes as much of an int as the program has room for, and how much that was.
pub(crate) fn put_int(answer: i32, value: UserPtr, length: UserPtr) -> Outcome<i32> {
    put_bytes(&answer.to_ne_bytes(), value, length)
}

/// Writes as much of `bytes` as the program has room for, and how much that was.
pub(crate) fn put_bytes(bytes: &[u8], value: UserPtr, length: UserPtr) -> Outcome<i32> {
    let room = usize::try_from(user_mem::copy_in::<i32>(length)?).map_err(|_| Errno::EINVAL)?;
    let count = room.min(bytes.len());
    user_mem::write_bytes(value, bytes.get(..count).unwrap_or_default())?;
    user_mem::copy_out(length, &(count as i32))?;
    Ok(0)
}

/// setsockopt(2). `native` makes the real call on the socket beneath.
pub(crate) fn set(
    file: &'static File,
    fd: i32,
    level: i32,
    name: i32,
    value: UserPtr,
    length: u32,
    native: impl FnOnce() -> i32,
) -> Outcome<i32> {
    match (level, name) {
        (SOL_KCM, _) => set_kcm(file, fd, name, value, length),
        (libc::SOL_SOCKET, libc::SO_PEEK_OFF | libc::SO_ZEROCOPY | libc::SO_REUSEPORT) => {
            user_mem::int_value(value, length)?;
            Err(Errno::EOPNOTSUPP.into())
        }
        (libc::SOL_SOCKET, _) => {
            let done = native();
            if done == 0 {
                follow(file, fd, name)?;
            }
            Ok(done)
        }
        _ => Err(Errno::ENOPROTOOPT.into()),
    }
}

fn set_kcm(file: &'static File, fd: i32, name: i32, value: UserPtr, length: u32) -> Outcome<i32> {
    let on = user_mem::int_value(value, length)? != 0;
    if name != KCM_RECV_DISABLE {
        return Err(Errno::ENOPROTOOPT.into());
    }
    if file.link() == Link::Remote {
        remote::set_option(file, fd, 0, on.into())?;
        return Ok(0);
    }
    let mut rx = file.rx.lock()?;
    let mut engine = socket::checked(file, file.mux()?)?;
    if file.link() == Link::Shared {
        drop(rx);
        owner::set_option(engine, file.kcm_id(), 0, on.into(), Some(sys::borrow(fd)));
        return Ok(0);
    }
    engine.mux.set_rx_disabled(file.kcm_id(), on, &mut rx);
    engine.pump();
    let adrift = !on && engine.lines.any_adrift();
    drop((rx, engine));
    if adrift {
        owner::settle_adrift(file.mux()?);
    }
    Ok(0)
}

/// The timeouts of the socket beneath, as another program has set them.
pub(crate) fn follow_timeouts(file: &File, fd: i32) {
    for (at, which) in [
        (&file.rcvtimeo, sockopt::Timeout::Recv),
        (&file.sndtimeo, sockopt::Timeout::Send),
    ] {
        let set = sockopt::socket_timeout(sys::borrow(fd), which);
        let set = set.ok().flatten();
        let ns = set.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX));
        at.store(ns, Ordering::Relaxed);
    }
}

/// The socket beneath has accepted a value: the mux follows what it now reports.
fn follow(file: &'static File, fd: i32, name: i32) -> Outcome<()> {
    let beneath = sys::borrow(fd);
    let id = file.kcm_id();
    match name {
        libc::SO_RCVTIMEO | SO_RCVTIMEO_NEW | libc::SO_SNDTIMEO | SO_SNDTIMEO_NEW => {
            follow_timeouts(file, fd);
        }
        libc::SO_RCVBUF
        | libc::SO_RCVBUFFORCE
        | libc::SO_SNDBUF
        | libc::SO_SNDBUFFORCE
        | libc::SO_RCVLOWAT
            if file.link() == Link::Remote =>
        {
            tell_owner(file, fd, name)?;
        }
        libc::SO_RCVBUF | libc::SO_RCVBUFFORCE => {
            let size = sockopt::socket_recv_buffer_size(beneath)?;
            socket::checked(file, file.mux()?)?
                .mux
                .set_rcvbuf(id, size as u32);
        }
        libc::SO_SNDBUF | libc::SO_SNDBUFFORCE => {
            let size = sockopt::socket_send_buffer_size(beneath)?;
            socket::checked(file, file.mux()?)?
                .mux
                .set_sndbuf(id, size as u32);
        }
        libc::SO_RCVLOWAT => {
            let low = sys::rcvlowat(beneath);
            socket::checked(file, file.mux()?)?
                .mux
                .set_rcvlowat(id, low);
        }
        _ => {}
    }
    Ok(())
}

/// The owner of the mux hears what the socket now reports.
fn tell_owner(file: &'static File, fd: i32, name: i32) -> Outcome<()> {
    let beneath = sys::borrow(fd);
    let (name, value) = match name {
        libc::SO_RCVBUF | libc::SO_RCVBUFFORCE => {
            (libc::SO_RCVBUF, sockopt::socket_recv_buffer_size(beneath)?)
        }
        libc::SO_SNDBUF | libc::SO_SNDBUFFORCE => {
            (libc::SO_SNDBUF, sockopt::socket_send_buffer_size(beneath)?)
        }
        _ => (libc::SO_RCVLOWAT, sys::rcvlowat(beneath) as usize),
    };
    remote::set_option(file, fd, name, value as u32)
}

const SO_RCVTIMEO_NEW: i32 = 66;
const SO_SNDTIMEO_NEW: i32 = 67;
