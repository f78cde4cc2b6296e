//! Buffers of one call: a single one, or an array of `iovec`.

use core::marker::PhantomData;
use core::ops::Deref;

use libc::iovec;

use super::{Efault, UserPtr, check_read, check_write, copy_in, in_user_space, lend, store};
use crate::errno::{Errno, Exit, Outcome};

/// Entries an array may have: UIO_MAXIOV of the kernel.
const ENTRIES_MAX: usize = 1024;

/// Bytes one call may move, MAX_RW_COUNT of the kernel: what is more is cut off, not refused.
const BYTES_MAX: usize = (i32::MAX & !0xfff) as usize;

/// Where a call's bytes come from or go to. Nothing behind the buffers' addresses has been looked at.
///
/// The entries of an array stay in the program's memory and are read again by each walk over them.
/// A program that changes them meanwhile moves bytes to where it says at that moment; every buffer
/// is checked as it is then, and the total stays what it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Iovecs<'a> {
    /// The one buffer, or the array.
    at: UserPtr,
    /// Entries of the array; 0 means one buffer of `total` bytes.
    ///
    /// Three plain words, and no enum: they stay in registers on the way through a receive.
    entries: usize,
    total: usize,
    /// The call for whose length the program lends the memory.
    call: PhantomData<&'a [u8]>,
}

impl<'a> Iovecs<'a> {
    /// The buffer of read(2) and write(2).
    ///
    /// # Errors
    /// `EFAULT`: it leaves user space, as any length does that is negative as `ssize_t`.
    #[inline(always)]
    pub(crate) fn one_for_rw(at: UserPtr, len: usize) -> Outcome<Self> {
        in_user_space(at, len)?;
        Ok(Self::one(at, len))
    }

    /// The buffer of recv(2) and send(2).
    ///
    /// # Errors
    /// `EFAULT`: it leaves user space, as far as the call may use it.
    #[inline(always)]
    pub(crate) fn one_for_msg(at: UserPtr, len: usize) -> Outcome<Self> {
        let one = Self::one(at, len);
        in_user_space(at, one.total)?;
        Ok(one)
    }

    /// One buffer of `len` bytes.
    #[inline(always)]
    pub(crate) fn one(at: UserPtr, len: usize) -> Self {
        Self {
            at,
            entries: 0,
            total: len.min(BYTES_MAX),
            call: PhantomData,
        }
    }

