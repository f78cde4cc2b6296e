//! What the owner of a mux does for the other processes that hold its sockets.

use core::sync::atomic::Ordering;

use kcm_mux::{KcmId, SendFlags as MuxFlags, SocketType};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};

use super::line::Line;
use super::wire::{self, Answer, DATA_MAX, HEAD_BYTES, Op, Request};
use super::{broker, guest, ledger, name, parcel, stack};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Link;
use crate::fd::{File, Kind, lookup, table};
use crate::kcm::{EngineGuard, MuxCell, socket};
use crate::net::psock::Standing;
use crate::own::Kept;
use crate::proc_net::{self, Page};
use crate::sync::{Mutex, Rank};
use crate::tcp::Left;
use crate::{bpf, epoll, housekeeper, own, sys};

/// Connections from other processes at most; each is one descriptor.
const CLIENTS_MAX: usize = 4096;

/// The control socket of this process, made when its first socket is tied.
struct Control {
    name: Vec<u8>,
    listener: Kept,
    /// Lines made, and other things with a number of their own.
    lines: u32,
    clients: Vec<Client>,
}

/// One process that holds sockets of ours.
struct Client {
    fd: Kept,
    /// Sockets it has proved to hold.
    held: Vec<u64>,
}

/// Held while descriptors exist that nothing of ours names yet, or any more: the child of a fork closes
/// what is named, and would keep the others open without knowing.
static IN_FLIGHT: Mutex<()> = Mutex::ranked(Rank::Directory, ());

/// Lock order: before any mux.
static CONTROL: Mutex<Option<Control>> = Mutex::new(None);

fn handle(cell: &MuxCell, id: KcmId) -> u64 {
    u64::from(cell.index()) << 32 | u64::from(id.0)
}

/// The socket a handle names.
fn named(handle: u64) -> Outcome<(&'static File, EngineGuard)> {
    let cell = MuxCell::by_index((handle >> 32) as u32).ok_or(Errno::EBADF)?;
    let engine = cell.lock()?;
    let file = engine.kcm(KcmId(handle as u32)).ok_or(Errno::EBADF)?;
    Ok((file, engine))
}

/// Ties every KCM socket of ours that is not tied yet: copies are about to reach another process.
pub(crate) fn tie_all() {
    for fd in table::ours_in(0, u32::MAX) {
        let Some(file) = lookup(fd).filter(|file| file.kind() == Kind::Kcm) else {
            continue;
        };
        let socket = file.ino.load(Ordering::Relaxed);
        if tie(file, sys::borrow(fd)).is_err() && table::is_still(fd, file, socket) {
            crate::log::warn("a KCM socket cannot be shared with other processes");
        }
    }
}

/// Connects the socket behind `fd` to a line, whose other end stays here.
pub(crate) fn tie(file: &'static File, fd: impl AsFd) -> Outcome<()> {
    if file.link() != Link::Private {
        return Ok(());
    }
    let _in_flight = in_flight();
    if file.link() != Link::Private {
        return Ok(()); // another thread was faster
    }
    // Through a number of ours: the program may close its own meanwhile, and open another socket there.
    let fd = sys::dup_high(fd.as_fd())?;
    let socket = file.ino.load(Ordering::Relaxed);
    let cell = file.mux()?;
    // A file that another thread makes a socket of just now is in no mux yet: one that were connected without
    // getting its line could never be tied.
    let engine = socket::checked(file, cell)?;
    if !file.retain() {
        return Err(Errno::EBADF.into());
    }
    drop(engine);
    let is = [sys::inode(fd.as_fd()), file.ino.load(Ordering::Relaxed)];
    let tied = match is == [socket; 2] {
        true => connect(file, cell, &fd),
        false => Err(Errno::EBADF.into()), // the number, or the file, has become another socket's
    };
    if tied.is_err() {
        file.release();
    }
    tied
}

