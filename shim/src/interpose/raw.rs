//! syscall(2): raw entries reach the same code as the functions they stand for.

use libc::{c_int, c_long, c_uint, c_void};

use super::{epoll, fd, io, message, poll, socket};
use crate::errno::Errno;
use crate::fd::lookup;
use crate::real::hooks;
use crate::user_mem::UserPtr;
use crate::{bpf, init};

hooks! {
    /// syscall(2). C passes at most six arguments, each a register; taking all six is what the
    /// variadic ABI of x86-64 and aarch64 does.
    fn syscall(
        number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long,
    ) -> c_long {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::syscall(number, a, b, c, d, e, f) };
        // SAFETY: in each arm the arguments are those of the function, by syscall(2)'s table.
        unsafe {
            match number {
                libc::SYS_bpf => super::conclude(
                    bpf::call(a as c_int, UserPtr::new(ptr(b)), c as c_uint, native), native),
                libc::SYS_io_uring_setup if init::refuses_io_uring() => {
                    Errno::ENOSYS.set();
                    -1
                }
                libc::SYS_socket => socket::socket(a as c_int, b as c_int, c as c_int).into(),
                libc::SYS_close => fd::close(a as c_int).into(),
                libc::SYS_close_range => fd::close_range(a as c_uint, b as c_uint, c as c_int).into(),
                libc::SYS_dup => fd::dup(a as c_int).into(),
                libc::SYS_dup3 => fd::dup3(a as c_int, b as c_int, c as c_int).into(),
                libc::SYS_epoll_create1 => epoll::epoll_create1(a as c_int).into(),
                libc::SYS_accept4 => {
                    socket::accept4(a as c_int, ptr(b), ptr(c), d as c_int).into()
                }
                _ if ours(number, a) => dispatch(number, [a, b, c, d, e, f]).unwrap_or_else(native),
                _ => native(),
            }
        }
    }
}

fn ptr<T>(word: c_long) -> *mut T {
    core::ptr::with_exposed_provenance_mut(word as usize)
}

/// Whether the first argument is a descriptor of ours, or the call waits on several.
fn ours(number: c_long, fd: c_long) -> bool {
    number == libc::SYS_ppoll || number == libc::SYS_pselect6 || lookup(fd as c_int).is_some()
}

/// Calls whose first argument is a descriptor, and the two that wait on many. `None` for a call
/// that we do not serve.
unsafe fn dispatch(number: c_long, args: [c_long; 6]) -> Option<c_long> {
    let [a, b, c, d, e, f] = args;
    let n = a as c_int;
    // SAFETY: in each arm the arguments are those of the function, by syscall(2)'s table.
    Some(unsafe {
        match number {
            libc::SYS_read => io::read(n, ptr(b), c as usize) as c_long,
            libc::SYS_write => io::write(n, ptr::<c_void>(b), c as usize) as c_long,
            libc::SYS_readv => io::readv(n, ptr(b), c as c_int) as c_long,
            libc::SYS_writev => io::writev(n, ptr(b), c as c_int) as c_long,
            libc::SYS_sendto => message::sendto(
                n,
                ptr::<c_void>(b),
                c as usize,
                d as c_int,
                ptr(e),
                f as u32,
            ) as c_long,
            libc::SYS_recvfrom => {
                message::recvfrom(n, ptr(b), c as usize, d as c_int, ptr(e), ptr(f)) as c_long
            }
            libc::SYS_sendmsg => message::sendmsg(n, ptr(b), c as c_int) as c_long,
            libc::SYS_recvmsg => message::recvmsg(n, ptr(b), c as c_int) as c_long,
            libc::SYS_sendmmsg => message::sendmmsg(n, ptr(b), c as c_uint, d as c_int).into(),
            libc::SYS_recvmmsg => {
                message::recvmmsg(n, ptr(b), c as c_uint, d as c_int, ptr(e)).into()
            }
            libc::SYS_ioctl => fd::ioctl(n, b as u64, ptr(c)).into(),
            libc::SYS_fcntl => fd::fcntl(n, b as c_int, c as u64).into(),
            libc::SYS_getsockopt => {
                socket::getsockopt(n, b as c_int, c as c_int, ptr(d), ptr(e)).into()
            }
            libc::SYS_setsockopt => {
                socket::setsockopt(n, b as c_int, c as c_int, ptr::<c_void>(d), e as u32).into()
            }
            libc::SYS_bind => socket::bind(n, ptr(b), c as u32).into(),
            libc::SYS_connect => socket::connect(n, ptr(b), c as u32).into(),
            libc::SYS_listen => socket::listen(n, b as c_int).into(),
            libc::SYS_shutdown => socket::shutdown(n, b as c_int).into(),
            libc::SYS_getsockname => socket::getsockname(n, ptr(b), ptr(c)).into(),
            libc::SYS_getpeername => socket::getpeername(n, ptr(b), ptr(c)).into(),
            libc::SYS_epoll_ctl => epoll::epoll_ctl(n, b as c_int, c as c_int, ptr(d)).into(),
            libc::SYS_epoll_pwait => {
                epoll::epoll_pwait(n, ptr(b), c as c_int, d as c_int, ptr(e)).into()
            }
            libc::SYS_ppoll => poll::ppoll(ptr(a), b as u64, ptr(c), ptr(d)).into(),
            _ => return None,
        }
    })
}
