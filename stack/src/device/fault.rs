//! A device that loses, doubles, reorders, corrupts, delays and throttles frames: the network between
//! two engines in a simulation, or between an engine and a real kernel.
//!
//! Time is virtual: it moves with [`NetDevice::advance`] only. Chance is a generator seeded by the
//! caller, so that a run is repeated exactly by its seed and the order of calls.

use super::{
    Batch, BorrowedFd, Capabilities, Checksum, Counters, DeviceError, FrameMeta, Ingress,
    NetDevice, RxFrame, TransmitError, Wait, Written, admit,
};
use crate::ip::iface::IfaceId;
use crate::time::Instant;
use crate::udp::SharedPorts;
use core::ops::Range;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most frames one direction holds back, or takes between two kicks; more are dropped as by a full
/// queue. Enough for 10 Gb/s of full-sized frames over 75 ms.
const HELD_FRAMES_MAX: usize = 65_536;

/// What happens to frames that travel in one direction. The default is a perfect link.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LinkFaults {
    /// Which frames vanish.
    pub loss: Loss,
    /// Probability that a frame arrives twice.
    pub duplicate: f64,
    /// Probability that a frame is held back by `reorder_by`, while later ones overtake it.
    pub reorder: f64,
    /// How long a reordered frame is held back.
    pub reorder_by: Duration,
    /// Probability that one bit of a frame is flipped. A frame whose checksum is left to the device has
    /// it computed first, so that the receiver can notice; one that is still to be segmented is lost
    /// instead, which is what its receiver would see.
    pub corrupt: f64,
    /// Propagation delay.
    pub delay: Duration,
    /// Up to this much more delay, evenly distributed; order is kept.
    pub jitter: Duration,
    /// Rate in bytes per second; `None` is infinite.
    pub rate: Option<u64>,
    /// Bytes that wait for a link with a `rate`, at most; a frame that finds the queue full is lost.
    pub queue_bytes: usize,
    /// Frames with a longer IP packet vanish without a word, as behind a black-hole router.
    pub mtu: Option<usize>,
    /// Times at which nothing passes.
    pub blackouts: Vec<Range<Instant>>,
}

/// Which frames a link loses.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each with this probability.
    Random(f64),
    /// Bursts (the Gilbert model): a good link turns bad with probability `start` per frame, a bad one,
    /// which loses everything, turns good with probability `stop`.
    Burst {
        /// Probability that a burst begins at a frame.
        start: f64,
        /// Probability that a burst has ended at a frame.
        stop: f64,
    },
    /// The last `frames` of what was sent between two kicks (or received at once), with this
    /// probability: the losses that no later frame gives away.
    Tail {
        /// Probability for each group of frames.
        probability: f64,
        /// How many of its last frames vanish.
        frames: usize,
    },
    /// Exactly these, counted from 0.
    Nth(Vec<u64>),
}

/// What a direction did to frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Frames that came in.
    pub offered: u64,
    /// Frames that went out, duplicates included.
    pub delivered: u64,
    /// Lost by [`LinkFaults::loss`], or instead of being corrupted.
    pub lost: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Had a bit flipped.
    pub corrupted: u64,
    /// Lost to a full queue.
    pub queue_drops: u64,
    /// Lost to [`LinkFaults::mtu`].
    pub mtu_drops: u64,
    /// Lost in a blackout.
    pub blackout_drops: u64,
}

/// A device with faults in both directions.
pub struct Fault<D> {
    inner: D,
    now: Instant,
    rx: Direction,
    tx: Direction,
    /// What transmitted frames are written into before they join a queue.
    scratch: Vec<u8>,
    counters: Counters,
}

