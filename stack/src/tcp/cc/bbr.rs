//! BBR, version 1 (draft-cardwell-iccrg-bbr-congestion-control-00): a model of the path, its bandwidth
//! and its round trip, instead of loss. Paces at the bandwidth, bounds the flight by twice their product.
//!
//! Beside the kernel it keeps 0.2 to 0.8 of the goodput on a busy machine: pacing waits for a thread, and a
//! wait during STARTUP looks like a full pipe. Programs cannot select it before that is better.

use super::Window;
use super::rate::RateSample;
use crate::tcp::conn::Phase;
use crate::time::Instant;

/// 2/ln 2, the least gain that doubles the rate each round.
const HIGH_GAIN: f64 = 2.885;
const DRAIN_GAIN: f64 = 1.0 / HIGH_GAIN;
const CWND_GAIN: f64 = 2.0;
/// Probe for more, drain what that queued, then cruise; one round trip each.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// Rounds the bandwidth filter remembers.
const BANDWIDTH_ROUNDS: usize = 10;
/// STARTUP ends when the bandwidth has grown by less than a quarter for so many rounds.
const FULL_ROUNDS: u8 = 3;
const FULL_GROWTH: f64 = 1.25;
/// How long a minimum of the round trip is believed, and how long PROBE_RTT lasts.
const MIN_RTT_US: u64 = 10_000_000;
const PROBE_RTT_US: u64 = 200_000;
const CWND_SEGMENTS_MIN: u32 = 4;
/// A little below the estimate, so that no queue is kept.
const PACING_MARGIN: f64 = 0.99;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Startup,
    Drain,
    ProbeBandwidth,
    ProbeRtt,
}

/// One ACK as BBR sees it. Bytes.
#[derive(Debug)]
pub(crate) struct BbrAck {
    pub(crate) now: Instant,
    pub(crate) rate: Option<RateSample>,
    pub(crate) rtt_us: Option<u32>,
    /// Newly delivered and newly lost.
    pub(crate) acked: u32,
    pub(crate) lost: u32,
    /// In the network after this ACK.
    pub(crate) pipe: u32,
    pub(crate) delivered: u32,
    pub(crate) mss: u32,
    pub(crate) phase: Phase,
}

#[derive(Debug)]
pub(crate) struct Bbr {
    mode: Mode,
    /// Bytes per microsecond, the most of each of the last rounds.
    bandwidth: [f64; BANDWIDTH_ROUNDS],
    round: usize,
    /// Delivered count that ends the round.
    round_end: u32,
    min_rtt_us: u32,
    min_rtt_at: Instant,
    full_bandwidth: f64,
    full_rounds: u8,
    is_full: bool,
    cycle: usize,
    cycle_at: Instant,
    /// PROBE_RTT: when it may end, once the flight is small, and whether a round has passed.
    probe_until: Option<Instant>,
    probe_round: bool,
    /// Window before recovery or PROBE_RTT.
    prior_cwnd: u32,
    prior_phase: Phase,
    /// First round of recovery: one byte out for each that arrives.
    conserve: bool,
    pacing: f64,
}

impl Bbr {
    /// The state before the first ACK.
    pub(crate) fn new(cwnd: u32, srtt_us: u32, now: Instant) -> Self {
        let rtt_us = if srtt_us == 0 { 1_000 } else { srtt_us };
        Self {
            mode: Mode::Startup,
            bandwidth: [0.0; BANDWIDTH_ROUNDS],
            round: 0,
            round_end: 0,
            min_rtt_us: u32::MAX,
            min_rtt_at: now,
            full_bandwidth: 0.0,
            full_rounds: 0,
            is_full: false,
            cycle: 0,
            cycle_at: now,
            probe_until: None,
            probe_round: false,
            prior_cwnd: 0,
            prior_phase: Phase::Open,
            conserve: false,
            pacing: HIGH_GAIN * f64::from(cwnd) / f64::from(rtt_us),
        }
    }

