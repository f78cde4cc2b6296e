//! CUBIC (RFC 9438) in whole segments, as Linux has it: at the windows that a path with losses allows, what
//! is rounded is a good part of what is gained.

use super::{AckSample, Window};
use crate::time::Instant;

/// §4.6, in 1024ths.
const BETA: u64 = 717;
/// §5.1.
const C: f64 = 0.4;
/// Windows acknowledged, in eighths, for a segment more in the Reno-friendly region (§4.3: the inverse of
/// alpha). Above the old W_max, where the RFC goes on with one window, Linux keeps to it.
const RENO_EIGHTHS: u64 = 15;
/// Least and most segments acknowledged for one of growth: half the window in a round trip, a hundredth where
/// the function is flat, a twentieth while no loss has shown what the path carries.
const INTERVAL_MIN: u64 = 2;
const WINDOWS_MAX: u64 = 100;
const INTERVAL_UNKNOWN: u64 = 20;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cubic {
    epoch: Option<Instant>,
    /// Seconds from the epoch's start to W_max.
    k: f64,
    /// Segments at the plateau.
    origin: u64,
    /// W_est in segments, and the bytes acknowledged towards its next.
    w_est: u64,
    acked: u64,
}

impl Cubic {
    pub(super) fn restart_epoch(&mut self) {
        self.epoch = None;
    }

    /// How many bytes are to be acknowledged for a segment of growth (§4.2 to §4.5), `bytes` of them by this
    /// ACK.
    pub(super) fn interval(&mut self, w: &Window, a: &AckSample, bytes: u32) -> u64 {
        let mss = u64::from(a.mss);
        let cwnd = u64::from(w.cwnd) / mss;
        let epoch = *self.epoch.get_or_insert_with(|| {
            self.origin = cwnd.max(u64::from(w.w_max) / mss);
            self.k = ((self.origin - cwnd) as f64 / C).cbrt();
            self.w_est = cwnd;
            self.acked = 0;
            a.now
        });
        let rtt = f64::from(a.srtt_us) / 1e6;
        let t = a.now.since(epoch).as_secs_f64() + rtt - self.k;
        let offset = (C * t.powi(3)).abs() as u64;
        let target = if t < 0.0 {
            self.origin - offset.min(self.origin)
        } else {
            self.origin + offset
        };
        let interval = |target: u64| match target.saturating_sub(cwnd) {
            0 => WINDOWS_MAX * cwnd,
            ahead => cwnd / ahead,
        };
        self.acked += u64::from(bytes);
        let step = (cwnd * RENO_EIGHTHS / 8).max(1) * mss;
        self.w_est += self.acked / step;
        self.acked %= step;
        let mut segments = interval(target).min(interval(self.w_est));
        if w.w_max == 0 {
            segments = segments.min(INTERVAL_UNKNOWN);
        }
        segments.max(INTERVAL_MIN) * mss
    }

    /// §4.8: the next congestion avoidance starts at its own plateau.
    pub(super) fn on_timeout(&mut self, w: &mut Window) {
        self.epoch = None;
        w.w_max = 0;
    }

    /// §4.6 and §4.7 (fast convergence): the new ssthresh in bytes.
    pub(super) fn on_congestion(&mut self, w: &mut Window, mss: u32) -> u32 {
        self.epoch = None;
        w.w_max = if w.cwnd < w.w_max {
            (u64::from(w.cwnd) * (1024 + BETA) / 2048) as u32
        } else {
            w.cwnd
        };
        super::threshold(w.cwnd, BETA, mss)
    }
}
