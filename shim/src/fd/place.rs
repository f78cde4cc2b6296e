//! Numbers at which the socket beneath is exchanged. Between the look that finds a file at a number and the
//! dup3(2) onto it, another thread may close the number, and the kernel give it to anything. So whoever takes
//! a file from its number waits, before the kernel hears of it, until an exchange there is over.

use core::sync::atomic::{AtomicI32, Ordering, fence};

use super::file::File;
use super::table;
use crate::errno::Outcome;
use crate::sync::{Mutex, Rank};

/// Held by the thread that exchanges.
static EXCHANGE: Mutex<()> = Mutex::ranked(Rank::Leaf, ());
/// The number that it is about, or −1.
static EXCHANGED: AtomicI32 = AtomicI32::new(-1);

/// Runs `exchange` while `fd` is `file`'s; `None` when it is not any more.
///
/// # Errors
/// `EAGAIN` in a signal handler that came in between.
pub(crate) fn exchange<T>(
    fd: i32,
    file: &File,
    exchange: impl FnOnce() -> T,
) -> Outcome<Option<T>> {
    let _only = EXCHANGE.lock()?;
    EXCHANGED.store(fd, Ordering::Relaxed);
    fence(Ordering::SeqCst); // one of the two, this thread or who leaves, sees the other
    let done = table::holds(fd, file).then(exchange);
    EXCHANGED.store(-1, Ordering::Release);
    Ok(done)
}

/// Takes `file` from `fd`, if it is still there; true when it was, and the caller then owns the slot's
/// reference and may close the number.
pub(crate) fn leave(fd: i32, file: &'static File) -> bool {
    let left = table::remove_if(fd, file);
    fence(Ordering::SeqCst);
    if left && EXCHANGED.load(Ordering::Relaxed) == fd {
        drop(EXCHANGE.lock());
    }
    left
}

/// Holds still for the length of a fork.
pub(crate) fn freeze() -> impl Sized {
    EXCHANGE.lock().ok()
}
