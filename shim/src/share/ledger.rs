//! Counters in memory that a forked child shares with its parent: how many messages were taken from
//! a shared socket. The owner keeps a message until it knows that it was taken; when the last
//! holder of a socket dies with messages still queued there, they go to another socket of the mux.

use core::sync::atomic::AtomicU32;

use crate::errno::{Errno, Outcome};
use crate::sync::Mutex;
use crate::sys;

/// One counter in each cache line.
const STRIDE: usize = 16;

static FREE: Mutex<Vec<&'static AtomicU32>> = Mutex::new(Vec::new());

/// A counter for one socket; its value is where it last stopped.
pub(super) fn lend() -> Outcome<&'static AtomicU32> {
    let mut free = FREE.lock()?;
    if free.is_empty() {
        let page = sys::shared_words().ok_or(Errno::ENOMEM)?;
        free.extend(page.iter().step_by(STRIDE));
    }
    free.pop().ok_or(Errno::ENOMEM.into())
}

/// No process holds the socket any more.
pub(super) fn give_back(counter: &'static AtomicU32) {
    if let Ok(mut free) = FREE.lock() {
        free.push(counter);
    }
}

/// A forked child must not lend what its parent lends.
pub(super) fn reset_in_child() {
    if let Ok(mut free) = FREE.lock() {
        free.clear();
    }
}
