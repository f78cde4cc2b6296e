//! epoll(7).

use libc::{c_int, epoll_event, sigset_t, timespec};

use super::poll::{SigMask, timespec_at, until_ms};
use super::{conclude, fresh};
use crate::epoll;
use crate::errno::{Errno, Outcome};
use crate::fd::{File, Kind, lookup};
use crate::poll;
use crate::real::hooks;
use crate::user_mem::{self, UserPtr};

/// The set behind `epfd`, if it holds files of ours.
#[inline(always)]
fn set(epfd: c_int) -> Option<&'static File> {
    lookup(epfd).filter(|f| f.kind() == Kind::Epoll)
}

fn wait(
    set: &'static File,
    epfd: c_int,
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
    let got = epoll::wait(set, epfd, room, until, SigMask::new(mask))?;
    let at = UserPtr::new(events.cast());
    for (index, event) in got.iter().enumerate() {
        user_mem::copy_out(at.element::<epoll_event>(index), event)?;
    }
    Ok(got.len() as c_int)
}

hooks! {
    /// epoll_create(2).
    fn epoll_create(size: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        fresh(unsafe { next::epoll_create(size) })
    }

    /// epoll_create1(2).
    fn epoll_create1(flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        fresh(unsafe { next::epoll_create1(flags) })
    }

    /// epoll_ctl(2).
    fn epoll_ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::epoll_ctl(epfd, op, fd, event) };
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
        let native = || unsafe { next::epoll_wait(epfd, events, room, timeout) };
        let Some(set) = set(epfd) else { return native() };
        let mask = core::ptr::null();
        conclude(wait(set, epfd, events, room, Ok(until_ms(timeout)), mask), native)
    }

    /// epoll_pwait(2).
    fn epoll_pwait(
        epfd: c_int, events: *mut epoll_event, room: c_int, timeout: c_int, mask: *const sigset_t,
    ) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::epoll_pwait(epfd, events, room, timeout, mask) };
        let Some(set) = set(epfd) else { return native() };
        conclude(wait(set, epfd, events, room, Ok(until_ms(timeout)), mask), native)
    }

    /// epoll_pwait2(2).
    fn epoll_pwait2(
        epfd: c_int, events: *mut epoll_event, room: c_int, timeout: *const timespec, mask: *const sigset_t,
    ) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::epoll_pwait2(epfd, events, room, timeout, mask) };
        let Some(set) = set(epfd) else { return native() };
        conclude(wait(set, epfd, events, room, timespec_at(timeout), mask), native)
    }
}
