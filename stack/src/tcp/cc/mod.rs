//! Congestion control. Owns the growth and the cut of the window; recovery itself (what to
//! retransmit, PRR) is `input.rs`'s.

mod bbr;
mod cubic;
mod hystart;
mod newreno;
mod rate;

pub(crate) use bbr::{Bbr, BbrAck};
pub(crate) use rate::{Sampler, Snapshot};

use crate::limits::{CWND_BYTES_MAX, INITIAL_WINDOW_SEGMENTS};
use crate::time::Instant;

/// Algorithm of a connection (TCP_CONGESTION).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CongestionControl {
    /// RFC 9438 with HyStart++ (RFC 9406).
    #[default]
    Cubic,
    /// RFC 5681 and 6582.
    NewReno,
    /// BBR version 1, paced.
    Bbr,
}

impl CongestionControl {
    /// The name TCP_CONGESTION uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::NewReno => "reno",
            Self::Bbr => "bbr",
        }
    }

    /// The algorithm of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Cubic, Self::NewReno, Self::Bbr]
            .into_iter()
            .find(|a| a.name() == name)
    }
}

/// The window and threshold, in bytes: what survives while a connection is idle.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) cwnd: u32,
    pub(crate) ssthresh: u32,
    /// CUBIC's W_max; zero before the first loss.
    pub(crate) w_max: u32,
}

impl Window {
    /// RFC 6928: ten segments.
    pub(crate) fn initial(mss: u32) -> Self {
        Self {
            cwnd: INITIAL_WINDOW_SEGMENTS * mss,
            ssthresh: CWND_BYTES_MAX,
            w_max: 0,
        }
    }

    pub(crate) fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    fn grow(&mut self, bytes: u32) {
        self.cwnd = self.cwnd.saturating_add(bytes).min(CWND_BYTES_MAX);
    }
}

/// A threshold as Linux has it, of so many 1024ths of the window: whole segments, at least two. What is
/// left over would add up to half a segment at each cut, which is a lot of a small window.
fn threshold(cwnd: u32, of_1024: u64, mss: u32) -> u32 {
    let bytes = (u64::from(cwnd) * of_1024 / 1024) as u32;
    (bytes / mss).max(2) * mss
}

/// One cumulative ACK as congestion control sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AckSample {
    pub(crate) now: Instant,
    /// Bytes newly delivered.
    pub(crate) bytes: u32,
    pub(crate) mss: u32,
    /// RTT measured by this ACK.
    pub(crate) rtt_us: Option<u32>,
    pub(crate) srtt_us: u32,
    /// The flight filled the window; otherwise the window must not grow (RFC 7661's spirit).
    pub(crate) cwnd_limited: bool,
    /// This ACK starts a new round trip.
    pub(crate) round_start: bool,
}

/// Algorithm state that lives only while data is in flight.
#[derive(Debug, Default)]
pub(crate) struct CcState {
    /// BBR's model of the path, from the first ACK on. It outlives idle times, as the path does.
    pub(crate) bbr: Option<Box<Bbr>>,
    cubic: cubic::Cubic,
    hystart: hystart::HyStart,
    /// Bytes acknowledged towards the next segment of linear growth.
    acked: u64,
}

impl CcState {
    pub(crate) fn on_ack(&mut self, alg: CongestionControl, w: &mut Window, a: &AckSample) {
        if alg == CongestionControl::Bbr {
            return;
        }
        let slow_start = w.in_slow_start();
        if slow_start && alg == CongestionControl::Cubic {
            self.hystart.on_ack(w, a);
        }
        if !a.cwnd_limited {
            return;
        }
        let mut bytes = a.bytes;
        if slow_start {
            // Byte counting (RFC 3465); pacing by ACK clock bounds the burst, HyStart++ the exit.
            let room = w.ssthresh - w.cwnd.min(w.ssthresh);
            let used = bytes.min(room);
            w.grow(used / self.hystart.growth_divisor());
            bytes -= used;
        }
        if bytes > 0 && !w.in_slow_start() {
            let interval = match alg {
                CongestionControl::Cubic => self.cubic.interval(w, a, bytes),
                _ => newreno::interval(w),
            };
            if self.acked >= interval {
                // Gathered towards a longer interval: worth one segment, not a burst.
                self.acked = 0;
                w.grow(a.mss);
            }
            self.acked += u64::from(bytes);
            w.grow((self.acked / interval) as u32 * a.mss);
            self.acked %= interval;
        }
    }

    /// The threshold after a congestion event; the caller decides how the window gets there.
    pub(crate) fn on_congestion(&mut self, alg: CongestionControl, w: &mut Window, mss: u32) {
        self.hystart.stop();
        self.acked = 0;
        w.ssthresh = match alg {
            CongestionControl::Cubic => self.cubic.on_congestion(w, mss),
            CongestionControl::NewReno => newreno::ssthresh(w, mss),
            CongestionControl::Bbr => {
                // Loss is no reason to slow down by itself.
                if let Some(bbr) = &mut self.bbr {
                    bbr.save_window(w);
                }
                w.ssthresh
            }
        };
    }

    /// A retransmission timeout: the window starts over, and what it was says nothing any more.
    pub(crate) fn on_timeout(&mut self, alg: CongestionControl, w: &mut Window) {
        if alg == CongestionControl::Cubic {
            self.cubic.on_timeout(w);
        }
    }

    /// A field to read early.
    pub(crate) fn peek(&self) -> u64 {
        self.acked
    }

