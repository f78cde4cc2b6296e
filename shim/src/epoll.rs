//! Epoll sets that hold files of ours.
//!
//! The program's own epoll descriptor keeps the foreign members. Ours live here: an interest list,
//! a ready list, and a second, private epoll descriptor (`aux`) that watches what lies beneath
//! them: connections of their muxes, sockets of attached TCP descriptors, inner sets. A waiting
//! thread sleeps on both descriptors and a doorbell. [`kernel_set`] is about the moment at which a set
//! of the kernel's becomes one of ours.
//!
//! Lock order: mux → watch list → set. Code here therefore never takes a mux while it holds a set.

mod beneath;
mod homes;
pub(crate) mod kernel_set;
mod waiting;

use std::collections::{BTreeMap, VecDeque};

use kcm_mux::Nanos;
use libc::epoll_event;
use rustix::event::epoll;

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::net::cells::Engines;
use crate::ready::{self, Beneath};
use crate::wait::{self, BellId};
use crate::watch::Watcher;
use crate::{heap, own, poll, sys};

use beneath::watch_beneath;
pub(crate) use beneath::{sources, watch_anew, watch_connection};
use homes::{InEngines, engines_of};
pub(crate) use homes::{engines, look_elsewhere};
pub(crate) use waiting::{SetStay, any_ready, wait};

/// The members of a set that are ours.
pub(crate) struct EpollSet {
    /// By registration key, which tells two registrations of one number apart.
    members: BTreeMap<u64, Member>,
    next_key: u64,
    /// The program's own set, by a number of ours: a thread goes on waiting when the program closes
    /// its number.
    kernel: own::Kept,
    /// Wakes the threads that already slept in the kernel when the set became ours.
    call_in: Option<kernel_set::CallIn>,
    /// Keys of members that may have something, each at most once.
    ready: VecDeque<u64>,
    /// Watches what lies beneath the members.
    aux: own::Kept,
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
    let kernel = own::copy(sys::borrow(epfd)).map_err(no_descriptor)?;
    let aux = own::keep(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(no_descriptor)?);
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
            let tag = epoll::EventData::new_u64(beneath::Source::Member(key).pack());
            let _ = epoll::modify(&set.aux, sys::borrow(fd), tag, beneath::asked(event.events));
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
    let aux = epoll::create(epoll::CreateFlags::CLOEXEC).map(own::keep);
    let (Ok(aux), Ok(kernel)) = (aux, own::copy(sys::borrow(epfd))) else {
        // No descriptors are left. The set answers EBADF; its numbers are others' to close.
        if let Ok(mut body) = file.body.lock() {
            core::mem::forget(core::mem::replace(&mut *body, Body::None));
        }
        return;
    };
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

/// The file of a member is gone.
pub(crate) fn forget(file: &'static File, key: u64) {
    let _ = with(file, |set| set.remove(key));
}

/// The last descriptor of the set is gone.
pub(crate) fn last_close(file: &'static File) {
    let members = with(file, |set| core::mem::take(&mut set.members));
    for (key, member) in members.unwrap_or_default() {
        member.file.watch.remove(Watcher::Set { set: file, key });
    }
}
