//! Receiving: framed by hand in two ways, and on KCM sockets.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::calls::{self, Messages, Set};
use super::peer::Peer;
use super::wire::{Framer, LEN_BYTES, MESSAGE_MAX, Tally, size};
use super::{Options, kcm_over, rate};
use crate::{Outcome, Problem};

/// Messages that one recvmmsg may return.
pub(super) const MESSAGES_PER_CALL: usize = 64;
/// How often an idle thread looks whether the others have finished.
const DONE_LOOK_MS: i32 = 20;

/// Epoll, 64 KiB reads, messages looked at where they lie: the fastest ordinary way.
pub(super) fn in_place(options: &Options) -> Outcome<Value> {
    let (peer, conns) = Peer::start("source", options)?;
    let set = Set::new()?;
    for (conn, number) in conns.iter().zip(0..) {
        conn.set_nonblocking(true)?;
        set.add(conn.as_fd(), number)?;
    }
    let mut framers: Vec<_> = conns.iter().map(|_| Framer::new()).collect();
    let (mut tally, mut start, mut failed) = (Tally::default(), None, None);
    while tally.ends < conns.len() {
        set.wait(-1, |number| {
            start.get_or_insert_with(Instant::now);
            let at = number as usize;
            let (conn, framer) = (&conns[at], &mut framers[at]);
            match calls::recv(conn.as_fd(), framer.space(), 0) {
                Ok(count @ 1..) if framer.take(count, |message| _ = tally.take(message)) => {}
                Ok(_) => failed = Some(Problem::new("the stream ends, or framing is lost")),
                Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(err) => failed = Some(err.into()),
            }
        })?;
        if let Some(problem) = failed {
            return Err(problem);
        }
    }
    let elapsed = since(start);
    drop(conns);
    peer.reap()?;
    rate(&tally, options.conns, elapsed)
}

fn since(start: Option<Instant>) -> Duration {
    start.map_or(Duration::ZERO, |start| start.elapsed())
}

/// The textbook loop: one recv for the length and one for the body.
pub(super) fn header_then_body(options: &Options) -> Outcome<Value> {
    let (peer, conns) = Peer::start("source", options)?;
    let conn = conns.first().ok_or_else(|| Problem::new("no connection"))?;
    let mut message = vec![0; MESSAGE_MAX];
    let (mut tally, mut start) = (Tally::default(), None);
    let whole = |into: &mut [u8]| match calls::recv(conn.as_fd(), into, libc::MSG_WAITALL) {
        Ok(count) if count == into.len() => Ok(()),
        Ok(_) => Err(Problem::new("the stream ends")),
        Err(err) => Err(err.into()),
    };
    while tally.ends == 0 {
        whole(&mut message[..LEN_BYTES])?;
        start.get_or_insert_with(Instant::now);
        let size = size(&message).filter(|size| *size <= MESSAGE_MAX);
        let size = size.ok_or_else(|| Problem::new("framing is lost"))?;
        whole(&mut message[LEN_BYTES..size])?;
        tally.take(&message[..size]);
    }
    let elapsed = since(start);
    drop(conns);
    peer.reap()?;
    rate(&tally, 1, elapsed)
}

/// KCM sockets, up to so many messages a call: blocking on the one, or with several each thread its
/// share of them in an epoll set.
pub(super) fn kcm(options: &Options, per_call: usize) -> Outcome<Value> {
    let (peer, conns) = Peer::start("source", options)?;
    let mut sockets = vec![kcm_over(&conns)?];
    while sockets.len() < options.sockets {
        sockets.push(calls::kcm_clone(sockets[0].as_fd())?);
    }
    let (tally, elapsed) = if (options.sockets, options.threads) == (1, 1) {
        alone(sockets[0].as_fd(), per_call, options)?
    } else {
        let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        together(&fds, per_call, options)?
    };
    drop(sockets);
    drop(conns);
    peer.reap()?;
    rate(&tally, options.conns, elapsed)
}

