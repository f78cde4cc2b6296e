//! The end of a process that has stack sockets: what was written and not yet acknowledged is the
//! engine's to deliver, as it is the kernel's where the kernel serves, and what other processes hold
//! lives on.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kcm_mux::Nanos;

use super::engine::Engine;
use super::leaving::{self, Leaving, Ports};
use super::socket::{Socket, State};
use super::{cells, lend, listeners};
use crate::fd::file::Link;
use crate::fd::{File, place, table};
use crate::interpose::poll::native_ppoll;
use crate::share::owner;
use crate::silence::Silence;
use crate::{descriptor, housekeeper, route, sys};

/// How long the ending process itself waits for the last acknowledgements: some round trips of a
/// local network. What takes longer is left to a process of its own.
const PATIENCE: Nanos = 20_000_000;

/// Nothing new starts in this process: it ends.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Whether the process can serve no others any more.
pub(super) fn has_begun() -> bool {
    IS_ENDING.load(Ordering::Relaxed)
}

/// Closes the program's numbers of every stack socket.
pub(crate) fn close_numbers(silence: &mut Silence) {
    if !cells::is_open() {
        return;
    }
    IS_ENDING.store(true, Ordering::Relaxed);
    drop(owner::in_flight()); // whom the housekeeper serves just now has been served
    for fd in table::ours_in(0, u32::MAX) {
        if let Some((_, file)) = lend::lendable(fd) {
            descriptor::before_close(file, fd);
            let is_silent = silence.fall(fd, listens(file, fd));
            if place::leave(fd, file) {
                if !is_silent {
                    let _ = sys::close(fd);
                }
                file.release();
            }
        }
    }
}

/// Closes what is left of stack sockets, and waits a moment for what is on its way. Whether something is left,
/// or other processes hold sockets of an engine. `ends_muxes`: nobody needs those of this process.
pub(crate) fn finish(ends_muxes: bool) -> bool {
    if !cells::is_open() {
        return false;
    }
    close_rest(ends_muxes);
    if lend::is_needed() {
        return true;
    }
    refuse_handshakes();
    let end = sys::now().saturating_add(PATIENCE);
    loop {
        let (mut until, mut fds, mut is_unfinished) = (end, Vec::new(), false);
        for cell in cells::all() {
            let Ok(mut engine) = cell.lock() else {
                continue;
            };
            engine.pump();
            if has_more(&engine) {
                is_unfinished = true;
                until = engine.next_deadline().map_or(until, |at| at.min(until));
                fds.extend(engine.device_entry());
            }
        }
        if !is_unfinished || sys::now() >= end {
            return is_unfinished;
        }
        let _ = native_ppoll(&mut fds, Some(until.max(1)));
    }
}

/// Peers that were about to be connected to listeners which are closed hear of it now: whoever has the address
/// next may not be there yet when they say their last word.
pub(crate) fn refuse_handshakes() {
    for mut engine in cells::all().filter_map(|cell| cell.lock().ok()) {
        let now = engine.now();
        engine.stack.tcp_refuse_handshakes(now);
    }
}

/// Closes the sockets that are nobody's any more. Threads that sleep on one hold its file, and another may be
/// about to take it down: neither is waited for. `ends_muxes`: what a mux has is nobody's either.
pub(crate) fn close_rest(ends_muxes: bool) {
    let is_left = |socket: &&Socket| {
        let has_others = socket.relay.is_some() || socket.door.is_some();
        let has_mux = socket.psock.is_some() && !ends_muxes;
        !has_others && !has_mux && !socket.is_copy && socket.file.link() == Link::Private
    };
    for cell in cells::all() {
        let Ok(engine) = cell.lock() else {
            continue;
        };
        let left: Vec<_> = { engine.sockets().filter(is_left) }
            .map(|it| it.file)
            .collect();
        drop(engine);
        for file in left {
            listeners::close(file);
            if let Ok(mut engine) = cell.lock() {
                lend::close_under_sleepers(&mut engine, file);
            }
        }
    }
    File::take_down_deferred(); // under the lock they could only be put aside
}

