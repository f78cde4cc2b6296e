//! Receive chunks between two reads. A connection that has nothing unread owns none.

use kcm_mux::Chunk;

use crate::heap;
use crate::sync::{Mutex, Rank};

/// Chunks kept for the next read: enough for a burst over many connections, 4 MiB in all.
const SPARE_MAX: usize = 64;

static SPARE: Mutex<Vec<Chunk>> = Mutex::ranked(Rank::Leaf, Vec::new());

/// A chunk to read into; `None` when memory is short.
pub(crate) fn take() -> Option<Chunk> {
    let spare = SPARE.lock().ok().and_then(|mut spare| spare.pop());
    spare.or_else(|| heap::check_room().is_ok().then(Chunk::default))
}

/// Takes back a chunk that nobody reads any more.
pub(crate) fn give(chunk: Chunk) {
    if let Ok(mut spare) = SPARE.lock()
        && spare.len() < SPARE_MAX
    {
        spare.push(chunk);
    }
}
