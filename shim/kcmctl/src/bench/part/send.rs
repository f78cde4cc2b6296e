//! Sending: on a plain connection, and on a KCM socket.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::calls::{self, Messages};
use super::peer::Peer;
use super::wire::{DATA, END, fill};
use super::{Options, kcm_over, rate};
use crate::{Outcome, Problem};

/// Messages between two looks at the clock, and of one batch.
const MESSAGES_PER_BATCH: usize = 64;

/// How a KCM socket is used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A sendmsg each.
    One,
    /// A sendmsg each, all but the last with MSG_BATCH.
    Batch,
    /// One sendmmsg.
    Many,
}

/// One write a message: the only way to send at once what is complete.
pub(super) fn raw(options: &Options) -> Outcome<Value> {
    let (mut peer, conns) = Peer::start("sink", options)?;
    let conn = conns.first().ok_or_else(|| Problem::new("no connection"))?;
    let mut message = vec![0; options.size];
    let mut write = |kind, seq| {
        fill(&mut message, 0, kind, seq);
        match calls::send(conn.as_fd(), &message, 0)? {
            count if count == message.len() => Ok(()),
            _ => Err(Problem::new("a message was cut")),
        }
    };
    let start = Instant::now();
    let mut seq = 0;
    while start.elapsed() < options.duration() {
        for _ in 0..MESSAGES_PER_BATCH {
            write(DATA, seq)?;
            seq += 1;
        }
    }
    write(END, seq)?;
    let tally = peer.tally()?;
    let elapsed = start.elapsed();
    drop(conns);
    peer.reap()?;
    rate(&tally, 1, elapsed)
}

pub(super) fn kcm(options: &Options, way: Way) -> Outcome<Value> {
    let (mut peer, conns) = Peer::start("sink", options)?;
    let kcm = kcm_over(&conns)?;
    let mut messages = Messages::new(MESSAGES_PER_BATCH, options.size);
    let start = Instant::now();
    let mut seq = 0;
    while start.elapsed() < options.duration() {
        match way {
            Way::Many => {
                for (at, seq) in (seq..).enumerate().take(MESSAGES_PER_BATCH) {
                    fill(messages.get_mut(at), 0, DATA, seq);
                }
                let mut sent = 0;
                while sent < MESSAGES_PER_BATCH {
                    sent += messages.sendmmsg(kcm.as_fd(), sent)?;
                }
            }
            Way::One | Way::Batch => {
                for at in 0..MESSAGES_PER_BATCH {
                    let more = way == Way::Batch && at + 1 < MESSAGES_PER_BATCH;
                    fill(messages.get_mut(0), 0, DATA, seq + at as u64);
                    messages.sendmsg(kcm.as_fd(), if more { calls::MSG_BATCH } else { 0 })?;
                }
            }
        }
        seq += MESSAGES_PER_BATCH as u64;
    }
    fill(messages.get_mut(0), 0, END, seq);
    messages.sendmsg(kcm.as_fd(), 0)?;
    let tally = peer.tally()?;
    let elapsed: Duration = start.elapsed();
    drop(kcm);
    drop(conns);
    peer.reap()?;
    rate(&tally, 1, elapsed)
}
