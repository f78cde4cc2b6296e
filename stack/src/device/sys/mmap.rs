//! Mappings shared with the kernel, or with another engine that plays its part.

use super::super::BorrowedFd;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A shared, readable and writable mapping. Offsets are in bytes from its start.
pub(in crate::device) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value; words are accessed atomically, and payload only by those
// who own it by their ring's protocol.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory of our own, shared with children.
    pub(in crate::device) fn anonymous(len: usize) -> Result<Self, Errno> {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            mmap_anonymous(
                core::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        }?;
        Self::owning(base.cast(), len)
    }

    /// `len` bytes of what `fd` shares, from `offset` on, with all pages present.
    pub(in crate::device) fn of_fd(
        fd: BorrowedFd<'_>,
        len: usize,
        offset: u64,
    ) -> Result<Self, Errno> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            mmap(core::ptr::null_mut(), len, access, flags, fd, offset)
        }?;
        Self::owning(base.cast(), len)
    }

    fn owning(base: *mut u8, len: usize) -> Result<Self, Errno> {
        Ok(Self {
            base: NonNull::new(base).ok_or(Errno::NOMEM)?,
            len,
        })
    }

    /// Length in bytes.
    pub(in crate::device) fn len(&self) -> usize {
        self.len
    }

    /// Address of the first byte, for calls that register the memory.
    pub(in crate::device) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The address of a `T` at `at`, when it lies inside and is aligned.
    fn word<T>(&self, at: usize) -> Option<*mut T> {
        let end = at.checked_add(size_of::<T>())?;
        if end > self.len || !at.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: `at` is inside the mapping. Its base is page-aligned, so the word is aligned.
        Some(unsafe { self.base.as_ptr().add(at) }.cast())
    }

    /// Reads two bytes, relaxed.
    pub(in crate::device) fn load_u16(&self, at: usize) -> Option<u16> {
        // SAFETY: `word` checked bounds and alignment; the mapping lives as long as `self`, and every
        // concurrent access through this type is atomic.
        self.word(at)
            .map(|p| unsafe { AtomicU16::from_ptr(p) }.load(Ordering::Relaxed))
    }

    /// Reads four bytes and what their writer wrote before them (acquire).
    pub(in crate::device) fn load_u32(&self, at: usize) -> Option<u32> {
        // SAFETY: as in `load_u16`.
        self.word(at)
            .map(|p| unsafe { AtomicU32::from_ptr(p) }.load(Ordering::Acquire))
    }

    /// Writes four bytes after everything written before (release).
    pub(in crate::device) fn store_u32(&self, at: usize, value: u32) -> Option<()> {
        // SAFETY: as in `load_u16`.
        self.word(at)
            .map(|p| unsafe { AtomicU32::from_ptr(p) }.store(value, Ordering::Release))
    }

    /// Reads eight bytes, relaxed.
    pub(in crate::device) fn load_u64(&self, at: usize) -> Option<u64> {
        // SAFETY: as in `load_u16`.
        self.word(at)
            .map(|p| unsafe { AtomicU64::from_ptr(p) }.load(Ordering::Relaxed))
    }

    /// Writes eight bytes, relaxed.
    pub(in crate::device) fn store_u64(&self, at: usize, value: u64) -> Option<()> {
        // SAFETY: as in `load_u16`.
        self.word(at)
            .map(|p| unsafe { AtomicU64::from_ptr(p) }.store(value, Ordering::Relaxed))
    }

    /// Payload bytes `at..at + len`, when they lie inside.
    ///
    /// # Safety
    ///
    /// By the ring's protocol the range is ours to read for as long as the slice lives.
    pub(super) unsafe fn payload(&self, at: usize, len: usize) -> Option<&[u8]> {
        if at.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: inside the mapping, which is initialised memory; unwritten meanwhile by the caller's
        // promise.
        Some(unsafe { core::slice::from_raw_parts(self.base.as_ptr().add(at), len) })
    }

    /// Payload bytes `at..at + len` to write, when they lie inside.
    ///
    /// # Safety
    ///
    /// By the ring's protocol the range is ours alone for as long as the slice lives, and no other
    /// slice of it exists.
    #[expect(
        clippy::mut_from_ref,
        reason = "exclusive by the ring's protocol, not by the borrow"
    )]
    pub(super) unsafe fn payload_mut(&self, at: usize, len: usize) -> Option<&mut [u8]> {
        if at.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: inside the mapping, which is initialised memory; exclusive by the caller's promise.
        Some(unsafe { core::slice::from_raw_parts_mut(self.base.as_ptr().add(at), len) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and borrowed by nobody. Failure is impossible for a whole mapping.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_outside_or_unaligned_are_refused() {
        let map = Mapping::anonymous(4096).unwrap();
        assert_eq!(map.store_u32(4092, 7), Some(()));
        assert_eq!(map.load_u32(4092), Some(7));
        for at in [4093, 4096, usize::MAX, usize::MAX - 3] {
            assert_eq!((map.load_u32(at), map.store_u32(at, 1)), (None, None));
        }
        assert_eq!(map.load_u32(2), None);
        assert_eq!((map.load_u64(4), map.load_u64(4092)), (None, None));
        assert_eq!((map.load_u16(1), map.load_u16(4096)), (None, None));
    }

    #[test]
    fn payload_outside_is_refused() {
        let map = Mapping::anonymous(4096).unwrap();
        // SAFETY: nobody else knows the mapping, and slices end before the next one is made.
        unsafe {
            assert_eq!(map.payload(4000, 96).map(<[u8]>::len), Some(96));
            assert!(map.payload(4000, 97).is_none());
            assert!(map.payload(usize::MAX, 2).is_none());
            assert!(map.payload_mut(4096, 1).is_none());
            assert_eq!(map.payload_mut(4096, 0).map(|s| s.len()), Some(0));
        }
    }
}
