//! One direction of a simulated link: rate, delay, queue, and seeded faults.

use std::collections::BTreeMap;
use std::time::Duration;

use kcm_stack::Instant;

/// SplitMix64: small, seeded, good enough to decide which packet dies.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// True with probability `p` in parts per million.
    pub(crate) fn ppm(&mut self, p: u32) -> bool {
        self.below(1_000_000) < u64::from(p)
    }
}

/// Sees that virtual time passes: an engine that asks for the same instant again and again would hang a
/// test instead of failing it.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    last: Instant,
    steps: u32,
}

impl Watchdog {
    /// Steps at one instant; frames that arrive together and their answers need a few.
    const STEPS_MAX: u32 = 10_000;

    pub(crate) fn step(&mut self, now: Instant) {
        self.steps = if now > self.last { 0 } else { self.steps + 1 };
        self.last = now;
        assert!(self.steps < Self::STEPS_MAX, "time stands still at {now:?}");
    }
}

/// What a link does to frames. Rates are parts per million.
#[derive(Debug, Clone)]
pub(crate) struct LinkConfig {
    pub(crate) delay: Duration,
    /// Bits per second; 0 is unlimited.
    pub(crate) rate: u64,
    pub(crate) queue_bytes: usize,
    pub(crate) loss: u32,
    /// Frames lost in a row once a loss starts.
    pub(crate) burst: u32,
    pub(crate) duplicate: u32,
    pub(crate) reorder: u32,
    pub(crate) corrupt: u32,
    /// Nothing passes in these windows.
    pub(crate) blackouts: Vec<(Instant, Instant)>,
    /// Frames longer than this do not pass.
    pub(crate) mtu: usize,
    /// Their sender is told, as by a router; otherwise they vanish without a word.
    pub(crate) tells: bool,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(1),
            rate: 0,
            queue_bytes: usize::MAX,
            loss: 0,
            burst: 1,
            duplicate: 0,
            reorder: 0,
            corrupt: 0,
            blackouts: Vec::new(),
            mtu: usize::MAX,
            tells: false,
        }
    }
}

/// Frames under way, by arrival time.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) config: LinkConfig,
    rng: Rng,
    flying: BTreeMap<(Instant, u64), Vec<u8>>,
    order: u64,
    /// When the last frame accepted will have left the queue.
    busy_until: Instant,
    in_burst: u32,
    pub(crate) lost: u64,
    /// Frames whose senders have to be told.
    pub(crate) too_big: Vec<Vec<u8>>,
    pub(crate) carried: u64,
}

impl Link {
    pub(crate) fn new(config: LinkConfig, seed: u64) -> Self {
        Self {
            config,
            rng: Rng(seed),
            flying: BTreeMap::new(),
            order: 0,
            busy_until: Instant::ZERO,
            in_burst: 0,
            lost: 0,
            too_big: Vec::new(),
            carried: 0,
        }
    }

    pub(crate) fn send(&mut self, now: Instant, frame: &[u8]) {
        let dark = self
            .config
            .blackouts
            .iter()
            .any(|(a, b)| now >= *a && now < *b);
        if !dark && frame.len() > self.config.mtu && self.config.tells {
            self.too_big.push(frame.to_vec());
        }
        if dark || frame.len() > self.config.mtu || self.loses() {
            self.lost += 1;
            return;
        }
        let start = now.max(self.busy_until);
        let wait = start.since(now);
        let queued = wait.as_secs_f64() * self.config.rate as f64 / 8.0;
        if self.config.rate > 0 && queued as usize + frame.len() > self.config.queue_bytes {
            self.lost += 1;
            return;
        }
        let bits = frame.len() as u64 * 8;
        if let Some(ns) = (bits * 1_000_000_000).checked_div(self.config.rate) {
            self.busy_until = start + Duration::from_micros(ns.div_ceil(1000));
        }
        let mut frame = frame.to_vec();
        // ARP has no checksum: damage to it would be believed.
        let checksummed = frame.get(12..14) != Some(&[8, 6]);
        if checksummed && self.rng.ppm(self.config.corrupt) {
            let at = self.rng.below(frame.len() as u64) as usize;
            frame[at] ^= 1 << self.rng.below(8);
        }
        let copies = 1 + u32::from(self.rng.ppm(self.config.duplicate));
        for _ in 0..copies {
            let mut at = self.busy_until.max(now) + self.config.delay;
            if self.rng.ppm(self.config.reorder) {
                at += self.config.delay / 2 + Duration::from_micros(self.rng.below(3_000));
            }
            self.order += 1;
            self.carried += 1;
            self.flying.insert((at, self.order), frame.clone());
        }
    }

    fn loses(&mut self) -> bool {
        if self.in_burst > 0 {
            self.in_burst -= 1;
            return true;
        }
        let lost = self.rng.ppm(self.config.loss);
        if lost {
            self.in_burst = self.config.burst.saturating_sub(1);
        }
        lost
    }

    pub(crate) fn next_arrival(&self) -> Option<Instant> {
        self.flying.keys().next().map(|(at, _)| *at)
    }

    pub(crate) fn arrive(&mut self, now: Instant) -> Option<Vec<u8>> {
        let first = self.flying.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}
