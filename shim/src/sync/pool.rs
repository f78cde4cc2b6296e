//! Doorbells on loan.
//!
//! Bells are never freed, so a ringer may hold on to one without counting references, and none is
//! tied to thread-local storage, whose destructors run when they please: a bell whose borrower has
//! gone is lent to the next, and a late ring for the former is a sleep of the latter that ends early.

use super::doorbell::{Doorbell, IDLE};
use core::ops::Deref;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use rustix::fd::RawFd;
use rustix::io::Errno;

/// Bells of a process, hence threads that sleep in the shim at one time. The array takes 32 KiB
/// of address space and no memory before its first use.
pub(crate) const DOORBELLS_MAX: usize = WORDS * BITS;

const WORDS: usize = 64;
const BITS: usize = u64::BITS as usize;

/// All bells of the process.
pub(crate) struct DoorbellPool {
    /// A set bit is a bell that is lent.
    lent: [AtomicU64; WORDS],
    bells: [Doorbell; DOORBELLS_MAX],
    /// Bells at and above this index have never been lent.
    high_water: AtomicUsize,
}

impl DoorbellPool {
    /// A pool whose bells are all free and without descriptors. Meant for a `static`.
    pub(crate) const fn new() -> Self {
        Self {
            lent: [const { AtomicU64::new(0) }; WORDS],
            bells: [const { Doorbell::new() }; DOORBELLS_MAX],
            high_water: AtomicUsize::new(0),
        }
    }

    /// Lends a bell, whose descriptor, if it must be made, is numbered `floor` or higher where
    /// RLIMIT_NOFILE permits.
    ///
    /// # Errors
    /// - `ENOMEM`: all [`DOORBELLS_MAX`] bells are lent.
    /// - `EMFILE`, `ENFILE`, `ENOMEM`: the kernel has no descriptor to give.
    pub(crate) fn lend(&'static self, floor: RawFd) -> Result<Lent, Errno> {
        let index = self.claim().ok_or(Errno::NOMEM)?;
        let lent = Lent { pool: self, index };
        lent.bell.open(floor)?;
        Ok(lent)
    }

    /// The bell of a given [`Lent::index`].
    pub(crate) fn bell(&self, index: usize) -> Option<&Doorbell> {
        self.bells.get(index)
    }

    /// Gives up all descriptors, which a forked child shares with its parent and must not use:
    /// it would steal wake-ups. `close` says whether the numbers are known to be still ours.
    ///
    /// # Safety
    /// The process has one thread, which has no bell on loan that it will use again.
    #[allow(unsafe_code, reason = "invalidates descriptors that bells hand out")]
    pub(crate) unsafe fn reset_in_child(&self, close: bool) {
        for bell in self.used() {
            bell.bell.forget(close);
            bell.state.store(IDLE, Ordering::Relaxed);
        }
        for word in &self.lent {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn used(&self) -> impl Iterator<Item = &Doorbell> {
        self.bells
            .iter()
            .take(self.high_water.load(Ordering::Acquire))
    }

    /// Marks the lowest free bell as lent: descriptors are made only for as many bells as were
    /// ever lent at one time.
    fn claim(&self) -> Option<usize> {
        for (word_index, word) in self.lent.iter().enumerate() {
            let mut seen = word.load(Ordering::Relaxed);
            while seen != u64::MAX {
                let free = seen.trailing_ones();
                let taken = seen | 1 << free;
                match word.compare_exchange_weak(seen, taken, Ordering::Acquire, Ordering::Relaxed)
                {
                    Ok(_) => {
                        let index = word_index * BITS + free as usize;
                        self.high_water.fetch_max(index + 1, Ordering::Release);
                        return Some(index);
                    }
                    Err(now) => seen = now,
                }
            }
        }
        None
    }

    fn give_back(&self, index: usize) {
        if let Some(word) = self.lent.get(index / BITS) {
            word.fetch_and(!(1 << (index % BITS)), Ordering::Release);
        }
    }
}

/// A bell on loan; dropping it gives it back, disarmed.
pub(crate) struct Lent {
    pool: &'static DoorbellPool,
    index: usize,
}

impl Lent {
    /// Where [`DoorbellPool::bell`] finds this bell; below [`DOORBELLS_MAX`].
    pub(crate) fn index(&self) -> usize {
        self.index
    }
}

impl Deref for Lent {
    type Target = Doorbell;

    fn deref(&self) -> &Doorbell {
        &self.pool.bells[self.index]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.state.load(Ordering::Relaxed) != IDLE {
            self.disarm(false);
        }
        self.pool.give_back(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::{FdFlags, fcntl_getfd};

    const FLOOR: i32 = 512;

    fn readable(bell: &Doorbell) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(
            bell.bell().fd().unwrap(),
            PollFlags::IN,
        )];
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .unwrap()
            == 1
    }

    #[test]
    fn descriptor_is_high_cloexec_and_reused_by_the_next_borrower() {
        static POOL: DoorbellPool = DoorbellPool::new();
        let first = POOL.lend(FLOOR).unwrap();
        let (index, fd) = (first.index(), first.bell().raw_fd().unwrap());
        assert!(fd >= FLOOR);
        assert!(
            fcntl_getfd(first.bell().fd().unwrap())
                .unwrap()
                .contains(FdFlags::CLOEXEC)
        );
        let second = POOL.lend(FLOOR).unwrap();
        assert_ne!(second.index(), index);
        drop(first);
        let again = POOL.lend(FLOOR).unwrap();
        assert_eq!((again.index(), again.bell().raw_fd()), (index, Some(fd)));
    }

    #[test]
    fn floor_above_the_descriptor_limit_still_gives_a_high_number() {
        static POOL: DoorbellPool = DoorbellPool::new();
        let bell = POOL.lend(i32::MAX).unwrap();
        assert!(bell.bell().raw_fd().unwrap() > FLOOR);
    }

    #[test]
    fn bell_dropped_while_armed_comes_back_idle() {
        static POOL: DoorbellPool = DoorbellPool::new();
        POOL.lend(FLOOR).unwrap().arm();
        let bell = POOL.lend(FLOOR).unwrap();
        bell.ring();
        assert!(!readable(&bell));
    }

    #[test]
    fn reset_in_child_gives_every_bell_a_new_descriptor() {
        static POOL: DoorbellPool = DoorbellPool::new();
        let lent = POOL.lend(FLOOR).unwrap();
        assert!(lent.bell().raw_fd().is_some());
        core::mem::forget(lent);
        // SAFETY: no other thread uses this pool, and the bell on loan was forgotten.
        #[allow(unsafe_code, reason = "stands in for a forked child")]
        unsafe {
            POOL.reset_in_child(true);
        }
        assert_eq!(POOL.bell(0).unwrap().bell().raw_fd(), None);
        assert_eq!(POOL.lend(FLOOR).unwrap().index(), 0);
    }

    #[test]
    fn pool_lends_its_bound_and_then_refuses() {
        static POOL: DoorbellPool = DoorbellPool::new();
        let claimed: Vec<_> = core::iter::from_fn(|| POOL.claim()).collect();
        assert_eq!(claimed, (0..DOORBELLS_MAX).collect::<Vec<_>>());
        assert_eq!(POOL.lend(FLOOR).map(|_| ()), Err(Errno::NOMEM));
        POOL.give_back(777);
        assert_eq!(POOL.claim(), Some(777));
    }
}
