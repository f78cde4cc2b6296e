//! BBR, version 1 (draft-cardwell-iccrg-bbr-congestion-control-00): a model of the path, its bandwidth
//! and its round trip, instead of loss. Paces at the bandwidth, bounds the flight by twice their product.
//!
//! Beyond the draft, as Linux does: the window has room for ACKs that come in bunches, as they do when
//! the thread that runs the engine was late.

mod aggregation;
mod bandwidth;

use self::aggregation::Aggregation;
use self::bandwidth::Bandwidth;
use super::Window;
use super::rate::RateSample;
use crate::tcp::recovery::Phase;
use crate::time::Instant;

/// 2/ln 2, the least gain that doubles the rate each round.
const HIGH_GAIN: f64 = 2.885;
const DRAIN_GAIN: f64 = 1.0 / HIGH_GAIN;
const CWND_GAIN: f64 = 2.0;
/// Probe for more, drain what that queued, then cruise; one round trip each.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// STARTUP ends when the bandwidth has grown by less than a quarter for so many rounds.
const FULL_ROUNDS: u8 = 3;
const FULL_GROWTH: f64 = 1.25;
/// How long a minimum of the round trip is believed, and how long PROBE_RTT lasts.
const MIN_RTT_US: u64 = 10_000_000;
const PROBE_RTT_US: u64 = 200_000;
const CWND_SEGMENTS_MIN: u32 = 4;
/// A little below the estimate, so that no queue is kept.
const PACING_MARGIN: f64 = 0.99;
/// What leaves at once lasts so long (BBR.send_quantum), if it is not less than a segment, or two above
/// the second rate, and not more than a super-frame. Bytes per microsecond.
const QUANTUM_US: f64 = 1_000.0;
const QUANTUM_BYTES_MAX: u32 = 64 << 10;
const ONE_SEGMENT_BELOW: f64 = 0.15;
/// How long a thread that paces single segments sleeps at least.
const BURST_US: f64 = 100.0;
/// Bursts the window has room for beside the flight: one being made, one at each end being gathered.
const QUANTA: u32 = 3;

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
    bandwidth: Bandwidth,
    aggregation: Aggregation,
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
    /// Sends again after a silence of the application's, in which no round trip grew old.
    restarts: bool,
    /// Bytes per microsecond.
    pacing: f64,
}

impl Bbr {
    /// The state before the first ACK.
    pub(crate) fn new(cwnd: u32, srtt_us: u32, now: Instant) -> Self {
        let rtt_us = if srtt_us == 0 { 1_000 } else { srtt_us };
        Self {
            mode: Mode::Startup,
            bandwidth: Bandwidth::default(),
            aggregation: Aggregation::default(),
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
            restarts: false,
            pacing: HIGH_GAIN * f64::from(cwnd) / f64::from(rtt_us),
        }
    }

    /// Bytes per second.
    pub(crate) fn pacing_rate(&self) -> u64 {
        ((self.pacing * 1e6) as u64).max(1)
    }

    /// Bytes that may leave at once, as one super-segment.
    pub(crate) fn send_quantum(&self, mss: u32) -> u32 {
        let bytes = (self.pacing * QUANTUM_US).min(f64::from(QUANTUM_BYTES_MAX)) as u32;
        let least = 1 + u32::from(self.pacing >= ONE_SEGMENT_BELOW);
        (bytes / mss).max(least) * mss
    }

    /// Bytes that leave at once from a device that sends single segments: a queue that is nearly full takes
    /// them one by one and drops the rest of a bunch, so a bunch is what lasts from one wake-up to the next.
    pub(crate) fn burst(&self, mss: u32) -> u32 {
        let bytes = (self.pacing * BURST_US).min(f64::from(QUANTUM_BYTES_MAX)) as u32;
        (bytes / mss).max(1) * mss
    }

    /// Whether the flight is kept small on purpose: what is delivered meanwhile says nothing about the path.
    pub(crate) fn is_probing_rtt(&self) -> bool {
        self.mode == Mode::ProbeRtt
    }

    /// The application has something to send again.
    pub(crate) fn on_restart(&mut self) {
        self.restarts = true;
        self.aggregation.restart();
        if self.mode == Mode::ProbeBandwidth {
            self.pacing = self.bandwidth.get() * PACING_MARGIN;
        }
    }

    /// A recovery was needless: what looked like a full pipe was none.
    pub(crate) fn on_undo(&mut self) {
        self.full_bandwidth = 0.0;
        self.full_rounds = 0;
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
        if a.acked > 0 && a.rate.is_some() {
            let bandwidth = self.bandwidth.get();
            self.aggregation
                .on_ack(a.now, a.acked, w.cwnd, bandwidth, round_start);
        }
        self.update_cycle(a);
        self.check_full(round_start, a);
        self.check_drain(a);
        self.update_min_rtt(w, a, round_start);
        let rate = self.bandwidth.get() * self.pacing_gain() * PACING_MARGIN;
        if rate > 0.0 && (self.is_full || rate > self.pacing) {
            self.pacing = rate;
        }
        self.set_window(w, a);
    }

