//! Kernel Connection Multiplexor (KCM) as a sans-I/O state machine.
//!
//! N KCM sockets of a program share M TCP connections, the *psocks*. A parser program cuts each
//! TCP stream into messages; every message goes whole to one KCM socket, and every message sent
//! goes whole to one TCP connection:
//!
//! ```text
//!   KCM sockets    k0   k1   k2        the program's descriptors
//!                    \   |   /
//!                     [ Mux ]          steering: waiters, ready, hold · avail, waiters
//!                    /   |   \
//!   psocks         p0   p1   p2        each: stream parser, transmit reservation
//!                   |    |    |
//!                  TCP  TCP  TCP       read and written by the caller
//! ```
//!
//! The crate does no I/O, reads no clock, takes no lock and holds no unsafe code. Its caller owns
//! the TCP sockets and does what [`Mux`] says:
//!
//! * **Receive**: while [`Mux::wants_read`], [`Mux::begin_read`] → recv(2) into
//!   [`ReadBuf::spare`] → [`Mux::finish_read`]. Messages wait in the KCM socket's queue until
//!   [`Mux::refill`] moves them into an [`RxBatch`], from which readers take them without the mux.
//! * **Send**: [`Mux::send`], then while [`Mux::begin_transmit`] gives bytes, write them and
//!   [`Mux::finish_transmit`]. Or [`Mux::reserve_direct`] to write from the sender's own memory.
//! * **After any call**: [`Mux::poll_event`] and [`Mux::begin_transmit`] until both are empty.
//! * **Time**: [`Mux::next_deadline`], [`Mux::handle_deadline`].
//! * **Tracing**: [`Mux::set_tap`], [`Mux::take_tapped`].
//!
//! Between `begin_*` and `finish_*` other calls may come, even those that remove the sockets
//! involved. Calls that name a socket which does not exist do nothing.
//!
//! Behaviour follows the kernel's, with its flaws left out: programs see each message from its
//! first byte, a reset connection hands its message on at once, counters are right, an open
//! message is bounded. Every bound is in [`limits`].
//!
//! Not here: file descriptors, errno of system calls, SIGPIPE, blocking, SO_RCVTIMEO of KCM
//! sockets, poll(2) states.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod batch;
pub mod bpf;
mod chunk;
pub mod error;
mod flight;
mod kcm;
pub mod limits;
mod mux;
mod pool;
pub mod proc;
mod psock;
mod rx_steer;
mod slots;
mod states;
mod stats;
mod strparser;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;
mod tx_queue;
mod tx_steer;

pub use batch::{Message, RxBatch};
pub use chunk::{Chunk, ReadBuf, ReadOutcome, ReadResult, Slice};
pub use error::SendError;
pub use mux::{Event, KcmId, Mux, Nanos, PsockId, SocketType, Unattached};
pub use states::{KcmState, PsockState};
pub use stats::{KcmStats, MuxStats, PsockStats, Totals};
pub use strparser::{Cb, MsgView, ParseMsg, Parser};
pub use tap::{Direction, Passed};
pub use transmit::{SendFlags, Transmit, TxResult};
