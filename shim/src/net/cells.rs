//! The engines of the process, each behind a lock of its own, and the threads that sleep on them. A
//! process has one, unless its interfaces have several queues: then engine k has queue k of each, and a
//! socket lives in one of them ([`of`]).

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kcm_mux::Nanos;
use kcm_stack::Instant;
use libc::pollfd;

use super::engine::{Engine, instant};
use super::socket::Socket;
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::sync::{Guard, Mutex, Rank, RawMutex};
use crate::wait::BellId;
use crate::{housekeeper, sys};

/// Most engines of a process: a [`File`] has four bits for the one it lives in.
pub(crate) const ENGINES_MAX: usize = 16;

/// Where an engine lives. Never freed.
#[repr(align(128))] // two cache lines, which processors fetch together
pub(crate) struct NetCell {
    engine: Mutex<Option<Engine>>,
    /// Which of [`CELLS`] this is.
    index: u8,
    /// Whether `engine` is there, readable without the lock.
    open: AtomicBool,
    /// Counts rounds made by the program's own threads: the housekeeper stays out of the way while
    /// it moves.
    passes: AtomicU32,
    /// When the engine last said it has something to do by itself.
    due: AtomicU64,
}

static CELLS: [NetCell; ENGINES_MAX] = {
    let mut cells = [const { NetCell::new() }; ENGINES_MAX];
    let mut at = 0;
    while at < ENGINES_MAX {
        cells[at].index = at as u8;
        at += 1;
    }
    cells
};

/// The engine that is there if any is: it speaks for the host, and has sockets that have no address yet.
#[inline]
pub(crate) fn first() -> &'static NetCell {
    &CELLS[0]
}

/// Whether the process has engines.
#[inline]
pub(crate) fn is_open() -> bool {
    first().is_open()
}

/// The engines that are there.
pub(crate) fn all() -> impl Iterator<Item = &'static NetCell> {
    CELLS.iter().take_while(|cell| cell.is_open())
}

/// The engine of this index, of those there may be.
pub(crate) fn at(index: u8) -> &'static NetCell {
    &CELLS[usize::from(index) % ENGINES_MAX]
}

/// Where a stack socket lives.
#[inline]
pub(crate) fn of(file: &File) -> &'static NetCell {
    at(file.net_engine())
}

/// The engine of a stack socket, locked.
///
/// # Errors
/// As [`NetCell::lock`].
#[inline]
pub(crate) fn lock(file: &File) -> Outcome<EngineGuard> {
    loop {
        let cell = of(file);
        let engine = cell.lock()?;
        if core::ptr::eq(cell, of(file)) {
            return Ok(engine);
        }
        // The socket has moved meanwhile.
    }
}

/// Holds every engine still for the length of a fork.
pub(crate) fn freeze() -> impl Sized {
    // Others are opened, if at all, under the lock of the first.
    core::array::from_fn::<_, ENGINES_MAX, _>(|at| {
        let cell = &CELLS[at];
        (at == 0 || cell.is_open()).then(|| cell.engine.lock().ok())
    })
}

/// In a forked child: the engines stay with the parent.
pub(crate) fn reset_in_child() {
    for cell in &CELLS {
        cell.open.store(false, Ordering::Release);
        if let Ok(mut engine) = cell.engine.lock() {
            core::mem::forget(engine.take()); // its descriptors are closed as any of ours
        }
    }
}

impl NetCell {
    const fn new() -> Self {
        Self {
            engine: Mutex::ranked(Rank::Net, None),
            index: 0,
            open: AtomicBool::new(false),
            passes: AtomicU32::new(0),
            due: AtomicU64::new(0),
        }
    }

    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    /// The engine, locked.
    ///
    /// # Errors
    /// `EBADF` when there is none, `EAGAIN` when this very thread holds it already: a signal
    /// handler came in between.
    #[inline]
    pub(crate) fn lock(&'static self) -> Outcome<EngineGuard> {
        let guard = self.engine.lock()?;
        if guard.is_none() {
            return Err(Errno::EBADF.into());
        }
        Ok(EngineGuard {
            guard,
            cell: self,
            now: Cell::new(0),
        })
    }

    /// Whether there is an engine.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Puts the engine in that `make` makes, unless one is there.
    pub(crate) fn open_with<E>(
        &'static self,
        make: impl FnOnce() -> Result<Engine, E>,
    ) -> Outcome<Result<(), E>> {
        if self.is_open() {
            return Ok(Ok(()));
        }
        let mut engine = self.engine.lock()?;
        if engine.is_none() {
            match make() {
                Ok(made) => *engine = Some(made),
                Err(why) => return Ok(Err(why)),
            }
            self.open.store(true, Ordering::Release);
        }
        Ok(Ok(()))
    }

