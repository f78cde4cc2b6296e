//! `kcmctl stat PID`: counters since start, or rates line by line.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::page::{self, counters_json};
use crate::rates::Rates;
use crate::{Outcome, out};

/// Lines after which a terminal sees the headings again.
const HEADINGS_EVERY: u64 = 20;
const HEADINGS: &str = " RX-Msg/s  RX-Byte/s   TX-Msg/s  TX-Byte/s  RX-Aborts  TX-Aborts  PSOCKS\n";

/// How often, and how many times; for ever when `None`.
pub(crate) struct Repeat {
    pub(crate) interval: Duration,
    pub(crate) count: Option<u64>,
}

pub(crate) fn totals(pid: u32, as_json: bool) -> Outcome<()> {
    let page = page::of(pid)?;
    if as_json {
        return out::print_json(&json!({
            "pid": pid,
            "updated_ns": page.updated,
            "totals": counters_json(page.totals.counters()),
        }));
    }
    let mut table = out::Table::new(&["<COUNTER", "SINCE START"]);
    for (name, value) in page.totals.counters() {
        table.row([name.to_owned(), value.to_string()]);
    }
    out::print(&table.text(out::columns()))
}

pub(crate) fn rates(pid: u32, repeat: &Repeat, as_json: bool) -> Outcome<()> {
    let mut before = page::of(pid)?;
    let mut looked = Instant::now();
    for line in 0.. {
        if repeat.count.is_some_and(|count| line >= count) {
            break;
        }
        thread::sleep(repeat.interval);
        let now = page::of(pid)?;
        let Rates([rx_msgs, rx_bytes, tx_msgs, tx_bytes]) =
            Rates::between(&before, &now, looked.elapsed().as_nanos() as u64);
        looked = Instant::now();
        let totals = &now.totals;
        let aborts = |name: &str| {
            totals
                .counters()
                .find(|(n, _)| *n == name)
                .map_or(0, |(_, v)| v)
        };
        let psocks = now.totals.mux[1].saturating_sub(now.totals.mux[2]);
        if as_json {
            out::print_json(&json!({
                "pid": pid,
                "updated_ns": now.updated,
                "per_second": {
                    "RX-Msgs": rx_msgs, "RX-Bytes": rx_bytes, "TX-Msgs": tx_msgs, "TX-Bytes": tx_bytes,
                },
                "totals": counters_json(totals.counters()),
            }))?;
        } else {
            let headings = line == 0 || out::columns().is_some() && line % HEADINGS_EVERY == 0;
            out::print(&format!(
                "{}{:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>9}  {:>6}\n",
                if headings { HEADINGS } else { "" },
                out::short(rx_msgs),
                out::short(rx_bytes),
                out::short(tx_msgs),
                out::short(tx_bytes),
                aborts("RX-Aborts"),
                aborts("TX-Aborts"),
                psocks,
            ))?;
        }
        before = now;
    }
    Ok(())
}
