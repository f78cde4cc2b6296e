//! Maximum segment size: peer's option, our MTU, path MTU, TCP_MAXSEG, and the room options take.

use super::conn::{Conn, Flags};
use super::options::TIMESTAMPS_ALIGNED_BYTES;
use crate::addr::Ip;
use crate::limits::MSS_MIN;

const IP_TCP_V4: u16 = 40;
const IP_TCP_V6: u16 = 60;

/// Largest TCP payload without options in a packet of `mtu` bytes.
pub(crate) const fn of_mtu(ip: Ip, mtu: u16) -> u16 {
    let headers = if ip.is_v4() { IP_TCP_V4 } else { IP_TCP_V6 };
    let m = mtu.saturating_sub(headers);
    if m < MSS_MIN { MSS_MIN } else { m }
}

/// Recomputes `c.mss` after an option, the path MTU or TCP_MAXSEG changed. After a black hole the search
/// alone raises it.
pub(crate) fn sync(c: &mut Conn, mtu: u16) {
    let found = c.flags.has(Flags::BLACK_HOLE).then_some(c.mss);
    c.mss = ceiling(c, mtu).min(found.unwrap_or(u16::MAX));
}

/// The largest segment to send over a path that carries packets of `mtu` bytes, as all but a black hole
/// have it.
pub(crate) fn ceiling(c: &Conn, mtu: u16) -> u16 {
    let mut mss = c.peer_mss.min(of_mtu(c.remote_ip, mtu));
    if let Some(max) = c.opts().max_seg {
        mss = mss.min(max);
    }
    if c.flags.has(Flags::TIMESTAMPS) {
        mss = mss.saturating_sub(TIMESTAMPS_ALIGNED_BYTES as u16);
    }
    mss.max(MSS_MIN - TIMESTAMPS_ALIGNED_BYTES as u16)
}
