//! TCP descriptors that are, or were, attached to a mux.
//!
//! The kernel's TCP socket stays beneath and answers almost everything. Three things it cannot
//! know are added here: an error that KCM posted on it (kcm-semantics §6, §9.5), bytes that were
//! read for the parser and not consumed (§3.4), and that a local shutdown is a state change (§6.1).

use std::collections::VecDeque;

use kcm_mux::{Nanos, PsockId, Slice, Unattached};
use rustix::fd::BorrowedFd;
use rustix::net::{AddressFamily, ipproto, sockopt};

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::kcm::{EngineGuard, options::put_int};
use crate::net::inherited;
use crate::user_mem::{Iovecs, UserPtr};
use crate::{housekeeper, sys};

/// What a TCP file has besides its socket.
#[derive(Default)]
pub(crate) struct Attached {
    /// Taken from the socket, not consumed: the program reads these bytes first.
    unread: VecDeque<u8>,
    /// Posted error, 0 for none: getsockopt(SO_ERROR) and recv take it.
    error: i32,
    /// A message was cut off in the middle of being sent: no other may follow it.
    torn: bool,
}

/// TCP states of `struct tcp_info` that cannot be attached.
pub(crate) const CLOSE: u8 = 7;
pub(crate) const LISTEN: u8 = 10;

/// States that follow the peer's FIN: TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING.
pub(crate) fn peer_has_closed(state: u8) -> bool {
    matches!(state, 6 | 8 | 9 | 11)
}

/// Whether this is a TCP socket of IPv4 or IPv6 (not MPTCP).
pub(crate) fn is_tcp(fd: BorrowedFd<'_>) -> bool {
    let family = sockopt::socket_domain(fd);
    let inet = matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6));
    inet && matches!(sockopt::socket_protocol(fd), Ok(Some(p)) if p == ipproto::TCP)
}

/// State of the connection as `struct tcp_info` numbers them.
pub(crate) fn state(fd: BorrowedFd<'_>) -> u8 {
    sys::tcp_state(fd).unwrap_or(CLOSE)
}

/// SO_RCVTIMEO: how long a message may take to arrive (kcm-semantics §9.4).
pub(crate) fn rcvtimeo(fd: BorrowedFd<'_>) -> Option<Nanos> {
    let timeout = sockopt::socket_timeout(fd, sockopt::Timeout::Recv).ok()??;
    Some(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX))
}

/// The file of the number `fd`, if it is one of a socket that is the kernel's beneath.
fn known(fd: i32) -> Option<&'static File> {
    lookup(fd).filter(|file| matches!(file.kind(), Kind::Tcp | Kind::Inherited))
}

/// The file of a descriptor that is being attached; made if this is the first time.
pub(crate) fn adopt(fd: i32) -> Outcome<&'static File> {
    if let Some(file) = known(fd) {
        file.note_attached();
        return Ok(file);
    }
    if !table::in_range(fd) {
        return Err(Errno::EMFILE.into());
    }
    let ino = sys::inode(sys::borrow(fd));
    let file = File::new(Kind::Tcp, ino, Body::Tcp(Attached::default()))?;
    table::install(fd, file);
    Ok(file)
}

/// A stack socket is being attached.
pub(crate) fn prepare(file: &File) -> Outcome<()> {
    let mut body = file.body.lock()?;
    if matches!(*body, Body::None) {
        *body = Body::Tcp(Attached::default());
    }
    Ok(())
}

/// Runs `f` on what the file has besides its socket. Native when it has nothing.
fn with<R>(file: &File, f: impl FnOnce(&mut Attached) -> R) -> Outcome<R> {
    file.body.lock()?.attached().map(f).ok_or(Exit::Native)
}

/// What an earlier attach left unread becomes the start of the next psock's stream.
pub(crate) fn take_unread(file: &File) -> Outcome<VecDeque<u8>> {
    match with(file, |tcp| core::mem::take(&mut tcp.unread)) {
        Err(Exit::Native) => Ok(VecDeque::new()),
        unread => unread,
    }
}

/// Whether an earlier attach left the peer in the middle of a message.
pub(crate) fn is_torn(file: &File) -> bool {
    with(file, |tcp| tcp.torn).unwrap_or(false)
}

/// What a psock leaves to the descriptor it was attached by.
#[derive(Default)]
pub(crate) struct Left {
    /// Bytes of the stream that were taken from the socket and that nobody consumed.
    pub(crate) unread: VecDeque<u8>,
    /// Posted error, 0 for none.
    pub(crate) error: i32,
    /// The peer is in the middle of a message.
    pub(crate) torn: bool,
}

impl Left {
    /// What the parser had not consumed, and behind it what the parser had not seen.
    pub(crate) fn new(unattached: Unattached, behind: VecDeque<u8>) -> Self {
        let slices = unattached
            .unread
            .iter()
            .flat_map(|slice| slice.iter().copied());
        Self {
            unread: slices.chain(behind).collect(),
            error: unattached.error,
            torn: unattached.torn,
        }
    }

    /// Takes what an earlier attach left at the number `fd`, but for the error, which stays pending.
    pub(crate) fn take(fd: i32) -> Outcome<Self> {
        match known(fd) {
            Some(file) => Ok(Self {
                unread: take_unread(file)?,
                error: 0,
                torn: is_torn(file),
            }),
            None => Ok(Self::default()),
        }
    }
}

/// The psock is gone.
pub(crate) fn detached(file: &'static File, left: Left) {
    file.cell.swap(None);
    let _ = with(file, |tcp| {
        tcp.unread.extend(left.unread);
        tcp.error = left.error;
        tcp.torn |= left.torn;
    });
}

