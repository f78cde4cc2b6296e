//! Stream buffers made of pooled blocks.
//!
//! A connection owns blocks only while bytes are in flight or unread: a small block for a message or
//! two, pages once the queue outgrows it, so that a million connections with a short answer in
//! flight each need 256 MiB and not 4 GiB, and large ones for bulk, which copies in longer runs. Both
//! queues are byte streams addressed by offset from their first byte; neither knows sequence numbers.

mod layout;
mod pool;
mod recv;
mod send;
#[cfg(test)]
mod tests;

pub(crate) use pool::BlockPool;
pub(crate) use recv::RecvQueue;
pub(crate) use send::SendQueue;
