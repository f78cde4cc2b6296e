//! The queue of what is to be sent, or sent and not acknowledged.

use std::collections::VecDeque;

use super::layout::Layout;
use super::pool::{BLOCK_BYTES, Block, BlockPool, SMALL_BYTES, Small};

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
            self.layout.extend(BLOCK_BYTES);
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
