//! The host program's memory: pointers it passes become values, or EFAULT where the kernel would
//! have said so.
//!
//! A system call survives any pointer; a library function does not, unless it looks first. Looking
//! costs a system call ([`probe`]), so its answer is remembered page by page ([`known`]) until a call
//! that takes pages or rights away [`invalidate`]s it. In steady state a check costs a nanosecond.
//!
//! Check only what is about to be touched. To look at a page is to touch it: a program may offer a
//! gigabyte of reserved address space to a receive that fills sixty-four bytes of it.
//!
//! # What the kernel does better
//! - *A page that disappears between the look and the touch*, because another thread unmaps it during
//!   the call, ends in SIGSEGV instead of EFAULT. Such a program has the same race with every store
//!   of its own.
//! - *A page that disappeared unseen* does so too: unmapped inside glibc (a large `free`, a thread's
//!   stack after its end, `dlclose`), by a raw system call, or cut off by another process that
//!   shortens the file beneath. Only a program that passes a dangling pointer to once good memory
//!   notices.
//! - Memory that other threads write during the call is copied as they leave it, as by the kernel.
//! - Pointers with a tag in the upper byte (aarch64, on request) are answered EFAULT.

#![allow(unsafe_code)]

mod in_place;
mod iovecs;
mod known;
mod probe;
#[cfg(test)]
mod tests;

use core::ffi::c_void;

use crate::errno::{Errno, Exit, Outcome};
use crate::values;

pub(crate) use in_place::{InPlace, Writable};
pub(crate) use iovecs::Iovecs;
pub(crate) use known::invalidate;

use known::{Generation, KNOWN};

/// The program passed memory that it cannot use in this way itself: EFAULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Efault;

impl From<Efault> for Errno {
    fn from(_: Efault) -> Self {
        Self::EFAULT
    }
}

impl From<Efault> for Exit {
    fn from(_: Efault) -> Self {
        Self::Failed(Errno::EFAULT)
    }
}

/// What is to be done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    /// Implies that reading works: no user page of x86-64 or aarch64 is write-only.
    Write,
}

/// First address that is surely none of a program's. User space ends at 2^47 or 2^56, by machine
/// and kernel; in between, the probe finds out.
const USER_END: usize = 1 << 56;

/// An address that the program passed, not looked at yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UserPtr(*mut c_void);

impl UserPtr {
    #[inline]
    pub(crate) const fn new(ptr: *mut c_void) -> Self {
        Self(ptr)
    }

    /// The pointer itself, for a real call, which checks it.
    pub(crate) fn raw(self) -> *mut c_void {
        self.0
    }

    #[inline]
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The address `bytes` further on. Wraps, as only a pointer that is refused later can.
    #[inline]
    pub(crate) fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_byte_add(bytes))
    }

    /// The address of an element of an array of `T` that starts here.
    #[inline]
    pub(crate) fn element<T>(self, index: usize) -> Self {
        self.offset(index.wrapping_mul(size_of::<T>()))
    }

    fn addr(self) -> usize {
        self.0.addr()
    }
}

/// A value that is any pattern of its bytes, and may hence come from anywhere.
///
/// # Safety
/// Every bit pattern of the type is a valid value, and the type has no lifetime.
pub(crate) unsafe trait Pod: Copy + 'static {}

macro_rules! plain_old_data {
    ($($ty:ty)*) => {
        // SAFETY: integers, and C structures of integers and raw pointers.
        $(unsafe impl Pod for $ty {})*
    };
}
plain_old_data! {
    u8 i16 u16 i32 u32 i64 u64 usize
    libc::iovec libc::msghdr libc::mmsghdr libc::cmsghdr
    libc::epoll_event libc::pollfd libc::timespec libc::timeval
}
// SAFETY: an array has no bytes but its elements'.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}

/// Whether the program itself could read `len` bytes at `at`. No bytes can always be read.
#[inline(always)]
pub(crate) fn check_read(at: UserPtr, len: usize) -> Result<(), Efault> {
    check(at, len, Access::Read)
}

/// Whether the program itself could write `len` bytes at `at`. No bytes can always be written.
#[inline(always)]
pub(crate) fn check_write(at: UserPtr, len: usize) -> Result<(), Efault> {
    check(at, len, Access::Write)
}

