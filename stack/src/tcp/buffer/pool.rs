//! The blocks of an engine: what all its connections may hold together.

/// Bytes in a page: two full Ethernet payloads and some, small enough for a few unread kilobytes on
/// many connections.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Bytes in a large block: a large segment, a batch of small ones.
pub(super) const LARGE_BYTES: usize = 64 * 1024;
/// Pages a queue has before its next block is a large one: as much again.
pub(super) const PAGES_BEFORE_LARGE: usize = LARGE_BYTES / BLOCK_BYTES;

/// A page or a large block.
pub(super) type Block = Box<[u8]>;

/// Bytes in a small block: what most requests and answers fit in, four cache lines.
pub(super) const SMALL_BYTES: usize = 256;

pub(super) type Small = Box<[u8; SMALL_BYTES]>;

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
    pub(super) fn take(&mut self, bytes: usize) -> Option<Block> {
        self.charge(bytes)?;
        let fresh = || vec![0; bytes].into_boxed_slice();
        let (free, _) = self.free_of(bytes);
        Some(free.pop().unwrap_or_else(fresh))
    }

    pub(super) fn give(&mut self, block: Block) {
        self.used -= block.len();
        let (free, most) = self.free_of(block.len());
        if free.len() < most {
            free.push(block);
        }
    }

    /// Free blocks of a size, and how many are kept.
    pub(super) fn free_of(&mut self, bytes: usize) -> (&mut Vec<Block>, usize) {
        if bytes == BLOCK_BYTES {
            (&mut self.free, FREE_BLOCKS_MAX)
        } else {
            (&mut self.free_large, FREE_LARGE_MAX)
        }
    }

    pub(super) fn take_small(&mut self) -> Option<Small> {
        self.charge(SMALL_BYTES)?;
        let fresh = || Box::new([0; SMALL_BYTES]);
        Some(self.free_small.pop().unwrap_or_else(fresh))
    }

    pub(super) fn give_small(&mut self, block: Small) {
        self.used -= SMALL_BYTES;
        if self.free_small.len() < FREE_SMALL_MAX {
            self.free_small.push(block);
        }
    }

    /// A page that begins with what a small block holds, which comes back.
    pub(super) fn outgrow(
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

    pub(super) fn charge(&mut self, bytes: usize) -> Option<()> {
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
    pub(super) fn has_plenty(&self) -> bool {
        self.used * 2 <= self.limit
    }

    /// Out-of-order data may use the pool up to here; the rest is for data that makes progress.
    pub(super) fn is_tight(&self) -> bool {
        self.used * 8 > self.limit * 7
    }
}
