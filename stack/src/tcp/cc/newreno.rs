//! AIMD of RFC 5681.

use super::Window;

/// §3.1 equation 3 by byte counting: one segment per window of acknowledged bytes.
pub(super) fn on_ack(acked: &mut u32, w: &mut Window, mss: u32, bytes: u32) {
    *acked = acked.saturating_add(bytes);
    if *acked >= w.cwnd {
        *acked -= w.cwnd;
        w.grow(mss);
    }
}

/// §3.1 equation 4, on the window as Linux does rather than the flight.
pub(super) fn ssthresh(w: &Window, mss: u32) -> u32 {
    (w.cwnd / 2).max(2 * mss)
}
