//! Stream buffers made of pooled blocks.
//!
//! A connection owns blocks only while bytes are in flight or unread: a small block for a message or
//! two, full ones once the queue outgrows it, so that a million connections with a short answer in
//! flight each need 256 MiB and not 4 GiB. Both queues are byte streams addressed by offset from
//! their first byte; neither knows sequence numbers.

use std::collections::VecDeque;

/// Bytes in a block: two full Ethernet payloads and some, small enough for a 64-byte echo to
/// stay within a page.
pub(crate) const BLOCK_BYTES: usize = 4096;

type Block = Box<[u8; BLOCK_BYTES]>;

/// Bytes in a small block: what most requests and answers fit in, four cache lines.
const SMALL_BYTES: usize = 256;

type Small = Box<[u8; SMALL_BYTES]>;

/// All blocks of an engine. Never exceeds its limit; never returns memory to the allocator
/// beyond a reserve, so steady traffic does not allocate.
#[derive(Debug)]
pub(crate) struct BlockPool {
    free: Vec<Block>,
    free_small: Vec<Small>,
    /// Bytes in blocks handed out, and their most.
    used: usize,
    limit: usize,
}

/// Free blocks kept for reuse (64 MiB); more are given back to the allocator.
const FREE_BLOCKS_MAX: usize = 16 * 1024;
/// Free small blocks kept for reuse (16 MiB).
const FREE_SMALL_MAX: usize = 64 * 1024;

impl BlockPool {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            free: Vec::new(),
            free_small: Vec::new(),
            used: 0,
            limit: limit_bytes.max(4 * BLOCK_BYTES),
        }
    }

    fn take(&mut self) -> Option<Block> {
        self.charge(BLOCK_BYTES)?;
        let fresh = || Box::new([0; BLOCK_BYTES]);
        Some(self.free.pop().unwrap_or_else(fresh))
    }

    fn give(&mut self, block: Block) {
        self.used -= BLOCK_BYTES;
        if self.free.len() < FREE_BLOCKS_MAX {
            self.free.push(block);
        }
    }

    fn take_small(&mut self) -> Option<Small> {
        self.charge(SMALL_BYTES)?;
        let fresh = || Box::new([0; SMALL_BYTES]);
        Some(self.free_small.pop().unwrap_or_else(fresh))
    }

    fn give_small(&mut self, block: Small) {
        self.used -= SMALL_BYTES;
        if self.free_small.len() < FREE_SMALL_MAX {
            self.free_small.push(block);
        }
    }

    /// A full block that begins with what a small one holds, which comes back.
    fn outgrow(
        &mut self,
        small: &mut Option<Small>,
        held: core::ops::Range<usize>,
    ) -> Option<Block> {
        let mut block = self.take()?;
        if let Some(old) = small.take() {
            block[..held.len()].copy_from_slice(&old[held]);
            self.give_small(old);
        }
        Some(block)
    }

    fn charge(&mut self, bytes: usize) -> Option<()> {
        let used = self.used + bytes;
        (used <= self.limit).then(|| self.used = used)
    }

    /// Bytes in blocks handed out.
    pub(crate) fn used_bytes(&self) -> usize {
        self.used
    }

    /// Above three quarters of the limit, windows and send buffers shrink (tcp_mem's "pressure").
    pub(crate) fn under_pressure(&self) -> bool {
        self.used * 4 > self.limit * 3
    }

    /// Out-of-order data may use the pool up to here; the rest is for data that makes progress.
    fn is_tight(&self) -> bool {
        self.used * 8 > self.limit * 7
    }
}

/// Bytes from the first unacknowledged to the last the application wrote.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    /// Holds everything while it fits; then `blocks` is empty.
    small: Option<Small>,
    blocks: VecDeque<Block>,
    /// Offset of the stream's first byte in the first block.
    head: usize,
    len: usize,
}

