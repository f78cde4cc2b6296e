//! Calls that take pages or rights away: what we know of the program's memory is void once they are
//! done.

use libc::{c_char, c_int, c_void, intptr_t, off_t, size_t};

use crate::real::hooks;
use crate::user_mem;

/// What a call that changed the program's memory returned.
pub(super) fn changed<T>(done: T) -> T {
    user_mem::invalidate();
    done
}

/// Advice after which a touch of a page may fault. What programs' allocators give all the time
/// (MADV_DONTNEED, MADV_FREE, MADV_COLD and the like) only takes contents away.
fn takes_pages(advice: c_int) -> bool {
    /// linux/mman.h: a touch of a guard page faults.
    const MADV_GUARD_INSTALL: c_int = 102;
    matches!(
        advice,
        libc::MADV_REMOVE | libc::MADV_HWPOISON | MADV_GUARD_INSTALL
    )
}

hooks! {
    /// munmap(2).
    fn munmap(addr: *mut c_void, len: size_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        changed(unsafe { next::munmap(addr, len) })
    }

    /// mprotect(2).
    fn mprotect(addr: *mut c_void, len: size_t, prot: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        changed(unsafe { next::mprotect(addr, len, prot) })
    }

    /// pkey_mprotect(2).
    fn pkey_mprotect(addr: *mut c_void, len: size_t, prot: c_int, key: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        changed(unsafe { next::pkey_mprotect(addr, len, prot, key) })
    }

    /// mremap(2). The last argument is read only with MREMAP_FIXED; see fcntl for the ABI.
    fn mremap(addr: *mut c_void, old: size_t, new: size_t, flags: c_int, to: *mut c_void) -> *mut c_void {
        // SAFETY: forwards the caller's own arguments.
        changed(unsafe { next::mremap(addr, old, new, flags, to) })
    }

    /// remap_file_pages(2).
    fn remap_file_pages(addr: *mut c_void, len: size_t, prot: c_int, page: size_t, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        changed(unsafe { next::remap_file_pages(addr, len, prot, page, flags) })
    }

    /// mmap(2): MAP_FIXED replaces what was mapped.
    fn mmap(
        addr: *mut c_void, len: size_t, prot: c_int, flags: c_int, fd: c_int, at: off_t,
    ) -> *mut c_void {
        // SAFETY: forwards the caller's own arguments.
        let done = unsafe { next::mmap(addr, len, prot, flags, fd, at) };
        if flags & libc::MAP_FIXED != 0 { changed(done) } else { done }
    }

    /// mmap(2) of programs compiled for 64-bit offsets.
    fn mmap64(
        addr: *mut c_void, len: size_t, prot: c_int, flags: c_int, fd: c_int, at: off_t,
    ) -> *mut c_void {
        // SAFETY: forwards the caller's own arguments.
        let done = unsafe { next::mmap64(addr, len, prot, flags, fd, at) };
        if flags & libc::MAP_FIXED != 0 { changed(done) } else { done }
    }

    /// madvise(2).
    fn madvise(addr: *mut c_void, len: size_t, advice: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let done = unsafe { next::madvise(addr, len, advice) };
        if takes_pages(advice) { changed(done) } else { done }
    }

    /// brk(2).
    fn brk(end: *mut c_void) -> c_int {
        // SAFETY: forwards the caller's own argument.
        changed(unsafe { next::brk(end) })
    }

    /// sbrk(3): a negative increment takes the end of the heap away.
    fn sbrk(increment: intptr_t) -> *mut c_void {
        // SAFETY: forwards the caller's own argument.
        let done = unsafe { next::sbrk(increment) };
        if increment < 0 { changed(done) } else { done }
    }

    /// shmat(2): SHM_REMAP replaces what was mapped.
    fn shmat(id: c_int, addr: *const c_void, flags: c_int) -> *mut c_void {
        // SAFETY: forwards the caller's own arguments.
        let done = unsafe { next::shmat(id, addr, flags) };
        if flags & libc::SHM_REMAP != 0 { changed(done) } else { done }
    }

    /// shmdt(2).
    fn shmdt(addr: *const c_void) -> c_int {
        // SAFETY: forwards the caller's own argument.
        changed(unsafe { next::shmdt(addr) })
    }

    /// ftruncate(2).
    fn ftruncate(fd: c_int, len: off_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        changed(unsafe { next::ftruncate(fd, len) })
    }

    /// ftruncate(2) of programs compiled for 64-bit offsets.
    fn ftruncate64(fd: c_int, len: off_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        changed(unsafe { next::ftruncate64(fd, len) })
    }

    /// truncate(2).
    fn truncate(path: *const c_char, len: off_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        changed(unsafe { next::truncate(path, len) })
    }

    /// truncate(2) of programs compiled for 64-bit offsets.
    fn truncate64(path: *const c_char, len: off_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        changed(unsafe { next::truncate64(path, len) })
    }
}
