//! What the transmit side exchanges with its caller.

use alloc::vec::Vec;

use crate::mux::{KcmId, PsockId};
use crate::tx_queue::TxBuf;

/// How a send ends (kcm-semantics §5.1, §5.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendFlags {
    /// The bytes complete the message.
    pub end: bool,
    /// A completed message waits for the next completing send without this flag (MSG_BATCH).
    pub batch: bool,
}

/// What TCP did with bytes offered to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxResult {
    /// So many bytes were taken; fewer than offered, or 0, mean no more write space.
    Sent(usize),
    /// A hard failure with this errno: anything but EAGAIN and EINTR.
    Failed(i32),
}

impl TxResult {
    pub(crate) fn sent(self) -> usize {
        match self {
            Self::Sent(bytes) => bytes,
            Self::Failed(_) => 0,
        }
    }
}

/// Bytes to write to one TCP socket, moved out of the mux.
///
/// Small messages lie packed in contiguous memory. Hand it to
/// [`Mux::finish_transmit`](crate::Mux::finish_transmit) in any case: a transmit that is
/// dropped loses its messages and leaves the psock reserved.
#[derive(Debug)]
#[must_use]
pub struct Transmit {
    pub(crate) psock: PsockId,
    pub(crate) psock_serial: u64,
    pub(crate) kcm: KcmId,
    pub(crate) kcm_serial: u64,
    pub(crate) bufs: Vec<TxBuf>,
}

impl Transmit {
    /// The psock to write to.
    #[must_use]
    pub fn psock(&self) -> PsockId {
        self.psock
    }

    /// The bytes in order; at most [`TRANSMIT_BUFS_MAX`](crate::limits::TRANSMIT_BUFS_MAX) pieces.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.bufs.iter().map(TxBuf::unwritten)
    }

    /// Bytes in all slices.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a transmit always has bytes")]
    pub fn len(&self) -> usize {
        self.slices().map(<[u8]>::len).sum()
    }
}
