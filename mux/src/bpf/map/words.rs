//! Bytes kept in shared atomic words, so that programs on any thread and bpf(2) calls touch the
//! same values without a lock and without `unsafe`.
//!
//! A program's access is a relaxed load or store of the words it covers: like the kernel's plain
//! accesses, an access inside one aligned word is never torn, a wider one may be.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use crate::bpf::insn::atomic;

/// A fixed run of zero-initialised words.
#[derive(Debug)]
pub(super) struct Words(Box<[AtomicU64]>);

impl Words {
    /// `count` zero words. None if the allocator has no room.
    pub(super) fn zeroed(count: usize) -> Option<Self> {
        let mut words = Vec::new();
        words.try_reserve_exact(count).ok()?;
        words.resize_with(count, AtomicU64::default);
        Some(Self(words.into_boxed_slice()))
    }

    /// Loads `bytes` (1, 2, 4 or 8) at any byte offset. None outside.
    pub(super) fn load(&self, off: usize, bytes: usize) -> Option<u64> {
        let (index, shift) = (off / 8, 8 * (off % 8));
        let low = self.0.get(index)?.load(Relaxed) >> shift;
        if shift + 8 * bytes <= 64 {
            return Some(low & mask(bytes));
        }
        let high = self.0.get(index + 1)?.load(Relaxed) << (64 - shift);
        Some((low | high) & mask(bytes))
    }

    /// Stores the low `bytes` of `value` at any byte offset. None, and no change, outside.
    pub(super) fn store(&self, off: usize, bytes: usize, value: u64) -> Option<()> {
        let (index, shift) = (off / 8, 8 * (off % 8));
        let word = self.0.get(index)?;
        if bytes == 8 && shift == 0 {
            word.store(value, Relaxed);
            return Some(());
        }
        let (mask, value) = (mask(bytes), value & mask(bytes));
        if shift + 8 * bytes > 64 {
            let high = self.0.get(index + 1)?;
            replace(high, mask >> (64 - shift), value >> (64 - shift));
        }
        replace(word, mask << shift, value << shift);
        Some(())
    }

    /// An atomic read-modify-write of an aligned 4- or 8-byte cell. `op` is the instruction's
    /// immediate; `expected` is r0 for `CMPXCHG`. The old value, or None if misplaced.
    pub(super) fn update(
        &self,
        off: usize,
        bytes: usize,
        op: i64,
        operand: u64,
        expected: u64,
    ) -> Option<u64> {
        if !off.is_multiple_of(bytes) {
            return None;
        }
        let shift = 8 * (off % 8);
        let (mask, word) = (mask(bytes), self.0.get(off / 8)?);
        let mut seen = word.load(SeqCst);
        loop {
            let old = (seen >> shift) & mask;
            let new = modify(op, old, operand & mask, expected & mask)? & mask;
            let whole = seen & !(mask << shift) | new << shift;
            match word.compare_exchange_weak(seen, whole, SeqCst, SeqCst) {
                Ok(_) => return Some(old),
                Err(now) => seen = now,
            }
        }
    }

    /// Copies bytes out; false if they are not all inside.
    pub(super) fn read(&self, off: usize, dst: &mut [u8]) -> bool {
        let words = dst.chunks_mut(8).enumerate();
        words.fold(true, |ok, (i, chunk)| {
            let value = chunk_load(self, off + 8 * i, chunk.len());
            value
                .map(|v| {
                    chunk
                        .iter_mut()
                        .zip(v.to_le_bytes())
                        .for_each(|(d, s)| *d = s)
                })
                .is_some()
                && ok
        })
    }

    /// Copies bytes in; false if they did not all fit.
    pub(super) fn write(&self, off: usize, src: &[u8]) -> bool {
        src.chunks(8).enumerate().fold(true, |ok, (i, chunk)| {
            let at = off + 8 * i;
            let stored = match <[u8; 8]>::try_from(chunk) {
                Ok(whole) => self.store(at, 8, u64::from_le_bytes(whole)),
                Err(_) => chunk
                    .iter()
                    .enumerate()
                    .try_for_each(|(j, &byte)| self.store(at + j, 1, u64::from(byte))),
            };
            stored.is_some() && ok
        })
    }

    /// Whether the bytes at `off` equal `key`.
    pub(super) fn equals(&self, off: usize, key: &[u8]) -> bool {
        key.chunks(8).enumerate().all(|(i, chunk)| {
            let mut bytes = [0; 8];
            bytes.iter_mut().zip(chunk).for_each(|(d, &s)| *d = s);
            chunk_load(self, off + 8 * i, chunk.len()) == Some(u64::from_le_bytes(bytes))
        })
    }
}

/// Up to eight bytes as the low part of a word.
fn chunk_load(words: &Words, off: usize, bytes: usize) -> Option<u64> {
    if bytes == 8 {
        return words.load(off, 8);
    }
    (0..bytes).try_fold(0, |acc, i| Some(acc | words.load(off + i, 1)? << (8 * i)))
}

/// The low `bytes` of a word.
const fn mask(bytes: usize) -> u64 {
    if bytes >= 8 {
        u64::MAX
    } else {
        (1 << (8 * bytes)) - 1
    }
}

/// Replaces the bits under `mask`, keeping concurrent stores to the word's other bytes.
fn replace(word: &AtomicU64, mask: u64, value: u64) {
    let _ = word.fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | value));
}

/// The new value of an atomic operation; None for an unknown one.
pub(crate) fn modify(op: i64, old: u64, operand: u64, expected: u64) -> Option<u64> {
    Some(match op {
        atomic::XCHG => operand,
        atomic::CMPXCHG if old == expected => operand,
        atomic::CMPXCHG => old,
        _ => match op & !atomic::FETCH {
            atomic::ADD => old.wrapping_add(operand),
            atomic::OR => old | operand,
            atomic::AND => old & operand,
            atomic::XOR => old ^ operand,
            _ => return None,
        },
    })
}
