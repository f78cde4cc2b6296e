//! syscall(2): raw entries reach the same code as the functions they stand for. A call that
//! concerns no file of ours stays the raw call it is, but for what it may change: numbers handed out
//! and memory taken away are noted.

use libc::{c_char, c_int, c_long, c_uint, c_void, fd_set, timespec};

use super::{
    conclude, epoll, exec, fd, files, fresh, io, memory, message, numbers, poll, process, socket,
    transfer,
};
use crate::errno::{Errno, Outcome};
use crate::fd::lookup;
use crate::net::pristine;
use crate::real::hooks;
use crate::share::broker;
use crate::user_mem::{self, UserPtr};
use crate::{bpf, init, publish};

hooks! {
    /// syscall(2). C passes at most six arguments, each a register; taking all six is what the
    /// variadic ABI of x86-64 and aarch64 does.
    fn syscall(
        number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long,
    ) -> c_long {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::syscall(number, a, b, c, d, e, f) };
        let args = [a, b, c, d, e, f];
        match number {
            libc::SYS_bpf => conclude(
                bpf::call(a as c_int, UserPtr::new(ptr(b)), c as c_uint, native), native),
            libc::SYS_io_uring_setup if init::refuses_io_uring() => {
                publish::io_uring(Errno::ENOSYS);
                Errno::ENOSYS.set();
                -1
            }
            libc::SYS_clone | libc::SYS_clone3 => process::forked(number, args, native),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_fork | libc::SYS_vfork => process::forked(number, args, native),
            libc::SYS_exit_group => {
                broker::at_exit();
                native()
            }
            _ if hands_out(number) => fresh(native() as c_int).into(),
            _ if takes_memory(number) => memory::changed(native()),
            // SAFETY: the caller's own arguments, by the number it chose.
            _ => unsafe { made(number, args).or_else(|| on_ours(number, args)) }.unwrap_or_else(native),
        }
    }
}

fn ptr<T>(word: c_long) -> *mut T {
    core::ptr::with_exposed_provenance_mut(word as usize)
}

/// Calls that return a number of something that is never ours.
fn hands_out(number: c_long) -> bool {
    #[cfg(target_arch = "x86_64")]
    if matches!(
        number,
        libc::SYS_creat
            | libc::SYS_eventfd
            | libc::SYS_signalfd
            | libc::SYS_inotify_init
            | libc::SYS_epoll_create
    ) {
        return true;
    }
    matches!(
        number,
        libc::SYS_openat2
            | libc::SYS_open_by_handle_at
            | libc::SYS_eventfd2
            | libc::SYS_timerfd_create
            | libc::SYS_signalfd4
            | libc::SYS_memfd_create
            | libc::SYS_inotify_init1
            | libc::SYS_fanotify_init
            | libc::SYS_epoll_create1
            | libc::SYS_userfaultfd
            | libc::SYS_perf_event_open
            | libc::SYS_pidfd_open
            | libc::SYS_mq_open
            | libc::SYS_io_uring_setup
    )
}

/// Calls after which a page that was there may be gone; see `memory`.
fn takes_memory(number: c_long) -> bool {
    matches!(
        number,
        libc::SYS_munmap
            | libc::SYS_mprotect
            | libc::SYS_pkey_mprotect
            | libc::SYS_mremap
            | libc::SYS_mmap
            | libc::SYS_remap_file_pages
            | libc::SYS_brk
            | libc::SYS_shmat
            | libc::SYS_shmdt
            | libc::SYS_madvise
            | libc::SYS_truncate
            | libc::SYS_ftruncate
    )
}