impl<D: NetDevice> Fault<D> {
    /// Wraps `inner`: `rx` applies to frames received from it, `tx` to frames transmitted through it.
    pub fn new(inner: D, seed: u64, rx: LinkFaults, tx: LinkFaults) -> Self {
        let mut seeds = Rng(seed);
        Self {
            inner,
            now: Instant::ZERO,
            rx: Direction::new(rx, Rng(seeds.next())),
            tx: Direction::new(tx, Rng(seeds.next())),
            scratch: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Changes what happens to received frames from now on; frames on their way keep their fate.
    pub fn set_rx_faults(&mut self, faults: LinkFaults) {
        self.rx.faults = faults;
    }

    /// Changes what happens to transmitted frames from now on.
    pub fn set_tx_faults(&mut self, faults: LinkFaults) {
        self.tx.faults = faults;
    }

    /// What happened to received frames.
    pub fn rx_faults_seen(&self) -> FaultCounters {
        self.rx.counters
    }

    /// What happened to transmitted frames.
    pub fn tx_faults_seen(&self) -> FaultCounters {
        self.tx.counters
    }

    /// Passes on transmitted frames whose time has come, as far as the inner device takes them.
    fn release_due(&mut self) -> Result<(), DeviceError> {
        let mut released = false;
        while let Some(frame) = self.tx.take_due(self.now) {
            match self.inner.transmit_parts(&[&frame.bytes], frame.meta) {
                Ok(()) => {
                    released = true;
                    self.tx.delivered(frame);
                }
                Err(TransmitError::Full) => {
                    self.tx.put_back(frame);
                    break;
                }
                Err(TransmitError::Device(error)) => return Err(error),
                // Cannot be sent by any device of this kind; admitted frames never get here.
                Err(TransmitError::BadLength { .. } | TransmitError::NoGso(_)) => {
                    self.counters.tx_errors += 1;
                }
            }
        }
        if released { self.inner.kick() } else { Ok(()) }
    }
}

impl<D: NetDevice> NetDevice for Fault<D> {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let Self { inner, rx, now, .. } = self;
        let from_inner = inner.receive(budget, &mut |frames| {
            for frame in frames {
                rx.offer(frame.meta, frame.data);
            }
        });
        rx.end_burst(*now);
        from_inner?;
        let mut received = 0;
        while received < budget {
            let mut due = Vec::new();
            while due.len() < super::RX_BATCH_FRAMES.min(budget - received)
                && let Some(frame) = self.rx.take_due(self.now)
            {
                due.push(frame);
            }
            if due.is_empty() {
                break;
            }
            received += due.len();
            let mut batch = Batch::new();
            for frame in &due {
                batch.push(&frame.bytes, frame.meta);
            }
            visit(batch.as_slice());
            self.counters.received(batch.as_slice());
            due.into_iter().for_each(|frame| self.rx.delivered(frame));
        }
        Ok(received)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        if self.tx.burst.len() >= HELD_FRAMES_MAX {
            return Err(TransmitError::Full);
        }
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let Some(Written { len, meta }) = write(&mut self.scratch) else {
            return Ok(false);
        };
        admit(self.inner.capabilities(), len, meta)?;
        let frame = self.scratch.get(..len).unwrap_or_default();
        self.tx.offer(meta, frame);
        self.counters.queued(len);
        Ok(true)
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        self.tx.end_burst(self.now);
        self.release_due()?;
        self.inner.kick()
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        self.inner.wait_fd(wait)
    }

    fn ingress(&self) -> Option<Ingress> {
        self.inner.ingress()
    }

    fn advance(&mut self, now: Instant) {
        self.now = now;
        self.inner.advance(now);
        // A device that fails here fails again, visibly, at the next kick.
        let _ = self.release_due();
    }

    fn next_deadline(&self) -> Option<Instant> {
        let own = [self.rx.next_due(), self.tx.next_due()];
        own.into_iter()
            .flatten()
            .chain(self.inner.next_deadline())
            .min()
    }

    fn steer(&mut self, iface: IfaceId, ports: &Arc<SharedPorts>) {
        self.inner.steer(iface, ports);
    }

    fn counters(&self) -> Counters {
        let inner = self.inner.counters();
        Counters {
            rx_frames: self.counters.rx_frames,
            rx_bytes: self.counters.rx_bytes,
            tx_frames: self.counters.tx_frames,
            tx_bytes: self.counters.tx_bytes,
            tx_errors: inner.tx_errors + self.counters.tx_errors,
            ..inner
        }
    }
}

/// A frame on its way.
struct Held {
    due: Instant,
    /// Order of release among frames due at the same time.
    order: u64,
    meta: FrameMeta,
    bytes: Vec<u8>,
}

struct Direction {
    faults: LinkFaults,
    rng: Rng,
    /// Offered since the last kick: [`Loss::Tail`] needs to know where a group ends.
    burst: Vec<(FrameMeta, Vec<u8>)>,
    held: BTreeMap<(Instant, u64), (FrameMeta, Vec<u8>)>,
    /// Buffers of delivered frames.
    spare: Vec<Vec<u8>>,
    next_order: u64,
    /// No frame arrives before one that was not reordered and left earlier.
    last_due: Instant,
    /// When the throttled link has sent what waits, in nanoseconds: at 10 Gb/s a frame is shorter than
    /// the clock's microsecond.
    link_free_ns: u64,
    in_bad_state: bool,
    counters: FaultCounters,
}

impl Direction {
    fn new(faults: LinkFaults, rng: Rng) -> Self {
        Self {
            faults,
            rng,
            burst: Vec::new(),
            held: BTreeMap::new(),
            spare: Vec::new(),
            next_order: 0,
            last_due: Instant::ZERO,
            link_free_ns: 0,
            in_bad_state: false,
            counters: FaultCounters::default(),
        }
    }

