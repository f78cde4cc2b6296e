//! Life of a KCM socket and of the connections attached to it: socket, clone, close, attach,
//! unattach. The order of checks is the kernel's (kcm-semantics §2, §3).

use std::collections::BTreeMap;

use kcm_mux::{Parser, PsockId, SocketType};
use rustix::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType as UnixType};

use super::MuxCell;
use super::cell::EngineGuard;
use super::connection::{Connection, rcvbuf};
use crate::errno::{Errno, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::net::psock::{self, Source, Standing};
use crate::net::{beneath, inherited};
use crate::own::Kept;
use crate::sync::{Mutex, Rank};
use crate::tcp::Left;
use crate::{bpf, epoll, heap, housekeeper, sys, tcp};

/// Where each attached TCP socket is, by its cookie: the psock is found whatever number, dup or
/// process-wide alias the program names it by. Lock order: before the mux.
static ATTACHED: Mutex<BTreeMap<u64, (&'static MuxCell, PsockId)>> =
    Mutex::ranked(Rank::Directory, BTreeMap::new());

/// socket(AF_KCM, `ty`, `protocol`).
pub(crate) fn create(ty: i32, protocol: i32) -> Outcome<i32> {
    let kcm_type = check_type(ty, protocol)?;
    let (number, file) = reserve(sys::socket_flags(ty))?;
    file.set_socket_type(kcm_type);
    match MuxCell::create(kcm_type, file, buffers(number)) {
        Ok(()) => {
            table::install(number, file);
            Ok(number)
        }
        Err(err) => {
            file.release();
            let _ = sys::close(number);
            Err(err)
        }
    }
}

/// The checks of socket(2) before anything is made.
pub(crate) fn check_type(ty: i32, protocol: i32) -> Outcome<SocketType> {
    let kind = ty & 0xf;
    if ty & !0xf & !sys::SOCKET_FLAGS != 0 || kind >= 11 {
        return Err(Errno::EINVAL.into());
    }
    let kcm_type = match kind {
        libc::SOCK_DGRAM => SocketType::Dgram,
        libc::SOCK_SEQPACKET => SocketType::Seqpacket,
        _ => return Err(Errno::ESOCKTNOSUPPORT.into()),
    };
    match protocol {
        0 => Ok(kcm_type),
        _ => Err(Errno::EPROTONOSUPPORT.into()),
    }
}

/// A real descriptor for a KCM socket: an unconnected AF_UNIX socket, so that its number, flags,
/// buffer sizes and `fstat` are the kernel's own.
fn reserve(flags: SocketFlags) -> Outcome<(i32, &'static File)> {
    heap::check_room()?;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, UnixType::SEQPACKET, flags, None)?;
    if !table::in_range(sys::number(&fd)) {
        return Err(Errno::EMFILE.into());
    }
    let file = File::new(
        Kind::Kcm,
        sys::inode(sys::borrow(sys::number(&fd))),
        Body::None,
    )?;
    Ok((sys::hand_out(fd), file))
}

/// SO_RCVBUF and SO_SNDBUF as the kernel reports them for a fresh socket.
fn buffers(number: i32) -> (u32, u32) {
    let fd = sys::borrow(number);
    let send = sockopt::socket_send_buffer_size(fd)
        .unwrap_or(0)
        .min(u32::MAX as usize);
    (rcvbuf(fd), send as u32)
}

/// SIOCKCMCLONE: another handle of the same mux, with default options and no flags. `store` hands
/// the number to the program.
pub(super) fn clone(file: &'static File, store: impl FnOnce(i32) -> Outcome<()>) -> Outcome<i32> {
    let (number, new) = reserve(SocketFlags::empty())?;
    let stored = store(number).and_then(|()| {
        join(file, new, number)?;
        table::install(number, new);
        Ok(0)
    });
    if stored.is_err() {
        new.release();
        let _ = sys::close(number);
    }
    stored
}

/// SIOCKCMCLONE for another process: the descriptor is not the program's, the caller owns the file.
pub(crate) fn clone_apart(file: &'static File) -> Outcome<(OwnedFd, &'static File)> {
    let (number, new) = reserve(SocketFlags::CLOEXEC)?;
    let fd = sys::take_back(number);
    match join(file, new, number) {
        Ok(()) => Ok((fd, new)),
        Err(err) => {
            new.release();
            Err(err)
        }
    }
}

/// `new`, at `number`, becomes another socket of the mux of `file`.
fn join(file: &'static File, new: &'static File, number: i32) -> Outcome<()> {
    let cell = file.mux()?;
    new.set_socket_type(file.socket_type());
    let mut engine = checked(file, cell)?;
    let id = engine.mux.clone_kcm();
    engine.set_kcm(id, Some(new));
    let (receive, send) = buffers(number);
    engine.mux.set_rcvbuf(id, receive);
    engine.mux.set_sndbuf(id, send);
    new.bind(cell, id.0);
    Ok(())
}

/// The engine of `cell`, if `file` is still a socket of it.
pub(crate) fn checked(file: &'static File, cell: &'static MuxCell) -> Outcome<EngineGuard> {
    let engine = cell.lock()?;
    let here = engine
        .kcm(file.kcm_id())
        .is_some_and(|at| core::ptr::eq(at, file));
    if here {
        Ok(engine)
    } else {
        Err(Errno::EBADF.into())
    }
}

/// The last descriptor of a KCM socket is gone.
pub(crate) fn last_close(file: &'static File) {
    let Some(cell) = file.cell.get() else { return };
    let Ok(mut attached) = ATTACHED.lock() else {
        return;
    };
    let Ok(mut rx) = file.rx.lock() else { return };
    let Ok(mut engine) = checked(file, cell) else {
        return;
    };
    let id = file.kcm_id();
    let last = engine.mux.close_kcm(id, &mut rx);
    engine.set_kcm(id, None);
    if !last {
        return;
    }
    let psocks: Vec<_> = engine.mux.psocks().collect();
    let detach = |psock| detach(&mut engine, psock, &mut attached);
    let detached: Vec<_> = psocks.into_iter().filter_map(detach).collect();
    // The list of muxes comes before a batch in the order: a lock out of it is not waited for.
    drop((engine, rx, attached));
    drop(detached);
    cell.destroy();
}

/// SIOCKCMATTACH.
pub(super) fn attach(file: &'static File, tcp_fd: i32, bpf_fd: i32) -> Outcome<i32> {
    let fd = socket_behind(tcp_fd)?;
    let program = bpf::program(bpf_fd)?;
    if lookup(tcp_fd).is_some_and(|f| f.kind() == Kind::Kcm) {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let tcp = lookup(tcp_fd);
    let candidate = match tcp.map(File::kind) {
        Some(Kind::Stack) => return attach_stack(file, fd, tcp.ok_or(Errno::EBADF)?, program),
        Some(Kind::Inherited) => Candidate::of_processes(fd, psock::standing(tcp_fd)?)?,
        _ => Candidate::of_kernel(fd)?,
    };
    let new = !tcp.is_some_and(|f| f.kind() == Kind::Tcp || f.was_attached());
    let tcp = add(file, candidate, program, |cookie| {
        let tcp = tcp::adopt(tcp_fd)?;
        let mut conn = Connection::new(tcp_fd, tcp, cookie);
        conn.unread = tcp::take_unread(tcp)?;
        Ok((conn, tcp::is_torn(tcp)))
    })?;
    if let Some(tcp) = tcp.filter(|_| new) {
        epoll::kernel_set::move_registrations(tcp_fd, tcp);
    }
    Ok(0)
}

/// SIOCKCMATTACH of a socket of the stack in this process, `tcp`, whose number `fd` is.
fn attach_stack(
    file: &'static File,
    fd: BorrowedFd<'_>,
    tcp: &'static File,
    program: Parser,
) -> Outcome<i32> {
    let half_closed = match tcp.is_stream() {
        true => psock::attachable(tcp)?,
        false => None,
    };
    let half_closed = half_closed.ok_or(Errno::EOPNOTSUPP)?;
    beneath::settle(tcp, fd.as_raw_fd())?; // the cookie is that of the socket which copies will have
    let candidate = Candidate {
        cookie: sockopt::socket_cookie(fd)?,
        half_closed,
        told_rcvbuf: None,
    };
    add(file, candidate, program, |cookie| {
        tcp::prepare(tcp)?;
        let mut conn = Connection::on_stack(Source::new(tcp)?, tcp, cookie);
        conn.unread = tcp::take_unread(tcp)?;
        Ok((conn, tcp::is_torn(tcp)))
    })?;
    Ok(0)
}

/// SIOCKCMATTACH by another process, of whose TCP socket `tcp` is a copy; `standing` if it is a stack's.
/// `left` is what an earlier attach left for that process.
pub(crate) fn attach_apart(
    file: &'static File,
    tcp: Kept,
    standing: Option<Standing>,
    program: Parser,
    left: Left,
) -> Outcome<()> {
    let fd = sys::borrow(sys::number(&tcp));
    let candidate = match standing.filter(|_| !tcp::is_tcp(fd)) {
        Some(_) if !inherited::is_connection(fd) => return Err(Errno::EOPNOTSUPP.into()),
        Some(standing) => Candidate::of_processes(fd, standing)?,
        None => Candidate::of_kernel(fd)?,
    };
    add(file, candidate, program, |cookie| {
        let mut conn = Connection::apart(tcp, cookie);
        conn.unread = left.unread;
        Ok((conn, left.torn))
    })?;
    Ok(())
}

/// The socket that an attach names.
pub(crate) fn socket_behind(fd: i32) -> Outcome<BorrowedFd<'static>> {
    if fd < 0 || sockopt::socket_type(sys::borrow(fd)).is_err() {
        return Err(Errno::ENOENT.into());
    }
    Ok(sys::borrow(fd))
}

/// A TCP socket that may be attached.
struct Candidate {
    /// SO_COOKIE.
    cookie: u64,
    /// The peer's FIN has come.
    half_closed: bool,
    /// SO_RCVBUF, if it is not that of the descriptor.
    told_rcvbuf: Option<u32>,
}

impl Candidate {
    /// A stack's connection that processes share, over the AF_UNIX socket `fd`.
    fn of_processes(fd: BorrowedFd<'_>, standing: Standing) -> Outcome<Self> {
        Ok(Self {
            cookie: sockopt::socket_cookie(fd)?,
            half_closed: standing.half_closed,
            told_rcvbuf: Some(standing.rcvbuf),
        })
    }

    /// The kernel's socket `fd`.
    fn of_kernel(fd: BorrowedFd<'_>) -> Outcome<Self> {
        let state = match tcp::is_tcp(fd) {
            true => tcp::state(fd),
            false => tcp::CLOSE,
        };
        if matches!(state, tcp::CLOSE | tcp::LISTEN) {
            return Err(Errno::EOPNOTSUPP.into());
        }
        Ok(Self {
            cookie: sockopt::socket_cookie(fd)?,
            half_closed: tcp::peer_has_closed(state),
            told_rcvbuf: None,
        })
    }
}

/// Adds the TCP socket `tcp` to the mux of `file`. Once nothing speaks against it, `connect` makes the
/// connection from the cookie, and says whether an earlier attach left the peer in the middle of a
/// message. Returns the file of the connection.
fn add(
    file: &'static File,
    tcp: Candidate,
    program: Parser,
    connect: impl FnOnce(u64) -> Outcome<(Connection, bool)>,
) -> Outcome<Option<&'static File>> {
    let Candidate {
        cookie,
        half_closed,
        told_rcvbuf,
    } = tcp;
    heap::check_room()?;
    let cell = file.mux()?;
    let mut attached = ATTACHED.lock()?;
    let mut engine = checked(file, cell)?;
    if attached.contains_key(&cookie) {
        return Err(Errno::EALREADY.into());
    }
    let (mut conn, torn) = connect(cookie)?;
    conn.told_rcvbuf = told_rcvbuf;
    let (limit, timeout) = (conn.rcvbuf(), conn.rcvtimeo());
    let psock = match torn {
        false => engine.mux.attach(program, limit, timeout),
        true => engine.mux.attach_torn(program, limit, timeout),
    };
    conn.half_closed = half_closed;
    let tcp = conn.file;
    engine.conns.add(psock, conn);
    attached.insert(cookie, (cell, psock));
    if let Some(tcp) = tcp {
        tcp.bind_psock(cell, psock);
    }
    drop(attached);
    housekeeper::watch(cell, &engine, psock);
    watch_in_sets(cell, &engine, psock);
    engine.pump_known();
    Ok(tcp)
}

