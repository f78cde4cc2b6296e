//! How far ACKs run ahead of the bandwidth (BBR.extra_acked, draft-cardwell-iccrg-bbr-congestion-control-02
//! §4.5.5): links and late threads deliver them in bunches, and the window must last from one to the next.

use crate::time::Instant;

/// Rounds after which the older half of the filter is forgotten.
const HALF_ROUNDS: u8 = 5;
/// Longest bunch that is made up for.
const LONGEST_US: f64 = 100_000.0;
/// An epoch this long says all it will; the sums stay small.
const EPOCH_BYTES_MAX: f64 = (1 << 30) as f64;

#[derive(Debug, Default)]
pub(super) struct Aggregation {
    /// When the present epoch began, and the bytes acknowledged since.
    since: Option<Instant>,
    acked: f64,
    /// Most bytes ahead in this half of the filter and the one before.
    most: [f64; 2],
    rounds: u8,
}

impl Aggregation {
    /// The flow was silent: time without ACKs says nothing.
    pub(super) fn restart(&mut self) {
        self.since = None;
    }

    /// One ACK, at `now`, of `acked` bytes. `bandwidth` in bytes per microsecond.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        acked: u32,
        cwnd: u32,
        bandwidth: f64,
        round_start: bool,
    ) {
        if round_start {
            self.rounds += 1;
            if self.rounds >= HALF_ROUNDS {
                self.rounds = 0;
                self.most = [0.0, self.most[0]];
            }
        }
        let since = *self.since.get_or_insert(now);
        let mut expected = bandwidth * now.since(since).as_micros() as f64;
        if self.acked <= expected || self.acked >= EPOCH_BYTES_MAX {
            self.since = Some(now);
            self.acked = 0.0;
            expected = 0.0;
        }
        self.acked += f64::from(acked);
        let ahead = (self.acked - expected).min(f64::from(cwnd));
        self.most[0] = self.most[0].max(ahead);
    }

    /// Bytes the window adds.
    pub(super) fn room(&self, bandwidth: f64) -> u32 {
        let most = self.most[0].max(self.most[1]);
        most.min(bandwidth * LONGEST_US) as u32
    }
}
