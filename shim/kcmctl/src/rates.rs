//! How fast counters move between two looks at a page.

use serde_json::{Map, Value, json};

use crate::layout::{PSOCK_COUNTERS, STACK_COUNTERS};
use crate::page::Page;

/// What a second brought.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Messages and bytes of KCM, in the order of a psock's first four counters.
    pub(crate) kcm: [f64; 4],
    /// Frames and bytes of the stack, in the order of its first four counters.
    pub(crate) stack: [f64; 4],
}

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
        let of = |now: &[u64], before: &[u64]| {
            let mut rates = [0.0; 4];
            for (rate, (now, before)) in rates.iter_mut().zip(now.iter().zip(before)) {
                *rate = now.saturating_sub(*before) as f64 * 1e9 / span.max(1) as f64;
            }
            rates
        };
        Self {
            kcm: of(&now.totals.psock, &before.totals.psock),
            stack: match (&now.stack, &before.stack) {
                (Some(now), Some(before)) => of(&now.counters, &before.counters),
                _ => [0.0; 4],
            },
        }
    }

    /// As a JSON object; the stack's only where there is one.
    pub(crate) fn json(&self, page: &Page) -> Value {
        let object = |names: [&str; 4], rates: [f64; 4]| {
            let all = names.into_iter().zip(rates);
            all.map(|(name, rate)| (name.to_owned(), json!(rate)))
                .collect::<Map<_, _>>()
        };
        let mut all = object(first(&PSOCK_COUNTERS), self.kcm);
        if page.stack.is_some() {
            let stack = object(first(&STACK_COUNTERS), self.stack);
            all.insert("stack".to_owned(), Value::Object(stack));
        }
        Value::Object(all)
    }
}

/// The first four names.
fn first(names: &[&'static str]) -> [&'static str; 4] {
    std::array::from_fn(|at| names[at])
}