    /// Bytes per second.
    pub(crate) fn pacing_rate(&self) -> u64 {
        ((self.pacing * 1e6) as u64).max(1)
    }

    /// Recovery or a timeout begins: what the window comes back to.
    pub(crate) fn save_window(&mut self, w: &Window) {
        let in_order = self.prior_phase == Phase::Open && self.mode != Mode::ProbeRtt;
        self.prior_cwnd = if in_order {
            w.cwnd
        } else {
            self.prior_cwnd.max(w.cwnd)
        };
    }

    pub(crate) fn on_ack(&mut self, w: &mut Window, a: &BbrAck) {
        let round_start = self.update_bandwidth(a);
        self.update_cycle(a);
        self.check_full(round_start, a);
        self.check_drain(a);
        self.update_min_rtt(w, a, round_start);
        let rate = self.bottleneck() * self.pacing_gain() * PACING_MARGIN;
        if rate > 0.0 && (self.is_full || rate > self.pacing) {
            self.pacing = rate;
        }
        self.set_window(w, a);
    }

    fn bottleneck(&self) -> f64 {
        self.bandwidth.iter().copied().fold(0.0, f64::max)
    }

    fn pacing_gain(&self) -> f64 {
        match self.mode {
            Mode::Startup => HIGH_GAIN,
            Mode::Drain => DRAIN_GAIN,
            Mode::ProbeBandwidth => CYCLE[self.cycle],
            Mode::ProbeRtt => 1.0,
        }
    }

    /// Bytes in flight that keep the path busy `gain` times, with room for delayed ACKs.
    fn target(&self, gain: f64, mss: u32) -> u32 {
        if self.min_rtt_us == u32::MAX || self.bottleneck() == 0.0 {
            return super::INITIAL_WINDOW_SEGMENTS * mss;
        }
        let bdp = self.bottleneck() * f64::from(self.min_rtt_us) * gain;
        let segments = (bdp / f64::from(mss)).ceil() as u32 + 3;
        let probing = self.mode == Mode::ProbeBandwidth && self.cycle == 0;
        (segments.next_multiple_of(2) + 2 * u32::from(probing)).saturating_mul(mss)
    }

    /// The filter of the bandwidth; whether a round begins.
    fn update_bandwidth(&mut self, a: &BbrAck) -> bool {
        let Some(rate) = a.rate else { return false };
        let round_start = rate.prior.wrapping_sub(self.round_end) as i32 >= 0;
        if round_start {
            self.round_end = a.delivered;
            self.round += 1;
            self.bandwidth[self.round % BANDWIDTH_ROUNDS] = 0.0;
            self.conserve = false;
        }
        let sample = f64::from(rate.bytes) / f64::from(rate.interval_us);
        if !rate.app_limited || sample >= self.bottleneck() {
            let best = &mut self.bandwidth[self.round % BANDWIDTH_ROUNDS];
            *best = best.max(sample);
        } else if round_start {
            // The application's rate says nothing: what the path could do stays true.
            let kept = self.bottleneck();
            self.bandwidth[self.round % BANDWIDTH_ROUNDS] = kept;
        }
        round_start
    }

    fn update_cycle(&mut self, a: &BbrAck) {
        if self.mode != Mode::ProbeBandwidth {
            return;
        }
        let spent = a.now.since(self.cycle_at).as_micros() > u128::from(self.min_rtt_us);
        let gain = CYCLE[self.cycle];
        let is_over = if gain > 1.0 {
            spent && (a.lost > 0 || a.pipe + a.acked >= self.target(gain, a.mss))
        } else if gain < 1.0 {
            spent || a.pipe + a.acked <= self.target(1.0, a.mss)
        } else {
            spent
        };
        if is_over {
            self.cycle = (self.cycle + 1) % CYCLE.len();
            self.cycle_at = a.now;
        }
    }

