//! Calls of libc that std does not have, made as any C program makes them: by their names, so that a
//! preloaded library answers. Each is one call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, iovec, mmsghdr, msghdr};

const AF_KCM: c_int = 41;
/// linux/kcm.h: SIOCPROTOPRIVATE and the ones after it.
const SIOCKCMATTACH: libc::c_ulong = 0x89e0;
const SIOCKCMCLONE: libc::c_ulong = 0x89e2;
pub(super) const MSG_BATCH: c_int = 0x40000;
/// linux/bpf.h.
const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// The result of a call, or errno.
fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn opened(fd: c_int) -> io::Result<OwnedFd> {
    checked(fd as isize)?;
    // SAFETY: the call that made the number has succeeded, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// socket(AF_KCM).
pub(super) fn kcm_open() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    opened(unsafe { libc::socket(AF_KCM, libc::SOCK_DGRAM, 0) })
}

/// SIOCKCMCLONE.
pub(super) fn kcm_clone(kcm: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut made: c_int = -1;
    // SAFETY: the request writes one int, which outlives the call.
    checked(unsafe { libc::ioctl(kcm.as_raw_fd(), SIOCKCMCLONE, &mut made) } as isize)?;
    opened(made)
}

/// SIOCKCMATTACH.
pub(super) fn kcm_attach(
    kcm: BorrowedFd<'_>,
    tcp: BorrowedFd<'_>,
    parser: BorrowedFd<'_>,
) -> io::Result<()> {
    let numbers = [tcp.as_raw_fd(), parser.as_raw_fd()];
    // SAFETY: the request reads two ints, which outlive the call.
    let done = unsafe { libc::ioctl(kcm.as_raw_fd(), SIOCKCMATTACH, &numbers) };
    checked(done as isize).map(drop)
}

/// An instruction of linux/bpf.h.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the lower half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The first words of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes the rest as 0.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The parser clang makes of the kernel document's example: a 4-byte length that does not count itself.
pub(super) fn parser() -> io::Result<OwnedFd> {
    let make = |code, registers, immediate| Instruction {
        code,
        registers,
        offset: 0,
        immediate,
    };
    let instructions = [
        make(0xbf, 0x16, 0), // r6 = r1
        make(0x20, 0, 0),    // r0 = the 4 bytes at 0, from network order
        make(0x07, 0, 4),    // r0 += 4
        make(0x95, 0, 0),    // exit
    ];
    let load = ProgramLoad {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the attributes, and what they point to, outlive the call, which only reads them.
    let made = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load, size_of_val(&load)) };
    opened(made as c_int)
}

/// recv(2).
#[inline]
pub(super) fn recv(fd: BorrowedFd<'_>, into: &mut [u8], flags: c_int) -> io::Result<usize> {
    // SAFETY: the pointer and length are of a slice that outlives the call.
    let count = unsafe { libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), flags) };
    checked(count)
}

/// send(2).
#[inline]
pub(super) fn send(fd: BorrowedFd<'_>, from: &[u8], flags: c_int) -> io::Result<usize> {
    // SAFETY: as in `recv`.
    let count = unsafe { libc::send(fd.as_raw_fd(), from.as_ptr().cast(), from.len(), flags) };
    checked(count)
}

/// Messages of one size for recvmsg(2), sendmsg(2) and their kin of many.
pub(super) struct Messages {
    /// Read and written through `iovecs` alone while a call is under way.
    bytes: Vec<u8>,
    size: usize,
    /// Point into `bytes`, whose memory never moves.
    _iovecs: Vec<iovec>,
    /// Point into `_iovecs`.
    headers: Vec<mmsghdr>,
}

