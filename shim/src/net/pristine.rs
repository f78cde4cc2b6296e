//! Which kernel sockets are as socket(2) made them: one that becomes a stack socket need not be asked
//! for its options, which is some twenty system calls.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::fd::table::FDS_MAX;
use crate::route;

const BITS: usize = u64::BITS as usize;

/// A bit a number, set from socket(2) to the first call that changes the socket.
static NUMBERS: [AtomicU64; FDS_MAX / BITS] = [const { AtomicU64::new(0) }; FDS_MAX / BITS];

fn place(fd: i32) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((NUMBERS.get(fd / BITS)?, 1 << (fd % BITS)))
}

/// socket(2) has made `fd`.
pub(crate) fn made(fd: i32) {
    if route::is_set()
        && let Some((word, bit)) = place(fd)
    {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

/// Options or the state of what is behind `fd` may have changed, or it is something else now.
#[inline]
pub(crate) fn changed(fd: i32) {
    if route::is_set()
        && let Some((word, bit)) = place(fd)
        && word.load(Ordering::Relaxed) & bit != 0
    {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Whether the socket is as it was made.
pub(crate) fn is_pristine(fd: i32) -> bool {
    place(fd).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
}
