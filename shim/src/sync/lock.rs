//! A value behind a lock, and the plain futex lock.
//!
//! Differences from `std::sync::Mutex`: a lock knows its owner and answers [`Reentered`] where
//! another would deadlock; there is no poisoning, since a panic ends the process; and in a forked
//! child, a lock that a thread of its parent held answers the same.

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};

use super::atomic::{AtomicUsize, Ordering};
#[cfg(not(loom))]
use super::held;
use super::{ThreadToken, const_unless_loom, futex, order};

/// Waiting for this lock would never end. Either the calling thread holds it already: a signal
/// handler interrupted its own thread inside the shim. Or it holds one that comes after this one in
/// the [order](Rank), with the same cause: whoever has this one may wait for that. Or a thread held it that did not come along
/// when this process was forked; what the lock guards may be half changed, in this process for good.
/// The caller does without, or passes the call through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reentered;

/// A way of excluding other threads.
///
/// # Safety
/// Between a successful `lock` or `try_lock` and the matching `unlock` no other such call succeeds,
/// on this thread or another, and what was written before an `unlock` is visible after the next
/// `lock`.
#[allow(
    unsafe_code,
    reason = "the guard's access to the value rests on the implementation"
)]
pub(crate) unsafe trait RawLock {
    /// How the lock is held; `unlock` wants it back.
    type Held: Copy;

    /// Takes the lock, sleeping if another thread has it.
    fn lock(&self) -> Result<Self::Held, Reentered>;

    /// Takes the lock if that needs no waiting for another thread.
    fn try_lock(&self) -> Option<Self::Held>;

    /// Whether the calling thread has the lock.
    fn is_mine(&self) -> bool;

    /// Gives the lock back.
    ///
    /// # Safety
    /// The calling thread holds the lock in the way `held` says.
    unsafe fn unlock(&self, held: Self::Held);
}

/// A value that one thread at a time may use.
pub(crate) struct Lock<R, T: ?Sized> {
    raw: R,
    value: UnsafeCell<T>,
}

/// A value behind the plain lock: eight bytes and the value.
pub(crate) type Mutex<T> = Lock<RawMutex, T>;

// SAFETY: the lock hands the value to one thread at a time, which is all that `T: Send` asks for.
#[allow(unsafe_code, reason = "a lock is what makes a value shareable")]
unsafe impl<R: RawLock + Sync, T: ?Sized + Send> Sync for Lock<R, T> {}

impl<T> Mutex<T> {
    const_unless_loom! {
        /// A free lock around `value`.
        pub(crate) fn new(value: T) -> Self {
            Self::from_parts(RawMutex::new(Rank::Any), value)
        }
    }

    const_unless_loom! {
        /// A free lock around `value`, with a place in the order of locks.
        pub(crate) fn ranked(rank: Rank, value: T) -> Self {
            Self::from_parts(RawMutex::new(rank), value)
        }
    }
}

impl<R, T> Lock<R, T> {
    /// Joins a free `raw` lock and the value it shall guard.
    pub(super) const fn from_parts(raw: R, value: T) -> Self {
        Self {
            raw,
            value: UnsafeCell::new(value),
        }
    }

    /// The lock without its value, for tests of its inner state.
    #[cfg(all(test, not(loom)))]
    pub(super) fn raw(&self) -> &R {
        &self.raw
    }
}

#[allow(unsafe_code, reason = "hands out what the raw lock guards")]
impl<R: RawLock, T: ?Sized> Lock<R, T> {
    /// Takes the lock, sleeping while another thread holds it.
    ///
    /// # Errors
    /// [`Reentered`] when the calling thread holds it, or none that is there.
    #[inline(always)]
    pub(crate) fn lock(&self) -> Result<Guard<'_, R, T>, Reentered> {
        self.raw.lock().map(|held| self.guard(held))
    }

    /// Whether the calling thread is inside: it has been interrupted by a signal handler there.
    pub(crate) fn is_mine(&self) -> bool {
        self.raw.is_mine()
    }

    /// Takes the lock if no thread, the calling one included, holds it.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, R, T>> {
        self.raw.try_lock().map(|held| self.guard(held))
    }

    #[inline(always)]
    fn guard(&self, held: R::Held) -> Guard<'_, R, T> {
        order::take(&raw const self.raw);
        Guard { lock: self, held }
    }
}

