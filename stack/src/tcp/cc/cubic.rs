//! CUBIC (RFC 9438). Windows in bytes outside, in segments and seconds inside, as the RFC writes
//! its formulas.

use super::{AckSample, Window};
use crate::time::Instant;

/// §4.6.
const BETA: f64 = 0.7;
/// §5.1.
const C: f64 = 0.4;
/// §4.3: additive increase that gives the Reno-friendly region Reno's average rate.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// Window growth per round trip before the first loss (Linux bounds its `cnt` by 20).
const UNKNOWN_PATH_GROWTH: f64 = 1.05;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cubic {
    epoch: Option<Instant>,
    /// Seconds from the epoch's start to W_max.
    k: f64,
    /// Segments at the plateau.
    origin: f64,
    w_est: f64,
    /// Fractional segments of growth not yet granted.
    credit: f64,
}

impl Cubic {
    pub(super) fn restart_epoch(&mut self) {
        self.epoch = None;
    }

    /// §4.2 to §4.5.
    pub(super) fn on_ack(&mut self, w: &mut Window, a: &AckSample, bytes: u32) {
        let mss = f64::from(a.mss);
        let cwnd = f64::from(w.cwnd) / mss;
        let acked = f64::from(bytes) / mss;
        let epoch = *self.epoch.get_or_insert_with(|| {
            let w_max = f64::from(w.w_max) / mss;
            self.origin = w_max.max(cwnd);
            self.k = ((self.origin - cwnd) / C).cbrt();
            self.w_est = cwnd;
            self.credit = 0.0;
            a.now
        });
        let rtt = f64::from(a.srtt_us) / 1e6;
        let t = a.now.since(epoch).as_secs_f64() + rtt;
        let target = (self.origin + C * (t - self.k).powi(3)).clamp(cwnd, 1.5 * cwnd);
        // §4.3: once past the old W_max, Reno's own slope.
        let alpha = if self.w_est >= self.origin {
            1.0
        } else {
            ALPHA
        };
        self.w_est += alpha * acked / cwnd;
        let mut target = target.max(self.w_est);
        if w.w_max == 0 {
            // As Linux: while no loss has shown what the path carries, the cubic function is too
            // timid after an early exit from slow start.
            target = target.max(cwnd * UNKNOWN_PATH_GROWTH);
        }
        self.credit += (target - cwnd) / cwnd * acked;
        if self.credit >= 1.0 {
            let whole = self.credit.floor();
            self.credit -= whole;
            w.grow((whole * mss) as u32);
        }
    }

    /// §4.6 and §4.7 (fast convergence): the new ssthresh in bytes.
    pub(super) fn on_congestion(&mut self, w: &mut Window, mss: u32) -> u32 {
        self.epoch = None;
        let cwnd = f64::from(w.cwnd);
        w.w_max = if w.cwnd < w.w_max {
            (cwnd * (1.0 + BETA) / 2.0) as u32
        } else {
            w.cwnd
        };
        ((cwnd * BETA) as u32).max(2 * mss)
    }
}
