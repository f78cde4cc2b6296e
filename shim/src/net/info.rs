//! `struct tcp_info` (linux/tcp.h) from the engine's numbers.

use kcm_stack::{State, TcpInfo};

/// sizeof(struct tcp_info) of kernel 6.1.
const BYTES: usize = 240;

/// States that only a socket has.
pub(crate) const CLOSE: u8 = 7;
pub(crate) const LISTEN: u8 = 10;

/// TCPI_OPT_*.
const TIMESTAMPS: u8 = 1;
const SACK: u8 = 2;
const WINDOW_SCALE: u8 = 4;
const ECN: u8 = 8;
/// A threshold that no window has reached yet (TCP_INFINITE_SSTHRESH).
const INFINITE: u32 = 0x7fff_ffff;

/// State as `tcpi_state` numbers it.
pub(crate) fn state(state: State) -> u8 {
    match state {
        State::Established => 1,
        State::SynSent => 2,
        State::SynReceived => 3,
        State::FinWait1 => 4,
        State::FinWait2 => 5,
        State::TimeWait => 6,
        State::Closed => CLOSE,
        State::CloseWait => 8,
        State::LastAck => 9,
        State::Closing => 11,
    }
}

/// What a socket without a connection says.
pub(crate) fn of_state(state: u8) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[0] = state;
    bytes
}

/// The numbers of a connection, at the offsets of the C structure.
pub(crate) fn encode(info: &TcpInfo) -> [u8; BYTES] {
    let mut bytes = of_state(state(info.state));
    let mss = u32::from(info.snd_mss).max(1);
    let segments = |n: u32| n.div_ceil(mss);
    bytes[2] = info.retransmits;
    bytes[3] = info.probes;
    bytes[4] = info.backoff;
    for (on, bit) in [
        (info.timestamps, TIMESTAMPS),
        (info.sack, SACK),
        (info.window_scale, WINDOW_SCALE),
        (info.ecn, ECN),
    ] {
        bytes[5] |= if on { bit } else { 0 };
    }
    bytes[6] = info.snd_wscale & 15 | info.rcv_wscale << 4;
    let us = |d: core::time::Duration| d.as_micros().min(u32::MAX.into()) as u32;
    let ms = |d: core::time::Duration| d.as_millis().min(u32::MAX.into()) as u32;
    let words = [
        (8, us(info.rto)),
        (12, 40_000),
        (16, mss),
        (20, info.rcv_mss.into()),
        (24, segments(info.unacked)),
        (28, segments(info.sacked)),
        (32, segments(info.lost)),
        (36, segments(info.retrans)),
        (44, ms(info.last_data_sent)),
        (52, ms(info.last_recv)),
        (56, ms(info.last_recv)),
        (64, info.rcv_space),
        (68, us(info.rtt)),
        (72, us(info.rttvar)),
        (76, info.snd_ssthresh.map_or(INFINITE, segments)),
        (80, info.snd_cwnd / mss),
        (84, mss),
        (88, 3),
        (96, info.rcv_space),
        (100, info.total_retrans),
        (136, info.segs_out),
        (140, info.segs_in),
        (144, info.notsent_bytes),
        (148, info.min_rtt.map_or(u32::MAX, us)),
        (220, info.reordering_seen.into()),
        (228, info.snd_wnd),
        (232, info.rcv_wnd),
    ];
    for (at, word) in words {
        put(&mut bytes, at, &word.to_ne_bytes());
    }
    for (at, word) in [
        (112, u64::MAX),
        (120, info.bytes_acked),
        (128, info.bytes_received),
    ] {
        put(&mut bytes, at, &word.to_ne_bytes());
    }
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}
