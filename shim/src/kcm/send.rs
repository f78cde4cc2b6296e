//! Sending on a KCM socket (kcm-semantics §5).

use core::sync::atomic::Ordering;

use kcm_mux::{KcmId, SendFlags, SocketType, TxResult};

use super::cell::{EngineGuard, send_parts};
use super::recv::deadline;
use super::socket;
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::user_mem::Iovecs;
use crate::{sys, wait};

/// Completed messages of at least this size are not gathered with others: one more copy costs
/// more than one more system call.
const GATHER_BYTES_MAX: usize = 4096;

/// MSG_BATCH, which libc does not name.
pub(crate) const MSG_BATCH: i32 = 0x40000;

/// Whether a send with these flags ends a message. write(2) and writev(2) always do.
fn ends(ty: SocketType, flags: i32) -> bool {
    match ty {
        SocketType::Dgram => flags & libc::MSG_MORE == 0,
        SocketType::Seqpacket => flags & libc::MSG_EOR != 0,
    }
}

/// sendmsg(2) and its kin on the socket `fd`; `src` is what the program wants sent. Returns the
/// whole length.
pub(crate) fn send(file: &'static File, fd: i32, src: Iovecs<'_>, flags: i32) -> Outcome<usize> {
    let cell = file.mux()?;
    let mut pin = None; // let go of after the lock
    let mut engine = socket::checked(file, cell)?;
    let id = file.kcm_id();
    if !engine.mux.may_start(id) {
        engine = await_room(file, fd, engine, flags, &mut pin)?;
    }
    let ty = file.socket_type();
    let (end, batch) = (ends(ty, flags), flags & MSG_BATCH != 0);
    let Ok(parts) = src.gather() else {
        if ty == SocketType::Dgram {
            engine.mux.abort_open(id);
        }
        engine.mux.flush_batch(id);
        engine.write_all();
        return Err(Errno::EFAULT.into());
    };
    let length = src.total();
    let gathers = batch && length < GATHER_BYTES_MAX;
    if end && length > 0 && !gathers {
        if length >= GATHER_BYTES_MAX {
            engine.mux.flush_batch(id);
            engine.write_all();
        }
        if let Some(psock) = engine.mux.reserve_direct(id) {
            let result = match engine.connection(psock) {
                Some(conn) => send_parts(conn.fd(), parts.iter().copied()),
                None => TxResult::Failed(libc::EPIPE),
            };
            engine.mux.finish_direct(id, psock, &parts, result);
            engine.note_blocked(psock);
            engine.write_all();
            return Ok(length);
        }
    }
    let sent = engine.mux.send(
        id,
        &parts,
        SendFlags {
            end,
            batch: gathers,
        },
    );
    engine.write_all();
    sent.map_err(|_| Errno::EAGAIN.into())
}

/// Sleeps until the queue has room for another message.
#[cold]
fn await_room(
    file: &'static File,
    fd: i32,
    mut engine: EngineGuard,
    flags: i32,
    pin: &mut Option<wait::Pin>,
) -> Outcome<EngineGuard> {
    let id = file.kcm_id();
    engine.mux.flush_batch(id);
    engine.look();
    engine.write_all();
    if engine.mux.may_start(id) {
        return Ok(engine);
    }
    drop(engine);
    if flags & libc::MSG_DONTWAIT != 0 || sys::is_nonblocking(fd) {
        return Err(Errno::EAGAIN.into());
    }
    let until = deadline(file.sndtimeo.load(Ordering::Relaxed));
    loop {
        let awake = wait::sleep(file, until, |engine| engine.mux.may_start(id))?;
        *pin = Some(awake);
        let engine = socket::checked(file, file.mux()?)?;
        if engine.mux.may_start(id) {
            return Ok(engine);
        }
    }
}

/// Flushes what MSG_BATCH held back: the last entry of a sendmmsg(2) could not be sent.
pub(crate) fn flush(file: &'static File) {
    if let Ok(cell) = file.mux()
        && let Ok(mut engine) = socket::checked(file, cell)
    {
        let id: KcmId = file.kcm_id();
        engine.mux.flush_batch(id);
        engine.write_all();
    }
}
