//! What `kcmctl` sees of this process: one page of counters and decisions in a file of the user's
//! runtime directory, made with the first KCM socket and removed at exit.
//!
//! Nothing is written where messages move. A mux that is left after a change tells the housekeeper,
//! at most once in [`PERIOD`]; the housekeeper copies the counters then. Decisions (a socket made,
//! attached, refused) are rare: the thread that made one writes the page itself while its
//! [`Credit`] lasts. A program that is not allowed to write the page runs as well without it.

mod credit;
mod image;
mod journal;
mod layout;
mod page;
mod sites;
mod sockets;
pub(crate) mod trace;
mod words;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use kcm_mux::Nanos;

use self::credit::Credit;
use self::image::Image;
use self::journal::JOURNAL;
use self::page::Page;
pub(crate) use self::page::note_runtime_dir;
pub(crate) use self::sites::{
    attached, cloned, inherited, io_uring, left_to_kernel, option, pair, parser, routed, socket,
    stack_option, unattached, unsupported,
};
use crate::net::cells;
use crate::sync::Mutex;
use crate::{housekeeper, process, sys};

/// How old the counters of a busy program may be.
const PERIOD: Nanos = 50_000_000;
/// How long a page that could not be made or written is not tried again.
const RETRY: Nanos = 5_000_000_000;

/// `KCMSHIM_STATS`.
static ENABLED: AtomicBool = AtomicBool::new(false);
/// The program has asked for a KCM socket.
static USED: AtomicBool = AtomicBool::new(false);
/// When the housekeeper writes the page; `u64::MAX` for not at all.
static DUE: AtomicU64 = AtomicU64::new(u64::MAX);
/// Counts writings: a mux that tells of a change remembers in which it did.
static EPOCH: AtomicU32 = AtomicU32::new(1);
static WRITER: Mutex<Writer> = Mutex::new(Writer::new());

struct Writer {
    page: Option<Page>,
    image: Image,
    credit: Credit,
    retry_at: Nanos,
}

impl Writer {
    const fn new() -> Self {
        Self {
            page: None,
            image: Image::new(),
            credit: Credit::new(),
            retry_at: 0,
        }
    }

    /// Brings the page up to date. `patient`: waits for muxes that are in use.
    fn write(&mut self, now: Nanos, patient: bool) {
        if now < self.retry_at || !ENABLED.load(Ordering::Relaxed) {
            return;
        }
        EPOCH.fetch_add(1, Ordering::Relaxed);
        DUE.store(u64::MAX, Ordering::Relaxed);
        let complete = self.image.observe(patient);
        // The stack is looked at by the housekeeper alone.
        if !complete || !patient && cells::is_open() {
            schedule(now); // the counters follow
        }
        if self.page.is_none() {
            self.page = Page::create().ok();
            self.page.iter().for_each(|page| trace::open(page.path()));
        }
        let written = match &mut self.page {
            Some(page) => page.write(&self.image, &JOURNAL).is_ok(),
            None => false,
        };
        if !written {
            self.page = None;
            self.retry_at = now + RETRY;
        }
    }
}

/// The stack serves this process from now on: there is something to see.
pub(crate) fn stack_opened() {
    USED.store(true, Ordering::Relaxed);
    changed();
}

/// Whether there is to be a page at all.
pub(crate) fn enable(wanted: bool) {
    ENABLED.store(wanted, Ordering::Relaxed);
}

/// Changes whenever a mux has to tell of changes anew.
#[inline]
pub(crate) fn epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// A mux has changed since the page was written. Called with its lock held.
#[cold]
pub(crate) fn changed() {
    if ENABLED.load(Ordering::Relaxed) && USED.load(Ordering::Relaxed) {
        schedule(sys::now());
    }
}

fn schedule(now: Nanos) {
    let due = now + PERIOD;
    let idle = DUE.compare_exchange(u64::MAX, due, Ordering::Relaxed, Ordering::Relaxed);
    if idle.is_ok() {
        housekeeper::ring();
    }
}

/// When the housekeeper has to write the page.
pub(crate) fn wakes_at() -> Option<Nanos> {
    Some(DUE.load(Ordering::Relaxed)).filter(|at| *at != u64::MAX)
}

/// The housekeeper's call: writes the page if its time has come.
pub(crate) fn write_if_due(now: Nanos) {
    if DUE.load(Ordering::Relaxed) > now {
        return;
    }
    DUE.store(u64::MAX, Ordering::Relaxed);
    match WRITER.try_lock() {
        Some(mut writer) => writer.write(now, true),
        None => schedule(now),
    }
}

/// A decision is in the journal. Called with no lock held; a thread that finds the writer busy does
/// not wait: it may be a signal handler that interrupted the very mux the writer waits for.
fn decided() {
    if !ENABLED.load(Ordering::Relaxed) || !USED.load(Ordering::Relaxed) || process::is_foreign() {
        return;
    }
    let now = sys::now();
    match WRITER.try_lock() {
        Some(mut writer) => match writer.credit.take(now) {
            true => writer.write(now, false),
            false => schedule(now),
        },
        None => schedule(now),
    }
}

/// Another process goes on with the muxes and engines, and here they stay locked: who holds the page must not
/// wait for them, for the end of the process waits for the page. Called with the page held still. Until what comes
/// back is dropped.
pub(crate) fn close() -> impl Sized {
    Closed {
        was_enabled: ENABLED.swap(false, Ordering::Relaxed),
    }
}

struct Closed {
    was_enabled: bool,
}

impl Drop for Closed {
    fn drop(&mut self) {
        ENABLED.store(self.was_enabled, Ordering::Relaxed);
    }
}

/// The process ends: its page goes.
pub(crate) fn remove() {
    if process::is_foreign() {
        return;
    }
    ENABLED.store(false, Ordering::Relaxed);
    trace::close();
    if let Ok(mut writer) = WRITER.lock()
        && let Some(page) = writer.page.take()
    {
        page.remove();
    }
}

/// In the child of a fork: the page is the parent's. The child's own is made when it uses KCM.
pub(crate) fn reset_in_child() {
    DUE.store(u64::MAX, Ordering::Relaxed);
    EPOCH.fetch_add(1, Ordering::Relaxed);
    trace::reset_in_child();
    if let Ok(mut writer) = WRITER.lock() {
        writer.page = None;
        writer.retry_at = 0;
    }
}

/// Holds the page still for the length of a fork, so that the child can go on with its own.
/// Before the muxes, for which a writer waits.
pub(crate) fn freeze() -> impl Sized {
    (WRITER.lock().ok(), JOURNAL.lock().ok())
}

/// As [`freeze`], for who is told.
pub(crate) fn freeze_tracers() -> impl Sized {
    trace::freeze()
}
