//! A lock that is free of charge for the thread that keeps taking it.
//!
//! A socket is nearly always read by one thread. A plain lock makes that thread pay for an atomic
//! read-modify-write twice a call, 10-17 ns on the machines measured, more than all the rest of a
//! receive. Here the *bias* names the thread that may go in and out by ordinary loads and stores:
//!
//! ```text
//!   owner                          revoker (holds `inner`)
//!   held = me                      bias |= REVOKING
//!   compiler fence                 membarrier: a full barrier on every running thread
//!   bias == me ? go in : step back held != 0 ? sleep until it is : the lock is mine
//! ```
//!
//! This is Dekker's algorithm with the owner's store-load barrier moved to the revoker, by
//! `membarrier(2)` (`MEMBARRIER_CMD_PRIVATE_EXPEDITED`). Whatever the owner was doing when the barrier
//! hit it, either its `held` is visible to the revoker, or its look at `bias` is still to come and
//! finds the revocation.
//!
//! Without bias the lock is `inner`, a [`RawMutex`]. A thread that takes it often enough in a row
//! without meeting another is granted the bias. Each revocation doubles what "often enough" is, so
//! threads that take turns do not pay a barrier a turn for long.

use core::sync::atomic::compiler_fence;

use super::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
#[cfg(not(loom))]
use super::held;
use super::lock::{FirstTry, Lock, Rank, RawLock, RawMutex, Reentered};
use super::{ThreadToken, const_unless_loom, futex};

/// A value behind a [`RawBiased`] lock.
pub(crate) type BiasedMutex<T> = Lock<RawBiased, T>;

impl<T> BiasedMutex<T> {
    const_unless_loom! {
        /// A free lock around `value`, biased to nobody yet.
        pub(crate) fn new(value: T) -> Self {
            Self::from_parts(RawBiased::new(), value)
        }
    }
}

/// The lock without a value.
pub(crate) struct RawBiased {
    /// Token of the thread that may enter by `held` alone, perhaps with [`REVOKING`]; zero when
    /// there is none. Written only by the holder of `inner`.
    bias: AtomicUsize,
    /// Token of the biased thread while it is inside. Written only by that thread.
    held: AtomicUsize,
    /// The lock of everybody else, and of the revoker while it waits.
    inner: RawMutex,
    /// Token of the last holder of `inner`, under `inner`.
    last: AtomicUsize,
    /// Times in a row that `last` met nobody, under `inner`.
    streak: AtomicU32,
    /// Length of `streak` that earns the bias, under `inner`.
    streak_needed: AtomicU32,
}

/// How the lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// By the bias: `held` says so.
    ByBias,
    /// By `inner`, as any thread may.
    Plainly,
}

/// In `bias`: another thread wants in; the named one may no longer enter by `held`.
const REVOKING: usize = 1;

/// A revocation costs a few microseconds, a plain acquisition 10-17 ns more than a biased one: the
/// bias has paid for its end after some hundred acquisitions. The first grant is made early, since
/// most locks never see a second thread.
const STREAK_FIRST: u32 = 64;

/// A revocation spread over so many acquisitions is beneath measuring.
const STREAK_MAX: u32 = 1 << 16;

impl RawBiased {
    const_unless_loom! {
        /// A free lock, biased to nobody.
        pub(crate) fn new() -> Self {
            Self {
                bias: AtomicUsize::new(0),
                held: AtomicUsize::new(0),
                inner: RawMutex::new(Rank::Batch),
                last: AtomicUsize::new(0),
                streak: AtomicU32::new(0),
                streak_needed: AtomicU32::new(STREAK_FIRST),
            }
        }
    }

    /// Enters by the bias, if it is `me` who has it and nobody revokes it.
    #[inline(always)]
    fn enter_biased(&self, me: usize) -> bool {
        self.bias.load(Ordering::Relaxed) == me && self.knock(me)
    }

    /// Enters unless the bias is being revoked. Only for the thread that had it a moment ago.
    #[inline(always)]
    fn knock(&self, me: usize) -> bool {
        #[cfg(not(loom))]
        held::enter_by_bias(); // before the fact, so that a handler never counts one too few
        self.held.store(me, Ordering::Relaxed);
        // Keeps the store before the load in the program; the revoker's membarrier keeps it so in
        // the processor.
        compiler_fence(Ordering::SeqCst);
        if self.bias.load(Ordering::Relaxed) == me {
            // What the lock guards was last written by this thread, or before it got the bias.
            compiler_fence(Ordering::Acquire);
            return true;
        }
        self.leave_biased(me);
        false
    }

