//! Bytes in flight: handed out for writing, and what becomes of psock and message when their
//! fate is known. In between both KCM socket and psock may have gone.

use crate::kcm::Flight;
use crate::mux::{Event, KcmId, PsockId};
use crate::psock::TxOwner;
use crate::transmit::{Transmit, TxResult};
use crate::tx_queue::{self, Written};
use crate::tx_steer::TxSide;

impl TxSide<'_> {
    pub(crate) fn begin_transmit(&mut self) -> Option<Transmit> {
        while let Some(psock_id) = self.steer.scheduled.pop_front() {
            let Some(psock) = self.psocks.get_mut(psock_id.0) else {
                continue;
            };
            psock.tx.scheduled = false;
            let TxOwner::Kcm(id) = psock.tx.owner else {
                continue;
            };
            if psock.tx.blocked || psock.tx.in_flight {
                continue;
            }
            if psock.error != 0 {
                self.fail_over(id);
                continue;
            }
            let Some(kcm) = self.kcms.get_mut(id.0) else {
                continue;
            };
            if kcm.tx.queue.is_empty() {
                self.release(id);
                continue;
            }
            psock.tx.in_flight = true;
            psock.tx.space_seen = false;
            kcm.tx.flight = Flight::Queued;
            kcm.tx.wait_more = false;
            return Some(Transmit {
                psock: psock_id,
                psock_serial: psock.serial,
                kcm: id,
                kcm_serial: kcm.serial,
                bufs: kcm.tx.queue.take_front(),
            });
        }
        None
    }

    pub(crate) fn finish_transmit(&mut self, transmit: Transmit, result: TxResult) {
        let Transmit {
            psock,
            psock_serial,
            kcm: id,
            kcm_serial,
            mut bufs,
        } = transmit;
        let offered: usize = bufs.iter().map(|buf| buf.unwritten().len()).sum();
        let mut landing = Landing {
            psock,
            psock_serial,
            owner: None,
            written: Written::default(),
            complete: result == TxResult::Sent(offered),
            failed: matches!(result, TxResult::Failed(_)),
            mid_message: false,
        };
        self.events.tap_written(id, psock, &bufs, result.sent());
        match self
            .kcms
            .get_mut(id.0)
            .filter(|kcm| kcm.serial == kcm_serial)
        {
            Some(kcm) => {
                landing.owner = Some(id);
                landing.written = kcm.tx.queue.put_back(bufs, result.sent(), self.pool);
                landing.mid_message = kcm.tx.queue.mid_message();
                kcm.tx.queued_bytes -= landing.written.bytes;
                kcm.tx.flight = Flight::None;
            }
            None => {
                landing.written = tx_queue::advance(&mut bufs, result.sent());
                landing.mid_message = bufs.iter().any(tx_queue::TxBuf::mid_message);
                bufs.into_iter().for_each(|buf| self.pool.give(buf));
            }
        }
        self.land(landing);
    }

    /// Reserves a psock for a message the caller writes from its own memory.
    pub(crate) fn reserve_direct(&mut self, id: KcmId) -> Option<PsockId> {
        let tx = &self.kcms.get(id.0)?.tx;
        let idle = tx.queue.is_empty()
            && tx.open.is_none()
            && tx.flight == Flight::None
            && tx.psock.is_none();
        if !idle || tx.waiting {
            return None;
        }
        let psock_id = self.reserve(id)?;
        let psock = self.psocks.get_mut(psock_id.0)?;
        psock.tx.in_flight = true;
        psock.tx.space_seen = false;
        self.kcms.get_mut(id.0)?.tx.flight = Flight::Direct(psock_id, psock.serial);
        Some(psock_id)
    }

    pub(crate) fn finish_direct(
        &mut self,
        id: KcmId,
        psock_id: PsockId,
        parts: &[&[u8]],
        result: TxResult,
    ) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let sent = result.sent().min(len);
        let complete = result == TxResult::Sent(len);
        let mut landing = Landing {
            psock: psock_id,
            psock_serial: 0,
            owner: None,
            written: Written {
                bytes: sent,
                msgs: usize::from(complete && len > 0),
            },
            complete,
            failed: matches!(result, TxResult::Failed(_)),
            mid_message: !complete && sent > 0,
        };
        if landing.written.msgs > 0 {
            self.events.tap_sent(id, psock_id, len, parts);
        }
        match self.kcms.get_mut(id.0) {
            Some(kcm) if matches!(kcm.tx.flight, Flight::Direct(psock, _) if psock == psock_id) => {
                if let Flight::Direct(_, serial) = kcm.tx.flight {
                    landing.psock_serial = serial;
                }
                landing.owner = Some(id);
                kcm.tx.flight = Flight::None;
                kcm.stats.tx_msgs += u64::from(len > 0);
                kcm.stats.tx_bytes += len as u64;
                if !complete {
                    kcm.tx.queue.push_front_written(parts, sent);
                    kcm.tx.queued_bytes += len - sent;
                }
            }
            // The KCM socket was closed meanwhile; its psock remembers.
            _ => {
                let Some(psock) = self.psocks.get(psock_id.0) else {
                    return;
                };
                if psock.tx.owner != TxOwner::Closed {
                    return;
                }
                landing.psock_serial = psock.serial;
            }
        }
        self.land(landing);
    }

    /// Bytes were in flight and their fate is known; decides what the psock does next.
    fn land(&mut self, landing: Landing) {
        let Landing {
            psock: psock_id,
            written,
            complete,
            ..
        } = landing;
        let psock = self.psocks.get_mut(psock_id.0);
        let psock = psock.filter(|psock| psock.serial == landing.psock_serial);
        let unattached = psock.is_none();
        let mut failed = landing.failed;
        let mut blocked = false;
        let stats = match psock {
            Some(psock) => {
                psock.tx.in_flight = false;
                // A reset that came meanwhile leaves nobody to report write space.
                failed |= psock.dead && !complete;
                blocked = !complete && !psock.tx.space_seen;
                &mut psock.stats
            }
            None => &mut *self.retired,
        };
        stats.tx_bytes += written.bytes as u64;
        stats.tx_msgs += written.msgs as u64;
        let Some(id) = landing.owner else {
            self.land_orphan(psock_id, unattached, failed || landing.mid_message);
            return;
        };
        self.events.push(Event::Writable(id));
        if unattached {
            self.psock_gone(id);
        } else if failed {
            self.fail_over(id);
        } else if self
            .kcms
            .get(id.0)
            .is_none_or(|kcm| kcm.tx.queue.is_empty())
        {
            self.release(id);
        } else {
            if let Some(psock) = self.psocks.get_mut(psock_id.0) {
                psock.tx.blocked = blocked;
            }
            self.schedule(psock_id);
        }
    }

    /// The KCM socket was closed while its bytes were in flight (§6.5).
    fn land_orphan(&mut self, psock_id: PsockId, unattached: bool, unusable: bool) {
        if unattached {
            return;
        }
        if let Some(psock) = self.psocks.get_mut(psock_id.0) {
            psock.tx.owner = TxOwner::Nobody;
            psock.stats.unreserved += 1;
        }
        if unusable {
            self.abort(psock_id);
        }
        self.make_available(psock_id);
    }
}

/// How bytes in flight ended.
struct Landing {
    psock: PsockId,
    psock_serial: u64,
    /// The KCM socket that sent them, unless it was closed meanwhile.
    owner: Option<KcmId>,
    written: Written,
    /// TCP took everything offered.
    complete: bool,
    failed: bool,
    /// The last byte taken is not the last of a message.
    mid_message: bool,
}
