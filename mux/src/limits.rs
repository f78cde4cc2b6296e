//! Every bound of the multiplexor, with its unit and its reason.
//!
//! Bounds that a program sets (SO_RCVBUF, SO_SNDBUF, SO_RCVLOWAT) are fields of
//! the sockets; the constants here are ours.

/// Bytes of a [`Chunk`](crate::Chunk): one bulk read.
///
/// Large enough that a read of 64-byte messages pays its system call a thousand
/// times over, small enough to stay in the second-level cache.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Longest unparsed remainder that is copied in front of the next read.
///
/// The copy makes headers and small messages contiguous. A longer remainder is
/// the start of a large message, which spans chunks instead.
pub const CARRY_BYTES_MAX: usize = 4 * 1024;

/// Reads of at most this many bytes are moved to an allocation of their own size.
///
/// Otherwise a trickle of short messages would pin one whole chunk each. The
/// copy is cheap next to the system call that brought the bytes.
pub const COMPACT_BYTES_MAX: usize = 8 * 1024;

/// Receive charge of a message beyond its payload.
///
/// The kernel charges segment memory, which is no interface (kcm-semantics §7.3).
/// One cache line covers the descriptor and its share of bookkeeping, and lets the
/// default SO_RCVBUF hold more than one full chunk of 64-byte messages.
pub const RX_MSG_OVERHEAD_BYTES: usize = 64;

/// Completed messages are packed into one transmit buffer up to this size.
pub const TX_BUF_BYTES: usize = 64 * 1024;

/// Messages longer than this get a transmit buffer of their own.
///
/// Packing saves system calls; beyond this size the saved call is cheaper than
/// growing and copying the shared buffer.
pub const TX_PACK_BYTES_MAX: usize = 16 * 1024;

/// Transmit buffers handed out in one [`Transmit`](crate::Transmit), so that one
/// gathering write stays below IOV_MAX and a lock round trip.
pub const TRANSMIT_BUFS_MAX: usize = 16;

/// Longest *open* message: bytes accumulated by sends that do not complete it.
///
/// The kernel has no bound here at all (20 MiB were accepted past a 4608-byte
/// SO_SNDBUF). A message sent by one call may be longer than this.
pub const OPEN_MSG_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Chunks kept for [`Mux::take_free_chunk`](crate::Mux::take_free_chunk); more are freed.
pub const FREE_CHUNKS_MAX: usize = 8;

/// Descriptor vectors kept for reuse: one being filled, one in a batch, one on its way back,
/// and one for a second reader.
pub const POOLED_DESC_VECS_MAX: usize = 4;

/// A descriptor vector with more capacity than this is freed instead of pooled:
/// 2048 messages are a chunk of 32-byte ones.
pub const POOLED_DESCS_MAX: usize = 2048;

/// Bytes kept for a tracer between two calls of [`Mux::take_tapped`](crate::Mux::take_tapped): a few
/// read passes, with all their bytes.
pub const TAP_BYTES_MAX: usize = 4 * CHUNK_BYTES;

/// Transmit buffers kept for reuse: one being filled while another is written.
pub const POOLED_TX_BUFS_MAX: usize = 2;

const _: () = assert!(
    CARRY_BYTES_MAX < CHUNK_BYTES / 2,
    "a read needs room behind the carry"
);
const _: () = assert!(COMPACT_BYTES_MAX < CHUNK_BYTES);
const _: () = assert!(TX_PACK_BYTES_MAX <= TX_BUF_BYTES);
const _: () = assert!(
    CHUNK_BYTES <= u32::MAX as usize,
    "descriptors hold 32-bit offsets"
);
