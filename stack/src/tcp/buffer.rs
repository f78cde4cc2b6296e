//! Stream buffers made of pooled blocks.
//!
//! A connection owns blocks only while bytes are in flight or unread: a small block for a message or
//! two, pages once the queue outgrows it, so that a million connections with a short answer in
//! flight each need 256 MiB and not 4 GiB, and large ones for bulk, which copies in longer runs. Both
//! queues are byte streams addressed by offset from their first byte; neither knows sequence numbers.

use std::collections::VecDeque;

/// Bytes in a page: two full Ethernet payloads and some, small enough for a few unread kilobytes on
/// many connections.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Bytes in a large block: a large segment, a batch of small ones.
const LARGE_BYTES: usize = 64 * 1024;
/// Pages a queue has before its next block is a large one: as much again.
const PAGES_BEFORE_LARGE: usize = LARGE_BYTES / BLOCK_BYTES;

/// A page or a large block.
type Block = Box<[u8]>;

/// Bytes in a small block: what most requests and answers fit in, four cache lines.
const SMALL_BYTES: usize = 256;

type Small = Box<[u8; SMALL_BYTES]>;

/// All blocks of an engine. Never exceeds its limit; never returns memory to the allocator
/// beyond a reserve, so steady traffic does not allocate.
#[derive(Debug)]
pub(crate) struct BlockPool {
    free: Vec<Block>,
    free_large: Vec<Block>,
    free_small: Vec<Small>,
    /// Bytes in blocks handed out, and their most.
    used: usize,
    limit: usize,
}

/// Free blocks kept for reuse (64 MiB); more are given back to the allocator.
const FREE_BLOCKS_MAX: usize = 16 * 1024;
/// Free large blocks kept for reuse (16 MiB).
const FREE_LARGE_MAX: usize = 256;
/// Free small blocks kept for reuse (16 MiB).
const FREE_SMALL_MAX: usize = 64 * 1024;

