//! Groups that a UDP socket joined, and the interface it chose for what it sends to them, while it was the
//! kernel's. The kernel does not tell of them, and knows nothing of the stack's addresses, so they are noted
//! as they are set, and repeated when the socket has an address: to the stack, if that one is the stack's.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::VecDeque;

use rustix::fd::BorrowedFd;

use super::groups::{self, Place, Request};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{Kind, lookup};
use crate::net::{decide, device, inherited, steer};
use crate::sync::{Mutex, Rank};
use crate::user_mem::{self, UserPtr};
use crate::{log, route, sys};

/// Sockets of which something is noted: more than a program opens and leaves without an address. What is
/// noted of the oldest goes after that; sockets that were closed are not taken out.
const SOCKETS_MAX: usize = 256;
/// Memberships of a socket (net.ipv4.igmp_max_memberships).
const JOINED_MAX: usize = 20;

const MULTICAST_IF: (i32, i32) = (libc::IPPROTO_IP, libc::IP_MULTICAST_IF);

/// An option as it was set.
struct Wish {
    option: (i32, i32),
    value: Vec<u8>,
    place: Place,
    /// Of a membership: what it says.
    request: Option<Request>,
}

struct Early {
    /// SO_COOKIE: no other socket's, whatever number it has.
    cookie: u64,
    wishes: Vec<Wish>,
}

static NOTED: Mutex<VecDeque<Early>> = Mutex::ranked(Rank::Leaf, VecDeque::new());
/// How many are noted, to be read without the lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn cookie(fd: BorrowedFd<'_>) -> Option<u64> {
    sys::option(fd, libc::SOL_SOCKET, libc::SO_COOKIE).map(u64::from_ne_bytes)
}

/// setsockopt(2) on a socket of the kernel's.
///
/// # Errors
/// Native for all but what concerns groups of a UDP socket without an address; else as ip(7) and ipv6(7)
/// have it.
#[inline]
pub(crate) fn set(
    fd: i32,
    (level, name): (i32, i32),
    value: UserPtr,
    length: u32,
    native: impl FnOnce() -> i32,
) -> Outcome<i32> {
    match groups::is_about_groups(level, name) || (level, name) == MULTICAST_IF {
        true => set_group(fd, (level, name), value, length, native),
        false => Err(Exit::Native),
    }
}

#[cold]
fn set_group(
    fd: i32,
    option: (i32, i32),
    value: UserPtr,
    length: u32,
    native: impl FnOnce() -> i32,
) -> Outcome<i32> {
    let plan = route::plan().ok_or(Exit::Native)?;
    if !decide::is_unbound_udp(fd)? {
        return Err(Exit::Native);
    }
    steer::know(plan, sys::borrow(fd));
    let mut room = [0; groups::VALUE_MAX];
    let count = (length as usize).min(groups::wanted(option.0, option.1));
    let bytes = room.get_mut(..count).unwrap_or_default();
    user_mem::read_bytes(value, bytes)?;
    let request = match option {
        MULTICAST_IF => None,
        (level, name) => {
            // What makes no sense is the kernel's to refuse.
            let request = groups::request(level, name, bytes).map_err(|_| Exit::Native)?;
            Some(request)
        }
    };
    let place = match &request {
        Some(request) => request.place,
        None => device::named_place(bytes),
    };
    match place {
        Place::Elsewhere => return Err(Exit::Native),
        Place::Any => {
            // The kernel may have an interface for it, or none.
            let done = native();
            if done != 0 && Errno::current() != Errno::ENODEV {
                return Ok(done);
            }
        }
        Place::Here(_) => {}
    }
    let wish = Wish {
        option,
        value: bytes.to_vec(),
        place,
        request,
    };
    let Some(cookie) = cookie(sys::borrow(fd)) else {
        return Err(Exit::Native);
    };
    let mut noted = NOTED.lock()?;
    let at = match noted.iter().position(|early| early.cookie == cookie) {
        Some(at) => at,
        None => {
            if noted.len() >= SOCKETS_MAX {
                noted.pop_front();
            }
            let wishes = Vec::new();
            noted.push_back(Early { cookie, wishes });
            noted.len() - 1
        }
    };
    COUNT.store(noted.len(), Ordering::Relaxed);
    match noted.get_mut(at) {
        Some(early) => early.note(wish, place == Place::Any).map(|()| 0),
        None => Err(Exit::Native),
    }
}