/// Calls that make, copy or end descriptors. `None` for any other number.
///
/// # Safety
/// The duties of the system call.
unsafe fn made(number: c_long, args: [c_long; 6]) -> Option<c_long> {
    let [a, b, c, d, e, _] = args;
    let n = a as c_int;
    // SAFETY: in each arm the arguments are those of the function, by syscall(2)'s table.
    Some(c_long::from(unsafe {
        match number {
            libc::SYS_socket => {
                let made = socket::socket(n, b as c_int, c as c_int);
                pristine::changed(made); // who makes calls by number may set options so too
                made
            }
            libc::SYS_socketpair => socket::socketpair(n, b as c_int, c as c_int, ptr(d)),
            libc::SYS_accept4 => socket::accept4(n, ptr(b), ptr(c), d as c_int),
            libc::SYS_accept => socket::accept(n, ptr(b), ptr(c)),
            libc::SYS_openat => files::openat(n, ptr(b), c as c_int, d as c_uint),
            libc::SYS_pipe2 => numbers::pipe2(ptr(a), b as c_int),
            libc::SYS_dup => fd::dup(n),
            libc::SYS_dup3 => fd::dup3(n, b as c_int, c as c_int),
            libc::SYS_close => fd::close(n),
            libc::SYS_close_range => fd::close_range(a as c_uint, b as c_uint, c as c_int),
            libc::SYS_execve => {
                exec::execve(ptr(a), ptr::<*const c_char>(b), ptr::<*const c_char>(c))
            }
            libc::SYS_execveat => {
                let (argv, envp) = (ptr::<*const c_char>(c), ptr::<*const c_char>(d));
                exec::execveat(n, ptr(b), argv, envp, e as c_int)
            }
            libc::SYS_fcntl if copies(b) => fd::fcntl(n, b as c_int, c as u64),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => files::open(ptr(a), b as c_int, c as c_uint),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_pipe => numbers::pipe(ptr(a)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_dup2 => fd::dup2(n, b as c_int),
            _ => return None,
        }
    }))
}

fn copies(command: c_long) -> bool {
    matches!(command as c_int, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC)
}

/// Calls on descriptors, if one of them is ours. `None` if none is, or for any other number.
///
/// # Safety
/// The duties of the system call.
unsafe fn on_ours(number: c_long, args: [c_long; 6]) -> Option<c_long> {
    let [a, b, c, d, e, f] = args;
    let ours = |number: c_long| lookup(number as c_int).is_some();
    // SAFETY: in each arm the arguments are those of the function, by syscall(2)'s table.
    unsafe {
        match number {
            libc::SYS_ppoll => poll::names_ours(ptr(a), b as u64)
                .then(|| poll::ppoll(ptr(a), b as u64, ptr(c), ptr(d)).into()),
            libc::SYS_pselect6 => selects_ours(args).then(|| pselect6(args).into()),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_poll => poll::names_ours(ptr(a), b as u64)
                .then(|| poll::poll(ptr(a), b as u64, c as c_int).into()),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_select => selects_ours(args)
                .then(|| poll::select(a as c_int, ptr(b), ptr(c), ptr(d), ptr(e)).into()),
            libc::SYS_epoll_ctl if ours(a) || ours(c) => {
                Some(epoll::epoll_ctl(a as c_int, b as c_int, c as c_int, ptr(d)).into())
            }
            libc::SYS_splice if ours(a) || ours(c) => {
                let (from, to) = (a as c_int, c as c_int);
                let moved = transfer::splice(from, ptr(b), to, ptr(d), e as usize, f as c_uint);
                Some(moved as c_long)
            }
            libc::SYS_sendfile if ours(a) || ours(b) => {
                Some(transfer::sendfile(a as c_int, b as c_int, ptr(c), d as usize) as c_long)
            }
            _ if ours(a) => on_first(number, args),
            _ => None,
        }
    }
}

/// Calls whose first argument is a descriptor, which is ours.
///
/// # Safety
/// The duties of the system call.
unsafe fn on_first(number: c_long, args: [c_long; 6]) -> Option<c_long> {
    let [a, b, c, d, e, f] = args;
    let n = a as c_int;
    // SAFETY: in each arm the arguments are those of the function, by syscall(2)'s table.
    Some(unsafe {
        match number {
            libc::SYS_read => io::read(n, ptr(b), c as usize) as c_long,
            libc::SYS_write => io::write(n, ptr::<c_void>(b), c as usize) as c_long,
            libc::SYS_readv => io::readv(n, ptr(b), c as c_int) as c_long,
            libc::SYS_writev => io::writev(n, ptr(b), c as c_int) as c_long,
            // The position is one register on 64-bit machines, and the next argument its unused half.
            libc::SYS_preadv2 => io::preadv2(n, ptr(b), c as c_int, d, f as c_int) as c_long,
            libc::SYS_pwritev2 => io::pwritev2(n, ptr(b), c as c_int, d, f as c_int) as c_long,
            libc::SYS_sendto => {
                let (buf, len, flags) = (ptr::<c_void>(b), c as usize, d as c_int);
                message::sendto(n, buf, len, flags, ptr(e), f as u32) as c_long
            }
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
            libc::SYS_epoll_pwait => {
                epoll::epoll_pwait(n, ptr(b), c as c_int, d as c_int, ptr(e)).into()
            }
            libc::SYS_epoll_pwait2 => {
                epoll::epoll_pwait2(n, ptr(b), c as c_int, ptr(d), ptr(e)).into()
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_epoll_wait => epoll::epoll_wait(n, ptr(b), c as c_int, d as c_int).into(),
            _ => return None,
        }
    })
}

fn selects_ours(args: [c_long; 6]) -> bool {
    let [count, read, write, except, ..] = args;
    let sets = [read, write, except].map(|set| UserPtr::new(ptr(set)));
    crate::select::Sets::read(count as c_int, sets).is_some()
}

/// The raw call takes its signal mask by an address of an address and a length.
///
/// # Safety
/// The duties of the system call.
unsafe fn pselect6(args: [c_long; 6]) -> c_int {
    let [count, read, write, except, timeout, mask] = args;
    let mask = || -> Outcome<c_long> {
        match mask {
            0 => Ok(0),
            at => Ok(user_mem::copy_in::<[i64; 2]>(UserPtr::new(ptr(at))).map(|[mask, _]| mask)?),
        }
    };
    let set = ptr::<fd_set>;
    let selected = mask().map(|mask| {
        let timeout = ptr::<timespec>(timeout);
        // SAFETY: the caller's own arguments, in the order of the function.
        unsafe {
            poll::pselect(
                count as c_int,
                set(read),
                set(write),
                set(except),
                timeout,
                ptr(mask),
            )
        }
    });
    conclude(selected, || -1)
}
