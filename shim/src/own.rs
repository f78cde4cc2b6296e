//! Descriptors that the shim uses itself. To the program they are not open: a sweep passes over
//! them, close and fcntl answer EBADF, dup2 onto one EBUSY.

use core::ops::Deref;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::errno::Outcome;
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::sync::{Mutex, Rank};
use crate::sys;

static FILE: Mutex<Option<&'static File>> = Mutex::ranked(Rank::Leaf, None);

/// Takes a descriptor that was made just now out of the program's way and hands.
pub(crate) fn keep(fd: OwnedFd) -> OwnedFd {
    let fd = sys::raise(fd);
    table::fresh(sys::number(&fd));
    protect(sys::number(&fd));
    fd
}

/// A descriptor that is the shim's for as long as this lives. A program that closes whatever it finds, and a child
/// that is forked meanwhile, have no part in it.
pub(crate) struct Kept(OwnedFd);

impl Kept {
    /// One that was received just now.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(keep(fd))
    }

    /// The descriptor, which goes on being the shim's: whoever closes it unprotects it.
    pub(crate) fn stay(self) -> OwnedFd {
        let fd = sys::take_back(sys::number(&self.0));
        core::mem::forget(self);
        fd
    }

    /// A descriptor of the same for the program, with FD_CLOEXEC: the lowest that is free.
    pub(crate) fn for_program(&self) -> Outcome<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(&self.0, 0)?)
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

impl Drop for Kept {
    fn drop(&mut self) {
        unprotect(sys::number(&self.0));
    }
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
        if has(fd) && rustix::io::fcntl_getfd(sys::borrow(fd)).is_err() {
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

/// The number is about to be closed by the shim.
pub(crate) fn unprotect(fd: i32) {
    if let Some(file) = lookup(fd).filter(|f| f.kind() == Kind::Own)
        && table::remove_if(fd, file)
    {
        file.release();
    }
}
