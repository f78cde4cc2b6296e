//! HyStart++ (RFC 9406): leaves slow start when the round trip grows, by way of a conservative
//! phase that can be taken back.

use super::{AckSample, Window};

/// §4.3.
const MIN_RTT_THRESH_US: u32 = 4_000;
/// §4.3.
const MAX_RTT_THRESH_US: u32 = 16_000;
const MIN_RTT_DIVISOR: u32 = 8;
const N_RTT_SAMPLE: u32 = 8;
const CSS_GROWTH_DIVISOR: u32 = 4;
const CSS_ROUNDS: u32 = 5;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    SlowStart,
    Conservative,
    Done,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct HyStart {
    phase: Phase,
    last_round_min_us: u32,
    round_min_us: u32,
    samples: u32,
    css_baseline_us: u32,
    css_rounds: u32,
}

impl Default for HyStart {
    fn default() -> Self {
        Self {
            phase: Phase::SlowStart,
            last_round_min_us: u32::MAX,
            round_min_us: u32::MAX,
            samples: 0,
            css_baseline_us: u32::MAX,
            css_rounds: 0,
        }
    }
}

impl HyStart {
    pub(super) fn growth_divisor(&self) -> u32 {
        if self.phase == Phase::Conservative {
            CSS_GROWTH_DIVISOR
        } else {
            1
        }
    }

    /// §4.2, first sentence: only the initial slow start is examined.
    pub(super) fn stop(&mut self) {
        self.phase = Phase::Done;
    }

    pub(super) fn on_ack(&mut self, w: &mut Window, a: &AckSample) {
        if self.phase == Phase::Done {
            return;
        }
        if a.round_start {
            self.last_round_min_us = self.round_min_us;
            self.round_min_us = u32::MAX;
            self.samples = 0;
            if self.phase == Phase::Conservative {
                self.css_rounds += 1;
                if self.css_rounds >= CSS_ROUNDS {
                    w.ssthresh = w.cwnd;
                    self.phase = Phase::Done;
                    return;
                }
            }
        }
        let Some(rtt) = a.rtt_us else { return };
        self.round_min_us = self.round_min_us.min(rtt);
        self.samples += 1;
        if self.samples < N_RTT_SAMPLE {
            return;
        }
        match self.phase {
            Phase::SlowStart => {
                if self.round_min_us == u32::MAX || self.last_round_min_us == u32::MAX {
                    return;
                }
                let thresh = (self.last_round_min_us / MIN_RTT_DIVISOR)
                    .clamp(MIN_RTT_THRESH_US, MAX_RTT_THRESH_US);
                if self.round_min_us >= self.last_round_min_us.saturating_add(thresh) {
                    self.css_baseline_us = self.round_min_us;
                    self.css_rounds = 0;
                    self.phase = Phase::Conservative;
                }
            }
            Phase::Conservative => {
                if self.round_min_us < self.css_baseline_us {
                    self.css_baseline_us = u32::MAX;
                    self.phase = Phase::SlowStart;
                }
            }
            Phase::Done => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Instant;

    /// One round of so many ACKs, each with this round-trip time.
    fn round(hystart: &mut HyStart, w: &mut Window, acks: u32, rtt_us: u32) {
        for i in 0..acks {
            let ack = AckSample {
                now: Instant::from_millis(1),
                bytes: 1_000,
                mss: 1_000,
                rtt_us: Some(rtt_us),
                srtt_us: rtt_us,
                cwnd_limited: true,
                round_start: i == 0,
            };
            hystart.on_ack(w, &ack);
        }
    }

    fn start() -> (HyStart, Window) {
        (HyStart::default(), Window::initial(1_000))
    }

    #[test]
    fn longer_round_trips_slow_the_growth_and_end_slow_start_five_rounds_later() {
        let (mut hystart, mut w) = start();
        round(&mut hystart, &mut w, N_RTT_SAMPLE, 100_000);
        round(&mut hystart, &mut w, N_RTT_SAMPLE, 112_500);
        assert_eq!(hystart.growth_divisor(), CSS_GROWTH_DIVISOR);
        for _ in 1..CSS_ROUNDS {
            round(&mut hystart, &mut w, N_RTT_SAMPLE, 112_500);
            assert_ne!(w.ssthresh, w.cwnd);
        }
        round(&mut hystart, &mut w, 1, 112_500);
        assert_eq!((w.ssthresh, hystart.growth_divisor()), (w.cwnd, 1));
    }

    #[test]
    fn a_shorter_round_trip_takes_the_conservative_phase_back() {
        let (mut hystart, mut w) = start();
        round(&mut hystart, &mut w, N_RTT_SAMPLE, 100_000);
        round(&mut hystart, &mut w, N_RTT_SAMPLE, 120_000);
        round(&mut hystart, &mut w, N_RTT_SAMPLE, 119_000);
        assert_eq!(hystart.growth_divisor(), 1);
        for _ in 0..=CSS_ROUNDS {
            round(&mut hystart, &mut w, N_RTT_SAMPLE, 119_000);
        }
        assert_ne!(w.ssthresh, w.cwnd);
    }

    #[test]
    fn an_eighth_of_the_round_trip_within_its_bounds_is_what_counts() {
        for (first, second, slows) in [
            (100_000, 112_499, false),
            (8_000, 11_999, false),
            (8_000, 12_000, true),
            (400_000, 416_000, true),
        ] {
            let (mut hystart, mut w) = start();
            round(&mut hystart, &mut w, N_RTT_SAMPLE, first);
            round(&mut hystart, &mut w, N_RTT_SAMPLE, second);
            let divisor = hystart.growth_divisor();
            assert_eq!(divisor != 1, slows, "{first} then {second}");
        }
    }

    #[test]
    fn seven_samples_say_nothing() {
        let (mut hystart, mut w) = start();
        round(&mut hystart, &mut w, N_RTT_SAMPLE, 100_000);
        round(&mut hystart, &mut w, N_RTT_SAMPLE - 1, 500_000);
        assert_eq!(hystart.growth_divisor(), 1);
    }
}