/// Bytes of the stream that no parser wants: the program reads them before the socket's.
pub(crate) fn keep_unread(file: &'static File, left: &[Slice], behind: VecDeque<u8>) {
    let _ = with(file, |tcp| {
        { &mut tcp.unread }.extend(left.iter().flat_map(|slice| slice.iter()));
        tcp.unread.extend(behind);
    });
}

/// What becomes of a number that the program gives up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Number {
    /// It is closed.
    Free,
    /// The psock works through it, and there is no other to be had: it stays open, and is ours.
    Needed,
}

/// The program is about to close `fd`, which may be the number the psock works through.
pub(crate) fn before_close(file: &'static File, fd: i32) -> Number {
    let Ok((mut engine, psock)) = at_rest(file) else {
        return Number::Free;
    };
    match housekeeper::moved(&mut engine, psock, fd) {
        Ok(()) => Number::Free,
        Err(_) => Number::Needed,
    }
}

/// The program has given up `fd`, which is [needed](Number::Needed).
pub(crate) fn keep_number(file: &'static File, fd: i32) {
    if let Ok((mut engine, psock)) = attached(file)
        && let Some(conn) = engine.conns.get_mut(psock)
        && conn.raw_fd() == fd
    {
        conn.keep_number();
    }
}

/// The last descriptor of the program's is gone. The psock, if any, works on through ours.
pub(crate) fn last_close(file: &'static File) {
    if let Ok((mut engine, psock)) = attached(file)
        && let Some(conn) = engine.conns.get_mut(psock)
    {
        conn.file = None;
    }
}

/// The mux and psock of an attached file.
fn attached(file: &'static File) -> Outcome<(EngineGuard, PsockId)> {
    let cell = file.cell.get().ok_or(Exit::Native)?;
    let engine = cell.lock()?;
    let psock = file.psock_id();
    let ours = engine.connection(psock).and_then(|c| c.file);
    if ours.is_some_and(|f| core::ptr::eq(f, file)) {
        Ok((engine, psock))
    } else {
        Err(Exit::Native)
    }
}

/// As [`attached`], with nobody reading the connection.
fn at_rest(file: &'static File) -> Outcome<(EngineGuard, PsockId)> {
    loop {
        let (engine, psock) = attached(file)?;
        if let Some(engine) = engine.unless_being_read(psock) {
            return Ok((engine, psock));
        }
    }
}

/// getsockopt(2): a posted error is reported and cleared by SO_ERROR.
pub(crate) fn getsockopt(
    file: &'static File,
    level: i32,
    name: i32,
    value: UserPtr,
    length: UserPtr,
) -> Outcome<i32> {
    if (level, name) != (libc::SOL_SOCKET, libc::SO_ERROR) {
        return Err(Exit::Native);
    }
    match take_error(file)? {
        0 => Err(Exit::Native),
        error => put_int(error, value, length),
    }
}

fn take_error(file: &'static File) -> Outcome<i32> {
    if let Ok((mut engine, psock)) = attached(file) {
        engine.pump();
        return Ok(engine.mux.take_error(psock));
    }
    with(file, |tcp| core::mem::take(&mut tcp.error))
}

/// The socket beneath has accepted an option: the psock follows.
pub(crate) fn option_set(file: &'static File, level: i32, name: i32) {
    if level != libc::SOL_SOCKET {
        return;
    }
    let Ok((mut engine, psock)) = attached(file) else {
        return;
    };
    let Some(conn) = engine.conns.get_mut(psock) else {
        return;
    };
    conn.told_rcvbuf = inherited::rcvbuf(file).or(conn.told_rcvbuf);
    let (limit, timeout) = (conn.rcvbuf(), conn.rcvtimeo());
    match name {
        libc::SO_RCVBUF | libc::SO_RCVBUFFORCE => {
            engine.mux.set_psock_rcvbuf(psock, limit);
        }
        libc::SO_RCVTIMEO | 66 => engine.mux.set_msg_timeout(psock, timeout),
        _ => {}
    }
}

/// The program has shut down a direction: a state change, which posts EPIPE.
pub(crate) fn state_changed(file: &'static File) {
    if let Ok((mut engine, psock)) = attached(file) {
        engine.mux.handle_state_change(psock);
    }
}

/// Poll bits that the socket beneath does not know of.
pub(crate) fn extra_bits(file: &'static File) -> u32 {
    let posted = match attached(file) {
        Ok((mut engine, psock)) => {
            engine.pump();
            engine.mux.pending_error(psock)
        }
        Err(_) => 0,
    };
    let (kept, unread) = with(file, |tcp| (tcp.error, tcp.unread.len())).unwrap_or_default();
    let mut bits = 0;
    if posted != 0 || kept != 0 {
        bits |= libc::POLLERR as u32;
    }
    if unread != 0 {
        bits |= (libc::POLLIN | libc::POLLRDNORM) as u32;
    }
    bits
}

/// Bytes that FIONREAD has to add to what the socket holds.
pub(crate) fn unread(file: &File) -> usize {
    with(file, |tcp| tcp.unread.len()).unwrap_or(0)
}

/// recv(2) and its kin: unread bytes first, then a posted error, then the socket itself.
pub(crate) fn recv(file: &'static File, dst: Iovecs<'_>, flags: i32) -> Outcome<usize> {
    if let Ok((mut engine, _)) = attached(file) {
        engine.pump();
    }
    if let Some(tcp) = file.body.lock()?.attached() {
        let count = tcp.unread.len().min(dst.total());
        if count > 0 {
            let (front, back) = tcp.unread.as_slices();
            dst.scatter([front, back], count)?;
            if flags & libc::MSG_PEEK == 0 {
                tcp.unread.drain(..count);
            }
            return Ok(count);
        }
    }
    match take_error(file)? {
        0 => Err(Exit::Native),
        error => Err(Errno(error).into()),
    }
}
