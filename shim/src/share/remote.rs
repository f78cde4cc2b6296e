//! A KCM socket whose mux is with another process.

use core::time::Duration;

use kcm_mux::SocketType;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::IoSlice;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};

use super::wire::{self, Answer, DATA_MAX, HEAD_BYTES, Op, Request, attach};
use super::{ledger, name, owner, parcel};
use crate::bpf::Parcel;
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::interpose::poll::native_ppoll;
use crate::kcm::recv::deadline;
use crate::kcm::socket;
use crate::net::psock;
use crate::own::Kept;
use crate::proc_net::Page;
use crate::sync::Mutex;
use crate::tcp::Left;
use crate::{bpf, own, publish, signal, sys, tcp};

/// What this process knows of a socket it holds by another's leave.
#[derive(Default)]
pub(crate) struct Remote {
    /// The owner shares it with us.
    asked: bool,
    /// What the owner calls it, once it shares it.
    handle: Option<u64>,
    /// The owner's control socket.
    owner: Vec<u8>,
    /// −1 if the copy was given away to a process that might not have counted.
    strangers: i64,
}

impl Remote {
    /// A socket connected to a line of `owner`.
    pub(crate) fn new(owner: Vec<u8>, strangers: i64) -> Self {
        Self {
            asked: false,
            handle: None,
            owner,
            strangers,
        }
    }
}

/// Connections to owners by name. The lock is held from a request to its answer.
static OWNERS: Mutex<Vec<(Vec<u8>, Kept)>> = Mutex::new(Vec::new());

/// Sees to it that the owner shares the socket with us. Should the owner not answer, what is in the
/// kernel's queue can still be taken.
#[inline]
pub(crate) fn hold(file: &'static File, fd: i32) {
    let asked = match file.body.lock().as_deref_mut() {
        Ok(Body::Remote(remote)) => core::mem::replace(&mut remote.asked, true),
        _ => true,
    };
    if !asked {
        ask_to_share(file, fd);
    }
}

#[cold]
fn ask_to_share(file: &'static File, fd: i32) {
    let (owner, strangers) = match file.body.lock().as_deref_mut() {
        Ok(Body::Remote(remote)) => (remote.owner.clone(), core::mem::take(&mut remote.strangers)),
        _ => return,
    };
    publish::inherited(fd, name::process_of(&owner));
    let request = hold_request(strangers);
    let held = call(&owner, request, &[], &[sys::borrow(fd)]);
    // Another process may have become the owner meanwhile.
    let held = held.or_else(|_| call(&owner, request, &[], &[sys::borrow(fd)]));
    if let Ok((answer, passed)) = held {
        count_on(file, answer, passed.into_iter().next());
        if let Ok(Body::Remote(remote)) = file.body.lock().as_deref_mut() {
            remote.handle = Some(answer.value);
        }
    }
}

fn hold_request(strangers: i64) -> Request {
    Request {
        op: Op::Hold,
        handle: 0,
        a: strangers as u64,
        b: 0,
    }
}

/// Takes in what the owner says of a socket: its type, and where to count what is taken.
fn count_on(file: &'static File, answer: Answer, page: Option<Kept>) {
    file.set_socket_type(match answer.more & 1 {
        0 => SocketType::Dgram,
        _ => SocketType::Seqpacket,
    });
    if file.taken.get().is_none()
        && let Some(page) = page
    {
        file.taken.swap(ledger::map(page.as_fd(), answer.more >> 1));
    }
}

/// The socket goes to a process that may not count what it takes.
pub(crate) fn publish(file: &'static File, fd: i32) -> Outcome<()> {
    let owner = owner_of(file).ok_or(Errno::EBADF)?;
    call(&owner, hold_request(1), &[], &[sys::borrow(fd)]).map(drop)
}

/// As [`publish`], in a process that runs in the memory of another: over a connection of its own, and
/// without a lock. The owner may be what waits for us, and is given up after a while.
pub(super) fn publish_apart(owner: &[u8], fd: BorrowedFd<'_>) -> Outcome<()> {
    ask_apart(owner, hold_request(1), fd)
}

