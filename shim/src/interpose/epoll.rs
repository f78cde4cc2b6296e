//! epoll(7).

use libc::{c_int, epoll_event, sigset_t, timespec};

use super::poll::{SigMask, timespec_at, until_ms};
use super::{conclude, fresh};
use crate::epoll;
use crate::errno::{Errno, Outcome};
use crate::fd::{File, Kind, lookup};
use crate::net::pristine;
use crate::poll;
use crate::real::{has_one_thread, hooks};
use crate::user_mem::{self, UserPtr};

/// The set behind `epfd`, if it holds files of ours.
#[inline(always)]
fn set(epfd: c_int) -> Option<&'static File> {
    lookup(epfd).filter(|f| f.kind() == Kind::Epoll)
}

fn wait(
    set: &'static File,
    events: *mut epoll_event,
    room: c_int,
    until: Outcome<Option<u64>>,
    mask: *const sigset_t,
) -> Outcome<c_int> {
    let until = until?;
    let max = c_int::MAX as usize / size_of::<epoll_event>();
    let room = usize::try_from(room)
        .ok()
        .filter(|n| (1..=max).contains(n))
        .ok_or(Errno::EINVAL)?;
    let got = epoll::wait(set, room, until, SigMask::new(mask))?;
    let at = UserPtr::new(events.cast());
    for (index, event) in got.iter().enumerate() {
        user_mem::copy_out(at.element::<epoll_event>(index), event)?;
    }
    Ok(got.len() as c_int)
}

/// A set that the kernel has just made.
fn created(epfd: c_int) -> c_int {
    epoll::kernel_set::created(epfd);
    fresh(epfd)
}

/// The life of one wait. While the process has one thread, nobody can make the set ours during a wait
/// in the kernel: the hook leaves by a jump, for the reason given at
/// [`asks_no_control`](super::message).
#[inline(always)]
fn on_set(
    epfd: c_int,
    events: *mut epoll_event,
    native: impl FnOnce() -> c_int,
    ours: impl FnOnce(&'static File) -> Outcome<c_int>,
) -> c_int {
    if set(epfd).is_none() && has_one_thread() {
        native()
    } else {
        among_threads(epfd, events, native, ours)
    }
}

/// Not in line, so that its frame costs others nothing.
#[inline(never)]
fn among_threads(
    epfd: c_int,
    events: *mut epoll_event,
    native: impl FnOnce() -> c_int,
    ours: impl FnOnce(&'static File) -> Outcome<c_int>,
) -> c_int {
    match set(epfd) {
        Some(set) => conclude(ours(set), native),
        None => waited(epfd, events, native(), ours),
    }
}

/// The kernel has waited on its set `epfd` and stored `count` events. If the set has become ours
/// meanwhile, the thread may have been called in for that alone: `again` then waits here.
fn waited(
    epfd: c_int,
    events: *mut epoll_event,
    count: c_int,
    again: impl FnOnce(&'static File) -> Outcome<c_int>,
) -> c_int {
    match (set(epfd), usize::try_from(count)) {
        (Some(set), Ok(stored @ 1..)) => {
            // SAFETY: the kernel has just stored that many events there.
            let found = unsafe { core::slice::from_raw_parts_mut(events, stored) };
            match epoll::kernel_set::without_call(found) {
                0 => conclude(again(set), || 0),
                left => left as c_int,
            }
        }
        _ => count,
    }
}

hooks! {
    /// epoll_create(2).
    fn epoll_create(size: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        created(unsafe { next::epoll_create(size) })
    }

    /// epoll_create1(2).
    fn epoll_create1(flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        created(unsafe { next::epoll_create1(flags) })
    }

    /// epoll_ctl(2).
    fn epoll_ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = move || unsafe { next::epoll_ctl(epfd, op, fd, event) };
        pristine::watched(fd);
        if poll::ours(fd).is_none() {
            return native();
        }
        let event = match op {
            libc::EPOLL_CTL_DEL => Ok(None),
            _ => user_mem::copy_in::<epoll_event>(UserPtr::new(event.cast())).map(Some),
        };
        conclude(event.map_err(Into::into).and_then(|e| epoll::ctl(epfd, op, fd, e)), native)
    }

    /// epoll_wait(2).
    fn epoll_wait(epfd: c_int, events: *mut epoll_event, room: c_int, timeout: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = move || unsafe { next::epoll_wait(epfd, events, room, timeout) };
        on_set(epfd, events, native, move |set| wait(set, events, room, Ok(until_ms(timeout)), core::ptr::null()))
    }

    /// epoll_pwait(2).
    fn epoll_pwait(
        epfd: c_int, events: *mut epoll_event, room: c_int, timeout: c_int, mask: *const sigset_t,
    ) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = move || unsafe { next::epoll_pwait(epfd, events, room, timeout, mask) };
        on_set(epfd, events, native, move |set| wait(set, events, room, Ok(until_ms(timeout)), mask))
    }

    /// epoll_pwait2(2).
    fn epoll_pwait2(
        epfd: c_int, events: *mut epoll_event, room: c_int, timeout: *const timespec, mask: *const sigset_t,
    ) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = move || unsafe { next::epoll_pwait2(epfd, events, room, timeout, mask) };
        on_set(epfd, events, native, move |set| wait(set, events, room, timespec_at(timeout), mask))
    }
}