impl SendQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends as much of `data` as the pool gives blocks for; the count appended.
    pub(crate) fn push(&mut self, pool: &mut BlockPool, data: &[u8]) -> usize {
        if data.is_empty() {
            return 0;
        }
        let end = self.head + self.len;
        if self.blocks.is_empty() && end + data.len() <= SMALL_BYTES {
            if self.small.is_none() {
                self.small = pool.take_small();
            }
            let Some(small) = &mut self.small else {
                return 0;
            };
            small[end..end + data.len()].copy_from_slice(data);
            self.len += data.len();
            return data.len();
        }
        if self.small.is_some() {
            let Some(block) = pool.outgrow(&mut self.small, self.head..end) else {
                return 0;
            };
            self.blocks.push_back(block);
            self.head = 0;
        }
        let mut done = 0;
        while done < data.len() {
            let tail = self.head + self.len;
            let at = tail % BLOCK_BYTES;
            if tail == self.blocks.len() * BLOCK_BYTES {
                let Some(block) = pool.take() else { break };
                self.blocks.push_back(block);
            }
            let Some(block) = self.blocks.back_mut() else {
                break;
            };
            let n = (data.len() - done).min(BLOCK_BYTES - at);
            block[at..at + n].copy_from_slice(&data[done..done + n]);
            done += n;
            self.len += n;
        }
        done
    }

    /// Copies `out.len()` bytes starting `offset` bytes into the queue. The range must exist.
    pub(crate) fn copy_to(&self, offset: usize, out: &mut [u8]) {
        debug_assert!(offset + out.len() <= self.len);
        let mut pos = self.head + offset;
        if let Some(small) = &self.small {
            out.copy_from_slice(&small[pos..pos + out.len()]);
            return;
        }
        let mut done = 0;
        while done < out.len() {
            let at = pos % BLOCK_BYTES;
            let n = (out.len() - done).min(BLOCK_BYTES - at);
            out[done..done + n].copy_from_slice(&self.blocks[pos / BLOCK_BYTES][at..at + n]);
            done += n;
            pos += n;
        }
    }

    /// A byte of the block at the front, to bring it into the cache.
    pub(crate) fn peek_first(&self) -> u8 {
        match &self.small {
            Some(small) => small[self.head % SMALL_BYTES],
            None => self
                .blocks
                .front()
                .map_or(0, |b| b[self.head % BLOCK_BYTES]),
        }
    }

    /// Drops `n` acknowledged bytes from the front.
    pub(crate) fn advance(&mut self, pool: &mut BlockPool, n: usize) {
        let n = n.min(self.len);
        self.head += n;
        self.len -= n;
        while self.head >= BLOCK_BYTES {
            if let Some(b) = self.blocks.pop_front() {
                pool.give(b);
            }
            self.head -= BLOCK_BYTES;
        }
        if self.len == 0 {
            self.clear(pool);
        }
    }

    pub(crate) fn clear(&mut self, pool: &mut BlockPool) {
        if let Some(small) = self.small.take() {
            pool.give_small(small);
        }
        while let Some(b) = self.blocks.pop_front() {
            pool.give(b);
        }
        self.head = 0;
        self.len = 0;
    }
}

/// Received bytes: an in-order part the application may read, then holes and out-of-order data.
/// Out-of-order bytes are written where they belong, so reassembly copies nothing.
#[derive(Debug, Default)]
pub(crate) struct RecvQueue {
    /// Holds everything while it is in order and fits; then `blocks` is empty.
    small: Option<Small>,
    blocks: VecDeque<Option<Block>>,
    head: usize,
    len: usize,
}

impl RecvQueue {
    /// Bytes ready to be read.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether no block is held.
    pub(crate) fn is_vacant(&self) -> bool {
        self.blocks.is_empty() && self.small.is_none()
    }

    /// Writes `data` at `gap` bytes past the in-order end. False, with nothing promised about
    /// those bytes, if the pool is short; in-order data may use the pool's last reserve.
    pub(crate) fn write(&mut self, pool: &mut BlockPool, gap: usize, data: &[u8]) -> bool {
        let end = self.head + self.len;
        if self.blocks.is_empty() && gap == 0 && end + data.len() <= SMALL_BYTES {
            if self.small.is_none() {
                self.small = pool.take_small();
            }
            let Some(small) = &mut self.small else {
                return false;
            };
            small[end..end + data.len()].copy_from_slice(data);
            return true;
        }
        if self.small.is_some() {
            let Some(block) = pool.outgrow(&mut self.small, self.head..end) else {
                return false;
            };
            self.blocks.push_back(Some(block));
            self.head = 0;
        }
        let mut pos = self.head + self.len + gap;
        let mut done = 0;
        while done < data.len() {
            let i = pos / BLOCK_BYTES;
            let at = pos % BLOCK_BYTES;
            if self.blocks.len() <= i {
                self.blocks.resize_with(i + 1, || None);
            }
            let slot = &mut self.blocks[i];
            if slot.is_none() {
                if gap > 0 && pool.is_tight() {
                    return false;
                }
                *slot = pool.take();
            }
            let Some(block) = slot else { return false };
            let n = (data.len() - done).min(BLOCK_BYTES - at);
            block[at..at + n].copy_from_slice(&data[done..done + n]);
            done += n;
            pos += n;
        }
        true
    }

    /// Declares the next `n` bytes in order; they must have been written.
    pub(crate) fn commit(&mut self, n: usize) {
        self.len += n;
    }