impl Early {
    /// `is_known`: the kernel has been asked too, and has not refused.
    fn note(&mut self, wish: Wish, is_known: bool) -> Outcome<()> {
        let Some(request) = wish.request else {
            self.wishes.retain(|other| other.option != wish.option);
            self.wishes.push(wish);
            return Ok(());
        };
        let joined = |other: &Wish| other.request.is_some_and(|other| other.is_of(&request));
        let at = self.wishes.iter().position(joined);
        match (request.joins, at) {
            (true, Some(_)) => Err(Errno::EADDRINUSE.into()),
            (true, None) => {
                let memberships = self.wishes.iter().filter(|other| other.request.is_some());
                if memberships.count() >= JOINED_MAX {
                    return Err(Errno::ENOBUFS.into());
                }
                self.wishes.push(wish);
                Ok(())
            }
            (false, Some(at)) => {
                self.wishes.remove(at);
                Ok(())
            }
            (false, None) if is_known => Ok(()),
            (false, None) => Err(Errno::EADDRNOTAVAIL.into()),
        }
    }
}

/// What has been noted of the socket behind a number, whatever is behind it later.
pub(in crate::net) struct Noted {
    cookie: Option<u64>,
}

/// Looks before the socket gets an address.
pub(in crate::net) fn of(fd: i32) -> Noted {
    let cookie = match COUNT.load(Ordering::Relaxed) {
        0 => None,
        _ => cookie(sys::borrow(fd)),
    };
    Noted { cookie }
}

impl Noted {
    /// Whether the socket has chosen an interface of the stack's for what it sends to groups.
    pub(in crate::net) fn sends_on_stack(&self) -> bool {
        let is_chosen =
            |wish: &Wish| wish.request.is_none() && matches!(wish.place, Place::Here(_));
        self.cookie.is_some_and(|cookie| {
            NOTED.lock().is_ok_and(|noted| {
                let mut known = noted.iter().filter(|early| early.cookie == cookie);
                known.any(|early| early.wishes.iter().any(is_chosen))
            })
        })
    }

    /// The socket is about to have an address of the kernel's, or has one of the stack's.
    pub(in crate::net) fn repeat(self, fd: i32) {
        let Some(cookie) = self.cookie else { return };
        let Ok(mut noted) = NOTED.lock() else { return };
        let at = noted.iter().position(|early| early.cookie == cookie);
        let Some(early) = at.and_then(|at| noted.remove(at)) else {
            return;
        };
        COUNT.store(noted.len(), Ordering::Relaxed);
        drop(noted);
        for wish in early.wishes {
            let (level, name) = wish.option;
            if wish.repeat(fd).is_err() {
                log::debug(format_args!(
                    "socket {fd}: option {name} of level {level} does not hold where it has its address"
                ));
            }
        }
    }
}

impl Wish {
    fn repeat(&self, fd: i32) -> Outcome<()> {
        let (level, name) = self.option;
        let Some(file) = lookup(fd) else {
            return match self.place {
                Place::Any => Ok(()), // the kernel has been asked
                _ => Ok(sys::set_option(sys::borrow(fd), level, name, &self.value)?),
            };
        };
        let mut room = [0u8; groups::VALUE_MAX];
        for (byte, value) in room.iter_mut().zip(&self.value) {
            *byte = *value;
        }
        let value = UserPtr::new(room.as_mut_ptr().cast());
        let length = self.value.len() as u32;
        match file.kind() {
            Kind::Stack if self.request.is_some() => {
                groups::set(file, level, name, value, length).map(drop)
            }
            Kind::Stack => device::set(file, (level, name), value, length).map(drop),
            Kind::Inherited => inherited::set(file, fd, level, name, value, length).map(drop),
            _ => Ok(()),
        }
    }
}
