//! poll(2), select(2) and their kin.

use core::ptr;

use libc::{c_int, c_long, fd_set, nfds_t, pollfd, sigset_t, timespec, timeval};

use super::conclude;
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::table;
use crate::poll;
use crate::real::hooks;
use crate::user_mem::{self, UserPtr};
use crate::{select, sys};

/// The signal mask a waiting call installs while it sleeps; null for none. What it points to
/// belongs to the program and is read by the kernel only.
#[derive(Clone, Copy)]
pub(crate) struct SigMask(*const sigset_t);

impl SigMask {
    pub(crate) const NONE: Self = Self(ptr::null());

    pub(crate) fn new(mask: *const sigset_t) -> Self {
        Self(mask)
    }
}

/// The real ppoll(2): a cancellation point. Leaves errno as it was.
pub(crate) fn native_ppoll(fds: &mut [pollfd], until: Option<u64>) -> Result<usize, Errno> {
    native_ppoll_masked(fds, until, SigMask::NONE)
}

/// The real ppoll(2) until a moment of CLOCK_MONOTONIC, with a signal mask.
pub(crate) fn native_ppoll_masked(
    fds: &mut [pollfd],
    until: Option<u64>,
    mask: SigMask,
) -> Result<usize, Errno> {
    let timeout = until.map(|at| {
        let left = at.saturating_sub(if at == 0 { 0 } else { sys::now() });
        timespec {
            tv_sec: (left / 1_000_000_000) as i64,
            tv_nsec: (left % 1_000_000_000) as c_long,
        }
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let saved = Errno::current();
    // SAFETY: the slice and the timeout are ours and live through the call; the mask is null or the
    // caller's.
    let count = unsafe { next::ppoll(fds.as_mut_ptr(), fds.len() as nfds_t, timeout, mask.0) };
    let err = Errno::current();
    saved.set();
    usize::try_from(count).map_err(|_| err)
}

/// Moment at which a timeout in milliseconds ends; negative for never.
pub(super) fn until_ms(timeout: c_int) -> Option<u64> {
    let ms = u64::try_from(timeout).ok()?;
    Some(if ms == 0 {
        0
    } else {
        sys::now().saturating_add(ms * 1_000_000)
    })
}

/// Moment at which a relative timespec ends.
pub(super) fn until_timespec(t: timespec) -> Outcome<u64> {
    let (Ok(s), Ok(ns @ 0..1_000_000_000)) = (u64::try_from(t.tv_sec), u64::try_from(t.tv_nsec))
    else {
        return Err(Errno::EINVAL.into());
    };
    let length = s.saturating_mul(1_000_000_000).saturating_add(ns);
    Ok(if length == 0 {
        0
    } else {
        sys::now().saturating_add(length)
    })
}

/// The program's pollfd array, if an entry of it is ours; ENOMEM if there is no room for a copy.
fn ours(fds: *mut pollfd, count: nfds_t) -> Outcome<Option<Vec<pollfd>>> {
    let Some(count) = usize::try_from(count).ok().filter(|count| *count != 0) else {
        return Ok(None);
    };
    let Some(bytes) = count.checked_mul(size_of::<pollfd>()) else {
        return Ok(None);
    };
    if user_mem::check_write(UserPtr::new(fds.cast()), bytes).is_err() {
        return Ok(None);
    }
    // SAFETY: the range was just checked to be accessible, and poll(2) lends it to us.
    let entries = unsafe { core::slice::from_raw_parts(fds, count) };
    if !poll::any_ours(entries) {
        return Ok(None);
    }
    let mut copy = Vec::new();
    copy.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    copy.extend_from_slice(entries);
    Ok(Some(copy))
}

/// Whether `count` entries are within the `size` bytes that the compiler saw.
fn has_room(count: nfds_t, size: usize) -> bool {
    size / size_of::<pollfd>() >= count as usize
}

/// Whether an entry of the program's array is ours.
pub(super) fn names_ours(fds: *mut pollfd, count: nfds_t) -> bool {
    table::is_used() && !matches!(ours(fds, count), Ok(None))
}

/// The life of one poll in a process that has files of ours: `native` unless an entry of the array is
/// one. Not in line, so that its frame costs other processes nothing.
#[inline(never)]
fn among(
    fds: *mut pollfd,
    count: nfds_t,
    until: impl FnOnce() -> Outcome<Option<u64>>,
    mask: SigMask,
    native: impl FnOnce() -> c_int,
) -> c_int {
    let found = ours(fds, count).and_then(|found| found.ok_or(Exit::Native));
    conclude(found.and_then(|e| run(fds, e, until()?, mask)), native)
}

fn run(
    fds: *mut pollfd,
    mut entries: Vec<pollfd>,
    until: Option<u64>,
    mask: SigMask,
) -> Outcome<c_int> {
    let ready = poll::poll(&mut entries, until, mask)?;
    for (at, entry) in entries.iter().enumerate() {
        // SAFETY: `ours` checked `entries.len()` elements at `fds`.
        unsafe { (*fds.add(at)).revents = entry.revents };
    }
    Ok(ready as c_int)
}

hooks! {
    /// poll(2).
    fn poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = move || unsafe { next::poll(fds, count, timeout) };
        if table::is_unused() { return native() }
        among(fds, count, move || Ok(until_ms(timeout)), SigMask::NONE, native)
    }

    /// ppoll(2).
    fn ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = move || unsafe { next::ppoll(fds, count, timeout, mask) };
        if table::is_unused() { return native() }
        among(fds, count, move || timespec_at(timeout), SigMask(mask), native)
    }

    /// poll(2) as compiled with _FORTIFY_SOURCE.
    fn __poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, size: usize) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = move || unsafe { next::__poll_chk(fds, count, timeout, size) };
        if table::is_unused() || !has_room(count, size) { return native() }
        among(fds, count, move || Ok(until_ms(timeout)), SigMask::NONE, native)
    }

    /// ppoll(2) as compiled with _FORTIFY_SOURCE.
    fn __ppoll_chk(
        fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, size: usize,
    ) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = move || unsafe { next::__ppoll_chk(fds, count, timeout, mask, size) };
        if table::is_unused() || !has_room(count, size) { return native() }
        among(fds, count, move || timespec_at(timeout), SigMask(mask), native)
    }

    /// select(2). Updates the timeout to what is left, as Linux does.
    fn select(
        count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval,
    ) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::select(count, read, write, except, timeout) };
        let sets = [read, write, except].map(|set| UserPtr::new(set.cast()));
        let Some(sets) = select::Sets::read(count, sets) else { return native() };
        conclude(select::select(sets, UserPtr::new(timeout.cast())), native)
    }

    /// pselect(2).
    fn pselect(
        count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set,
        timeout: *const timespec, mask: *const sigset_t,
    ) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::pselect(count, read, write, except, timeout, mask) };
        let sets = [read, write, except].map(|set| UserPtr::new(set.cast()));
        let Some(sets) = select::Sets::read(count, sets) else { return native() };
        let until = timespec_at(timeout);
        conclude(until.and_then(|until| select::wait(sets, until, SigMask(mask))), native)
    }
}

/// Moment at which the program's timeout ends; none for a null pointer.
pub(super) fn timespec_at(timeout: *const timespec) -> Outcome<Option<u64>> {
    if timeout.is_null() {
        return Ok(None);
    }
    let [tv_sec, tv_nsec] = user_mem::copy_in::<[i64; 2]>(UserPtr::new(timeout.cast_mut().cast()))?;
    until_timespec(timespec { tv_sec, tv_nsec }).map(Some)
}