    /// The array of readv(2) and writev(2).
    ///
    /// # Errors
    /// - `EINVAL`: `count` is negative or above 1024, or a length is negative as `ssize_t`.
    /// - `EFAULT`: the array cannot be read, or a buffer leaves user space.
    pub(crate) fn read_for_rw(at: UserPtr, count: i32) -> Outcome<Self> {
        match usize::try_from(count) {
            Ok(count @ 0..=ENTRIES_MAX) => Self::read(at, count),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    /// The array of a `msghdr`.
    ///
    /// # Errors
    /// - `EMSGSIZE`: `count` is above 1024.
    /// - `EINVAL`: a length is negative as `ssize_t`.
    /// - `EFAULT`: the array cannot be read, or a buffer leaves user space.
    #[inline(always)]
    pub(crate) fn read_for_msg(at: UserPtr, count: usize) -> Outcome<Self> {
        match count {
            0..=ENTRIES_MAX => Self::read(at, count),
            _ => Err(Errno::EMSGSIZE.into()),
        }
    }

    #[inline(always)]
    fn read(at: UserPtr, count: usize) -> Outcome<Self> {
        match count {
            0 => Ok(Self::one(at, 0)),
            1 => {
                let (base, len) = entry(at, 0)?;
                Self::one_for_msg(base, len)
            }
            _ => Ok(Self {
                at,
                entries: count,
                total: Self::total_of(at, count)?,
                call: PhantomData,
            }),
        }
    }

    /// Bytes in all buffers of an array.
    #[inline(never)]
    fn total_of(at: UserPtr, count: usize) -> Outcome<usize> {
        check_read(at, count * size_of::<iovec>())?;
        let mut total = 0;
        for index in 0..count {
            let (base, len) = entry(at, index)?;
            in_user_space(base, len)?;
            total += len.min(BYTES_MAX - total);
        }
        Ok(total)
    }

    /// Room in all buffers together, at most `MAX_RW_COUNT`.
    #[inline(always)]
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Fills the buffers, one after the other, with the first `bytes` bytes of `parts`, a sequence
    /// of slices that are none of the program's memory. Of `bytes` and [`total`](Self::total) the
    /// smaller counts.
    ///
    /// # Errors
    /// A buffer that bytes were due for cannot be written. Others may have been filled by then.
    #[inline(always)]
    pub(crate) fn scatter<'p>(
        &self,
        parts: impl IntoIterator<Item = &'p [u8]>,
        bytes: usize,
    ) -> Result<(), Efault> {
        let left = bytes.min(self.total);
        if self.entries > 0 {
            return self.scatter_array(&mut parts.into_iter(), left);
        }
        check_write(self.at, left)?;
        let mut filled = 0;
        for part in parts {
            // SAFETY: `left` bytes at `at` were just checked, `filled` of which are done.
            filled += unsafe { store(self.at.offset(filled), left - filled, part) };
        }
        Ok(())
    }

    #[inline(never)]
    fn scatter_array(
        &self,
        parts: &mut dyn Iterator<Item = &[u8]>,
        bytes: usize,
    ) -> Result<(), Efault> {
        let mut part: &[u8] = &[];
        for buffer in self.buffers(bytes) {
            let (at, len) = buffer.map_err(|_| Efault)?;
            check_write(at, len)?;
            let mut filled = 0;
            while filled < len {
                if part.is_empty() {
                    let Some(next) = parts.next() else {
                        return Ok(());
                    };
                    part = next;
                }
                // SAFETY: `len` bytes at `at` were just checked, `filled` of which are done.
                let count = unsafe { store(at.offset(filled), len - filled, part) };
                part = part.get(count..).unwrap_or(&[]);
                filled += count;
            }
        }
        Ok(())
    }

    /// The bytes themselves, buffer by buffer, without empty ones, readable for the length of the
    /// call. What another thread stores in them meanwhile may or may not be seen.
    ///
    /// # Errors
    /// A buffer cannot be read.
    #[inline]
    pub(crate) fn gather(&self) -> Result<Parts<'_>, Efault> {
        let mut parts = Parts::default();
        if self.entries == 0 {
            parts.push(self.at, self.total)?;
            return Ok(parts);
        }
        for buffer in self.buffers(self.total) {
            let (at, len) = buffer.map_err(|_| Efault)?;
            parts.push(at, len)?;
        }
        Ok(parts)
    }

    /// The buffers as they are now, as far as the first `bytes` bytes reach.
    fn buffers(&self, bytes: usize) -> impl Iterator<Item = Outcome<(UserPtr, usize)>> {
        let at = self.at;
        let mut left = bytes;
        (0..self.entries).map_while(move |index| {
            (left > 0).then(|| {
                let (base, len) = entry(at, index)?;
                let len = len.min(left);
                left -= len;
                Ok((base, len))
            })
        })
    }
}

/// An entry of an array; its length is not negative as `ssize_t`.
#[inline(always)]
fn entry(array: UserPtr, index: usize) -> Outcome<(UserPtr, usize)> {
    let entry = copy_in::<iovec>(array.element::<iovec>(index))?;
    if entry.iov_len > isize::MAX as usize {
        return Err(Exit::Failed(Errno::EINVAL));
    }
    Ok((UserPtr::new(entry.iov_base), entry.iov_len))
}

