//! AIMD of RFC 5681.

use super::Window;

/// §3.1 equation 3: a segment more for a window of acknowledged bytes.
pub(super) fn interval(w: &Window) -> u64 {
    w.cwnd.into()
}

/// §3.1 equation 4, on the window as Linux does rather than the flight.
pub(super) fn ssthresh(w: &Window, mss: u32) -> u32 {
    super::threshold(w.cwnd, 512, mss)
}
