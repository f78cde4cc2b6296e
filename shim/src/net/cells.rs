//! The engines of the process, each behind a lock of its own. A process has one, unless its interfaces
//! have several queues: then engine k has queue k of each, and a socket lives in one of them ([`of`]);
//! only a listener may be in several ([`super::listeners`]). Nobody waits for an engine while it has
//! another.

use core::cell::Cell;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use kcm_mux::Nanos;
use kcm_stack::Instant;

use super::engine::{Engine, instant};
use super::listeners;
use super::socket::Socket;
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::route::QUEUES_MAX;
use crate::sync::{Guard, Mutex, Rank, RawMutex, Together};
use crate::{housekeeper, sys};

/// Most engines of a process: a [`File`] has four bits for the one it lives in.
pub(crate) const ENGINES_MAX: usize = 16;
const _: () = assert!(QUEUES_MAX as usize <= ENGINES_MAX);

/// Where an engine lives. Never freed.
#[repr(align(128))] // two cache lines, which processors fetch together
pub(crate) struct NetCell {
    engine: Mutex<Option<Engine>>,
    /// Which of [`CELLS`] this is.
    index: u8,
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

/// How many there are.
static COUNT: AtomicU8 = AtomicU8::new(0);

/// Some of the engines, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Engines(u16);
const _: () = assert!(ENGINES_MAX <= u16::BITS as usize);

impl Engines {
    pub(crate) const NONE: Self = Self(0);
    pub(crate) const ALL: Self = Self(u16::MAX);

    pub(crate) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u16 {
        self.0
    }

    #[inline]
    pub(crate) const fn one(index: u8) -> Self {
        Self(1 << (index as usize % ENGINES_MAX))
    }

    #[inline]
    pub(crate) const fn has(self, index: u8) -> bool {
        self.0 & Self::one(index).0 != 0
    }

    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Those of them that are there.
    #[inline]
    pub(crate) fn cells(self) -> impl Iterator<Item = &'static NetCell> {
        all().filter(move |cell| self.has(cell.index))
    }
}

impl core::ops::BitOr for Engines {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl core::ops::BitOrAssign for Engines {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The engine that is there if any is: it speaks for the host, and has sockets that have no address yet.
#[inline]
pub(crate) fn first() -> &'static NetCell {
    &CELLS[0]
}

/// Whether the process has engines.
#[inline]
pub(crate) fn is_open() -> bool {
    count() != 0
}

/// How many engines there are.
#[inline]
pub(crate) fn count() -> u8 {
    COUNT.load(Ordering::Acquire)
}

#[inline]
pub(crate) fn are_several() -> bool {
    count() > 1
}

/// The engines that are there.
#[inline]
pub(crate) fn all() -> impl Iterator<Item = &'static NetCell> {
    CELLS.iter().take(usize::from(count()))
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

/// Puts the engines in that `make` makes, unless they are there.
pub(crate) fn open_with<E>(
    make: impl FnOnce() -> Result<Vec<Engine>, E>,
) -> Outcome<Result<(), E>> {
    if is_open() {
        return Ok(Ok(()));
    }
    let mut first = first().engine.lock()?;
    if first.is_none() {
        let mut made = match make() {
            Ok(made) => made.into_iter(),
            Err(why) => return Ok(Err(why)),
        };
        let (mut count, one) = (1, made.next());
        for (engine, cell) in made.zip(CELLS.iter().skip(1)) {
            *cell.engine.lock()? = Some(engine); // nobody else takes it yet
            count += 1;
        }
        if one.is_some() {
            *first = one;
            COUNT.store(count, Ordering::Release);
        }
    }
    Ok(Ok(()))
}

/// Holds every engine still for the length of a fork.
pub(crate) fn freeze() -> impl Sized {
    let placing = listeners::PLACING.lock().ok(); // comes before them
    let _on_purpose = Together::begin();
    // Others are opened, if at all, under the lock of the first.
    let engines = core::array::from_fn::<_, ENGINES_MAX, _>(|at| {
        let cell = &CELLS[at];
        (at < usize::from(count().max(1))).then(|| cell.engine.lock().ok())
    });
    (engines, placing)
}

/// In a forked child: the engines stay with the parent.
pub(crate) fn reset_in_child() {
    listeners::forget();
    let there = usize::from(COUNT.swap(0, Ordering::AcqRel));
    for cell in CELLS.iter().take(there) {
        if let Ok(mut engine) = cell.engine.lock() {
            let mut left = engine.take();
            left.iter_mut().for_each(Engine::leave_to_parent);
            core::mem::forget(left); // its descriptors are closed as any of ours
        }
    }
}

impl NetCell {
    const fn new() -> Self {
        Self {
            engine: Mutex::ranked(Rank::Net, None),
            index: 0,
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

    pub(crate) fn passes(&self) -> u32 {
        self.passes.load(Ordering::Relaxed)
    }

    /// When the engine has something to do by itself, as of the last round.
    pub(crate) fn due(&self) -> Nanos {
        self.due.load(Ordering::Relaxed)
    }

    /// Moves frames for a thread of the program that is about to look at its files.
    pub(crate) fn look(&'static self) {
        if let Ok(mut engine) = self.lock() {
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

    /// Runs what is due. The time is that of now: who has waited for the lock comes after others have sent.
    pub(crate) fn expire(&mut self) {
        self.now.set(sys::now());
        let now = self.now.get();
        self.run_due(now);
    }

    fn look(&mut self) {
        self.now.set(sys::now());
        let now = self.now.get();
        self.exchange(now);
    }

    /// What a thread does that has nothing more to say and goes to sleep: what it sends by that is part
    /// of the answer.
    pub(super) fn before_sleep(&mut self) {
        self.release_acks();
        self.settle();
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
