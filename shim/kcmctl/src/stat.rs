//! `kcmctl stat PID`: counters since start, or rates line by line.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::page::{self, Page, counters_json};
use crate::rates::Rates;
use crate::{Outcome, out, progress};

/// Lines after which a terminal sees the headings again.
const HEADINGS_EVERY: u64 = 20;
const KCM: &str = " RX-Msg/s  RX-Byte/s   TX-Msg/s  TX-Byte/s  RX-Aborts  TX-Aborts  PSOCKS";
const STACK: &str = " RX-Frm/s  RX-Byte/s   TX-Frm/s  TX-Byte/s    RETRANS    TCP    UDP";

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
            "stack": page.stack.as_ref().map(page::Stack::json),
        }));
    }
    let mut table = out::Table::new(&["<COUNTER", "SINCE START"]);
    for (name, value) in page.totals.counters() {
        table.row([name.to_owned(), value.to_string()]);
    }
    let stack = page.stack.iter().flat_map(page::Stack::counters);
    for (name, value) in stack {
        table.row([format!("stack {name}"), value.to_string()]);
    }
    let engines = page.stack.iter().flat_map(|stack| &stack.engines);
    for (at, [rounds, sockets]) in engines.enumerate() {
        table.row([format!("engine {at} rounds"), rounds.to_string()]);
        table.row([format!("engine {at} sockets"), sockets.to_string()]);
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
        progress::pause(repeat.interval);
        let now = page::of(pid)?;
        let rates = Rates::between(&before, &now, looked.elapsed().as_nanos() as u64);
        looked = Instant::now();
        if as_json {
            out::print_json(&json!({
                "pid": pid,
                "updated_ns": now.updated,
                "per_second": rates.json(&now),
                "totals": counters_json(now.totals.counters()),
                "stack": now.stack.as_ref().map(page::Stack::json),
            }))?;
        } else {
            let headings = line == 0 || out::columns().is_some() && line % HEADINGS_EVERY == 0;
            out::print(&lines(&parts(&now, &rates), headings, out::columns()))?;
        }
        before = now;
    }
    Ok(())
}

/// Headings, and the numbers below them: of KCM where it is used, of the stack where it serves.
fn parts(page: &Page, rates: &Rates) -> Vec<(&'static str, String)> {
    let mut parts = Vec::new();
    let numbers = |rates: [f64; 4]| {
        rates
            .map(|rate| format!("{:>9}", out::short(rate)))
            .join("  ")
    };
    let totals = &page.totals;
    let psocks = totals.mux[1].saturating_sub(totals.mux[2]);
    let of = |name: &str| {
        let mut all = totals
            .counters()
            .chain(page.stack.iter().flat_map(page::Stack::counters));
        all.find(|(n, _)| *n == name).map_or(0, |(_, value)| value)
    };
    if page.stack.is_none() || totals.mux[1] > 0 || page.muxes > 0 {
        let (rx, tx) = (of("RX-Aborts"), of("TX-Aborts"));
        let line = format!("{}  {rx:>9}  {tx:>9}  {psocks:>6}", numbers(rates.kcm));
        parts.push((KCM, line));
    }
    if let Some(stack) = &page.stack {
        let [connections, listeners, udp] = stack.sockets;
        let tcp = connections.saturating_add(listeners);
        let retrans = of("RetransSegs");
        let line = format!("{}  {retrans:>9}  {tcp:>5}  {udp:>5}", numbers(rates.stack));
        parts.push((STACK, line));
    }
    parts
}

/// The parts side by side, or one under the other where the terminal is too narrow.
fn lines(parts: &[(&str, String)], headings: bool, columns: Option<usize>) -> String {
    let joined = |of: fn(&(&str, String)) -> String| {
        let all: Vec<_> = parts.iter().map(of).collect();
        all.join("   ") + "\n"
    };
    let (above, below) = (
        joined(|(h, _)| (*h).to_owned()),
        joined(|(_, line)| line.clone()),
    );
    if parts.len() > 1 && columns.is_some_and(|columns| above.trim_end().len() > columns) {
        return parts
            .iter()
            .map(|(h, line)| format!("{h}\n{line}\n"))
            .collect();
    }
    match headings {
        true => above + &below,
        false => below,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_side_by_side_where_there_is_room() {
        let parts = [("A", "1".to_owned()), ("B", "2".to_owned())];
        assert_eq!(lines(&parts, true, None), "A   B\n1   2\n");
        assert_eq!(lines(&parts, false, Some(80)), "1   2\n");
        assert_eq!(lines(&parts, false, Some(4)), "A\n1\nB\n2\n");
        assert_eq!(lines(&parts[..1], false, Some(4)), "1\n");
    }
}
