//! `kcmctl trace` and `kcmctl pcap`: shows messages to whoever asks, as they pass.
//!
//! A tracer connects to the [`door`]; the housekeeper answers. While one is here the muxes note what
//! passes (`kcm_mux::Mux::set_tap`), the thread that leaves a mux sorts it into the tracers' bounded
//! queues, and the housekeeper writes these out without waiting for anybody: what finds no room is
//! counted. When the tracer goes, for whatever reason, its connection ends and tracing with it. With
//! no tracer a mux pays one test a run of messages, and nothing here runs.

mod door;
#[allow(dead_code, reason = "the reader's half is kcmctl's")]
mod wire;

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kcm_mux::{Direction, Passed};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::time::{ClockId, clock_gettime};

use self::door::Door;
use self::wire::{HEAD_MAX, RX, TX, WORD, head, request};
use crate::kcm::{Engine, MuxCell};
use crate::sync::{Mutex, Rank};
use crate::{housekeeper, own};

/// Tracers at a time: a person's terminal, a capture, and two to spare.
const TRACERS_MAX: usize = 4;
/// Bytes that wait for one tracer: a burst of some ten thousand short messages.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Bytes offered to the socket at a time.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// In the tag of what the housekeeper watches for us: a descriptor follows.
const TAG_FD_MASK: u64 = u32::MAX as u64;

/// Bytes of each message that some tracer wants; [`OFF`] while there is none.
static HEAD: AtomicUsize = AtomicUsize::new(OFF);
const OFF: usize = usize::MAX;
/// Some tracer wants frames.
static FRAMES: AtomicBool = AtomicBool::new(false);
/// Something waits to be written.
static WAITING: AtomicBool = AtomicBool::new(false);

static DOOR: Mutex<Option<Door>> = Mutex::ranked(Rank::Leaf, None);
/// Held while memory is copied, and by the housekeeper while a socket takes bytes without waiting.
static TRACERS: Mutex<Vec<Tracer>> = Mutex::ranked(Rank::Leaf, Vec::new());

/// Somebody who looks.
struct Tracer {
    fd: own::Kept,
    /// `None` until the request has come.
    wants: Option<Wants>,
    /// Records on their way to the housekeeper.
    queue: Vec<u8>,
    /// Records that found no room in it.
    lost: u64,
    /// What the socket did not take, from `sent` on.
    rest: Vec<u8>,
    sent: usize,
    /// The socket is full: its write space is waited for.
    full: bool,
    /// The housekeeper waits for write space.
    watched_full: bool,
}

/// A [`request`], checked.
#[derive(Clone, Copy)]
struct Wants {
    head: usize,
    words: [u64; request::WORDS],
}

impl Wants {
    fn new(words: [u64; request::WORDS]) -> Option<Self> {
        let known =
            words[request::MAGIC] == wire::MAGIC && words[request::VERSION] == wire::VERSION;
        known.then(|| Self {
            head: words[request::HEAD].min(HEAD_MAX as u64) as usize,
            words,
        })
    }

    fn message(&self, record: &[u64; head::WORDS]) -> bool {
        let wanted = |at: usize, value: u64| [request::ANY, value].contains(&self.words[at]);
        let words = &self.words;
        words[request::WHAT] & request::MESSAGES != 0
            && words[request::DIRECTIONS] & record[head::DIRECTION] != 0
            && (words[request::LEN_MIN]..=words[request::LEN_MAX]).contains(&record[head::LEN])
            && wanted(request::MUX, record[head::MUX])
            && wanted(request::KCM, record[head::KCM])
            && wanted(request::PSOCK, record[head::PSOCK])
    }
}