/// Epoll sets that hold a socket of the mux watch the new connection too.
fn watch_in_sets(cell: &'static MuxCell, engine: &EngineGuard, psock: PsockId) {
    let Some(conn) = engine.connection(psock) else {
        return;
    };
    for file in engine.mux.kcms().filter_map(|id| engine.kcm(id)) {
        for set in file.watch.sets() {
            epoll::watch_connection(set, cell, psock, conn);
        }
    }
}

/// SIOCKCMUNATTACH.
pub(super) fn unattach(file: &'static File, tcp_fd: i32) -> Outcome<i32> {
    let cookie = match tcp_fd {
        0.. => sockopt::socket_cookie(sys::borrow(tcp_fd)).map_err(|_| Errno::ENOENT)?,
        _ => return Err(Errno::ENOENT.into()),
    };
    unattach_cookie(file, cookie)?;
    Ok(0)
}

/// SIOCKCMUNATTACH of the TCP socket with this cookie. Returns what is left for a process that has it,
/// if we do not.
pub(crate) fn unattach_cookie(file: &'static File, cookie: u64) -> Outcome<Option<Left>> {
    let cell = file.mux()?;
    loop {
        let mut attached = ATTACHED.lock()?;
        let engine = checked(file, cell)?;
        let here = attached
            .get(&cookie)
            .filter(|(at, _)| core::ptr::eq(*at, cell));
        let (_, psock) = *here.ok_or(Errno::ENOENT)?;
        if let Some(mut engine) = engine.unless_being_read(psock) {
            let detached = detach(&mut engine, psock, &mut attached);
            drop((engine, attached));
            return Ok(detached.and_then(|(left, _)| left));
        }
    }
}

/// Takes a psock out of its mux. What the parser had not consumed stays readable on the TCP
/// descriptor, and a posted error stays pending there. Returned if the descriptor is not ours.
/// The connection is to be dropped without locks: if the program has closed its descriptors this closes the
/// socket, which waits if it lingers.
fn detach(
    engine: &mut EngineGuard,
    psock: PsockId,
    attached: &mut BTreeMap<u64, (&'static MuxCell, PsockId)>,
) -> Option<(Option<Left>, Connection)> {
    let unattached = engine.mux.unattach(psock);
    let mut conn = engine.conns.remove(psock)?;
    attached.remove(&conn.cookie);
    housekeeper::unwatch(&conn);
    let left = Left::new(unattached, core::mem::take(&mut conn.unread));
    let left = match conn.file {
        Some(tcp) => {
            tcp::detached(tcp, left);
            None
        }
        None => Some(left),
    };
    Some((left, conn))
}