    pub(crate) fn passes(&self) -> u32 {
        self.passes.load(Ordering::Relaxed)
    }

    /// When the engine has something to do by itself, as of the last round.
    pub(crate) fn due(&self) -> Nanos {
        self.due.load(Ordering::Relaxed)
    }

    /// Moves frames for a thread of the program that is about to look at its files.
    pub(crate) fn look(&'static self) {
        if self.is_open()
            && let Ok(mut engine) = self.lock()
        {
            engine.pump();
        }
    }
}

/// The engine, locked. Frames it has to send leave, and waiting threads hear, when it is dropped.
pub(crate) struct EngineGuard {
    guard: Guard<'static, RawMutex, Option<Engine>>,
    cell: &'static NetCell,
    /// When it was last looked at the clock, 0 for not yet.
    now: Cell<Nanos>,
}

impl core::ops::Deref for EngineGuard {
    type Target = Engine;
    #[inline]
    fn deref(&self) -> &Engine {
        match &*self.guard {
            Some(engine) => engine,
            None => unreachable!("checked when the lock was taken"),
        }
    }
}

impl core::ops::DerefMut for EngineGuard {
    #[inline]
    fn deref_mut(&mut self) -> &mut Engine {
        match &mut *self.guard {
            Some(engine) => engine,
            None => unreachable!("checked when the lock was taken"),
        }
    }
}

impl Drop for EngineGuard {
    fn drop(&mut self) {
        self.settle();
    }
}

impl EngineGuard {
    /// Adds a socket, whose file is told where it lives.
    pub(crate) fn enlist(&mut self, socket: Socket) {
        let file = socket.file;
        let index = self.add(socket);
        file.set_net_place(self.cell.index, index);
    }

    /// The time at which the lock was taken, or the device last looked at.
    #[inline]
    pub(crate) fn now(&self) -> Instant {
        instant(self.nanos())
    }

    fn nanos(&self) -> Nanos {
        if self.now.get() == 0 {
            self.now.set(sys::now());
        }
        self.now.get()
    }

    /// Moves frames both ways, on behalf of a thread of the program.
    pub(crate) fn pump(&mut self) {
        self.cell.passes.fetch_add(1, Ordering::Relaxed);
        self.look();
    }

    /// Moves frames both ways, on behalf of nobody who would answer them.
    pub(crate) fn serve(&mut self) {
        self.look();
        self.release_acks();
    }

    fn look(&mut self) {
        self.now.set(sys::now());
        let now = self.now.get();
        self.exchange(now);
    }

    /// The program has nothing to say for now that acknowledgements could go with.
    fn release_acks(&mut self) {
        let now = self.now();
        self.stack.tcp_release_acks(now);
    }

    /// Sends what is to be sent, and passes on what the engine has to say.
    fn settle(&mut self) {
        loop {
            if self.stack.has_output() {
                let now = self.nanos();
                self.flush(now);
            }
            if let Some(at) = self.tell_all() {
                self.cell.due.store(at, Ordering::Relaxed);
                housekeeper::wake_by(at);
            }
            let due = self.take_due_relays();
            if due.is_empty() {
                return;
            }
            for number in due {
                self.move_relay(number);
            }
        }
    }
}

/// A thread asleep on files of the engine. Dropping it ends that.
pub(crate) struct Turn {
    cell: &'static NetCell,
    bell: BellId,
}

/// What a sleeping thread watches for the engine.
pub(crate) struct Duty {
    pub(crate) turn: Turn,
    /// The device, if it falls to this thread.
    pub(crate) entry: Option<pollfd>,
    /// When the engine has something to do.
    pub(crate) until: Option<Nanos>,
}

impl NetCell {
    /// The thread with this bell goes to sleep, perhaps once more after `before`. `None` without an
    /// engine.
    pub(crate) fn sleep(&'static self, bell: BellId, before: Option<Turn>) -> Option<Duty> {
        if !self.is_open() {
            return None;
        }
        let mut engine = self.lock().ok()?;
        if let Some(before) = before {
            engine.rename_sleeper(before.bell, bell);
            core::mem::forget(before);
        } else {
            engine.enter_sleep(bell);
        }
        Some(engine.begin_sleep(bell))
    }
}

impl EngineGuard {
    /// As [`NetCell::sleep`], for a thread that has entered.
    pub(crate) fn begin_sleep(&mut self, bell: BellId) -> Duty {
        let leads = self.is_led_by(bell);
        let turn = Turn {
            cell: self.cell,
            bell,
        };
        // What is sent when the lock is given back is part of the answer.
        self.release_acks();
        self.settle();
        Duty {
            turn,
            entry: leads.then(|| self.device_entry()).flatten(),
            until: leads.then(|| self.next_deadline()).flatten(),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Ok(mut engine) = self.cell.lock() {
            engine.leave_sleep(self.bell);
        }
    }
}
