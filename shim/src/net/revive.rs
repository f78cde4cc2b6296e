//! Listeners that outlive the engine they were opened in. A process that uses an inherited listener, or has
//! one as a guest, watches the owner. When that is killed, the first to open an engine with the address goes
//! on with what it holds itself, and with what the others tell it; what comes is handed over at the same
//! AF_UNIX sockets as before, so that whoever waits there need not know.

use kcm_mux::Nanos;

use super::guest::{self, Host};
use super::inherited::Inherited;
use super::name::Name;
use super::open::{self, Place};
use super::{host, inherited};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::file::Body;
use crate::fd::{File, Kind, lookup, table};
use crate::route::{self, OnFailure};
use crate::share::guest::{Wish, ask};
use crate::share::{name, owner};
use crate::sync::Mutex;
use crate::{housekeeper, log, own, signal, sys};

/// An owner that is watched.
struct Watch {
    /// What the names of its listeners call it, whoever goes on with them now.
    of: Vec<u8>,
    /// A connection to the process that has them: its end is that one's. `None` while a thread looks for
    /// whom to connect to.
    line: Option<own::Kept>,
}

static WATCHES: Mutex<Vec<Watch>> = Mutex::new(Vec::new());

/// The process uses a listener of this owner.
pub(super) fn watch(of: &[u8]) {
    if !owner::is_ours(of) && housekeeper::start().is_ok() {
        follow(of, of);
    }
}

/// Watches the process that can be called at `at`, unless one is watched that has the listeners of `of`.
fn follow(of: &[u8], at: &[u8]) {
    if enlist(of) && connect(of, at).is_err() {
        look_for(of, at);
    }
}

/// Whether the owner was not watched.
fn enlist(of: &[u8]) -> bool {
    let Ok(mut watches) = WATCHES.lock() else {
        return false;
    };
    let is_new = !watches.iter().any(|watch| watch.of == of);
    if is_new {
        let (of, line) = (of.to_vec(), None);
        watches.push(Watch { of, line });
    }
    is_new
}

fn forget(of: &[u8]) {
    if let Ok(mut watches) = WATCHES.lock() {
        watches.retain(|watch| watch.of != of || watch.line.is_some());
    }
}

/// Connects to the process that can be called at `at`, which has the listeners of `of`.
///
/// # Errors
/// ECONNREFUSED: it has ended. Others pass: as many as may wait to be let in there do, or there is no
/// descriptor left.
fn connect(of: &[u8], at: &[u8]) -> Outcome<()> {
    let _in_flight = owner::in_flight();
    let line = own::keep(name::socket()?);
    rustix::fs::fcntl_setfl(&line, rustix::fs::OFlags::NONBLOCK)?;
    name::connect(&line, at)?;
    let mut watches = WATCHES.lock()?;
    if let Some(watch) = watches.iter_mut().find(|watch| watch.of == of) {
        let line = watch.line.insert(line);
        housekeeper::add_owner(line);
    }
    Ok(())
}

/// Some owner that is watched has ended.
pub(crate) fn on_end() {
    let has_ended = |line: &mut own::Kept| {
        sys::poll_bits(sys::number(line), 0) & (libc::POLLHUP | libc::POLLERR) != 0
    };
    let Ok(mut watches) = WATCHES.lock() else {
        return;
    };
    let end = |watch: &mut Watch| Some((watch.of.clone(), watch.line.take_if(has_ended)?));
    let ended: Vec<_> = watches.iter_mut().filter_map(end).collect();
    drop(watches);
    for (of, line) in ended {
        drop(line);
        look_for(&of, &of);
    }
}

/// Has a thread look for who has the listeners of `of`, beginning with whoever can be called at `at`. Others would
/// have to wait for the housekeeper while who has the address by now is asked, and may be stopped; and the call
/// that uses a listener may be one that does not wait.
fn look_for(of: &[u8], at: &[u8]) {
    let (name, all) = (c"kcmshim-revive", (of.to_vec(), at.to_vec()));
    if signal::spawn_quiet(name, move || search(&all.0, all.1)).is_err() {
        search(of, at.to_vec());
    }
}