impl Tracer {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd: own::keep(fd),
            wants: None,
            queue: Vec::new(),
            lost: 0,
            rest: Vec::new(),
            sent: 0,
            full: false,
            watched_full: false,
        }
    }

    /// Adds a record if there is room; `bytes` are its first ones.
    fn add(&mut self, mut record: [u64; head::WORDS], bytes: &[u8]) {
        let padded = bytes.len().next_multiple_of(WORD);
        if self.queue.len() + head::WORDS * WORD + padded > QUEUE_BYTES_MAX {
            self.lost += 1;
            return;
        }
        record[head::BYTES] = bytes.len() as u64;
        record[head::LOST] = self.lost;
        self.queue
            .extend(record.iter().flat_map(|word| word.to_ne_bytes()));
        self.queue.extend_from_slice(bytes);
        self.queue
            .resize(self.queue.len() + padded - bytes.len(), 0);
    }

    fn say(&mut self, kind: u64) {
        let mut record = [0; head::WORDS];
        record[head::KIND] = kind;
        record[head::TIME] = now();
        self.add(record, &[]);
    }

    /// Writes what the socket takes. False when the tracer is gone.
    fn write(&mut self) -> bool {
        loop {
            if self.sent == self.rest.len() {
                self.rest.clear();
                self.sent = 0;
                core::mem::swap(&mut self.rest, &mut self.queue);
            }
            let left = self.rest.get(self.sent..).unwrap_or_default();
            let Some(part) = left.get(..WRITE_BYTES_MAX.min(left.len())) else {
                return true;
            };
            if part.is_empty() {
                return true;
            }
            match send(&self.fd, part, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.full = true;
                    return true;
                }
                Err(_) => return false,
            }
        }
    }
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The page at this path was made: tracers may call beside it.
pub(super) fn open(page: &[u8]) {
    if let Ok(mut door) = DOOR.lock()
        && door.is_none()
    {
        *door = Door::open(page).ok();
        if let Some(door) = &*door {
            housekeeper::watch_tracing(door.fd(), tag(door.fd()), false);
        }
    }
}

/// The page goes, and with it everything here.
pub(super) fn close() {
    if let Ok(mut door) = DOOR.lock()
        && let Some(door) = door.take()
    {
        door.remove();
    }
    if let Ok(mut tracers) = TRACERS.lock() {
        tracers.clear();
    }
}

/// In the child of a fork: tracers look at the parent.
pub(super) fn reset_in_child() {
    HEAD.store(OFF, Ordering::Relaxed);
    FRAMES.store(false, Ordering::Relaxed);
    WAITING.store(false, Ordering::Relaxed);
    if let Ok(mut door) = DOOR.lock() {
        *door = None;
    }
    if let Ok(mut tracers) = TRACERS.lock() {
        tracers.clear();
    }
}

/// Holds still for the length of a fork.
pub(super) fn freeze() -> impl Sized {
    (DOOR.lock().ok(), TRACERS.lock().ok())
}

fn tag(fd: impl AsFd) -> u64 {
    use rustix::fd::AsRawFd;
    fd.as_fd().as_raw_fd() as u64 & TAG_FD_MASK
}

/// The housekeeper has started.
pub(crate) fn attend() {
    if let Ok(door) = DOOR.lock()
        && let Some(door) = &*door
    {
        housekeeper::watch_tracing(door.fd(), tag(door.fd()), false);
    }
}

/// The housekeeper saw something at the door, or from a tracer.
pub(crate) fn on_event(tag_seen: u64) {
    let mut callers = Vec::new();
    if let Ok(door) = DOOR.lock()
        && let Some(door) = &*door
        && tag(door.fd()) == tag_seen & TAG_FD_MASK
    {
        callers.extend(core::iter::from_fn(|| door.accept()));
    }
    if let Ok(mut tracers) = TRACERS.lock() {
        // Who has gone makes room for who comes.
        tracers.retain_mut(|tracer| {
            tracer.full = false;
            hear(tracer)
        });
        for caller in callers {
            let mut tracer = Tracer::new(caller);
            if tracers.len() == TRACERS_MAX {
                tracer.say(head::BUSY);
                tracer.write();
                continue;
            }
            housekeeper::watch_tracing(tracer.fd.as_fd(), tag(&tracer.fd), false);
            tracers.push(tracer);
        }
    }
    settle();
    // Who is greeted is already shown what passes.
    WAITING.store(true, Ordering::Relaxed);
    write_waiting();
}

/// Takes the request of a tracer. False when it goes, or makes no sense.
fn hear(tracer: &mut Tracer) -> bool {
    match (door::request_of(&tracer.fd), tracer.wants) {
        (Ok(None), _) => true,
        (Ok(Some(words)), None) => {
            tracer.wants = Wants::new(words);
            let known = tracer.wants.is_some();
            tracer.say(if known { head::HELLO } else { head::STRANGE });
            if !known {
                tracer.write(); // its last words
            }
            known
        }
        (Ok(Some(_)), Some(_)) | (Err(_), _) => false,
    }
}

