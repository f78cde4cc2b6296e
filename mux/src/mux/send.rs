//! Send entry points of a [`Mux`] (kcm-semantics §5, §6); the algorithms are in `tx_steer`.

use super::{KcmId, Mux, PsockId};
use crate::error::SendError;
use crate::transmit::{SendFlags, Transmit, TxResult};

impl Mux {
    /// Whether a message may start, or one is open: queued bytes are below SO_SNDBUF.
    #[must_use]
    pub fn may_start(&self, kcm: KcmId) -> bool {
        self.kcms.get(kcm.0).is_some_and(|kcm| {
            kcm.tx.open.is_some() || kcm.tx.queued_bytes < kcm.tx.sndbuf as usize
        })
    }

    /// Queues the bytes of `parts`; returns how many. Without bytes, `flags.end` completes an
    /// open message and flushes batched ones.
    ///
    /// # Errors
    /// [`SendError`]; nothing of `parts` was accepted, an open message is kept, and batched
    /// messages were flushed.
    pub fn send(
        &mut self,
        kcm: KcmId,
        parts: &[&[u8]],
        flags: SendFlags,
    ) -> Result<usize, SendError> {
        let sent = self.tx_side().send(kcm, parts, flags);
        self.check_invariants();
        sent
    }

    /// Discards the open message (a DGRAM send failed, §5.2) and flushes batched ones.
    pub fn abort_open(&mut self, kcm: KcmId) {
        self.tx_side().abort_open(kcm);
        self.check_invariants();
    }

    /// Starts transmission of batched messages.
    pub fn flush_batch(&mut self, kcm: KcmId) {
        self.tx_side().kick(kcm);
        self.check_invariants();
    }

    /// Reserves a psock for one whole message that the caller writes to TCP from its own
    /// memory and then reports with [`finish_direct`](Self::finish_direct). `None` when
    /// messages are queued or open, or no psock is free: use [`send`](Self::send).
    pub fn reserve_direct(&mut self, kcm: KcmId) -> Option<PsockId> {
        let psock = self.tx_side().reserve_direct(kcm);
        self.check_invariants();
        psock
    }

    /// Ends a direct write. What was not sent of the message `parts` is copied and queued in
    /// front, so that a failure can still restart it from its first byte.
    pub fn finish_direct(&mut self, kcm: KcmId, psock: PsockId, parts: &[&[u8]], result: TxResult) {
        self.tx_side().finish_direct(kcm, psock, parts, result);
        self.check_invariants();
    }

    /// The next bytes to write to a TCP socket. The lock may be released until
    /// [`finish_transmit`](Self::finish_transmit).
    pub fn begin_transmit(&mut self) -> Option<Transmit> {
        let transmit = self.tx_side().begin_transmit();
        self.check_invariants();
        transmit
    }

    /// Ends a write of [`begin_transmit`](Self::begin_transmit).
    pub fn finish_transmit(&mut self, transmit: Transmit, result: TxResult) {
        self.tx_side().finish_transmit(transmit, result);
        self.check_invariants();
    }

    /// Whether write space of the TCP socket is awaited.
    #[must_use]
    pub fn wants_write(&self, psock: PsockId) -> bool {
        self.psocks
            .get(psock.0)
            .is_some_and(|psock| psock.tx.blocked)
    }

    /// The TCP socket has write space.
    pub fn handle_writable(&mut self, psock: PsockId) {
        self.tx_side().handle_writable(psock);
        self.check_invariants();
    }
}
