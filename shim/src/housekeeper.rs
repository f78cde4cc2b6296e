//! The thread that steps in when a mux has work and no thread of the program is in the shim to do
//! it: data to parse, a full connection that takes bytes again, a message timer.
//!
//! It exists once a connection is attached, blocks every signal, and sleeps in epoll_wait: an idle
//! process is never woken. Each connection is watched with EPOLLONESHOT. When one fires, the thread
//! waits a moment, since the program most likely comes for the data itself; only if it does not,
//! the thread does the work. While the program keeps coming, the connection stays disarmed and is
//! looked at again at growing intervals, so that a busy program is left alone.

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::collections::BTreeMap;

use kcm_mux::{KcmId, Nanos, PsockId};
use rustix::event::epoll;
use rustix::fd::{BorrowedFd, OwnedFd};

use crate::errno::Outcome;
use crate::fd::File;
use crate::kcm::{Connection, Engine, EngineGuard, MuxCell};
use crate::net::aside::Aside;
use crate::net::cells::{self, ENGINES_MAX, NetCell};
use crate::net::{handover, lend, relay, revive};
use crate::share::broker;
use crate::share::line::Line;
use crate::share::owner;
use crate::sync::{Mutex, Rank};
use crate::{own, publish, sys};

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
/// Guards the start of the thread, which begins when it is over.
static START: Mutex<()> = Mutex::ranked(Rank::Leaf, ());
/// When the thread wakes by itself; `u64::MAX` for never.
static WAKES_AT: AtomicU64 = AtomicU64::new(u64::MAX);
/// Tag of the thread's own doorbell.
const BELL: u64 = u64::MAX;

thread_local! {
    /// This is the thread: it looks at [`WAKES_AT`] before it sleeps.
    static IS_KEEPER: Cell<bool> = const { Cell::new(false) };
}

static BELL_FD: AtomicI32 = AtomicI32::new(-1);

/// Tag of the control socket (see `share`).
const LISTENER: u64 = u64::MAX - 1;
/// Tag of what keeps an address from other processes.
const CLAIM: u64 = u64::MAX - 2;
/// Tag of the first engine's device; those of the others come before it.
const DEVICE: u64 = u64::MAX - 3;
/// Tag of a process that has listeners of which this one has copies. Below those of devices.
const OWNER: u64 = u64::MAX - 64;
/// In the tag of a connection that other processes have copies of: its engine and number follow.
const RELAY: u64 = 1 << 61;
/// In the tag of a line: cell and KCM socket follow.
const LINE: u64 = 1 << 63;
/// In the tag of a process that holds sockets of ours: its descriptor follows.
const CLIENT: u64 = 1 << 62;
/// In the tag of what `publish::trace` waits for.
const TRACING: u64 = 1 << 60;

fn device_tag(cell: &NetCell) -> u64 {
    DEVICE - u64::from(cell.index())
}

/// The engine whose device has this tag.
fn device_of(tag: u64) -> Option<&'static NetCell> {
    let index = DEVICE.checked_sub(tag)?;
    (index < ENGINES_MAX as u64).then(|| cells::at(index as u8))
}

fn tag(cell: u32, psock: PsockId) -> u64 {
    u64::from(cell) << 32 | u64::from(psock.0)
}

/// A line reports what is sent through it and its end once each.
const WATCH_LINE: epoll::EventFlags = epoll::EventFlags::IN
    .union(epoll::EventFlags::RDHUP)
    .union(epoll::EventFlags::ET);

fn line_tag(cell: u32, id: KcmId) -> epoll::EventData {
    epoll::EventData::new_u64(LINE | u64::from(cell) << 32 | u64::from(id.0))
}

/// A socket was tied.
pub(crate) fn add_line(cell: u32, id: KcmId, line: &Line) {
    let _ = epoll::add(epfd(), line.fd(), line_tag(cell, id), WATCH_LINE);
}

/// The queue behind a line became full, or has room again.
pub(crate) fn watch_line(cell: u32, id: KcmId, line: &Line) {
    let mut flags = WATCH_LINE;
    flags.set(epoll::EventFlags::OUT, line.full);
    let _ = epoll::modify(epfd(), line.fd(), line_tag(cell, id), flags);
}

/// No process holds the socket any more.
pub(crate) fn remove_line(line: &Line) {
    let _ = epoll::delete(epfd(), line.fd());
}

/// The door at which tracers call, or a tracer; `full`: write space is waited for.
pub(crate) fn watch_tracing(fd: BorrowedFd<'_>, tag: u64, full: bool) {
    let mut flags = WATCH_LINE;
    flags.set(epoll::EventFlags::OUT, full);
    let tag = epoll::EventData::new_u64(TRACING | tag);
    if epoll::add(epfd(), fd, tag, flags).is_err() {
        let _ = epoll::modify(epfd(), fd, tag, flags);
    }
}