    fn check_full(&mut self, round_start: bool, a: &BbrAck) {
        if self.is_full || !round_start || a.rate.is_some_and(|r| r.app_limited) {
            return;
        }
        let bandwidth = self.bottleneck();
        if bandwidth >= self.full_bandwidth * FULL_GROWTH {
            self.full_bandwidth = bandwidth;
            self.full_rounds = 0;
            return;
        }
        self.full_rounds += 1;
        self.is_full = self.full_rounds >= FULL_ROUNDS;
    }

    fn check_drain(&mut self, a: &BbrAck) {
        if self.mode == Mode::Startup && self.is_full {
            self.mode = Mode::Drain;
        }
        if self.mode == Mode::Drain && a.pipe <= self.target(1.0, a.mss) {
            self.probe_bandwidth(a.now);
        }
    }

    fn probe_bandwidth(&mut self, now: Instant) {
        self.mode = Mode::ProbeBandwidth;
        // Not in the phase that drains: there is nothing to drain yet. Which of the others is of no
        // consequence to one flow, and the clock spreads several.
        self.cycle = [0, 2, 3, 4, 5, 6, 7][(now.as_micros() / 64 % 7) as usize];
        self.cycle_at = now;
    }

    fn update_min_rtt(&mut self, w: &mut Window, a: &BbrAck, round_start: bool) {
        let is_old = a.now.since(self.min_rtt_at).as_micros() > u128::from(MIN_RTT_US);
        if let Some(rtt) = a.rtt_us
            && (rtt <= self.min_rtt_us || is_old)
        {
            self.min_rtt_us = rtt;
            self.min_rtt_at = a.now;
        }
        if is_old && self.mode != Mode::ProbeRtt {
            self.save_window(w);
            self.mode = Mode::ProbeRtt;
            self.probe_until = None;
        }
        if self.mode != Mode::ProbeRtt {
            return;
        }
        match self.probe_until {
            None if a.pipe <= CWND_SEGMENTS_MIN * a.mss => {
                self.probe_until = Some(a.now.plus_us(PROBE_RTT_US));
                self.probe_round = false;
                self.round_end = a.delivered;
            }
            None => {}
            Some(until) => {
                self.probe_round |= round_start;
                if self.probe_round && a.now >= until {
                    self.min_rtt_at = a.now;
                    w.cwnd = w.cwnd.max(self.prior_cwnd);
                    if self.is_full {
                        self.probe_bandwidth(a.now);
                    } else {
                        self.mode = Mode::Startup;
                    }
                }
            }
        }
    }

