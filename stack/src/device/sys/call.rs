//! The system calls rustix does not offer: `setsockopt` and `getsockopt` at any level, and `bpf`.
//!
//! They enter the kernel directly. The C library's wrappers are symbols that a preloaded library may
//! interpose, and set `errno`; neither is wanted below the engine.

use super::super::BorrowedFd;
use super::abi_bpf::{Attr, ClassicInsn};
use core::ffi::c_long;
use rustix::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use rustix::io::Errno;

/// Values that may cross the kernel boundary as bytes in both directions.
///
/// # Safety
///
/// The type has no padding, no pointers and no invalid bit patterns.
pub(in crate::device) unsafe trait Plain: Copy + Default {}

// SAFETY: an integer.
unsafe impl Plain for i32 {}
// SAFETY: an integer.
unsafe impl Plain for u32 {}
// SAFETY: an integer.
unsafe impl Plain for u64 {}

/// setsockopt(2).
pub(in crate::device) fn set_option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &T,
) -> Result<(), Errno> {
    let args = [
        socket.as_raw_fd() as usize,
        level as usize,
        name as usize,
        core::ptr::from_ref(value) as usize,
        size_of::<T>(),
    ];
    // SAFETY: setsockopt reads `size_of::<T>()` bytes at the fourth argument, which is a live `T`.
    unsafe { raw(libc::SYS_setsockopt, args) }.map(drop)
}

/// setsockopt(2) of a classic BPF program, which the kernel checks and copies.
pub(in crate::device) fn set_program(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    program: &[ClassicInsn],
) -> Result<(), Errno> {
    let head = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    let args = [
        socket.as_raw_fd() as usize,
        level as usize,
        name as usize,
        core::ptr::from_ref(&head) as usize,
        size_of::<libc::sock_fprog>(),
    ];
    // SAFETY: setsockopt reads a `sock_fprog` at the fourth argument, and as many instructions as it
    // says at its pointer, which is a live slice of them; it writes neither.
    unsafe { raw(libc::SYS_setsockopt, args) }.map(drop)
}

/// getsockopt(2) of a value with a fixed size; fields an older kernel does not know stay zero.
pub(in crate::device) fn option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
) -> Result<T, Errno> {
    let mut value = T::default();
    let mut len = size_of::<T>() as u32;
    let args = [
        socket.as_raw_fd() as usize,
        level as usize,
        name as usize,
        core::ptr::from_mut(&mut value) as usize,
        core::ptr::from_mut(&mut len) as usize,
    ];
    // SAFETY: getsockopt writes at most `len` bytes at the fourth argument, which is a live `T` of
    // that size with no invalid bit patterns, and a `u32` at the fifth.
    unsafe { raw(libc::SYS_getsockopt, args) }?;
    Ok(value)
}

/// bpf(2), for commands that return a descriptor.
pub(in crate::device) fn bpf_fd(attr: &Attr<'_>) -> Result<OwnedFd, Errno> {
    let fd = bpf(attr)?;
    // SAFETY: the command returned a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// bpf(2).
pub(in crate::device) fn bpf(attr: &Attr<'_>) -> Result<usize, Errno> {
    let bytes = attr.as_bytes();
    let args = [
        attr.command() as usize,
        bytes.as_ptr() as usize,
        bytes.len(),
        0,
        0,
    ];
    // SAFETY: the kernel reads `bytes.len()` bytes of attributes, and through the pointers among them
    // what `Attr`'s lifetime keeps alive; it writes nothing for the commands `Attr` can hold.
    unsafe { raw(libc::SYS_bpf, args) }
}

/// sockaddr_ll as rustix's `bind` takes it.
pub(in crate::device) struct LinkAddr(libc::sockaddr_ll);

impl LinkAddr {
    /// Every protocol on the interface `index`.
    pub(in crate::device) fn all_protocols(index: u32) -> Self {
        Self(libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        })
    }
}

// SAFETY: hands out the address and size of a `sockaddr_ll` that outlives the call of `f`.
unsafe impl rustix::net::addr::SocketAddrArg for LinkAddr {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(
            *const rustix::net::addr::SocketAddrOpaque,
            rustix::net::addr::SocketAddrLen,
        ) -> R,
    ) -> R {
        f(
            core::ptr::from_ref(&self.0).cast(),
            size_of::<libc::sockaddr_ll>() as _,
        )
    }
}

/// Closes a copy of nothing: the descriptor number as system-call attributes want it.
pub(in crate::device) fn fd_number(fd: &OwnedFd) -> u32 {
    fd.as_fd().as_raw_fd() as u32
}

/// A system call with five arguments.
///
/// # Safety
///
/// The arguments are what the call's manual page asks for, and memory they point to is live, and
/// writable where the call writes.
unsafe fn raw(number: c_long, args: [usize; 5]) -> Result<usize, Errno> {
    let [a, b, c, d, e] = args;
    let returned: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise; the kernel's convention (syscall(2)) clobbers rcx and r11 only.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => returned,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's promise; the kernel's convention (syscall(2)) clobbers x0 only.
    unsafe {
        core::arch::asm!(
            "svc 0",
            inlateout("x0") a as isize => returned,
            in("x8") number, in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack),
        );
    }
    #[cfg(target_arch = "riscv64")]
    // SAFETY: the caller's promise; the kernel's convention (syscall(2)) clobbers a0 only.
    unsafe {
        core::arch::asm!(
            "ecall",
            inlateout("a0") a as isize => returned,
            in("a7") number, in("a1") b, in("a2") c, in("a3") d, in("a4") e,
            options(nostack),
        );
    }
    usize::try_from(returned).map_err(|_| Errno::from_raw_os_error(-returned as i32))
}
