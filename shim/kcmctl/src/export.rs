//! `kcmctl export`: the text format that Prometheus scrapes.

use serde_json::{Value, json};

use crate::layout::STACK_COUNTERS;
use crate::page::{self, Kind, counters_json};
use crate::{Outcome, out};

/// What a gauge shows of a page.
type Gauge = fn(&page::Page) -> u64;

pub(crate) fn export(as_json: bool) -> Outcome<()> {
    let (pages, problems) = page::all();
    problems
        .iter()
        .for_each(|problem| out::complain(&problem.to_string()));
    if as_json {
        let all = pages.iter().map(|page| {
            json!({
                "pid": page.pid,
                "program": page.program,
                "totals": counters_json(page.totals.counters()),
                "stack": page.stack.as_ref().map(page::Stack::json),
            })
        });
        return out::print_json(&Value::Array(all.collect()));
    }
    let mut text = String::new();
    let gauges: [(&str, &str, Gauge); 3] = [
        ("muxes", "Muxes alive.", |page| page.muxes),
        ("kcm_sockets", "KCM sockets open.", |page| {
            sum(page, |r| r.first)
        }),
        ("psocks", "TCP connections attached.", |page| {
            sum(page, |r| r.second)
        }),
    ];
    for (name, help, value) in gauges {
        text += &format!("# HELP kcmshim_{name} {help}\n# TYPE kcmshim_{name} gauge\n");
        for page in &pages {
            text += &format!("kcmshim_{name}{{{}}} {}\n", labels(page), value(page));
        }
    }
    for (at, (name, _)) in page::Totals::default().counters().enumerate() {
        let metric = format!("kcmshim_{}_total", name.to_lowercase().replace('-', "_"));
        text +=
            &format!("# HELP {metric} {name} of /proc/net/kcm_stats.\n# TYPE {metric} counter\n");
        for page in &pages {
            let value = page.totals.counters().nth(at).map_or(0, |(_, value)| value);
            text += &format!("{metric}{{{}}} {value}\n", labels(page));
        }
    }
    text += &stack(&pages);
    out::print(&text)
}

/// Sockets and counters of the processes that the stack serves.
fn stack(pages: &[page::Page]) -> String {
    let served = || {
        pages
            .iter()
            .filter_map(|page| Some((page, page.stack.as_ref()?)))
    };
    let mut text = String::from(
        "# HELP kcmshim_stack_sockets Sockets that the in-process stack serves.\n\
         # TYPE kcmshim_stack_sockets gauge\n",
    );
    for (page, stack) in served() {
        for (kind, count) in stack.sockets() {
            let labels = labels(page);
            text += &format!("kcmshim_stack_sockets{{{labels},kind=\"{kind}\"}} {count}\n");
        }
    }
    for (at, name) in STACK_COUNTERS.into_iter().enumerate() {
        let metric = format!(
            "kcmshim_stack_{}_total",
            name.to_lowercase().replace('-', "_")
        );
        text +=
            &format!("# HELP {metric} {name} of the in-process stack.\n# TYPE {metric} counter\n");
        for (page, stack) in served() {
            text += &format!("{metric}{{{}}} {}\n", labels(page), stack.counters[at]);
        }
    }
    text
}

fn sum(page: &page::Page, of: fn(&page::Record) -> u64) -> u64 {
    let muxes = page
        .records
        .iter()
        .filter(|record| record.kind == Kind::Mux);
    muxes.map(of).fold(0, u64::saturating_add)
}

fn labels(page: &page::Page) -> String {
    let program = page.program.replace('\\', "\\\\").replace('"', "\\\"");
    format!("pid=\"{}\",program=\"{program}\"", page.pid)
}
