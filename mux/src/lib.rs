//! Kernel Connection Multiplexor as a sans-I/O state machine.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod bpf;

mod batch;
mod chunk;
pub mod error;
mod kcm;
pub mod limits;
mod mux;
mod pool;
pub mod proc;
mod psock;
mod rx_steer;
mod slots;
mod stats;
mod strparser;
mod transmit;
mod tx_queue;
mod tx_steer;

pub use batch::{Message, RxBatch};
pub use chunk::{Chunk, ReadBuf, ReadOutcome, ReadResult, Slice};
pub use error::SendError;
pub use mux::{Event, KcmId, Mux, Nanos, PsockId, SocketType, Unattached};
pub use stats::{KcmStats, MuxStats, PsockStats, Totals};
pub use strparser::{Cb, MsgView, ParseMsg, Parser};
pub use transmit::{SendFlags, Transmit, TxResult};
