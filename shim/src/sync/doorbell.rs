//! Waking a thread that sleeps in `ppoll(2)` on other descriptors too.
//!
//! A [`Doorbell`] is an event descriptor and a word that says whether anybody would hear it. The
//! sleeper's side, always in this order:
//!
//! ```text
//!   bell.arm();
//!   if !something_to_do() { ready = ppoll([bell.fd(), …]) }
//!   bell.disarm(ready says bell.fd() is readable);
//! ```
//!
//! The other side makes `something_to_do` true and calls [`ring`](Doorbell::ring), which is a fence and
//! a load unless a sleeper is there, and one `write` for however many rings a sleep. A sleep may end
//! without cause, as every sleep may; it never outlasts a ring.
//!
//! A thread borrows its bell from a `DoorbellPool` for the length of one sleep.

use super::atomic::{AtomicU32, Ordering, fence};
use super::bell::Bell;
use super::const_unless_loom;

/// An event descriptor that is written to only while somebody listens.
pub(crate) struct Doorbell {
    pub(super) state: AtomicU32,
    pub(super) bell: Bell,
}

/// Nobody listens.
pub(super) const IDLE: u32 = 0;
/// Somebody is asleep, or about to look for the last time before sleeping.
const ARMED: u32 = 1;
/// Somebody listens and has been rung for.
const RUNG: u32 = 2;

impl Doorbell {
    const_unless_loom! {
        /// A bell that nobody listens to, and that has no descriptor yet.
        pub(crate) fn new() -> Self {
            Self { state: AtomicU32::new(IDLE), bell: Bell::new() }
        }
    }

    /// From now on rings are heard. The caller looks once more for what it waits for, then sleeps.
    #[inline]
    pub(crate) fn arm(&self) {
        self.state.store(ARMED, Ordering::Relaxed);
        // Pairs with the fence of `ring`: of two threads that each write one thing and read the
        // other's, at least one sees.
        fence(Ordering::SeqCst);
    }

    /// From now on rings cost nothing again. `readable` says whether the sleep found the descriptor
    /// readable.
    pub(crate) fn disarm(&self, readable: bool) {
        let rung = self.state.swap(IDLE, Ordering::Acquire) == RUNG;
        // A ringer that has changed the state may not have written yet; its write then ends the
        // next sleep, which finds the descriptor readable and empties it.
        if rung || readable {
            self.bell.clear();
        }
    }

    /// Ends the sleep of the thread that armed the bell, if any. What it shall find is published
    /// before the call, by whatever means.
    #[inline]
    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) == ARMED {
            self.ring_sleeper();
        }
    }

    #[cold]
    fn ring_sleeper(&self) {
        let first = self
            .state
            .compare_exchange(ARMED, RUNG, Ordering::Release, Ordering::Relaxed)
            .is_ok();
        if first {
            self.bell.strike();
        }
    }

    /// The event descriptor, to be polled for reading.
    #[inline]
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::DoorbellPool;
    use super::*;
    use core::sync::atomic::AtomicBool;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::thread;

    const FLOOR: i32 = 512;

    /// Polls the bell's descriptor; whether it is readable within `timeout`.
    fn readable(bell: &Doorbell, timeout: Option<&Timespec>) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(
            bell.bell().fd().unwrap(),
            PollFlags::IN,
        )];
        poll(&mut fds, timeout).unwrap() == 1
    }

    const NOW: Option<&Timespec> = Some(&Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    });

    #[test]
    fn ring_without_a_listener_writes_nothing() {
        static POOL: DoorbellPool = DoorbellPool::new();
        let bell = POOL.lend(FLOOR).unwrap();
        bell.ring();
        assert!(!readable(&bell, NOW));
    }

    #[test]
    fn rings_while_armed_write_once_and_disarming_empties() {
        static POOL: DoorbellPool = DoorbellPool::new();
        let bell = POOL.lend(FLOOR).unwrap();
        bell.arm();
        bell.ring();
        bell.ring();
        assert!(readable(&bell, NOW));
        let mut count = [0; 8];
        rustix::io::read(bell.bell().fd().unwrap(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        bell.arm();
        bell.ring();
        bell.disarm(false);
        assert!(!readable(&bell, NOW));
    }

    #[test]
    fn write_that_came_late_is_cleared_by_the_sleep_it_ends() {
        static POOL: DoorbellPool = DoorbellPool::new();
        let bell = POOL.lend(FLOOR).unwrap();
        bell.bell().strike();
        bell.arm();
        assert!(readable(&bell, NOW));
        bell.disarm(true);
        assert!(!readable(&bell, NOW));
    }

    #[test]
    fn sleeper_never_outlasts_a_ring() {
        const ROUNDS: usize = 1_000;
        static POOL: DoorbellPool = DoorbellPool::new();
        let bell = POOL.lend(FLOOR).unwrap();
        let (work, taken) = (AtomicBool::new(false), AtomicBool::new(true));
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    while !taken.swap(false, Ordering::AcqRel) {
                        thread::yield_now();
                    }
                    work.store(true, Ordering::Relaxed);
                    bell.ring();
                }
            });
            for _ in 0..ROUNDS {
                while !work.swap(false, Ordering::Relaxed) {
                    bell.arm();
                    let woken = !work.load(Ordering::Relaxed) && readable(&bell, None);
                    bell.disarm(woken);
                }
                taken.store(true, Ordering::Release);
            }
        });
    }
}