    fn offer(&mut self, meta: FrameMeta, frame: &[u8]) {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(frame);
        self.burst.push((meta, bytes));
    }

    /// Decides the fate of the frames offered since the last call.
    fn end_burst(&mut self, now: Instant) {
        let mut burst = core::mem::take(&mut self.burst);
        let kept = match self.faults.loss {
            Loss::Tail {
                probability,
                frames,
            } if !burst.is_empty() => {
                if self.rng.chance(probability) {
                    burst.len().saturating_sub(frames)
                } else {
                    burst.len()
                }
            }
            _ => burst.len(),
        };
        for (index, (meta, bytes)) in burst.drain(..).enumerate() {
            let nth = self.counters.offered;
            self.counters.offered += 1;
            if index >= kept || self.is_lost(nth) {
                self.counters.lost += 1;
                self.spare.push(bytes);
            } else {
                self.pass(now, meta, bytes);
            }
        }
        self.burst = burst;
    }

    fn is_lost(&mut self, nth: u64) -> bool {
        match &self.faults.loss {
            Loss::None | Loss::Tail { .. } => false,
            Loss::Random(probability) => self.rng.chance(*probability),
            Loss::Burst { start, stop } => {
                let turn = if self.in_bad_state { *stop } else { *start };
                self.in_bad_state ^= self.rng.chance(turn);
                self.in_bad_state
            }
            Loss::Nth(lost) => lost.contains(&nth),
        }
    }

