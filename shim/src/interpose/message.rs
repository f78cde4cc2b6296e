//! send(2), recv(2) and their message forms.

use libc::{
    c_int, c_uint, c_void, mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec,
};
use rustix::fd::OwnedFd;

use super::poll::timespec_at;
use super::{conclude, on_socket};
use crate::errno::{Errno, Outcome};
use crate::fd::{File, lookup, table};
use crate::real::hooks;
use crate::share::rights;
use crate::user_mem::{self, Iovecs, Moment, UserPtr};
use crate::{message, ops, sys};
use crate::{net, route};

fn one<'a>(buf: *const c_void, len: size_t) -> Outcome<Iovecs<'a>> {
    Iovecs::one_for_msg(UserPtr::new(buf.cast_mut()), len)
}

fn at<T>(ptr: *const T) -> UserPtr {
    UserPtr::new(ptr.cast_mut().cast())
}

/// What a real receive brought.
pub(crate) struct Natively {
    /// Bytes stored; with MSG_TRUNC the length of the message.
    pub(crate) length: usize,
    /// A descriptor that came along.
    pub(crate) passed: Option<OwnedFd>,
    /// A descriptor came along for which this process has no room.
    pub(crate) lost: bool,
}

/// The real recvmsg(2) into an empty buffer, up to its capacity. A cancellation point when it waits.
/// Leaves errno as it was.
pub(crate) fn native_recv(fd: c_int, into: &mut Vec<u8>, flags: c_int) -> Result<Natively, Errno> {
    /// Words of one `struct cmsghdr` with an int behind it.
    const CONTROL_WORDS: usize = 3;
    let mut control = [0u64; CONTROL_WORDS];
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let (length, header) = recv_into(fd, into, &mut [], &mut control, flags)?;
    let rights = (libc::SCM_RIGHTS as u64) << 32 | libc::SOL_SOCKET as u64;
    let passed = match control {
        [_, kind, number] if header.msg_controllen != 0 && kind == rights => {
            Some(sys::take_back(number as u32 as c_int))
        }
        _ => None,
    };
    Ok(Natively {
        length,
        passed,
        lost: header.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// The real recvmsg(2) into an empty buffer, up to its capacity, with room for the sender's address and
/// for control data. Returns the length, and the header with what else there is to say. Leaves errno
/// as it was.
fn recv_into(
    fd: c_int,
    into: &mut Vec<u8>,
    name: &mut [u8],
    control: &mut [u64],
    flags: c_int,
) -> Result<(usize, msghdr), Errno> {
    into.clear();
    let mut part = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.capacity(),
    };
    // SAFETY: an all-zero msghdr is a valid value.
    let mut header: msghdr = unsafe { core::mem::zeroed() };
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    if !name.is_empty() {
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = name.len() as socklen_t;
    }
    if !control.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(control);
    }
    let saved = Errno::current();
    // SAFETY: the kernel stores at most the capacities that the header tells.
    let got = unsafe { next::recvmsg(fd, &mut header, flags) };
    let err = Errno::current();
    saved.set();
    let length = usize::try_from(got).map_err(|_| err)?;
    // SAFETY: as much as the message has, at most the capacity, was stored.
    unsafe { into.set_len(length.min(into.capacity())) };
    Ok((length, header))
}

/// A datagram of a kernel socket.
pub(crate) struct NativeDatagram {
    pub(crate) data: Vec<u8>,
    /// What the call returns.
    pub(crate) length: usize,
    pub(crate) flags: c_int,
    /// As C has it.
    pub(crate) from: Vec<u8>,
    /// Control messages, as the kernel lays them out.
    pub(crate) control: Vec<u8>,
}

/// The real recvmsg(2) of one datagram with `room` for data and for control messages. Never waits.
///
/// # Errors
/// `EAGAIN` where there is none; the socket's error.
pub(crate) fn native_datagram(
    fd: c_int,
    room: (usize, usize),
    flags: c_int,
) -> Result<NativeDatagram, Errno> {
    /// Longest datagram.
    const DATA_MAX: usize = 1 << 16;
    /// Longest control data that the kernel makes of one, and more.
    const CONTROL_MAX: usize = 4096;
    /// sizeof(struct sockaddr_in6)
    const NAME_MAX: usize = 28;
    let mut data = Vec::with_capacity(room.0.min(DATA_MAX));
    let mut control = vec![0u64; room.1.min(CONTROL_MAX) / size_of::<u64>()];
    let mut from = vec![0; NAME_MAX];
    let flags = flags | libc::MSG_DONTWAIT;
    let (length, header) = recv_into(fd, &mut data, &mut from, &mut control, flags)?;
    from.truncate(header.msg_namelen as usize);
    let bytes = control.iter().flat_map(|word| word.to_ne_bytes());
    Ok(NativeDatagram {
        data,
        length,
        flags: header.msg_flags,
        from,
        control: bytes.take(header.msg_controllen).collect(),
    })
}

/// The real sendmsg(2) of one header. Leaves errno as it was.
pub(crate) fn native_sendmsg(fd: c_int, msg: UserPtr, flags: c_int) -> Result<usize, Errno> {
    let saved = Errno::current();
    // SAFETY: the kernel checks the program's header itself.
    let sent = unsafe { next::sendmsg(fd, msg.raw().cast(), flags) };
    let err = Errno::current();
    saved.set();
    usize::try_from(sent).map_err(|_| err)
}

/// Whether a receive with this header surely brings no descriptors, so that nobody has to look at it
/// afterwards. A hook that leaves by a jump is cheap: the return that follows a system call is
/// mispredicted, which costs four times the rest of a hook.
#[inline(always)]
fn asks_no_control(msg: *const msghdr) -> bool {
    // SAFETY: the header lies in a page that is known to be readable.
    user_mem::is_known(at(msg), size_of::<msghdr>()) && unsafe { control_length(msg) } == 0
}

/// Length of the control data. The kernel takes a header that is not aligned, too.
///
/// # Safety
/// The header is readable.
#[inline(always)]
unsafe fn control_length(msg: *const msghdr) -> usize {
    // SAFETY: by the contract.
    unsafe { (&raw const (*msg).msg_controllen).read_unaligned() }
}

/// recvmsg(2) on a socket of ours. Not in line, so that its frame costs others nothing.
#[inline(never)]
fn recvmsg_ours(file: &'static File, fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    let outcome = message::recvmsg(file, fd, at(msg), flags).map(|n| n as ssize_t);
    conclude(outcome, || recvmsg_natively(fd, msg, flags))
}

/// recvmsg(2) on a descriptor that is not ours, which may bring some that are.
#[inline(never)]
fn recvmsg_natively(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    let before = Moment::now();
    // SAFETY: forwards the caller's own arguments.
    let got = unsafe { next::recvmsg(fd, msg, flags) };
    if got >= 0 || Errno::current() == Errno::EAGAIN {
        user_mem::was_read(at(msg), size_of::<msghdr>(), before);
    }
    // SAFETY: the kernel has just written to the header.
    if got >= 0 && unsafe { control_length(msg) } != 0 {
        rights::received(at(msg));
    }
    got
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
        on_socket(fd, |f| message::sendmsg(f, fd, at(msg), flags).map(|n| n as ssize_t), || {
            if !route::is_set() {
                return native();
            }
            conclude(net::send_msg(fd, at(msg), flags), native)
        })
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
        on_socket(fd, |f| message::sendmmsg(f, fd, at(msgs), count, flags), || {
            if !route::is_set() {
                return native();
            }
            conclude(net::send_mmsg(fd, at(msgs), count, flags), native)
        })
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
        on_socket(fd, |f| message::sendmmsg(f, fd, at(msgs), count, flags), || {
            if !route::is_set() {
                return native();
            }
            conclude(net::send_mmsg(fd, at(msgs), count, flags), native)
        })
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
        match lookup(fd).filter(|f| f.is_socket()) {
            Some(file) => recvmsg_ours(file, fd, msg, flags),
            // SAFETY: forwards the caller's own arguments.
            None if asks_no_control(msg) => unsafe { next::recvmsg(fd, msg, flags) },
            None => recvmsg_natively(fd, msg, flags),
        }
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
