//! Which byte of a queue lies in which block.

use super::pool::{BLOCK_BYTES, BlockPool, LARGE_BYTES, PAGES_BEFORE_LARGE};

/// Where the bytes of a queue lie: in pages first, then in large blocks.
#[derive(Debug, Default)]
pub(super) struct Layout {
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
    pub(super) fn locate(&self, pos: usize) -> (usize, usize, usize) {
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
    pub(super) fn start_of(&self, index: usize) -> usize {
        let pages = index.min(self.pages);
        pages * BLOCK_BYTES + (index - pages) * LARGE_BYTES
    }

    /// The size of one more block behind `count`. `in_order`: for bytes that will be used, whatever
    /// else the peer sends.
    pub(super) fn next(&self, count: usize, pool: &BlockPool, in_order: bool) -> usize {
        let wants_large = in_order && (self.is_bulk || count >= PAGES_BEFORE_LARGE);
        if count > self.pages || wants_large && pool.has_plenty() {
            LARGE_BYTES
        } else {
            BLOCK_BYTES
        }
    }

    /// One more block, of a size given by [`Self::next`].
    pub(super) fn extend(&mut self, bytes: usize) {
        if bytes == BLOCK_BYTES {
            self.pages += 1;
        } else {
            self.is_bulk = true;
        }
    }

    /// The size of the block in front.
    pub(super) fn front(&self) -> usize {
        if self.pages > 0 {
            BLOCK_BYTES
        } else {
            LARGE_BYTES
        }
    }

    pub(super) fn pop_front(&mut self) {
        self.pages = self.pages.saturating_sub(1);
        self.has_passed = true;
    }

    /// The queue is empty, after `passed` bytes in its last block.
    pub(super) fn clear(&mut self, passed: usize) {
        *self = Self {
            is_bulk: self.is_bulk && (self.has_passed || passed >= LARGE_BYTES / 2),
            ..Self::default()
        };
    }
}
