//! A budget of events per second.

use crate::time::Instant;

/// Counts down within each second of the caller's clock.
#[derive(Debug, Clone)]
pub(crate) struct RateLimit {
    per_sec: u32,
    left: u32,
    second: u64,
}

impl RateLimit {
    pub(crate) const fn new(per_sec: u32) -> Self {
        Self {
            per_sec,
            left: per_sec,
            second: 0,
        }
    }

    /// Takes one; false when this second's are spent.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let second = now.as_micros() / 1_000_000;
        if second != self.second {
            self.second = second;
            self.left = self.per_sec;
        }
        let ok = self.left > 0;
        self.left -= u32::from(ok);
        ok
    }
}
