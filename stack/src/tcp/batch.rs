//! Frames that come together: records brought into the cache before they are needed, and a connection
//! settled once for all its segments that follow one another.

use core::hint::black_box;

use super::conn::NONE;
use super::demux::Entry;
use super::{Engine, WARM_MAX};
use crate::time::Instant;

impl Engine {
    /// What follows, up to [`Self::end_batch`], is frames and nothing else.
    pub(crate) fn begin_batch(&mut self) {
        self.is_batch = true;
    }

    /// Settles what the batch left open.
    pub(crate) fn end_batch(&mut self, now: Instant) {
        self.is_batch = false;
        self.leave_train(now);
    }

    /// Settles the connection whose segments came one after the other.
    pub(super) fn leave_train(&mut self, now: Instant) {
        let i = core::mem::replace(&mut self.train, NONE);
        if i != NONE {
            self.settle(i, now);
        }
    }

    /// Reads, for a batch, every slot of the table, then every record, then every busy state, then
    /// what that points at, so that the cache misses of the batch overlap instead of adding up.
    /// Changes nothing.
    pub(crate) fn warm(&self, tags: &[u32]) {
        for &tag in tags {
            black_box(self.demux.peek(tag));
        }
        let guessed = |tag: &u32| match self.demux.guess(*tag) {
            Some(Entry::Conn(i)) => Some(i),
            _ => None,
        };
        let mut known = [NONE; WARM_MAX];
        let found = tags.iter().filter_map(guessed);
        let n = known.iter_mut().zip(found).map(|(k, i)| *k = i).count();
        self.warm_records(&known[..n]);
    }

    /// As [`Self::warm`] for connections by index.
    pub(super) fn warm_records(&self, indices: &[u32]) {
        for &i in indices {
            self.conns[i].warm();
            black_box(self.wheel.peek(i));
        }
        let busy = || {
            let at_work = indices.iter().map(|i| self.conns[*i].busy);
            at_work.filter(|b| *b != NONE).map(|b| &self.busy[b])
        };
        for b in busy() {
            b.warm();
        }
        for b in busy() {
            black_box((b.tx.peek_first(), b.board.front().map(|s| s.at)));
        }
    }
}
