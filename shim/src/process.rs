//! Which process this is, and what a fork means for our state.

use core::sync::atomic::{AtomicI32, Ordering};

use crate::{heap, housekeeper, wait};

/// The process our state belongs to.
static OWNER: AtomicI32 = AtomicI32::new(0);

fn me() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Takes note of the process at start.
pub(crate) fn init() {
    OWNER.store(me(), Ordering::Relaxed);
}

/// Whether this process is not the one our state belongs to: the child of a vfork or of
/// posix_spawn, which runs in its parent's memory but closes descriptors of its own, or the child
/// of a fork that we did not see.
pub(crate) fn is_foreign() -> bool {
    OWNER.load(Ordering::Relaxed) != me()
}

/// fork(2) by `real`: the child gets a heap that no other thread was changing.
pub(crate) fn fork(real: impl FnOnce() -> i32) -> i32 {
    let quiet = heap::freeze();
    let child = real();
    if child == 0 {
        OWNER.store(me(), Ordering::Relaxed);
        drop(quiet);
        wait::reset_in_child();
        housekeeper::reset_in_child();
    }
    child
}
