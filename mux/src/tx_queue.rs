//! Completed messages of one KCM socket on their way to TCP.
//!
//! Owns message boundaries and how far the first message has been written, so that failover
//! can restart it from its first byte. Small messages are packed into shared buffers; one
//! write then carries many. Refuses to know psocks.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::error::SendError;
use crate::limits::{POOLED_TX_BUFS_MAX, TRANSMIT_BUFS_MAX, TX_BUF_BYTES, TX_PACK_BYTES_MAX};

/// Consecutive whole messages in contiguous memory.
#[derive(Debug, Default)]
pub(crate) struct TxBuf {
    bytes: Vec<u8>,
    /// End offset of each message.
    ends: Vec<usize>,
    /// Messages before this index are completely written.
    done: usize,
    /// Next byte to write.
    pos: usize,
}

impl TxBuf {
    fn append(&mut self, parts: &[&[u8]], len: usize) -> Result<(), SendError> {
        self.ends.try_reserve(1).map_err(|_| SendError::NoMemory)?;
        self.bytes
            .try_reserve(len)
            .map_err(|_| SendError::NoMemory)?;
        parts
            .iter()
            .for_each(|part| self.bytes.extend_from_slice(part));
        self.ends.push(self.bytes.len());
        Ok(())
    }

    /// Bytes still to write.
    pub(crate) fn unwritten(&self) -> &[u8] {
        self.bytes.get(self.pos..).unwrap_or_default()
    }

    /// First byte of the message being written.
    fn msg_start(&self) -> usize {
        self.done
            .checked_sub(1)
            .and_then(|last| self.ends.get(last))
            .copied()
            .unwrap_or(0)
    }

    /// Whether part of a message, but not all, has been written.
    pub(crate) fn mid_message(&self) -> bool {
        self.pos > self.msg_start()
    }

    /// The messages whose last byte is among the next `n`.
    pub(crate) fn completed_by(&self, n: usize) -> impl Iterator<Item = &[u8]> {
        let reached = self.pos + n.min(self.unwritten().len());
        let mut start = self.msg_start();
        let ends = self.ends.get(self.done..).unwrap_or_default().iter();
        ends.take_while(move |end| **end <= reached)
            .filter_map(move |end| self.bytes.get(core::mem::replace(&mut start, *end)..*end))
    }

    fn is_done(&self) -> bool {
        self.done == self.ends.len()
    }

    /// Counts up to `n` bytes as written; returns bytes and messages that were.
    fn advance(&mut self, n: usize) -> Written {
        let step = n.min(self.unwritten().len());
        self.pos += step;
        let ends = self.ends.get(self.done..).unwrap_or_default();
        let msgs = ends.partition_point(|&end| end <= self.pos);
        self.done += msgs;
        Written { bytes: step, msgs }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.done = 0;
        self.pos = 0;
    }
}

/// What TCP took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: usize,
    /// Messages whose last byte was among them.
    pub(crate) msgs: usize,
}

/// Counts up to `sent` bytes of `bufs` as written.
pub(crate) fn advance(bufs: &mut [TxBuf], sent: usize) -> Written {
    let mut written = Written::default();
    for buf in bufs {
        let step = buf.advance(sent - written.bytes);
        written.bytes += step.bytes;
        written.msgs += step.msgs;
    }
    written
}

/// Emptied transmit buffers, for reuse by any KCM socket of the mux.
#[derive(Debug, Default)]
pub(crate) struct TxPool(Vec<TxBuf>);

impl TxPool {
    fn take(&mut self) -> TxBuf {
        self.0.pop().unwrap_or_default()
    }

    pub(crate) fn give(&mut self, mut buf: TxBuf) {
        if self.0.len() < POOLED_TX_BUFS_MAX && buf.bytes.capacity() <= 2 * TX_BUF_BYTES {
            buf.clear();
            self.0.push(buf);
        }
    }
}

/// Completed, not completely written messages of one KCM socket, in order.
#[derive(Debug, Default)]
pub(crate) struct TxQueue {
    bufs: VecDeque<TxBuf>,
    msgs: usize,
}

impl TxQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.msgs == 0
    }

    /// Messages queued, one partly written included.
    pub(crate) fn msgs(&self) -> usize {
        self.msgs
    }

    /// Whether part of the first message, but not all, has been written.
    pub(crate) fn mid_message(&self) -> bool {
        self.bufs.front().is_some_and(TxBuf::mid_message)
    }

    /// Appends a message made of `parts`, `len` bytes in all.
    pub(crate) fn push(
        &mut self,
        parts: &[&[u8]],
        len: usize,
        pool: &mut TxPool,
    ) -> Result<(), SendError> {
        let packs = len <= TX_PACK_BYTES_MAX;
        match self.bufs.back_mut() {
            Some(tail) if packs && tail.bytes.len() + len <= TX_BUF_BYTES => {
                tail.append(parts, len)?;
            }
            _ => {
                let mut buf = if packs { pool.take() } else { TxBuf::default() };
                self.bufs.try_reserve(1).map_err(|_| SendError::NoMemory)?;
                buf.append(parts, len)?;
                self.bufs.push_back(buf);
            }
        }
        self.msgs += 1;
        Ok(())
    }

    /// Appends a message that already is contiguous, without copying.
    pub(crate) fn push_owned(&mut self, bytes: Vec<u8>) {
        let ends = alloc::vec![bytes.len()];
        self.bufs.push_back(TxBuf {
            bytes,
            ends,
            done: 0,
            pos: 0,
        });
        self.msgs += 1;
    }

    /// Puts a message of which `written` bytes have gone out in front of all others.
    pub(crate) fn push_front_written(&mut self, parts: &[&[u8]], written: usize) {
        let bytes: Vec<u8> = parts.concat();
        let pos = written.min(bytes.len());
        let ends = alloc::vec![bytes.len()];
        self.bufs.push_front(TxBuf {
            bytes,
            ends,
            done: 0,
            pos,
        });
        self.msgs += 1;
    }

    /// Moves the first buffers out, for writing without the mux. Their messages still count
    /// as queued.
    pub(crate) fn take_front(&mut self) -> Vec<TxBuf> {
        let n = self.bufs.len().min(TRANSMIT_BUFS_MAX);
        self.bufs.drain(..n).collect()
    }

    /// Puts the buffers of [`take_front`](Self::take_front) back in front, of which `sent`
    /// bytes were written.
    pub(crate) fn put_back(
        &mut self,
        mut bufs: Vec<TxBuf>,
        sent: usize,
        pool: &mut TxPool,
    ) -> Written {
        let written = advance(&mut bufs, sent);
        self.msgs -= written.msgs;
        while let Some(buf) = bufs.pop() {
            if buf.is_done() {
                pool.give(buf);
            } else {
                self.bufs.push_front(buf);
            }
        }
        written
    }

    /// Starts the first message again from its first byte; returns how many bytes that adds.
    pub(crate) fn restart(&mut self) -> usize {
        let Some(buf) = self.bufs.front_mut() else {
            return 0;
        };
        let start = buf.msg_start();
        let again = buf.pos - start;
        buf.pos = start;
        again
    }

    /// Bytes to write of the buffers not taken out.
    pub(crate) fn unwritten_bytes(&self) -> usize {
        self.bufs.iter().map(|buf| buf.unwritten().len()).sum()
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self, pool: &mut TxPool) {
        self.bufs.drain(..).for_each(|buf| pool.give(buf));
        self.msgs = 0;
    }
}
