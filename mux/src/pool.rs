//! Memory kept for reuse, so that a message costs no allocation.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::batch::{Desc, Run};
use crate::chunk::Chunk;
use crate::limits::{FREE_CHUNKS_MAX, POOLED_DESC_VECS_MAX, POOLED_DESCS_MAX};
use crate::tx_queue::TxPool;

/// Free chunks, descriptor vectors and transmit buffers of one mux.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    chunks: Vec<Chunk>,
    descs: Vec<Vec<Desc>>,
    pub(crate) tx: TxPool,
}

impl Pool {
    pub(crate) fn take_chunk(&mut self) -> Option<Chunk> {
        self.chunks.pop()
    }

    pub(crate) fn take_descs(&mut self) -> Vec<Desc> {
        self.descs.pop().unwrap_or_default()
    }

    /// Takes a reference to a chunk back; the last one frees it for reuse.
    pub(crate) fn give_chunk(&mut self, bytes: Arc<[u8]>) {
        if self.chunks.len() < FREE_CHUNKS_MAX {
            self.chunks.extend(Chunk::reclaim(bytes));
        }
    }

    pub(crate) fn give_run(&mut self, run: Run) {
        let Run {
            chunk,
            mut descs,
            spans,
            ..
        } = run;
        chunk.into_iter().for_each(|bytes| self.give_chunk(bytes));
        spans
            .into_iter()
            .for_each(|slice| self.give_chunk(slice.chunk));
        if self.descs.len() < POOLED_DESC_VECS_MAX
            && (1..=POOLED_DESCS_MAX).contains(&descs.capacity())
        {
            descs.clear();
            self.descs.push(descs);
        }
    }
}
