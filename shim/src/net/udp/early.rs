//! Groups that a UDP socket joined, and the interface it chose for what it sends to them, while it was the
//! kernel's. The kernel does not tell of them, and knows nothing of the stack's addresses, so they are noted
//! as they are set, and repeated when the socket has an address: to the stack, if that one is the stack's.

use core::net::IpAddr;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::VecDeque;

use kcm_stack::{SourceChange, SourceFilter, Stays};
use rustix::fd::BorrowedFd;

use super::filter;
use super::groups::{self, Change, Place, Request};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{Kind, lookup};
use crate::net::{decide, device, errors, inherited, steer};
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
    /// About a group: what it says.
    request: Option<Request>,
}

/// A group that was joined.
struct Member {
    group: IpAddr,
    place: Place,
    filter: SourceFilter,
    /// What makes it one, and then makes its filter.
    wishes: Vec<Wish>,
}

struct Early {
    /// SO_COOKIE: no other socket's, whatever number it has.
    cookie: u64,
    members: Vec<Member>,
    interface: Option<Wish>,
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
    if filter::is_filter(level, name) {
        return set_filter(fd, (level, name), value, length);
    }
    match groups::is_about_groups(level, name) || (level, name) == MULTICAST_IF {
        true => set_group(fd, (level, name), value, length, native),
        false => Err(Exit::Native),
    }
}

/// Whole lists are not noted.
#[cold]
fn set_filter(fd: i32, (level, name): (i32, i32), value: UserPtr, length: u32) -> Outcome<i32> {
    if route::plan().is_none() || !decide::is_unbound_udp(fd)? {
        return Err(Exit::Native);
    }
    match filter::place(level, name, value, length)? {
        Some(Place::Any | Place::Here(_)) => Err(Errno::ENOPROTOOPT.into()),
        _ => Err(Exit::Native),
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
            noted.push_back(Early {
                cookie,
                members: Vec::new(),
                interface: None,
            });
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
            self.interface = Some(wish);
            return Ok(());
        };
        let Request { group, place, .. } = request;
        // Who leaves on any interface leaves where it is.
        let leaves_any = request.change == Change::Leave && place == Place::Any;
        let is_it = |m: &Member| m.group == group && (m.place == place || leaves_any);
        let at = self.members.iter().position(is_it);
        match (request.change, at.and_then(|at| self.members.get_mut(at))) {
            (Change::Join, None) => self.join(request, SourceFilter::ALL, wish),
            (Change::Join, Some(_)) => Err(Errno::EADDRINUSE.into()),
            (Change::Leave, Some(_)) => self.leave(at),
            (Change::Leave, None) if is_known => Ok(()),
            (Change::Leave, None) => Err(Errno::EADDRNOTAVAIL.into()),
            (Change::Source(SourceChange::Join, source), None) => {
                self.join(request, SourceFilter::only(source), wish)
            }
            (Change::Source(..), None) => Err(Errno::EINVAL.into()),
            (Change::Source(change, source), Some(member)) => {
                match member
                    .filter
                    .change(change, source)
                    .map_err(errors::socket)?
                {
                    Stays::No => return self.leave(at),
                    Stays::Yes => {}
                }
                let had = member.wishes.len();
                member.wishes.retain(|other| other.source() != Some(source));
                // Else it takes one back.
                if member.wishes.len() == had {
                    member.wishes.push(wish);
                }
                Ok(())
            }
        }
    }

    fn join(&mut self, request: Request, filter: SourceFilter, wish: Wish) -> Outcome<()> {
        if self.members.len() >= JOINED_MAX {
            return Err(Errno::ENOBUFS.into());
        }
        self.members.push(Member {
            group: request.group,
            place: request.place,
            filter,
            wishes: vec![wish],
        });
        Ok(())
    }

    fn leave(&mut self, at: Option<usize>) -> Outcome<()> {
        at.map(|at| self.members.remove(at));
        Ok(())
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
        let is_chosen = |wish: &Wish| matches!(wish.place, Place::Here(_));
        self.cookie.is_some_and(|cookie| {
            NOTED.lock().is_ok_and(|noted| {
                let mut known = noted.iter().filter(|early| early.cookie == cookie);
                known.any(|early| early.interface.as_ref().is_some_and(is_chosen))
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
        let memberships = early.members.into_iter().flat_map(|member| member.wishes);
        for wish in memberships.chain(early.interface) {
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
    /// The sender it names.
    fn source(&self) -> Option<IpAddr> {
        match self.request?.change {
            Change::Source(_, source) => Some(source),
            Change::Join | Change::Leave => None,
        }
    }

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
