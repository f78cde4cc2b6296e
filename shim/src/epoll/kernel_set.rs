//! Sets of the kernel's that become ours, at the moment they do: when a file of ours is added, or
//! when a member of theirs becomes a file of ours (a TCP socket that is attached).

use libc::epoll_event;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::OwnedFd;

use kcm_mux::Nanos;

use super::{add, adopt};
use crate::fd::File;
use crate::net::pristine;
use crate::sync::{Mutex, Rank};
use crate::{housekeeper, own, sys};

/// Numbers that epoll_create returned. One may have been closed since.
static CREATED: Mutex<Vec<i32>> = Mutex::ranked(Rank::Leaf, Vec::new());

/// The program has made an epoll set.
pub(crate) fn created(epfd: i32) {
    if epfd >= 0
        && let Ok(mut created) = CREATED.lock()
        && !created.contains(&epfd)
    {
        created.push(epfd);
    }
}

/// `fd` has become a file of ours: sets that got it before hand their registration over, since only
/// ours hear what KCM has to say of it.
pub(crate) fn move_registrations(fd: i32, file: &'static File) {
    if pristine::is_unwatched(fd) {
        return;
    }
    let Ok(mut created) = CREATED.lock() else {
        return;
    };
    created.retain(|epfd| is_epoll(*epfd));
    let holders: Vec<i32> = created.iter().copied().filter(|e| holds(*e, fd)).collect();
    drop(created);
    for epfd in holders {
        if let Some(event) = registration(epfd, fd)
            && let Ok(set) = adopt(epfd)
            && epoll::delete(sys::borrow(epfd), sys::borrow(fd)).is_ok()
        {
            let _ = add(set, fd, file, event);
        }
    }
}

/// Sets that had what was at `fd` get the file of ours that is there now.
pub(crate) fn hand_over(fd: i32, file: &'static File, registered: Vec<(i32, epoll_event)>) {
    for (epfd, event) in registered {
        if let Ok(set) = adopt(epfd) {
            let _ = add(set, fd, file, event);
        }
    }
}

/// How sets have `fd`, which is about to name another socket: they have it no more.
pub(crate) fn take_registrations(fd: i32) -> Vec<(i32, epoll_event)> {
    let Ok(mut created) = CREATED.lock() else {
        return Vec::new();
    };
    created.retain(|epfd| is_epoll(*epfd));
    let holders: Vec<i32> = created.iter().copied().filter(|e| holds(*e, fd)).collect();
    drop(created);
    let take = |epfd: i32| {
        let event = registration(epfd, fd)?;
        epoll::delete(sys::borrow(epfd), sys::borrow(fd)).ok()?;
        Some((epfd, event))
    };
    holders.into_iter().filter_map(take).collect()
}

/// The sets have what `fd` names now.
pub(crate) fn register_again(fd: i32, registered: Vec<(i32, epoll_event)>) {
    for (epfd, event) in registered {
        let flags = epoll::EventFlags::from_bits_retain(event.events);
        let data = epoll::EventData::new_u64(event.u64);
        let _ = epoll::add(sys::borrow(epfd), sys::borrow(fd), data, flags);
    }
}

/// A registration that changes nothing before it is taken back, as long as what `fd` names cannot hang
/// up: threads that wait would be told.
fn try_add(epfd: i32, fd: i32) -> Result<(), rustix::io::Errno> {
    let (epfd, fd) = (sys::borrow(epfd), sys::borrow(fd));
    let nothing = epoll::EventData::new_u64(0);
    epoll::add(epfd, fd, nothing, epoll::EventFlags::ET)?;
    epoll::delete(epfd, fd)
}

/// Whether the set has `fd`. To try whether it can be added would tell threads that wait there of a
/// socket that hangs up, as one without a connection does.
fn holds(epfd: i32, fd: i32) -> bool {
    let listed = || registration(epfd, fd).is_some();
    epfd != fd && sys::epoll_has(epfd, fd).unwrap_or_else(listed)
}

/// Target of the link in /proc of a descriptor that is an epoll set.
const EPOLL_LINK: &[u8] = b"anon_inode:[eventpoll]";

fn is_epoll(fd: i32) -> bool {
    let link = format!("/proc/self/fd/{fd}");
    rustix::fs::readlink(link.as_str(), Vec::new()).is_ok_and(|to| to.as_bytes() == EPOLL_LINK)
}

