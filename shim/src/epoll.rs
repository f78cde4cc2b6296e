//! Epoll sets that hold files of ours.
//!
//! The program's own epoll descriptor keeps the foreign members. Ours live here: an interest list,
//! a ready list, and a second, private epoll descriptor (`aux`) that watches what lies beneath
//! them: connections of their muxes, sockets of attached TCP descriptors, inner sets. A waiting
//! thread sleeps on both descriptors and a doorbell. `kernel_set` is about the moment at which a set
//! of the kernel's becomes one of ours.
//!
//! Lock order: mux → watch list → set. Code here therefore never takes a mux while it holds a set.

pub(crate) mod kernel_set;

use std::collections::{BTreeMap, VecDeque};

use kcm_mux::{Nanos, PsockId};
use libc::{epoll_event, pollfd};
use rustix::event::epoll;
use rustix::fd::OwnedFd;

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::interpose::poll::{SigMask, native_ppoll_masked};
use crate::kcm::{Connection, MuxCell};
use crate::net::cells::{self, ENGINES_MAX, Engines};
use crate::net::turns::{self, Turns};
use crate::ready::{self, Beneath};
use crate::sync::Lent;
use crate::wait::{self, BellId, Held, Pin};
use crate::watch::Watcher;
use crate::{heap, own, poll, sys};

/// The members of a set that are ours.
pub(crate) struct EpollSet {
    /// By registration key, which tells two registrations of one number apart.
    members: BTreeMap<u64, Member>,
    next_key: u64,
    /// The program's own set, by a number of ours: a thread goes on waiting when the program closes
    /// its number.
    kernel: OwnedFd,
    /// Wakes the threads that already slept in the kernel when the set became ours.
    call_in: Option<kernel_set::CallIn>,
    /// Keys of members that may have something, each at most once.
    ready: VecDeque<u64>,
    /// Watches what lies beneath the members.
    aux: OwnedFd,
    /// Something was ever put into `aux`.
    has_beneath: bool,
    /// Where the members are, and what lies beneath those that are KCM sockets.
    engines: InEngines,
    /// Threads asleep on this set.
    sleepers: Vec<BellId>,
    /// Who goes first when both sides have more than fits: turns, so that neither starves.
    native_first: bool,
    /// When the kernel's members were last asked.
    asked_at: Nanos,
}

/// How many members are in each engine.
struct InEngines {
    members: [u32; ENGINES_MAX],
    counted: Engines,
    /// Of connections of KCM sockets: the engines of all there have been.
    beneath: Engines,
}

impl InEngines {
    fn new() -> Self {
        Self {
            members: [0; ENGINES_MAX],
            counted: Engines::NONE,
            beneath: Engines::NONE,
        }
    }

    fn all(&self) -> Engines {
        self.counted | self.beneath
    }

    fn add(&mut self, engines: Engines) {
        self.counted |= engines;
        for (at, count) in self.members.iter_mut().enumerate() {
            *count += u32::from(engines.has(at as u8));
        }
    }

    fn remove(&mut self, engines: Engines) {
        for (at, count) in self.members.iter_mut().enumerate() {
            *count -= u32::from(engines.has(at as u8));
            if *count == 0 {
                self.counted = self.counted.without(Engines::one(at as u8));
            }
        }
    }
}

/// One registration.
#[derive(Clone, Copy)]
struct Member {
    fd: i32,
    file: &'static File,
    events: u32,
    data: u64,
    /// The engines it was counted in.
    engines: Engines,
    /// EPOLLONESHOT has fired: silent until EPOLL_CTL_MOD.
    spent: bool,
    queued: bool,
    /// Counts what was delivered, so that what comes while its bits are read is not taken for them.
    news: u32,
}

const EPOLLET: u32 = libc::EPOLLET as u32;
const EPOLLONESHOT: u32 = libc::EPOLLONESHOT as u32;
const EPOLLEXCLUSIVE: u32 = libc::EPOLLEXCLUSIVE as u32;
const ALWAYS: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
/// Bits of `events` that are no poll bits.
const FLAGS: u32 = EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE | libc::EPOLLWAKEUP as u32;
/// What EPOLLEXCLUSIVE may be combined with (epoll_ctl(2)).
const EXCLUSIVE_OK: u32 = FLAGS & !EPOLLONESHOT
    | (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP) as u32;
/// Events taken from `aux` at a time.
const AUX_BATCH: usize = 64;

