//! read(2), write(2) and their vectored and positioned kin.

use libc::{c_int, c_void, iovec, off_t, size_t, ssize_t};

use super::on_socket;
use crate::errno::Outcome;
use crate::fd::{File, Kind};
use crate::ops;
use crate::real::hooks;
use crate::user_mem::{Iovecs, UserPtr};

/// read(2) and readv(2) on a file of ours: a receive without flags, and nothing for no room.
fn read_into(file: &'static File, fd: c_int, dst: Outcome<Iovecs<'_>>) -> Outcome<ssize_t> {
    let dst = dst?;
    if dst.total() == 0 && !matches!(file.kind(), Kind::Tcp | Kind::Inherited) {
        return Ok(0);
    }
    ops::recv(file, fd, dst, 0).map(|got| got.bytes as ssize_t)
}

fn write_from(file: &'static File, fd: c_int, src: Outcome<Iovecs<'_>>) -> Outcome<ssize_t> {
    ops::send(file, fd, src?, libc::MSG_EOR).map(|sent| sent as ssize_t)
}

/// preadv2(2) and pwritev2(2) take a position of −1 for the stream itself; any other fails on a
/// socket, as the real call finds.
const STREAM: off_t = -1;

/// RWF_NOWAIT, the one flag that means something on a socket.
fn nowait(flags: c_int) -> c_int {
    if flags & libc::RWF_NOWAIT != 0 {
        libc::MSG_DONTWAIT
    } else {
        0
    }
}

fn read_at(
    file: &'static File,
    fd: c_int,
    dst: Outcome<Iovecs<'_>>,
    at: off_t,
    flags: c_int,
) -> Outcome<ssize_t> {
    if at != STREAM {
        return Err(crate::errno::Exit::Native);
    }
    let dst = dst?;
    if dst.total() == 0 && !matches!(file.kind(), Kind::Tcp | Kind::Inherited) {
        return Ok(0);
    }
    ops::recv(file, fd, dst, nowait(flags)).map(|got| got.bytes as ssize_t)
}

fn write_at(
    file: &'static File,
    fd: c_int,
    src: Outcome<Iovecs<'_>>,
    at: off_t,
    flags: c_int,
) -> Outcome<ssize_t> {
    if at != STREAM {
        return Err(crate::errno::Exit::Native);
    }
    ops::send(file, fd, src?, libc::MSG_EOR | nowait(flags)).map(|sent| sent as ssize_t)
}

fn one<'a>(buf: *const c_void, len: size_t) -> Outcome<Iovecs<'a>> {
    Iovecs::one_for_rw(UserPtr::new(buf.cast_mut()), len)
}

fn many<'a>(iov: *const iovec, count: c_int) -> Outcome<Iovecs<'a>> {
    Iovecs::read_for_rw(UserPtr::new(iov.cast_mut().cast()), count)
}

hooks! {
    /// read(2).
    fn read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        on_socket(fd, |f| read_into(f, fd, one(buf, len)), || unsafe { next::read(fd, buf, len) })
    }

    /// read(2) as compiled with _FORTIFY_SOURCE.
    fn __read_chk(fd: c_int, buf: *mut c_void, len: size_t, size: size_t) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::__read_chk(fd, buf, len, size) };
        if len > size { return native() }
        on_socket(fd, |f| read_into(f, fd, one(buf, len)), native)
    }

    /// readv(2).
    fn readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        on_socket(fd, |f| read_into(f, fd, many(iov, count)), || unsafe { next::readv(fd, iov, count) })
    }

    /// preadv2(2).
    fn preadv2(fd: c_int, iov: *const iovec, count: c_int, at: off_t, flags: c_int) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::preadv2(fd, iov, count, at, flags) };
        on_socket(fd, |f| read_at(f, fd, many(iov, count), at, flags), native)
    }

    /// preadv2(2) with 64-bit offsets.
    fn preadv64v2(fd: c_int, iov: *const iovec, count: c_int, at: off_t, flags: c_int) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::preadv64v2(fd, iov, count, at, flags) };
        on_socket(fd, |f| read_at(f, fd, many(iov, count), at, flags), native)
    }

    /// write(2).
    fn write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        on_socket(fd, |f| write_from(f, fd, one(buf, len)), || unsafe { next::write(fd, buf, len) })
    }

    /// writev(2).
    fn writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        on_socket(fd, |f| write_from(f, fd, many(iov, count)), || unsafe { next::writev(fd, iov, count) })
    }

    /// pwritev2(2).
    fn pwritev2(fd: c_int, iov: *const iovec, count: c_int, at: off_t, flags: c_int) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::pwritev2(fd, iov, count, at, flags) };
        on_socket(fd, |f| write_at(f, fd, many(iov, count), at, flags), native)
    }

    /// pwritev2(2) with 64-bit offsets.
    fn pwritev64v2(fd: c_int, iov: *const iovec, count: c_int, at: off_t, flags: c_int) -> ssize_t {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::pwritev64v2(fd, iov, count, at, flags) };
        on_socket(fd, |f| write_at(f, fd, many(iov, count), at, flags), native)
    }
}
