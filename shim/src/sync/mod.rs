//! Locks and wake-ups of the shim, and nothing that knows what they protect.
//!
//! The usual primitives cannot be used here. Those of `std` and `parking_lot` sleep through libc's
//! `syscall`, which this library interposes; they know nothing of a signal handler that enters the
//! shim while its own thread holds the lock; and an uncontended atomic read-modify-write pair costs
//! more than all the rest of a receive. So:
//!
//! - [`Mutex`]: one word, taken by compare-and-swap, sleeps in a futex. Knows its owner, so that a
//!   handler re-entering it is told [`Reentered`] and does not deadlock.
//! - [`BiasedMutex`]: the same contract; free of atomic read-modify-writes for a thread that keeps
//!   taking it, at the price of a `membarrier(2)` when another thread comes along.
//! - [`Doorbell`]: wakes a thread that sleeps in `ppoll(2)`; costs a system call only while one does.
//!
//! All of it is process-private, allocates nothing, and is async-signal-safe.
//!
//! Under `cfg(loom)` atomics, futexes and event descriptors are replaced by their model twins
//! (`kcm-tests`, `tests/loom_sync.rs`). The membarrier path has no twin: loom models the C11 memory
//! order, in which a barrier executed by one thread on behalf of all others cannot be expressed. It
//! is covered by the multi-threaded stress tests of `biased.rs` instead.

mod bell;
mod biased;
#[cfg(all(test, not(loom)))]
mod cost;
mod doorbell;
#[cfg(all(test, not(loom)))]
mod forked;
mod futex;
#[cfg(not(loom))]
mod held;
mod lock;
pub(crate) mod order;
#[cfg(not(loom))]
mod pool;
mod token;

#[cfg(not(loom))]
pub(crate) use core::sync::atomic;
#[cfg(loom)]
pub(crate) use loom::sync::atomic;

#[cfg(not(loom))]
pub(crate) use bell::{copied_to, raised_to};
pub(crate) use biased::{BiasedMutex, RawBiased};
#[cfg(loom)]
pub(crate) use doorbell::Doorbell;
#[cfg(not(loom))]
pub(crate) use held::Together;
#[cfg(not(loom))]
pub(crate) use lock::holds_lock;
pub(crate) use lock::{Guard, Mutex, Rank, RawMutex, Reentered};
#[cfg(not(loom))]
pub(crate) use pool::{DoorbellPool, Lent};
use token::ThreadToken;

/// Prepares the process: asks the kernel for expedited barriers, without which no bias is granted.
///
/// To be called once, before the process has a second thread: later the kernel makes the caller
/// wait for all processors, which takes milliseconds. Calling it again is harmless.
pub(crate) fn init() {
    biased::register_barrier();
}

/// To be called first thing in the child of a fork: locks that were held by then, by threads that
/// did not come along, are from now on known to be out of reach, and answer [`Reentered`] instead of
/// being waited for.
#[cfg(not(loom))]
pub(crate) fn enter_child() {
    token::begin_generation();
}

/// Declares a `const fn`, which loses its constness under loom, whose atomics are built at run time.
macro_rules! const_unless_loom {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty $body:block) => {
        #[cfg(not(loom))]
        $(#[$meta])*
        $vis const fn $name($($arg: $ty),*) -> $ret $body

        #[cfg(loom)]
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) -> $ret $body
    };
}
use const_unless_loom;
