//! The programs that `kcmctl bench` measures: this very executable, started again with a role. Those
//! that use KCM are started under the library, and know nothing of it; their peers, and what they are
//! compared with, are not.

#[allow(unsafe_code, reason = "calls of libc that std does not have")]
mod calls;
mod idle;
mod peer;
mod pingpong;
mod queue;
mod receive;
mod send;
mod wire;

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Outcome, Problem, child, out};

/// The first argument of a part.
const NAME: &str = "bench-part";

/// What a part does.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) role: String,
    /// Bytes of a message, its length included.
    pub(super) size: usize,
    /// TCP connections, KCM sockets, and receiving threads.
    pub(super) conns: usize,
    pub(super) sockets: usize,
    pub(super) threads: usize,
    /// How long the sending side sends.
    pub(super) ms: u64,
    /// Where a peer connects to.
    pub(super) port: u16,
}

impl Options {
    /// One connection, one socket, one thread.
    pub(super) fn new(role: &str, size: usize) -> Self {
        Self {
            role: role.to_owned(),
            size,
            conns: 1,
            sockets: 1,
            threads: 1,
            ms: 0,
            port: 0,
        }
    }

    /// The arguments that start this executable as the part.
    pub(super) fn arguments(&self) -> Vec<String> {
        let numbers = [self.size, self.conns, self.sockets, self.threads];
        let numbers = numbers.iter().map(usize::to_string);
        let mut all = vec![NAME.to_owned(), self.role.clone()];
        all.extend(numbers);
        all.extend([self.ms.to_string(), self.port.to_string()]);
        all
    }

    fn parse(arguments: &[&str]) -> Option<Self> {
        let [role, size, conns, sockets, threads, ms, port] = arguments else {
            return None;
        };
        let options = Self {
            role: (*role).to_owned(),
            size: size.parse().ok()?,
            conns: conns.parse().ok()?,
            sockets: sockets.parse().ok()?,
            threads: threads.parse().ok()?,
            ms: ms.parse().ok()?,
            port: port.parse().ok()?,
        };
        let sane = (wire::MESSAGE_MIN..=wire::MESSAGE_MAX).contains(&options.size)
            && options.sockets > 0
            && options.threads > 0;
        sane.then_some(options)
    }

    fn duration(&self) -> Duration {
        Duration::from_millis(self.ms)
    }
}

/// Becomes a part if the arguments say so. Its measurement is one line of JSON on standard output.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    child::part(NAME, |words| match Options::parse(words) {
        Some(options) => run(&options),
        None => Err(Problem::new("a part of the benchmark, to be started by it")),
    })
}

fn run(options: &Options) -> Outcome<()> {
    if let Some(done) = peer::main(options) {
        return done;
    }
    let measured = match options.role.as_str() {
        "rx-inplace" => receive::in_place(options),
        "rx-header-body" => receive::header_then_body(options),
        "rx-queue" => queue::receive(options),
        "rx-recvmsg" => receive::kcm(options, 1),
        "rx-recvmmsg" => receive::kcm(options, receive::MESSAGES_PER_CALL),
        "tx-raw" => send::raw(options),
        "tx-sendmsg" => send::kcm(options, send::Way::One),
        "tx-batch" => send::kcm(options, send::Way::Batch),
        "tx-sendmmsg" => send::kcm(options, send::Way::Many),
        "pingpong-raw" => pingpong::raw(options),
        "pingpong-kcm" => pingpong::kcm(options),
        "memory-conns" => idle::memory_of_connections(options),
        "memory-sockets" => idle::memory_of_sockets(options),
        "idle" => idle::wake_ups(options),
        other => Err(Problem(format!("{other}: no such part"))),
    }?;
    out::print_json(&measured)
}

/// The rate of messages, if the tally is complete.
fn rate(tally: &wire::Tally, conns: usize, elapsed: Duration) -> Outcome<Value> {
    if !tally.is_complete(conns) {
        let what = format!("got {} of {} messages", tally.count, tally.expected);
        return Err(Problem(format!("{what}, or some damaged: {tally:?}")));
    }
    Ok(json!({ "rate": tally.count as f64 / elapsed.as_secs_f64() }))
}

/// A KCM socket with these connections attached.
fn kcm_over(conns: &[impl AsFd]) -> Outcome<OwnedFd> {
    let parser = calls::parser()?;
    let kcm = calls::kcm_open()?;
    for conn in conns {
        calls::kcm_attach(kcm.as_fd(), conn.as_fd(), parser.as_fd())?;
    }
    Ok(kcm)
}