    /// Sends a frame that was not lost over the link.
    fn pass(&mut self, now: Instant, mut meta: FrameMeta, mut bytes: Vec<u8>) {
        let drops = &mut self.counters;
        let packet_len = bytes.len().saturating_sub(super::ETHERNET_HEADER_LEN);
        let segment_len = meta.gso.map_or(packet_len, |gso| {
            usize::from(gso.hdr_len).saturating_sub(super::ETHERNET_HEADER_LEN)
                + usize::from(gso.size)
        });
        if self
            .faults
            .blackouts
            .iter()
            .any(|times| times.contains(&now))
        {
            drops.blackout_drops += 1;
            return self.spare.push(bytes);
        }
        if self
            .faults
            .mtu
            .is_some_and(|mtu| packet_len.min(segment_len) > mtu)
        {
            drops.mtu_drops += 1;
            return self.spare.push(bytes);
        }
        if self.rng.chance(self.faults.corrupt) {
            if meta.gso.is_some() {
                drops.lost += 1;
                return self.spare.push(bytes);
            }
            meta.finish_checksum(&mut bytes);
            meta.csum = Checksum::Complete;
            let bit = self.rng.below(bytes.len() as u64 * 8) as usize;
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
                drops.corrupted += 1;
            }
        }
        let Some(sent) = self.departure(now, bytes.len()) else {
            self.counters.queue_drops += 1;
            return self.spare.push(bytes);
        };
        let jitter_us = u64::try_from(self.faults.jitter.as_micros()).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.rng.below(jitter_us.saturating_add(1)));
        let in_order = (sent + self.faults.delay + jitter).max(self.last_due);
        let due = if self.rng.chance(self.faults.reorder) {
            self.counters.reordered += 1;
            in_order + self.faults.reorder_by
        } else {
            self.last_due = in_order;
            in_order
        };
        if self.rng.chance(self.faults.duplicate) {
            self.counters.duplicated += 1;
            let mut copy = self.spare.pop().unwrap_or_default();
            copy.clear();
            copy.extend_from_slice(&bytes);
            self.hold(due, meta, copy);
        }
        self.hold(due, meta, bytes);
    }

    /// When the last byte of a frame of `len` bytes has left; `None` when the queue is full.
    fn departure(&mut self, now: Instant, len: usize) -> Option<Instant> {
        let Some(rate) = self.faults.rate.filter(|rate| *rate > 0) else {
            return Some(now);
        };
        const NS_PER_S: u128 = 1_000_000_000;
        let now_ns = now.as_micros().saturating_mul(1000);
        let waiting_ns = self.link_free_ns.saturating_sub(now_ns);
        let waiting_bytes = u128::from(waiting_ns) * u128::from(rate) / NS_PER_S;
        // A frame that finds the link idle needs no queue.
        if waiting_ns > 0 && waiting_bytes + len as u128 > self.faults.queue_bytes as u128 {
            return None;
        }
        let sending_ns =
            u64::try_from(len as u128 * NS_PER_S / u128::from(rate)).unwrap_or(u64::MAX);
        self.link_free_ns = self.link_free_ns.max(now_ns).saturating_add(sending_ns);
        Some(Instant::from_micros(self.link_free_ns.div_ceil(1000)))
    }

    fn hold(&mut self, due: Instant, meta: FrameMeta, bytes: Vec<u8>) {
        if self.held.len() >= HELD_FRAMES_MAX {
            self.counters.queue_drops += 1;
            return;
        }
        self.held.insert((due, self.next_order), (meta, bytes));
        self.next_order += 1;
    }

    fn take_due(&mut self, now: Instant) -> Option<Held> {
        let first = self
            .held
            .first_entry()
            .filter(|first| first.key().0 <= now)?;
        let ((due, order), (meta, bytes)) = first.remove_entry();
        Some(Held {
            due,
            order,
            meta,
            bytes,
        })
    }

    fn put_back(&mut self, frame: Held) {
        self.held
            .insert((frame.due, frame.order), (frame.meta, frame.bytes));
    }

    fn delivered(&mut self, frame: Held) {
        self.counters.delivered += 1;
        self.spare.push(frame.bytes);
    }

    fn next_due(&self) -> Option<Instant> {
        self.held.first_key_value().map(|(key, _)| key.0)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, any seed is good.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with probability `p`. Draws no number for an impossible event, so that a fault which is
    /// switched off does not change the fate of the others.
    fn chance(&mut self, p: f64) -> bool {
        // 53 bits are what a f64 holds exactly.
        p > 0.0 && ((self.next() >> 11) as f64) < p * (1u64 << 53) as f64
    }

    /// Evenly from `0..bound`; 0 when the bound is 0 or 1.
    fn below(&mut self, bound: u64) -> u64 {
        if bound <= 1 {
            0
        } else {
            ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
        }
    }
}

#[cfg(test)]
mod tests;