/// A request about the socket `fd`, as [`publish_apart`] makes it.
pub(super) fn ask_apart(owner: &[u8], request: Request, fd: BorrowedFd<'_>) -> Outcome<()> {
    const PATIENCE_NS: u64 = 1_000_000_000;
    let line = name::socket()?;
    name::connect(&line, owner)?;
    wire::send(&line, &request.to_bytes(), &[], &[fd], SendFlags::empty())?;
    let mut answer = [rustix::event::PollFd::new(
        &line,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut answer, Some(&sys::timespec(PATIENCE_NS)))?;
    Ok(())
}

fn owner_of(file: &File) -> Option<Vec<u8>> {
    match &*file.body.lock().ok()? {
        Body::Remote(remote) => Some(remote.owner.clone()),
        _ => None,
    }
}

/// One request to an owner, and its answer.
pub(super) fn call(
    owner: &[u8],
    request: Request,
    data: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Outcome<(Answer, Vec<Kept>)> {
    let mut owners = OWNERS.lock()?;
    let at = connection(&mut owners, owner)?;
    let (_, fd) = owners.get(at).ok_or(Errno::EIO)?;
    let mut bytes = [0; HEAD_BYTES];
    let sent = wire::send(fd, &request.to_bytes(), data, fds, SendFlags::empty());
    let got = sent.and_then(|()| wire::receive(fd, &mut bytes, RecvFlags::empty()));
    if got.is_err() {
        owners.swap_remove(at);
    }
    let (_, passed) = got.map_err(|_| Errno::EPIPE)?;
    let answer = Answer::parse(&bytes).ok_or(Errno::EIO)?;
    match answer.errno {
        0 => Ok((answer, passed)),
        errno => Err(Errno(errno).into()),
    }
}

/// Makes sure that an owner which anybody could pretend to be is there and answers `request`.
///
/// # Errors
/// EPERM if it is a process of another user, EPIPE if it does not answer.
pub(super) fn greet(owner: &[u8], request: Request, data: &[u8]) -> Outcome<()> {
    {
        let mut owners = OWNERS.lock()?;
        if let Some(at) = owners.iter().position(|(name, _)| name == owner) {
            let (_, fd) = owners.get(at).ok_or(Errno::EIO)?;
            if sys::poll_bits(sys::number(fd), 0) == 0 {
                return Ok(());
            }
            owners.swap_remove(at);
        }
        let at = connection(&mut owners, owner)?;
        let (_, fd) = owners.get(at).ok_or(Errno::EIO)?;
        if !name::is_trusted(fd) {
            owners.swap_remove(at);
            return Err(Errno::EPERM.into());
        }
    }
    call(owner, request, data, &[]).map(drop)
}

/// Whether an owner is there that does not answer `request`, nor end, within [`PATIENCE`]. It is asked by a
/// connection of this call's own, and no lock is held meanwhile.
pub(super) fn is_silent(owner: &[u8], request: Request, data: &[u8]) -> bool {
    match knock(owner, request, data) {
        Ok(line) => {
            let until = sys::now().saturating_add(PATIENCE.as_nanos() as u64);
            let mut answer = [libc::pollfd {
                fd: sys::number(&line),
                events: libc::POLLIN,
                revents: 0,
            }];
            native_ppoll(&mut answer, Some(until)) == Ok(0)
        }
        Err(why) => why == Exit::Failed(Errno::EAGAIN), // others stand at its door
    }
}

/// A request to an owner by a connection of its own, over which the answer comes.
fn knock(owner: &[u8], request: Request, data: &[u8]) -> Outcome<Kept> {
    let _in_flight = owner::in_flight();
    let line = own::keep(name::socket()?);
    rustix::fs::fcntl_setfl(&line, rustix::fs::OFlags::NONBLOCK)?;
    name::connect(&line, owner)?;
    wire::send(&line, &request.to_bytes(), data, &[], SendFlags::empty())?;
    Ok(line)
}

/// One request to an owner that is not answered.
pub(super) fn tell(
    owner: &[u8],
    request: Request,
    data: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Outcome<()> {
    let mut owners = OWNERS.lock()?;
    let at = connection(&mut owners, owner)?;
    let (_, fd) = owners.get(at).ok_or(Errno::EIO)?;
    let sent = wire::send(fd, &request.to_bytes(), data, fds, SendFlags::empty());
    if sent.is_err() {
        owners.swap_remove(at);
    }
    sent
}

/// How long an owner may take to answer, or to let somebody in: many times what it needs on a busy machine.
/// One that is stopped shall not stop others for good.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the connection to an owner is among all.
fn connection(owners: &mut Vec<(Vec<u8>, Kept)>, owner: &[u8]) -> Outcome<usize> {
    if let Some(at) = owners.iter().position(|(name, _)| name == owner) {
        return Ok(at);
    }
    let _in_flight = owner::in_flight();
    let fd = own::keep(name::socket()?);
    for which in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&fd, which, Some(PATIENCE))?;
    }
    name::connect(&fd, owner).map_err(|_| Errno::EPIPE)?;
    owners.push((owner.to_vec(), fd));
    Ok(owners.len() - 1)
}

/// A request about the socket `fd`.
fn ask(
    file: &'static File,
    fd: i32,
    op: Op,
    words: [u64; 2],
    data: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Outcome<(Answer, Vec<Kept>)> {
    let mut answer = ask_once(file, fd, op, words, data, fds);
    if matches!(answer, Err(Exit::Failed(Errno::EPIPE))) && op != Op::Send {
        ask_again(file); // another process may have become the owner
        answer = ask_once(file, fd, op, words, data, fds);
    }
    answer
}

fn ask_once(
    file: &'static File,
    fd: i32,
    op: Op,
    words: [u64; 2],
    data: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Outcome<(Answer, Vec<Kept>)> {
    hold(file, fd);
    let (owner, handle) = match &*file.body.lock()? {
        Body::Remote(remote) => (remote.owner.clone(), remote.handle),
        _ => return Err(Errno::EBADF.into()),
    };
    let [a, b] = words;
    let handle = handle.ok_or(Errno::EPIPE)?;
    let request = Request { op, handle, a, b };
    call(&owner, request, data, fds)
}

/// One send of `parts`; `end` says whether it ends a message.
pub(crate) fn send(
    file: &'static File,
    fd: i32,
    parts: &[&[u8]],
    end: bool,
    flags: i32,
) -> Outcome<usize> {
    hold(file, fd);
    let length = parts.iter().map(|part| part.len()).sum();
    let wait = flags & libc::MSG_DONTWAIT == 0 && !sys::is_nonblocking(fd);
    let timeout = file.sndtimeo.load(core::sync::atomic::Ordering::Relaxed);
    let until = deadline(timeout);
    loop {
        let sent = if end && length > 0 {
            send_whole(file, fd, parts)
        } else {
            send_by_owner(file, fd, parts, end)
        };
        match sent {
            Err(Exit::Failed(Errno::EAGAIN)) if wait => await_room(fd, until)?,
            Err(err) => return Err(err),
            Ok(()) => return Ok(length),
        }
    }
}

/// A whole message goes through the socket itself.
fn send_whole(file: &'static File, fd: i32, parts: &[&[u8]]) -> Outcome<()> {
    let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let control = &mut SendAncillaryBuffer::default();
    match rustix::net::sendmsg(sys::borrow(fd), &slices, control, flags) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::MSGSIZE) => send_by_owner(file, fd, parts, true),
        Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::NOTCONN) => Err(Errno::EPIPE.into()),
        Err(err) => Err(err.into()),
    }
}

