//! The index of a hash map: chains of pooled elements, read without a lock.
//!
//! Elements are preallocated and never freed, so an element number stays a valid place for ever,
//! like a value pointer inside an RCU section. A reader may meet an element that was removed and
//! reused while it looked: each element has a version that changes on reuse, and a chain's end
//! names its bucket, so a reader that strayed notices and starts again. Writers exclude each
//! other by a flag they try a bounded number of times.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicBool, AtomicU32, fence};

use super::words::Words;
use super::{EXIST, MapError, NOEXIST};

/// Attempts to take the writer flag before EBUSY. A writer holds it for one chain walk.
const WRITER_ATTEMPTS_MAX: u32 = 10_000;
/// Restarts of a lookup before it reports "not there". Each restart needs a concurrent reuse.
const LOOKUP_RESTARTS_MAX: u32 = 100;
/// Set in a chain's end marker, whose other bits name the bucket.
const END: u32 = 1 << 31;
/// Set in the version of an element that holds a key; the bits above count reuses.
const LIVE: u32 = 1;

/// What a lookup found in one walk.
enum Walk {
    Found(usize),
    Absent,
    /// The chain changed under the reader.
    Strayed,
}

#[derive(Debug)]
pub(super) struct Hash {
    key_bytes: usize,
    seed: u64,
    /// First element of each bucket's chain, or its end marker. A power of two of them.
    heads: Box<[AtomicU32]>,
    /// Per element, the next of its chain or the end marker.
    next: Box<[AtomicU32]>,
    /// Per element, [`LIVE`] and a count of its reuses.
    version: Box<[AtomicU32]>,
    keys: Words,
    /// A stack of the free elements; `free_len` of it are valid. Writers only.
    free: Box<[AtomicU32]>,
    free_len: AtomicU32,
    writer: AtomicBool,
}

/// Releases the writer flag.
struct Writer<'a>(&'a AtomicBool);

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

impl Hash {
    /// An empty index for `entries` elements. None if the allocator has no room.
    pub(super) fn new(entries: usize, key_bytes: usize, seed: u64) -> Option<Self> {
        let count = u32::try_from(entries).ok().filter(|&count| count < END)?;
        let buckets = count.checked_next_power_of_two()?;
        Some(Self {
            key_bytes,
            seed,
            heads: cells(buckets, |bucket| END | bucket)?,
            next: cells(count, |_| END)?,
            version: cells(count, |_| 0)?,
            keys: Words::zeroed(entries * key_bytes.div_ceil(8))?,
            // The first insert takes element 0.
            free: cells(count, |i| count - 1 - i)?,
            free_len: AtomicU32::new(count),
            writer: AtomicBool::new(false),
        })
    }

