//! A stack connection as the source of a psock: what a mux reads and writes in place of a kernel
//! socket.
//!
//! The engine's lock comes behind the mux's, so the engine cannot mark a psock itself when something
//! happens. It rings the psock's [`Bell`] instead, an eventfd that everything which watches kernel
//! sockets for a mux (poll, epoll sets, the housekeeper) watches in the same way.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use kcm_mux::{Nanos, ReadResult, TxResult};
use kcm_stack::{RecvError, SendError, State as TcpState};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd};

use super::cells::{self, EngineGuard, Engines};
use super::question::Question;
use super::{errors, inherited, lend, ready, stream};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{File, Kind, lookup};
use crate::own;
use crate::share::stack::ask;
use crate::wait::Pin;

/// Tells that a connection may have become readable or writable.
pub(crate) struct Bell {
    fd: own::Kept,
    is_rung: AtomicBool,
}

impl Bell {
    fn new() -> Outcome<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = own::keep(eventfd(0, flags)?);
        Ok(Self {
            fd,
            is_rung: AtomicBool::new(false),
        })
    }

    /// Under the engine's lock.
    pub(super) fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::AcqRel) {
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    /// Under the engine's lock, before the connection is looked at.
    fn silence(&self) {
        if self.is_rung.swap(false, Ordering::AcqRel) {
            let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        }
    }
}

/// The stack connection of a psock. It keeps the socket, which outlives the program's descriptors.
pub(crate) struct Source {
    pin: Pin,
    bell: Arc<Bell>,
}

impl Drop for Source {
    fn drop(&mut self) {
        let Ok(mut engine) = cells::lock(self.pin.file()) else {
            return;
        };
        if let Ok(socket) = engine.socket(self.pin.file()) {
            socket.psock = None;
            let relay = socket.relay;
            relay.inspect(|number| lend::unattached(&mut engine, *number));
        }
    }
}

impl Source {
    /// The connection of `file`, which rings from now on.
    ///
    /// # Errors
    /// `EBADF` when the file was closed meanwhile, `EMFILE` and the like without a descriptor to spare.
    pub(crate) fn new(file: &'static File) -> Outcome<Self> {
        let source = Self {
            pin: Pin::new(file)?,
            bell: Arc::new(Bell::new()?),
        };
        cells::lock(file)?.socket(file)?.psock = Some(Arc::clone(&source.bell));
        Ok(source)
    }

    /// The engine it lives in.
    pub(crate) fn engines(&self) -> Engines {
        self.pin.file().engines()
    }

    /// What becomes readable when the connection may have something, or room.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.fd.as_fd()
    }

    /// Takes up to `buf.len()` bytes out of the receive queue; also says whether another read may find
    /// something. `keep_rung`: the bell is somebody else's to silence, who waits for room.
    pub(crate) fn recv(&self, buf: &mut [u8], keep_rung: bool) -> (ReadResult, bool) {
        let mut engine = match cells::lock(self.pin.file()) {
            Ok(engine) => engine,
            // A signal handler that came in between: later.
            Err(Exit::Failed(Errno::EAGAIN)) => return (ReadResult::WouldBlock, true),
            Err(_) => return (ReadResult::Failed(libc::EPIPE), false),
        };
        if !keep_rung {
            self.bell.silence();
        }
        let now = engine.now();
        let id = match stream::source(&mut engine, self.pin.file()) {
            Ok(Some(id)) => id,
            Ok(None) => return (ReadResult::Eof, false),
            // The process ends, and has closed it: for its threads nothing comes any more.
            Err(Exit::Native) => return (ReadResult::WouldBlock, false),
            Err(_) => return (ReadResult::Failed(libc::EPIPE), false),
        };
        match engine.stack.tcp_recv(now, id, buf) {
            Ok(0) => (ReadResult::Eof, false),
            Ok(bytes) => {
                let more = ready::IN | ready::RDHUP | ready::HUP | ready::ERR;
                let more = engine.conn_bits(id) & more != 0;
                if more {
                    self.bell.ring(); // who sleeps on it wakes for the rest, as on a kernel socket
                }
                (ReadResult::Bytes(bytes), more)
            }
            Err(RecvError::WouldBlock) => {
                let _ = engine.conn_bits(id); // asks for the event
                (ReadResult::WouldBlock, false)
            }
            Err(why) => match errors::recv(why) {
                Exit::Failed(errno) => (ReadResult::Failed(errno.0), false),
                Exit::Native => (ReadResult::Failed(libc::EPIPE), false),
            },
        }
    }

    /// Hands the engine as much of `parts` as it takes. When that is not all, the bell rings once there
    /// is room.
    pub(crate) fn send(&self, parts: &[&[u8]]) -> TxResult {
        let mut engine = match cells::lock(self.pin.file()) {
            Ok(engine) => engine,
            Err(Exit::Failed(Errno::EAGAIN)) => return TxResult::Sent(0),
            Err(_) => return TxResult::Failed(libc::EPIPE),
        };
        let now = engine.now();
        let conn = engine.socket(self.pin.file()).ok().and_then(|s| s.conn());
        let Some(id) = conn else {
            return TxResult::Failed(libc::EPIPE);
        };
        let sent = engine.stack.tcp_send(now, id, parts, false);
        let _ = engine.conn_bits(id); // asks for the event
        match sent {
            Ok(bytes) => TxResult::Sent(bytes),
            Err(SendError::WouldBlock) => TxResult::Sent(0),
            Err(why) => TxResult::Failed(errors::send(why).0),
        }
    }

    /// Silences the bell and says whether a send finds room, or an error.
    pub(crate) fn look(&self) -> bool {
        let Ok(mut engine) = cells::lock(self.pin.file()) else {
            return false;
        };
        self.bell.silence();
        let conn = engine.socket(self.pin.file()).ok().and_then(|s| s.conn());
        let sendable = ready::OUT | ready::HUP | ready::ERR;
        conn.is_none_or(|id| engine.conn_bits(id) & sendable != 0)
    }

    /// SO_RCVBUF as getsockopt(2) shows it.
    pub(crate) fn rcvbuf(&self) -> u32 {
        let Ok(mut engine) = cells::lock(self.pin.file()) else {
            return 0;
        };
        let settings = engine.socket(self.pin.file()).map(|s| s.settings.rcvbuf());
        settings.unwrap_or(0)
    }

    /// SO_RCVTIMEO.
    pub(crate) fn rcvtimeo(&self) -> Option<Nanos> {
        let timeout = self.pin.file().rcvtimeo.load(Ordering::Relaxed);
        (timeout != 0).then_some(timeout)
    }

    /// Bytes to read and bytes not yet acknowledged.
    pub(crate) fn queues(&self) -> (usize, usize) {
        let Ok(mut engine) = cells::lock(self.pin.file()) else {
            return (0, 0);
        };
        let conn = engine.socket(self.pin.file()).ok().and_then(|s| s.conn());
        let queues = conn.and_then(|id| engine.stack.tcp_queues(id));
        queues.map_or((0, 0), |(unread, unsent, _)| (unread, unsent))
    }
}

