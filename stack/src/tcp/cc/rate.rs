//! Delivery rate samples (draft-cheng-iccrg-delivery-rate-estimation): how fast the path delivered what
//! an ACK reports, and whether the application let it.

use crate::tcp::scoreboard::{Sent, Stamp, elapsed, stamp_at_or_after};

/// What was true when a range was sent. Kept with the range.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Snapshot {
    /// Bytes delivered until then, modulo 2^32, and when the last of them were.
    delivered: u32,
    delivered_at: Stamp,
    /// When the flight the range is measured with began.
    first_sent: Stamp,
    app_limited: bool,
}

/// Counts what arrives at the peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sampler {
    delivered: u32,
    delivered_at: Stamp,
    first_sent: Stamp,
    /// Until so much is delivered, samples show the application's rate and not the path's.
    app_limited: Option<u32>,
    /// The newest range the present ACK delivers, and when that was sent.
    newest: Option<(Snapshot, Stamp)>,
}

/// What one ACK says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RateSample {
    /// Bytes delivered in `interval_us`.
    pub(crate) bytes: u32,
    pub(crate) interval_us: u32,
    /// Bytes delivered when the newest delivered range was sent.
    pub(crate) prior: u32,
    pub(crate) app_limited: bool,
}

impl Sampler {
    /// For a range that leaves at `now`; `is_first`: nothing else is in flight.
    pub(crate) fn sent(&mut self, now: Stamp, is_first: bool) -> Snapshot {
        if is_first {
            self.first_sent = now;
            self.delivered_at = now;
        }
        Snapshot {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            app_limited: self.app_limited.is_some(),
        }
    }

    /// The application has nothing more to send while `pipe` bytes are under way.
    pub(crate) fn starves(&mut self, pipe: u32) {
        self.app_limited = Some(self.delivered.wrapping_add(pipe.max(1)));
    }

    /// Whether what is under way was sent at the application's rate.
    pub(crate) fn is_starved(&self) -> bool {
        self.app_limited.is_some()
    }

    /// A range arrived.
    pub(crate) fn on_delivered(&mut self, s: &Sent, bytes: u32, now: Stamp) {
        self.delivered = self.delivered.wrapping_add(bytes);
        self.delivered_at = now;
        let is_newer = self
            .newest
            .is_none_or(|(old, _)| s.snapshot.delivered.wrapping_sub(old.delivered) as i32 >= 0);
        if is_newer {
            self.newest = Some((s.snapshot, s.at));
            self.first_sent = s.at;
        }
    }

    /// The sample of the ACK just processed; `None` if it delivered nothing, or in less time than the
    /// path has ever taken, which no path does.
    pub(crate) fn take(&mut self, now: Stamp, min_rtt_us: u32) -> Option<RateSample> {
        let (snapshot, sent_at) = self.newest.take()?;
        let is_over = |until: u32| stamp_at_or_after(self.delivered, until);
        if self.app_limited.is_some_and(is_over) {
            self.app_limited = None;
        }
        let sending = sent_at.wrapping_sub(snapshot.first_sent);
        let delivering = elapsed(now, snapshot.delivered_at);
        let interval_us = sending.max(delivering);
        (interval_us >= min_rtt_us.min(1 << 30) && interval_us > 0).then(|| RateSample {
            bytes: self.delivered.wrapping_sub(snapshot.delivered),
            interval_us,
            prior: snapshot.delivered,
            app_limited: snapshot.app_limited,
        })
    }

    pub(crate) const fn delivered(&self) -> u32 {
        self.delivered
    }
}