/// A part of a message, or a very long one.
fn send_by_owner(file: &'static File, fd: i32, parts: &[&[u8]], end: bool) -> Outcome<()> {
    let bytes = parts.concat();
    let words = [end.into(), 0];
    if bytes.len() <= DATA_MAX {
        return ask(file, fd, Op::Send, words, &bytes, &[]).map(drop);
    }
    let long = parcel::post(&bytes)?;
    ask(file, fd, Op::Send, words, &[], &[long.as_fd()]).map(drop)
}

/// Sleeps until the socket takes more. The owner's queue has no descriptor to wait for: it is tried
/// again at short intervals.
fn await_room(fd: i32, until: Option<u64>) -> Outcome<()> {
    const AGAIN_NS: u64 = 1_000_000;
    let now = sys::now();
    if until.is_some_and(|at| at <= now) {
        return Err(Errno::EAGAIN.into());
    }
    let mut entry = [libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    }];
    let slept = if sys::poll_now(&mut entry) {
        native_ppoll(&mut [], Some(now + AGAIN_NS))
    } else {
        native_ppoll(&mut entry, until)
    };
    match slept {
        Err(Errno::EINTR) if until.is_none() && signal::handlers_restart() => Ok(()),
        slept => Ok(slept.map(drop)?),
    }
}

/// The program passed memory that cannot be read: an open message of a SOCK_DGRAM is lost.
pub(crate) fn abort(file: &'static File, fd: i32) {
    let _ = ask(file, fd, Op::Abort, [0; 2], &[], &[]);
}

/// SIOCKCMCLONE.
pub(crate) fn clone(
    file: &'static File,
    fd: i32,
    store: impl FnOnce(i32) -> Outcome<()>,
) -> Outcome<i32> {
    let (answer, passed) = ask(file, fd, Op::Clone, [0; 2], &[], &[])?;
    let mut passed = passed.into_iter();
    let new = passed.next().ok_or(Errno::EIO)?.for_program()?;
    let remote = Remote {
        asked: true,
        handle: Some(answer.value),
        owner: owner_of(file).unwrap_or_default(),
        strangers: 0,
    };
    rustix::io::fcntl_setfd(&new, rustix::io::FdFlags::empty())?;
    let made = adopt(new.as_fd(), remote)?;
    count_on(made, answer, passed.next());
    let number = sys::hand_out(new);
    let stored = store(number);
    if stored.is_err() {
        made.release();
        let _ = sys::close(number);
    } else {
        table::install(number, made);
    }
    stored.map(|()| 0)
}

