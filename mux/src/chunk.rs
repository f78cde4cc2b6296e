//! Receive memory: chunks filled by one read each, and reference-counted slices of them.

use alloc::sync::Arc;
use alloc::vec;
use core::fmt;
use core::ops::Deref;

use crate::limits::CHUNK_BYTES;

/// Memory for one bulk read, owned by one party at a time.
///
/// The shim passes a chunk to [`Mux::begin_read`](crate::Mux::begin_read) and gets it
/// back from [`Mux::take_free_chunk`](crate::Mux::take_free_chunk) when no message lies in it.
pub struct Chunk(Arc<[u8]>);

impl Chunk {
    /// A zeroed chunk of [`CHUNK_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::from(vec![0; CHUNK_BYTES]))
    }

    /// The chunk behind `bytes`, if nobody else refers to it and it has full size.
    pub(crate) fn reclaim(mut bytes: Arc<[u8]>) -> Option<Self> {
        (bytes.len() == CHUNK_BYTES && Arc::get_mut(&mut bytes).is_some()).then_some(Self(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        Arc::get_mut(&mut self.0).unwrap_or_default()
    }

    pub(crate) fn into_shared(self) -> Arc<[u8]> {
        self.0
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("len", &self.0.len()).finish()
    }
}

/// Part of a chunk: bytes of one TCP stream, in order. Dereferences to the bytes.
#[derive(Clone)]
pub struct Slice {
    pub(crate) chunk: Arc<[u8]>,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Slice {
    /// The bytes `start..end` of `chunk`, clamped to it.
    pub(crate) fn new(chunk: Arc<[u8]>, start: usize, end: usize) -> Self {
        let end = end.min(chunk.len());
        Self {
            chunk,
            start: start.min(end),
            end,
        }
    }

    /// A slice with an allocation of its own size.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        Self {
            chunk: Arc::from(bytes),
            start: 0,
            end: bytes.len(),
        }
    }

    /// Removes the first `n` bytes and returns them as a slice of the same chunk.
    pub(crate) fn split_front(&mut self, n: usize) -> Self {
        let cut = (self.start + n).min(self.end);
        let front = Self {
            chunk: self.chunk.clone(),
            start: self.start,
            end: cut,
        };
        self.start = cut;
        front
    }
}

impl Deref for Slice {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.chunk.get(self.start..self.end).unwrap_or_default()
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slice").field(&&**self).finish()
    }
}

/// A buffer being filled by one read.
///
/// Its first bytes already hold the short unparsed remainder of the stream, so that a
/// message header is contiguous whenever possible. Fill [`ReadBuf::spare`] and hand the
/// buffer to [`Mux::finish_read`](crate::Mux::finish_read).
#[derive(Debug)]
pub struct ReadBuf {
    pub(crate) chunk: Chunk,
    /// Bytes of the stream's remainder at the start of the chunk.
    pub(crate) carried: usize,
    /// The attachment this read belongs to; an index may be reused meanwhile.
    pub(crate) serial: u64,
}

impl ReadBuf {
    /// Where the read's bytes go. Never empty for a chunk of [`CHUNK_BYTES`].
    pub fn spare(&mut self) -> &mut [u8] {
        let carried = self.carried;
        self.chunk
            .bytes_mut()
            .get_mut(carried..)
            .unwrap_or_default()
    }
}

/// What the read of one [`ReadBuf`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadResult {
    /// So many bytes now lie at the start of [`ReadBuf::spare`]; 0 means [`ReadResult::Eof`].
    Bytes(usize),
    /// Nothing to read now.
    WouldBlock,
    /// The peer's FIN: no byte follows.
    Eof,
    /// The connection is dead, with this errno (a reset, a timeout).
    Failed(i32),
}

/// What became of a finished read.
#[derive(Debug)]
#[must_use]
pub enum ReadOutcome {
    /// The bytes were parsed, queued, or kept for later.
    Done,
    /// A message is longer than the last known SO_RCVBUF of the TCP socket. Read the option
    /// and call [`Mux::set_psock_rcvbuf`](crate::Mux::set_psock_rcvbuf), which goes on parsing.
    NeedRcvbuf,
    /// The psock was unattached while the read was under way. Its bytes follow those that
    /// [`Mux::unattach`](crate::Mux::unattach) returned and belong to the TCP fd.
    Unattached(Option<Slice>),
}
