//! What is there while nothing happens: memory, and wake-ups.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use super::peer::Peer;
use super::wire::{MESSAGE_MIN, size};
use super::{Options, calls};
use crate::{Outcome, Problem};

/// Made before the first look, so that one-time costs are not shared out.
const WARM_UP: usize = 16;
/// Descriptors for everything that is not counted.
const SPARE: u64 = 256;
/// After the last message, before it counts as quiet.
const SETTLE: Duration = Duration::from_millis(200);

/// Of `wanted` things that take so many descriptors each, as many as the limit allows, raised as far as
/// may be.
fn affordable(wanted: usize, descriptors: u64) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised); // what holds then is what counts
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = limit.saturating_sub(SPARE) / descriptors;
    wanted.min(usize::try_from(room).unwrap_or(usize::MAX))
}

fn resident() -> Outcome<f64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0)
        .ok_or_else(|| Problem::new("smaps_rollup has no Rss"))
}

/// Connections attached to one KCM socket, before any message.
pub(super) fn memory_of_connections(options: &Options) -> Outcome<Value> {
    let conns = affordable(options.conns, 2);
    if conns <= WARM_UP {
        return Err(Problem::new("the limit of descriptors leaves no room"));
    }
    let options = Options {
        conns,
        ..options.clone()
    };
    let (peer, mut streams) = Peer::start("quiet", &options)?;
    let (parser, kcm) = (calls::parser()?, calls::kcm_open()?);
    let mut before = 0.0;
    for (at, stream) in streams.iter().enumerate() {
        if at == WARM_UP {
            before = resident()?;
        }
        calls::kcm_attach(kcm.as_fd(), stream.as_fd(), parser.as_fd())?;
    }
    let each = (resident()? - before) / (conns - WARM_UP) as f64;
    if let Some(first) = streams.first_mut() {
        first.write_all(&[0])?;
    }
    let mut message = [0; MESSAGE_MIN];
    for _ in 0..conns {
        let count = calls::recv(kcm.as_fd(), &mut message, 0)?;
        if Some(count) != size(&message) {
            return Err(Problem::new("a message was cut"));
        }
    }
    drop(kcm);
    drop(streams);
    peer.reap()?;
    Ok(json!({ "bytes_each": each, "count": conns }))
}

/// KCM sockets without connections, each a multiplexor of its own.
pub(super) fn memory_of_sockets(options: &Options) -> Outcome<Value> {
    let count = affordable(options.sockets, 1);
    if count <= WARM_UP {
        return Err(Problem::new("the limit of descriptors leaves no room"));
    }
    let mut sockets = Vec::with_capacity(count);
    let mut before = 0.0;
    for at in 0..count {
        if at == WARM_UP {
            before = resident()?;
        }
        sockets.push(calls::kcm_open()?);
    }
    let each = (resident()? - before) / (count - WARM_UP) as f64;
    Ok(json!({ "bytes_each": each, "count": count }))
}

/// One thread blocked in recv on a KCM socket after a message, all quiet: how often any thread is put
/// on a processor, and for how long.
pub(super) fn wake_ups(options: &Options) -> Outcome<Value> {
    let (peer, mut streams) = Peer::start("quiet", options)?;
    let kcm = super::kcm_over(&streams)?;
    if let Some(first) = streams.first_mut() {
        first.write_all(&[0])?;
    }
    let mut message = [0; MESSAGE_MIN];
    for _ in 0..streams.len() {
        calls::recv(kcm.as_fd(), &mut message, 0)?;
    }
    // It sleeps until this process ends.
    thread::spawn(move || calls::recv(kcm.as_fd(), &mut [0; MESSAGE_MIN], 0));
    thread::sleep(SETTLE);
    let before = (switches(), cpu());
    thread::sleep(options.duration());
    // This thread's own sleep is one.
    let wakeups = switches().saturating_sub(before.0 + 1);
    let cpu_ms = cpu().saturating_sub(before.1).as_secs_f64() * 1e3;
    for stream in &streams {
        stream.shutdown(Shutdown::Write)?;
    }
    peer.reap()?;
    Ok(json!({ "wakeups": wakeups, "cpu_ms": cpu_ms }))
}

/// Context switches of every thread of this process.
fn switches() -> u64 {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let counts = statuses.filter_map(|status| {
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    });
    counts.sum()
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