/// Brings muxes and the housekeeper's set in line with the tracers that are here.
fn settle() {
    let mut wanted = None;
    if let Ok(mut tracers) = TRACERS.lock() {
        let messages = |wants: &Wants| wants.words[request::WHAT] & request::MESSAGES != 0;
        let heads = tracers.iter().filter_map(|t| t.wants.filter(messages));
        wanted = heads.map(|wants| wants.head).max();
        let frames = |wants: &Wants| wants.words[request::WHAT] & request::FRAMES != 0;
        let frames = tracers.iter().any(|t| t.wants.as_ref().is_some_and(frames));
        FRAMES.store(frames, Ordering::Relaxed);
        for tracer in tracers.iter_mut() {
            // Asking again would report again what is still there to read.
            if tracer.full != tracer.watched_full {
                tracer.watched_full = tracer.full;
                housekeeper::watch_tracing(tracer.fd.as_fd(), tag(&tracer.fd), tracer.full);
            }
        }
    }
    let head = wanted.unwrap_or(OFF);
    if HEAD.swap(head, Ordering::Relaxed) != head {
        MuxCell::for_each(|engine| engine.mux.set_tap(wanted));
    }
}

/// Whether some tracer wants to see the stack's frames.
#[inline]
pub(crate) fn wants_frames() -> bool {
    FRAMES.load(Ordering::Relaxed)
}

/// A frame of the stack's device passes; its engine is locked.
#[cold]
pub(crate) fn frame(is_rx: bool, bytes: &[u8]) {
    let mut record = [0; head::WORDS];
    record[head::KIND] = head::FRAME;
    record[head::TIME] = now();
    record[head::DIRECTION] = if is_rx { RX } else { TX };
    record[head::LEN] = bytes.len() as u64;
    let Ok(mut tracers) = TRACERS.lock() else {
        return;
    };
    let mut ring = false;
    for tracer in tracers.iter_mut() {
        let Some(wants) = tracer.wants else { continue };
        if wants.words[request::WHAT] & request::FRAMES != 0 {
            let count = bytes.len().min(wants.head);
            tracer.add(record, bytes.get(..count).unwrap_or_default());
        }
        ring |= !tracer.full && !tracer.queue.is_empty();
    }
    drop(tracers);
    if ring && !WAITING.swap(true, Ordering::Relaxed) {
        housekeeper::ring();
    }
}

/// A mux was made and can be found: it is traced as the others are.
pub(crate) fn join(cell: &'static MuxCell) {
    let head = HEAD.load(Ordering::Relaxed);
    if head != OFF
        && let Ok(mut engine) = cell.lock()
    {
        engine.mux.set_tap(Some(head));
    }
}

/// Messages have passed in a mux, which is locked.
#[cold]
pub(crate) fn take(cell: u32, engine: &mut Engine) {
    let time = now();
    let mut records = Vec::new();
    let mut bytes = Vec::new();
    let lost = engine.mux.take_tapped(|passed| {
        records.push((record(time, cell, &passed), bytes.len(), passed.head.len()));
        bytes.extend_from_slice(passed.head);
    });
    for (record, ..) in &mut records {
        let conn = engine.connection(kcm_mux::PsockId(record[head::PSOCK] as u32));
        let file = conn.and_then(|conn| conn.file);
        record[head::INODE] = file.map_or(0, |file| file.ino.load(Ordering::Relaxed));
    }
    // A signal handler that interrupted this very thread in here leaves nothing behind.
    let Ok(mut tracers) = TRACERS.lock() else {
        return;
    };
    let mut ring = false;
    for tracer in tracers.iter_mut() {
        let Some(wants) = tracer.wants else { continue };
        tracer.lost += lost;
        for (record, at, count) in &records {
            if wants.message(record) {
                let end = at + (*count).min(wants.head);
                tracer.add(*record, bytes.get(*at..end).unwrap_or_default());
            }
        }
        ring |= !tracer.full && !tracer.queue.is_empty();
    }
    drop(tracers);
    if ring && !WAITING.swap(true, Ordering::Relaxed) {
        housekeeper::ring();
    }
}

fn record(time: u64, cell: u32, passed: &Passed<'_>) -> [u64; head::WORDS] {
    let mut record = [0; head::WORDS];
    record[head::KIND] = head::MESSAGE;
    record[head::TIME] = time;
    record[head::DIRECTION] = match passed.direction {
        Direction::Rx => RX,
        Direction::Tx => TX,
    };
    record[head::LEN] = passed.len as u64;
    record[head::MUX] = cell.into();
    record[head::KCM] = passed.kcm.0.into();
    record[head::PSOCK] = passed.psock.0.into();
    record
}

/// The housekeeper's call after each wake-up: writes out what waits.
pub(crate) fn write_waiting() {
    if !WAITING.swap(false, Ordering::Relaxed) {
        return;
    }
    let mut gone = false;
    if let Ok(mut tracers) = TRACERS.lock() {
        let before = tracers.len();
        tracers.retain_mut(|tracer| tracer.full || tracer.write());
        gone = tracers.len() != before || tracers.iter().any(|tracer| tracer.full);
    }
    if gone {
        settle();
    }
}