/// A file for a socket of another owner.
pub(crate) fn adopt(fd: BorrowedFd<'_>, remote: Remote) -> Outcome<&'static File> {
    let file = File::new(Kind::Kcm, sys::inode(fd), Body::Remote(remote))?;
    file.set_link(crate::fd::file::Link::Remote);
    Ok(file)
}

/// SIOCKCMATTACH.
pub(crate) fn attach(file: &'static File, fd: i32, tcp_fd: i32, bpf_fd: i32) -> Outcome<i32> {
    let tcp = socket::socket_behind(tcp_fd)?;
    let program = bpf::parcel(bpf_fd)?;
    let on_stack = |file: &File| matches!(file.kind(), Kind::Stack | Kind::Inherited);
    let standing = match lookup(tcp_fd).is_some_and(on_stack) {
        true => attach::ON_STACK | psock::standing(tcp_fd)?.pack() << attach::STANDING,
        false => 0,
    };
    let (packed, posted) = match &program {
        Parcel::Packed(bytes) => (1, Some(parcel::post(bytes)?)),
        Parcel::Descriptor => (0, None),
    };
    let program = posted.as_ref().map_or(sys::borrow(bpf_fd), AsFd::as_fd);
    let mut left = Left::take(tcp_fd)?;
    let unread = left.unread.make_contiguous();
    let long = (unread.len() > DATA_MAX).then(|| parcel::post(unread));
    let long = long.transpose()?;
    let data = if long.is_some() { &[] } else { &*unread };
    let fds: Vec<_> = [tcp, program]
        .into_iter()
        .chain(long.as_ref().map(AsFd::as_fd))
        .collect();
    let torn = if left.torn { attach::TORN } else { 0 };
    let words = [packed, torn | standing];
    let asked = ask(file, fd, Op::Attach, words, data, &fds);
    if asked.is_err() && !left.unread.is_empty() {
        tcp::detached(tcp::adopt(tcp_fd)?, left);
    }
    asked.map(|_| 0)
}

/// SIOCKCMUNATTACH.
pub(crate) fn unattach(file: &'static File, fd: i32, tcp_fd: i32) -> Outcome<i32> {
    let cookie = sockopt::socket_cookie(sys::borrow(tcp_fd)).map_err(|_| Errno::ENOENT)?;
    let (answer, passed) = ask(file, fd, Op::Unattach, [cookie, 0], &[], &[])?;
    let unread = passed.first().map(parcel::open).transpose()?;
    let left = Left {
        unread: unread.unwrap_or_default().into(),
        error: answer.value as i32,
        torn: answer.more != 0,
    };
    if !left.unread.is_empty() || left.error != 0 || left.torn {
        tcp::detached(tcp::adopt(tcp_fd)?, left);
    }
    Ok(0)
}

/// KCM_RECV_DISABLE as set.
pub(crate) fn rx_disabled(file: &'static File, fd: i32) -> Outcome<bool> {
    let (answer, _) = ask(file, fd, Op::Disabled, [0; 2], &[], &[])?;
    Ok(answer.value != 0)
}

/// The owner hears of an option; 0 stands for KCM_RECV_DISABLE.
pub(crate) fn set_option(file: &'static File, fd: i32, name: i32, value: u32) -> Outcome<()> {
    let words = [name as u32 as u64, value.into()];
    ask(file, fd, Op::Option, words, &[], &[sys::borrow(fd)]).map(drop)
}

/// A page of /proc/net as the first owner shows it; `None` when we know no owner.
pub(crate) fn page(page: Page) -> Option<OwnedFd> {
    let files = table::files().into_iter().filter(|f| f.kind() == Kind::Kcm);
    let owner = { files }.find_map(owner_of)?;
    let request = Request {
        op: Op::Page,
        handle: 0,
        a: (page == Page::Statistics).into(),
        b: 0,
    };
    let (_, passed) = call(&owner, request, &[], &[]).ok()?;
    passed.first()?.for_program().ok()
}

/// Holds still for the length of a fork: an answer may be waited for meanwhile.
pub(crate) fn freeze() -> impl Sized {
    OWNERS.lock().ok()
}

/// In a forked child, which makes connections of its own. The parent's are closed with all others
/// of ours.
pub(super) fn reset_in_child() {
    if let Ok(mut owners) = OWNERS.lock() {
        core::mem::forget(core::mem::take(&mut *owners));
    }
}

/// The socket is asked for anew, over a connection of this process.
pub(super) fn ask_again(file: &'static File) {
    if let Ok(Body::Remote(remote)) = file.body.lock().as_deref_mut() {
        (remote.asked, remote.handle) = (false, None);
    }
}
