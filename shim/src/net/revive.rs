//! Listeners that outlive the engine they were opened in. A process that uses an inherited listener, or has
//! one as a guest, watches the owner. When that is killed, the first to open an engine with the address goes
//! on with what it holds itself, and with what the others tell it; what comes is handed over at the same
//! AF_UNIX sockets as before, so that whoever waits there need not know.

use rustix::fd::OwnedFd;

use super::inherited::Inherited;
use super::name::Name;
use super::open::{self, Place};
use super::{guest, host, inherited};
use crate::errno::{Errno, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::route::{self, OnFailure};
use crate::share::guest::{Given, Wish, ask};
use crate::share::{name, owner};
use crate::sync::Mutex;
use crate::{housekeeper, log, own, sys};

/// An owner that is watched.
struct Watch {
    /// What the names of its listeners call it, whoever goes on with them now.
    of: Vec<u8>,
    /// A connection to the process that has them: its end is that one's.
    line: OwnedFd,
}

static WATCHES: Mutex<Vec<Watch>> = Mutex::new(Vec::new());

/// The process uses a listener of this owner.
pub(super) fn watch(of: &[u8]) {
    if owner::is_ours(of) || housekeeper::start().is_err() || is_watched(of) {
        return;
    }
    if connect(of, of).is_err() {
        go_on(of);
    }
}

fn is_watched(of: &[u8]) -> bool {
    let watches = WATCHES.lock();
    watches.is_ok_and(|watches| watches.iter().any(|watch| watch.of == of))
}

/// Watches the process that can be called at `at`.
fn connect(of: &[u8], at: &[u8]) -> Outcome<()> {
    let _in_flight = owner::in_flight();
    let line = sys::raise(name::socket()?);
    rustix::fs::fcntl_setfl(&line, rustix::fs::OFlags::NONBLOCK)?;
    name::connect(&line, at)?;
    own::protect(sys::number(&line));
    housekeeper::add_owner(&line);
    let of = of.to_vec();
    WATCHES.lock()?.push(Watch { of, line });
    Ok(())
}

/// Some owner that is watched has ended.
pub(crate) fn on_end() {
    let Ok(mut watches) = WATCHES.lock() else {
        return;
    };
    let has_ended = |watch: &mut Watch| {
        sys::poll_bits(sys::number(&watch.line), 0) & (libc::POLLHUP | libc::POLLERR) != 0
    };
    let ended: Vec<Watch> = watches.extract_if(.., has_ended).collect();
    drop(watches);
    for watch in ended {
        own::unprotect(sys::number(&watch.line));
        drop(watch.line);
        go_on(&watch.of);
    }
}

/// Finds an owner for the listeners of one that has ended, this process if need be.
fn go_on(of: &[u8]) {
    let listeners = listeners_of(of);
    if !listeners.is_empty() && find_owner(&listeners, BACKLOG).is_err() {
        log::warn("a listener whose owner was killed stays silent: nobody can have its address");
    }
}

/// Finds an owner for what listens at `fd` since just now, and had one that has ended, or is about to.
pub(super) fn listen(file: &'static File, fd: i32, backlog: i32) -> Outcome<()> {
    find_owner(&[(fd, file)], backlog)
}

/// What the first owner's listener had is not known to those who have copies.
const BACKLOG: i32 = kcm_stack::limits::BACKLOG_MAX as i32;

/// An owner for these listeners, this process if need be.
fn find_owner(listeners: &[(i32, &'static File)], backlog: i32) -> Outcome<()> {
    /// What a process takes to end, and its device to be free.
    const TRIES: u32 = 40;
    const AGAIN_NS: i64 = 50_000_000;
    let plan = route::plan().ok_or(Errno::EIO)?;
    for _ in 0..TRIES {
        if let Ok(place) = open::open(plan, OnFailure::Fail(libc::EIO))
            && { listeners.iter() }.all(|(fd, file)| serve(&place, *fd, file, backlog).is_ok())
        {
            if let Place::With(host) = &place {
                for (_, file) in listeners {
                    // A listener of the kernel's is called differently from now on.
                    if let Ok(known) = inherited::known(file)
                        && !is_watched(&known.name.owner)
                    {
                        let _ = connect(&known.name.owner, &host.claim);
                    }
                }
            }
            return Ok(());
        }
        sys::nap(AGAIN_NS);
    }
    Err(Errno::EIO.into())
}

/// The listeners of an owner that this process holds, one number of each.
fn listeners_of(of: &[u8]) -> Vec<(i32, &'static File)> {
    let is_one = |known: &Inherited| known.name.is_listener() && known.name.owner == of;
    let mut found: Vec<(i32, &'static File)> = Vec::new();
    for fd in table::ours_in(0, u32::MAX) {
        if let Some(file) = lookup(fd).filter(|file| file.kind() == Kind::Inherited)
            && matches!(file.body.lock().as_deref(), Ok(Body::Inherited(known, _)) if is_one(known))
            && found.iter().all(|(_, known)| !core::ptr::eq(*known, file))
        {
            found.push((fd, file));
        }
    }
    found
}

/// The listener behind `fd` gets the engine at `place`.
fn serve(place: &Place, fd: i32, file: &'static File, backlog: i32) -> Outcome<()> {
    let known = inherited::known(file)?;
    if !rustix::net::sockopt::socket_acceptconn(sys::borrow(fd))? {
        return Ok(()); // only bound; it is told when it is used
    }
    let wish = Wish {
        local: known.name.local,
        backlog,
        ..guest::wish_to_listen(known.name.v6)
    };
    let given: Given = match place {
        Place::Here => {
            let _in_flight = owner::in_flight(); // a child of a fork would keep the copy, and the listener
            let copy = sys::dup_high(sys::borrow(fd))?;
            host::give(&wish, Some(&copy))?.ok_or(Errno::EIO)?
        }
        Place::With(host) => ask(&host.claim, &wish, Some(sys::borrow(fd)))?,
    };
    if known.is_kernels
        && let Some(name) = Name::parse(&given.name)
        && let Ok(Body::Inherited(known, _)) = file.body.lock().as_deref_mut()
    {
        known.name = name;
    }
    Ok(())
}

/// Holds still for the length of a fork.
pub(crate) fn freeze() -> impl Sized {
    WATCHES.lock().ok()
}

/// In a forked child, which watches for itself. The lines are closed with all others of ours.
pub(crate) fn reset_in_child() {
    if let Ok(mut watches) = WATCHES.lock() {
        core::mem::forget(core::mem::take(&mut *watches));
    }
}