/// Connects `fd`, the socket of a file that is kept, to a line.
fn connect(file: &'static File, cell: &'static MuxCell, fd: &OwnedFd) -> Outcome<()> {
    housekeeper::start()?;
    let line_name = next_name()?;
    let listener = name::listen(&line_name, 1)?;
    name::connect(fd, &line_name)?;
    let end = loop {
        let end = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC)?;
        if sockopt::socket_peercred(&end)?.pid == rustix::process::getpid() {
            break end; // not a stranger who guessed the name
        }
    };
    let lent = ledger::lend()?;
    let line = Line::new(end, sockopt::socket_cookie(fd)?, lent);
    let mut engine = socket::checked(file, cell)?;
    let id = file.kcm_id();
    housekeeper::add_line(cell.index(), id, &line);
    engine.lines.put(id, Box::new(line));
    file.taken.swap(Some(lent.1));
    file.set_link(Link::Tied);
    Ok(())
}

/// The name of the next line.
fn next_name() -> Outcome<Vec<u8>> {
    let (owner, number) = next()?;
    Ok(name::of_line(&owner, number))
}

/// The name of the control socket, which is made if there is none, and a number that nothing shared has.
pub(crate) fn next() -> Outcome<(Vec<u8>, u32)> {
    let mut control = CONTROL.lock()?;
    if control.is_none() {
        let name = name::fresh()?;
        let listener = own::keep(name::door(&name)?);
        housekeeper::add_listener(&listener);
        *control = Some(Control {
            name,
            listener,
            lines: 0,
            clients: Vec::new(),
        });
    }
    let control = control.as_mut().ok_or(Errno::EIO)?;
    control.lines += 1;
    Ok((control.name.clone(), control.lines))
}

/// Whether an owner of this name is this process.
pub(crate) fn is_ours(owner: &[u8]) -> bool {
    let control = CONTROL.lock();
    control.is_ok_and(|control| control.as_ref().is_some_and(|c| c.name == owner))
}

/// The kernel's queue of the socket becomes its receive queue.
pub(crate) fn share(file: &'static File) -> Outcome<()> {
    let mut rx = file.rx.lock()?;
    let cell = file.mux()?;
    let mut engine = socket::checked(file, cell)?;
    if file.link() != Link::Tied {
        return Ok(());
    }
    let id = file.kcm_id();
    engine.mux.return_batch(id, &mut rx);
    engine.lines.get_mut(id).ok_or(Errno::EBADF)?.shared = true;
    file.set_link(Link::Shared);
    cell.sharing(1);
    drop(rx);
    engine.push(cell.index(), id);
    engine.pump();
    housekeeper::watch_all(cell, &engine);
    drop(engine);
    file.watch.notify((libc::POLLIN | libc::POLLOUT) as u32);
    for set in file.watch.sets() {
        epoll::watch_anew(set, file);
    }
    Ok(())
}

/// A tied socket lost a descriptor here, or its line reports an end: if no copy is left anywhere,
/// the socket closes.
pub(crate) fn look_for_end(file: &'static File) {
    let Some(cell) = file.cell.get() else { return };
    let Ok(mut engine) = socket::checked(file, cell) else {
        return;
    };
    let id = file.kcm_id();
    if !engine.lines.get(id).is_some_and(Line::is_gone) {
        return;
    }
    engine.drain(id);
    let Some(mut line) = engine.lines.take(id) else {
        return;
    };
    housekeeper::remove_line(&line);
    engine.mux.return_batch(id, &mut line.rx);
    let untaken = line.untaken();
    engine.lines.adrift.extend(untaken);
    if line.shared {
        cell.sharing(-1);
    }
    file.taken.swap(None);
    file.set_link(Link::Private);
    drop(line);
    drop(engine);
    file.release();
    settle_adrift(cell);
}

/// Finds a socket for messages whose own died with them in its queue.
pub(crate) fn settle_adrift(cell: &'static MuxCell) {
    let Ok(mut engine) = cell.lock() else { return };
    if engine.lines.adrift.is_empty() {
        return;
    }
    for id in engine.lines.ids() {
        engine.push(cell.index(), id);
    }
    if engine.lines.adrift.is_empty() {
        return;
    }
    let open = engine.mux.kcms().filter(|id| !engine.mux.rx_disabled(*id));
    let files: Vec<_> = open.filter_map(|id| engine.kcm(id)).collect();
    drop(engine);
    for file in files {
        if file.link() == Link::Private
            && let Some(fd) = table::number_of(file)
        {
            let _ = tie(file, sys::borrow(fd));
        }
        if file.link() == Link::Tied {
            let _ = share(file);
        }
    }
}