/// epoll_ctl(2) where `fd` is a file of ours. Native when the kernel has to answer.
pub(crate) fn ctl(epfd: i32, op: i32, fd: i32, event: Option<epoll_event>) -> Outcome<i32> {
    let Some(target) = target(op, fd) else {
        return Err(Exit::Native);
    };
    if op == libc::EPOLL_CTL_ADD {
        heap::check_room()?;
    }
    let set = match lookup(epfd).filter(|f| f.kind() == Kind::Epoll) {
        Some(set) => set,
        None if op == libc::EPOLL_CTL_ADD && sys::is_epoll(epfd, fd) => adopt(epfd)?,
        None => return Err(Exit::Native), // EBADF, EINVAL or ENOENT, as the kernel finds
    };
    if core::ptr::eq(set, target) {
        return Err(Errno::EINVAL.into());
    }
    match op {
        libc::EPOLL_CTL_ADD => add(set, fd, target, event.ok_or(Errno::EFAULT)?),
        libc::EPOLL_CTL_MOD => modify(set, fd, target, event.ok_or(Errno::EFAULT)?),
        libc::EPOLL_CTL_DEL => delete(set, fd, target),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// The file of `fd` as an epoll_ctl(2) takes it. A socket that processes share may be a member of old.
fn target(op: i32, fd: i32) -> Option<&'static File> {
    let member = lookup(fd).filter(|file| file.kind() == Kind::Inherited);
    poll::ours(fd).or(member.filter(|_| op != libc::EPOLL_CTL_ADD))
}

/// The set behind an epoll descriptor that is about to get its first member of ours.
fn adopt(epfd: i32) -> Outcome<&'static File> {
    if let Some(set) = lookup(epfd).filter(|f| f.kind() == Kind::Epoll) {
        return Ok(set);
    }
    if !table::in_range(epfd) {
        return Err(Errno::ENOMEM.into());
    }
    let kernel = sys::dup_high(sys::borrow(epfd)).map_err(no_descriptor)?;
    let aux = sys::raise(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(no_descriptor)?);
    own::protect(sys::number(&kernel));
    own::protect(sys::number(&aux));
    let set = EpollSet {
        members: BTreeMap::new(),
        next_key: 0,
        kernel,
        call_in: None,
        ready: VecDeque::new(),
        aux,
        has_beneath: false,
        engines: InEngines::new(),
        sleepers: Vec::new(),
        native_first: false,
        asked_at: 0,
    };
    let ino = sys::inode(sys::borrow(epfd));
    let file = File::new(Kind::Epoll, ino, Body::Epoll(set))?;
    table::install(epfd, file);
    for alias in kernel_set::aliases(epfd) {
        if lookup(alias).is_none() && file.retain() {
            table::install(alias, file);
        }
    }
    with(file, |set| set.call_in = kernel_set::call_in(&set.kernel))?;
    kernel_set::move_registrations(epfd, file);
    Ok(file)
}

/// epoll_ctl(2) takes no descriptor, and so has no errno for a want of one: it is short of memory.
fn no_descriptor(_: rustix::io::Errno) -> Errno {
    Errno::ENOMEM
}

/// Runs `f` on the set behind `file`.
fn with<R>(file: &File, f: impl FnOnce(&mut EpollSet) -> R) -> Outcome<R> {
    match &mut *file.body.lock()? {
        Body::Epoll(set) => Ok(f(set)),
        _ => Err(Errno::EBADF.into()),
    }
}

impl EpollSet {
    fn key_of(&self, fd: i32, file: &File) -> Option<u64> {
        let is = |m: &Member| m.fd == fd && core::ptr::eq(m.file, file);
        self.members
            .iter()
            .find(|(_, m)| is(m))
            .map(|(key, _)| *key)
    }

    /// Takes a registration out. Its key would otherwise stay among those that may have something, and
    /// keep every thread from its sleep.
    fn remove(&mut self, key: u64) {
        let Some(member) = self.members.remove(&key) else {
            return;
        };
        self.engines.remove(member.engines);
        if member.queued {
            self.ready.retain(|k| *k != key);
        }
    }

    /// Queues a member, if it may report anything. True if it was not queued before.
    fn enqueue(&mut self, key: u64) -> bool {
        let Some(member) = self.members.get_mut(&key) else {
            return false;
        };
        member.news = member.news.wrapping_add(1);
        if member.spent || member.queued {
            return false;
        }
        member.queued = true;
        self.ready.push_back(key);
        true
    }

