//! Who am I: one register read, valid before, during and after everything libc does for a thread.

use core::sync::atomic::{AtomicUsize, Ordering};

/// Identity of a thread among the live threads of its process.
///
/// It is the address of the thread's control block: unique while the thread lives, and readable in a signal handler, without
/// thread-local storage (whose first use may allocate in a library loaded by `dlopen`) and without
/// the system call that `gettid` is.
///
/// Two threads share a token only when made by `clone(CLONE_VM)` without `CLONE_SETTLS`. Such
/// threads share `errno` too and cannot call libc, hence not us. A `vfork` child shares its parent's
/// while the parent is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadToken(usize);

impl ThreadToken {
    /// Set in every token, so that not even its lower 32 bits, which a futex compares, are zero.
    const PRESENT: usize = 0b0010;

    /// Where a token carries the generation of its process. Control blocks are aligned to 16 and more.
    const GENERATION: usize = 0b1100;

    /// Token of the calling thread.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        let block = thread_pointer() & !(Self::GENERATION | 0b11);
        Self(block | GENERATION.load(Ordering::Relaxed) | Self::PRESENT)
    }

    /// The token as a word: never zero, and its bit 0 is clear for the user's own flag.
    #[inline(always)]
    pub(crate) const fn word(self) -> usize {
        self.0
    }

    /// Whether the token in `word` is that of a thread which stayed behind at a fork, or of the
    /// forking thread from before it.
    pub(crate) fn is_of_the_past(word: usize) -> bool {
        word & Self::GENERATION != GENERATION.load(Ordering::Relaxed)
    }
}

/// Forks between this process and its first ancestor with the shim, modulo four, as tokens carry it.
static GENERATION: AtomicUsize = AtomicUsize::new(0);

/// Gives the one thread of a forked child a token that none of the parent's threads had.
pub(super) fn begin_generation() {
    let next = GENERATION.load(Ordering::Relaxed).wrapping_add(0b0100) & ThreadToken::GENERATION;
    GENERATION.store(next, Ordering::Relaxed);
}

/// The thread control block's own address, which the x86-64 psABI keeps in its first word.
#[cfg(all(target_arch = "x86_64", not(loom)))]
#[inline(always)]
#[allow(unsafe_code, reason = "no safe way to read the thread pointer")]
fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: reads one word of the thread control block, which every thread that can run Rust
    // code has (ELF Handling for Thread-Local Storage §3.4.6); touches neither stack nor flags.
    unsafe {
        core::arch::asm!("mov {}, fs:[0]", out(reg) pointer,
            options(nostack, preserves_flags, readonly, pure));
    }
    pointer
}

/// The thread pointer register.
#[cfg(all(target_arch = "aarch64", not(loom)))]
#[inline(always)]
#[allow(unsafe_code, reason = "no safe way to read the thread pointer")]
fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: reads a register that user code may always read; touches no memory.
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer,
            options(nostack, preserves_flags, nomem, pure));
    }
    pointer
}

/// A number of the model thread, spaced like an address.
#[cfg(loom)]
fn thread_pointer() -> usize {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    loom::thread::current().id().hash(&mut hasher);
    (hasher.finish() as usize) << 4
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn token_is_stable_in_a_thread_and_differs_between_live_threads() {
        let mine = ThreadToken::current();
        assert_eq!(mine, ThreadToken::current());
        assert_ne!(mine.word() as u32, 0);
        assert_eq!(mine.word() & 1, 0);
        let other = std::thread::spawn(ThreadToken::current).join().unwrap();
        assert_ne!(mine, other);
    }
}
