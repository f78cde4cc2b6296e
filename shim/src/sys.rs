//! Our own use of the kernel. Everything goes by rustix's raw backend, which neither calls a symbol
//! that we interpose nor touches errno.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use kcm_mux::Nanos;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use rustix::io;
use rustix::net::SocketFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::errno::Errno;
use crate::{interpose, sync};

/// A descriptor number of the program's as rustix takes it. The kernel checks it again.
pub(crate) fn borrow(fd: i32) -> BorrowedFd<'static> {
    let fd = if fd < 0 { i32::MAX } else { fd };
    // SAFETY: not −1; a number that is not open makes the kernel answer EBADF.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// CLOCK_MONOTONIC.
pub(crate) fn now() -> Nanos {
    let t = clock_gettime(ClockId::Monotonic);
    (t.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(t.tv_nsec as u64)
}

/// Lets others run for about `nanos`. Ends early when a signal comes.
pub(crate) fn nap(nanos: i64) {
    let _ = rustix::thread::nanosleep(&rustix::thread::Timespec {
        tv_sec: 0,
        tv_nsec: nanos,
    });
}

/// What a parser program may ask for.
pub(crate) fn env(now: Nanos) -> kcm_mux::bpf::Env {
    let boot = clock_gettime(ClockId::Boottime);
    kcm_mux::bpf::Env {
        now_ns: now,
        boot_ns: (boot.tv_sec as u64) * 1_000_000_000 + boot.tv_nsec as u64,
        cpu: rustix::thread::sched_getcpu() as u32,
        seed: now,
    }
}

/// A random number; `None` before the kernel has any.
pub(crate) fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    // SAFETY: stores at most the length of the array into it.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    (got == 8).then(|| u64::from_ne_bytes(bytes))
}

/// Words in a page.
pub(crate) const WORDS: usize = 1024;

/// A page of a file, as words that all who map it share. Never unmapped.
pub(crate) fn shared_words(file: BorrowedFd<'_>) -> Option<&'static [AtomicU32; WORDS]> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    let size = size_of::<[AtomicU32; WORDS]>();
    // SAFETY: a fresh mapping overlaps nothing.
    let page = unsafe { mmap(core::ptr::null_mut(), size, prot, flags, file, 0) }.ok()?;
    // SAFETY: the mapping has this size, is aligned to a page, and any bits are valid atomics. The
    // file is sealed against shrinking.
    Some(unsafe { &*page.cast() })
}

/// Lowest number that our own descriptors may take: out of the way of programs that count on small
/// numbers or sweep the low ones, and below the soft limit so that the kernel grants it.
static FLOOR: AtomicUsize = AtomicUsize::new(usize::MAX);

pub(crate) fn floor() -> i32 {
    let known = FLOOR.load(Ordering::Relaxed);
    if known != usize::MAX {
        return known as i32;
    }
    let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let soft = soft.unwrap_or(1 << 20).min(1 << 20) as usize;
    let floor = soft - soft / 4; // the upper quarter is ours first
    FLOOR.store(floor, Ordering::Relaxed);
    floor as i32
}

/// Moves a fresh descriptor to a high number with FD_CLOEXEC: in the upper quarter, or as high as can be had
/// where that is full or the limit is lower by now.
pub(crate) fn raise(fd: OwnedFd) -> OwnedFd {
    sync::raised_to(fd, floor())
}

/// Another descriptor, as high and FD_CLOEXEC, of what `fd` names.
pub(crate) fn dup_high(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    sync::copied_to(fd, floor())
}

/// Gives a descriptor to the program: from now on only the program closes it.
pub(crate) fn hand_out(fd: OwnedFd) -> i32 {
    fd.into_raw_fd()
}