/// The housekeeper saw something on the line of a socket.
pub(crate) fn on_line(cell: &'static MuxCell, id: KcmId, ended: bool) {
    let Ok(mut engine) = cell.lock() else { return };
    if engine.lines.get(id).is_none() {
        return;
    }
    let file = engine.kcm(id);
    engine.drain(id);
    engine.push(cell.index(), id);
    engine.serve();
    drop(engine);
    if let Some(file) = file.filter(|_| ended) {
        look_for_end(file);
        broker::end_if_idle();
    }
}

/// The housekeeper saw a process at the door.
pub(crate) fn on_listener() {
    let _in_flight = in_flight();
    let accepted = match CONTROL.lock().as_deref() {
        Ok(Some(control)) => let_in(&control.listener),
        _ => return,
    };
    if let Some(fd) = accepted {
        welcome(fd);
    }
}

/// Whoever stands at a door; `None` if nobody does any more, or if there is no room.
pub(crate) fn let_in(door: &Kept) -> Option<OwnedFd> {
    use rustix::io::Errno as Kernels;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let accepted = rustix::net::accept_with(door, flags);
    if let Err(Kernels::MFILE | Kernels::NFILE | Kernels::NOMEM | Kernels::NOBUFS) = accepted {
        housekeeper::shut(door);
    }
    accepted.ok()
}

/// The door is watched again.
pub(crate) fn watch_door() {
    if let Ok(Some(control)) = CONTROL.lock().as_deref() {
        housekeeper::add_listener(&control.listener);
    }
}

/// A process has come in.
pub(crate) fn welcome(fd: OwnedFd) {
    let _in_flight = in_flight();
    if next().is_err() {
        return;
    }
    let Ok(mut control) = CONTROL.lock() else {
        return;
    };
    if let Some(control) = control.as_mut()
        && control.clients.len() < CLIENTS_MAX
    {
        let fd = own::keep(fd);
        housekeeper::add_client(&fd);
        let held = Vec::new();
        control.clients.push(Client { fd, held });
    }
}

/// The housekeeper saw a request, or the end, of a process.
pub(crate) fn on_client(fd: i32) {
    let _in_flight = in_flight();
    let Some(mut client) = take_client(fd) else {
        return;
    };
    if client.serve().is_err() {
        housekeeper::remove_client(&client.fd);
    } else if let Ok(mut control) = CONTROL.lock()
        && let Some(control) = control.as_mut()
    {
        control.clients.push(client);
    }
}

/// The client at this number, so that serving it holds no lock.
fn take_client(fd: i32) -> Option<Client> {
    let mut control = CONTROL.lock().ok()?;
    let clients = &mut control.as_mut()?.clients;
    let at = clients.iter().position(|c| sys::number(&c.fd) == fd)?;
    Some(clients.swap_remove(at))
}

/// An answer: two words and perhaps descriptors.
pub(super) type Reply = (u64, u64, Vec<OwnedFd>);

impl Client {
    /// One request. An error ends the connection.
    fn serve(&mut self) -> Outcome<()> {
        let mut bytes = vec![0; HEAD_BYTES + DATA_MAX];
        let (count, fds) = match wire::receive(&self.fd, &mut bytes, RecvFlags::DONTWAIT) {
            Err(Exit::Failed(Errno::EAGAIN)) => return Ok(()),
            got => got?,
        };
        let bytes = bytes.get(..count).unwrap_or(&[]);
        let (request, data) = Request::parse(bytes).ok_or(Errno::EINVAL)?;
        let mut answer = Answer::default();
        let mut passed = Vec::new();
        match self.answer(request, data, fds) {
            Ok(reply) => (answer.value, answer.more, passed) = reply,
            // The addresses are another process's to take.
            Err(Exit::Failed(Errno::EPIPE)) if request.op == Op::Open => {
                return Err(Errno::EPIPE.into());
            }
            Err(Exit::Failed(err)) => answer.errno = err.0,
            Err(Exit::Native) => answer.errno = libc::EIO,
        }
        if stack::is_told(&request) {
            return Ok(());
        }
        let passed: Vec<_> = passed.iter().map(AsFd::as_fd).collect();
        let flags = SendFlags::DONTWAIT; // who does not read its answers is let go
        wire::send(&self.fd, &answer.to_bytes(), &[], &passed, flags)
    }

