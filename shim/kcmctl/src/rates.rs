//! How fast counters move between two looks at a page.

use crate::page::Page;

/// Messages and bytes a second, in the order of a psock's first four counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates(pub(crate) [f64; 4]);

impl Rates {
    /// From `before` to `now` of the same process. A page that was not written meanwhile shows no
    /// change; `elapsed_ns` is the time between the looks then as ever.
    pub(crate) fn between(before: &Page, now: &Page, elapsed_ns: u64) -> Self {
        let written = now
            .updated_monotonic
            .saturating_sub(before.updated_monotonic);
        // A busy page is written at its own pace: its time is the better one.
        let span = if written > elapsed_ns / 2 {
            written
        } else {
            elapsed_ns
        };
        let mut rates = Self::default();
        let counters = now.totals.psock.iter().zip(&before.totals.psock);
        for (rate, (now, before)) in rates.0.iter_mut().zip(counters) {
            *rate = now.saturating_sub(*before) as f64 * 1e9 / span.max(1) as f64;
        }
        rates
    }
}