impl<R, T> fmt::Debug for Lock<R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").finish_non_exhaustive()
    }
}

/// Access to the value of a locked [`Lock`]; dropping it unlocks.
///
/// Not `Send`: the lock is its thread's.
#[must_use = "the lock is freed at once if the guard is dropped"]
pub(crate) struct Guard<'a, R: RawLock, T: ?Sized> {
    lock: &'a Lock<R, T>,
    held: R::Held,
}

#[allow(
    unsafe_code,
    reason = "a guard stands for the exclusive right to the value"
)]
impl<R: RawLock, T: ?Sized> Deref for Guard<'_, R, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: while this guard exists its thread holds the lock, so nobody changes the value.
        unsafe { &*self.lock.value.get() }
    }
}

#[allow(
    unsafe_code,
    reason = "a guard stands for the exclusive right to the value"
)]
impl<R: RawLock, T: ?Sized> DerefMut for Guard<'_, R, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: while this guard exists its thread holds the lock, and the guard is borrowed
        // exclusively, so this is the only reference to the value.
        unsafe { &mut *self.lock.value.get() }
    }
}

#[allow(unsafe_code, reason = "gives back what the guard stands for")]
impl<R: RawLock, T: ?Sized> Drop for Guard<'_, R, T> {
    #[inline(always)]
    fn drop(&mut self) {
        order::give(&raw const self.lock.raw);
        // SAFETY: the guard was made from this very `held`, by this thread, and is dropped once.
        unsafe { self.lock.raw.unlock(self.held) }
    }
}

/// The plain lock: a word that is zero, or the owner's token, plus a flag when somebody sleeps.
///
/// Owner and state share one word, so there is no instant at which a lock is taken and its owner not
/// yet known: a signal handler may arrive at any instant.
pub(crate) struct RawMutex {
    word: AtomicUsize,
    rank: Rank,
}

/// The order in which a thread takes locks. A thread waits for a lock only while it holds none that
/// comes later. No code of ours breaks the order but that of a signal handler which has interrupted
/// its thread under a lock: it gets [`Reentered`] where waiting might never end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Rank {
    /// No place in the order: held alone, or for no longer than a few instructions.
    Any = 0,
    /// Lists that say where things are: attached sockets, live muxes.
    Directory,
    /// The batch of a KCM socket.
    Batch,
    /// A mux.
    Mux,
    /// A TCP/IP engine.
    Net,
    /// Who watches a file.
    Watch,
    /// What belongs to the kind of a file; an epoll set.
    Body,
    /// Pools and lists under which only memory is allocated.
    Leaf,
    /// The heap.
    Heap,
}

/// Somebody sleeps, or is about to: the owner must wake one when it unlocks.
const CONTENDED: usize = 1;

/// Looks at a taken lock before its waiter sleeps. Sections last well under a microsecond, and a
/// sleep with its wake-up costs about ten.
const SPINS_MAX: u32 = if cfg!(loom) { 0 } else { 100 };

impl RawMutex {
    const_unless_loom! {
        /// A free lock.
        pub(crate) fn new(rank: Rank) -> Self {
            Self { word: AtomicUsize::new(0), rank }
        }
    }

    /// Takes the lock; also says whether that happened at the first try.
    #[inline]
    pub(super) fn acquire(&self) -> Result<FirstTry, Reentered> {
        let me = ThreadToken::current().word();
        held::add(self.rank); // before the fact, so that a handler never counts one too few
        if self.claim(me) {
            return Ok(FirstTry(true));
        }
        let taken = self.acquire_contended(me);
        if taken.is_err() {
            held::sub(self.rank);
        }
        taken
    }

    /// Whether the calling thread may wait for a lock of this rank.
    #[inline]
    pub(super) fn may_wait(&self) -> bool {
        let in_another = match self.rank {
            Rank::Batch => held::another_batch(),
            Rank::Net => held::another_net(),
            _ => false,
        };
        !in_another && !held::any_above(self.rank)
    }