/// Other processes may ask for sockets of ours.
pub(crate) fn add_listener(listener: &OwnedFd) {
    let tag = epoll::EventData::new_u64(LISTENER);
    let _ = epoll::add(epfd(), listener, tag, epoll::EventFlags::IN);
}

/// Doors are not watched, since nobody could be let in.
static ARE_SHUT: AtomicBool = AtomicBool::new(false);

/// Nobody can be let in at this door: the process has no descriptor left, or no memory. Whoever stands there would
/// wake the thread again and again; it looks for them now and then instead.
pub(crate) fn shut(door: &OwnedFd) {
    const AGAIN: Nanos = 100_000_000;
    let _ = epoll::delete(epfd(), door);
    ARE_SHUT.store(true, Ordering::Relaxed);
    wake_by(sys::now().saturating_add(AGAIN));
}

/// A process came.
pub(crate) fn add_client(client: &OwnedFd) {
    let tag = epoll::EventData::new_u64(CLIENT | sys::number(client) as u64);
    let _ = epoll::add(epfd(), client, tag, epoll::EventFlags::IN);
}

/// A process is about to be let go. Closing alone is not enough: a child that is being forked has a copy, which would
/// report the end of what nobody knows any more, again and again.
pub(crate) fn remove_client(client: &OwnedFd) {
    let _ = epoll::delete(epfd(), client);
}

/// From now on every connection of the mux is served at once.
pub(crate) fn watch_all(cell: &'static MuxCell, engine: &Engine) {
    for psock in engine.mux.psocks() {
        arm(cell, engine, psock);
    }
}

/// Waits for what the connection needs.
fn arm(cell: &'static MuxCell, engine: &Engine, psock: PsockId) {
    let Some(conn) = engine.connection(psock) else {
        return;
    };
    let read = engine.conns.expects_input(&engine.mux, psock);
    let write = engine.mux.wants_write(psock);
    let mut flags = epoll::EventFlags::ONESHOT;
    flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, read);
    flags.set(epoll::EventFlags::OUT, write);
    if conn.source().is_some() {
        flags = epoll::EventFlags::ONESHOT | epoll::EventFlags::IN; // its bell tells of both
    }
    if read || write {
        let data = epoll::EventData::new_u64(tag(cell.index(), psock));
        let _ = epoll::modify(epfd(), conn.fd(), data, flags);
    }
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
///
/// # Errors
/// EMFILE and the like: there is no other number, and nothing has changed.
pub(crate) fn moved(engine: &mut EngineGuard, psock: PsockId, from: i32) -> rustix::io::Result<()> {
    let cell = engine.cell();
    let Some(conn) = engine.conns.get_mut(psock).filter(|c| c.raw_fd() == from) else {
        return Ok(());
    };
    conn.keep()?;
    let _ = epoll::delete(epfd(), sys::borrow(from));
    watch(cell, engine, psock);
    Ok(())
}

/// An engine and its device are open: while no thread of the program is in the shim, this one answers
/// for it.
pub(crate) fn watch_device(cell: &'static NetCell) {
    if let Ok(engine) = cell.lock()
        && let Some(entry) = engine.device_entry()
    {
        arm_device(cell, entry);
    }
}

/// Waits for the engine's device. The descriptor of one that is full may be another than before.
fn arm_device(cell: &NetCell, entry: libc::pollfd) {
    let fd = sys::borrow(entry.fd);
    let data = epoll::EventData::new_u64(device_tag(cell));
    let flags =
        epoll::EventFlags::from_bits_retain(entry.events as u32) | epoll::EventFlags::ONESHOT;
    if epoll::modify(epfd(), fd, data, flags).is_err() {
        let _ = epoll::add(epfd(), fd, data, flags);
    }
}

/// A process that wants the address of this claim says so there.
pub(crate) fn add_claim(claim: &own::Kept) {
    let tag = epoll::EventData::new_u64(CLAIM);
    let _ = epoll::add(epfd(), claim, tag, epoll::EventFlags::IN);
}

/// The end of the process at the other end of `line` matters to this one.
pub(crate) fn add_owner(line: &OwnedFd) {
    let _ = epoll::add(epfd(), line, epoll::EventData::new_u64(OWNER), WATCH_LINE);
}

/// Copies of a connection may be with other processes; `fd` is our end.
pub(crate) fn add_relay(engine: u8, number: u32, fd: &OwnedFd) {
    let tag = RELAY | u64::from(engine) << 32 | u64::from(number);
    let data = epoll::EventData::new_u64(tag);
    let flags = WATCH_LINE | epoll::EventFlags::OUT;
    let _ = epoll::add(epfd(), fd, data, flags);
}

