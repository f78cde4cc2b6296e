//! Goodput by loss, delay and congestion control, as a table that is kept.

use std::fmt::Write as _;
use std::time::Duration;

use kcm_stack::{CongestionControl, ConnectOptions, SockOpts};

use crate::link::LinkConfig;
use crate::transfer::transfer;

const RATE: u64 = 100_000_000;
const BYTES: u64 = 2_000_000;

fn cell(loss: u32, delay: Duration, congestion: CongestionControl) -> (f64, u64) {
    let link = LinkConfig {
        delay,
        rate: RATE,
        queue_bytes: 250_000,
        loss,
        ..LinkConfig::default()
    };
    let options = ConnectOptions {
        opts: Some(SockOpts {
            congestion,
            ..SockOpts::DEFAULT
        }),
        ..ConnectOptions::default()
    };
    let back = LinkConfig {
        loss: 0,
        ..link.clone()
    };
    let limit = Duration::from_secs(600);
    let (took, net) = transfer(
        [link, back],
        7,
        [BYTES, 0],
        limit,
        |_, c| c.tcp.rcvbuf = 1 << 20,
        &options,
    );
    let mbit = BYTES as f64 * 8.0 / took.as_secs_f64() / 1e6;
    (mbit, net.stacks[0].tcp_stats().segments_retransmitted)
}

/// Regenerate with `UPDATE_SNAPSHOTS=1 cargo test -p kcm-stack --test sim goodput`.
#[test]
fn goodput_table_is_as_recorded() {
    let mut table = String::from(
        "# Goodput in Mbit/s (segments retransmitted) of 2 MB over 100 Mbit/s, one-way delay in ms\n",
    );
    for congestion in [
        CongestionControl::Cubic,
        CongestionControl::NewReno,
        CongestionControl::Bbr,
    ] {
        for delay_us in [50, 5_000, 20_000] {
            write!(
                table,
                "{:8} {:5}",
                congestion.name(),
                delay_us as f64 / 1000.0
            )
            .unwrap();
            for loss in [0, 100, 1_000, 10_000, 50_000] {
                let (mbit, retrans) = cell(loss, Duration::from_micros(delay_us), congestion);
                write!(
                    table,
                    " | {:5}%: {mbit:6.1} ({retrans})",
                    f64::from(loss) / 1e4
                )
                .unwrap();
            }
            table.push('\n');
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/goodput.snap");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let recorded = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(table, recorded, "goodput changed");
}
