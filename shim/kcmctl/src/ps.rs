//! `kcmctl ps`: who runs under the library and uses KCM or the stack.

use serde_json::{Value, json};

use crate::page::{self, Page, counters_json};
use crate::{Outcome, out, process};

pub(crate) fn ps(as_json: bool) -> Outcome<()> {
    let (pages, problems) = page::all();
    problems
        .iter()
        .for_each(|problem| out::complain(&problem.to_string()));
    if as_json {
        return out::print_json(&Value::Array(pages.iter().map(one_json).collect()));
    }
    let mut table = out::Table::new(&[
        "PID", "MUXES", "KCMS", "PSOCKS", "RX-MSGS", "TX-MSGS", "STACK", "<PROGRAM",
    ]);
    for page in &pages {
        let sum = |at: fn(&page::Record) -> u64| -> String {
            let muxes = page.records.iter().filter(|r| r.kind == page::Kind::Mux);
            muxes.map(at).fold(0, u64::saturating_add).to_string()
        };
        table.row([
            page.pid.to_string(),
            page.muxes.to_string(),
            sum(|r| r.first),
            sum(|r| r.second),
            page.totals.psock[0].to_string(),
            page.totals.psock[2].to_string(),
            page.stack.as_ref().map_or_else(
                || "-".to_owned(),
                |stack| {
                    stack
                        .sockets
                        .into_iter()
                        .fold(0, u64::saturating_add)
                        .to_string()
                },
            ),
            command(page),
        ]);
    }
    out::print(&table.text(out::columns()))
}

/// The command line without the program's directory, or at least the program's name.
pub(crate) fn command(page: &Page) -> String {
    let Some(line) = process::command(page.pid) else {
        return page.program.clone();
    };
    let program = line.find(' ').unwrap_or(line.len());
    let name = line[..program].rfind('/').map_or(0, |slash| slash + 1);
    line[name..].to_owned()
}

fn one_json(page: &Page) -> Value {
    json!({
        "pid": page.pid,
        "program": page.program,
        "command": command(page),
        "library": page.release,
        "muxes": page.muxes,
        "created_ns": page.created,
        "updated_ns": page.updated,
        "totals": counters_json(page.totals.counters()),
        "stack": page.stack.as_ref().map(page::Stack::json),
    })
}
