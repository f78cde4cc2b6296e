//! Sockets of the stack as records of the page.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use kcm_stack::{CongestionControl, TcpInfo};

use super::image::Record;
use super::layout::{record, socket};
use crate::net::{CELL, Shown};

/// Every socket of the stack; none when it serves nothing here.
pub(super) fn records() -> Vec<Record> {
    if !CELL.is_open() {
        return Vec::new();
    }
    let shown = CELL.lock().map(|mut engine| engine.shown());
    shown.iter().flatten().map(of).collect()
}

fn of(shown: &Shown) -> Record {
    let mut words = [0; record::WORDS];
    words[record::KIND] = record::SOCKET;
    let protocol = if shown.is_udp { 17 } else { 6 };
    words[socket::PROTOCOL_STATE] = pair(protocol, shown.state.into());
    words[socket::INODE] = shown.inode;
    words[socket::RECV_Q] = shown.recv_q;
    words[socket::SEND_Q] = shown.send_q;
    put_address(&mut words, socket::LOCAL, shown.local);
    put_address(&mut words, socket::REMOTE, shown.remote);
    if let Some(info) = &shown.info {
        put_info(&mut words, info);
    }
    words
}

fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

fn put_address(words: &mut Record, at: usize, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let bits = u128::from(ip);
    for (word, half) in words.iter_mut().skip(at).zip([bits >> 64, bits]) {
        *word = half as u64;
    }
    if let Some(word) = words.get_mut(at + 2) {
        *word = address.port().into();
    }
}

fn put_info(words: &mut Record, info: &TcpInfo) {
    let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let ms = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
    // TCPI_OPT_* of linux/tcp.h.
    let options = [info.timestamps, info.sack, info.window_scale, info.ecn];
    let options = options
        .iter()
        .rev()
        .fold(0, |sum, on| sum << 1 | u64::from(*on));
    let is_cubic = matches!(info.congestion, CongestionControl::Cubic);
    for (at, word) in [
        (socket::OPTIONS, options),
        (socket::HAS_INFO, 1),
        (socket::RTO, us(info.rto)),
        (socket::RTT, us(info.rtt)),
        (socket::RTTVAR, us(info.rttvar)),
        (socket::MIN_RTT, info.min_rtt.map_or(0, us)),
        (socket::MSS, pair(info.snd_mss.into(), info.rcv_mss.into())),
        (socket::CWND, info.snd_cwnd.into()),
        (socket::SSTHRESH, info.snd_ssthresh.unwrap_or(0).into()),
        (
            socket::WSCALE,
            pair(info.snd_wscale.into(), info.rcv_wscale.into()),
        ),
        (socket::BYTES_ACKED, info.bytes_acked),
        (socket::BYTES_RECEIVED, info.bytes_received),
        (socket::SEGMENTS, pair(info.segs_out, info.segs_in)),
        (socket::RETRANS, pair(info.retrans, info.total_retrans)),
        (socket::LOST_SACKED, pair(info.lost, info.sacked)),
        (
            socket::UNACKED_NOTSENT,
            pair(info.unacked, info.notsent_bytes),
        ),
        (socket::WINDOWS, pair(info.snd_wnd, info.rcv_wnd)),
        (
            socket::LAST,
            pair(ms(info.last_data_sent), ms(info.last_recv)),
        ),
        (
            socket::BACKOFF_CUBIC,
            pair(info.backoff.into(), is_cubic.into()),
        ),
    ] {
        words[at] = word;
    }
}
