//! How often the program's own threads may write the page.

use kcm_mux::Nanos;

use super::PERIOD;

/// Decisions that are visible at once: those of a program that starts, or of a person who tries
/// something. A program that attaches thousands of connections a second pays for one in [`PERIOD`].
const BURST: u32 = 32;

/// A bucket of writings, refilled by one in each period.
pub(super) struct Credit {
    left: u32,
    refilled: Nanos,
}

impl Credit {
    pub(super) const fn new() -> Self {
        Self {
            left: BURST,
            refilled: 0,
        }
    }

    /// Whether a writing may be made now.
    pub(super) fn take(&mut self, now: Nanos) -> bool {
        let periods = now.saturating_sub(self.refilled) / PERIOD;
        if periods > 0 {
            self.left = BURST.min(
                self.left
                    .saturating_add(periods.min(u64::from(BURST)) as u32),
            );
            self.refilled = now;
        }
        let granted = self.left > 0;
        self.left -= u32::from(granted);
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_granted_and_then_one_a_period() {
        let mut credit = Credit::new();
        let start = 1000 * PERIOD;
        assert!((0..BURST).all(|_| credit.take(start)));
        assert!(!credit.take(start + PERIOD - 1));
        assert!(credit.take(start + PERIOD));
        assert!(!credit.take(start + PERIOD));
        assert!((0..BURST).all(|_| credit.take(start + 1000 * PERIOD)));
        assert!(!credit.take(start + 1000 * PERIOD));
    }
}