    fn wake(&self) {
        for bell in &self.sleepers {
            wait::ring(*bell);
        }
    }
}

fn add(set: &'static File, fd: i32, target: &'static File, event: epoll_event) -> Outcome<i32> {
    let events = event.events;
    let exclusive = events & EPOLLEXCLUSIVE != 0;
    if exclusive && (events & !EXCLUSIVE_OK != 0 || target.kind() == Kind::Epoll) {
        return Err(Errno::EINVAL.into());
    }
    if target.kind() == Kind::Epoll && reaches(target, set, 0)? {
        return Err(Errno::ELOOP.into());
    }
    let member = Member {
        fd,
        file: target,
        events,
        data: event.u64,
        engines: engines_of(target),
        spent: false,
        queued: false,
        news: 0,
    };
    let key = with(set, |set| {
        if set.key_of(fd, target).is_some() {
            return Err(Errno::EEXIST);
        }
        let key = set.next_key;
        set.next_key += 1;
        set.engines.add(member.engines);
        set.members.insert(key, member);
        Ok(key)
    })??;
    target.watch.add(Watcher::Set { set, key });
    watch_beneath(set, target, fd, key, events)?;
    deliver(set, key, u32::MAX);
    Ok(0)
}

fn modify(set: &'static File, fd: i32, target: &'static File, event: epoll_event) -> Outcome<i32> {
    let key = with(set, |set| {
        let key = set.key_of(fd, target).ok_or(Errno::ENOENT)?;
        let Some(member) = set.members.get_mut(&key) else {
            return Err(Errno::ENOENT);
        };
        if (member.events | event.events) & EPOLLEXCLUSIVE != 0 {
            return Err(Errno::EINVAL);
        }
        (member.events, member.data, member.spent) = (event.events, event.u64, false);
        if matches!(target.kind(), Kind::Tcp | Kind::Stack | Kind::Inherited) {
            let tag = epoll::EventData::new_u64(Source::Member(key).pack());
            let _ = epoll::modify(&set.aux, sys::borrow(fd), tag, asked(event.events));
        }
        Ok(key)
    });
    let key = not_here(key)?;
    deliver(set, key, u32::MAX);
    Ok(0)
}

fn delete(set: &'static File, fd: i32, target: &'static File) -> Outcome<i32> {
    let key = not_here(with(set, |set| set.key_of(fd, target).ok_or(Errno::ENOENT)))?;
    target.watch.remove(Watcher::Set { set, key });
    with(set, |set| {
        set.remove(key);
        if ready::beneath(target) != Beneath::Mute {
            let _ = epoll::delete(&set.aux, sys::borrow(fd));
        }
    })?;
    Ok(0)
}

/// A member that is not in our list may be a TCP descriptor that the kernel's set got before it
/// was attached.
fn not_here(key: Outcome<Result<u64, Errno>>) -> Outcome<u64> {
    match key? {
        Ok(key) => Ok(key),
        Err(Errno::ENOENT) => Err(Exit::Native),
        Err(err) => Err(err.into()),
    }
}