/// Other numbers of the set `epfd`.
pub(super) fn aliases(epfd: i32) -> Vec<i32> {
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open("/proc/self/fd", flags, rustix::fs::Mode::empty()) else {
        return Vec::new();
    };
    let Ok(entries) = rustix::fs::Dir::new(dir) else {
        return Vec::new();
    };
    let number = |name: &core::ffi::CStr| name.to_str().ok()?.parse::<i32>().ok();
    entries
        .filter_map(|entry| number(entry.ok()?.file_name()))
        .filter(|fd| *fd != epfd && crate::fd::lookup(*fd).is_none() && is_epoll(*fd))
        // A set cannot hold itself, under whatever number.
        .filter(|fd| try_add(epfd, *fd) == Err(rustix::io::Errno::INVAL))
        .collect()
}

/// How `fd` is registered with the kernel's set `epfd`, as /proc tells it.
fn registration(epfd: i32, fd: i32) -> Option<epoll_event> {
    let path = format!("/proc/self/fdinfo/{epfd}");
    let flags = rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(path.as_str(), flags, rustix::fs::Mode::empty()).ok()?;
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        match rustix::io::read(&file, &mut part) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(part.get(..n)?),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    let text = core::str::from_utf8(&text).ok()?;
    text.lines().find_map(|line| parse_registration(line, fd))
}

/// A line such as "tfd:        5 events:       19 data:                5 pos:0 ino:2f sdev:9",
/// with the events and the data in hexadecimal.
fn parse_registration(line: &str, fd: i32) -> Option<epoll_event> {
    let mut words = line.strip_prefix("tfd:")?.split_whitespace();
    if words.next()?.parse() != Ok(fd) || words.next()? != "events:" {
        return None;
    }
    let events = u32::from_str_radix(words.next()?, 16).ok()?;
    if words.next()? != "data:" {
        return None;
    }
    let u64 = u64::from_str_radix(words.next()?, 16).ok()?;
    Some(epoll_event { events, u64 })
}

/// A member of the kernel's set that is ready all the time, so that each thread that slept there
/// when the set became ours comes out, and goes to sleep again here.
pub(crate) struct CallIn {
    /// Closing it takes it out of the set.
    _event: own::Kept,
    until: Nanos,
}

/// How long a thread may be on its way into the kernel's epoll_wait after it found that the set is
/// not ours.
const CALL_IN_LENGTH: Nanos = 10_000_000;
/// While threads are called in, the kernel's own members are looked at this often.
const LOOK_INTERVAL: Nanos = 1_000_000;
/// Data word of the call, which no program uses by accident.
const CALL: u64 = 0x6b63_6d73_6869_6d21;

/// Calls in the threads that sleep in the kernel's set, if this process has any other thread.
pub(super) fn call_in(set: &OwnedFd) -> Option<CallIn> {
    if !has_threads() {
        return None;
    }
    let event = own::keep(eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?);
    let data = epoll::EventData::new_u64(CALL);
    epoll::add(set, &event, data, epoll::EventFlags::IN).ok()?;
    let until = sys::now().saturating_add(CALL_IN_LENGTH);
    Some(CallIn {
        _event: event,
        until,
    })
}

/// Whether the program may have another thread.
fn has_threads() -> bool {
    let ours = 1 + usize::from(housekeeper::is_running());
    // The directory's links: ".", "..", and one a thread.
    let links = rustix::fs::stat("/proc/self/task").map(|dir| usize::try_from(dir.st_nlink));
    matches!(links, Ok(Ok(links)) if links > 2 + ours)
}

impl CallIn {
    /// When to look at the kernel's members again; `None` when everybody has been called in.
    pub(super) fn next_look(&self) -> Option<Nanos> {
        let now = sys::now();
        (now < self.until).then(|| now.saturating_add(LOOK_INTERVAL))
    }
}

/// Moves what is not the call to the front of `events`; how many that are.
pub(crate) fn without_call(events: &mut [epoll_event]) -> usize {
    let mut kept = 0;
    for at in 0..events.len() {
        if { events[at].u64 } != CALL {
            events.swap(kept, at);
            kept += 1;
        }
    }
    kept
}

/// Takes the call out of what the kernel's set has reported.
pub(super) fn strip(events: &mut Vec<epoll_event>) {
    events.retain(|event| event.u64 != CALL);
}
