//! What is known about pages: a direct-mapped table, shared by all threads, of single words that are
//! loaded and stored whole. No lock, no thread-local storage; a lost store costs another probe.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Access, PAGE_BITS, Page, USER_END};

/// What is known about this process's pages.
pub(super) static KNOWN: Known = Known::new();

/// Forgets everything: pages or rights have gone. To be called after each call that may have done
/// that, and in the child of a fork, for which pages may have been left out.
pub(crate) fn invalidate() {
    KNOWN.forget();
}

/// Pages remembered: 32 MiB of buffers in use at one time. 64 KiB of address space, of which the
/// pages that were hit take memory.
const ENTRIES: usize = 1 << 13;

/// Pages that were found good, in the generation of memory that the table holds.
pub(super) struct Known {
    /// A bit that tells an entry from an empty one, the page, the generation, the access:
    ///
    /// ```text
    ///   63       62..19   18..1             0
    ///   PRESENT  page     generation mod G  writable
    /// ```
    entries: [AtomicU64; ENTRIES],
    /// Times that memory was taken away from the program.
    generation: AtomicU64,
}

const PRESENT: u64 = 1 << 63;
const WRITABLE: u64 = 1;
const GENERATION_SHIFT: u32 = 1;
const GENERATION_BITS: u32 = 18;
const GENERATIONS: u64 = 1 << GENERATION_BITS;
const PAGE_SHIFT: u32 = GENERATION_SHIFT + GENERATION_BITS;
const _: () = assert!(USER_END.ilog2() - PAGE_BITS + PAGE_SHIFT == PRESENT.ilog2());

/// A point in time, as entries carry it. What a probe finds belongs to the point before it, so that
/// memory taken away meanwhile is not believed to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u64);

impl Known {
    const fn new() -> Self {
        Self {
            entries: [const { AtomicU64::new(0) }; ENTRIES],
            generation: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(super) fn now(&self) -> Generation {
        let count = self.generation.load(Ordering::Acquire);
        Generation((count % GENERATIONS) << GENERATION_SHIFT)
    }

    fn forget(&self) {
        let now = self
            .generation
            .fetch_add(1, Ordering::AcqRel)
            .wrapping_add(1);
        if now.is_multiple_of(GENERATIONS) {
            // Generations as entries carry them start anew; none of the last round may survive.
            for entry in &self.entries {
                entry.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Whether `page` was found good for `access` at `now`.
    #[inline]
    pub(super) fn holds(&self, page: Page, access: Access, now: Generation) -> bool {
        let found = self.entry(page).load(Ordering::Relaxed);
        let writable = word(page, Access::Write, now);
        match access {
            Access::Write => found == writable,
            Access::Read => found | WRITABLE == writable,
        }
    }

    /// Remembers that `page` was found good for `access` at `now`.
    pub(super) fn learn(&self, page: Page, access: Access, now: Generation) {
        if !self.holds(page, access, now) {
            self.entry(page)
                .store(word(page, access, now), Ordering::Relaxed);
        }
    }

    #[inline]
    fn entry(&self, page: Page) -> &AtomicU64 {
        &self.entries[page.0 % ENTRIES]
    }
}

#[inline]
fn word(page: Page, access: Access, now: Generation) -> u64 {
    let writable = match access {
        Access::Read => 0,
        Access::Write => WRITABLE,
    };
    PRESENT | (page.0 as u64) << PAGE_SHIFT | now.0 | writable
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: Page = Page(0x7_1234_5678);

    #[test]
    fn what_is_learned_holds_until_memory_is_taken_away() {
        static KNOWN: Known = Known::new();
        let now = KNOWN.now();
        let knows = |access| KNOWN.holds(PAGE, access, KNOWN.now());
        assert!(!knows(Access::Read));
        KNOWN.learn(PAGE, Access::Read, now);
        assert!(knows(Access::Read) && !knows(Access::Write));
        KNOWN.learn(PAGE, Access::Write, now);
        KNOWN.learn(PAGE, Access::Read, now);
        assert!(knows(Access::Read) && knows(Access::Write));
        KNOWN.forget();
        assert!(!knows(Access::Read) && !knows(Access::Write));
        KNOWN.learn(PAGE, Access::Write, now);
        assert!(!knows(Access::Read), "learned of a probe that began before");
    }

    #[test]
    fn pages_of_one_entry_are_told_apart() {
        static KNOWN: Known = Known::new();
        let now = KNOWN.now();
        for other in [
            Page(PAGE.0 + ENTRIES),
            Page((USER_END >> PAGE_BITS) - 1),
            Page(0),
        ] {
            KNOWN.learn(PAGE, Access::Write, now);
            assert!(!KNOWN.holds(other, Access::Read, now));
            KNOWN.learn(other, Access::Write, now);
            assert!(KNOWN.holds(other, Access::Write, now));
        }
    }

    #[test]
    fn old_knowledge_does_not_return_when_generations_start_anew() {
        static KNOWN: Known = Known::new();
        KNOWN.learn(PAGE, Access::Write, KNOWN.now());
        for _ in 0..GENERATIONS {
            KNOWN.forget();
            assert!(!KNOWN.holds(PAGE, Access::Read, KNOWN.now()));
        }
    }
}
