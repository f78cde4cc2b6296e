//! Messages in memory: runs of descriptors into one chunk, and the batch a KCM socket's
//! readers consume without the mux.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::chunk::Slice;
use crate::limits::RX_MSG_OVERHEAD_BYTES;

/// One message inside the chunk of its [`Run`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desc {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl Desc {
    /// Receive charge of the message (kcm-semantics §7.3).
    #[inline]
    pub(crate) fn charge(self) -> usize {
        self.len as usize + RX_MSG_OVERHEAD_BYTES
    }
}

/// Consecutive messages of one TCP stream: many inside one chunk, or one across several.
///
/// The chunk is counted once for all of them.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// Chunk of the descriptors; `None` when `spans` holds the one message.
    pub(crate) chunk: Option<Arc<[u8]>>,
    pub(crate) descs: Vec<Desc>,
    /// Messages before this index have been consumed.
    pub(crate) next: usize,
    /// Parts of a message that crosses chunks.
    pub(crate) spans: Vec<Slice>,
}

impl Run {
    /// A message whose parts lie in several chunks.
    pub(crate) fn spanning(spans: Vec<Slice>, len: u32, mut descs: Vec<Desc>) -> Self {
        descs.push(Desc { start: 0, len });
        Self {
            chunk: None,
            descs,
            next: 0,
            spans,
        }
    }

    /// Messages left.
    pub(crate) fn len(&self) -> usize {
        self.descs.len() - self.next
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Descriptors of the messages left.
    pub(crate) fn left(&self) -> &[Desc] {
        self.descs.get(self.next..).unwrap_or_default()
    }

    /// Receive charge of the messages left.
    pub(crate) fn charge(&self) -> usize {
        self.left().iter().map(|desc| desc.charge()).sum()
    }

    /// Moves the first `n` messages into a run of their own.
    pub(crate) fn split_front(&mut self, n: usize, mut descs: Vec<Desc>) -> Self {
        let n = n.min(self.len());
        descs.extend(self.left().iter().take(n));
        self.next += n;
        Self {
            chunk: self.chunk.clone(),
            descs,
            next: 0,
            spans: self.spans.clone(),
        }
    }

    #[inline(always)]
    pub(crate) fn front(&self) -> Option<Message<'_>> {
        self.message(self.descs.get(self.next)?)
    }

    /// The messages left, in order.
    pub(crate) fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        self.left().iter().filter_map(|desc| self.message(desc))
    }

    #[inline(always)]
    fn message(&self, desc: &Desc) -> Option<Message<'_>> {
        let (start, len) = (desc.start as usize, desc.len as usize);
        match &self.chunk {
            Some(chunk) => Some(Message {
                first: chunk.get(start..start + len)?,
                rest: &[],
                len,
            }),
            None => {
                let (first, rest) = self.spans.split_first()?;
                Some(Message { first, rest, len })
            }
        }
    }
}

/// A received message, borrowed from its chunks.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    first: &'a [u8],
    rest: &'a [Slice],
    len: usize,
}

impl<'a> Message<'a> {
    /// Bytes of the message; never 0.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty message cannot exist")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The whole message, when it lies in one piece.
    #[inline]
    #[must_use]
    pub fn contiguous(&self) -> Option<&'a [u8]> {
        self.rest.is_empty().then_some(self.first)
    }

    /// The message in order, in as many pieces as it lies in.
    pub fn parts(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        core::iter::once(self.first).chain(self.rest.iter().map(|slice| &**slice))
    }
}

/// Messages moved out of one KCM socket's receive queue.
///
/// The shim keeps one per KCM socket, under that socket's own lock, and hands messages out
/// with [`front`](Self::front) and [`consume`](Self::consume) without touching the mux. The
/// mux learns what was handed out from [`Mux::refill`](crate::Mux::refill); until then the
/// messages stay charged to the socket and their chunks stay in memory, so call it (or
/// [`Mux::return_batch`](crate::Mux::return_batch)) before a thread sleeps on an empty batch.
///
/// Dropping a batch that holds messages loses them.
#[derive(Debug, Default)]
pub struct RxBatch {
    pub(crate) current: Run,
    pub(crate) rest: VecDeque<Run>,
    /// Consumed runs, kept so that the mux can recycle their memory.
    pub(crate) spent: Vec<Run>,
    pub(crate) len: usize,
    /// What the messages handed out since the last refill amount to.
    pub(crate) handed: Handed,
}

