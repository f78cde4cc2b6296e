//! Descriptors that the shim uses itself. To the program they are not open: a sweep passes over
//! them, close and fcntl answer EBADF, dup2 onto one EBUSY.

use core::ops::Deref;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io;

use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::sync::{Mutex, Rank};
use crate::sys;

/// rustix without its feature std has an `OwnedFd` of its own, which closes by system call. That of std would call
/// close(2), which is ours and closes nothing of ours. If these two conflict, something that is built together with
/// the library turns the feature on.
#[allow(dead_code, reason = "it is there for the conflict")]
trait ClosesBySystemCall {}
impl ClosesBySystemCall for OwnedFd {}
impl ClosesBySystemCall for std::os::fd::OwnedFd {}

static FILE: Mutex<Option<&'static File>> = Mutex::ranked(Rank::Leaf, None);

/// A descriptor that is the shim's for as long as this lives. A program that closes whatever it finds, and a child
/// that is forked meanwhile, have no part in it.
#[derive(Debug)]
pub(crate) struct Kept(OwnedFd);

impl Kept {
    /// A descriptor of the same for the program, with FD_CLOEXEC: the lowest that is free.
    pub(crate) fn for_program(&self) -> io::Result<OwnedFd> {
        io::fcntl_dupfd_cloexec(&self.0, 0)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        unprotect(sys::number(&self.0));
    }
}

impl Deref for Kept {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.0
    }
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes a descriptor that was made just now out of the program's way and hands.
pub(crate) fn keep(fd: OwnedFd) -> Kept {
    keep_raised(sys::raise(fd))
}

/// Another descriptor, of our own, of what `fd` names.
pub(crate) fn copy(fd: BorrowedFd<'_>) -> io::Result<Kept> {
    sys::dup_high(fd).map(keep_raised)
}

/// Takes a descriptor that is out of the program's way already out of its hands.
pub(crate) fn keep_raised(fd: OwnedFd) -> Kept {
    Kept(hide(fd))
}

/// As [`keep`], for a device that closes it without a word: [`forget_closed`] is to follow then.
pub(crate) fn keep_for_device(fd: OwnedFd) -> OwnedFd {
    hide(sys::raise(fd))
}

fn hide(fd: OwnedFd) -> OwnedFd {
    let number = sys::number(&fd);
    table::fresh(number);
    protect(number);
    fd
}

/// Whether a number is one of them.
#[inline]
pub(crate) fn has(fd: i32) -> bool {
    lookup(fd).is_some_and(|file| file.kind() == Kind::Own)
}

/// Gives back the numbers of those that are closed meanwhile.
pub(crate) fn forget_closed() {
    let Ok(_no_new_one) = FILE.lock() else { return };
    for fd in table::ours_in(0, u32::MAX) {
        if has(fd) && io::fcntl_getfd(sys::borrow(fd)).is_err() {
            unprotect(fd);
        }
    }
}

/// Takes a number out of the program's hands.
pub(crate) fn protect(fd: i32) {
    let Ok(mut shared) = FILE.lock() else { return };
    if lookup(fd).is_some() {
        return; // nobody is about to give it back
    }
    if shared.is_none() {
        *shared = File::new(Kind::Own, 0, Body::None).ok();
    }
    if let Some(file) = *shared
        && file.retain()
    {
        table::install(fd, file);
    }
}

/// Holds still for the length of a fork.
pub(crate) fn freeze() -> impl Sized {
    FILE.lock().ok()
}

/// Closes one of which only the number is known.
pub(crate) fn close(fd: i32) {
    unprotect(fd);
    let _ = sys::close(fd);
}

/// The number is about to be closed by the shim.
fn unprotect(fd: i32) {
    if let Some(file) = lookup(fd).filter(|f| f.kind() == Kind::Own)
        && table::remove_if(fd, file)
    {
        file.release();
    }
}