    fn answer(&mut self, request: Request, data: &[u8], fds: Vec<Kept>) -> Outcome<Reply> {
        let mut fds = fds.into_iter();
        match request.op {
            Op::Hold => {
                let copy = fds.next().ok_or(Errno::EINVAL)?;
                let held = hold(copy, request.a as i64)?;
                self.held.push(held.0);
                return Ok(held);
            }
            Op::Page => {
                let page = match request.a {
                    0 => Page::Sockets,
                    _ => Page::Statistics,
                };
                return Ok((0, 0, vec![proc_net::snapshot(page)?]));
            }
            Op::Stack => return stack::answer(request, data, fds.next().as_deref()),
            Op::Open => return guest::answer(&self.fd, request, data, fds.next().as_deref()),
            _ if !self.held.contains(&request.handle) => return Err(Errno::EPERM.into()),
            _ => {}
        }
        let (file, mut engine) = named(request.handle)?;
        let id = file.kcm_id();
        match request.op {
            Op::Send => {
                engine.drain(id);
                if !engine.mux.may_start(id) {
                    return Err(Errno::EAGAIN.into());
                }
                let long = fds.next().map(|file| parcel::open(&file)).transpose()?;
                let bytes = long.as_deref().unwrap_or(data);
                let flags = MuxFlags {
                    end: request.a != 0,
                    batch: false,
                };
                let sent = engine.mux.send(id, &[bytes], flags);
                engine.write_all();
                Ok((sent.map_err(|_| Errno::ENOMEM)? as u64, 0, Vec::new()))
            }
            Op::Abort => {
                engine.drain(id);
                engine.mux.abort_open(id);
                Ok((0, 0, Vec::new()))
            }
            Op::Clone => {
                drop(engine);
                let (fd, held) = clone(file)?;
                self.held.push(held.0);
                let (handle, more, mut page) = held;
                page.insert(0, fd);
                Ok((handle, more, page))
            }
            Op::Attach => {
                drop(engine);
                attach(file, request, data, fds)
            }
            Op::Unattach => {
                drop(engine);
                let left = socket::unattach_cookie(file, request.a)?.unwrap_or_default();
                let mut passed = Vec::new();
                if !left.unread.is_empty() {
                    passed.push(parcel::post(&left.unread.into_iter().collect::<Vec<u8>>())?);
                }
                Ok((left.error as u64, left.torn.into(), passed))
            }
            Op::Disabled => Ok((engine.mux.rx_disabled(id).into(), 0, Vec::new())),
            Op::Option => {
                let copy = fds.next();
                let copy = copy.as_ref().map(AsFd::as_fd);
                set_option(engine, id, request.a as i32, request.b as u32, copy);
                Ok((0, 0, Vec::new()))
            }
            Op::Hold | Op::Page | Op::Stack | Op::Open => Err(Errno::EINVAL.into()),
        }
    }
}

/// A value that a process has set on a shared socket, of which `copy` is a descriptor.
pub(crate) fn set_option(
    mut engine: EngineGuard,
    id: KcmId,
    name: i32,
    value: u32,
    copy: Option<BorrowedFd<'_>>,
) {
    match name {
        libc::SO_RCVBUF => engine.mux.set_rcvbuf(id, value),
        libc::SO_SNDBUF => engine.mux.set_sndbuf(id, value),
        libc::SO_RCVLOWAT => engine.mux.set_rcvlowat(id, value),
        0 => {
            let Some(mut line) = engine.lines.take(id) else {
                return;
            };
            engine.mux.set_rx_disabled(id, value != 0, &mut line.rx);
            engine.lines.put(id, line);
            if let Some(copy) = copy.filter(|_| value != 0) {
                engine.pull_back(id, copy);
            }
            let cell = engine.cell();
            engine.push(cell.index(), id);
            engine.pump();
            drop(engine);
            settle_adrift(cell);
        }
        _ => {}
    }
}

/// The tied socket that `copy` is a copy of.
fn find(copy: impl AsFd) -> Outcome<&'static File> {
    let cookie = sockopt::socket_cookie(copy)?;
    let mut found = None;
    MuxCell::for_each(|engine| {
        let line = engine.lines.iter().find(|(_, line)| line.cookie == cookie);
        found = line.and_then(|(id, _)| engine.kcm(id)).or(found);
    });
    Ok(found.ok_or(Errno::EBADF)?)
}