impl BlockPool {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            free: Vec::new(),
            free_large: Vec::new(),
            free_small: Vec::new(),
            used: 0,
            limit: limit_bytes.max(4 * BLOCK_BYTES),
        }
    }

    /// A block of `bytes`, one of the two sizes. Its content is left over from other connections.
    fn take(&mut self, bytes: usize) -> Option<Block> {
        self.charge(bytes)?;
        let fresh = || vec![0; bytes].into_boxed_slice();
        let (free, _) = self.free_of(bytes);
        Some(free.pop().unwrap_or_else(fresh))
    }

    fn give(&mut self, block: Block) {
        self.used -= block.len();
        let (free, most) = self.free_of(block.len());
        if free.len() < most {
            free.push(block);
        }
    }

    /// Free blocks of a size, and how many are kept.
    fn free_of(&mut self, bytes: usize) -> (&mut Vec<Block>, usize) {
        if bytes == BLOCK_BYTES {
            (&mut self.free, FREE_BLOCKS_MAX)
        } else {
            (&mut self.free_large, FREE_LARGE_MAX)
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

    /// A page that begins with what a small block holds, which comes back.
    fn outgrow(
        &mut self,
        small: &mut Option<Small>,
        held: core::ops::Range<usize>,
    ) -> Option<Block> {
        let mut block = self.take(BLOCK_BYTES)?;
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

    /// Whether there is enough for blocks that may stay half empty.
    fn has_plenty(&self) -> bool {
        self.used * 2 <= self.limit
    }

    /// Out-of-order data may use the pool up to here; the rest is for data that makes progress.
    fn is_tight(&self) -> bool {
        self.used * 8 > self.limit * 7
    }
}

/// Where the bytes of a queue lie: in pages first, then in large blocks.
#[derive(Debug, Default)]
struct Layout {
    /// Blocks in front that are pages.
    pages: usize,
    /// So much passes through the queue that it begins with a large block.
    is_bulk: bool,
    /// A block was emptied since the queue was.
    has_passed: bool,
}

impl Layout {
    /// The block that holds the byte at `pos`, that byte's place in it, and the block's size.
    #[inline]
    fn locate(&self, pos: usize) -> (usize, usize, usize) {
        match pos.checked_sub(self.pages * BLOCK_BYTES) {
            None => (pos / BLOCK_BYTES, pos % BLOCK_BYTES, BLOCK_BYTES),
            Some(rest) => (
                self.pages + rest / LARGE_BYTES,
                rest % LARGE_BYTES,
                LARGE_BYTES,
            ),
        }
    }

    /// Bytes before block `index`.
    fn start_of(&self, index: usize) -> usize {
        let pages = index.min(self.pages);
        pages * BLOCK_BYTES + (index - pages) * LARGE_BYTES
    }

    /// The size of one more block behind `count`. `in_order`: for bytes that will be used, whatever
    /// else the peer sends.
    fn next(&self, count: usize, pool: &BlockPool, in_order: bool) -> usize {
        let wants_large = in_order && (self.is_bulk || count >= PAGES_BEFORE_LARGE);
        if count > self.pages || wants_large && pool.has_plenty() {
            LARGE_BYTES
        } else {
            BLOCK_BYTES
        }
    }

    /// One more block, of a size given by [`Self::next`].
    fn extend(&mut self, bytes: usize) {
        if bytes == BLOCK_BYTES {
            self.pages += 1;
        } else {
            self.is_bulk = true;
        }
    }

    /// The size of the block in front.
    fn front(&self) -> usize {
        if self.pages > 0 {
            BLOCK_BYTES
        } else {
            LARGE_BYTES
        }
    }

    fn pop_front(&mut self) {
        self.pages = self.pages.saturating_sub(1);
        self.has_passed = true;
    }

    /// The queue is empty, after `passed` bytes in its last block.
    fn clear(&mut self, passed: usize) {
        *self = Self {
            is_bulk: self.is_bulk && (self.has_passed || passed >= LARGE_BYTES / 2),
            ..Self::default()
        };
    }
}

/// Bytes from the first unacknowledged to the last the application wrote.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    /// Holds everything while it fits; then `blocks` is empty.
    small: Option<Small>,
    blocks: VecDeque<Block>,
    layout: Layout,
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
            self.layout.pages = 1;
            self.head = 0;
        }
        let mut done = 0;
        while done < data.len() {
            let (i, at, bytes) = match self.layout.locate(self.head + self.len) {
                (i, ..) if i == self.blocks.len() => {
                    let bytes = self.layout.next(i, pool, true);
                    let Some(block) = pool.take(bytes) else { break };
                    self.layout.extend(bytes);
                    self.blocks.push_back(block);
                    (i, 0, bytes)
                }
                place => place,
            };
            let n = (data.len() - done).min(bytes - at);
            self.blocks[i][at..at + n].copy_from_slice(&data[done..done + n]);
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
            let (i, at, bytes) = self.layout.locate(pos);
            let n = (out.len() - done).min(bytes - at);
            out[done..done + n].copy_from_slice(&self.blocks[i][at..at + n]);
            done += n;
            pos += n;
        }
    }

    /// A byte of the block at the front, to bring it into the cache.
    pub(crate) fn peek_first(&self) -> u8 {
        match &self.small {
            Some(small) => small[self.head % SMALL_BYTES],
            None => self.blocks.front().map_or(0, |b| b[self.head % b.len()]),
        }
    }

    /// Drops `n` acknowledged bytes from the front.
    pub(crate) fn advance(&mut self, pool: &mut BlockPool, n: usize) {
        let n = n.min(self.len);
        self.head += n;
        self.len -= n;
        while self.head >= self.layout.front() {
            self.head -= self.layout.front();
            self.layout.pop_front();
            if let Some(b) = self.blocks.pop_front() {
                pool.give(b);
            }
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
        self.layout.clear(self.head);
        self.head = 0;
        self.len = 0;
    }

    /// As new, for another connection.
    pub(crate) fn reset(&mut self, pool: &mut BlockPool) {
        self.clear(pool);
        self.layout = Layout::default();
    }
}

