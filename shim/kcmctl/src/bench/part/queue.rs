//! What people build by hand where they need a multiplexor: a reader frames 64 KiB reads and hands each
//! message, in memory of its own, to a worker through a bounded queue under a mutex.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::peer::Peer;
use super::wire::{END, Framer, Tally};
use super::{Options, calls, rate};
use crate::{Outcome, Problem};

/// Deep enough that neither side often finds the queue full or empty.
const SLOTS: usize = 4096;

#[derive(Default)]
struct State {
    messages: VecDeque<Box<[u8]>>,
    worker_sleeps: bool,
    reader_waits: bool,
    is_closed: bool,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    not_empty: Condvar,
    not_full: Condvar,
}

impl Queue {
    fn push(&self, message: Box<[u8]>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.messages.len() == SLOTS {
            state.reader_waits = true;
            state = self
                .not_full
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.messages.push_back(message);
        // Once a sleep: std's notification is a system call each, glibc's is not.
        if std::mem::take(&mut state.worker_sleeps) {
            self.not_empty.notify_one();
        }
    }

    /// The next message; `None` once the queue is closed and drained.
    fn pop(&self) -> Option<Box<[u8]>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.messages.is_empty() && !state.is_closed {
            state.worker_sleeps = true;
            state = self
                .not_empty
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.worker_sleeps = false;
        }
        let message = state.messages.pop_front();
        // Half empty before the reader runs again: a wake-up for every free slot would be a switch a
        // message.
        if state.reader_waits && state.messages.len() <= SLOTS / 2 {
            state.reader_waits = false;
            self.not_full.notify_one();
        }
        message
    }

    fn close(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_closed = true;
        self.not_empty.notify_all();
    }
}

pub(super) fn receive(options: &Options) -> Outcome<Value> {
    let (peer, conns) = Peer::start("source", options)?;
    let conn = conns.first().ok_or_else(|| Problem::new("no connection"))?;
    let queue = Queue::default();
    let (tally, elapsed) = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut tally = Tally::default();
            while let Some(message) = queue.pop() {
                tally.take(&message);
            }
            tally
        });
        let start = hand_over(conn.as_fd(), &queue);
        queue.close(); // also after a failure, or the worker would wait for ever
        let tally = worker
            .join()
            .map_err(|_| Problem::new("the worker failed"))?;
        Outcome::Ok((tally, start?.elapsed()))
    })?;
    drop(conns);
    peer.reap()?;
    rate(&tally, 1, elapsed)
}

/// Frames and hands over until the END of the connection is in the queue. Returns when it began.
fn hand_over(conn: std::os::fd::BorrowedFd<'_>, queue: &Queue) -> Outcome<Instant> {
    let (mut framer, mut start, mut ended) = (Framer::new(), None, false);
    while !ended {
        let count = calls::recv(conn, framer.space(), 0)?;
        start.get_or_insert_with(Instant::now);
        let framed = framer.take(count, |message| {
            ended |= message.get(6..8) == Some(&END.to_ne_bytes()[..]);
            queue.push(message.into());
        });
        if count == 0 || !framed {
            return Err(Problem::new("the stream ends, or framing is lost"));
        }
    }
    start.ok_or_else(|| Problem::new("nothing came"))
}
