//! The shim's own heap.
//!
//! The program's malloc is not ours to use: it may be replaced by one that calls what we interpose,
//! a signal handler may enter the shim while its thread is inside it, and its behaviour must not
//! change because a library was preloaded. So the shim allocates from mappings of its own.

#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use dlmalloc::{Allocator, Dlmalloc};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};

use crate::errno::{Errno, Outcome};
use crate::sync::{Guard, Mutex, Rank, RawMutex};

/// Memory from the kernel, by raw system calls.
pub(crate) struct Pages;

// SAFETY: hands out fresh private mappings and takes back nothing else.
unsafe impl Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a fresh mapping overlaps nothing.
        match unsafe { mmap_anonymous(ptr::null_mut(), size, prot, flags) } {
            Ok(start) => (start.cast(), size, 0),
            Err(_) if size <= LAST_BYTES => {
                let last = LAST.swap(ptr::null_mut(), Ordering::Relaxed);
                (last, if last.is_null() { 0 } else { LAST_BYTES }, 0)
            }
            Err(_) => (ptr::null_mut(), 0, 0),
        }
    }

    fn remap(&self, start: *mut u8, old: usize, new: usize, may_move: bool) -> *mut u8 {
        let flags = if may_move {
            MremapFlags::MAYMOVE
        } else {
            MremapFlags::empty()
        };
        // SAFETY: the heap passes a mapping of its own.
        unsafe { mremap(start.cast(), old, new, flags) }.map_or(ptr::null_mut(), <*mut _>::cast)
    }

    fn free_part(&self, start: *mut u8, old: usize, new: usize) -> bool {
        // SAFETY: the heap passes the tail of a mapping of its own.
        unsafe { munmap(start.add(new).cast(), old - new) }.is_ok()
    }

    fn free(&self, start: *mut u8, size: usize) -> bool {
        // SAFETY: the heap passes a mapping of its own.
        unsafe { munmap(start.cast(), size) }.is_ok()
    }

    fn can_release_part(&self, _: u32) -> bool {
        true
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        4096
    }
}

/// Pages kept for the day the kernel has none: with them, what has begun is finished. Not resident until
/// then.
static LAST: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
/// Far more than any call allocates that is not told beforehand whether there is memory.
const LAST_BYTES: usize = 1 << 20;

/// Asked before anything grows: whether there is memory to finish it with.
///
/// # Errors
/// ENOMEM.
#[inline]
pub(crate) fn check_room() -> Outcome<()> {
    if LAST.load(Ordering::Relaxed).is_null() {
        return restock();
    }
    Ok(())
}

#[cold]
fn restock() -> Outcome<()> {
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a fresh mapping overlaps nothing.
    let fresh = unsafe { mmap_anonymous(ptr::null_mut(), LAST_BYTES, prot, flags) };
    let fresh = fresh.map_err(|_| Errno::ENOMEM)?;
    let other = LAST.swap(fresh.cast(), Ordering::Relaxed);
    if !other.is_null() {
        // SAFETY: another thread was quicker; its mapping is nobody's any more.
        let _ = unsafe { munmap(other.cast(), LAST_BYTES) };
    }
    Ok(())
}

/// Memory for a signal handler that has interrupted the heap itself: handed out once, never freed.
struct Reserve {
    bytes: UnsafeCell<[u8; Self::BYTES]>,
    used: AtomicUsize,
}

// SAFETY: each byte is handed out to one caller at most, by the atomic counter.
unsafe impl Sync for Reserve {}

static RESERVE: Reserve = Reserve {
    bytes: UnsafeCell::new([0; Reserve::BYTES]),
    used: AtomicUsize::new(0),
};

impl Reserve {
    /// A handler's call allocates a few hundred bytes, and few handlers ever hit the heap.
    const BYTES: usize = 256 << 10;

    fn take(&self, layout: Layout) -> *mut u8 {
        let room = layout.size() + layout.align();
        let fits = |at: usize| at.checked_add(room).filter(|end| *end <= Self::BYTES);
        let (ok, seen) = (Ordering::Relaxed, Ordering::Relaxed);
        let Ok(at) = self.used.fetch_update(ok, seen, fits) else {
            return ptr::null_mut();
        };
        // SAFETY: the range lies within the array.
        let start = unsafe { self.bytes.get().cast::<u8>().add(at) };
        start.map_addr(|a| a.next_multiple_of(layout.align()))
    }

    fn owns(&self, block: *mut u8) -> bool {
        let start = self.bytes.get().addr();
        (start..start + Self::BYTES).contains(&block.addr())
    }
}

/// The allocator of this library.
struct Heap(Mutex<Dlmalloc<Pages>>);

#[cfg_attr(not(test), global_allocator)]
static HEAP: Heap = Heap(Mutex::ranked(
    Rank::Heap,
    Dlmalloc::new_with_allocator(Pages),
));

/// The heap, held still.
pub(crate) type Frozen = Option<Guard<'static, RawMutex, Dlmalloc<Pages>>>;

/// Holds the heap still while the process forks, so that the child's copy is whole.
pub(crate) fn freeze() -> Frozen {
    HEAP.0.lock().ok()
}

// SAFETY: every block comes from the one heap behind the lock and goes back there.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.0.lock() {
            // SAFETY: the caller's own layout.
            Ok(mut heap) => unsafe { heap.malloc(layout.size(), layout.align()) },
            Err(_) => RESERVE.take(layout),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // A handler that interrupted the heap itself leaves its block behind: rare, and bounded by
        // what one call frees.
        if !RESERVE.owns(block)
            && let Ok(mut heap) = self.0.lock()
        {
            // SAFETY: the caller's block and layout.
            unsafe { heap.free(block, layout.size(), layout.align()) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.0.lock() {
            // SAFETY: the caller's own layout.
            Ok(mut heap) => unsafe { heap.calloc(layout.size(), layout.align()) },
            Err(_) => RESERVE.take(layout),
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !RESERVE.owns(block)
            && let Ok(mut heap) = self.0.lock()
        {
            // SAFETY: the caller's block and layout.
            return unsafe { heap.realloc(block, layout.size(), layout.align(), size) };
        }
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else {
            return ptr::null_mut();
        };
        // SAFETY: `wanted` is not empty, as the caller vouches for `size`.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both blocks hold at least the smaller size; they do not overlap.
            unsafe { ptr::copy_nonoverlapping(block, new, layout.size().min(size)) };
        }
        new
    }
}