/// Looks for who has the listeners of `of` until that one is watched, or nobody needs it.
fn search(of: &[u8], mut at: Vec<u8>) {
    let mut pause = Pause::default();
    loop {
        match connect(of, &at) {
            Ok(()) => return,
            Err(Exit::Failed(Errno::ECONNREFUSED)) => match go_on(of) {
                Some(claim) => at = claim,
                None => return forget(of),
            },
            Err(_) if listeners_of(of).is_empty() => return forget(of),
            Err(_) => pause.take(),
        }
    }
}

/// What somebody needs who shall be let run: longer each time.
struct Pause {
    nanos: i64,
}

impl Default for Pause {
    fn default() -> Self {
        Self { nanos: 1_000_000 }
    }
}

impl Pause {
    fn take(&mut self) {
        const LONGEST_NS: i64 = 500_000_000;
        sys::nap(self.nanos);
        self.nanos = (self.nanos * 2).min(LONGEST_NS);
    }
}

/// Finds an owner for the listeners of one that has ended, this process if need be. The claim of another that
/// has those which are still called `of`.
fn go_on(of: &[u8]) -> Option<Vec<u8>> {
    let mut pause = Pause::default();
    let listeners = loop {
        let listeners = listeners_of(of);
        if listeners.is_empty() {
            return None;
        }
        // Without a lock that others need, for however long that one is stopped.
        if !{ route::plan().into_iter() }.any(guest::is_silent) {
            break listeners;
        }
        pause.take();
    };
    match find_owner(&listeners, BACKLOG) {
        Ok(Place::With(host)) => {
            follow_all(&listeners, &host);
            (!listeners_of(of).is_empty()).then_some(host.claim)
        }
        Ok(Place::Here) => None,
        Err(_) => {
            log::warn(
                "a listener whose owner was killed stays silent: nobody can have its address",
            );
            None
        }
    }
}

/// Finds an owner for what listens at `fd` since just now, and had one that has ended, or is about to.
pub(super) fn listen(file: &'static File, fd: i32, backlog: i32) -> Outcome<()> {
    let listener = [(fd, file)];
    if let Place::With(host) = find_owner(&listener, backlog)? {
        follow_all(&listener, &host);
    }
    Ok(())
}

/// The process that has the listeners now is watched by what they are called, a listener of the kernel's
/// differently from before.
fn follow_all(listeners: &[(i32, &'static File)], host: &Host) {
    for (_, file) in listeners {
        if let Ok(known) = inherited::known(file) {
            follow(&known.name.owner, &host.claim);
        }
    }
}

/// What the first owner's listener had is not known to those who have copies.
const BACKLOG: i32 = kcm_stack::limits::BACKLOG_MAX as i32;

/// An owner for these listeners, this process if need be.
fn find_owner(listeners: &[(i32, &'static File)], backlog: i32) -> Outcome<Place> {
    /// Many times what a process takes to end, and its device to be free.
    const PATIENCE: Nanos = 10_000_000_000;
    let plan = route::plan().ok_or(Errno::EIO)?;
    let end = sys::now().saturating_add(PATIENCE);
    let mut pause = Pause::default();
    loop {
        if let Ok(place) = open::open(plan, OnFailure::Fail(libc::EIO))
            && { listeners.iter() }.all(|(fd, file)| serve(&place, *fd, file, backlog).is_ok())
        {
            return Ok(place);
        }
        if sys::now() >= end {
            return Err(Errno::EIO.into());
        }
        pause.take();
    }
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
    let called = match place {
        Place::Here => {
            let _in_flight = owner::in_flight(); // a child of a fork would keep the copy, and the listener
            let copy = sys::dup_high(sys::borrow(fd))?;
            host::give(&wish, Some(&copy))?.ok_or(Errno::EIO)?.name
        }
        Place::With(host) => ask(&host.claim, &wish, Some(sys::borrow(fd)))?.name,
    };
    if known.is_kernels
        && let Some(name) = Name::parse(&called)
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