/// What a mux has to know of a connection that processes share, before it attaches it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// The peer has ended the stream.
    pub(crate) half_closed: bool,
    /// SO_RCVBUF as getsockopt(2) shows it.
    pub(crate) rcvbuf: u32,
}

impl Standing {
    /// In one word, as processes tell each other.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.rcvbuf) << 1 | u64::from(self.half_closed)
    }

    pub(crate) fn unpack(word: u64) -> Self {
        Self {
            half_closed: word & 1 != 0,
            rcvbuf: (word >> 1) as u32,
        }
    }
}

/// The owner's side of [`standing`].
pub(super) fn stand(file: &'static File) -> Outcome<Standing> {
    let half_closed = attachable(file)?.ok_or(Errno::EOPNOTSUPP)?;
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    if socket.psock.is_some() {
        return Err(Errno::EALREADY.into());
    }
    Ok(Standing {
        half_closed,
        rcvbuf: socket.settings.rcvbuf(),
    })
}

/// How the stack connection behind `fd` stands, which is shared from now on.
///
/// # Errors
/// `EOPNOTSUPP` when it is in no state to be attached, or its owner is gone; `EALREADY` when the owner has
/// attached it.
pub(crate) fn standing(fd: i32) -> Outcome<Standing> {
    let file = lookup(fd).ok_or(Errno::EBADF)?;
    if file.kind() == Kind::Stack {
        if !file.is_stream() {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let standing = stand(file)?;
        lend::lend(file, fd)?;
        lend::give_away(file);
        return match file.kind() {
            Kind::Inherited => Ok(standing),
            _ => Err(Errno::EOPNOTSUPP.into()), // not connected yet
        };
    }
    let owner = inherited::owner_of(file)?;
    match ask(&owner, fd, Question::Attach) {
        Ok(word) => {
            let word = word.try_into().map_err(|_| Errno::EIO)?;
            Ok(Standing::unpack(u64::from_ne_bytes(word)))
        }
        Err(Exit::Failed(Errno::EALREADY)) => Err(Errno::EALREADY.into()),
        Err(_) => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// How a connection stands that is to be attached: whether its peer has ended the stream. `None` when it
/// is in no state to be attached.
pub(crate) fn attachable(file: &'static File) -> Outcome<Option<bool>> {
    let mut engine: EngineGuard = cells::lock(file)?;
    engine.pump();
    let Some(id) = engine.socket(file)?.conn() else {
        return Ok(None);
    };
    Ok(match engine.stack.tcp_state(id) {
        None | Some(TcpState::Closed) => None,
        Some(state) => Some(matches!(
            state,
            TcpState::TimeWait | TcpState::CloseWait | TcpState::LastAck | TcpState::Closing
        )),
    })
}
