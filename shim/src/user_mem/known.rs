//! What is known about pages: a direct-mapped table, shared by all threads, of single words that are
//! loaded and stored whole. No lock, no thread-local storage; a lost store costs another probe.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Access, PAGE_BITS, Page};

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
    /// Where the page starts, the generation and the access that were good; 0 is no page, since no
    /// generation is:
    ///
    /// ```text
    ///   63..12   11..1                    0
    ///   address  generation, 1 and above  writable
    /// ```
    entries: [AtomicU64; ENTRIES],
    /// Which generation of memory it is, as entries carry it: changes when memory is taken away from
    /// the program.
    generation: AtomicU64,
}

const WRITABLE: u64 = 1;
const OFFSET: u64 = (1 << PAGE_BITS) - 1;
const FIRST: u64 = 1 << 1;

/// A point in time, as entries carry it. What a probe finds belongs to the point before it, so that
/// memory taken away meanwhile is not believed to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u64);

impl Known {
    const fn new() -> Self {
        Self {
            entries: [const { AtomicU64::new(0) }; ENTRIES],
            generation: AtomicU64::new(FIRST),
        }
    }

    #[inline(always)]
    pub(super) fn now(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    fn forget(&self) {
        let next = |now| {
            Some(if now + FIRST > OFFSET {
                FIRST
            } else {
                now + FIRST
            })
        };
        let before = self
            .generation
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
        if before.is_ok_and(|now| now + FIRST > OFFSET) {
            // Generations start anew; no entry of the last round may survive.
            for entry in &self.entries {
                entry.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Whether `len` bytes at `addr` lie in one page that is known to be good for `access`.
    #[inline(always)]
    pub(super) fn covers(&self, addr: usize, len: usize, access: Access) -> bool {
        let room = (1 << PAGE_BITS) - (addr & OFFSET as usize);
        len <= room && self.holds(Page(addr >> PAGE_BITS), access, self.now())
    }

    /// Whether `page` was found good for `access` at `now`.
    #[inline(always)]
    pub(super) fn holds(&self, page: Page, access: Access, now: Generation) -> bool {
        let found = self.entry(page).load(Ordering::Relaxed);
        let writable = word(page, Access::Write, now);
        match access {
            Access::Write => found == writable,
            Access::Read => found | WRITABLE == writable,
        }
    }

    /// Remembers that `page` was found good for `access` at `now`, unless that is long ago.
    pub(super) fn learn(&self, page: Page, access: Access, now: Generation) {
        if !self.holds(page, access, now) && self.now() == now {
            self.entry(page)
                .store(word(page, access, now), Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn entry(&self, page: Page) -> &AtomicU64 {
        &self.entries[page.0 % ENTRIES]
    }
}

#[inline(always)]
fn word(page: Page, access: Access, now: Generation) -> u64 {
    let writable = match access {
        Access::Read => 0,
        Access::Write => WRITABLE,
    };
    (page.0 as u64) << PAGE_BITS | now.0 | writable
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
            Page((super::super::USER_END >> PAGE_BITS) - 1),
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
        for _ in 0..2 * OFFSET / FIRST {
            KNOWN.forget();
            assert!(!KNOWN.holds(PAGE, Access::Read, KNOWN.now()));
        }
    }
}