    /// The element that holds `key`.
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        let bucket = self.bucket(key);
        for _ in 0..LOOKUP_RESTARTS_MAX {
            match self.walk(bucket, key) {
                Walk::Found(elem) => return Some(elem),
                Walk::Absent => return None,
                Walk::Strayed => {}
            }
        }
        None
    }

    /// Inserts or finds `key` as `flags` allow and lets `fill` write the value, before a new
    /// element becomes visible.
    pub(super) fn insert(
        &self,
        key: &[u8],
        flags: u64,
        fill: impl FnOnce(usize),
    ) -> Result<(), MapError> {
        let _writer = self.lock()?;
        match self.find(key) {
            Some(_) if flags == NOEXIST => return Err(MapError::Exists),
            None if flags == EXIST => return Err(MapError::NotFound),
            Some(elem) => fill(elem),
            None => {
                let elem = self.take_free().ok_or(MapError::Full)?;
                // A reader that sees any of the new key also sees that the element died.
                fence(SeqCst);
                self.keys.write(self.key_at(elem), key);
                fill(elem);
                self.publish(elem, self.bucket(key));
            }
        }
        Ok(())
    }

    /// Removes `key`.
    pub(super) fn remove(&self, key: &[u8]) -> Result<(), MapError> {
        let _writer = self.lock()?;
        let elem = self.find(key).ok_or(MapError::NotFound)?;
        self.unlink(elem, self.bucket(key));
        Ok(())
    }

    /// The key of the first live element from number `from` on.
    pub(super) fn key_from(&self, from: usize) -> Option<Vec<u8>> {
        let live = self.version.iter().enumerate().skip(from);
        for (elem, version) in live {
            let before = version.load(SeqCst);
            let mut key = alloc::vec![0; self.key_bytes];
            if before & LIVE != 0
                && self.keys.read(self.key_at(elem), &mut key)
                && version.load(SeqCst) == before
            {
                return Some(key);
            }
        }
        None
    }

    /// One walk along a chain.
    fn walk(&self, bucket: u32, key: &[u8]) -> Walk {
        let mut at = load(&self.heads, bucket);
        // A strayed reader could be led in a circle; no chain is longer than the pool.
        for _ in 0..=self.version.len() {
            if at & END != 0 {
                return if at == END | bucket {
                    Walk::Absent
                } else {
                    Walk::Strayed
                };
            }
            let elem = at as usize;
            let before = load(&self.version, at);
            let matches = self.keys.equals(self.key_at(elem), key);
            at = load(&self.next, at);
            // The key was read before the version is read again.
            fence(SeqCst);
            if before & LIVE == 0 || load(&self.version, elem as u32) != before {
                return Walk::Strayed;
            }
            if matches {
                return Walk::Found(elem);
            }
        }
        Walk::Strayed
    }

    fn lock(&self) -> Result<Writer<'_>, MapError> {
        for _ in 0..WRITER_ATTEMPTS_MAX {
            if !self.writer.swap(true, SeqCst) {
                return Ok(Writer(&self.writer));
            }
            core::hint::spin_loop();
        }
        Err(MapError::Busy)
    }

    /// Pops a free element. Writers only.
    fn take_free(&self) -> Option<usize> {
        let len = self.free_len.load(SeqCst).checked_sub(1)?;
        self.free_len.store(len, SeqCst);
        self.free
            .get(len as usize)
            .map(|elem| elem.load(SeqCst) as usize)
    }

    /// Makes a filled element the first of its chain. Writers only.
    fn publish(&self, elem: usize, bucket: u32) {
        let number = elem as u32;
        store(&self.next, number, load(&self.heads, bucket));
        store(
            &self.version,
            number,
            load(&self.version, number).wrapping_add(LIVE),
        );
        store(&self.heads, bucket, number);
    }

    /// Takes an element out of its chain and frees it. Its `next` keeps pointing along the chain
    /// for readers that stand on it. Writers only.
    fn unlink(&self, elem: usize, bucket: u32) {
        let number = elem as u32;
        let behind = load(&self.next, number);
        let mut at = load(&self.heads, bucket);
        if at == number {
            store(&self.heads, bucket, behind);
        }
        while at & END == 0 {
            let next = load(&self.next, at);
            if next == number {
                store(&self.next, at, behind);
                break;
            }
            at = next;
        }
        store(
            &self.version,
            number,
            load(&self.version, number).wrapping_add(LIVE),
        );
        let len = self.free_len.load(SeqCst);
        store(&self.free, len, number);
        self.free_len.store(len + 1, SeqCst);
    }

    /// Byte offset of an element's key.
    const fn key_at(&self, elem: usize) -> usize {
        elem * self.key_bytes.div_ceil(8) * 8
    }

    /// The bucket of a key: a multiply-and-fold hash over its words, keyed by the seed.
    fn bucket(&self, key: &[u8]) -> u32 {
        let hash = key
            .chunks(8)
            .fold(self.seed ^ key.len() as u64, |hash, chunk| {
                let mut bytes = [0; 8];
                bytes.iter_mut().zip(chunk).for_each(|(d, &s)| *d = s);
                mix(hash ^ u64::from_le_bytes(bytes))
            });
        // `heads` is a power of two of at most 2^31.
        mix(hash ^ self.seed) as u32 & (self.heads.len() as u32 - 1)
    }
}

/// splitmix64's finaliser.
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// `count` cells with given initial values. None if the allocator has no room.
fn cells(count: u32, initial: impl Fn(u32) -> u32) -> Option<Box<[AtomicU32]>> {
    let mut cells = Vec::new();
    cells.try_reserve_exact(count as usize).ok()?;
    cells.extend((0..count).map(|i| AtomicU32::new(initial(i))));
    Some(cells.into_boxed_slice())
}

/// A cell's value; an end marker no bucket has if there is no such cell.
fn load(cells: &[AtomicU32], index: u32) -> u32 {
    cells
        .get(index as usize)
        .map_or(u32::MAX, |cell| cell.load(SeqCst))
}

fn store(cells: &[AtomicU32], index: u32, value: u32) {
    if let Some(cell) = cells.get(index as usize) {
        cell.store(value, SeqCst);
    }
}
