//! Transmit steering: which psock carries a KCM socket's messages (kcm-semantics §5.7, §6).
//!
//! * *avail*: psocks free for sending; the head is taken, a released one joins the tail.
//! * *waiters*: KCM sockets with messages and no psock (TxWait), longest waiting first.
//! * *scheduled*: reserved psocks with bytes to write, not blocked, nothing in flight.
//!
//! A psock stays reserved until its KCM socket has nothing queued, so the bytes of a message
//! are contiguous on one TCP stream. A psock that fails is aborted for good (TxStop) and the
//! message restarts from its first byte elsewhere.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::error::{EPIPE, SendError};
use crate::kcm::{Flight, Kcm};
use crate::limits::{OPEN_MSG_BYTES_MAX, TX_PACK_BYTES_MAX};
use crate::mux::{Event, Events, KcmId, PsockId};
use crate::psock::{Psock, TxOwner};
use crate::slots::Slots;
use crate::stats::{MuxStats, PsockStats};
use crate::transmit::SendFlags;
use crate::tx_queue::TxPool;

/// The three lists of one mux.
#[derive(Debug, Default)]
pub(crate) struct TxSteer {
    /// With the serial of each attachment: an unattached psock stays listed until it is met.
    avail: VecDeque<(PsockId, u64)>,
    /// Entries of `avail` whose psock was unattached.
    avail_gone: usize,
    pub(crate) waiters: VecDeque<KcmId>,
    pub(crate) scheduled: VecDeque<PsockId>,
}

impl TxSteer {
    /// Psocks free for sending, head first.
    pub(crate) fn available(&self, psocks: &Slots<Psock>) -> impl Iterator<Item = PsockId> {
        let attached = |&&(id, serial): &&(PsockId, u64)| {
            psocks.get(id.0).is_some_and(|psock| psock.serial == serial)
        };
        self.avail.iter().filter(attached).map(|&(id, _)| id)
    }
}

/// The mux as the transmit side sees it.
pub(crate) struct TxSide<'a> {
    pub(crate) kcms: &'a mut Slots<Kcm>,
    pub(crate) psocks: &'a mut Slots<Psock>,
    pub(crate) steer: &'a mut TxSteer,
    pub(crate) pool: &'a mut TxPool,
    pub(crate) events: &'a mut Events,
    pub(crate) stats: &'a mut MuxStats,
    /// Counters of psocks already unattached.
    pub(crate) retired: &'a mut PsockStats,
}

