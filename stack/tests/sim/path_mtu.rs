//! A path whose MTU changes in the middle of a flow without a word from anybody: black hole, search, and the
//! search anew once the path has widened, as a table that is kept.

use std::fmt::Write as _;
use std::time::Duration;

use kcm_stack::{CongestionControl, ConnectOptions, ListenOptions, Received, SockOpts};

use crate::link::LinkConfig;
use crate::net::{MAC, Net, at, ip};
use crate::transfer::Peer;
use crate::world::World;

const ETHERNET: usize = 14;

/// Second at which each part ends, and the path's MTU in it. The search that the black hole at 20 s begins is
/// taken up again after 600 s.
const PARTS: [(u64, usize); 7] = [
    (20, 1_500),
    (30, 1_300),
    (100, 1_300),
    (620, 1_500),
    (700, 1_500),
    (710, 800),
    (740, 800),
];

fn row(congestion: CongestionControl, sack: bool) -> String {
    let link = LinkConfig {
        delay: Duration::from_millis(10),
        rate: 300_000,
        queue_bytes: 30_000,
        ..LinkConfig::default()
    };
    let mut net = Net::with([link.clone(), link], 5, |_, c| c.tcp.sack = sack);
    net.check = false;
    for (i, mac) in MAC.iter().enumerate() {
        net.stacks[1 - i].add_neighbor(ip(i), *mac, net.now);
    }
    let listener = net.stacks[1]
        .tcp_listen(at(1, 80), &ListenOptions::default())
        .unwrap();
    let opts = SockOpts {
        congestion,
        ..SockOpts::DEFAULT
    };
    let options = ConnectOptions {
        opts: Some(opts),
        ..ConnectOptions::default()
    };
    let start = net.now;
    let client = net.stacks[0]
        .tcp_connect(start, at(1, 80), &options)
        .unwrap();
    let mut from = Peer::new(0, client, u64::MAX, 1);
    let mut to: Option<Peer> = None;
    let mut row = format!(
        "{:6}{:8}",
        congestion.name(),
        if sack { "" } else { "no SACK" }
    );
    let (mut began, mut before) = (0, 0);
    for (second, mtu) in PARTS {
        net.links[0].config.mtu = mtu + ETHERNET;
        while net.step(start + Duration::from_secs(second)) {
            let accepted = net.stacks[1].tcp_accept(listener);
            to = to.or_else(|| accepted.map(|id| Peer::new(1, id, 0, 2)));
            if net.stacks[0].tcp_can_send(client) {
                from.pump(&mut net);
            }
            if let Some(to) = &mut to {
                to.pump(&mut net);
            }
        }
        let received = to.as_ref().map_or(0, |to| to.received);
        let kbit = (received - before) as f64 * 8.0 / (second - began) as f64 / 1e3;
        let mss = net.stacks[0].tcp_info(net.now, client).unwrap().snd_mss;
        let stats = net.stacks[0].tcp_stats();
        let probes = (stats.mtu_probes_acknowledged, stats.mtu_probes_lost);
        write!(
            row,
            " | {began:3}-{second:3} s {mtu:4}: {kbit:3.0} ({mss} {}/{})",
            probes.0, probes.1
        )
        .unwrap();
        (began, before) = (second, received);
        let carried = mss as usize + 52;
        assert!(second == 30 || carried <= mtu, "{row}");
        // What gets through, but for the threshold of the search and while its result is too young.
        assert!(
            matches!(second, 20 | 30 | 620 | 710) || carried + 8 > mtu,
            "{row}"
        );
    }
    row
}

/// Regenerate with `UPDATE_SNAPSHOTS=1 cargo test -p kcm-stack --test sim path_mtu`.
#[test]
fn the_segment_size_follows_a_path_that_says_nothing() {
    let mut table = String::from(
        "# Goodput in kbit/s of 300, by second and path MTU (MSS at the end, probes that got through / were lost)\n",
    );
    for congestion in [
        CongestionControl::Cubic,
        CongestionControl::NewReno,
        CongestionControl::Bbr,
    ] {
        table += &row(congestion, true);
        table.push('\n');
    }
    table += &row(CongestionControl::Cubic, false);
    table.push('\n');
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/path_mtu.snap");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(table, recorded, "goodput changed");
}

#[test]
fn a_device_that_segments_leaves_a_probe_whole() {
    const PATH: usize = 1_300 + ETHERNET;
    let mut net = Net::with([LinkConfig::default(), LinkConfig::default()], 5, |_, c| {
        c.tso_bytes = 60_000;
    });
    for (i, mac) in MAC.iter().enumerate() {
        net.stacks[1 - i].add_neighbor(ip(i), *mac, net.now);
    }
    let listener = net.stacks[1]
        .tcp_listen(at(1, 80), &ListenOptions::default())
        .unwrap();
    let client = net.stacks[0]
        .tcp_connect(net.now, at(1, 80), &ConnectOptions::default())
        .unwrap();
    let (mut server, mut whole) = (None, 0);
    let mut buf = vec![0; 70_000];
    for _ in 0..6_000 {
        // The links are not used: what is cut on the wire must not look long.
        for side in 0..2 {
            while let Some(t) = net.stacks[side].poll_transmit(net.now, &mut buf) {
                let wire = t.gso.map_or(t.len, |g| {
                    usize::from(g.header_bytes) + usize::from(g.segment_bytes)
                });
                whole += usize::from(t.gso.is_none() && t.len > PATH);
                if wire <= PATH {
                    let received = Received { checksum_ok: true };
                    net.stacks[1 - side].handle_frame(net.now, &buf[..t.len], received);
                }
            }
        }
        net.now += Duration::from_millis(5);
        for stack in &mut net.stacks {
            stack.handle_timeout(net.now);
        }
        server = server.or_else(|| net.stacks[1].tcp_accept(listener));
        // Full or not connected yet: the next round will do.
        let _ = net.stacks[0].tcp_send(net.now, client, &[&[5; 30_000]], false);
        if let Some(server) = server {
            while net.stacks[1].tcp_recv(net.now, server, &mut buf).is_ok() {}
        }
    }
    let mss = net.stacks[0].tcp_info(net.now, client).unwrap().snd_mss;
    let stats = net.stacks[0].tcp_stats();
    assert_eq!((mss, stats.mtu_probes_lost), (1_248, 4), "{stats:?}");
    assert!(whole >= 4, "{whole} frames too large for the path");
}
