//! Sleeping in a blocking call on a stack socket: on a doorbell, and on the device if no other thread
//! watches it. No lock is held, and the sleep is a cancellation point.

use core::sync::atomic::{AtomicU64, Ordering};

use kcm_mux::Nanos;

use super::cells::{self, ENGINES_MAX};
use super::engine::Engine;
use super::turns::{self, Duty, Turns};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::interpose::poll::native_ppoll;
use crate::sync::Lent;
use crate::wait::{self, BellId, Held, Pin};
use crate::watch::Watcher;
use crate::{signal, sys};

/// What a thread asleep on a stack socket holds.
pub(crate) struct Stay {
    file: &'static File,
    /// Keeps the file; a close that lingers has none to keep.
    pin: Option<Pin>,
    _turns: Turns,
    bell: Lent,
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.file.watch.remove(Watcher::Thread(self.id()));
    }
}

impl Stay {
    fn id(&self) -> BellId {
        wait::bell_id(&self.bell)
    }
}

/// How long a thread that waits looks at the device itself before it sleeps, in nanoseconds
/// (`KCMSHIM_STACK_BUSY_POLL`).
static BUSY_POLL: AtomicU64 = AtomicU64::new(0);

pub(crate) fn set_busy_poll(length: Nanos) {
    BUSY_POLL.store(length, Ordering::Relaxed);
}

/// Looks at the device until `done`, for as long as the user has asked to. Whether it is done.
fn busy_poll(file: &File, until: Option<Nanos>, mut done: impl FnMut() -> bool) -> bool {
    let length = BUSY_POLL.load(Ordering::Relaxed);
    if length == 0 {
        return false;
    }
    let end = sys::now().saturating_add(length);
    let end = until.map_or(end, |until| until.min(end));
    while sys::now() < end {
        turns::look(file.engines());
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    false
}

/// Sleeps until something may have changed for `file`, or until `until`. `pin` holds the file when
/// this returns. `ready` is asked once more when the thread can already be woken.
///
/// # Errors
/// `EAGAIN` when `until` has passed; `EINTR` as signal(7) has it for sockets.
pub(crate) fn until(
    file: &'static File,
    until: Option<Nanos>,
    pin: &mut Option<Pin>,
    ready: impl FnMut(&mut Engine) -> bool,
) -> Outcome<()> {
    beside(file, None, until, pin, ready)
}

/// As [`until`](fn@until), or until the descriptor `beneath` can be read.
///
/// # Errors
/// As [`until`](fn@until).
pub(crate) fn beside(
    file: &'static File,
    beneath: Option<i32>,
    until: Option<Nanos>,
    pin: &mut Option<Pin>,
    mut ready: impl FnMut(&mut Engine) -> bool,
) -> Outcome<()> {
    let spun = busy_poll(file, until, || {
        file.engines().cells().any(|cell| match cell.lock() {
            Ok(mut engine) => ready(&mut engine),
            Err(_) => true,
        })
    });
    if pin.is_none() {
        *pin = Some(Pin::new(file)?);
    }
    if spun {
        return Ok(());
    }
    let slept = once(file, pin, beneath, until, ready);
    if pin.is_none() {
        *pin = Some(Pin::new(file)?); // a handler that slept in between has given it back
    }
    slept
}

/// As [`until`](fn@until) for a file whose last reference the caller has.
pub(crate) fn unpinned(
    file: &'static File,
    until: Nanos,
    mut ready: impl FnMut(&mut Engine) -> bool,
) -> Outcome<()> {
    loop {
        once(file, &mut None, None, Some(until), &mut ready)?;
        let mut engine = cells::lock(file)?;
        if ready(&mut engine) {
            return Ok(());
        }
    }
}

/// `pin` is the sleep's, whatever ends that, and comes back with it: where the number is closed meanwhile it is
/// all that keeps the file, and what has taken the socket's place there.
fn once(
    file: &'static File,
    pin: &mut Option<Pin>,
    beneath: Option<i32>,
    until: Option<Nanos>,
    mut ready: impl FnMut(&mut Engine) -> bool,
) -> Outcome<()> {
    wait::abandon();
    let (bell, id) = wait::lend()?;
    let mut engine = cells::lock(file)?;
    engine.pump();
    if ready(&mut engine) {
        return Ok(());
    }
    bell.arm();
    file.watch.add(Watcher::Thread(id));
    let mut duty = Duty::none(id);
    duty.enter(&mut engine);
    let home = engine.index;
    drop(engine);
    // A listener may be in several.
    let mut is_ready = false;
    for cell in file.engines().cells().filter(|cell| cell.index() != home) {
        if let Ok(mut engine) = cell.lock() {
            engine.pump();
            is_ready |= ready(&mut engine);
            duty.enter(&mut engine);
        }
    }
    let mut fds = [wait::readable(-1); 2 + ENGINES_MAX];
    if let Some(fd) = bell.bell().raw_fd() {
        fds[0].fd = fd;
    }
    if let Some(beneath) = beneath {
        fds[1].fd = beneath;
    }
    let devices = duty.entries();
    let used = 2 + devices.len();
    fds[2..used].copy_from_slice(devices);
    let due = duty.until;
    let mut stay = Stay {
        file,
        pin: pin.take(),
        _turns: duty.turns(),
        bell,
    };
    if is_ready {
        stay.bell.disarm(true);
        *pin = stay.pin.take();
        return Ok(());
    }
    let fds = &mut fds[..used];
    let stay = Held::Net(stay);
    let wake_at = [until, due].into_iter().flatten().min();
    let (slept, mut held) = wait::holding(stay, || native_ppoll(fds, wake_at));
    if let Some(Held::Net(stay)) = &mut held {
        stay.bell.disarm(fds[0].revents != 0);
        *pin = stay.pin.take();
    }
    turns::look(file.engines());
    drop(held);
    match slept {
        Ok(_) if until.is_some_and(|at| at <= sys::now()) => Err(Exit::Failed(Errno::EAGAIN)),
        Ok(_) => Ok(()),
        Err(Errno::EINTR) if until.is_none() && signal::handlers_restart() => Ok(()),
        Err(err) => Err(Exit::Failed(err)),
    }
}
