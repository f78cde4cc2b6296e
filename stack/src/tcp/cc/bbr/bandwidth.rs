//! The bandwidth filter: the most of each of the last rounds (BBR.BtlBwFilter).

/// Rounds the filter remembers.
const ROUNDS: usize = 10;

/// Bytes per microsecond.
#[derive(Debug, Default)]
pub(super) struct Bandwidth {
    best: [f64; ROUNDS],
    round: usize,
}

impl Bandwidth {
    /// The estimate; zero before the first sample.
    pub(super) fn get(&self) -> f64 {
        self.best.iter().copied().fold(0.0, f64::max)
    }

    /// A round begins and the oldest is forgotten. What the path could do stays true if the samples of
    /// the new one will show less for reasons of the sender's.
    pub(super) fn begin_round(&mut self, keeps: bool) {
        let known = self.get();
        self.round = (self.round + 1) % ROUNDS;
        self.best[self.round] = if keeps { known } else { 0.0 };
    }

    pub(super) fn sample(&mut self, rate: f64) {
        let best = &mut self.best[self.round];
        *best = best.max(rate);
    }
}
