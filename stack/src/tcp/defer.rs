//! TCP_DEFER_ACCEPT, which Linux counts in SYN-ACKs: seconds are rounded up to the end of one's wait.

use crate::limits::{RTO_INITIAL, RTO_MAX};

/// Waits for the ACK of each SYN-ACK, in seconds: doubled to a bound.
fn waits() -> impl Iterator<Item = u64> {
    let first = RTO_INITIAL.as_secs();
    (0..u8::MAX).map(move |n| (first << n.min(16)).min(RTO_MAX.as_secs()))
}

/// SYN-ACKs sent before `seconds` have passed, for [`ListenOptions::defer_accept`](crate::ListenOptions).
pub fn defer_repeats(seconds: u32) -> u8 {
    let mut left = u64::from(seconds);
    let sent = waits().take_while(|wait| {
        let goes_on = left > 0;
        left = left.saturating_sub(*wait);
        goes_on
    });
    sent.count() as u8
}

/// How long so many SYN-ACKs take, in seconds.
pub fn defer_seconds(repeats: u8) -> u32 {
    waits().take(repeats.into()).sum::<u64>() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What getsockopt answered on Linux 6.18 after setsockopt of the seconds.
    #[test]
    fn seconds_are_rounded_as_on_linux() {
        for (set, repeats, get) in [
            (0, 0, 0),
            (1, 1, 1),
            (2, 2, 3),
            (5, 3, 7),
            (30, 5, 31),
            (127, 7, 127),
            (128, 8, 247),
            (300, 9, 367),
        ] {
            assert_eq!(defer_repeats(set), repeats, "{set} s");
            assert_eq!(defer_seconds(repeats), get, "{set} s");
        }
        assert_eq!(defer_repeats(100_000_000), u8::MAX);
        assert_eq!(defer_seconds(u8::MAX), 29_887);
    }
}