    #[inline]
    fn is_mine(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !CONTENDED == ThreadToken::current().word()
    }

    #[inline]
    fn claim(&self, word: usize) -> bool {
        self.word
            .compare_exchange(0, word, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    #[cold]
    fn acquire_contended(&self, me: usize) -> Result<FirstTry, Reentered> {
        let holder = self.word.load(Ordering::Relaxed) & !CONTENDED;
        let never = holder == me || (holder != 0 && ThreadToken::is_of_the_past(holder));
        if never || !self.may_wait() {
            return Err(Reentered);
        }
        for _ in 0..SPINS_MAX {
            if self.word.load(Ordering::Relaxed) == 0 && self.claim(me) {
                return Ok(FirstTry(false));
            }
            core::hint::spin_loop();
        }
        loop {
            let seen = self.word.load(Ordering::Relaxed);
            if seen == 0 {
                // Others may still sleep on behalf of the flag that the last owner took away.
                if self.claim(me | CONTENDED) {
                    return Ok(FirstTry(false));
                }
                continue;
            }
            let flagged = seen | CONTENDED;
            let announced = seen == flagged
                || self
                    .word
                    .compare_exchange(seen, flagged, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if announced {
                futex::wait(&self.word, flagged);
            }
        }
    }

    #[inline]
    pub(super) fn release(&self) {
        if self.word.swap(0, Ordering::Release) & CONTENDED != 0 {
            futex::wake_one(&self.word);
        }
        held::sub(self.rank);
    }
}

/// Whether the calling thread holds a plain lock, whichever.
#[cfg(not(loom))]
pub(crate) fn holds_lock() -> bool {
    held::any()
}

/// Models have no signal handlers.
#[cfg(loom)]
mod held {
    use super::Rank;

    pub(super) fn add(_: Rank) {}

    pub(super) fn sub(_: Rank) {}

    pub(super) fn any_above(_: Rank) -> bool {
        false
    }

    pub(super) fn another_batch() -> bool {
        false
    }

    pub(super) fn another_net() -> bool {
        false
    }
}

/// Whether a lock was free when first looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstTry(pub(super) bool);

// SAFETY: only the thread whose compare-and-swap from zero succeeded holds the lock until it stores
// zero again; acquire on the first and release on the second order what happens in between.
#[allow(unsafe_code, reason = "promises mutual exclusion")]
unsafe impl RawLock for RawMutex {
    type Held = ();

    #[inline]
    fn lock(&self) -> Result<(), Reentered> {
        self.acquire().map(|_| ())
    }

    #[inline]
    fn try_lock(&self) -> Option<()> {
        held::add(self.rank);
        let taken = self.claim(ThreadToken::current().word());
        if !taken {
            held::sub(self.rank);
        }
        taken.then_some(())
    }

    fn is_mine(&self) -> bool {
        Self::is_mine(self)
    }

    #[inline]
    unsafe fn unlock(&self, (): ()) {
        self.release();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn lock_held_by_this_thread_is_reentered() {
        let lock = Mutex::new(1);
        let guard = lock.lock().unwrap();
        assert_eq!(lock.lock().map(|_| ()), Err(Reentered));
        assert!(lock.try_lock().is_none());
        drop(guard);
        assert_eq!(*lock.lock().unwrap(), 1);
    }

    #[test]
    fn lock_wanted_by_others_stays_known_as_ours() {
        let lock = Mutex::new(());
        let guard = lock.lock().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| drop(lock.lock().unwrap()));
            while lock.raw.word.load(Ordering::Relaxed) & CONTENDED == 0 {
                thread::yield_now();
            }
            assert_eq!(lock.lock().map(|_| ()), Err(Reentered));
            drop(guard);
        });
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn increments_under_the_lock_are_never_lost() {
        const THREADS: usize = 4;
        const ROUNDS: usize = 20_000;
        let lock = Mutex::new(0);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| (0..ROUNDS).for_each(|_| *lock.lock().unwrap() += 1));
            }
        });
        assert_eq!(*lock.lock().unwrap(), THREADS * ROUNDS);
    }
}
