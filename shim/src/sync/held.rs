//! Plain locks that the calling thread holds, or is about to take or to have given back.
//!
//! Counts beside the thread's own control block, one for each [`Rank`]. Rust's thread-local storage
//! would do, but a library's is reached through `__tls_get_addr`, twice a lock: a twentieth of a send.
//! These are 32 bytes of *initial-exec* storage instead (ELF Handling for Thread-Local Storage §4.3),
//! of which the loader keeps some spare for libraries that are opened late. Counting is one
//! instruction on x86-64, so that a signal handler sees the count before or after, never half of it.

use super::Rank;

/// Ranks there is room for: three words of four counts.
const RANKS_MAX: usize = 4 * RANK_WORDS;
const RANK_WORDS: usize = 3;
/// The last word is about locks of [`Rank::Batch`]: how many are held by their bias, and above that
/// whether the thread takes several locks of one rank on purpose.
const BATCHES: usize = RANK_WORDS;
const ON_PURPOSE: u64 = 1 << 32;
const WORDS: usize = RANK_WORDS + 1;
const _: () = assert!((Rank::Heap as usize) < RANKS_MAX);

/// Bits of a count: a fork holds every lock of a rank at once.
const COUNT_BITS: u32 = u16::BITS;

const fn place(rank: Rank) -> (usize, u32) {
    (rank as usize / 4, rank as u32 % 4 * COUNT_BITS)
}

#[inline(always)]
pub(super) fn add(rank: Rank) {
    let (word, shift) = place(rank);
    words::add(word, 1 << shift);
}

#[inline(always)]
pub(super) fn sub(rank: Rank) {
    let (word, shift) = place(rank);
    words::add(word, (1_u64 << shift).wrapping_neg());
}

pub(super) fn any() -> bool {
    (0..RANK_WORDS).any(|word| words::get(word) != 0)
}

/// A biased lock is about to be entered by its bias.
#[inline(always)]
pub(super) fn enter_by_bias() {
    words::add(BATCHES, 1);
}

/// A biased lock was left by its bias.
#[inline(always)]
pub(super) fn leave_by_bias() {
    words::add(BATCHES, 1_u64.wrapping_neg());
}

/// Whether the thread holds another lock of [`Rank::Batch`] than the one it is taking. No code of ours
/// does but what says so: a signal handler has interrupted the thread in one, and whoever has the other
/// may be waiting for it in just the same way.
pub(super) fn another_batch() -> bool {
    let (word, shift) = place(Rank::Batch);
    let plainly = words::get(word) >> shift & u64::from(u16::MAX);
    let by_bias = words::get(BATCHES);
    by_bias & ON_PURPOSE == 0 && plainly + by_bias > 1
}

/// Whether the thread holds another lock of [`Rank::Net`] than the one it is taking: as with batches.
pub(super) fn another_net() -> bool {
    let (word, shift) = place(Rank::Net);
    let held = words::get(word) >> shift & u64::from(u16::MAX);
    held > 1 && words::get(BATCHES) & ON_PURPOSE == 0
}

/// Several batches, or engines, may be held together until this is dropped: by one thread at a time.
pub(crate) struct Together(());

impl Together {
    pub(crate) fn begin() -> Self {
        words::add(BATCHES, ON_PURPOSE);
        Self(())
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        words::add(BATCHES, ON_PURPOSE.wrapping_neg());
    }
}

/// `Any` is above nothing and beneath nothing.
pub(super) fn any_above(rank: Rank) -> bool {
    if rank == Rank::Any || rank == Rank::Heap {
        return false;
    }
    let (first, shift) = place(rank);
    let above_in_word = words::get(first) >> shift >> COUNT_BITS;
    above_in_word != 0 || (first + 1..RANK_WORDS).any(|word| words::get(word) != 0)
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "reads and writes a register-relative word")]
mod words {
    use core::arch::{asm, global_asm};

    global_asm!(
        ".pushsection .tbss.kcmshim_locks_held, \"awT\", @nobits",
        ".balign 32",
        ".globl kcmshim_locks_held",
        ".hidden kcmshim_locks_held",
        ".type kcmshim_locks_held, @tls_object",
        ".size kcmshim_locks_held, 32",
        "kcmshim_locks_held:",
        ".zero 32",
        ".popsection",
    );

    #[inline(always)]
    pub(super) fn add(word: usize, value: u64) {
        debug_assert!(word < super::WORDS);
        // SAFETY: the GOT entry holds the offset of this library's words from the thread pointer; only
        // the calling thread knows them, and `word` is one of them. No stack is touched.
        unsafe {
            asm!(
                "mov {at}, qword ptr [rip + kcmshim_locks_held@GOTTPOFF]",
                "add qword ptr fs:[{at} + 8 * {word}], {value}",
                at = out(reg) _,
                word = in(reg) word,
                value = in(reg) value,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    pub(super) fn get(word: usize) -> u64 {
        debug_assert!(word < super::WORDS);
        let value: u64;
        // SAFETY: as for `add`.
        unsafe {
            asm!(
                "mov {at}, qword ptr [rip + kcmshim_locks_held@GOTTPOFF]",
                "mov {at}, qword ptr fs:[{at} + 8 * {word}]",
                at = out(reg) value,
                word = in(reg) word,
                options(nostack, preserves_flags, readonly),
            );
        }
        value
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod words {
    use core::cell::Cell;

    use super::WORDS;

    thread_local! {
        static HELD: [Cell<u64>; WORDS] = const { [const { Cell::new(0) }; WORDS] };
    }

    pub(super) fn add(word: usize, value: u64) {
        HELD.with(|held| held[word].set(held[word].get().wrapping_add(value)));
    }

    pub(super) fn get(word: usize) -> u64 {
        HELD.with(|held| held[word].get())
    }
}
