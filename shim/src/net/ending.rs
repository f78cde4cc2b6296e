//! The end of a process that has stack sockets: what was written and not yet acknowledged is the
//! engine's to deliver, as it is the kernel's where the kernel serves, and what other processes hold
//! lives on.

use kcm_mux::Nanos;

use super::engine::CELL;
use super::lend;
use crate::fd::table;
use crate::interpose::poll::native_ppoll;
use crate::{housekeeper, process, sys};

/// How long the ending process itself waits for the last acknowledgements: some round trips of a
/// local network. What takes longer is left to a process of its own.
const PATIENCE: Nanos = 20_000_000;

/// Closes every stack socket, and waits a moment for what is on its way. Whether something is left, or
/// other processes hold sockets of the engine.
pub(crate) fn at_exit() -> bool {
    if !CELL.is_open() || process::is_foreign() {
        return false;
    }
    for fd in table::ours_in(0, u32::MAX) {
        if lend::lendable(fd).is_some()
            && let Some(file) = table::remove(fd)
        {
            let _ = sys::close(fd);
            file.release();
        }
    }
    if lend::is_needed() {
        return true;
    }
    let end = sys::now().saturating_add(PATIENCE);
    loop {
        let Ok(mut engine) = CELL.lock() else {
            return false;
        };
        engine.pump();
        if !engine.stack.is_unfinished() {
            return false;
        }
        let until = engine.next_deadline().map_or(end, |at| at.min(end));
        let entry = engine.device_entry();
        drop(engine);
        if sys::now() >= end {
            return true;
        }
        let mut fds: Vec<_> = entry.into_iter().collect();
        let _ = native_ppoll(&mut fds, Some(until.max(1)));
    }
}

/// Whether a closed connection still has something to get across.
pub(crate) fn is_unfinished() -> bool {
    CELL.is_open() && CELL.lock().is_ok_and(|engine| engine.stack.is_unfinished())
}

/// Whether the engine has any socket.
pub(crate) fn has_sockets() -> bool {
    CELL.is_open()
        && CELL
            .lock()
            .is_ok_and(|engine| engine.sockets().next().is_some())
}

/// Another process may have the addresses from now on.
pub(crate) fn give_up_addresses() {
    if CELL.is_open()
        && let Ok(mut engine) = CELL.lock()
    {
        engine.give_up_addresses();
    }
}

/// In a child that goes on with the engine of its parent, which ends.
pub(crate) fn take_over() {
    if !CELL.is_open() {
        return;
    }
    if housekeeper::start().is_ok() {
        housekeeper::watch_device();
    }
    if let Ok(mut engine) = CELL.lock() {
        engine.forget_sleepers();
        lend::watch_again(&engine);
    }
}
