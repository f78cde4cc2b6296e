//! The thread that steps in when a mux has work and no thread of the program is in the shim to do
//! it: data to parse, a full connection that takes bytes again, a message timer.
//!
//! It exists once a connection is attached, blocks every signal, and sleeps in epoll_wait: an idle
//! process is never woken. Each connection is watched with EPOLLONESHOT. When one fires, the thread
//! waits a moment, since the program most likely comes for the data itself; only if it does not,
//! the thread does the work. While the program keeps coming, the connection stays disarmed and is
//! looked at again at growing intervals, so that a busy program is left alone.

use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::collections::BTreeMap;

use kcm_mux::{Nanos, PsockId};
use rustix::event::epoll;
use rustix::fd::OwnedFd;

use crate::errno::Outcome;
use crate::kcm::{Connection, Engine, EngineGuard, MuxCell};
use crate::sync::Mutex;
use crate::{own, sys};

/// How long the program has to come for what arrived before the thread does the work. Longer than
/// a thread switch under load, shorter than any pause between messages that a person would call one.
const GRACE: Nanos = 2_000_000;
/// First and last interval at which a connection that the program serves itself is looked at again.
const RECHECK_MIN: Nanos = 4_000_000;
const RECHECK_MAX: Nanos = 64_000_000;
/// Events taken at a time.
const BATCH: usize = 64;

/// The running thread's epoll descriptor, or −1.
static EPFD: AtomicI32 = AtomicI32::new(-1);
/// Guards the start of the thread.
static START: Mutex<()> = Mutex::new(());
/// When the thread wakes by itself; `u64::MAX` for never.
static WAKES_AT: AtomicU64 = AtomicU64::new(u64::MAX);
/// Tag of the thread's own doorbell.
const BELL: u64 = u64::MAX;

static BELL_FD: AtomicI32 = AtomicI32::new(-1);

fn tag(cell: u32, psock: PsockId) -> u64 {
    u64::from(cell) << 32 | u64::from(psock.0)
}

const WATCH: epoll::EventFlags = epoll::EventFlags::IN
    .union(epoll::EventFlags::RDHUP)
    .union(epoll::EventFlags::ONESHOT);

/// A connection was attached.
pub(crate) fn watch(cell: &'static MuxCell, engine: &Engine, psock: PsockId) {
    let Some(conn) = engine.connection(psock) else {
        return;
    };
    if start().is_err() {
        return; // the program's own threads still do all the work when they call
    }
    let data = epoll::EventData::new_u64(tag(cell.index(), psock));
    let _ = epoll::add(epfd(), conn.fd(), data, WATCH);
}

/// A connection was unattached.
pub(crate) fn unwatch(conn: &Connection) {
    let _ = epoll::delete(epfd(), conn.fd());
}

/// A connection is about to lose the number it works through: it moves to one of ours.
pub(crate) fn moved(engine: &mut EngineGuard, psock: PsockId, from: i32) {
    let cell = engine.cell();
    let Some(conn) = engine.connection(psock).filter(|c| c.raw_fd() == from) else {
        return;
    };
    unwatch(conn);
    if engine
        .conns
        .get_mut(psock)
        .is_some_and(|conn| conn.keep().is_ok())
    {
        watch(cell, engine, psock);
    }
}

/// Called whenever a mux is left: arms what has to be noticed while nobody is there.
pub(crate) fn settle(cell: &'static MuxCell, engine: &mut Engine) {
    while let Some(psock) = engine.conns.take_untold() {
        let Some(conn) = engine.connection(psock) else {
            continue;
        };
        let data = epoll::EventData::new_u64(tag(cell.index(), psock));
        let _ = epoll::modify(epfd(), conn.fd(), data, WATCH | epoll::EventFlags::OUT);
    }
    if let Some(at) = engine.mux.next_deadline()
        && at < WAKES_AT.load(Ordering::Relaxed)
    {
        WAKES_AT.fetch_min(at, Ordering::Relaxed);
        ring();
    }
}

fn epfd() -> rustix::fd::BorrowedFd<'static> {
    sys::borrow(EPFD.load(Ordering::Acquire))
}

fn ring() {
    let fd = BELL_FD.load(Ordering::Acquire);
    if fd >= 0 {
        let _ = rustix::io::write(sys::borrow(fd), &1u64.to_ne_bytes());
    }
}

/// Starts the thread if it does not run yet.
fn start() -> Outcome<()> {
    if EPFD.load(Ordering::Acquire) >= 0 {
        return Ok(());
    }
    let _starting = START.lock()?;
    if EPFD.load(Ordering::Acquire) >= 0 {
        return Ok(());
    }
    let set = sys::raise(epoll::create(epoll::CreateFlags::CLOEXEC)?);
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let bell = sys::raise(rustix::event::eventfd(0, flags)?);
    epoll::add(
        &set,
        &bell,
        epoll::EventData::new_u64(BELL),
        epoll::EventFlags::IN,
    )?;
    let numbers = (sys::number(&set), sys::number(&bell));
    crate::signal::spawn_quiet("kcmshim", move || Keeper::new(set, bell).run())?;
    own::protect(numbers.0);
    own::protect(numbers.1);
    BELL_FD.store(numbers.1, Ordering::Release);
    EPFD.store(numbers.0, Ordering::Release);
    Ok(())
}