    #[inline(always)]
    fn leave_biased(&self, me: usize) {
        self.held.store(0, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
        if self.bias.load(Ordering::Relaxed) != me {
            futex::wake_one(&self.held);
        }
        #[cfg(not(loom))]
        held::leave_by_bias();
    }

    #[cold]
    fn lock_plainly(&self) -> Result<Held, Reentered> {
        let FirstTry(uncontended) = self.inner.acquire()?;
        if self.bias.load(Ordering::Relaxed) != 0 {
            self.revoke();
            if let Err(never) = self.wait_for_biased() {
                // The bias stays revoked: the next holder of `inner` comes to the same end.
                self.inner.release();
                return Err(never);
            }
            self.end_bias();
        }
        self.count(uncontended);
        Ok(Held::Plainly)
    }

    /// Ends the right to enter by `held`. Under `inner`.
    fn revoke(&self) {
        self.bias.fetch_or(REVOKING, Ordering::Relaxed);
        barrier_on_all_threads();
    }

    /// Sleeps until the thread that had the bias is outside. Under `inner`, after `revoke`.
    fn wait_for_biased(&self) -> Result<(), Reentered> {
        loop {
            let holder = self.held.load(Ordering::Acquire);
            if holder == 0 {
                return Ok(());
            }
            if ThreadToken::is_of_the_past(holder) || !self.inner.may_wait() {
                return Err(Reentered);
            }
            futex::wait(&self.held, holder);
        }
    }

    /// Makes the lock a plain one. Under `inner`, with the biased thread outside.
    fn end_bias(&self) {
        self.bias.store(0, Ordering::Relaxed);
        let needed = self.streak_needed.load(Ordering::Relaxed);
        self.streak_needed
            .store(needed.saturating_mul(2).min(STREAK_MAX), Ordering::Relaxed);
        self.streak.store(0, Ordering::Relaxed);
    }

    /// Keeps the books that decide about the bias. Under `inner`.
    fn count(&self, uncontended: bool) {
        let me = ThreadToken::current().word();
        let again = uncontended && self.last.load(Ordering::Relaxed) == me;
        let streak = if again {
            self.streak.load(Ordering::Relaxed).saturating_add(1)
        } else {
            0
        };
        self.last.store(me, Ordering::Relaxed);
        self.streak.store(streak, Ordering::Relaxed);
    }

    /// Gives the bias to the calling thread if it has earned it. Under `inner`, at the end of the
    /// section: from here on a signal handler of this thread may enter by `held`.
    fn grant_if_earned(&self) {
        let earned =
            self.streak.load(Ordering::Relaxed) >= self.streak_needed.load(Ordering::Relaxed);
        if earned && BARRIER_WORKS.load(Ordering::Relaxed) {
            self.bias
                .store(ThreadToken::current().word(), Ordering::Relaxed);
        }
    }
}

// SAFETY: a thread is inside either as the holder of `inner` with no bias standing and `held` zero,
// or by `held` with the bias naming it. The first comes after the second only through `revoke` and
// `wait_for_biased`, whose barrier and acquire load order it after the release store of `held`; the
// second comes after the first only by `grant_if_earned`, on the same thread. Two entries of one
// thread are told apart by `held` and by the owner in `inner`.
#[allow(unsafe_code, reason = "promises mutual exclusion")]
unsafe impl RawLock for RawBiased {
    type Held = Held;

    #[inline(always)]
    fn lock(&self) -> Result<Held, Reentered> {
        let me = ThreadToken::current().word();
        if self.held.load(Ordering::Relaxed) == me {
            return Err(Reentered);
        }
        if self.enter_biased(me) {
            Ok(Held::ByBias)
        } else {
            self.lock_plainly()
        }
    }

    #[inline]
    fn try_lock(&self) -> Option<Held> {
        let me = ThreadToken::current().word();
        if self.held.load(Ordering::Relaxed) != 0 {
            return None;
        }
        if self.enter_biased(me) {
            return Some(Held::ByBias);
        }
        self.inner.try_lock()?;
        if self.bias.load(Ordering::Relaxed) != 0 {
            self.revoke();
            if self.held.load(Ordering::Acquire) != 0 {
                // The bias stays revoked: the next holder of `inner` finishes what was begun.
                self.inner.release();
                return None;
            }
            self.end_bias();
        }
        self.count(true);
        Some(Held::Plainly)
    }

    fn is_mine(&self) -> bool {
        self.held.load(Ordering::Relaxed) == ThreadToken::current().word() || self.inner.is_mine()
    }

