//! Goodput of a sender whose thread is late, through bad links, as a table that is kept.

use std::fmt::Write as _;
use std::time::Duration;

use kcm_stack::{CongestionControl, ConnectOptions, ListenOptions, SockOpts};

use crate::link::LinkConfig;
use crate::net::{MAC, Net, at, ip};
use crate::world::World;

/// Mbit/s that reach the application in `time`, and the segments sent again.
fn goodput(
    congestion: CongestionControl,
    link: &LinkConfig,
    late_us: u64,
    time: Duration,
) -> (f64, u64) {
    let mut net = Net::new([link.clone(), link.clone()], 3);
    net.check = false;
    net.make_late(late_us, 11);
    for (i, mac) in MAC.iter().enumerate() {
        net.stacks[1 - i].add_neighbor(ip(i), *mac, net.now);
    }
    let listener = net.stacks[1]
        .tcp_listen(at(1, 80), &ListenOptions::default())
        .unwrap();
    let options = ConnectOptions {
        opts: Some(SockOpts {
            congestion,
            ..SockOpts::DEFAULT
        }),
        ..ConnectOptions::default()
    };
    let client = net.stacks[0]
        .tcp_connect(net.now, at(1, 80), &options)
        .unwrap();
    let data = vec![5; 1 << 16];
    let mut buf = vec![0; 1 << 18];
    let mut server = None;
    let mut received = 0;
    let end = net.now + time;
    while net.step(end) {
        server = server.or_else(|| net.stacks[1].tcp_accept(listener));
        // Full or not connected yet: the next round will do.
        let _ = net.stacks[0].tcp_send(net.now, client, &[&data], false);
        if let Some(server) = server {
            while let Ok(n) = net.stacks[1].tcp_recv(net.now, server, &mut buf) {
                received += n;
            }
        }
    }
    let mbit = received as f64 * 8.0 / time.as_secs_f64() / 1e6;
    (mbit, net.stacks[0].tcp_stats().segments_retransmitted)
}

fn link(delay_us: u64, loss: u32) -> LinkConfig {
    LinkConfig {
        delay: Duration::from_micros(delay_us),
        rate: 100_000_000,
        queue_bytes: 250_000,
        loss,
        ..LinkConfig::default()
    }
}

/// Regenerate with `UPDATE_SNAPSHOTS=1 cargo test -p kcm-stack --test sim late`.
#[test]
fn a_late_thread_costs_what_is_recorded() {
    let mut table = String::from(
        "# Goodput in Mbit/s (segments retransmitted) of the first second on 100 Mbit/s, one-way delay in ms,\n\
         # loss both ways; the sender's thread wakes up to so many ms late\n",
    );
    for congestion in [CongestionControl::Cubic, CongestionControl::Bbr] {
        for delay_us in [50, 10_000] {
            for late_us in [0, 4_000] {
                let (name, delay, late) = (
                    congestion.name(),
                    delay_us as f64 / 1e3,
                    late_us as f64 / 1e3,
                );
                write!(table, "{name:6} {delay:5} late {late:3}").unwrap();
                for loss in [100, 10_000, 50_000] {
                    let time = Duration::from_secs(1);
                    let (mbit, retrans) = goodput(congestion, &link(delay_us, loss), late_us, time);
                    write!(
                        table,
                        " | {:5}%: {mbit:5.1} ({retrans})",
                        f64::from(loss) / 1e4
                    )
                    .unwrap();
                }
                table.push('\n');
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/late.snap");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(table, recorded, "goodput changed");
}

/// PROBE_RTT every 10 s keeps the flight small for 200 ms, ten round trips here: what the filter of the
/// bandwidth forgets meanwhile would take seconds to find again.
#[test]
fn bbr_measures_the_round_trip_without_forgetting_the_bandwidth() {
    let slow = LinkConfig {
        rate: 20_000_000,
        ..link(5_000, 0)
    };
    let (mbit, _) = goodput(CongestionControl::Bbr, &slow, 0, Duration::from_secs(14));
    assert!(mbit > 18.0, "{mbit}");
}
