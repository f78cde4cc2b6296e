//! Calls that change what is mapped: what we know of the program's memory is void.

use libc::{c_int, c_void, off_t, size_t};

use crate::real::hooks;
use crate::user_mem;

hooks! {
    /// munmap(2).
    fn munmap(addr: *mut c_void, len: size_t) -> c_int {
        user_mem::invalidate();
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::munmap(addr, len) }
    }

    /// mprotect(2).
    fn mprotect(addr: *mut c_void, len: size_t, prot: c_int) -> c_int {
        user_mem::invalidate();
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::mprotect(addr, len, prot) }
    }

    /// mremap(2). The last argument is read only with MREMAP_FIXED; see fcntl for the ABI.
    fn mremap(addr: *mut c_void, old: size_t, new: size_t, flags: c_int, to: *mut c_void) -> *mut c_void {
        user_mem::invalidate();
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::mremap(addr, old, new, flags, to) }
    }

    /// mmap(2): MAP_FIXED replaces what was mapped.
    fn mmap(
        addr: *mut c_void, len: size_t, prot: c_int, flags: c_int, fd: c_int, at: off_t,
    ) -> *mut c_void {
        if flags & libc::MAP_FIXED != 0 {
            user_mem::invalidate();
        }
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::mmap(addr, len, prot, flags, fd, at) }
    }

    /// mmap(2) of programs compiled for 64-bit offsets.
    fn mmap64(
        addr: *mut c_void, len: size_t, prot: c_int, flags: c_int, fd: c_int, at: off_t,
    ) -> *mut c_void {
        if flags & libc::MAP_FIXED != 0 {
            user_mem::invalidate();
        }
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::mmap64(addr, len, prot, flags, fd, at) }
    }

    /// madvise(2): MADV_DONTNEED and its kin may take pages of a file mapping away.
    fn madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int {
        user_mem::invalidate();
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::madvise(addr, len, advice) }
    }

    /// shmdt(2).
    fn shmdt(addr: *const c_void) -> c_int {
        user_mem::invalidate();
        // SAFETY: forwards the caller's own argument.
        unsafe { next::shmdt(addr) }
    }
}