#[inline(always)]
fn check(at: UserPtr, len: usize, access: Access) -> Result<(), Efault> {
    if KNOWN.covers(at.addr(), len, access) {
        Ok(())
    } else {
        check_pages(at, len, access)
    }
}

/// Whether `len` bytes at `at` lie in a page that is already known to be readable. Asks nobody.
#[inline(always)]
pub(crate) fn is_known(at: UserPtr, len: usize) -> bool {
    KNOWN.covers(at.addr(), len, Access::Read)
}

/// A point in time, for [`was_read`].
#[derive(Clone, Copy)]
pub(crate) struct Moment(Generation);

impl Moment {
    pub(crate) fn now() -> Self {
        Self(KNOWN.now())
    }
}

/// The kernel has read `len` bytes at `at` for the program, in a call that began at `before`.
pub(crate) fn was_read(at: UserPtr, len: usize, before: Moment) {
    if let Ok(range) = Range::new(at, len) {
        for page in range.pages() {
            KNOWN.learn(page, Access::Read, before.0);
        }
    }
}

#[inline(never)]
fn check_pages(at: UserPtr, len: usize, access: Access) -> Result<(), Efault> {
    if len == 0 {
        return Ok(());
    }
    let range = Range::new(at, len)?;
    let now = KNOWN.now();
    if !range.pages().all(|page| KNOWN.holds(page, access, now)) {
        probe::pages(range, access)?;
        for page in range.pages() {
            KNOWN.learn(page, access, now);
        }
    }
    Ok(())
}

/// Whether `len` bytes at `at` lie where user space may be; what the kernel calls `access_ok`.
#[inline(always)]
fn in_user_space(at: UserPtr, len: usize) -> Result<(), Efault> {
    match at.addr().checked_add(len) {
        Some(end) if end <= USER_END => Ok(()),
        _ => Err(Efault),
    }
}

/// At least one byte of what may be user space.
#[derive(Clone, Copy)]
struct Range {
    first: usize,
    /// Address of the last byte.
    last: usize,
}

impl Range {
    #[inline]
    fn new(at: UserPtr, len: usize) -> Result<Self, Efault> {
        in_user_space(at, len)?;
        let last = at
            .addr()
            .checked_add(len)
            .and_then(|end| end.checked_sub(1))
            .ok_or(Efault)?;
        Ok(Self {
            first: at.addr(),
            last,
        })
    }

    /// The 4 KiB pages it touches. Where pages are larger, so is the kernel's answer.
    fn pages(self) -> impl Iterator<Item = Page> {
        (self.first >> PAGE_BITS..=self.last >> PAGE_BITS).map(Page)
    }
}

/// Number of a 4 KiB page; below 2^44.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page(usize);

const PAGE_BITS: u32 = 12;

/// A copy of the value at `at`, which need not be aligned.
#[inline(always)]
pub(crate) fn copy_in<T: Pod>(at: UserPtr) -> Result<T, Efault> {
    check_read(at, size_of::<T>())?;
    // SAFETY: the bytes were just checked to be readable, and any bytes make a `T`.
    Ok(unsafe { at.0.cast::<T>().read_unaligned() })
}

/// Stores a value at `at`, which need not be aligned.
#[inline(always)]
pub(crate) fn copy_out<T: Pod>(at: UserPtr, value: &T) -> Result<(), Efault> {
    check_write(at, size_of::<T>())?;
    // SAFETY: the bytes were just checked to be writable.
    unsafe { at.0.cast::<T>().write_unaligned(*value) };
    Ok(())
}

/// Fills `bytes` from the program's memory.
#[inline]
pub(crate) fn read_bytes(at: UserPtr, bytes: &mut [u8]) -> Result<(), Efault> {
    check_read(at, bytes.len())?;
    // SAFETY: the source was just checked; a slice of ours is no memory of the program's.
    unsafe {
        at.0.cast::<u8>()
            .copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len())
    };
    Ok(())
}

