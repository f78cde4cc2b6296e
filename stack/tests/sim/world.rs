//! Virtual time, whatever it passes for.

use std::time::Duration;

use kcm_stack::Instant;

/// Stacks and what joins them, in one time.
pub(crate) trait World {
    fn now(&self) -> Instant;

    /// Advances to the next thing that happens; false if nothing will before `until`, which it then
    /// is.
    fn step(&mut self, until: Instant) -> bool;

    fn run_for(&mut self, d: Duration) {
        let until = self.now() + d;
        while self.step(until) {}
    }

    /// Steps until `done` holds; panics when `limit` of virtual time has passed.
    fn run_until(&mut self, limit: Duration, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let until = self.now() + limit;
        while !done(self) {
            let more = self.step(until);
            assert!(more || done(self), "not reached within {limit:?}: {what}");
            if !more {
                return;
            }
        }
    }
}