impl Messages {
    pub(super) fn new(count: usize, size: usize) -> Self {
        let mut bytes = vec![0; count * size];
        let mut iovecs: Vec<iovec> = bytes
            .chunks_exact_mut(size)
            .map(|chunk| iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: size,
            })
            .collect();
        let headers = iovecs
            .iter_mut()
            .map(|iovec| {
                // SAFETY: all zero is a valid header, without addresses or control data.
                let mut header: msghdr = unsafe { std::mem::zeroed() };
                header.msg_iov = iovec;
                header.msg_iovlen = 1;
                mmsghdr {
                    msg_hdr: header,
                    msg_len: 0,
                }
            })
            .collect();
        Self {
            bytes,
            size,
            _iovecs: iovecs,
            headers,
        }
    }

    /// The first `len` bytes of message `at`.
    #[inline]
    pub(super) fn get(&self, at: usize, len: usize) -> &[u8] {
        let start = at * self.size;
        &self.bytes[start..start + len.min(self.size)]
    }

    /// Message `at`, whole.
    #[inline]
    pub(super) fn get_mut(&mut self, at: usize) -> &mut [u8] {
        let start = at * self.size;
        &mut self.bytes[start..start + self.size]
    }

    /// Bytes of message `at` that the last [`recvmmsg`](Self::recvmmsg) wrote.
    #[inline]
    pub(super) fn received(&self, at: usize) -> &[u8] {
        let len = self.headers.get(at).map_or(0, |header| header.msg_len);
        self.get(at, len as usize)
    }

    /// recvmsg(2) into the first message: its length.
    #[inline]
    pub(super) fn recvmsg(&mut self, fd: BorrowedFd<'_>, flags: c_int) -> io::Result<usize> {
        let header = &raw mut self.headers[0].msg_hdr;
        // SAFETY: the header, its iovec and the bytes that one names are ours and live on.
        checked(unsafe { libc::recvmsg(fd.as_raw_fd(), header, flags) })
    }

    /// recvmmsg(2): how many came.
    #[inline]
    pub(super) fn recvmmsg(&mut self, fd: BorrowedFd<'_>, flags: c_int) -> io::Result<usize> {
        let (all, count) = (self.headers.as_mut_ptr(), self.headers.len() as u32);
        let never = std::ptr::null_mut();
        // glibc and musl differ in the type of the flags.
        // SAFETY: as in `recvmsg`, for every header; there is no timeout to write back.
        let done = unsafe { libc::recvmmsg(fd.as_raw_fd(), all, count, flags as _, never) };
        checked(done as isize)
    }

    /// sendmsg(2) of the first message.
    #[inline]
    pub(super) fn sendmsg(&mut self, fd: BorrowedFd<'_>, flags: c_int) -> io::Result<usize> {
        let header = &raw const self.headers[0].msg_hdr;
        // SAFETY: as in `recvmsg`; nothing is written.
        checked(unsafe { libc::sendmsg(fd.as_raw_fd(), header, flags) })
    }

    /// sendmmsg(2) of the messages from `first` on: how many were sent.
    #[inline]
    pub(super) fn sendmmsg(&mut self, fd: BorrowedFd<'_>, first: usize) -> io::Result<usize> {
        let rest = &mut self.headers[first..];
        let (all, count) = (rest.as_mut_ptr(), rest.len() as u32);
        // SAFETY: as in `recvmmsg`.
        checked(unsafe { libc::sendmmsg(fd.as_raw_fd(), all, count, 0) } as isize)
    }
}

/// An epoll set of descriptors to read from, each known by a number.
pub(super) struct Set(OwnedFd);

impl Set {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        opened(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    pub(super) fn add(&self, fd: BorrowedFd<'_>, number: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: number,
        };
        let (set, fd) = (self.0.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: the event outlives the call.
        let done = unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &mut event) };
        checked(done as isize).map(drop)
    }

    /// Waits so many milliseconds, −1 for ever, and passes on the numbers of those that are ready.
    #[inline]
    pub(super) fn wait(&self, ms: c_int, mut each: impl FnMut(u64)) -> io::Result<()> {
        const EVENTS: usize = 16;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let (set, room) = (self.0.as_raw_fd(), EVENTS as c_int);
        // SAFETY: the array has room for as many events as are asked for.
        let ready = unsafe { libc::epoll_wait(set, events.as_mut_ptr(), room, ms) };
        for event in events.iter().take(checked(ready as isize)?) {
            each(event.u64);
        }
        Ok(())
    }
}