/// A descriptor came back to us: the file of the socket, if we are its `owner`.
pub(crate) fn own_socket(fd: impl AsFd, owner: &[u8]) -> Option<&'static File> {
    is_ours(owner).then(|| find(fd).ok()).flatten()
}

/// The socket of which `copy` came along, from now on shared. `strangers` more, or less, of its
/// copies may be with processes that do not count what they take.
fn hold(copy: Kept, strangers: i64) -> Outcome<Reply> {
    let file = find(copy)?;
    meet_strangers(file, strangers)?;
    share(file)?;
    held(file)
}

/// What a holder has to know: handle; type, and place of the counter in the page that comes along.
fn held(file: &'static File) -> Outcome<Reply> {
    let cell = file.mux()?;
    let engine = socket::checked(file, cell)?;
    let line = engine.lines.get(file.kcm_id()).ok_or(Errno::EBADF)?;
    let (page, index) = ledger::pass(line.counter)?;
    let seqpacket = u64::from(file.socket_type() == SocketType::Seqpacket);
    let handle = handle(cell, file.kcm_id());
    Ok((handle, index << 1 | seqpacket, vec![page]))
}

/// So many more, or less, copies of the socket may be with processes that do not count what they
/// take.
pub(crate) fn meet_strangers(file: &'static File, change: i64) -> Outcome<()> {
    let mut engine = socket::checked(file, file.mux()?)?;
    let line = engine.lines.get_mut(file.kcm_id()).ok_or(Errno::EBADF)?;
    line.strangers = line.strangers.saturating_add_signed(change.signum() as i32);
    Ok(())
}

/// A KCM socket for another process, shared from the start, and its handle.
fn clone(file: &'static File) -> Outcome<(OwnedFd, Reply)> {
    let (fd, new) = socket::clone_apart(file)?;
    let made = tie(new, &fd)
        .and_then(|()| share(new))
        .and_then(|()| held(new));
    new.release();
    Ok((fd, made?))
}

/// Attaches a TCP socket of another process.
fn attach(
    file: &'static File,
    request: Request,
    data: &[u8],
    mut fds: impl Iterator<Item = Kept>,
) -> Outcome<Reply> {
    let tcp = fds.next().ok_or(Errno::EINVAL)?;
    let program = fds.next().ok_or(Errno::EINVAL)?;
    let program = match request.a {
        0 => bpf::program(sys::number(&program))?,
        _ => bpf::unpack(&parcel::open(&program)?)?,
    };
    let unread = fds.next().map(|file| parcel::open(&file)).transpose()?;
    let left = Left {
        unread: unread.unwrap_or_else(|| data.to_vec()).into(),
        error: 0,
        torn: request.b & wire::attach::TORN != 0,
    };
    let standing = (request.b & wire::attach::ON_STACK != 0)
        .then(|| Standing::unpack(request.b >> wire::attach::STANDING));
    socket::attach_apart(file, tcp, standing, program, left)?;
    Ok((0, 0, Vec::new()))
}

/// In a forked child that goes on as owner.
pub(super) fn watch_again() {
    if let Ok(control) = CONTROL.lock()
        && let Some(control) = control.as_ref()
    {
        housekeeper::add_listener(&control.listener);
        for client in &control.clients {
            housekeeper::add_client(&client.fd);
        }
    }
}

/// Whether another process holds a socket of ours, not counting copies that are closed.
pub(super) fn is_needed() -> bool {
    let mut needed = false;
    MuxCell::for_each(|engine| {
        needed |= engine.lines.iter().any(|(_, line)| !line.is_gone());
    });
    needed
}

/// Whether any socket of ours may be held by another process.
pub(super) fn has_lines() -> bool {
    CONTROL.lock().is_ok_and(|control| control.is_some())
}

/// Holds still for the length of a fork. Behind the engines, under whose locks sockets get their numbers.
pub(crate) fn freeze() -> impl Sized {
    CONTROL.lock().ok()
}

/// No fork comes in between while this is held. A thread may hold it already.
pub(crate) fn in_flight() -> impl Sized {
    IN_FLIGHT.lock().ok()
}

/// In a forked child, which owns none of its parent's muxes. The descriptors are closed with all
/// others of ours.
pub(super) fn reset_in_child() {
    if let Ok(mut control) = CONTROL.lock() {
        core::mem::forget(control.take());
    }
}
