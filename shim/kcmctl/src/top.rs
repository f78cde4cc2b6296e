//! `kcmctl top`: all processes by their rates, refreshed.

use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::page::{self, Page};
use crate::ps::command;
use crate::rates::Rates;
use crate::stat::Repeat;
use crate::terminal::Screen;
use crate::{Outcome, out};

/// Columns that the list can be sorted by, and the key that chooses each.
const ORDERS: [(u8, &str, usize); 4] = [
    (b'r', "RX-Msg/s", 0),
    (b'R', "RX-Byte/s", 1),
    (b't', "TX-Msg/s", 2),
    (b'T', "TX-Byte/s", 3),
];

/// Whether a process is in the list of KCM; one that only the stack serves is in the other alone.
fn uses_kcm(page: &Page) -> bool {
    page.stack.is_none() || page.muxes > 0 || page.totals.mux[1] > 0
}

/// Two looks at every process.
struct Looks {
    before: BTreeMap<u32, Page>,
    at: Instant,
    rows: Vec<(Page, Rates)>,
    problems: usize,
}

impl Looks {
    fn new() -> Self {
        let mut looks = Self {
            before: BTreeMap::new(),
            at: Instant::now(),
            rows: Vec::new(),
            problems: 0,
        };
        looks.again();
        looks
    }

    fn again(&mut self) {
        let elapsed = self.at.elapsed().as_nanos() as u64;
        self.at = Instant::now();
        let old = std::mem::take(&mut self.rows);
        self.before
            .extend(old.into_iter().map(|(page, _)| (page.pid, page)));
        let (pages, problems) = page::all();
        self.problems = problems.len();
        let mut before = std::mem::take(&mut self.before);
        self.rows = pages
            .into_iter()
            .map(|page| {
                let earlier = before
                    .remove(&page.pid)
                    .filter(|p| p.created == page.created);
                let rates = earlier.map(|p| Rates::between(&p, &page, elapsed));
                (page, rates.unwrap_or_default())
            })
            .collect();
    }

    fn sort(&mut self, order: usize) {
        let key = |rates: &Rates| {
            let of = |rates: &[f64; 4]| rates.get(order).copied().unwrap_or(0.0);
            (of(&rates.kcm), of(&rates.stack))
        };
        self.rows.sort_by(|(a, x), (b, y)| {
            let (x, y) = (key(x), key(y));
            let kcm = y.0.total_cmp(&x.0);
            kcm.then(y.1.total_cmp(&x.1)).then(a.pid.cmp(&b.pid))
        });
    }

    fn lines(&self, columns: Option<usize>) -> Vec<String> {
        let mut table = out::Table::new(&[
            "PID",
            "MUXES",
            "PSOCKS",
            "RX-Msg/s",
            "RX-Byte/s",
            "TX-Msg/s",
            "TX-Byte/s",
            "<PROGRAM",
        ]);
        for (page, rates) in self.rows.iter().filter(|(page, _)| uses_kcm(page)) {
            let psocks = page.totals.mux[1].saturating_sub(page.totals.mux[2]);
            let mut row = vec![
                page.pid.to_string(),
                page.muxes.to_string(),
                psocks.to_string(),
            ];
            row.extend(rates.kcm.map(out::short));
            row.push(command(page));
            table.row(row);
        }
        let mut lines = table.lines(columns);
        let stack = self.stack_lines(columns);
        if stack.len() > 1 {
            lines.push(String::new());
            lines.extend(stack);
        }
        lines
    }

    /// Processes that the stack serves, under their headings.
    fn stack_lines(&self, columns: Option<usize>) -> Vec<String> {
        let mut table = out::Table::new(&[
            "PID",
            "TCP",
            "LISTEN",
            "UDP",
            "RX-Frm/s",
            "RX-Byte/s",
            "TX-Frm/s",
            "TX-Byte/s",
            "<PROGRAM",
        ]);
        for (page, rates) in &self.rows {
            let Some(stack) = &page.stack else { continue };
            let mut row = vec![page.pid.to_string()];
            row.extend(stack.sockets.map(|count| count.to_string()));
            row.extend(rates.stack.map(out::short));
            row.push(command(page));
            table.row(row);
        }
        table.lines(columns)
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(page, rates)| {
            json!({
                "pid": page.pid,
                "command": command(page),
                "muxes": page.muxes,
                "stack": page.stack.as_ref().map(page::Stack::json),
                "per_second": rates.json(page),
            })
        });
        Value::Array(rows.collect())
    }
}

pub(crate) fn top(repeat: &Repeat, as_json: bool) -> Outcome<()> {
    if as_json || out::columns().is_none() {
        return plain(repeat, as_json);
    }
    let screen = Screen::enter()?;
    let (mut looks, mut order) = (Looks::new(), 0);
    let mut shown = 0;
    while repeat.count.is_none_or(|count| shown < count) {
        shown += 1;
        looks.sort(ORDERS[order].2);
        let (columns, rows) = out::size().unwrap_or((80, 24));
        screen.show(&picture(&looks, order, columns, rows), (columns, rows))?;
        let until = Instant::now() + repeat.interval;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match screen.key(left) {
                Some(b'q' | 3) => return Ok(()), // 3 is Ctrl-C
                Some(key) => match ORDERS.iter().position(|(k, ..)| *k == key) {
                    Some(chosen) => order = chosen,
                    None => continue,
                },
                None if Instant::now() >= until => looks.again(),
                None => {} // the window may have changed
            }
            break;
        }
    }
    Ok(())
}

/// Heading, list, and the keys on the last row.
fn picture(looks: &Looks, order: usize, columns: usize, rows: usize) -> Vec<String> {
    let mut lines = vec![format!(
        "kcmctl top: {} processes, by {}{}",
        looks.rows.len(),
        ORDERS[order].1,
        if looks.problems > 0 {
            format!(", {} pages unreadable (see kcmctl ps)", looks.problems)
        } else {
            String::new()
        }
    )];
    lines.push(String::new());
    lines.extend(looks.lines(Some(columns)));
    lines.resize(rows.saturating_sub(1), String::new());
    lines.push("q quit   sort: r RX-Msg/s  R RX-Byte/s  t TX-Msg/s  T TX-Byte/s".to_owned());
    lines
}

/// Without a terminal: a table, or a line of JSON, an interval; one if no count is given.
fn plain(repeat: &Repeat, as_json: bool) -> Outcome<()> {
    let mut looks = Looks::new();
    for _ in 0..repeat.count.unwrap_or(1) {
        thread::sleep(repeat.interval);
        looks.again();
        looks.sort(0);
        if as_json {
            out::print_json(&looks.json())?;
        } else {
            out::print(&(looks.lines(None).join("\n") + "\n"))?;
        }
    }
    Ok(())
}
