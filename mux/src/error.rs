//! Error numbers the multiplexor posts, and the ways a send can fail.
//!
//! The numbers are Linux's generic ones, equal on x86-64 and aarch64. They are
//! spelled here because this crate knows no libc.

use core::fmt;

/// Transmit abort, or any change of the TCP state (kcm-semantics §6.1).
pub const EPIPE: i32 = 32;
/// The parser needs bytes a program already consumed: stream lost (§9.2).
pub const ENODATA: i32 = 61;
/// The parser's length does not exceed the bytes already consumed (§9.2).
pub const EPROTO: i32 = 71;
/// A parser program hands the stream back to its owner (§9.2).
pub const ESTRPIPE: i32 = 86;
/// The message is longer than SO_RCVBUF of its TCP socket (§9.2).
pub const EMSGSIZE: i32 = 90;
/// The assembly timer expired (§9.4).
pub const ETIMEDOUT: i32 = 110;

/// Why [`Mux::send`](crate::Mux::send) accepted nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// A message cannot start: queued bytes have reached SO_SNDBUF. Wait for
    /// [`Event::Writable`](crate::Event::Writable), or fail with EAGAIN.
    WouldBlock,
    /// The open message would outgrow [`OPEN_MSG_BYTES_MAX`](crate::limits::OPEN_MSG_BYTES_MAX):
    /// EMSGSIZE. Waiting is no help, since only completing it drains it.
    OpenMessageTooLong,
    /// No memory for the queue: ENOMEM.
    NoMemory,
    /// No such KCM socket: EBADF.
    NoSocket,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WouldBlock => "queued bytes have reached SO_SNDBUF",
            Self::OpenMessageTooLong => "the open message has reached its limit",
            Self::NoMemory => "no memory for the transmit queue",
            Self::NoSocket => "no such KCM socket",
        })
    }
}

impl core::error::Error for SendError {}
