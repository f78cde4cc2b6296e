//! Sending on a KCM socket (kcm-semantics §5).

use core::sync::atomic::Ordering;

use kcm_mux::{KcmId, SendFlags, SocketType, TxResult};

use super::cell::{Engine, EngineGuard};
use super::recv::deadline;
use super::socket;
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::fd::file::Link;
use crate::share::remote;
use crate::user_mem::Iovecs;
use crate::wait;

/// Completed messages of at least this size are not gathered with others: one more copy costs
/// more than one more system call.
const GATHER_BYTES_MAX: usize = 4096;

/// A message that is longer is sent only if there is memory for what the connection does not take:
/// a message that has been begun cannot be refused any more.
const UNPROBED_MAX: usize = 256 << 10;

/// Whether `length` bytes could be copied now. Costs no page: none is touched.
fn has_memory(length: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(length).is_ok()
}

/// MSG_BATCH, which libc does not name.
pub(crate) const MSG_BATCH: i32 = 0x40000;

/// Whether a send with these flags ends a message. write(2) and writev(2) always do.
fn ends(ty: SocketType, flags: i32) -> bool {
    match ty {
        SocketType::Dgram => flags & libc::MSG_MORE == 0,
        SocketType::Seqpacket => flags & libc::MSG_EOR != 0,
    }
}

/// One or more sends on the socket `fd`, under one lock.
pub(crate) struct Sending {
    file: &'static File,
    fd: i32,
    engine: Option<EngineGuard>,
    /// Let go of after the lock.
    pin: Option<wait::Pin>,
}

/// sendmsg(2) and its kin on the socket `fd`; `src` is what the program wants sent. Returns the
/// whole length.
pub(crate) fn send(file: &'static File, fd: i32, src: Iovecs<'_>, flags: i32) -> Outcome<usize> {
    Sending::start(file, fd)?.send(&src, flags)
}

/// The mux, after what other processes have sent before.
fn start_here(file: &'static File) -> Outcome<EngineGuard> {
    let mut engine = socket::checked(file, file.mux()?)?;
    if !engine.lines.is_empty() {
        engine.drain(file.kcm_id());
    }
    Ok(engine)
}

impl Sending {
    pub(crate) fn start(file: &'static File, fd: i32) -> Outcome<Self> {
        let engine = match file.cell.get() {
            None if file.link() == Link::Remote => {
                remote::hold(file, fd); // tells the type, by which a send is judged
                None
            }
            _ => Some(start_here(file)?),
        };
        Ok(Self {
            file,
            fd,
            engine,
            pin: None,
        })
    }

    /// One message, or a part of one.
    pub(crate) fn send(&mut self, src: &Iovecs<'_>, flags: i32) -> Outcome<usize> {
        if self.engine.is_none() && self.file.link() == Link::Remote {
            return self.send_by_owner(src, flags);
        }
        let id = self.file.kcm_id();
        if !self.engine()?.mux.may_start(id) {
            self.await_room(flags)?;
        }
        let ty = self.file.socket_type();
        let end = ends(ty, flags);
        let engine = self.engine()?;
        let Ok(parts) = src.gather() else {
            if ty == SocketType::Dgram {
                engine.mux.abort_open(id);
            }
            engine.mux.flush_batch(id);
            engine.write_all();
            return Err(Errno::EFAULT.into());
        };
        let length = src.total();
        let gathers = flags & MSG_BATCH != 0 && length < GATHER_BYTES_MAX;
        if length > UNPROBED_MAX && !has_memory(length) {
            return Err(Errno::ENOMEM.into());
        }
        if end && length > 0 && !gathers && engine.send_directly(id, &parts) {
            return Ok(length);
        }
        let sent = engine.mux.send(
            id,
            &parts,
            SendFlags {
                end,
                batch: gathers,
            },
        );
        if end && !gathers {
            engine.write_all();
        }
        sent.map_err(|_| Errno::EAGAIN.into())
    }

    /// The mux is with another process. MSG_BATCH, which only delays, is not passed on.
    #[cold]
    fn send_by_owner(&mut self, src: &Iovecs<'_>, flags: i32) -> Outcome<usize> {
        let ty = self.file.socket_type();
        let Ok(parts) = src.gather() else {
            if ty == SocketType::Dgram {
                remote::abort(self.file, self.fd);
            }
            return Err(Errno::EFAULT.into());
        };
        remote::send(self.file, self.fd, &parts, ends(ty, flags), flags)
    }

    /// Sends what MSG_BATCH held back.
    pub(crate) fn flush(&mut self) {
        let id = self.file.kcm_id();
        if let Ok(engine) = self.engine() {
            engine.mux.flush_batch(id);
            engine.write_all();
        }
    }

    fn engine(&mut self) -> Outcome<&mut EngineGuard> {
        self.engine.as_mut().ok_or(Exit::Failed(Errno::EBADF))
    }

    /// Sleeps until the queue has room for another message.
    #[cold]
    fn await_room(&mut self, flags: i32) -> Outcome<()> {
        let id = self.file.kcm_id();
        self.flush();
        let engine = self.engine()?;
        engine.look();
        engine.write_all();
        if engine.mux.may_start(id) {
            return Ok(());
        }
        self.engine = None;
        if flags & libc::MSG_DONTWAIT != 0 || self.file.is_nonblocking(self.fd) {
            return Err(Errno::EAGAIN.into());
        }
        let until = deadline(self.file.sndtimeo.load(Ordering::Relaxed));
        loop {
            let may_start = |engine: &mut Engine| engine.mux.may_start(id);
            wait::sleep(self.file, until, &mut self.pin, may_start)?;
            let engine = socket::checked(self.file, self.file.mux()?)?;
            if engine.mux.may_start(id) {
                self.engine = Some(engine);
                return Ok(());
            }
        }
    }
}

impl EngineGuard {
    /// Writes a whole message from the program's memory to a free connection. False when something
    /// is queued before it, or no connection is free.
    fn send_directly(&mut self, id: KcmId, parts: &[&[u8]]) -> bool {
        let Some(psock) = self.mux.reserve_direct(id) else {
            return false;
        };
        let result = match self.connection(psock) {
            Some(conn) => conn.send(parts.iter().copied()),
            None => TxResult::Failed(libc::EPIPE),
        };
        self.mux.finish_direct(id, psock, parts, result);
        self.note_blocked(psock);
        self.write_all();
        true
    }
}
