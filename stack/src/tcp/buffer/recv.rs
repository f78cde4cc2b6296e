//! The queue of what has arrived, holes and all.

use std::collections::VecDeque;

use super::layout::Layout;
use super::pool::{BLOCK_BYTES, Block, BlockPool, SMALL_BYTES, Small};

/// Received bytes: an in-order part the application may read, then holes and out-of-order data.
/// Out-of-order bytes are written where they belong, so reassembly copies nothing.
#[derive(Debug, Default)]
pub(crate) struct RecvQueue {
    /// Holds everything while it is in order and fits; then `blocks` is empty.
    small: Option<Small>,
    pub(super) blocks: VecDeque<Option<Block>>,
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
            self.layout.extend(BLOCK_BYTES);
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