/// Slices of the program's memory, on the stack while they are few.
pub(crate) struct Parts<'a> {
    few: [&'a [u8]; FEW],
    count: usize,
    /// All of them, once they are more than `few` holds.
    many: Vec<&'a [u8]>,
}

/// Buffers that calls seldom exceed: a header, a body, a trailer.
const FEW: usize = 4;

impl Default for Parts<'_> {
    fn default() -> Self {
        Self {
            few: [&[]; FEW],
            count: 0,
            many: Vec::new(),
        }
    }
}

impl Parts<'_> {
    #[inline]
    fn push(&mut self, at: UserPtr, len: usize) -> Result<(), Efault> {
        if len == 0 {
            return Ok(());
        }
        check_read(at, len)?;
        // SAFETY: just checked; the program lends the memory for the call, which the parts do not
        // outlive.
        let part = unsafe { lend(at, len) };
        match self.few.get_mut(self.count) {
            Some(slot) => *slot = part,
            None => {
                if self.many.is_empty() {
                    self.many.extend_from_slice(&self.few);
                }
                self.many.push(part);
            }
        }
        self.count += 1;
        Ok(())
    }
}

impl<'a> Deref for Parts<'a> {
    type Target = [&'a [u8]];

    #[inline]
    fn deref(&self) -> &Self::Target {
        if self.many.is_empty() {
            self.few.get(..self.count).unwrap_or(&[])
        } else {
            &self.many
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iov(bytes: &mut [u8]) -> iovec {
        iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }
    }

    fn at<T>(items: &[T]) -> UserPtr {
        UserPtr::new(items.as_ptr().cast_mut().cast())
    }

    const BAD: UserPtr = UserPtr::new(core::ptr::without_provenance_mut(8));

    #[test]
    fn counts_are_bounded_as_by_the_kernel() {
        let zeros = vec![
            iovec {
                iov_base: core::ptr::null_mut(),
                iov_len: 0
            };
            ENTRIES_MAX + 1
        ];
        let rw = |count| Iovecs::read_for_rw(at(&zeros), count).map(|v| v.total());
        let msg = |count| Iovecs::read_for_msg(at(&zeros), count).map(|v| v.total());
        assert_eq!((rw(0), rw(1024)), (Ok(0), Ok(0)));
        assert_eq!((msg(0), msg(1024)), (Ok(0), Ok(0)));
        assert_eq!(rw(-1), Err(Errno::EINVAL.into()));
        assert_eq!(rw(1025), Err(Errno::EINVAL.into()));
        assert_eq!(msg(1025), Err(Errno::EMSGSIZE.into()));
        assert_eq!(msg(usize::MAX), Err(Errno::EMSGSIZE.into()));
        assert_eq!(Iovecs::read_for_msg(BAD, 0).map(|v| v.total()), Ok(0));
        assert_eq!(
            Iovecs::read_for_msg(BAD, 1).map(|_| ()),
            Err(Errno::EFAULT.into())
        );
        assert_eq!(
            Iovecs::read_for_rw(BAD, 2).map(|_| ()),
            Err(Errno::EFAULT.into())
        );
    }

    #[test]
    fn lengths_are_bounded_as_by_the_kernel() {
        let low = core::ptr::without_provenance_mut(4096);
        let entry = |iov_len| iovec {
            iov_base: low,
            iov_len,
        };
        let total =
            |entries: &[iovec]| Iovecs::read_for_msg(at(entries), entries.len()).map(|v| v.total());
        assert_eq!(total(&[entry(usize::MAX)]), Err(Errno::EINVAL.into()));
        assert_eq!(
            total(&[entry(1), entry(1 << 63)]),
            Err(Errno::EINVAL.into())
        );
        assert_eq!(total(&[entry(1 << 32)]), Ok(BYTES_MAX));
        assert_eq!(total(&[entry(1 << 31), entry(7)]), Ok(BYTES_MAX));
        assert_eq!(total(&[entry(3), entry(4)]), Ok(7));
        assert_eq!(
            total(&[entry(3), entry(1 << 62)]),
            Err(Errno::EFAULT.into())
        );
        assert_eq!(Iovecs::one(BAD, usize::MAX).total(), BYTES_MAX);
    }

    /// All ways to cut 6 bytes into parts and 6 bytes of room into buffers, for all lengths.
    #[test]
    fn scatter_and_gather_do_not_depend_on_how_bytes_are_cut() {
        const BYTES: &[u8; 6] = b"abcdef";
        let cut = |mask: u32| {
            let mut ends: Vec<usize> = (1..6).filter(|i| mask & 1 << (i - 1) != 0).collect();
            ends.push(6);
            ends.iter()
                .scan(0, |from, &end| Some(core::mem::replace(from, end)..end))
                .collect()
        };
        for (parts, buffers) in (0..32).flat_map(|p| (0..32).map(move |b| (p, b))) {
            let parts: Vec<core::ops::Range<usize>> = cut(parts);
            let buffers: Vec<core::ops::Range<usize>> = cut(buffers);
            for bytes in 0..=6 {
                let mut room = [b'.'; 6];
                let base = room.as_mut_ptr();
                let vec: Vec<iovec> = buffers
                    .iter()
                    .flat_map(|r| {
                        let iov_base = base.wrapping_add(r.start).cast();
                        // An empty buffer in between, at an address nobody may touch.
                        let empty = iovec {
                            iov_base: BAD.0,
                            iov_len: 0,
                        };
                        [
                            iovec {
                                iov_base,
                                iov_len: r.len(),
                            },
                            empty,
                        ]
                    })
                    .collect();
                let iovecs = Iovecs::read_for_msg(at(&vec), vec.len()).unwrap();
                iovecs
                    .scatter(parts.iter().map(|r| &BYTES[r.clone()]), bytes)
                    .unwrap();
                let want: Vec<u8> = (0..6)
                    .map(|i| if i < bytes { BYTES[i] } else { b'.' })
                    .collect();
                assert_eq!(iovecs.gather().unwrap().concat(), want);
                assert_eq!(iovecs.gather().unwrap().len(), buffers.len());
                assert_eq!(room.as_slice(), want);
            }
        }
    }

    #[test]
    fn bad_buffer_counts_only_if_bytes_are_due_for_it() {
        let mut room = [0; 4];
        let bad = iovec {
            iov_base: BAD.0,
            iov_len: 4,
        };
        let vec = [iov(&mut room), bad];
        let iovecs = Iovecs::read_for_msg(at(&vec), 2).unwrap();
        assert_eq!(iovecs.scatter([&b"abcd"[..]], 4), Ok(()));
        assert_eq!(iovecs.scatter([&b"abcde"[..]], 5), Err(Efault));
        assert!(iovecs.gather().is_err());
        assert_eq!(&room, b"abcd");
        let one = Iovecs::one(BAD, 4);
        assert_eq!(one.scatter([&b""[..]], 0), Ok(()));
        assert_eq!(one.scatter([&b"a"[..]], 1), Err(Efault));
        assert!(one.gather().is_err());
    }

    #[test]
    fn array_changed_during_the_call_moves_bytes_to_where_it_says_then() {
        let (mut old, mut new) = ([0; 4], [0; 2]);
        let mut vec = [iov(&mut old), iov(&mut [])];
        let iovecs = Iovecs::read_for_msg(at(&vec), 2).unwrap();
        vec[0] = iov(&mut new);
        iovecs.scatter([&b"abcd"[..]], 4).unwrap();
        assert_eq!((&old, &new), (&[0; 4], b"ab"));
        vec[0].iov_len = usize::MAX;
        assert_eq!(iovecs.scatter([&b"abcd"[..]], 4), Err(Efault));
        assert_eq!(vec.len(), 2);
    }
}