/// Takes a number back that was just handed out.
pub(crate) fn take_back(fd: i32) -> OwnedFd {
    // SAFETY: the caller has had it from `hand_out` and gave it to nobody.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Closes every descriptor but those of `kept`, lowest first.
pub(crate) fn close_all_but(kept: impl Iterator<Item = i32>) {
    let mut from = 0;
    for fd in kept.map(|fd| fd as u32).chain([u32::MAX]) {
        if from < fd {
            // SAFETY: closes what no one here uses any more.
            unsafe { interpose::fd::next::close_range(from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
}

/// Takes over a number that the program has given up, open as it is.
pub(crate) fn take(fd: i32) -> OwnedFd {
    let _ = io::fcntl_setfd(borrow(fd), io::FdFlags::CLOEXEC);
    // SAFETY: the caller has the number from a program that will not close it any more.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Puts what `fd` names behind the program's number `to`, instead of what is there.
pub(crate) fn put_onto(fd: impl AsFd, to: i32, cloexec: bool) -> io::Result<()> {
    let mut flags = io::DupFlags::empty();
    flags.set(io::DupFlags::CLOEXEC, cloexec);
    // SAFETY: the number is the program's; the wrapper is not dropped.
    let mut number = core::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(to) });
    io::dup3(fd, &mut number, flags)
}

/// Closes a number that the program owned, as the real close(2).
pub(crate) fn close(fd: i32) -> io::Result<()> {
    if io::fcntl_getfd(borrow(fd)).is_err() {
        return Err(io::Errno::BADF);
    }
    // SAFETY: the number is open, and the program has just given it up.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Inode of what stands behind `fd`; 0 when it cannot be told.
pub(crate) fn inode(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(fd).map_or(0, |stat| stat.st_ino)
}

/// O_NONBLOCK of the open file description behind `fd`.
pub(crate) fn is_nonblocking(fd: i32) -> bool {
    rustix::fs::fcntl_getfl(borrow(fd)).is_ok_and(|f| f.contains(rustix::fs::OFlags::NONBLOCK))
}

/// The flags that socket(2) takes beside the type, and accept4(2) alone.
pub(crate) const SOCKET_FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// Those of `ty` that are such flags.
pub(crate) const fn socket_flags(ty: i32) -> SocketFlags {
    SocketFlags::from_bits_retain((ty & SOCKET_FLAGS) as u32)
}

/// Number of a descriptor we own.
pub(crate) fn number(fd: &OwnedFd) -> i32 {
    fd.as_raw_fd()
}

/// Whether `fd` shows one of `events`, or an end, now.
pub(crate) fn poll_one(fd: i32, events: i16) -> bool {
    poll_now(&mut [libc::pollfd {
        fd,
        events,
        revents: 0,
    }])
}

/// What `fd` shows of `events` now, and ends in any case.
pub(crate) fn poll_bits(fd: i32, events: i16) -> i16 {
    let mut entry = [libc::pollfd {
        fd,
        events,
        revents: 0,
    }];
    poll_now(&mut entry);
    entry[0].revents
}

/// poll(2) without waiting. True when an entry has something.
pub(crate) fn poll_now(fds: &mut [libc::pollfd]) -> bool {
    if fds.is_empty() {
        return false;
    }
    // SAFETY: `PollFd` is `repr(C)` with the layout of `struct pollfd`, and borrowing a number that
    // is not open only makes the kernel answer POLLNVAL.
    let fds: &mut [rustix::event::PollFd<'_>] =
        unsafe { core::slice::from_raw_parts_mut(fds.as_mut_ptr().cast(), fds.len()) };
    let none = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(fds, Some(&none)).is_ok_and(|n| n > 0)
}

/// A length of time as the kernel takes it.
pub(crate) fn timespec(length: Nanos) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: (length / 1_000_000_000) as i64,
        tv_nsec: (length % 1_000_000_000) as i64,
    }
}

/// Whether `fd` is open, and not by O_PATH.
pub(crate) fn is_usable(fd: i32) -> bool {
    rustix::fs::fcntl_getfl(borrow(fd)).is_ok_and(|f| !f.contains(rustix::fs::OFlags::PATH))
}

/// getsockopt(2) of an option that fits into `N` bytes; `None` when it fails.
pub(crate) fn option<const N: usize>(fd: BorrowedFd<'_>, level: i32, name: i32) -> Option<[u8; N]> {
    let mut value = [0u8; N];
    let mut length = N as libc::socklen_t;
    let saved = Errno::current();
    // SAFETY: value and length are ours, and the length is that of the value.
    let done = unsafe {
        interpose::socket::next::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &mut length,
        )
    };
    saved.set();
    (done == 0).then_some(value)
}

/// getsockopt(2) of an int; `None` when it fails.
pub(crate) fn option_int(fd: BorrowedFd<'_>, level: i32, name: i32) -> Option<i32> {
    option::<4>(fd, level, name).map(i32::from_ne_bytes)
}

/// setsockopt(2) of an int, for what does no harm when it fails.
pub(crate) fn set_option_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) {
    let saved = Errno::current();
    // SAFETY: the value is ours, and the length is its.
    let _ = unsafe {
        interpose::socket::next::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            core::ptr::from_ref(&value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    saved.set();
}

/// setsockopt(2) of any value.
pub(crate) fn set_option(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &[u8],
) -> Result<(), Errno> {
    let saved = Errno::current();
    // SAFETY: the value is ours, and the length is its.
    let done = unsafe {
        interpose::socket::next::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    match done {
        0 => Ok(()),
        _ => {
            let why = Errno::current();
            saved.set();
            Err(why)
        }
    }
}

/// The name that SO_BINDTODEVICE has given a socket; empty without.
pub(crate) fn bound_device(fd: i32) -> Vec<u8> {
    let name = option::<16>(borrow(fd), libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    let name = name.iter().flatten().copied();
    name.take_while(|byte| *byte != 0).collect()
}

/// State of a TCP connection: the first byte of `struct tcp_info`.
pub(crate) fn tcp_state(fd: BorrowedFd<'_>) -> Option<u8> {
    option::<1>(fd, libc::IPPROTO_TCP, libc::TCP_INFO).map(|[state]| state)
}

/// SO_RCVLOWAT.
pub(crate) fn rcvlowat(fd: BorrowedFd<'_>) -> u32 {
    option::<4>(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT).map_or(1, u32::from_ne_bytes)
}

/// An ioctl(2) that stores an int.
fn ioctl_int(fd: BorrowedFd<'_>, request: libc::Ioctl) -> u32 {
    let mut value = 0i32;
    let saved = Errno::current();
    // SAFETY: the request stores one int at its argument.
    let done = unsafe {
        interpose::fd::next::ioctl(
            fd.as_raw_fd(),
            request,
            core::ptr::from_mut(&mut value).cast(),
        )
    };
    saved.set();
    if done == 0 { value.max(0) as u32 } else { 0 }
}

/// Bytes a TCP socket holds for reading.
pub(crate) fn unread_bytes(fd: BorrowedFd<'_>) -> u32 {
    ioctl_int(fd, libc::FIONREAD)
}

/// Bytes a TCP socket holds that the peer has not acknowledged.
pub(crate) fn unsent_bytes(fd: BorrowedFd<'_>) -> u32 {
    ioctl_int(fd, libc::TIOCOUTQ)
}

/// Whether `epfd` is an epoll descriptor: it then does not find `fd` among its members.
pub(crate) fn is_epoll(epfd: i32, fd: i32) -> bool {
    rustix::event::epoll::delete(borrow(epfd), borrow(fd)) == Err(io::Errno::NOENT)
}

/// Whether an epoll set has `fd` (kcmp(2)); no thread that waits there notices. `None` where the kernel
/// does not tell.
pub(crate) fn epoll_has(epfd: i32, fd: i32) -> Option<bool> {
    /// linux/kcmp.h.
    const KCMP_EPOLL_TFD: libc::c_long = 7;
    /// Registrations of one number that outlive its descriptors.
    const SAME_NUMBER_MAX: u32 = 64;
    let pid = libc::c_long::from(rustix::process::getpid().as_raw_nonzero().get());
    let saved = Errno::current();
    let has = (0..SAME_NUMBER_MAX).find_map(|nth| {
        // struct kcmp_epoll_slot: the set, the number, and which of those with it.
        let slot = [epfd as u32, fd as u32, nth];
        // SAFETY: kcmp reads three words at the last argument and writes nothing.
        let order = unsafe {
            interpose::raw::next::syscall(
                libc::SYS_kcmp,
                pid,
                pid,
                KCMP_EPOLL_TFD,
                fd.into(),
                slot.as_ptr() as libc::c_long,
                0,
            )
        };
        match order {
            0 => Some(Some(true)),
            1.. => None,
            _ if Errno::current() == Errno::ENOENT => Some(Some(false)),
            _ => Some(None),
        }
    });
    saved.set();
    has.unwrap_or(Some(false))
}

/// epoll_wait(2) without waiting.
pub(crate) fn epoll_now(epfd: i32, room: usize) -> Vec<libc::epoll_event> {
    let none = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut events = Vec::with_capacity(room.min(EPOLL_BATCH_MAX));
    let room = rustix::buffer::spare_capacity(&mut events);
    let _ = rustix::event::epoll::wait(borrow(epfd), room, Some(&none));
    events
        .into_iter()
        .map(|e| {
            let flags = e.flags;
            libc::epoll_event {
                events: flags.bits(),
                u64: e.data.u64(),
            }
        })
        .collect()
}

/// Events fetched at a time: what is left over comes with the next call.
const EPOLL_BATCH_MAX: usize = 1024;