/// One receive call, every message it returned tallied. False when there was none to have.
#[inline]
fn receive(
    messages: &mut Messages,
    per_call: usize,
    kcm: BorrowedFd<'_>,
    flags: i32,
    tally: &mut Tally,
) -> Outcome<bool> {
    let came = if per_call == 1 {
        messages.recvmsg(kcm, flags).map(|length| {
            tally.take(messages.get(0, length));
        })
    } else {
        // Without MSG_WAITFORONE a blocking recvmmsg waits until all have come.
        messages
            .recvmmsg(kcm, flags | libc::MSG_WAITFORONE)
            .map(|count| {
                (0..count).for_each(|at| _ = tally.take(messages.received(at)));
            })
    };
    match came {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(err) => Err(err.into()),
    }
}

fn alone(kcm: BorrowedFd<'_>, per_call: usize, options: &Options) -> Outcome<(Tally, Duration)> {
    let mut messages = Messages::new(per_call, options.size);
    let mut tally = Tally::default();
    receive(&mut messages, per_call, kcm, 0, &mut tally)?;
    let start = Instant::now();
    while tally.ends < options.conns {
        receive(&mut messages, per_call, kcm, 0, &mut tally)?;
    }
    Ok((tally, start.elapsed()))
}

/// What the threads know of each other.
#[derive(Default)]
struct Shared {
    /// Messages, and those announced; connections whose END has come.
    received: AtomicU64,
    announced: AtomicU64,
    ended: AtomicUsize,
    start: OnceLock<Instant>,
    finish: OnceLock<Instant>,
}

impl Shared {
    fn is_done(&self, conns: usize) -> bool {
        self.ended.load(Ordering::SeqCst) == conns
            && self.received.load(Ordering::SeqCst) >= self.announced.load(Ordering::SeqCst)
    }
}

fn together(
    sockets: &[BorrowedFd<'_>],
    per_call: usize,
    options: &Options,
) -> Outcome<(Tally, Duration)> {
    let shared = Shared::default();
    let mut all = Tally::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|number| {
                let mine: Vec<_> = sockets
                    .iter()
                    .skip(number)
                    .step_by(options.threads)
                    .collect();
                let shared = &shared;
                scope.spawn(move || share(&mine, per_call, options, shared))
            })
            .collect();
        for thread in threads {
            let tallies = thread
                .join()
                .map_err(|_| Problem::new("a thread failed"))??;
            tallies.iter().for_each(|tally| all.merge(tally));
        }
        Outcome::Ok(())
    })?;
    let (Some(start), Some(finish)) = (shared.start.get(), shared.finish.get()) else {
        return Err(Problem::new("nothing came"));
    };
    Ok((all, finish.duration_since(*start)))
}

/// What one thread does: its sockets' tallies, since order holds within a socket only.
fn share(
    sockets: &[&BorrowedFd<'_>],
    per_call: usize,
    options: &Options,
    shared: &Shared,
) -> Outcome<Vec<Tally>> {
    let set = Set::new()?;
    for (socket, number) in sockets.iter().zip(0..) {
        set.add(socket.as_fd(), number)?;
    }
    let mut messages = Messages::new(per_call, options.size);
    let mut tallies = vec![Tally::default(); sockets.len()];
    while !shared.is_done(options.conns) {
        let mut ready = Vec::with_capacity(sockets.len());
        set.wait(DONE_LOOK_MS, |number| ready.push(number as usize))?;
        if !ready.is_empty() {
            shared.start.get_or_init(Instant::now);
        }
        for at in ready {
            let tally = &mut tallies[at];
            let before = (tally.expected, tally.ends, tally.count);
            while receive(
                &mut messages,
                per_call,
                *sockets[at],
                libc::MSG_DONTWAIT,
                tally,
            )? {}
            let add = |to: &AtomicU64, now: u64, before: u64| {
                to.fetch_add(now - before, Ordering::SeqCst)
            };
            add(&shared.announced, tally.expected, before.0);
            shared
                .ended
                .fetch_add(tally.ends - before.1, Ordering::SeqCst);
            add(&shared.received, tally.count, before.2);
        }
        if shared.is_done(options.conns) {
            shared.finish.get_or_init(Instant::now);
        }
    }
    Ok(tallies)
}
