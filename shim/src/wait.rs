//! Sleeping in a blocking call on a KCM socket.
//!
//! The sleeper waits on its own doorbell; the first sleeper of a mux also watches the mux's
//! connections and reads them when they have something. No lock is held, and the sleep is a
//! cancellation point.

#![allow(unsafe_code)]

use core::cell::Cell;
use core::mem::ManuallyDrop;

use kcm_mux::Nanos;
use libc::pollfd;

use crate::epoll::SetStay;
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::interpose::poll::native_ppoll;
use crate::kcm::connections::Few;
use crate::kcm::{Engine, MuxCell};
use crate::net::turns::{self, Turns};
use crate::poll::Watching;
use crate::sync::{DoorbellPool, Lent};
use crate::watch::Watcher;
use crate::{net, own, signal, sys};

static BELLS: DoorbellPool = DoorbellPool::new();

/// Names a doorbell of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BellId(usize);

/// Wakes the thread that sleeps on this bell, if one does.
pub(crate) fn ring(bell: BellId) {
    if let Some(bell) = BELLS.bell(bell.0) {
        bell.ring();
    }
}

/// A doorbell for one sleep.
pub(crate) fn lend() -> Outcome<(Lent, BellId)> {
    let lent = BELLS.lend(sys::floor())?;
    let id = BellId(lent.index());
    if let Some(fd) = lent.bell().raw_fd() {
        own::protect(fd);
    }
    Ok((lent, id))
}

/// The name of a bell that was lent.
pub(crate) fn bell_id(lent: &Lent) -> BellId {
    BellId(lent.index())
}

/// In a forked child, whose one thread sleeps on no bell: the parent's are given up.
pub(crate) fn reset_in_child() {
    HELD.set(None);
    // SAFETY: called in the child of a fork, by its one thread.
    unsafe { BELLS.reset_in_child(true) };
}

/// What a thread that sleeps in recv or send holds.
pub(crate) struct Stay {
    pin: Pin,
    cell: &'static MuxCell,
    bell: Lent,
    /// The mux has stack connections: this thread's part in watching the device.
    _turns: Option<Turns>,
}

impl Stay {
    fn id(&self) -> BellId {
        BellId(self.bell.index())
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let bell = self.id();
        self.pin.0.watch.remove(Watcher::Thread(bell));
        if let Ok(mut engine) = self.cell.lock() {
            engine.leave_sleep(bell);
        }
    }
}

/// Keeps a file from being taken down between two sleeps of one call, as the kernel keeps the
/// socket of a blocked call whose descriptor another thread closes.
pub(crate) struct Pin(&'static File);

impl Pin {
    pub(crate) fn new(file: &'static File) -> Outcome<Self> {
        if file.retain() {
            Ok(Self(file))
        } else {
            Err(Exit::Failed(Errno::EBADF))
        }
    }

    pub(crate) fn file(&self) -> &'static File {
        self.0
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Everything a sleeping thread holds, to be given back when it wakes, is cancelled, or leaves its
/// sleep by longjmp.
pub(crate) enum Held {
    /// Asleep in recv or send.
    Message(Stay),
    /// Asleep on a stack socket.
    Net(net::sleep::Stay),
    /// Asleep in poll or select.
    Files(Watching),
    /// Asleep in epoll_wait.
    Set(SetStay),
}

thread_local! {
    /// What this thread holds in its sleep. In thread-local storage and without a destructor of its
    /// own: a cancelled thread never comes back to the frame that made it, and gives it back when it
    /// exits.
    static HELD: Cell<Option<ManuallyDrop<Held>>> = const { Cell::new(None) };
}

/// Gives back what this thread holds from a sleep that it never woke from.
pub(crate) fn abandon() {
    if let Some(held) = HELD.take() {
        drop(ManuallyDrop::into_inner(held));
    }
}

/// Runs `sleep`, a cancellation point, with `held` where the end of the thread finds it. Returns what
/// came of the sleep, and `held` unless a handler that slept in between has given it back.
pub(crate) fn holding<T>(held: Held, sleep: impl FnOnce() -> T) -> (T, Option<Held>) {
    abandon(); // a longjmp out of a handler may have left one
    HELD.set(Some(ManuallyDrop::new(held)));
    signal::mind_thread_exit();
    let slept = sleep();
    (slept, HELD.take().map(ManuallyDrop::into_inner))
}

/// Sleeps until something may have changed for `file`, or until `until`. `pin` holds the file when
/// this returns, and the caller keeps it until it is done with the file. `ready` is asked once more
/// when the thread can already be woken, so that nothing falls between.
///
/// # Errors
/// EAGAIN when `until` has passed; EINTR when a signal handler ran that was installed without
/// SA_RESTART, or any handler while a timeout is set (kcm-semantics §8).
pub(crate) fn sleep(
    file: &'static File,
    until: Option<Nanos>,
    pin: &mut Option<Pin>,
    ready: impl Fn(&mut Engine) -> bool,
) -> Outcome<()> {
    abandon(); // what a longjmp has left: it may be this very mux that it keeps watched by nobody
    let cell = file.mux()?;
    let (bell, id) = lend()?;
    let mut engine = cell.lock()?;
    let stay = Pin::new(file)?;
    if ready(&mut engine) {
        *pin = Some(stay);
        return Ok(());
    }
    bell.arm();
    file.watch.add(Watcher::Thread(id));
    let mut fds = Few::new();
    let mut conns = Few::new();
    fds.extend(bell.bell().raw_fd().map(readable));
    if engine.enter_sleep(id, file.kcm_id()) {
        let interest = engine.interest();
        conns = interest.ids;
        fds.extend(interest.fds);
    }
    let timer = engine.mux.next_deadline();
    let mut due = None;
    let mut turns = None;
    if engine.conns.any_on_stack() {
        let duty = turns::sleep(engine.conns.engines(), id, None);
        fds.extend(duty.entries().iter().copied());
        due = duty.until;
        turns = Some(duty.turns());
    }
    drop(engine);
    *pin = None; // what stands on this stack is lost if the thread is cancelled
    let stay = Held::Message(Stay {
        pin: stay,
        cell,
        bell,
        _turns: turns,
    });
    let wake_at = [until, timer, due].into_iter().flatten().min();
    let (slept, held) = holding(stay, || native_ppoll(&mut fds, wake_at));
    if let Some(Held::Message(stay)) = &held {
        let rung = fds.first().is_some_and(|bell| bell.revents != 0);
        stay.bell.disarm(rung);
    }
    let now = sys::now();
    if let Ok(mut engine) = cell.lock() {
        for (psock, fd) in conns.into_iter().zip(fds.iter().skip(1)) {
            if fd.revents != 0 {
                engine.note(psock, fd.revents);
            }
        }
        engine.expire(now);
        if engine.conns.any_on_stack() {
            engine.look(); // frames that came tell of more
        }
        engine.pump_known();
    }
    *pin = Some(Pin::new(file)?);
    drop(held);
    match slept {
        Ok(_) if until.is_some_and(|at| at <= now) => Err(Exit::Failed(Errno::EAGAIN)),
        Ok(_) => Ok(()),
        Err(Errno::EINTR) if until.is_none() && signal::handlers_restart() => Ok(()),
        Err(err) => Err(Exit::Failed(err)),
    }
}

/// An entry that waits for input.
pub(crate) fn readable(fd: i32) -> pollfd {
    pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}