impl TxSide<'_> {
    /// Adds `parts` to the open message, or starts one; completes it when `flags.end`.
    pub(crate) fn send(
        &mut self,
        id: KcmId,
        parts: &[&[u8]],
        flags: SendFlags,
    ) -> Result<usize, SendError> {
        let accepted = self.accept(id, parts, flags);
        match accepted {
            Ok(_) if flags.end && !flags.batch => self.kick(id),
            Ok(_) => {}
            // What was batched goes out before its sender sleeps or gives up (§5.6).
            Err(_) => self.kick(id),
        }
        accepted
    }

    fn accept(&mut self, id: KcmId, parts: &[&[u8]], flags: SendFlags) -> Result<usize, SendError> {
        let kcm = self.kcms.get_mut(id.0).ok_or(SendError::NoSocket)?;
        let tx = &mut kcm.tx;
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if tx.open.is_none() && tx.queued_bytes >= tx.sndbuf as usize {
            return Err(SendError::WouldBlock);
        }
        match (tx.open.take(), flags.end) {
            // There is no empty message (§5.5).
            (None, _) if len == 0 => return Ok(0),
            (None, true) => tx.queue.push(parts, len, self.pool)?,
            (open, end) => {
                let mut open = open.unwrap_or_default();
                let appended = append_open(&mut open, parts, len, end);
                if let Err(error) = appended {
                    tx.open = (!open.is_empty()).then_some(open);
                    return Err(error);
                }
                if !end {
                    tx.open = Some(open);
                } else if open.len() > TX_PACK_BYTES_MAX
                    || tx.queue.push(&[&open], open.len(), self.pool).is_err()
                {
                    tx.queue.push_owned(open);
                }
            }
        }
        tx.queued_bytes += len;
        kcm.stats.tx_bytes += len as u64;
        if flags.end {
            kcm.stats.tx_msgs += 1;
            tx.wait_more |= flags.batch;
        }
        Ok(len)
    }

    /// Starts transmission of whatever is queued, batched messages included.
    pub(crate) fn kick(&mut self, id: KcmId) {
        let Some(kcm) = self.kcms.get_mut(id.0) else {
            return;
        };
        kcm.tx.wait_more = false;
        if kcm.tx.queue.is_empty() || kcm.tx.flight != Flight::None || kcm.tx.waiting {
            return;
        }
        match kcm.tx.psock.or_else(|| self.reserve(id)) {
            Some(psock) => self.schedule(psock),
            None => self.wait(id),
        }
    }

    /// Discards the open message.
    pub(crate) fn abort_open(&mut self, id: KcmId) {
        if let Some(kcm) = self.kcms.get_mut(id.0)
            && let Some(open) = kcm.tx.open.take()
        {
            kcm.tx.queued_bytes -= open.len();
            kcm.stats.tx_bytes -= open.len() as u64;
        }
        self.kick(id);
    }

    /// Takes the head of the available list. A psock with a pending error fails as the
    /// transmission on it would (§6.2), and the next one is tried.
    pub(crate) fn reserve(&mut self, id: KcmId) -> Option<PsockId> {
        while let Some((psock_id, serial)) = self.steer.avail.pop_front() {
            let psock = self.psocks.get(psock_id.0);
            if psock.is_none_or(|psock| psock.serial != serial) {
                self.steer.avail_gone -= 1;
                continue;
            }
            self.bind(id, psock_id);
            if self.pending_error(psock_id) {
                self.abort(psock_id);
                self.unbind(id);
                self.stats.tx_retries += 1;
                continue;
            }
            return Some(psock_id);
        }
        None
    }

    fn pending_error(&self, id: PsockId) -> bool {
        self.psocks.get(id.0).is_some_and(|psock| psock.error != 0)
    }

    fn bind(&mut self, id: KcmId, psock_id: PsockId) {
        if let Some(kcm) = self.kcms.get_mut(id.0)
            && let Some(psock) = self.psocks.get_mut(psock_id.0)
        {
            kcm.tx.psock = Some(psock_id);
            psock.tx.owner = TxOwner::Kcm(id);
            psock.stats.reserved += 1;
        }
    }

    /// Ends a reservation without deciding what becomes of the psock.
    fn unbind(&mut self, id: KcmId) -> Option<PsockId> {
        let psock_id = self.kcms.get_mut(id.0)?.tx.psock.take()?;
        let psock = self.psocks.get_mut(psock_id.0)?;
        psock.tx.owner = TxOwner::Nobody;
        psock.tx.blocked = false;
        psock.stats.unreserved += 1;
        Some(psock_id)
    }

    fn wait(&mut self, id: KcmId) {
        if let Some(kcm) = self.kcms.get_mut(id.0)
            && !core::mem::replace(&mut kcm.tx.waiting, true)
        {
            self.steer.waiters.push_back(id);
        }
    }

    pub(crate) fn leave_waiters(&mut self, id: KcmId) {
        if let Some(kcm) = self.kcms.get_mut(id.0)
            && core::mem::take(&mut kcm.tx.waiting)
        {
            self.steer.waiters.retain(|&waiter| waiter != id);
        }
    }

    /// A psock nobody reserves: the longest waiting KCM socket gets it, else it joins the
    /// tail of the available list.
    pub(crate) fn make_available(&mut self, psock_id: PsockId) {
        let Some(psock) = self.psocks.get(psock_id.0) else {
            return;
        };
        if psock.tx.stopped {
            return;
        }
        let Some(id) = self.steer.waiters.pop_front() else {
            self.steer.avail.push_back((psock_id, psock.serial));
            return;
        };
        if let Some(kcm) = self.kcms.get_mut(id.0) {
            kcm.tx.waiting = false;
            kcm.tx.wait_more = false;
        }
        self.bind(id, psock_id);
        self.schedule(psock_id);
    }

    /// Releases the psock of a KCM socket that has nothing left to send.
    pub(crate) fn release(&mut self, id: KcmId) {
        if let Some(psock_id) = self.unbind(id) {
            self.make_available(psock_id);
        }
    }

    /// Sending on the psock has failed for good (TxStop); posts EPIPE.
    pub(crate) fn abort(&mut self, psock_id: PsockId) {
        if let Some(psock) = self.psocks.get_mut(psock_id.0)
            && !core::mem::replace(&mut psock.tx.stopped, true)
        {
            psock.stats.tx_aborts += 1;
            psock.error = EPIPE;
            self.events.push(Event::PsockError(psock_id));
        }
    }

    /// A transmission of `id` failed hard: its psock is aborted, and the message restarts
    /// from its first byte on another one.
    pub(crate) fn fail_over(&mut self, id: KcmId) {
        if let Some(psock_id) = self.unbind(id) {
            self.abort(psock_id);
        }
        self.stats.tx_retries += 1;
        self.restart(id);
    }

    /// The psock that carried messages of `id` is gone.
    pub(crate) fn psock_gone(&mut self, id: KcmId) {
        // In flight, the message restarts when its buffers come back.
        if self
            .kcms
            .get(id.0)
            .is_some_and(|kcm| kcm.tx.flight == Flight::None)
        {
            let again = self.restart(id);
            self.stats.tx_retries += u64::from(again > 0);
        }
    }

    /// Queues the message under way from its first byte again and looks for a psock. Returns
    /// the bytes that were written in vain.
    fn restart(&mut self, id: KcmId) -> usize {
        let Some(kcm) = self.kcms.get_mut(id.0) else {
            return 0;
        };
        let again = kcm.tx.queue.restart();
        kcm.tx.queued_bytes += again;
        self.kick(id);
        again
    }

    pub(crate) fn schedule(&mut self, psock_id: PsockId) {
        if let Some(psock) = self.psocks.get_mut(psock_id.0)
            && !psock.tx.blocked
            && !psock.tx.in_flight
            && !core::mem::replace(&mut psock.tx.scheduled, true)
        {
            self.steer.scheduled.push_back(psock_id);
        }
    }

    pub(crate) fn handle_writable(&mut self, psock_id: PsockId) {
        let Some(psock) = self.psocks.get_mut(psock_id.0) else {
            return;
        };
        psock.tx.blocked = false;
        psock.tx.space_seen = psock.tx.in_flight;
        if let TxOwner::Kcm(_) = psock.tx.owner {
            self.schedule(psock_id);
        }
    }

    /// The connection is dead. If bytes wait for its write space they would wait for ever:
    /// fail over at once (§15.5).
    pub(crate) fn handle_reset(&mut self, psock_id: PsockId) {
        let Some(psock) = self.psocks.get(psock_id.0) else {
            return;
        };
        if let TxOwner::Kcm(id) = psock.tx.owner
            && !psock.tx.in_flight
        {
            self.fail_over(id);
        }
    }

    /// A KCM socket closes: what it queued is dropped, and a psock with part of a message on
    /// the wire is lost for sending (§6.5).
    pub(crate) fn close(&mut self, id: KcmId) {
        self.leave_waiters(id);
        let Some(kcm) = self.kcms.get_mut(id.0) else {
            return;
        };
        let mid_message = kcm.tx.queue.mid_message();
        kcm.tx.queue.clear(self.pool);
        kcm.tx.open = None;
        kcm.tx.queued_bytes = 0;
        if kcm.tx.flight != Flight::None {
            if let Some(psock) = kcm.tx.psock.and_then(|psock| self.psocks.get_mut(psock.0)) {
                psock.tx.owner = TxOwner::Closed;
            }
        } else if let Some(psock_id) = self.unbind(id) {
            if mid_message {
                self.abort(psock_id);
            }
            self.make_available(psock_id);
        }
    }

    /// A psock leaves the mux. Returns the KCM socket whose message it was carrying; call
    /// [`psock_gone`](Self::psock_gone) for it once the psock is removed.
    pub(crate) fn unattach(&mut self, psock_id: PsockId) -> Option<KcmId> {
        let owner = self.psocks.get(psock_id.0)?.tx.owner;
        let owner = match owner {
            TxOwner::Nobody => {
                self.forget_available(psock_id);
                return None;
            }
            TxOwner::Kcm(id) => {
                self.unbind(id);
                Some(id)
            }
            TxOwner::Closed => None,
        };
        self.stats.psock_unattach_rsvd += 1;
        // No event: the error leaves with the psock.
        if let Some(psock) = self.psocks.get_mut(psock_id.0) {
            psock.stats.tx_aborts += 1;
            psock.error = EPIPE;
        }
        owner
    }

    /// An available psock is being unattached. Its entry goes when half of the list is such:
    /// closing a mux of many psocks stays linear.
    fn forget_available(&mut self, psock_id: PsockId) {
        let Some(psock) = self
            .psocks
            .get(psock_id.0)
            .filter(|psock| !psock.tx.stopped)
        else {
            return;
        };
        let leaving = (psock_id, psock.serial);
        self.steer.avail_gone += 1;
        if self.steer.avail_gone > self.steer.avail.len() / 2 {
            let psocks = &self.psocks;
            let attached = |&(id, serial): &(PsockId, u64)| {
                psocks.get(id.0).is_some_and(|psock| psock.serial == serial)
            };
            self.steer
                .avail
                .retain(|entry| *entry != leaving && attached(entry));
            self.steer.avail_gone = 0;
        }
    }
}

/// Grows the open message; leaves it as it was on an error.
fn append_open(
    open: &mut Vec<u8>,
    parts: &[&[u8]],
    len: usize,
    completes: bool,
) -> Result<(), SendError> {
    if !completes && len > OPEN_MSG_BYTES_MAX.saturating_sub(open.len()) {
        return Err(SendError::OpenMessageTooLong);
    }
    open.try_reserve(len).map_err(|_| SendError::NoMemory)?;
    parts.iter().for_each(|part| open.extend_from_slice(part));
    Ok(())
}
