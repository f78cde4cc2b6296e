//! Round trips of one message against a peer that echoes, all calls blocking.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use serde_json::{Value, json};

use super::peer::Peer;
use super::wire::{DATA, Tally, fill};
use super::{Options, calls, kcm_over};
use crate::{Outcome, Problem};

/// Round trips before the first that counts, and most that count.
const WARM_UP: u64 = 200;
const TRIPS_MAX: usize = 200_000;

/// On the TCP connection.
pub(super) fn raw(options: &Options) -> Outcome<Value> {
    let (peer, conns) = Peer::start("echo", options)?;
    let conn = conns.first().ok_or_else(|| Problem::new("no connection"))?;
    let micros = trips(conn.as_fd(), options)?;
    drop(conns);
    peer.reap()?;
    Ok(percentiles(micros))
}

/// On a KCM socket that it is attached to.
pub(super) fn kcm(options: &Options) -> Outcome<Value> {
    let (peer, conns) = Peer::start("echo", options)?;
    let kcm = kcm_over(&conns)?;
    let micros = trips(kcm.as_fd(), options)?;
    drop(kcm);
    drop(conns);
    peer.reap()?;
    Ok(percentiles(micros))
}

/// How long each round trip took, in microseconds.
fn trips(fd: BorrowedFd<'_>, options: &Options) -> Outcome<Vec<f32>> {
    let mut message = vec![0; options.size];
    let mut micros = Vec::with_capacity(TRIPS_MAX);
    let mut tally = Tally::default();
    let start = Instant::now();
    for seq in 0.. {
        let before = Instant::now();
        fill(&mut message, 0, DATA, seq);
        let sent = calls::send(fd, &message, 0)?;
        let size = message.len();
        message[..super::wire::MESSAGE_MIN].fill(0);
        let received = calls::recv(fd, &mut message, 0)?;
        let took = before.elapsed();
        tally.take(&message);
        if (sent, received, tally.count) != (size, size, seq + 1) {
            return Err(Problem::new("an answer is not what was sent"));
        }
        if seq >= WARM_UP {
            micros.push(took.as_secs_f32() * 1e6);
        }
        let over = start.elapsed() >= options.duration() && !micros.is_empty();
        if over || micros.len() == TRIPS_MAX {
            break;
        }
    }
    Ok(micros)
}

fn percentiles(mut micros: Vec<f32>) -> Value {
    micros.sort_by(f32::total_cmp);
    let at = |hundredths: usize| micros.get(micros.len() * hundredths / 100).copied();
    json!({ "p50_us": at(50), "p99_us": at(99) })
}