/// In a forked child there is no such thread.
pub(crate) fn reset_in_child() {
    for fd in [&EPFD, &BELL_FD] {
        let number = fd.swap(-1, Ordering::AcqRel);
        if number >= 0 {
            own::unprotect(number);
            let _ = sys::close(number);
        }
    }
    WAKES_AT.store(u64::MAX, Ordering::Relaxed);
}

/// A connection that fired and is not armed.
struct Fired {
    /// Passes the program had made when last looked.
    passes: u32,
    due: Nanos,
    /// Interval until the next look.
    interval: Nanos,
}

/// State of the thread.
struct Keeper {
    set: OwnedFd,
    bell: OwnedFd,
    fired: BTreeMap<u64, Fired>,
}

impl Keeper {
    fn new(set: OwnedFd, bell: OwnedFd) -> Self {
        Self {
            set,
            bell,
            fired: BTreeMap::new(),
        }
    }

    fn run(mut self) {
        loop {
            self.wait();
            let now = sys::now();
            self.look_again(now);
            if WAKES_AT.load(Ordering::Relaxed) <= now {
                self.expire(now);
            }
        }
    }

    /// Sleeps until a connection fires or something is due.
    fn wait(&mut self) {
        let due = self.fired.values().map(|f| f.due).min();
        let wakes_at = Some(WAKES_AT.load(Ordering::Relaxed)).filter(|at| *at != u64::MAX);
        let until = [due, wakes_at].into_iter().flatten().min();
        // Up to a whole millisecond, which is what the raw call counts in: never a wake-up too early.
        let left = |at: Nanos| at.saturating_sub(sys::now()).next_multiple_of(1_000_000);
        let timeout = until.map(|at| sys::timespec(left(at)));
        let mut seen = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; BATCH];
        let count = epoll::wait(&self.set, &mut seen[..], timeout.as_ref()).unwrap_or(0);
        let now = sys::now();
        for event in seen.iter().take(count) {
            if event.data.u64() == BELL {
                let _ = rustix::io::read(&self.bell, &mut [0; 8]);
                continue;
            }
            let data = event.data.u64();
            let Some(cell) = MuxCell::by_index((data >> 32) as u32) else {
                continue;
            };
            let passes = cell.passes();
            self.fired.insert(
                data,
                Fired {
                    passes,
                    due: now + GRACE,
                    interval: RECHECK_MIN,
                },
            );
        }
    }

    /// Connections whose moment has come: served by the program meanwhile, or by us now.
    fn look_again(&mut self, now: Nanos) {
        let due: Vec<_> = self
            .fired
            .iter()
            .filter(|(_, f)| f.due <= now)
            .map(|(t, _)| *t)
            .collect();
        for data in due {
            let Some(fired) = self.fired.get_mut(&data) else {
                continue;
            };
            let Some(cell) = MuxCell::by_index((data >> 32) as u32) else {
                continue;
            };
            let passes = cell.passes();
            if passes != fired.passes {
                fired.passes = passes;
                fired.due = now + fired.interval;
                fired.interval = (fired.interval * 2).min(RECHECK_MAX);
                continue;
            }
            self.fired.remove(&data);
            self.serve(cell, PsockId(data as u32), data);
        }
    }

    /// Does the work of one connection and arms it again.
    fn serve(&self, cell: &'static MuxCell, psock: PsockId, data: u64) {
        let Ok(mut engine) = cell.lock() else { return };
        engine.look();
        engine.read_all();
        engine.write_all();
        let wants_write = engine.mux.wants_write(psock);
        let wants_read = engine.mux.wants_read(psock);
        let Some(conn) = engine.connection(psock) else {
            return;
        };
        let mut flags = epoll::EventFlags::ONESHOT;
        flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, wants_read);
        flags.set(epoll::EventFlags::OUT, wants_write);
        if wants_read || wants_write {
            let _ = epoll::modify(&self.set, conn.fd(), epoll::EventData::new_u64(data), flags);
        }
    }

    /// Runs every timer that is due and finds the next one.
    fn expire(&self, now: Nanos) {
        WAKES_AT.store(u64::MAX, Ordering::Relaxed);
        MuxCell::for_each(|engine| {
            engine.expire(now);
            if let Some(at) = engine.mux.next_deadline() {
                WAKES_AT.fetch_min(at, Ordering::Relaxed);
            }
        });
    }
}