/// The stack has something to do at `at`, which the program's threads do if they come by then.
pub(crate) fn wake_by(at: Nanos) {
    let at = at.saturating_add(GRACE);
    if at < WAKES_AT.load(Ordering::Relaxed) {
        WAKES_AT.fetch_min(at, Ordering::Relaxed);
        if !IS_KEEPER.get() {
            ring();
        }
    }
}

/// The stack and the muxes may have something to do already that the thread has not heard of.
pub(crate) fn look_now() {
    wake_by(0);
}

/// Called whenever a mux is left: arms what has to be noticed while nobody is there.
pub(crate) fn settle(cell: &'static MuxCell, engine: &mut Engine) {
    while let Some(psock) = engine.conns.take_untold() {
        arm(cell, engine, psock);
    }
    if let Some(at) = engine.mux.next_deadline()
        && at < WAKES_AT.load(Ordering::Relaxed)
    {
        WAKES_AT.fetch_min(at, Ordering::Relaxed);
        ring();
    }
}

/// Whether this process has the thread.
pub(crate) fn is_running() -> bool {
    EPFD.load(Ordering::Acquire) >= 0
}

fn epfd() -> BorrowedFd<'static> {
    sys::borrow(EPFD.load(Ordering::Acquire))
}

/// Whether the calling thread is the one.
pub(crate) fn is_me() -> bool {
    IS_KEEPER.get()
}

/// Wakes the thread, if there is one, to look at what is due. For signal handlers too.
pub(crate) fn ring() {
    let fd = BELL_FD.load(Ordering::Acquire);
    if fd >= 0 {
        let _ = rustix::io::write(sys::borrow(fd), &1u64.to_ne_bytes());
    }
}

/// Starts the thread if it does not run yet.
pub(crate) fn start() -> Outcome<()> {
    if EPFD.load(Ordering::Acquire) >= 0 {
        return Ok(());
    }
    let _starting = START.lock()?;
    if EPFD.load(Ordering::Acquire) >= 0 {
        return Ok(());
    }
    let set = own::keep(epoll::create(epoll::CreateFlags::CLOEXEC)?);
    let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
    let bell = own::keep(rustix::event::eventfd(0, flags)?);
    epoll::add(
        &set,
        &bell,
        epoll::EventData::new_u64(BELL),
        epoll::EventFlags::IN,
    )?;
    let numbers = (sys::number(&set), sys::number(&bell));
    let run = move || {
        drop(START.lock()); // what it watches, it adds to the set that all know
        Keeper::new(set, bell).run();
    };
    crate::signal::spawn_quiet(c"kcmshim", run)?;
    BELL_FD.store(numbers.1, Ordering::Release);
    EPFD.store(numbers.0, Ordering::Release);
    publish::trace::attend();
    Ok(())
}

/// Holds still for the length of a fork: a child could start no thread of its own if this were taken for good.
pub(crate) fn freeze() -> impl Sized {
    START.lock().ok()
}

