//! kcmctl: see inside programs that run under kcmshim, and start them.
//!
//! Every shimmed process that uses KCM keeps a page of counters and decisions in its user's runtime
//! directory (`layout`, which the library compiles too). Pages are read as files and are not
//! trusted: one that is short, torn, newer or made up costs one line. Nothing is asked of the
//! process itself.

#![deny(unsafe_code)]

mod bench;
mod child;
mod cli;
mod doctor;
mod elf;
mod explain;
mod export;
mod fd;
mod figures;
#[path = "../../src/publish/layout.rs"]
#[allow(dead_code, reason = "the writer's half is the library's")]
mod layout;
mod machine;
mod measure;
mod mux;
mod out;
mod page;
mod pcap;
mod pcapng;
mod places;
#[path = "../../src/route/plan/mod.rs"]
#[allow(dead_code, reason = "the decisions are the library's")]
mod plan;
mod process;
mod progress;
mod ps;
mod rates;
mod run;
mod settings;
mod ss;
mod stat;
mod terminal;
mod top;
mod trace;
mod tracer;
#[path = "../../src/publish/trace/wire.rs"]
#[allow(dead_code, reason = "the writer's half is the library's")]
mod wire;
#[path = "../../src/publish/words.rs"]
mod words;

use std::fmt;
use std::process::ExitCode;

/// What went wrong, as one line for a person.
#[derive(Debug)]
struct Problem(String);

impl Problem {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Problem {
    fn from(err: std::io::Error) -> Self {
        Self(err.to_string())
    }
}

type Outcome<T> = Result<T, Problem>;

fn main() -> ExitCode {
    if let Some(code) = bench::run_if_asked().or_else(measure::run_if_asked) {
        return code;
    }
    match cli::dispatch() {
        Ok(code) => code,
        // The reader of a pipe has seen enough.
        Err(Problem(what)) if what == out::PIPE_CLOSED => ExitCode::SUCCESS,
        Err(problem) => {
            out::complain(&problem.to_string());
            ExitCode::FAILURE
        }
    }
}
