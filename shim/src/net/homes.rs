//! In which of several engines a socket lives. A connection lives where its ports belong, a UDP socket
//! where its local port does; as long as those are the engine's to choose, a thread keeps to one engine.

use core::cell::Cell;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicU8, Ordering};

use kcm_stack::{shard_of_flow, shard_of_udp};

use super::cells::{self, Engines, NetCell};
use super::listeners::{self, PLACING};
use crate::errno::Outcome;
use crate::fd::File;

thread_local! {
    /// The engine that this thread has its sockets in; one more than its index, zero for none yet.
    static HOME: Cell<u8> = const { Cell::new(0) };
}

/// The next thread's.
static NEXT: AtomicU8 = AtomicU8::new(0);

/// The engine for a socket of this thread that may live in any.
pub(super) fn of_thread() -> &'static NetCell {
    if !cells::are_several() {
        return cells::first();
    }
    let index = match HOME.get() {
        0 => NEXT.fetch_add(1, Ordering::Relaxed) % cells::count(),
        known => (known - 1) % cells::count(),
    };
    HOME.set(index + 1);
    cells::at(index)
}

/// The thread serves a socket of this engine.
pub(super) fn settle(cell: &NetCell) {
    if cells::are_several() {
        HOME.set(cell.index() + 1);
    }
}

/// The engine of a UDP socket on this port, zero for one of the engine's choice.
pub(super) fn of_udp(port: u16) -> &'static NetCell {
    match port {
        0 => of_thread(),
        port => cells::at(shard_of_udp(port, cells::count())),
    }
}

/// Every engine, beginning with the one that a UDP port belongs to: the order in which those who share an
/// address are spread over them, of whatever protocol, so that a thread with one of each keeps to one engine.
pub(super) fn from_port(port: u16) -> impl Iterator<Item = &'static NetCell> {
    let (first, count) = (shard_of_udp(port, cells::count()), cells::count());
    (first..count).chain(0..first).map(cells::at)
}

/// The engines of a listener, each time beginning with another.
pub(super) fn in_turn(engines: Engines) -> impl Iterator<Item = &'static NetCell> {
    static TURN: AtomicU8 = AtomicU8::new(0);
    let first = match cells::are_several() {
        true => TURN.fetch_add(1, Ordering::Relaxed) % cells::count(),
        false => 0,
    };
    let (before, after): (u16, u16) = ((1 << first) - 1, !((1 << first) - 1));
    let part = move |bits: u16| Engines::from_bits(engines.bits() & bits).cells();
    part(after).chain(part(before))
}

/// A socket with a local port moves to the engine that its connection to `remote` belongs to.
pub(super) fn before_connect(file: &'static File, remote: SocketAddr) -> Outcome<()> {
    if !cells::are_several() || !file.is_stream() {
        return Ok(());
    }
    let Some(local) = cells::lock(file)?.socket(file)?.bound else {
        return Ok(());
    };
    let index = shard_of_flow(local.port(), remote.port(), cells::count());
    listeners::relocate(&*PLACING.lock()?, file, cells::at(index))
}
