//! `fd → File`, lock-free: a descriptor that is not ours costs one compare, one load and one branch.
//!
//! The table lies in `.bss`: a page of it costs nothing until one of its slots is used. Files are
//! recycled but never freed (see [`File`]), so a stale reference is harmless: whoever takes a
//! file's lock checks that it still is what was looked up.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::file::File;
use super::slot::Slot;

/// Descriptor numbers we can serve: the kernel's default `fs.nr_open`. A number above it is never
/// ours; creating a socket there fails with EMFILE.
pub(crate) const FDS_MAX: usize = 1 << 20;

static SLOTS: [Slot<File>; FDS_MAX] = [const { Slot::empty() }; FDS_MAX];

/// One more than the highest number that ever was ours: where sweeps may stop.
static END: AtomicUsize = AtomicUsize::new(0);

/// The file behind `fd`, or `None` when the kernel alone knows it.
#[inline(always)]
pub(crate) fn lookup(fd: i32) -> Option<&'static File> {
    SLOTS.get(fd as u32 as usize)?.get()
}

/// Whether no number ever was ours: a process without KCM need not search its descriptor sets.
#[inline]
pub(crate) fn is_unused() -> bool {
    END.load(Ordering::Relaxed) == 0
}

/// Whether a file of ours may stand at this number.
pub(crate) fn in_range(fd: i32) -> bool {
    (fd as u32 as usize) < FDS_MAX
}

/// Replaces what stands behind `fd`, which the caller has no use for any more.
pub(crate) fn put(fd: i32, file: &'static File) {
    END.fetch_max(fd as u32 as usize + 1, Ordering::Relaxed);
    if let Some(slot) = SLOTS.get(fd as u32 as usize) {
        slot.swap(Some(file));
    }
}

/// Whether any number ever was ours.
#[inline(always)]
pub(crate) fn is_used() -> bool {
    END.load(Ordering::Relaxed) != 0
}

/// Whether `file` is behind `fd`.
pub(crate) fn holds(fd: i32, file: &File) -> bool {
    lookup(fd).is_some_and(|now| core::ptr::eq(now, file))
}

/// Whether `file` is behind `fd` and still is the one of this inode, which another thread may have closed.
pub(crate) fn is_still(fd: i32, file: &'static File, ino: u64) -> bool {
    holds(fd, file) && file.ino.load(Ordering::Relaxed) == ino
}

/// Every file of ours, once for each of its numbers.
pub(crate) fn files() -> Vec<&'static File> {
    ours_in(0, u32::MAX).filter_map(lookup).collect()
}

/// A number that `file` stands behind.
pub(crate) fn number_of(file: &'static File) -> Option<i32> {
    ours_in(0, u32::MAX).find(|fd| holds(*fd, file))
}

/// Puts `file`, one of whose references now belongs to this slot, behind `fd`. What stood there was
/// closed behind our back and is released.
pub(crate) fn install(fd: i32, file: &'static File) {
    END.fetch_max(fd as u32 as usize + 1, Ordering::Relaxed);
    if let Some(slot) = SLOTS.get(fd as u32 as usize)
        && let Some(stale) = slot.swap(Some(file))
    {
        stale.release();
    }
}

/// Empties the slot of `fd` and returns what stood there, with its reference.
pub(crate) fn remove(fd: i32) -> Option<&'static File> {
    let slot = SLOTS.get(fd as u32 as usize)?;
    slot.get()?; // a look first keeps untouched pages of the table unmapped
    slot.swap(None)
}

/// Empties the slot of `fd` if it still holds `file`; true when it did, and the caller then owns
/// the slot's reference.
pub(crate) fn remove_if(fd: i32, file: &'static File) -> bool {
    SLOTS
        .get(fd as u32 as usize)
        .is_some_and(|slot| slot.clear_if(file))
}

/// Called with each descriptor number the kernel has just handed out: if a file of ours still
/// stands there, its close went unseen (glibc-internal or raw), and it is released now.
#[inline]
pub(crate) fn fresh(fd: i32) {
    if lookup(fd).is_some()
        && let Some(stale) = remove(fd)
    {
        stale.release();
    }
}

/// Numbers in `first..=last` that are ours, lowest first.
pub(crate) fn ours_in(first: u32, last: u32) -> impl Iterator<Item = i32> {
    let end = (last as usize)
        .saturating_add(1)
        .min(END.load(Ordering::Relaxed));
    (first as usize..end)
        .map(|fd| fd as i32)
        .filter(|&fd| lookup(fd).is_some())
}