    fn set_window(&mut self, w: &mut Window, a: &BbrAck) {
        let was = core::mem::replace(&mut self.prior_phase, a.phase);
        let recovers = |p| matches!(p, Phase::Recovery | Phase::Loss);
        if a.lost > 0 {
            w.cwnd = w.cwnd.saturating_sub(a.lost).max(a.mss);
        }
        if a.phase == Phase::Recovery && was != Phase::Recovery {
            self.conserve = true;
            self.round_end = a.delivered;
            w.cwnd = a.pipe + a.acked;
        } else if recovers(was) && !recovers(a.phase) {
            self.conserve = false;
            w.cwnd = w.cwnd.max(self.prior_cwnd);
        }
        let least = CWND_SEGMENTS_MIN * a.mss;
        if self.conserve {
            w.cwnd = w.cwnd.max(a.pipe + a.acked);
        } else {
            let gain = match self.mode {
                Mode::Startup | Mode::Drain => HIGH_GAIN,
                Mode::ProbeBandwidth => CWND_GAIN,
                Mode::ProbeRtt => 1.0,
            };
            let target = self.target(gain, a.mss);
            if self.is_full {
                w.cwnd = (w.cwnd + a.acked).min(target);
            } else if w.cwnd < target || a.delivered < super::INITIAL_WINDOW_SEGMENTS * a.mss {
                w.grow(a.acked);
            }
            w.cwnd = w.cwnd.max(least);
        }
        if self.mode == Mode::ProbeRtt {
            w.cwnd = w.cwnd.min(least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u32 = 1_000;

    /// A path of 10 bytes/µs and 10 ms, on which each ACK delivers one segment.
    fn ack(step: u32, app_limited: bool) -> BbrAck {
        BbrAck {
            now: Instant::from_micros(1_000_000 + u64::from(step) * 100),
            rate: Some(RateSample {
                bytes: 100_000,
                interval_us: 10_000,
                prior: step.saturating_sub(100) * MSS,
                app_limited,
            }),
            rtt_us: Some(10_000),
            acked: MSS,
            lost: 0,
            pipe: 100_000,
            delivered: step * MSS,
            mss: MSS,
            phase: Phase::Open,
        }
    }

    fn run(steps: core::ops::Range<u32>, bbr: &mut Bbr, w: &mut Window) {
        steps.for_each(|n| bbr.on_ack(w, &ack(n, false)));
    }

    fn start() -> (Bbr, Window) {
        let now = Instant::from_micros(1_000_000);
        (Bbr::new(10 * MSS, 10_000, now), Window::initial(MSS))
    }

    #[test]
    fn a_full_pipe_ends_startup_and_bounds_the_window_by_twice_the_product() {
        let (mut bbr, mut w) = start();
        assert_eq!(bbr.mode, Mode::Startup);
        run(1..2_000, &mut bbr, &mut w);
        assert_eq!(bbr.mode, Mode::ProbeBandwidth);
        // 100 segments fill the path; a few more stand for delayed ACKs.
        assert!((200 * MSS..=206 * MSS).contains(&w.cwnd), "{}", w.cwnd);
        let rate = bbr.pacing_rate() as f64 / 10e6;
        assert!((0.74..=1.25).contains(&rate), "{rate}");
    }

    #[test]
    fn loss_does_not_lower_the_model_and_recovery_gives_the_window_back() {
        let (mut bbr, mut w) = start();
        run(1..2_000, &mut bbr, &mut w);
        let (cwnd, bandwidth) = (w.cwnd, bbr.bottleneck());
        bbr.save_window(&w);
        let mut lossy = ack(2_000, false);
        lossy.phase = Phase::Recovery;
        lossy.lost = 20 * MSS;
        bbr.on_ack(&mut w, &lossy);
        assert_eq!(w.cwnd, lossy.pipe + lossy.acked, "conserves packets");
        run(2_001..2_002, &mut bbr, &mut w);
        assert!(w.cwnd >= cwnd - 6 * MSS, "{} {cwnd}", w.cwnd);
        assert_eq!(bbr.bottleneck(), bandwidth);
    }

    #[test]
    fn an_application_that_says_little_does_not_lower_the_bandwidth() {
        let (mut bbr, mut w) = start();
        run(1..2_000, &mut bbr, &mut w);
        let bandwidth = bbr.bottleneck();
        for n in 2_000..6_000 {
            let mut a = ack(n, true);
            if let Some(rate) = &mut a.rate {
                rate.bytes = 1_000;
            }
            bbr.on_ack(&mut w, &a);
        }
        assert_eq!(bbr.bottleneck(), bandwidth);
    }

    #[test]
    fn an_old_round_trip_is_measured_again_with_a_small_flight() {
        let (mut bbr, mut w) = start();
        run(1..2_000, &mut bbr, &mut w);
        let late = |n: u32, pipe: u32| {
            let mut a = ack(n, false);
            a.now = a.now.plus_us(MIN_RTT_US);
            a.rtt_us = Some(12_000);
            a.pipe = pipe;
            a
        };
        bbr.on_ack(&mut w, &late(2_000, 100_000));
        assert_eq!(
            (bbr.mode, w.cwnd),
            (Mode::ProbeRtt, CWND_SEGMENTS_MIN * MSS)
        );
        (2_001..6_000).for_each(|n| bbr.on_ack(&mut w, &late(n, 2 * MSS)));
        assert_eq!(bbr.mode, Mode::ProbeBandwidth);
        assert_eq!(bbr.min_rtt_us, 12_000);
        assert!(w.cwnd > 100 * MSS, "{}", w.cwnd);
    }
}
