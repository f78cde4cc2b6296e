//! Descriptors that the shim uses itself. To the program they are not open: a sweep passes over
//! them, close answers EBADF, dup2 onto one EBUSY.

use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::sync::{Mutex, Rank};

static FILE: Mutex<Option<&'static File>> = Mutex::ranked(Rank::Leaf, None);

/// Takes a number out of the program's hands.
pub(crate) fn protect(fd: i32) {
    if lookup(fd).is_some() {
        return;
    }
    let Ok(mut shared) = FILE.lock() else { return };
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
