//! The bars of the TCP engine: in memory on one core, and through a bad link beside the kernel.
//!
//! ```text
//! cargo bench -p kcm-stack --bench tcp [-- --quick] [-- --huge] [-- CASE…]
//! ```
//!
//! Cases: `echo`, `shards` (an engine per thread), `idle`, `churn`, `bulk`, `holes`, `lossy` (cubic),
//! `bbr` (the same links); `--huge` adds `idle` at ten million connections, `--quick` only shows that everything runs. Figures are
//! medians; compare only figures of one run. Each case has a process of its own, so that none inherits
//! another's memory.

#![allow(clippy::print_stdout, reason = "a benchmark reports on stdout")]
#![allow(clippy::print_stderr, reason = "progress goes to stderr")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod bulk;
mod churn;
mod echo;
mod generator;
mod holes;
mod idle;
mod lossy;
mod pair;
mod report;
mod shards;

use kcm_stack::CongestionControl;
use report::Row;
use std::process::{Command, Stdio};

/// Set in the process that runs one case.
const CASE: &str = "KCM_TCP_BENCH_CASE";

const CASES: [&str; 8] = [
    "echo", "shards", "idle", "churn", "bulk", "holes", "lossy", "bbr",
];

fn main() {
    if lossy::is_child() {
        return;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let quick = args.iter().any(|a| a == "--quick");
    if let Ok(case) = std::env::var(CASE) {
        return run(&case, quick)
            .iter()
            .for_each(|r| println!("{}", r.encode()));
    }
    let wanted: Vec<&str> = args
        .iter()
        .map(String::as_str)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let mut cases: Vec<&str> = CASES
        .into_iter()
        .filter(|c| wanted.is_empty() || wanted.contains(c))
        .collect();
    if args.iter().any(|a| a == "--huge") {
        cases.push("idle10m");
    }
    let mut rows = Vec::new();
    let mut is_complete = true;
    for case in cases {
        eprintln!("{case} …");
        match in_process(case, quick) {
            Some(more) => rows.extend(more),
            None => {
                eprintln!("{case}: did not finish");
                is_complete = false;
            }
        }
    }
    print!("{}", report::table(&rows));
    if !is_complete {
        std::process::exit(1);
    }
}

fn run(case: &str, quick: bool) -> Vec<Row> {
    match case {
        "echo" => echo::run(quick),
        "shards" => shards::run(quick),
        "idle" => idle::run(if quick { 100_000 } else { 1_000_000 }),
        "idle10m" => idle::run(10_000_000),
        "churn" => churn::run(quick),
        "bulk" => bulk::run(quick),
        "holes" => holes::run(quick),
        "lossy" => lossy::run(CongestionControl::Cubic, quick),
        "bbr" => lossy::run(CongestionControl::Bbr, quick),
        _ => Vec::new(),
    }
}

/// Runs one case in a process of its own, those with a bad link in a network namespace of its own.
fn in_process(case: &str, quick: bool) -> Option<Vec<Row>> {
    let program = std::env::current_exe().ok()?;
    let mut command = if matches!(case, "lossy" | "bbr") {
        let mut unshare = Command::new("unshare");
        unshare.arg("--net").arg(program);
        unshare
    } else {
        Command::new(program)
    };
    if quick {
        command.arg("--quick");
    }
    let output = command
        .env(CASE, case)
        .stderr(Stdio::inherit())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output
        .status
        .success()
        .then(|| text.lines().filter_map(Row::decode).collect())
}
