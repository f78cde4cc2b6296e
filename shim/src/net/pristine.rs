//! What is known of kernel sockets since socket(2) made them: one that becomes a stack socket need not be
//! asked for its options, which is some twenty system calls, nor for its kind and its address.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::spare;
use crate::fd::table::FDS_MAX;
use crate::{route, sys};

/// No option has been set, and nothing else changed that options show.
const UNTOUCHED: u8 = 1;
/// Neither bind, listen nor connect has been called.
const UNUSED: u8 = 2;
/// No option of SOL_SOCKET has been set.
const GENERIC: u8 = 16;
/// TCP over IPv4, or with [`V6`] over IPv6.
const TCP: u8 = 4;
const V6: u8 = 8;

/// Has never been put into an epoll set.
const UNWATCHED: u8 = 32;
/// There is, or was, a number that dup made of this one, or this one of another.
const COPIED: u8 = 64;

/// By number, from socket(2) to the call that changes it.
static NUMBERS: [AtomicU8; FDS_MAX] = [const { AtomicU8::new(0) }; FDS_MAX];

fn place(fd: i32) -> Option<&'static AtomicU8> {
    NUMBERS.get(usize::try_from(fd).ok()?)
}

/// socket(2) has made `fd`.
pub(crate) fn made(fd: i32, family: i32, kind: i32, protocol: i32) {
    if !route::is_set() {
        return;
    }
    let kind = kind & !sys::SOCKET_FLAGS;
    let is_tcp = kind == libc::SOCK_STREAM && matches!(protocol, 0 | libc::IPPROTO_TCP);
    let known = match family {
        libc::AF_INET if is_tcp => UNUSED | TCP,
        libc::AF_INET6 if is_tcp => UNUSED | TCP | V6,
        _ => 0,
    };
    if let Some(place) = place(fd) {
        place.store(UNTOUCHED | GENERIC | UNWATCHED | known, Ordering::Relaxed);
    }
}

/// Options or the state of what is behind `fd` may have changed, or it is something else now.
#[inline]
pub(crate) fn changed(fd: i32) {
    if route::is_set()
        && let Some(place) = place(fd)
        && place.load(Ordering::Relaxed) != 0
    {
        place.store(0, Ordering::Relaxed);
        spare::stays(fd);
    }
}

/// No copy has a higher number.
static HIGHEST_COPY: AtomicUsize = AtomicUsize::new(0);

/// `new` is a copy of `old`.
#[inline]
pub(crate) fn copied(old: i32, new: i32) {
    if !route::is_set() {
        return;
    }
    for fd in [old, new] {
        changed(fd);
        if let Some(place) = place(fd) {
            place.store(COPIED, Ordering::Relaxed);
            HIGHEST_COPY.fetch_max(fd as usize, Ordering::Relaxed);
        }
    }
}

/// The other numbers that may be copies of what is behind `fd`, or it of theirs.
pub(super) fn copies(fd: i32) -> impl Iterator<Item = i32> {
    let is_copied = |place: &AtomicU8| place.load(Ordering::Relaxed) & COPIED != 0;
    let numbers = match place(fd).is_some_and(is_copied) {
        true => &NUMBERS[..=HIGHEST_COPY.load(Ordering::Relaxed)],
        false => &[],
    };
    let others = (0..)
        .zip(numbers)
        .filter(move |(_, place)| is_copied(place));
    others
        .map(|(number, _)| number)
        .filter(move |number| *number != fd)
}

/// An option of the level is being set.
#[inline]
pub(crate) fn sets(fd: i32, level: i32) {
    if !route::is_set() {
        return;
    }
    spare::renew(fd);
    let before = place(fd).map_or(0, |place| place.load(Ordering::Relaxed));
    changed(fd);
    let mut kept = before & (UNWATCHED | COPIED);
    if level != libc::SOL_SOCKET {
        kept |= before & GENERIC;
    }
    if kept != 0
        && let Some(place) = place(fd)
    {
        place.store(kept, Ordering::Relaxed);
    }
}

/// An epoll set gets `fd`, or may.
#[inline]
pub(crate) fn watched(fd: i32) {
    if route::is_set()
        && let Some(place) = place(fd)
        && place.load(Ordering::Relaxed) & UNWATCHED != 0
    {
        spare::renew(fd);
        place.fetch_and(!UNWATCHED, Ordering::Relaxed);
    }
}

/// Whether no epoll set has, or has had, `fd`.
pub(crate) fn is_unwatched(fd: i32) -> bool {
    place(fd).is_some_and(|place| place.load(Ordering::Relaxed) & UNWATCHED != 0)
}

/// Whether no option of SOL_SOCKET has been set.
pub(crate) fn has_generic_defaults(fd: i32) -> bool {
    place(fd).is_some_and(|place| place.load(Ordering::Relaxed) & GENERIC != 0)
}

/// Whether the socket's options are as it was made.
pub(crate) fn is_pristine(fd: i32) -> bool {
    place(fd).is_some_and(|place| place.load(Ordering::Relaxed) & UNTOUCHED != 0)
}

/// Of a TCP socket that is as it was made, and on which the first bind, listen, connect or send with an
/// address is being called: whether it is one of IPv6. The kernel has to be asked about any other.
pub(crate) fn first_use(fd: i32) -> Option<bool> {
    let place = place(fd)?;
    let known = place.load(Ordering::Relaxed);
    if known & UNUSED == 0 {
        return None;
    }
    place.store(known & !(UNUSED | TCP | V6), Ordering::Relaxed);
    (known & TCP != 0).then_some(known & V6 != 0)
}
