//! Descriptors of std for rustix, which is built without std: cargo builds it once for all of a workspace, and
//! with std the library's own descriptors would be closed by close(2) of the library instead of the kernel.

use std::io;
use std::os::fd::AsRawFd;

use rustix::fd::BorrowedFd;

/// The descriptor of `owner`.
#[expect(unsafe_code, reason = "std and rustix each have a type for it")]
pub(crate) fn of(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the owner is borrowed for as long as the descriptor, and keeps it open.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// The same error.
pub(crate) fn error(err: rustix::io::Errno) -> io::Error {
    io::Error::from_raw_os_error(err.raw_os_error())
}