fn listens(file: &'static File, fd: i32) -> bool {
    let state = cells::lock(file).and_then(|mut engine| Ok(engine.socket(file)?.state));
    matches!(state, Ok(State::Listening(_)))
        || rustix::net::sockopt::socket_acceptconn(sys::borrow(fd)).unwrap_or(false)
}

/// Whether a closed connection still has something to get across.
pub(crate) fn is_unfinished() -> bool {
    cells::all().any(|cell| cell.lock().is_ok_and(|engine| has_more(&engine)))
}

/// As [`is_unfinished`], of one engine. A connection that nobody has any more counts: another thread is about to
/// close it, or was before this process was forked.
fn has_more(engine: &Engine) -> bool {
    engine.stack.is_unfinished() || engine.sockets().any(|socket| socket.file.is_let_go())
}

/// Whether an engine has any socket.
pub(crate) fn has_sockets() -> bool {
    cells::all().any(|cell| {
        cell.lock()
            .is_ok_and(|engine| engine.sockets().next().is_some())
    })
}

/// Another process may have the addresses from now on, if both can be at the devices; else this one serves
/// it. Later: it may have the ports that have become free.
pub(crate) fn give_up_addresses() {
    if cells::all().all(|cell| cell.lock().is_ok_and(|engine| engine.claims().is_empty())) {
        return give_up_ports();
    }
    let Some(plan) = route::plan().filter(|plan| leaving::is_possible(plan)) else {
        return;
    };
    /// Flows that used too many ports: if they are no few, they are not looked at again before half have ended.
    static TOO_MANY: AtomicUsize = AtomicUsize::new(usize::MAX);
    let flows = flow_count();
    if flows > (TOO_MANY.load(Ordering::Relaxed) / 2).max(leaving::NAMES_MAX) {
        return;
    }
    let Some(leaving) = Leaving::begin(plan) else {
        return;
    };
    let Some(leaving) = leaving.with_ports(&used_ports(false)) else {
        return TOO_MANY.store(flows, Ordering::Relaxed);
    };
    let mut leaving = Some(leaving);
    // The claims are the first engine's, and nobody has them before all engines are quiet.
    for cell in cells::all().collect::<Vec<_>>().into_iter().rev() {
        if let Ok(mut engine) = cell.lock() {
            engine.give_up_addresses(leaving.take());
        }
    }
}

fn give_up_ports() {
    /// Flows when that was last done.
    static FLOWS: AtomicUsize = AtomicUsize::new(usize::MAX);
    let flows = flow_count();
    if FLOWS.swap(flows, Ordering::Relaxed) != flows {
        let used = used_ports(true);
        for mut engine in cells::all().filter_map(|cell| cell.lock().ok()) {
            engine.give_up_ports_but(&used);
        }
    }
}

fn flow_count() -> usize {
    let engines = cells::all().filter_map(|cell| cell.lock().ok());
    engines.map(|engine| engine.stack.flow_count()).sum()
}

fn used_ports(with_time_waits: bool) -> Ports {
    let mut ports = Ports::new();
    for engine in cells::all().filter_map(|cell| cell.lock().ok()) {
        let waits = engine.stack.tcp_time_waits().filter(|_| with_time_waits);
        for (local, remote) in engine.stack.tcp_connections().chain(waits) {
            ports.entry(local).or_default().insert(remote);
        }
    }
    ports
}

/// In a child that goes on with the engine of its parent, which ends.
pub(crate) fn take_over() {
    if !cells::is_open() {
        return;
    }
    IS_ENDING.store(false, Ordering::Relaxed);
    let is_kept = housekeeper::start().is_ok();
    for cell in cells::all() {
        if is_kept {
            housekeeper::watch_device(cell);
        }
        if let Ok(mut engine) = cell.lock() {
            engine.forget_sleepers();
            lend::watch_again(&engine);
        }
    }
}
