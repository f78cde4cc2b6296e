//! Round-trip estimate and retransmission timeout (RFC 6298), with Linux's floor.

use crate::limits::{RTO_FALLBACK, RTO_INITIAL, RTO_MAX, RTO_MIN};

/// Smoothed round-trip time in microseconds; `srtt == 0` means no sample yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RttEstimate {
    pub(crate) srtt_us: u32,
    pub(crate) rttvar_us: u32,
    /// Least sample seen; `u32::MAX` before the first.
    pub(crate) min_us: u32,
}

impl RttEstimate {
    pub(crate) const fn new() -> Self {
        Self {
            srtt_us: 0,
            rttvar_us: 0,
            min_us: u32::MAX,
        }
    }

    /// RFC 6298 §2.2 and §2.3.
    pub(crate) fn sample(&mut self, rtt_us: u32) {
        let r = rtt_us.clamp(1, RTO_MAX.as_micros() as u32);
        self.min_us = self.min_us.min(r);
        if self.srtt_us == 0 {
            self.srtt_us = r;
            self.rttvar_us = r / 2;
        } else {
            let deviation = self.srtt_us.abs_diff(r);
            self.rttvar_us = self.rttvar_us - self.rttvar_us / 4 + deviation / 4;
            self.srtt_us = self.srtt_us - self.srtt_us / 8 + r / 8;
            self.srtt_us = self.srtt_us.max(1);
        }
    }

    /// RFC 6298 §5.7: the handshake took a timeout and measured nothing, so data starts with 3 s.
    pub(crate) fn fall_back(&mut self) {
        if self.srtt_us == 0 {
            self.rttvar_us = RTO_FALLBACK.as_micros() as u32;
        }
    }

    /// RTO without backoff, in microseconds. Linux applies its 200 ms floor to the variance term, so
    /// the timeout always exceeds the smoothed round trip by at least that.
    pub(crate) fn rto_us(&self) -> u64 {
        if self.srtt_us == 0 {
            return (RTO_INITIAL.as_micros() as u64).max(self.rttvar_us.into());
        }
        let var = (u64::from(self.rttvar_us) * 4).max(RTO_MIN.as_micros() as u64);
        (u64::from(self.srtt_us) + var).min(RTO_MAX.as_micros() as u64)
    }

    /// RFC 6298 §5.5: doubled per timeout, bounded; in microseconds.
    pub(crate) fn backed_off_us(&self, backoff: u8) -> u64 {
        (self.rto_us() << backoff.min(10)).min(RTO_MAX.as_micros() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_sample_and_convergence_follow_rfc6298() {
        let mut e = RttEstimate::new();
        assert_eq!(e.rto_us(), 1_000_000);
        e.sample(100_000);
        assert_eq!((e.srtt_us, e.rttvar_us), (100_000, 50_000));
        assert_eq!(e.rto_us(), 300_000);
        for _ in 0..200 {
            e.sample(100_000);
        }
        assert_eq!(e.rto_us(), u64::from(e.srtt_us) + 200_000);
        assert_eq!(e.backed_off_us(1), e.rto_us() * 2);
        assert_eq!(e.backed_off_us(30), 120_000_000);
    }
}