/// Received bytes: an in-order part the application may read, then holes and out-of-order data.
/// Out-of-order bytes are written where they belong, so reassembly copies nothing.
#[derive(Debug, Default)]
pub(crate) struct RecvQueue {
    /// Holds everything while it is in order and fits; then `blocks` is empty.
    small: Option<Small>,
    blocks: VecDeque<Option<Block>>,
    layout: Layout,
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
            self.layout.pages = 1;
            self.head = 0;
        }
        let mut pos = self.head + self.len + gap;
        let mut done = 0;
        while done < data.len() {
            let (mut i, mut at, mut bytes) = self.layout.locate(pos);
            while self.blocks.len() <= i {
                let one_more = self.layout.next(self.blocks.len(), pool, gap == 0);
                self.layout.extend(one_more);
                self.blocks.push_back(None);
                (i, at, bytes) = self.layout.locate(pos);
            }
            let slot = &mut self.blocks[i];
            if slot.is_none() {
                if gap > 0 && pool.is_tight() {
                    return false;
                }
                *slot = pool.take(bytes);
            }
            let Some(block) = slot else { return false };
            let n = (data.len() - done).min(bytes - at);
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

    /// The readable bytes in place, as contiguous pieces, none of them empty.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let (head, end) = (self.head, self.head + self.len);
        let small = self.small.as_ref().filter(|_| head < end);
        let blocks = self.blocks.iter().enumerate().map_while(move |(i, b)| {
            let start = self.layout.start_of(i);
            let b = b.as_ref().filter(|_| head.max(start) < end)?;
            Some(&b[head.saturating_sub(start)..(end - start).min(b.len())])
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
        while self.head >= self.layout.front() {
            self.head -= self.layout.front();
            self.layout.pop_front();
            if let Some(Some(b)) = self.blocks.pop_front() {
                pool.give(b);
            }
        }
        if self.len == 0 && !more_ahead {
            self.clear(pool);
        }
    }

    pub(crate) fn clear(&mut self, pool: &mut BlockPool) {
        if let Some(small) = self.small.take() {
            pool.give_small(small);
        }
        while let Some(block) = self.blocks.pop_front() {
            if let Some(b) = block {
                pool.give(b);
            }
        }
        self.layout.clear(self.head);
        self.head = 0;
        self.len = 0;
    }

    /// As new, for another connection.
    pub(crate) fn reset(&mut self, pool: &mut BlockPool) {
        self.clear(pool);
        self.layout = Layout::default();
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
        for round in 0..1_500 {
            // Quiet and bulk take turns, up to where the pool is short.
            let most = if round % 200 < 100 { 900 } else { 90_000 };
            let n = rng.below(most) as u32;
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
    fn what_is_read_up_to_a_hole_leaves_no_slice() {
        let mut pool = BlockPool::new(1 << 20);
        let mut q = RecvQueue::default();
        assert!(q.write(&mut pool, 0, &[1; 1000]));
        q.commit(1000);
        assert!(q.write(&mut pool, 500, &[3; 100]));
        q.consume(&mut pool, 1000, true);
        assert_eq!(q.slices().next(), None);
        assert!(q.write(&mut pool, 0, &[2; 500]));
        q.commit(600);
        assert_eq!(q.slices().next().map(<[u8]>::len), Some(600));
    }

    #[test]
    fn recv_queue_reassembles_whatever_the_blocks() {
        let mut rng = Rng::new(Key([8; 16]));
        let mut pool = BlockPool::new(1 << 20);
        let mut q = RecvQueue::default();
        let byte = |i: usize| ((i * 31) >> 3) as u8;
        let data = |from: usize, n: usize| (from..from + n).map(byte).collect::<Vec<u8>>();
        let mut read = 0;
        for round in 0..600 {
            let most = if round % 200 < 100 { 700 } else { 40_000 };
            let (hole, n) = (rng.below(most) as usize, 1 + rng.below(most) as usize);
            let next = read + q.len();
            let ahead = rng.below(2) == 0;
            if ahead {
                assert!(q.write(&mut pool, hole, &data(next + hole, n)));
            }
            assert!(q.write(&mut pool, 0, &data(next, hole)));
            q.commit(hole + if ahead { n } else { 0 });
            let mut out = vec![0; rng.below(q.len() as u64 + 1) as usize];
            assert_eq!(q.copy_to(0, &mut out), out.len());
            assert!(out == data(read, out.len()), "round {round}");
            let n = if round % 3 == 0 { q.len() } else { out.len() };
            q.consume(&mut pool, n, false);
            read += n;
        }
        q.clear(&mut pool);
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn bulk_moves_to_large_blocks_and_back() {
        let mut pool = BlockPool::new(1 << 20);
        let mut q = RecvQueue::default();
        let mut blocks = |n: usize| {
            assert!(q.write(&mut pool, 0, &vec![1; n]));
            q.commit(n);
            let sizes: Vec<usize> = q.blocks.iter().flatten().map(|b| b.len()).collect();
            q.consume(&mut pool, n, false);
            sizes
        };
        assert_eq!(blocks(5_000), [BLOCK_BYTES; 2]);
        assert_eq!(blocks(LARGE_BYTES + 1)[15..], [BLOCK_BYTES, LARGE_BYTES]);
        assert_eq!(blocks(40_000), [LARGE_BYTES]);
        assert_eq!(blocks(5_000), [LARGE_BYTES], "not known yet to be quiet");
        assert_eq!(blocks(5_000), [BLOCK_BYTES; 2]);
        assert!(q.write(&mut pool, LARGE_BYTES + 1, b"far ahead"));
        let held = q.blocks.iter().flatten().map(|b| b.len());
        assert_eq!(
            held.collect::<Vec<_>>(),
            [BLOCK_BYTES],
            "no more than it needs"
        );
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