/// Whether the inner set `from` contains `wanted` at some depth: adding would close a circle.
fn reaches(from: &'static File, wanted: &'static File, depth: usize) -> Outcome<bool> {
    /// The kernel's own limit on nesting.
    const DEPTH_MAX: usize = 4;
    if core::ptr::eq(from, wanted) || depth > DEPTH_MAX {
        return Ok(true);
    }
    let inner: Vec<_> = with(from, |set| {
        let sets = set
            .members
            .values()
            .filter(|m| m.file.kind() == Kind::Epoll);
        sets.map(|m| m.file).collect()
    })?;
    for file in inner {
        if reaches(file, wanted, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What `aux` reports: a connection of a mux, or the real descriptor of a member.
enum Source {
    Connection(u32, PsockId),
    Member(u64),
}

impl Source {
    const MEMBER: u64 = 1 << 63;

    fn pack(&self) -> u64 {
        match self {
            Self::Connection(cell, psock) => u64::from(*cell) << 32 | u64::from(psock.0),
            Self::Member(key) => Self::MEMBER | key,
        }
    }

    fn unpack(data: u64) -> Self {
        if data & Self::MEMBER != 0 {
            Self::Member(data & !Self::MEMBER)
        } else {
            Self::Connection((data >> 32) as u32, PsockId(data as u32))
        }
    }
}

/// Makes `aux` watch what lies beneath a new member.
fn watch_beneath(
    set: &'static File,
    target: &'static File,
    fd: i32,
    key: u64,
    events: u32,
) -> Outcome<()> {
    if ready::beneath(target) == Beneath::Queue {
        return watch_queue(set, fd, key);
    }
    if ready::beneath(target) == Beneath::Mute && target.kind() == Kind::Stack {
        return Ok(()); // the engine tells by the watch list
    }
    if target.kind() == Kind::Kcm {
        let cell = target.mux()?;
        let engine = cell.lock()?;
        let conns: Vec<_> = engine.mux.psocks().collect();
        for psock in conns {
            if let Some(conn) = engine.connection(psock) {
                watch_connection(set, cell, psock, conn);
            }
        }
        return Ok(());
    }
    let inner = sources(target);
    with(set, |set| {
        let tag = epoll::EventData::new_u64(Source::Member(key).pack());
        for fd in inner.into_iter().chain([fd]) {
            set.has_beneath = true;
            let _ = epoll::add(&set.aux, sys::borrow(fd), tag, asked(events));
        }
    })
}

/// What `aux` watches of a member's own descriptor: each change of what the program asks for, and
/// no other. A monitor that waits for the end of a connection does not wake for its data.
fn asked(events: u32) -> epoll::EventFlags {
    let bits = epoll::EventFlags::IN
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::PRI;
    epoll::EventFlags::from_bits_retain(events) & bits | epoll::EventFlags::ET
}

/// A socket shared between processes tells itself when it has a message.
fn watch_queue(set: &File, fd: i32, key: u64) -> Outcome<()> {
    let tag = epoll::EventData::new_u64(Source::Member(key).pack());
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    let _ = with(set, |set| {
        set.has_beneath = true;
        epoll::add(&set.aux, sys::borrow(fd), tag, flags)
    })?;
    Ok(())
}

/// A member has become a socket of which the descriptor beneath has something to say.
pub(crate) fn watch_anew(set: &'static File, target: &'static File) {
    let these: Vec<_> = with(set, |set| {
        let members = set.members.iter();
        let these = members.filter(|(_, m)| core::ptr::eq(m.file, target));
        these.map(|(key, m)| (*key, *m)).collect()
    })
    .unwrap_or_default();
    for (key, member) in these {
        let _ = watch_beneath(set, target, member.fd, key, member.events);
        deliver(set, key, u32::MAX);
    }
}

/// A member has become one that the kernel can answer for.
pub(crate) fn leave_to_kernel(set: &'static File, target: &'static File) {
    let left: Vec<_> = with(set, |set| {
        let members = set.members.iter();
        let these = members.filter(|(_, m)| core::ptr::eq(m.file, target));
        let these: Vec<_> = these.map(|(key, m)| (*key, *m)).collect();
        for (key, member) in &these {
            set.remove(*key);
            let mut flags = member.events;
            if member.spent {
                flags &= EPOLLET | EPOLLONESHOT;
            }
            let flags = epoll::EventFlags::from_bits_retain(flags);
            let data = epoll::EventData::new_u64(member.data);
            let _ = epoll::add(&set.kernel, sys::borrow(member.fd), data, flags);
        }
        set.wake();
        these
    })
    .unwrap_or_default();
    for (key, _) in left {
        target.watch.remove(Watcher::Set { set, key });
    }
}

/// In a forked child: the set behind `epfd` gets descriptors of its own in place of the parent's,
/// which are closed already. `renewed` finds the child's file of
/// an inherited KCM socket; TCP sockets attached by the parent are no members any more.
pub(crate) fn renew_in_child(
    file: &'static File,
    epfd: i32,
    renewed: impl Fn(&'static File) -> Option<&'static File>,
) {
    let aux = epoll::create(epoll::CreateFlags::CLOEXEC).map(sys::raise);
    let (Ok(aux), Ok(kernel)) = (aux, sys::dup_high(sys::borrow(epfd))) else {
        // No descriptors are left. The set answers EBADF; its numbers are others' to close.
        if let Ok(mut body) = file.body.lock() {
            core::mem::forget(core::mem::replace(&mut *body, Body::None));
        }
        return;
    };
    own::protect(sys::number(&aux));
    own::protect(sys::number(&kernel));
    let members = with(file, |set| {
        core::mem::forget(core::mem::replace(&mut set.aux, aux));
        core::mem::forget(core::mem::replace(&mut set.kernel, kernel));
        core::mem::forget(set.call_in.take());
        set.sleepers.clear();
        set.ready.clear();
        let attached = |m: &Member| {
            matches!(m.file.kind(), Kind::Tcp | Kind::Inherited) && m.file.cell.get().is_some()
        };
        set.members.retain(|_, m| !attached(m));
        for member in set.members.values_mut() {
            member.file = renewed(member.file).unwrap_or(member.file);
            member.queued = false;
            member.engines = Engines::NONE; // they are the parent's
        }
        set.engines = InEngines::new();
        set.members.clone()
    });
    for (key, member) in members.unwrap_or_default() {
        member.file.watch.add(Watcher::Set { set: file, key });
        let _ = watch_beneath(file, member.file, member.fd, key, member.events);
        deliver(file, key, u32::MAX);
    }
}

/// A connection joins the mux of a member: the set watches it too.
pub(crate) fn watch_connection(
    set: &File,
    cell: &'static MuxCell,
    psock: PsockId,
    conn: &Connection,
) {
    let tag = epoll::EventData::new_u64(Source::Connection(cell.index(), psock).pack());
    let flags = epoll::EventFlags::IN
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::ET;
    let _ = with(set, |set| {
        let fd = conn.fd();
        set.has_beneath = true;
        set.engines.beneath |= conn.engines();
        epoll::add(&set.aux, fd, tag, flags).or_else(|_| epoll::modify(&set.aux, fd, tag, flags))
    });
}

/// A member shows `events` anew. True if a sleeper was woken for it.
pub(crate) fn deliver(file: &'static File, key: u64, events: u32) -> bool {
    let queued = with(file, |set| {
        let wanted = set
            .members
            .get(&key)
            .is_some_and(|m| (m.events | ALWAYS) & events != 0);
        if !wanted || !set.enqueue(key) {
            return None;
        }
        set.wake();
        Some(!set.sleepers.is_empty())
    });
    let Ok(Some(woken)) = queued else {
        return false;
    };
    file.watch.notify(libc::EPOLLIN as u32); // a set that holds this set
    woken
}

/// A member is in other engines than before.
pub(crate) fn look_elsewhere(set: &'static File, target: &'static File) {
    let _ = with(set, |set| {
        let engines = engines_of(target);
        let these = { set.members.values_mut() }.filter(|m| core::ptr::eq(m.file, target));
        for member in these {
            set.engines.remove(member.engines);
            set.engines.add(engines);
            member.engines = engines;
        }
        set.wake();
    });
}

/// The engines a thread has to look at which waits for the set.
pub(crate) fn engines(set: &File) -> Engines {
    if !cells::are_several() {
        return Engines::ALL;
    }
    with(set, |set| set.engines.all()).unwrap_or(Engines::NONE)
}

/// The engines that a member is in. What is inside another set may change.
fn engines_of(target: &File) -> Engines {
    match target.kind() {
        Kind::Stack => target.engines(),
        Kind::Epoll => Engines::ALL,
        _ => Engines::NONE,
    }
}

/// The file of a member is gone.
pub(crate) fn forget(file: &'static File, key: u64) {
    let _ = with(file, |set| set.remove(key));
}

/// Descriptors that say something about what lies beneath our members.
pub(crate) fn sources(file: &File) -> Vec<i32> {
    with(file, |set| vec![sys::number(&set.aux)]).unwrap_or_default()
}

/// Whether a member of ours has something to report now.
pub(crate) fn any_ready(file: &'static File) -> bool {
    drain_aux(file);
    collect(file, 1, false).is_ok_and(|events| !events.is_empty())
}

/// The last descriptor of the set is gone.
pub(crate) fn last_close(file: &'static File) {
    let members = with(file, |set| {
        own::unprotect(sys::number(&set.aux));
        own::unprotect(sys::number(&set.kernel));
        core::mem::take(&mut set.members)
    });
    let members = members.unwrap_or_default();
    for (key, member) in members {
        member.file.watch.remove(Watcher::Set { set: file, key });
    }
}

/// Takes in what `aux` has seen: connections are read, members queued.
fn drain_aux(file: &'static File) {
    loop {
        let mut seen = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; AUX_BATCH];
        let none = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let count = with(file, |set| match set.has_beneath {
            true => epoll::wait(&set.aux, &mut seen[..], Some(&none)).unwrap_or(0),
            false => 0,
        });
        let Ok(count) = count else { return };
        for event in seen.into_iter().take(count) {
            let flags = event.flags;
            match Source::unpack(event.data.u64()) {
                Source::Connection(cell, psock) => {
                    if let Some(Ok(mut engine)) = MuxCell::by_index(cell).map(MuxCell::lock) {
                        engine.note(Some(psock), flags.bits() as i16);
                        engine.pump_known();
                    }
                }
                Source::Member(key) => {
                    deliver(file, key, u32::MAX);
                }
            }
        }
        if count < AUX_BATCH {
            return;
        }
    }
}

/// Events of ready members, at most `room`. Taking them (`take`) ends an edge, spends a one-shot
/// and puts a level member at the end of the list; members that have nothing leave it, unless
/// something came while that was found out.
fn collect(file: &'static File, room: usize, take: bool) -> Outcome<Vec<epoll_event>> {
    let queued: Vec<_> = with(file, |set| {
        let member = |key: &u64| set.members.get(key).map(|m| (*key, *m));
        set.ready.iter().filter_map(member).collect()
    })?;
    let mut events = Vec::new();
    for (key, member) in queued {
        if events.len() == room {
            break;
        }
        let (now, news) = look(file, key, member)?;
        with(file, |set| {
            let Some(member) = set.members.get_mut(&key) else {
                return;
            };
            let spends = take && now != 0 && member.events & EPOLLONESHOT != 0;
            let over = now == 0 || (take && member.events & EPOLLET != 0);
            let leaves = spends || (over && member.news == news);
            if now != 0 {
                events.push(epoll_event {
                    events: now,
                    u64: member.data,
                });
                member.spent |= spends;
            }
            if leaves || take {
                match set.ready.front() {
                    Some(first) if *first == key => drop(set.ready.pop_front()),
                    _ => set.ready.retain(|k| *k != key),
                }
            }
            if leaves {
                member.queued = false;
            } else if take {
                set.ready.push_back(key);
            }
        })?;
    }
    Ok(events)
}

/// What a member has to report, and the news that this takes in. Looking may bring news itself, when
/// it reads connections; that is looked at too.
fn look(file: &File, key: u64, mut member: Member) -> Outcome<(u32, u32)> {
    /// What still comes then stays news.
    const LOOKS_MAX: usize = 4;
    let mut now = 0;
    let mut news = member.news;
    for _ in 0..LOOKS_MAX {
        news = member.news;
        now = current(&member) & (member.events & !FLAGS | ALWAYS);
        match with(file, |set| set.members.get(&key).copied())? {
            Some(latest) if latest.news != news => member = latest,
            _ => break,
        }
    }
    Ok((now, news))
}

/// Poll bits of a member now.
fn current(member: &Member) -> u32 {
    let bits = ready::bits(member.file, member.fd);
    // The number may name another file by now, while duplicates keep the member.
    let is_there = lookup(member.fd).is_some_and(|file| core::ptr::eq(file, member.file));
    if ready::beneath(member.file) != Beneath::Speaks || !is_there {
        return bits;
    }
    let events = (member.events & !FLAGS) as i16;
    let mut entry = [pollfd {
        fd: member.fd,
        events,
        revents: 0,
    }];
    sys::poll_now(&mut entry);
    bits | entry[0].revents as u16 as u32
}

/// epoll_pwait2(2) on a set that holds, or held, files of ours.
pub(crate) fn wait(
    file: &'static File,
    room: usize,
    until: Option<Nanos>,
    mask: SigMask,
) -> Outcome<Vec<epoll_event>> {
    let mut awake = None; // lets go of the set at the end
    let mut seen = Seen::at_first(file, until)?;
    loop {
        turns::look(engines(file));
        if seen.aux {
            drain_aux(file);
        }
        let mut events = Vec::new();
        if seen.kernel {
            let native_first = with(file, |set| {
                set.native_first = !set.native_first;
                set.native_first
            })?;
            if native_first {
                events = native(file, room)?;
            }
            events.extend(collect(file, room - events.len(), true)?);
            if !native_first && events.len() < room {
                events.extend(native(file, room - events.len())?);
            }
        } else {
            events = collect(file, room, true)?;
        }
        if !events.is_empty() || until.is_some_and(|at| at <= sys::now()) {
            return Ok(events);
        }
        (awake, seen) = sleep(file, until, mask, awake)?;
    }
}

/// Which of a set's descriptors may have something.
#[derive(Clone, Copy)]
struct Seen {
    kernel: bool,
    aux: bool,
}

/// A program that comes back sooner has its kernel members asked when it sleeps, or the next time: a
/// thread that serves thousands of messages from here spares a system call for each.
const ASK_INTERVAL: Nanos = 50_000;

impl Seen {
    const ALL: Self = Self {
        kernel: true,
        aux: true,
    };

    /// Before the first sleep. What a sleep tells need not be asked beforehand.
    fn at_first(file: &File, until: Option<Nanos>) -> Outcome<Self> {
        let now = sys::now();
        let kernel = with(file, |set| {
            let due = until.is_some_and(|at| at <= now) || set.call_in.is_some();
            due || now.saturating_sub(set.asked_at) >= ASK_INTERVAL
        })?;
        Ok(Self { kernel, aux: true })
    }
}

/// Events of the kernel's members, without waiting.
fn native(file: &'static File, room: usize) -> Outcome<Vec<epoll_event>> {
    with(file, |set| {
        let calling = usize::from(set.call_in.is_some());
        set.asked_at = sys::now();
        let mut events = sys::epoll_now(sys::number(&set.kernel), room + calling);
        if calling != 0 {
            kernel_set::strip(&mut events);
            events.truncate(room); // what is cut off is level-triggered or comes with a new edge
        }
        events
    })
}

/// What a thread that sleeps in epoll_wait holds.
pub(crate) struct SetStay {
    set: Pin,
    bell: Lent,
    id: BellId,
    turn: Option<Turns>,
    /// The bell's descriptor may be readable.
    rung: bool,
}

impl Drop for SetStay {
    fn drop(&mut self) {
        let id = self.id;
        let _ = with(self.set.file(), |set| set.sleepers.retain(|b| *b != id));
        self.bell.disarm(self.rung);
    }
}

/// Sleeps until a member, of ours or of the kernel's, may have something. The set stays as long as
/// the caller keeps what it gets; it gives up `before` in exchange.
fn sleep(
    file: &'static File,
    until: Option<Nanos>,
    mask: SigMask,
    mut before: Option<SetStay>,
) -> Outcome<(Option<SetStay>, Seen)> {
    let set = Pin::new(file)?;
    let (bell, id) = wait::lend()?;
    bell.arm();
    let raw_bell = bell.bell().raw_fd();
    let turn = before.as_mut().and_then(|before| before.turn.take());
    let duty = turns::sleep(engines(file), id, turn);
    let due = duty.until;
    let mut all = [wait::readable(-1); 3 + ENGINES_MAX];
    let used = 3 + duty.entries().len();
    all[3..used].copy_from_slice(duty.entries());
    let stay = SetStay {
        set,
        bell,
        id,
        turn: Some(duty.turns()),
        rung: true,
    };
    drop(before);
    let (fds, calling, pending) = with(file, |set| {
        set.sleepers.push(id);
        let calling = set.call_in.as_ref().and_then(kernel_set::CallIn::next_look);
        if calling.is_none() {
            set.call_in = None;
        }
        // While others are called in, the kernel's set shows the call all the time.
        let kernel = calling.is_none().then(|| sys::number(&set.kernel));
        (
            (kernel, set.has_beneath.then(|| sys::number(&set.aux))),
            calling,
            !set.ready.is_empty(),
        )
    })?;
    if pending {
        return Ok((Some(stay), Seen::ALL));
    }
    // poll(2) passes over negative numbers.
    for (place, fd) in all.iter_mut().zip([raw_bell, fds.0, fds.1]) {
        place.fd = fd.unwrap_or(-1);
    }
    let fds = &mut all[..used];
    let wake_at = [until, calling, due].into_iter().flatten().min();
    let (slept, held) = wait::holding(Held::Set(stay), || native_ppoll_masked(fds, wake_at, mask));
    slept?;
    let seen = Seen {
        kernel: calling.is_some() || fds[1].revents != 0,
        aux: fds[2].revents != 0,
    };
    let stay = match held {
        Some(Held::Set(mut stay)) => {
            stay.rung = fds[0].revents != 0;
            Some(stay)
        }
        _ => None,
    };
    Ok((stay, seen))
}