/// In a forked child there is no such thread.
pub(crate) fn reset_in_child() {
    for fd in [&EPFD, &BELL_FD] {
        let number = fd.swap(-1, Ordering::AcqRel);
        if number >= 0 {
            own::close(number);
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

impl Fired {
    /// Just now, with so many passes made.
    fn new(passes: u32, now: Nanos) -> Self {
        Self {
            passes,
            due: now + GRACE,
            interval: RECHECK_MIN,
        }
    }
}

/// State of the thread.
struct Keeper {
    set: own::Kept,
    bell: own::Kept,
    fired: BTreeMap<u64, Fired>,
    /// Rounds of each engine that the program had made when its timers were last looked at.
    passes: [u32; ENGINES_MAX],
    aside: Aside,
}

impl Keeper {
    fn new(set: own::Kept, bell: own::Kept) -> Self {
        Self {
            set,
            bell,
            fired: BTreeMap::new(),
            passes: core::array::from_fn(|at| cells::at(at as u8).passes()),
            aside: Aside::new(),
        }
    }

    fn run(mut self) {
        IS_KEEPER.set(true);
        loop {
            self.wait();
            publish::trace::write_waiting();
            File::take_down_deferred();
            let now = sys::now();
            self.look_again(now);
            if WAKES_AT.load(Ordering::Relaxed) <= now {
                self.expire(now);
            }
            self.aside.follow();
            publish::write_if_due(now);
        }
    }

    /// Sleeps until a connection fires or something is due.
    fn wait(&mut self) {
        let due = self.fired.values().map(|f| f.due).min();
        let wakes_at = Some(WAKES_AT.load(Ordering::Relaxed)).filter(|at| *at != u64::MAX);
        let until = [due, wakes_at, publish::wakes_at()]
            .into_iter()
            .flatten()
            .min();
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
            if data == OWNER {
                revive::on_end();
                continue;
            }
            if data == CLAIM {
                handover::on_claim();
                broker::end_if_idle();
                continue;
            }
            if let Some(cell) = device_of(data) {
                match lend::serves_others() {
                    true => self.serve_device(cell),
                    false => drop(self.fired.insert(data, Fired::new(cell.passes(), now))),
                }
                continue;
            }
            if data & (LINE | CLIENT | RELAY) == RELAY {
                let is = |flag| { event.flags }.contains(flag);
                let ended = is(epoll::EventFlags::RDHUP);
                relay::on_event(
                    (data >> 32) as u8,
                    data as u32,
                    ended,
                    is(epoll::EventFlags::HUP),
                );
                continue;
            }
            if data & (LINE | CLIENT) != 0 {
                self.other(data, event.flags);
                continue;
            }
            if data & TRACING != 0 {
                publish::trace::on_event(data);
                continue;
            }
            let Some(cell) = MuxCell::by_index((data >> 32) as u32) else {
                continue;
            };
            if cell.is_shared() {
                self.serve(cell, PsockId(data as u32));
                continue;
            }
            let passes = cell.passes();
            self.fired.insert(data, Fired::new(passes, now));
        }
    }

    /// Something of the kind that `share` deals with.
    fn other(&self, data: u64, flags: epoll::EventFlags) {
        if data == LISTENER {
            return owner::on_listener();
        }
        if data & LINE == 0 {
            return owner::on_client((data & !CLIENT) as i32);
        }
        let ended = flags.contains(epoll::EventFlags::HUP);
        if let Some(cell) = MuxCell::by_index(((data & !LINE) >> 32) as u32) {
            owner::on_line(cell, KcmId(data as u32), ended);
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
            let device = device_of(data);
            let cell = match device {
                Some(_) => None,
                None => MuxCell::by_index((data >> 32) as u32),
            };
            let passes = match (device, cell) {
                (Some(device), _) => device.passes(),
                (None, Some(cell)) => cell.passes(),
                (None, None) => continue,
            };
            if passes != fired.passes {
                fired.passes = passes;
                fired.due = now + fired.interval;
                fired.interval = (fired.interval * 2).min(RECHECK_MAX);
                continue;
            }
            self.fired.remove(&data);
            if let Some(device) = device {
                self.serve_device(device);
            } else if let Some(cell) = cell {
                self.serve(cell, PsockId(data as u32));
            }
        }
    }

    /// Does an engine's work and waits for more. A device that has failed has nothing to wait for: it is
    /// looked at again when the engine tries it again.
    fn serve_device(&mut self, cell: &'static NetCell) {
        let Ok(mut engine) = cell.lock() else { return };
        engine.serve();
        drop(engine);
        handover::serve();
        broker::end_if_idle();
        let Ok(engine) = cell.lock() else { return };
        if let Some(entry) = engine.device_entry() {
            return arm_device(cell, entry);
        }
        let now = sys::now();
        let fired = Fired {
            due: engine.next_deadline().unwrap_or(now).max(now + GRACE),
            ..Fired::new(cell.passes(), now)
        };
        self.fired.insert(device_tag(cell), fired);
    }

    /// Does the work of one connection and arms it again.
    fn serve(&self, cell: &'static MuxCell, psock: PsockId) {
        let Ok(mut engine) = cell.lock() else { return };
        if cell.is_shared() {
            engine.serve();
        } else {
            engine.look();
            engine.read_all();
            engine.write_all();
        }
        arm(cell, &engine, psock);
    }

    /// Runs every timer that is due and finds the next one.
    fn expire(&mut self, now: Nanos) {
        WAKES_AT.store(u64::MAX, Ordering::Relaxed);
        if ARE_SHUT.swap(false, Ordering::Relaxed) {
            owner::watch_door();
            handover::watch_claims();
        }
        MuxCell::for_each(|engine| {
            engine.expire(now);
            if let Some(at) = engine.mux.next_deadline() {
                WAKES_AT.fetch_min(at, Ordering::Relaxed);
            }
        });
        let mut is_served = false;
        for (cell, known) in cells::all().zip(&mut self.passes) {
            let passes = cell.passes();
            if core::mem::replace(known, passes) != passes
                && !lend::has_door()
                && !lend::serves_others()
            {
                // The program runs its timers as it comes by; its lock is not to be had for nothing.
                let at = cell.due().max(now).saturating_add(GRACE);
                WAKES_AT.fetch_min(at, Ordering::Relaxed);
            } else if let Ok(mut engine) = cell.lock() {
                engine.expire();
                is_served = true;
            }
        }
        if is_served {
            handover::serve();
            broker::end_if_idle();
        }
    }
}
