//! SYN cookies: a flooded listener keeps nothing and lets the ISN carry what it must know.
//!
//! ```text
//!  ISN: 5 bits minute count | 3 bits MSS index | 24 bits MAC
//! ```
//! Window scale, SACK and ECN travel in the low bits of our timestamp when the peer sends one.

use super::seq::Seq;
use crate::addr::FourTuple;
use crate::secret::Key;
use crate::time::Instant;

/// Common MSS values, as measured on the Internet; the largest not above the peer's is used.
const MSS_TABLE: [u16; 8] = [536, 1220, 1300, 1360, 1400, 1440, 1460, 8960];
const TICK_US: u64 = 64_000_000;
/// Cookies older than this many ticks are refused.
const TICKS_MAX: u32 = 2;
const TS_BITS: u32 = 6;
const NO_SCALE: u32 = 15;

/// What a cookie with a timestamp remembers besides the MSS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extras {
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack: bool,
    pub(crate) ecn: bool,
}

fn mac(key: Key, t: &FourTuple, irs: Seq, head: u32) -> u32 {
    let (lh, ll) = t.local.ip.words();
    let (rh, rl) = t.remote.ip.words();
    let ports = u64::from(t.local.port) << 16 | u64::from(t.remote.port);
    let h = key.siphash(&[
        lh,
        ll,
        rh,
        rl,
        ports,
        u64::from(irs.0) << 32 | u64::from(head),
    ]);
    h as u32 & 0xff_ffff
}

fn ticks(now: Instant) -> u32 {
    (now.as_micros() / TICK_US) as u32
}

/// The ISN that stands for this SYN.
pub(crate) fn make(key: Key, t: &FourTuple, irs: Seq, mss: u16, now: Instant) -> Seq {
    let index = MSS_TABLE.iter().rposition(|m| *m <= mss).unwrap_or(0) as u32;
    let head = (ticks(now) & 31) << 3 | index;
    Seq(head << 24 | mac(key, t, irs, head))
}

/// The MSS if `isn` is a cookie of ours, young enough, for this tuple.
pub(crate) fn check(key: Key, t: &FourTuple, irs: Seq, isn: Seq, now: Instant) -> Option<u16> {
    let head = isn.0 >> 24;
    let age = ticks(now).wrapping_sub(head >> 3) & 31;
    (age <= TICKS_MAX && mac(key, t, irs, head) == isn.0 & 0xff_ffff)
        .then(|| MSS_TABLE[(head & 7) as usize])
}

/// Our timestamp with the extras in its low bits, never later than the clock by more than those
/// bits.
pub(crate) fn encode_ts(ts: u32, e: Extras) -> u32 {
    let bits =
        e.window_scale.map_or(NO_SCALE, u32::from) << 2 | u32::from(e.sack) << 1 | u32::from(e.ecn);
    let mask = (1 << TS_BITS) - 1;
    let v = ts & !mask | bits;
    if v > ts {
        v.wrapping_sub(1 << TS_BITS)
    } else {
        v
    }
}

pub(crate) fn decode_ts(ecr: u32) -> Extras {
    let scale = ecr >> 2 & 15;
    Extras {
        window_scale: (scale != NO_SCALE).then_some(scale as u8),
        sack: ecr & 2 != 0,
        ecn: ecr & 1 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Endpoint, Ip};

    #[test]
    fn cookies_verify_for_their_flow_and_time_only() {
        let key = Key([3; 16]);
        let at = |n: u8, port| Endpoint {
            ip: Ip::v4([10, 0, 0, n].into()),
            port,
        };
        let t = FourTuple {
            local: at(1, 80),
            remote: at(2, 4000),
        };
        let now = Instant::from_millis(1_000_000);
        let irs = Seq(77);
        for (offered, kept) in [(1460, 1460), (1459, 1440), (100, 536), (65_000, 8960)] {
            let isn = make(key, &t, irs, offered, now);
            assert_eq!(check(key, &t, irs, isn, now), Some(kept));
            assert_eq!(
                check(key, &t, irs, isn, now.plus_us(2 * TICK_US)),
                Some(kept)
            );
            assert_eq!(check(key, &t, irs, isn, now.plus_us(4 * TICK_US)), None);
            assert_eq!(check(key, &t, irs + 1, isn, now), None);
            let other = FourTuple {
                remote: at(2, 4001),
                ..t
            };
            assert_eq!(check(key, &other, irs, isn, now), None);
        }
    }

    #[test]
    fn extras_survive_in_a_timestamp_that_does_not_run_ahead() {
        for scale in [None, Some(0), Some(7), Some(14)] {
            for (sack, ecn) in [(false, true), (true, false)] {
                let e = Extras {
                    window_scale: scale,
                    sack,
                    ecn,
                };
                for ts in [0x100u32, 0x1234_5678, u32::MAX] {
                    let v = encode_ts(ts, e);
                    assert_eq!(decode_ts(v), e);
                    assert!(ts.wrapping_sub(v) < 64 + 64);
                }
            }
        }
    }
}
