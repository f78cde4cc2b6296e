//! `kcmctl mux PID`: KCM sockets and psocks with their counters.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::layout::flag;
use crate::page::{self, Kind, Page, Record, counters_json};
use crate::{Outcome, out, process};

/// What /proc adds to the records of a page.
struct Around {
    descriptors: BTreeMap<u64, Vec<i64>>,
    addresses: BTreeMap<u64, (SocketAddr, SocketAddr)>,
}

impl Around {
    fn of(pid: u32) -> Self {
        Self {
            descriptors: process::sockets(pid),
            addresses: process::tcp_addresses(pid),
        }
    }

    fn fds(&self, record: &Record) -> &[i64] {
        self.descriptors
            .get(&record.inode)
            .map_or(&[], Vec::as_slice)
    }

    fn peers(&self, record: &Record) -> Option<&(SocketAddr, SocketAddr)> {
        self.addresses.get(&record.inode)
    }
}

pub(crate) fn mux(pid: u32, as_json: bool) -> Outcome<()> {
    let page = page::of(pid)?;
    let around = Around::of(pid);
    if as_json {
        let records: Vec<_> = page
            .records
            .iter()
            .map(|r| record_json(r, &around))
            .collect();
        return out::print_json(&json!({
            "pid": pid,
            "muxes": page.muxes,
            "left_out": page.left_out,
            "records": records,
            "totals": counters_json(page.totals.counters()),
        }));
    }
    out::print(&text(&page, &around))
}

fn name(record: &Record) -> String {
    match record.kind {
        Kind::Mux => format!("mux-{}", record.mux),
        Kind::Kcm => format!("  kcm-{}", record.number),
        Kind::Psock => format!("  psock-{}", record.number),
    }
}

fn text(page: &Page, around: &Around) -> String {
    let mut table = out::Table::new(&[
        "<OBJECT", "<FD", "RX-Msgs", "RX-Bytes", "TX-Msgs", "TX-Bytes", "<STATE",
    ]);
    for record in &page.records {
        let fds: Vec<_> = around.fds(record).iter().map(i64::to_string).collect();
        let mut row = vec![name(record), fds.join(",")];
        row.extend(
            ["RX-Msgs", "RX-Bytes", "TX-Msgs", "TX-Bytes"].map(|c| record.counter(c).to_string()),
        );
        row.push(state(record, around));
        table.row(row);
    }
    let mut text = table.text(out::columns());
    if page.left_out > 0 {
        text += &format!("and {} more that the page has no room for\n", page.left_out);
    }
    let traffic = ["RX-Msgs", "RX-Bytes", "TX-Msgs", "TX-Bytes"];
    let events: Vec<_> = page
        .totals
        .counters()
        .filter(|(name, value)| *value > 0 && !traffic.contains(name))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if !events.is_empty() {
        let events = format!("since start: {}", events.join(", "));
        text += &out::wrapped(&events, 4, out::columns());
    }
    text
}

/// What the kernel shows in its status column, as far as the page tells.
fn state(record: &Record, around: &Around) -> String {
    let mut words = Vec::new();
    match record.kind {
        Kind::Mux => {
            let ty = if record.has(flag::SEQPACKET) {
                "SEQPACKET"
            } else {
                "DGRAM"
            };
            words.push(format!(
                "{ty}, KCMs: {}, Psocks: {}",
                record.first, record.second
            ));
        }
        Kind::Kcm => {
            words.extend(record.reserved.map(|psock| format!("Psck-{psock}")));
            words.extend(record.words([
                (flag::TX_WAIT, "TxWait"),
                (flag::WAIT_MORE, "WMore"),
                (flag::RX_WAIT, "RxWait"),
                (flag::RECV_DISABLED, "RECV_DISABLE"),
            ]));
            for (count, what) in [(record.first, "to read"), (record.pending, "to send")] {
                if count > 0 {
                    words.push(format!("{count} {what}"));
                }
            }
        }
        Kind::Psock => {
            if let Some((local, remote)) = around.peers(record) {
                words.push(format!("{local} {remote}"));
            }
            words.extend(record.words([(flag::TX_STOP, "TxStop"), (flag::RX_STOP, "RxStop")]));
            words.extend(record.reserved.map(|kcm| format!("Rsvd-{kcm}")));
            if record.has(flag::WANTS_WRITE) {
                words.push("TxFull".to_owned());
            }
            if record.has(flag::RX_READY) {
                words.push("RxPause RdyRx".to_owned());
            } else if record.has(flag::RX_BEGUN) {
                words.push(match record.pending {
                    0 => "RxWait".to_owned(),
                    bytes => format!("RxWait={bytes}"),
                });
            }
            if record.second != 0 {
                words.push(errno(record.second));
            }
            let troubles = ["RX-Aborts", "TX-Aborts"].map(|name| (name, record.counter(name)));
            let troubles = troubles.iter().filter(|(_, value)| *value > 0);
            words.extend(troubles.map(|(name, value)| format!("{name} {value}")));
        }
    }
    words.join(" ")
}

/// An errno as words, such as `Bad message (errno 74)`.
pub(crate) fn errno(number: u64) -> String {
    match i32::try_from(number as i64) {
        Ok(number @ 1..=4095) => {
            let words = std::io::Error::from_raw_os_error(number).to_string();
            let words = words.split(" (os error").next().unwrap_or_default();
            format!("{words} (errno {number})")
        }
        _ => format!("errno {}", number as i64),
    }
}

fn record_json(record: &Record, around: &Around) -> Value {
    let mut json = json!({
        "mux": record.mux,
        "fds": around.fds(record),
        "counters": counters_json(record.counters()),
    });
    let more = match record.kind {
        Kind::Mux => json!({
            "kind": "mux",
            "type": if record.has(flag::SEQPACKET) { "SEQPACKET" } else { "DGRAM" },
            "kcms": record.first,
            "psocks": record.second,
        }),
        Kind::Kcm => json!({
            "kind": "kcm",
            "number": record.number,
            "queued": record.first,
            "rx_charge": record.charge,
            "tx_queued": record.pending,
            "psock": record.reserved,
            "tx_wait": record.has(flag::TX_WAIT),
            "wait_more": record.has(flag::WAIT_MORE),
            "rx_wait": record.has(flag::RX_WAIT),
            "recv_disabled": record.has(flag::RECV_DISABLED),
        }),
        Kind::Psock => json!({
            "kind": "psock",
            "number": record.number,
            "works_through_fd": record.first as i64,
            "error": record.second as i64,
            "reserved_by": record.reserved,
            "tx_stop": record.has(flag::TX_STOP),
            "rx_stop": record.has(flag::RX_STOP),
            "rx_ready": record.has(flag::RX_READY),
            "rx_begun": record.has(flag::RX_BEGUN),
            "rx_needs": record.pending,
            "wants_read": record.has(flag::WANTS_READ),
            "wants_write": record.has(flag::WANTS_WRITE),
            "local": around.peers(record).map(|(local, _)| local.to_string()),
            "remote": around.peers(record).map(|(_, remote)| remote.to_string()),
        }),
    };
    if let (Value::Object(json), Value::Object(more)) = (&mut json, more) {
        json.extend(more);
    }
    json
}