    /// Time spent idle must not count as time since the last congestion event.
    pub(crate) fn on_idle_restart(&mut self) {
        self.cubic.restart_epoch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(now_ms: u64, mss: u32, bytes: u32, rtt_us: u32) -> AckSample {
        AckSample {
            now: Instant::from_millis(now_ms),
            bytes,
            mss,
            rtt_us: Some(rtt_us),
            srtt_us: rtt_us,
            cwnd_limited: true,
            round_start: false,
        }
    }

    #[test]
    fn slow_start_doubles_per_round_and_stops_at_ssthresh() {
        for alg in [CongestionControl::Cubic, CongestionControl::NewReno] {
            let mut w = Window {
                cwnd: 10_000,
                ssthresh: 18_000,
                w_max: 0,
            };
            let mut cc = CcState::default();
            for _ in 0..10 {
                cc.on_ack(alg, &mut w, &ack(1, 1_000, 1_000, 50_000));
            }
            assert!((18_000..=18_400).contains(&w.cwnd), "{alg:?} {}", w.cwnd);
        }
    }

    #[test]
    fn newreno_adds_one_segment_per_window() {
        let mut w = Window {
            cwnd: 20_000,
            ssthresh: 10_000,
            w_max: 0,
        };
        let mut cc = CcState::default();
        for _ in 0..20 {
            cc.on_ack(
                CongestionControl::NewReno,
                &mut w,
                &ack(1, 1_000, 1_000, 50_000),
            );
        }
        assert_eq!(w.cwnd, 21_000);
        cc.on_congestion(CongestionControl::NewReno, &mut w, 1_000);
        // Half of 21 segments, and those are whole.
        assert_eq!(w.ssthresh, 10_000);
    }

    /// RFC 9438 Figure 1's shape: concave up to W_max near K, convex after it.
    #[test]
    fn cubic_returns_to_w_max_after_k_and_then_accelerates() {
        let mss = 1_000;
        let mut w = Window {
            cwnd: 1_000 * mss,
            ssthresh: 500 * mss,
            w_max: 0,
        };
        let mut cc = CcState::default();
        cc.on_congestion(CongestionControl::Cubic, &mut w, mss);
        assert_eq!(w.ssthresh, 700 * mss);
        w.cwnd = w.ssthresh;
        let k_ms = ((300.0f64 / 0.4).cbrt() * 1_000.0) as u64;
        let mut at_k = 0;
        for step in 0..(2 * k_ms / 100) {
            // A whole window is acknowledged per 100 ms round.
            for _ in 0..w.cwnd / (10 * mss) {
                cc.on_ack(
                    CongestionControl::Cubic,
                    &mut w,
                    &ack(step * 100, mss, 10 * mss, 100_000),
                );
            }
            if step == k_ms / 100 {
                at_k = w.cwnd;
            }
        }
        assert!(at_k.abs_diff(1_000 * mss) < 30 * mss, "at K: {at_k}");
        assert!(w.cwnd > 1_200 * mss, "after 2K: {}", w.cwnd);
    }

    #[test]
    fn cubic_gains_a_twentieth_per_round_before_the_first_loss() {
        let mut w = Window {
            cwnd: 100_000,
            ssthresh: 100_000,
            w_max: 0,
        };
        let mut cc = CcState::default();
        for _ in 0..100 {
            cc.on_ack(
                CongestionControl::Cubic,
                &mut w,
                &ack(1, 1_000, 1_000, 10_000),
            );
        }
        assert!((104_000..=106_000).contains(&w.cwnd), "{}", w.cwnd);
    }

    /// In the Reno-friendly region Linux gains half a segment in a round trip, above the old W_max, too
    /// (tests/scripts/linux.md has the capture).
    #[test]
    fn cubic_keeps_its_slope_above_w_max() {
        let mss = 1_000;
        let mut w = Window {
            cwnd: 7 * mss,
            ssthresh: 7 * mss,
            w_max: 10 * mss,
        };
        let mut cc = CcState::default();
        let mut windows = Vec::new();
        // The ACK that ends the recovery counts, too.
        cc.on_ack(
            CongestionControl::Cubic,
            &mut w,
            &ack(0, mss, 7 * mss, 40_000),
        );
        assert_eq!(w.cwnd, 8 * mss);
        for round in 1..=44 {
            for _ in 0..w.cwnd / mss {
                let a = ack(round * 40, mss, mss, 40_000);
                cc.on_ack(CongestionControl::Cubic, &mut w, &a);
            }
            if round % 4 == 0 {
                windows.push(w.cwnd / mss);
            }
        }
        let linux: Vec<u32> = (10..=30).step_by(2).collect();
        let differs = |(a, b): (&u32, &u32)| a.abs_diff(*b) > 1;
        assert!(!windows.iter().zip(&linux).any(differs), "{windows:?}");
    }

    /// What was gathered while the function was flat must not leave as a burst when it is steep.
    #[test]
    fn growth_gathered_slowly_is_granted_gently() {
        let mss = 1_000;
        let mut w = Window {
            cwnd: 40 * mss,
            ssthresh: 40 * mss,
            w_max: 40 * mss,
        };
        let mut cc = CcState::default();
        for _ in 0..60 {
            cc.on_ack(CongestionControl::Cubic, &mut w, &ack(1, mss, mss, 10_000));
        }
        assert_eq!(w.cwnd, 40 * mss);
        let much_later = ack(8_000, mss, mss, 10_000);
        cc.on_ack(CongestionControl::Cubic, &mut w, &much_later);
        assert_eq!(w.cwnd, 41 * mss);
    }

    #[test]
    fn a_flight_below_the_window_does_not_grow_it() {
        let mut w = Window::initial(1_000);
        let mut sample = ack(1, 1_000, 1_000, 10_000);
        sample.cwnd_limited = false;
        CcState::default().on_ack(CongestionControl::Cubic, &mut w, &sample);
        assert_eq!(w.cwnd, 10_000);
    }
}