    #[inline(always)]
    unsafe fn unlock(&self, held: Held) {
        match held {
            Held::ByBias => self.leave_biased(ThreadToken::current().word()),
            Held::Plainly => {
                self.grant_if_earned();
                self.inner.release();
            }
        }
    }
}

/// Whether `membarrier(2)` is there and registered. Without it no bias is ever granted.
#[cfg(not(loom))]
pub(super) static BARRIER_WORKS: AtomicBool = AtomicBool::new(false);

/// Announces this process as a user of expedited barriers; until then no bias is granted.
#[cfg(not(loom))]
pub(super) fn register_barrier() {
    use rustix::thread::{MembarrierCommand, membarrier};
    let registered = membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok();
    BARRIER_WORKS.store(registered, Ordering::Relaxed);
}

/// Makes every thread of the process pass a full memory barrier before it returns.
#[cfg(not(loom))]
#[cold]
fn barrier_on_all_threads() {
    use rustix::thread::{MembarrierCommand, membarrier};
    if membarrier(MembarrierCommand::PrivateExpedited).is_err() {
        BARRIER_WORKS.store(false, Ordering::Relaxed);
        outwait_store_buffers();
    }
}

/// What is left when a seccomp filter took `membarrier` away after a bias was granted: the owner's
/// store of `held` leaves its store buffer within nanoseconds, and a context switch is a barrier, so
/// a pause of a millisecond has always been enough. No further bias is granted, hence at most one
/// such pause for each lock that is biased by then.
#[cfg(not(loom))]
fn outwait_store_buffers() {
    use rustix::thread::{NanosleepRelativeResult, Timespec, nanosleep};
    let mut left = Timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    while let NanosleepRelativeResult::Interrupted(rest) = nanosleep(&left) {
        left = rest;
    }
}

// The barrier has no model (see `sync/mod.rs`), so the models see a lock that is never biased.
#[cfg(loom)]
loom::lazy_static! {
    static ref BARRIER_WORKS: AtomicBool = AtomicBool::new(false);
}
#[cfg(loom)]
pub(super) fn register_barrier() {}
#[cfg(loom)]
fn barrier_on_all_threads() {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::thread;

    fn is_biased<T>(lock: &BiasedMutex<T>) -> bool {
        lock.raw().bias.load(Ordering::Relaxed) != 0
    }

    /// Spins a moment for the sake of a close race, then gives way on a machine that is busy.
    fn spin_until(reached: impl Fn() -> bool) {
        for _ in 0..1_000 {
            if reached() {
                return;
            }
            core::hint::spin_loop();
        }
        while !reached() {
            thread::yield_now();
        }
    }

    /// Takes the lock until the bias is granted to this thread.
    fn earn_bias<T>(lock: &BiasedMutex<T>) {
        register_barrier();
        for _ in 0..=2 * STREAK_MAX {
            drop(lock.lock().unwrap());
            if is_biased(lock) {
                return;
            }
        }
        panic!("no bias after {STREAK_MAX} acquisitions in a row");
    }

    #[test]
    fn bias_is_granted_after_the_streak_and_not_before() {
        register_barrier();
        let lock = BiasedMutex::new(());
        for _ in 0..STREAK_FIRST {
            drop(lock.lock().unwrap());
        }
        assert!(!is_biased(&lock));
        drop(lock.lock().unwrap());
        assert!(is_biased(&lock));
    }

    #[test]
    fn biased_lock_held_by_this_thread_is_reentered() {
        let lock = BiasedMutex::new(1);
        earn_bias(&lock);
        let guard = lock.lock().unwrap();
        assert_eq!(lock.lock().map(|_| ()), Err(Reentered));
        assert!(lock.try_lock().is_none());
        drop(guard);
        assert_eq!(*lock.lock().unwrap(), 1);
    }

    /// As when the handlers of two threads take each other's lock.
    #[test]
    fn thread_in_one_lock_does_not_wait_for_another() {
        let (mine, theirs) = (BiasedMutex::new(0), BiasedMutex::new(0));
        earn_bias(&mine);
        let held_by_them = Barrier::new(2);
        let looked = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                earn_bias(&theirs);
                let by_bias = theirs.lock().unwrap();
                held_by_them.wait();
                looked.wait();
                drop(by_bias);
                theirs.raw().inner.acquire().unwrap();
                held_by_them.wait();
                looked.wait();
                theirs.raw().inner.release();
            });
            for _ in 0..2 {
                held_by_them.wait();
                let guard = mine.lock().unwrap();
                assert_eq!(theirs.lock().map(|_| ()), Err(Reentered));
                drop(guard);
                looked.wait();
            }
        });
        let both = held::Together::begin();
        assert!(mine.lock().is_ok_and(|_guard| theirs.lock().is_ok()));
        drop(both);
    }

    #[test]
    fn plainly_held_lock_is_reentered() {
        let lock = BiasedMutex::new(1);
        let guard = lock.lock().unwrap();
        assert_eq!(lock.lock().map(|_| ()), Err(Reentered));
        drop(guard);
    }

    #[test]
    fn owner_inside_while_revoked_is_still_reentered() {
        let lock = BiasedMutex::new(0);
        earn_bias(&lock);
        let guard = lock.lock().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| *lock.lock().unwrap() += 1);
            while lock.raw().bias.load(Ordering::Relaxed) & REVOKING == 0 {
                thread::yield_now();
            }
            assert_eq!(lock.lock().map(|_| ()), Err(Reentered));
            drop(guard);
        });
        assert!(!is_biased(&lock));
        assert_eq!(*lock.lock().unwrap(), 1);
    }

    #[test]
    fn try_lock_of_a_competitor_fails_while_the_owner_is_inside_and_then_succeeds() {
        let lock = BiasedMutex::new(0);
        earn_bias(&lock);
        let guard = lock.lock().unwrap();
        let attempt = || thread::scope(|s| s.spawn(|| lock.try_lock().is_some()).join().unwrap());
        assert!(!attempt());
        drop(guard);
        assert!(attempt());
        assert!(!is_biased(&lock));
    }

    #[test]
    fn revocation_doubles_the_streak_needed() {
        let lock = BiasedMutex::new(());
        earn_bias(&lock);
        thread::scope(|scope| {
            scope.spawn(|| drop(lock.lock().unwrap()));
        });
        assert_eq!(
            lock.raw().streak_needed.load(Ordering::Relaxed),
            2 * STREAK_FIRST
        );
    }

    /// Two counters that only the lock keeps equal; every section checks that it is alone.
    #[derive(Default)]
    struct Pair(u64, u64);

    impl Pair {
        fn bump(&mut self) {
            assert_eq!(self.0, self.1);
            self.0 += 1;
            core::hint::black_box(&mut *self);
            self.1 += 1;
        }
    }

    /// The part loom cannot model: an owner that goes in and out by plain loads and stores as fast as
    /// it can, against threads that revoke it again and again.
    #[test]
    fn sections_exclude_each_other_through_grants_and_revocations() {
        const REVOCATIONS: u64 = 200;
        register_barrier();
        let lock = BiasedMutex::new(Pair::default());
        let done = AtomicBool::new(false);
        let by_owner = thread::scope(|scope| {
            let owner = scope.spawn(|| {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    lock.lock().unwrap().bump();
                    count += 1;
                    // Time outside, or nobody else ever gets in.
                    (0..50).for_each(|_| core::hint::spin_loop());
                }
                count
            });
            let revoker = scope.spawn(|| {
                for _ in 0..REVOCATIONS {
                    // Forget the history, so that the bias comes back soon.
                    let guard = lock.lock().unwrap();
                    lock.raw()
                        .streak_needed
                        .store(STREAK_FIRST, Ordering::Relaxed);
                    drop(guard);
                    spin_until(|| is_biased(&lock));
                    lock.lock().unwrap().bump();
                }
                done.store(true, Ordering::Relaxed);
            });
            revoker.join().unwrap();
            owner.join().unwrap()
        });
        assert_eq!(lock.lock().unwrap().0, by_owner + REVOCATIONS);
    }

    #[test]
    fn many_threads_lose_no_increment() {
        const THREADS: usize = 4;
        const ROUNDS: u64 = 20_000;
        register_barrier();
        let (lock, start) = (BiasedMutex::new(Pair::default()), Barrier::new(THREADS));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    (0..ROUNDS).for_each(|_| lock.lock().unwrap().bump());
                });
            }
        });
        assert_eq!(lock.lock().unwrap().0, THREADS as u64 * ROUNDS);
    }

    /// The litmus test of the algorithm's heart, round after round: both sides going in is the one
    /// outcome that the barrier forbids. (Without it, some hundred of these rounds fail on a machine
    /// with two idle processors.)
    #[test]
    fn owner_entering_and_revoker_looking_never_miss_each_other() {
        const ROUNDS: usize = 10_000;
        register_barrier();
        let me_word = AtomicUsize::new(0);
        let raw = RawBiased::new();
        let (go, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (entered, mut both_went_in) = (AtomicBool::new(false), 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                let me = ThreadToken::current().word();
                me_word.store(me, Ordering::Release);
                for round in 1..=ROUNDS {
                    spin_until(|| go.load(Ordering::Acquire) == round);
                    // From behind the owner's first look, as if it had been held up there.
                    let inside = raw.knock(me);
                    entered.store(inside, Ordering::Relaxed);
                    finished.store(round, Ordering::Release);
                }
            });
            spin_until(|| me_word.load(Ordering::Acquire) != 0);
            let owner = me_word.load(Ordering::Acquire);
            for round in 1..=ROUNDS {
                raw.held.store(0, Ordering::Relaxed);
                raw.bias.store(owner, Ordering::Relaxed);
                go.store(round, Ordering::Release);
                raw.revoke();
                let seen_outside = raw.held.load(Ordering::Acquire) == 0;
                spin_until(|| finished.load(Ordering::Acquire) == round);
                let inside = entered.load(Ordering::Relaxed);
                both_went_in += usize::from(inside && seen_outside);
            }
        });
        assert_eq!(both_went_in, 0);
    }
}
