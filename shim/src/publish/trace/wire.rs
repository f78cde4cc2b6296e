//! What a tracer and a traced process say to each other, word by word.
//!
//! The tracer connects to the stream socket `PID.trace` beside the process's page and sends one
//! [`request`]. The process answers with records until either side closes. A record is a [`head`] and
//! the bytes that were asked for, filled up with 0 to whole words; words are in the machine's own byte
//! order. Both crates compile this file. A change of any meaning is a new [`VERSION`].

/// First word of a request.
pub(crate) const MAGIC: u64 = u64::from_ne_bytes(*b"KCMTRACE");
/// What the rest means.
pub(crate) const VERSION: u64 = 1;
/// Bytes of a word.
pub(crate) const WORD: usize = 8;

/// What the tracer wants to see. Words that name nothing are [`ANY`](request::ANY).
pub(crate) mod request {
    pub(crate) const WORDS: usize = 16;
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 1;
    /// Sum of what is wanted: messages, frames of the stack's device.
    pub(crate) const WHAT: usize = 2;
    pub(crate) const MESSAGES: u64 = 1;
    pub(crate) const FRAMES: u64 = 2;
    /// Bytes wanted of each, at most [`HEAD_MAX`](super::HEAD_MAX).
    pub(crate) const HEAD: usize = 3;
    /// Sum of the directions wanted: [`RX`](super::RX), [`TX`](super::TX).
    pub(crate) const DIRECTIONS: usize = 4;
    /// Shortest and longest message.
    pub(crate) const LEN_MIN: usize = 5;
    pub(crate) const LEN_MAX: usize = 6;
    /// Only this mux, this KCM socket, this psock.
    pub(crate) const MUX: usize = 7;
    pub(crate) const KCM: usize = 8;
    pub(crate) const PSOCK: usize = 9;
    /// Any mux, KCM socket or psock.
    pub(crate) const ANY: u64 = u64::MAX;
}

/// Towards the program, and away from it.
pub(crate) const RX: u64 = 1;
pub(crate) const TX: u64 = 2;

/// What stands before the bytes of a record.
pub(crate) mod head {
    pub(crate) const WORDS: usize = 12;
    /// One of the kinds below.
    pub(crate) const KIND: usize = 0;
    /// The request is granted; nothing follows.
    pub(crate) const HELLO: u64 = 1;
    /// As many tracers as there may be are here already; nothing follows.
    pub(crate) const BUSY: u64 = 2;
    /// The process does not know this version; nothing follows.
    pub(crate) const STRANGE: u64 = 3;
    /// A message, or a frame.
    pub(crate) const MESSAGE: u64 = 4;
    pub(crate) const FRAME: u64 = 5;
    /// Bytes that follow, before they are filled up.
    pub(crate) const BYTES: usize = 1;
    /// CLOCK_REALTIME in nanoseconds.
    pub(crate) const TIME: usize = 2;
    /// Records that found no room since the trace began.
    pub(crate) const LOST: usize = 3;
    /// [`RX`](super::RX) or [`TX`](super::TX).
    pub(crate) const DIRECTION: usize = 4;
    /// Bytes of the whole message or frame.
    pub(crate) const LEN: usize = 5;
    pub(crate) const MUX: usize = 6;
    pub(crate) const KCM: usize = 7;
    pub(crate) const PSOCK: usize = 8;
    /// Inode of the connection's socket.
    pub(crate) const INODE: usize = 9;
}

/// Bytes of one message at most: a chunk, and more than any frame.
pub(crate) const HEAD_MAX: usize = 64 << 10;
