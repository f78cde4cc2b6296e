//! Counters in memory that the holders of a socket share with its owner: how many messages were taken
//! from the kernel's queue. The owner keeps a message until it knows that it was taken; when the
//! last holder of a socket dies with messages still queued there, they go to another socket of the
//! mux. A holder that is killed between taking and counting leaves the owner one message ahead: should
//! the others die too before the queue was empty once, one message comes twice.

use core::sync::atomic::AtomicU32;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};

use crate::errno::{Errno, Outcome};
use crate::sync::Mutex;
use crate::{own, sys};

/// Words from one counter to the next: a cache line.
const STRIDE: usize = 16;

/// Keeps the page of a counter as long as it is.
const SEALS: SealFlags = SealFlags::SHRINK;

/// One page of counters.
struct Page {
    file: own::Kept,
    words: &'static [AtomicU32; sys::WORDS],
}

/// A counter, by its page and its place there.
#[derive(Clone, Copy)]
pub(super) struct Counter {
    page: usize,
    index: usize,
}

struct Ledger {
    pages: Vec<Page>,
    free: Vec<Counter>,
}

static LEDGER: Mutex<Ledger> = Mutex::new(Ledger {
    pages: Vec::new(),
    free: Vec::new(),
});

impl Ledger {
    fn grow(&mut self) -> Outcome<()> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = own::keep(memfd_create("kcm ledger", flags)?);
        ftruncate(&file, (sys::WORDS * size_of::<AtomicU32>()) as u64)?;
        fcntl_add_seals(&file, SEALS)?;
        let words = sys::shared_words(file.as_fd()).ok_or(Errno::ENOMEM)?;
        let page = self.pages.len();
        self.pages.push(Page { file, words });
        let places = (0..sys::WORDS).step_by(STRIDE);
        self.free
            .extend(places.map(|index| Counter { page, index }));
        Ok(())
    }
}

/// A counter for one socket; its value is where it last stopped.
pub(super) fn lend() -> Outcome<(Counter, &'static AtomicU32)> {
    let mut ledger = LEDGER.lock()?;
    if ledger.free.is_empty() {
        ledger.grow()?;
    }
    let counter = ledger.free.pop().ok_or(Errno::ENOMEM)?;
    let page = ledger.pages.get(counter.page).ok_or(Errno::ENOMEM)?;
    Ok((counter, page.words.get(counter.index).ok_or(Errno::ENOMEM)?))
}

/// No process holds the socket any more.
pub(super) fn give_back(counter: Counter) {
    if let Ok(mut ledger) = LEDGER.lock() {
        ledger.free.push(counter);
    }
}

/// The page of a counter for another process, and its place there.
pub(super) fn pass(counter: Counter) -> Outcome<(OwnedFd, u64)> {
    let ledger = LEDGER.lock()?;
    let page = ledger.pages.get(counter.page).ok_or(Errno::EINVAL)?;
    Ok((sys::dup_high(page.file.as_fd())?, counter.index as u64))
}

/// A counter in a page that an owner passed.
pub(super) fn map(page: BorrowedFd<'_>, index: u64) -> Option<&'static AtomicU32> {
    let sealed = fcntl_get_seals(page).is_ok_and(|seals| seals.contains(SEALS));
    let words = sealed.then(|| sys::shared_words(page)).flatten()?;
    words.get(index as usize)
}

/// In a forked child, which must not lend what its parent lends.
pub(super) fn reset_in_child() {
    if let Ok(mut ledger) = LEDGER.lock() {
        ledger.free.clear();
        core::mem::forget(core::mem::take(&mut ledger.pages)); // closed with all others of ours
    }
}