    /// The readable bytes in place, as contiguous pieces.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let (head, end) = (self.head, self.head + self.len);
        let small = self.small.as_ref().filter(|_| head < end);
        let blocks = self.blocks.iter().enumerate().map_while(move |(i, b)| {
            let start = i * BLOCK_BYTES;
            let b = b.as_ref().filter(|_| start < end)?;
            Some(&b[head.saturating_sub(start)..(end - start).min(BLOCK_BYTES)])
        });
        small.map(|s| &s[head..end]).into_iter().chain(blocks)
    }

    /// Copies readable bytes from `offset` on without consuming them; the count copied.
    pub(crate) fn copy_to(&self, mut offset: usize, out: &mut [u8]) -> usize {
        let mut done = 0;
        for s in self.slices() {
            if offset >= s.len() {
                offset -= s.len();
                continue;
            }
            let n = (s.len() - offset).min(out.len() - done);
            out[done..done + n].copy_from_slice(&s[offset..offset + n]);
            done += n;
            offset = 0;
            if done == out.len() {
                break;
            }
        }
        done
    }

    /// Drops `n` read bytes from the front. `more_ahead`: out-of-order data follows, keep its
    /// blocks.
    pub(crate) fn consume(&mut self, pool: &mut BlockPool, n: usize, more_ahead: bool) {
        let n = n.min(self.len);
        self.head += n;
        self.len -= n;
        while self.head >= BLOCK_BYTES {
            if let Some(Some(b)) = self.blocks.pop_front() {
                pool.give(b);
            }
            self.head -= BLOCK_BYTES;
        }
        if self.len == 0 && !more_ahead {
            self.clear(pool);
        }
    }

    pub(crate) fn clear(&mut self, pool: &mut BlockPool) {
        if let Some(small) = self.small.take() {
            pool.give_small(small);
        }
        for b in self.blocks.drain(..).flatten() {
            pool.give(b);
        }
        self.head = 0;
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Key, Rng};

    #[test]
    fn send_queue_is_a_byte_stream_whatever_the_chunks() {
        let mut rng = Rng::new(Key([7; 16]));
        let mut pool = BlockPool::new(1 << 20);
        let mut q = SendQueue::default();
        let (mut written, mut acked) = (0u32, 0u32);
        let byte = |i: u32| (i.wrapping_mul(31) >> 3) as u8;
        for _ in 0..3_000 {
            let n = rng.below(9_000) as u32;
            let data: Vec<u8> = (written..written + n).map(byte).collect();
            written += q.push(&mut pool, &data) as u32;
            let off = rng.below(q.len() as u64 + 1) as usize;
            let mut out = vec![0; rng.below((q.len() - off) as u64 + 1) as usize];
            q.copy_to(off, &mut out);
            for (i, b) in out.iter().enumerate() {
                assert_eq!(*b, byte(acked + (off + i) as u32));
            }
            let drop = rng.below(q.len() as u64 + 1) as u32;
            q.advance(&mut pool, drop as usize);
            acked += drop;
            assert_eq!(q.len() as u32, written - acked);
        }
        q.clear(&mut pool);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn recv_queue_reads_out_of_order_writes_in_order() {
        let mut pool = BlockPool::new(1 << 20);
        let mut q = RecvQueue::default();
        assert!(q.write(&mut pool, 5_000, b"tail"));
        assert_eq!(q.slices().count(), 0);
        assert!(q.write(&mut pool, 0, &[9; 5_000]));
        q.commit(5_004);
        let mut out = vec![0; 6_000];
        assert_eq!(q.copy_to(4_998, &mut out), 6);
        assert_eq!(&out[..6], b"\x09\x09tail");
        q.consume(&mut pool, 5_004, false);
        assert!(q.is_vacant());
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn small_messages_share_a_small_block_and_outgrow_it() {
        let mut pool = BlockPool::new(1 << 20);
        let (mut tx, mut rx) = (SendQueue::default(), RecvQueue::default());
        for round in 0..3u8 {
            assert_eq!(tx.push(&mut pool, &[round; 60]), 60);
            assert!(rx.write(&mut pool, 0, &[round; 60]));
            rx.commit(60);
        }
        assert_eq!(pool.used_bytes(), 2 * SMALL_BYTES);
        tx.advance(&mut pool, 70);
        rx.consume(&mut pool, 70, false);
        assert_eq!(tx.push(&mut pool, &[9; 100]), 100);
        assert!(rx.write(&mut pool, 300, b"ahead"));
        assert_eq!(pool.used_bytes(), 2 * BLOCK_BYTES);
        let mut sent = [0; 210];
        tx.copy_to(0, &mut sent);
        let expected = [&[1; 50][..], &[2; 60], &[9; 100]].concat();
        assert_eq!(sent[..], expected);
        let mut read = [0; 210];
        assert_eq!(rx.copy_to(0, &mut read), 110);
        assert_eq!(read[..110], expected[..110]);
        tx.clear(&mut pool);
        rx.clear(&mut pool);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn pool_exhaustion_shortens_writes_and_recovers() {
        let mut pool = BlockPool::new(4 * BLOCK_BYTES);
        let mut q = SendQueue::default();
        assert_eq!(q.push(&mut pool, &[1; 5 * BLOCK_BYTES]), 4 * BLOCK_BYTES);
        let mut r = RecvQueue::default();
        assert!(!r.write(&mut pool, 0, b"x"));
        q.advance(&mut pool, BLOCK_BYTES);
        assert!(r.write(&mut pool, 0, b"x"));
    }

    #[test]
    fn the_last_eighth_is_for_data_in_order() {
        let mut pool = BlockPool::new(16 * BLOCK_BYTES);
        let mut q = SendQueue::default();
        assert_eq!(q.push(&mut pool, &[1; 15 * BLOCK_BYTES]), 15 * BLOCK_BYTES);
        assert!(pool.under_pressure());
        let mut r = RecvQueue::default();
        assert!(!r.write(&mut pool, SMALL_BYTES, b"ahead"));
        assert!(r.write(&mut pool, 0, b"next"));
    }
}