    fn pacing_gain(&self) -> f64 {
        match self.mode {
            Mode::Startup => HIGH_GAIN,
            Mode::Drain => DRAIN_GAIN,
            Mode::ProbeBandwidth => CYCLE[self.cycle],
            Mode::ProbeRtt => 1.0,
        }
    }

    /// Bytes in flight that keep the path busy `gain` times, with room for bursts (BBRInflight).
    fn target(&self, gain: f64, mss: u32) -> u32 {
        if self.min_rtt_us == u32::MAX || self.bandwidth.get() == 0.0 {
            return super::INITIAL_WINDOW_SEGMENTS * mss;
        }
        let bdp = self.bandwidth.get() * f64::from(self.min_rtt_us) * gain;
        let segments = (bdp / f64::from(mss)).ceil() as u32 + QUANTA * self.send_quantum(mss) / mss;
        let probing = self.mode == Mode::ProbeBandwidth && self.cycle == 0;
        (segments.next_multiple_of(2) + 2 * u32::from(probing)).saturating_mul(mss)
    }

    /// The filter of the bandwidth; whether a round begins.
    fn update_bandwidth(&mut self, a: &BbrAck) -> bool {
        let Some(rate) = a.rate else { return false };
        let round_start = rate.prior.wrapping_sub(self.round_end) as i32 >= 0;
        if round_start {
            self.round_end = a.delivered;
            self.bandwidth.begin_round(rate.app_limited);
            self.conserve = false;
        }
        let sample = f64::from(rate.bytes) / f64::from(rate.interval_us);
        if !rate.app_limited || sample >= self.bandwidth.get() {
            self.bandwidth.sample(sample);
        }
        round_start
    }

    fn update_cycle(&mut self, a: &BbrAck) {
        if self.mode != Mode::ProbeBandwidth {
            return;
        }
        let spent = a.now.since(self.cycle_at).as_micros() > u128::from(self.min_rtt_us);
        let gain = CYCLE[self.cycle];
        let before = a.pipe + a.acked + a.lost;
        let is_over = if gain > 1.0 {
            spent && (a.lost > 0 || before >= self.target(gain, a.mss))
        } else if gain < 1.0 {
            spent || before <= self.target(1.0, a.mss)
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
        let bandwidth = self.bandwidth.get();
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
        let restarts = self.restarts;
        self.restarts &= a.acked == 0;
        if is_old && !restarts && self.mode != Mode::ProbeRtt {
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
        let least = CWND_SEGMENTS_MIN * a.mss;
        if a.acked > 0 {
            self.follow_phase(w, a);
            if self.conserve {
                w.cwnd = w.cwnd.max(a.pipe + a.acked);
            } else {
                self.approach_target(w, a);
                w.cwnd = w.cwnd.max(least);
            }
        }
        if self.mode == Mode::ProbeRtt {
            w.cwnd = w.cwnd.min(least);
        }
    }

    /// What the phase of recovery makes of the window (BBRModulateCwndForRecovery).
    fn follow_phase(&mut self, w: &mut Window, a: &BbrAck) {
        let was = core::mem::replace(&mut self.prior_phase, a.phase);
        let recovers = |p| matches!(p, Phase::Recovery | Phase::Loss);
        w.cwnd = w.cwnd.saturating_sub(a.lost).max(a.mss);
        if a.phase == Phase::Loss && was != Phase::Loss {
            self.full_bandwidth = 0.0;
        }
        if a.phase == Phase::Recovery && was != Phase::Recovery {
            self.conserve = true;
            self.round_end = a.delivered;
            w.cwnd = a.pipe + a.acked;
        } else if recovers(was) && !recovers(a.phase) {
            self.conserve = false;
            w.cwnd = w.cwnd.max(self.prior_cwnd);
        }
    }

    fn approach_target(&self, w: &mut Window, a: &BbrAck) {
        let gain = match self.mode {
            Mode::Startup | Mode::Drain => HIGH_GAIN,
            Mode::ProbeBandwidth => CWND_GAIN,
            Mode::ProbeRtt => 1.0,
        };
        let target = self.target(gain, a.mss);
        if self.is_full {
            let room = self.aggregation.room(self.bandwidth.get());
            w.cwnd = (w.cwnd + a.acked).min(target.saturating_add(room));
        } else if w.cwnd < target || a.delivered < super::INITIAL_WINDOW_SEGMENTS * a.mss {
            w.grow(a.acked);
        }
    }
}

#[cfg(test)]
mod tests;
