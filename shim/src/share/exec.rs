//! A new program, in this process or in a child: it inherits sockets, and none of our memory. A
//! program that loads this library finds them by itself ([`super::inherit`]); any other reads and writes
//! them as the sockets they are, which have to be shared beforehand.

use core::ffi::c_void;

use rustix::fs::Access;

use super::{broker, inherit, name, owner, program, remote, rights, stack};
use crate::fd::file::Link;
use crate::fd::{File, Kind, lookup, table};
use crate::net::name::Name;
use crate::net::{cells, lend};
use crate::sync::Mutex;
use crate::user_mem::UserPtr;
use crate::{process, sys};

/// A program about to be executed: its path, once somebody wants to know, and its environment.
pub(crate) struct Next<F> {
    /// `None` when there is no such program: nothing will be executed.
    pub(crate) find: F,
    pub(crate) env: UserPtr,
}

impl<F: FnOnce() -> Option<Vec<u8>>> Next<F> {
    /// Whether the program will load this library; `None` when there is none.
    fn loads_us(self) -> Option<bool> {
        Some(program::loads_us(&(self.find)()?, self.env))
    }
}

/// The program takes the place of this one. If the mux of a socket that lives on is ours, a broker
/// goes on as its owner. What comes back is dropped if the program was not executed.
pub(crate) fn before(next: Next<impl FnOnce() -> Option<Vec<u8>>>) -> Option<impl Sized> {
    if !table::is_used() {
        return None;
    }
    if process::is_foreign() {
        before_in_borrowed_memory(next);
        return None;
    }
    let (inherited, of_stack) = (inherited(kcm_at), inherited(lend::lendable));
    let none = inherited.is_empty() && of_stack.is_empty();
    if none && !owner::has_lines() && !cells::is_open() {
        return None;
    }
    let knows = next.loads_us()?;
    make_ready(&inherited, knows);
    lend::before_program(&of_stack, knows);
    broker::at_exec()
}

/// The program is started by a child in which no code of ours runs; `actions` are its file actions.
pub(crate) fn before_child(next: Next<impl FnOnce() -> Option<Vec<u8>>>, actions: *const c_void) {
    if !table::is_used() || process::is_foreign() {
        return;
    }
    let (mut kcm, mut of_stack) = (inherited(kcm_at), inherited(lend::lendable));
    kcm.extend(named_by(actions, kcm_at));
    of_stack.extend(named_by(actions, lend::lendable));
    if kcm.is_empty() && of_stack.is_empty() {
        return;
    }
    if let Some(knows) = next.loads_us() {
        make_ready(&kcm, knows);
        lend::before_program(&of_stack, knows);
    }
}

/// A number and its file, if that is of a certain kind.
type Pick = fn(i32) -> Option<(i32, &'static File)>;

/// Sockets without FD_CLOEXEC.
fn inherited(pick: Pick) -> Vec<(i32, &'static File)> {
    let stays = |fd: &i32| !is_cloexec(*fd);
    let sockets = table::ours_in(0, u32::MAX).filter_map(pick);
    sockets.filter(|(fd, _)| stays(fd)).collect()
}

fn kcm_at(fd: i32) -> Option<(i32, &'static File)> {
    let file = lookup(fd).filter(|file| file.kind() == Kind::Kcm)?;
    Some((fd, file))
}

fn is_cloexec(fd: i32) -> bool {
    let flags = rustix::io::fcntl_getfd(sys::borrow(fd));
    flags.is_ok_and(|flags| flags.contains(rustix::io::FdFlags::CLOEXEC))
}

fn make_ready(sockets: &[(i32, &'static File)], knows_us: bool) {
    for (fd, file) in sockets {
        let ready = match knows_us {
            true if file.link() == Link::Remote => Ok(()),
            true => owner::tie(file, sys::borrow(*fd)),
            false => rights::publish(file, *fd),
        };
        // Another thread may have closed it meanwhile.
        let still_there = || lookup(*fd).is_some_and(|now| core::ptr::eq(now, *file));
        if ready.is_err() && still_there() {
            crate::log::warn("a KCM socket will be silent in the program that inherits it");
        }
    }
}

/// As [`before`] in a process that runs in the memory of another, which may have moved and closed
/// descriptors: what it has is asked of the kernel.
fn before_in_borrowed_memory(next: Next<impl FnOnce() -> Option<Vec<u8>>>) {
    let (mut tied, mut lent) = (Vec::new(), Vec::new());
    inherit::for_each_open(|fd| {
        if is_cloexec(fd) {
            return;
        }
        if let Some(owner) = name::owner_of(sys::borrow(fd)) {
            tied.push((fd, owner));
        } else if let Some(name) = Name::of(sys::borrow(fd)) {
            lent.push((fd, name.owner));
        }
    });
    if tied.is_empty() && lent.is_empty() || next.loads_us() != Some(false) {
        return;
    }
    for (fd, owner) in lent {
        let _ = stack::share_apart(&owner, sys::borrow(fd));
    }
    for (fd, owner) in tied {
        let _ = remote::publish_apart(&owner, sys::borrow(fd));
    }
}

/// Whether a file that may be executed is at this path.
pub(crate) fn is_there(path: &[u8]) -> bool {
    rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

/// Sockets that file actions of posix_spawn(3) put at another number: FD_CLOEXEC does not end them.
/// The actions are named by their address.
static SOURCES: Mutex<Vec<(usize, i32)>> = Mutex::new(Vec::new());

/// An action that duplicates `fd`.
pub(crate) fn note_source(actions: *const c_void, fd: i32) {
    if (kcm_at(fd).is_some() || lend::lendable(fd).is_some())
        && let Ok(mut sources) = SOURCES.lock()
    {
        sources.push((actions.addr(), fd));
    }
}

/// The actions begin, or end.
pub(crate) fn forget_sources(actions: *const c_void) {
    if table::is_used()
        && let Ok(mut sources) = SOURCES.lock()
    {
        sources.retain(|(of, _)| *of != actions.addr());
    }
}

fn named_by(actions: *const c_void, pick: Pick) -> Vec<(i32, &'static File)> {
    let Ok(sources) = SOURCES.lock() else {
        return Vec::new();
    };
    let of_these = sources.iter().filter(|(of, _)| *of == actions.addr());
    of_these.filter_map(|(_, fd)| pick(*fd)).collect()
}
