//! Asking the kernel whether pages can be read or written, without changing a byte of them.
//!
//! `madvise(MADV_POPULATE_READ or _WRITE)` (Linux 5.14) answers for a whole range: it does what the
//! first touch would do, and fails where a touch would be a SIGSEGV or SIGBUS. It also fails where a
//! touch would succeed: on older kernels, on mappings of devices, and on the pages that the stack
//! has yet to grow over. So its no is only a perhaps, and each page is then tried by a futex call,
//! which makes the kernel load or store a word by its ordinary fault handling:
//!
//! - `FUTEX_CMP_REQUEUE` of nobody to nowhere loads the word and compares it;
//! - `FUTEX_WAKE_OP` ors zero into the word, atomically, so that no other thread's store is lost.
//!   That is why not `process_vm_writev(2)`, which would have to store what it loaded before.

use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use rustix::io::{self, Errno};
use rustix::mm::{Advice, madvise};
use rustix::thread::futex::{self, Flags, WakeOp, WakeOpCmp};

use super::{Access, Efault, PAGE_BITS, Range};

/// Finds out whether all of `range` can be accessed.
#[cold]
pub(super) fn pages(range: Range, access: Access) -> Result<(), Efault> {
    if populate(range, access).is_ok() {
        return Ok(());
    }
    let starts = (range.first >> PAGE_BITS..=range.last >> PAGE_BITS).map(|page| page << PAGE_BITS);
    starts
        .map(|start| start.max(range.first))
        .try_for_each(|addr| word(addr, access))
}

fn populate(range: Range, access: Access) -> io::Result<()> {
    let page = page_size();
    let start = range.first & !(page - 1);
    let advice = match access {
        Access::Read => Advice::LinuxPopulateRead,
        Access::Write => Advice::LinuxPopulateWrite,
    };
    let at = core::ptr::without_provenance_mut::<c_void>(start);
    // SAFETY: populating changes no byte and no right; it only does now what a touch does later.
    // The kernel rounds the length up and checks the range.
    unsafe { madvise(at, range.last - start + 1, advice) }
}

/// Tries the word that the byte at `addr` is part of. It lies in the byte's page.
pub(super) fn word(addr: usize, access: Access) -> Result<(), Efault> {
    let at = core::ptr::without_provenance_mut::<u32>(addr & !(size_of::<u32>() - 1));
    // SAFETY: not what `from_ptr` asks for, since nothing is known of the address yet. Nothing is
    // done with the reference but to hand its address to the kernel, which rustix does without
    // touching it; and references to atomics carry no promise of being dereferenceable.
    let word = unsafe { AtomicU32::from_ptr(at) };
    let done = match access {
        Access::Read => load(word),
        // The load grows a stack that the store alone would not; see `fixup_user_fault`.
        Access::Write => store(word).or_else(|_| load(word).and_then(|()| store(word))),
    };
    match done {
        Err(Errno::FAULT) => Err(Efault),
        // Any other failure, such as a filter that forbids the call, says nothing about memory.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Nobody waits here.
static NOWHERE: AtomicU32 = AtomicU32::new(0);

fn load(word: &AtomicU32) -> io::Result<()> {
    match futex::cmp_requeue(word, Flags::PRIVATE, 0, 0, &NOWHERE, 0) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(err) => Err(err),
    }
}

fn store(word: &AtomicU32) -> io::Result<()> {
    // A comparison that holds wakes one waiter, should the program have one on this very word.
    // 0x7ff is as unlikely a value as fits, and a futex wait may always end early.
    futex::wake_op(
        &NOWHERE,
        Flags::PRIVATE,
        0,
        0,
        word,
        WakeOp::Or,
        WakeOpCmp::Eq,
        0,
        0x7ff,
    )
    .map(|_| ())
}

/// Size of the machine's pages, which `madvise` wants its start to be a multiple of.
fn page_size() -> usize {
    static KNOWN: AtomicUsize = AtomicUsize::new(0);
    match KNOWN.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: looks up a value in the vector that the kernel passed to the process.
            let size = unsafe { libc::getauxval(libc::AT_PAGESZ) } as usize;
            let size = size.max(1 << PAGE_BITS);
            KNOWN.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}