/// The value of an option, or as much of it as `room` takes.
///
/// # Errors
/// `EINVAL` for one shorter than `least` bytes, `EFAULT`.
pub(crate) fn value(at: UserPtr, length: u32, least: usize, room: &mut [u8]) -> Outcome<&[u8]> {
    let count = usize::try_from(length as i32).map_err(|_| Errno::EINVAL)?;
    if count < least {
        return Err(Errno::EINVAL.into());
    }
    let count = count.min(room.len());
    let bytes = room.get_mut(..count).unwrap_or_default();
    read_bytes(at, bytes)?;
    Ok(bytes)
}

/// The value of an option that is an int.
///
/// # Errors
/// As [`value`].
pub(crate) fn int_value(at: UserPtr, length: u32) -> Outcome<i32> {
    let mut room = [0; size_of::<i32>()];
    let bytes = value(at, length, room.len(), &mut room)?;
    Ok(values::int(bytes).ok_or(Errno::EINVAL)?)
}

/// Stores `bytes` in the program's memory.
#[inline]
pub(crate) fn write_bytes(at: UserPtr, bytes: &[u8]) -> Result<(), Efault> {
    check_write(at, bytes.len())?;
    // SAFETY: the target was just checked; a slice of ours is no memory of the program's.
    unsafe {
        at.0.cast::<u8>()
            .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
    };
    Ok(())
}

/// A copy of `count` words, such as a bit set of select(2).
pub(crate) fn copy_in_words(at: UserPtr, count: usize) -> Result<Vec<u64>, Efault> {
    check_read(at, count.checked_mul(size_of::<u64>()).ok_or(Efault)?)?;
    (0..count)
        .map(|index| copy_in(at.element::<u64>(index)))
        .collect()
}

/// Stores words one after the other.
pub(crate) fn copy_out_words(at: UserPtr, words: &[u64]) -> Result<(), Efault> {
    words
        .iter()
        .enumerate()
        .try_for_each(|(index, word)| copy_out(at.element::<u64>(index), word))
}

/// The string at `at` without its final zero, copied to `room`; `None` if it does not fit there
/// with the zero, or cannot be read.
pub(crate) fn read_str(at: UserPtr, room: &mut [u8]) -> Option<&[u8]> {
    for length in 0..room.len() {
        let byte = copy_in::<u8>(at.offset(length)).ok()?;
        if byte == 0 {
            return room.get(..length);
        }
        *room.get_mut(length)? = byte;
    }
    None
}

/// Copies as much of `bytes` as `len` allows to memory that was checked; returns how much.
///
/// # Safety
/// `len` bytes at `at` are writable, and `bytes` lies elsewhere.
#[inline(always)]
unsafe fn store(at: UserPtr, len: usize, bytes: &[u8]) -> usize {
    let count = bytes.len().min(len);
    // SAFETY: the caller vouches for both sides, and neither is exceeded.
    unsafe { copy(bytes.as_ptr(), at.0.cast(), count) };
    count
}

/// `ptr::copy_nonoverlapping`, without a call for the lengths that messages most often have.
///
/// # Safety
/// As for `ptr::copy_nonoverlapping`.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    /// What one register moves.
    type Piece = [u8; PIECE];
    const PIECE: usize = 16;
    /// From here on, memcpy is as fast.
    const LONG: usize = 128;
    if !(PIECE..=LONG).contains(&count) {
        // SAFETY: as the caller says.
        return unsafe { to.copy_from_nonoverlapping(from, count) };
    }
    let last = count - PIECE;
    let mut done = 0;
    while done < last {
        // SAFETY: a piece from `done` on ends before `count`.
        unsafe {
            let piece = from.add(done).cast::<Piece>().read_unaligned();
            to.add(done).cast::<Piece>().write_unaligned(piece);
        }
        done += PIECE;
    }
    // SAFETY: the last piece ends at `count`; some of it may have been copied already.
    unsafe {
        let piece = from.add(last).cast::<Piece>().read_unaligned();
        to.add(last).cast::<Piece>().write_unaligned(piece);
    }
}

/// Bytes of the program's for the length of a call.
///
/// # Safety
/// `len` bytes at `at` are readable, and stay so for `'a`.
unsafe fn lend<'a>(at: UserPtr, len: usize) -> &'a [u8] {
    // SAFETY: the caller vouches for the memory; what a program has mapped has a value.
    unsafe { core::slice::from_raw_parts(at.0.cast::<u8>().cast_const(), len) }
}