/// Messages a batch handed out and the mux has not accounted yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Handed {
    pub(crate) msgs_finished: u64,
    pub(crate) bytes_returned: u64,
    pub(crate) charge: usize,
}

impl RxBatch {
    /// A batch without messages, as every KCM socket starts.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            current: Run {
                chunk: None,
                descs: Vec::new(),
                next: 0,
                spans: Vec::new(),
            },
            rest: VecDeque::new(),
            spent: Vec::new(),
            len: 0,
            handed: Handed {
                msgs_finished: 0,
                bytes_returned: 0,
                charge: 0,
            },
        }
    }

    /// Whether [`front`](Self::front) returns nothing.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Messages left.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The next message; it stays until [`consume`](Self::consume).
    #[inline]
    #[must_use]
    pub fn front(&self) -> Option<Message<'_>> {
        self.current.front()
    }

    /// Drops the front message. `bytes_returned` count in RX-Bytes, and the message counts in
    /// RX-Msgs when `finished` (not for a short SEQPACKET read, nor EFAULT).
    #[inline(always)]
    pub fn consume(&mut self, bytes_returned: usize, finished: bool) {
        let Some(&desc) = self.current.descs.get(self.current.next) else {
            return;
        };
        self.handed.msgs_finished += u64::from(finished);
        self.handed.bytes_returned += bytes_returned as u64;
        self.handed.charge += desc.charge();
        self.current.next += 1;
        self.len -= 1;
        if self.current.next == self.current.descs.len() {
            self.next_run();
        }
    }

    /// Drops the first `bytes` of the front message, which stays: a short SEQPACKET read on
    /// kernels before the one that drops the rest (kcm-semantics §15.3). Fewer than all.
    pub fn consume_part(&mut self, bytes: usize) {
        let Run {
            descs, next, spans, ..
        } = &mut self.current;
        let Some(desc) = descs
            .get_mut(*next)
            .filter(|desc| bytes < desc.len as usize)
        else {
            return;
        };
        desc.start += bytes as u32;
        desc.len -= bytes as u32;
        self.handed.bytes_returned += bytes as u64;
        self.handed.charge += bytes;
        let mut left = bytes;
        spans.retain_mut(|slice| {
            left -= slice.split_front(left.min(slice.len())).len();
            !slice.is_empty()
        });
    }

    #[cold]
    fn next_run(&mut self) {
        let next = self.rest.pop_front().unwrap_or_default();
        self.spent.push(core::mem::replace(&mut self.current, next));
    }

    /// Appends messages behind those the batch holds.
    pub(crate) fn append(&mut self, runs: &mut VecDeque<Run>, msgs: usize) {
        if self.rest.is_empty() {
            core::mem::swap(&mut self.rest, runs);
        } else {
            self.rest.append(runs);
        }
        self.len += msgs;
        if self.current.is_empty() && !self.rest.is_empty() {
            let next = self.rest.pop_front().unwrap_or_default();
            let old = core::mem::replace(&mut self.current, next);
            if old.chunk.is_some() || old.descs.capacity() != 0 {
                self.spent.push(old);
            }
        }
    }

    /// Takes all unread messages out, in order.
    pub(crate) fn take_unread(&mut self) -> VecDeque<Run> {
        let mut runs = core::mem::take(&mut self.rest);
        let current = core::mem::take(&mut self.current);
        if current.is_empty() {
            if current.descs.capacity() != 0 {
                self.spent.push(current);
            }
        } else {
            runs.push_front(current);
        }
        self.len = 0;
        runs
    }
}
