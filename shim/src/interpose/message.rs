//! send(2), recv(2) and their message forms.

use libc::{
    c_int, c_uint, c_void, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec,
};

use super::poll::timespec_at;
use super::{conclude, on_socket};
use crate::errno::{Errno, Outcome};
use crate::fd::table;
use crate::real::hooks;
use crate::share::rights;
use crate::user_mem::{Iovecs, UserPtr};
use crate::{message, ops};
use crate::{net, route};

fn one<'a>(buf: *const c_void, len: size_t) -> Outcome<Iovecs<'a>> {
    Iovecs::one_for_msg(UserPtr::new(buf.cast_mut()), len)
}

fn at<T>(ptr: *const T) -> UserPtr {
    UserPtr::new(ptr.cast_mut().cast())
}

/// The real recv(2) into an empty buffer, up to its capacity; with MSG_TRUNC it returns the length
/// of the message. A cancellation point when it waits. Leaves errno as it was.
pub(crate) fn native_recv(fd: c_int, into: &mut Vec<u8>, flags: c_int) -> Result<usize, Errno> {
    into.clear();
    let saved = Errno::current();
    // SAFETY: the kernel stores at most the capacity.
    let got = unsafe { next::recv(fd, into.as_mut_ptr().cast(), into.capacity(), flags) };
    let err = Errno::current();
    saved.set();
    let length = usize::try_from(got).map_err(|_| err)?;
    // SAFETY: as much as the message has, at most the capacity, was stored.
    unsafe { into.set_len(length.min(into.capacity())) };
    Ok(length)
}

hooks! {
    /// send(2).
    fn send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::send(fd, buf, len, flags) };
        on_socket(fd, |f| ops::send(f, fd, one(buf, len)?, flags).map(|n| n as ssize_t), native)
    }

    /// sendto(2). KCM takes an address and ignores it.
    fn sendto(
        fd: c_int, buf: *const c_void, len: size_t, flags: c_int, addr: *const sockaddr, addrlen: socklen_t,
    ) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::sendto(fd, buf, len, flags, addr, addrlen) };
        on_socket(fd, |f| message::sendto(f, fd, one(buf, len)?, flags, at(addr), addrlen), || {
            if addr.is_null() || !route::is_set() {
                return native();
            }
            conclude(net::send_to(fd, one(buf, len), flags, at(addr), addrlen), native)
        })
    }

    /// sendmsg(2).
    fn sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
        let native = || {
            if table::is_used() {
                rights::sending(at(msg));
            }
            // SAFETY: forwards the caller's own arguments.
            unsafe { next::sendmsg(fd, msg, flags) }
        };
        on_socket(fd, |f| message::sendmsg(f, fd, at(msg), flags).map(|n| n as ssize_t), native)
    }

    /// sendmmsg(2).
    fn sendmmsg(fd: c_int, msgs: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
        let native = || {
            if table::is_used() {
                rights::each(at(msgs), count as usize, rights::sending);
            }
            // SAFETY: forwards the caller's own arguments.
            unsafe { next::sendmmsg(fd, msgs, count, flags) }
        };
        on_socket(fd, |f| message::sendmmsg(f, fd, at(msgs), count, flags), native)
    }

    /// sendmmsg(2) under the name glibc also exports.
    fn __sendmmsg(fd: c_int, msgs: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
        let native = || {
            if table::is_used() {
                rights::each(at(msgs), count as usize, rights::sending);
            }
            // SAFETY: forwards the caller's own arguments.
            unsafe { next::__sendmmsg(fd, msgs, count, flags) }
        };
        on_socket(fd, |f| message::sendmmsg(f, fd, at(msgs), count, flags), native)
    }

    /// recv(2).
    fn recv(fd: c_int, buf: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::recv(fd, buf, len, flags) };
        on_socket(fd, |f| ops::recv(f, fd, one(buf, len)?, flags).map(|got| got.bytes as ssize_t), native)
    }

    /// recv(2) as compiled with _FORTIFY_SOURCE.
    fn __recv_chk(fd: c_int, buf: *mut c_void, len: size_t, size: size_t, flags: c_int) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::__recv_chk(fd, buf, len, size, flags) };
        if len > size { return native() }
        on_socket(fd, |f| ops::recv(f, fd, one(buf, len)?, flags).map(|got| got.bytes as ssize_t), native)
    }

    /// recvfrom(2). KCM has no addresses: the length becomes 0.
    fn recvfrom(
        fd: c_int, buf: *mut c_void, len: size_t, flags: c_int, addr: *mut sockaddr, addrlen: *mut socklen_t,
    ) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::recvfrom(fd, buf, len, flags, addr, addrlen) };
        on_socket(fd, |f| message::recvfrom(f, fd, one(buf, len)?, flags, at(addr), at(addrlen)), native)
    }

    /// recvfrom(2) as compiled with _FORTIFY_SOURCE.
    fn __recvfrom_chk(
        fd: c_int, buf: *mut c_void, len: size_t, size: size_t, flags: c_int,
        addr: *mut sockaddr, addrlen: *mut socklen_t,
    ) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::__recvfrom_chk(fd, buf, len, size, flags, addr, addrlen) };
        if len > size { return native() }
        on_socket(fd, |f| message::recvfrom(f, fd, one(buf, len)?, flags, at(addr), at(addrlen)), native)
    }

    /// recvmsg(2).
    fn recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
        let native = || {
            // SAFETY: forwards the caller's own arguments.
            let got = unsafe { next::recvmsg(fd, msg, flags) };
            // SAFETY: the kernel has just written to the header.
            if got >= 0 && unsafe { (*msg).msg_controllen } != 0 {
                rights::received(at(msg));
            }
            got
        };
        on_socket(fd, |f| message::recvmsg(f, fd, at(msg), flags).map(|n| n as ssize_t), native)
    }

    /// recvmmsg(2).
    fn recvmmsg(fd: c_int, msgs: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int {
        let native = || {
            // SAFETY: forwards the caller's own arguments.
            let got = unsafe { next::recvmmsg(fd, msgs, count, flags, timeout) };
            if got > 0 {
                rights::each(at(msgs), got as usize, rights::received);
            }
            got
        };
        on_socket(fd, |f| message::recvmmsg(f, fd, at(msgs), count, flags, timespec_at(timeout)?), native)
    }
}
