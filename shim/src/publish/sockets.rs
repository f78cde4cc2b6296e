//! The stack as the page has it: its counters, and its sockets as records.

use core::time::Duration;

use kcm_stack::{CongestionControl, TcpInfo};

use super::image::Record;
use super::journal::put_address;
use super::layout::{STACK_COUNTERS, STACK_SOCKETS, header, record, socket};
use crate::net::{Shown, Tallies, cells};

/// What the stack was like when the housekeeper last looked.
pub(super) struct Seen {
    pub(super) records: Vec<Record>,
    /// Sockets that are not among them.
    pub(super) left_out: u64,
    pub(super) is_open: bool,
    pub(super) counters: [u64; STACK_COUNTERS.len()],
    pub(super) sockets: [u64; STACK_SOCKETS.len()],
    pub(super) engines: u64,
    pub(super) each: [u64; header::ENGINES_MAX],
}

impl Seen {
    pub(super) const fn new() -> Self {
        Self {
            records: Vec::new(),
            left_out: 0,
            is_open: false,
            counters: [0; STACK_COUNTERS.len()],
            sockets: [0; STACK_SOCKETS.len()],
            engines: 0,
            each: [0; header::ENGINES_MAX],
        }
    }

    /// Looks at every socket; there is none while the stack serves nothing here.
    pub(super) fn look() -> Self {
        let mut seen = Self::new();
        let mut elsewhere = Vec::new();
        for (cell, each) in cells::all().zip(&mut seen.each) {
            let Ok(mut engine) = cell.lock() else {
                continue;
            };
            seen.is_open = true;
            seen.engines += 1;
            add(&mut seen.counters, &counters(&engine.tallies()));
            let kinds = engine.kinds();
            *each = pair(cell.passes(), kinds.iter().sum::<u64>() as u32);
            add(&mut seen.sockets, &kinds);
            let shown = engine.shown(record::MAX - seen.records.len());
            elsewhere.extend(engine.waiting_for_others());
            drop(engine);
            seen.records.extend(shown.iter().map(of));
        }
        // A listener is shown once, with what waits for it anywhere.
        for record in &mut seen.records {
            let own = { elsewhere.iter() }.filter(|(inode, _)| *inode == record[socket::INODE]);
            record[socket::RECV_Q] += own.map(|(_, count)| count).sum::<u64>();
        }
        let all: u64 = seen.sockets.iter().sum();
        seen.left_out = all.saturating_sub(record::MAX as u64);
        seen
    }
}

fn add(sum: &mut [u64], more: &[u64]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

fn counters((device, tcp, udp): &Tallies) -> [u64; STACK_COUNTERS.len()] {
    [
        device.rx_frames,
        device.rx_bytes,
        device.tx_frames,
        device.tx_bytes,
        device.rx_missed,
        device.tx_errors,
        tcp.segments_in,
        tcp.segments_out,
        tcp.segments_retransmitted,
        tcp.established,
        tcp.resets_in,
        tcp.resets_out,
        tcp.timeouts,
        tcp.listen_overflows,
        udp.datagrams_in,
        udp.datagrams_out,
        udp.no_ports,
        udp.rcvbuf_errors,
    ]
}

fn of(shown: &Shown) -> Record {
    let mut words = [0; record::WORDS];
    words[record::KIND] = record::SOCKET;
    let protocol = if shown.is_udp { 17 } else { 6 };
    words[socket::PROTOCOL_STATE] = pair(protocol, shown.state.into());
    words[socket::INODE] = shown.inode;
    words[socket::RECV_Q] = shown.recv_q;
    words[socket::SEND_Q] = shown.send_q;
    put_address(&mut words[socket::LOCAL..], shown.local);
    put_address(&mut words[socket::REMOTE..], shown.remote);
    if let Some(info) = &shown.info {
        put_info(&mut words, info);
    }
    words
}

fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
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
    let congestion = match info.congestion {
        CongestionControl::NewReno => 0,
        CongestionControl::Cubic => 1,
        CongestionControl::Bbr => 2,
    };
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
            socket::BACKOFF_CONGESTION,
            pair(info.backoff.into(), congestion),
        ),
    ] {
        words[at] = word;
    }
}
