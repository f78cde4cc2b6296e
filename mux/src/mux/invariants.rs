//! What holds between any two calls of a [`Mux`]; checked in debug builds.

use alloc::vec::Vec;

use super::{KcmId, Mux, PsockId};
use crate::kcm::Flight;
use crate::psock::{Timer, TxOwner};

/// With more sockets than this, debug builds skip the invariants, which look at all of them.
const CHECKED_SOCKETS_MAX: usize = 64;

impl Mux {
    pub(crate) fn check_invariants(&self) {
        if cfg!(debug_assertions) && self.kcms.len() + self.psocks.len() <= CHECKED_SOCKETS_MAX {
            self.kcms.iter().for_each(|(_, kcm)| kcm.check_invariants());
            self.check_rx_lists();
            self.check_tx_lists();
        }
    }

    fn check_rx_lists(&self) {
        let waiting = self.kcms.iter().filter(|(_, kcm)| kcm.rx.waiting);
        assert!(
            waiting
                .map(|(id, _)| KcmId(id))
                .all(|id| self.rx.waiters.contains(&id))
        );
        let waits = |id: &KcmId| self.kcms.get(id.0).is_some_and(|kcm| kcm.rx.waiting);
        assert!(self.rx.waiters.iter().all(waits), "a waiter waits");
        let parked = self
            .psocks
            .iter()
            .filter(|(_, psock)| psock.ready.is_some());
        assert!(
            parked
                .map(|(id, _)| PsockId(id))
                .all(|id| self.rx.ready.contains(&id))
        );
        let parks = |id: &PsockId| {
            self.psocks
                .get(id.0)
                .is_some_and(|psock| psock.ready.is_some())
        };
        assert!(
            self.rx.ready.iter().all(parks),
            "a ready psock has a message"
        );
        assert!(
            self.rx.waiters.is_empty() || self.rx.ready.is_empty() && self.rx.hold.is_empty(),
            "no message waits while a socket waits"
        );
        for (id, psock) in self.psocks.iter() {
            psock.strp.check_invariants();
            let entry = match psock.timer {
                Timer::Off => continue,
                Timer::Unarmed => (0, PsockId(id)),
                Timer::At(due) => (due, PsockId(id)),
            };
            assert!(self.timers.contains(&entry), "a running timer is listed");
        }
    }

    fn check_tx_lists(&self) {
        for (id, kcm) in self.kcms.iter() {
            let tx = &kcm.tx;
            assert_eq!(tx.waiting, self.tx.waiters.contains(&KcmId(id)));
            if let Some(psock) = tx.psock.and_then(|psock| self.psocks.get(psock.0)) {
                assert_eq!(
                    psock.tx.owner,
                    TxOwner::Kcm(KcmId(id)),
                    "reserved both ways"
                );
                assert!(
                    psock.tx.in_flight || psock.tx.blocked || psock.tx.scheduled,
                    "a reserved psock goes on some time"
                );
            }
            let served = tx.waiting || tx.psock.is_some() || tx.flight != Flight::None;
            assert!(
                tx.queue.is_empty() || tx.wait_more || served,
                "queued messages go on"
            );
            let open = tx.open.as_ref().map_or(0, Vec::len);
            if tx.flight != Flight::Queued {
                assert_eq!(tx.queued_bytes, tx.queue.unwritten_bytes() + open);
            }
        }
        let mut available = self.tx.available(&self.psocks);
        assert!(
            self.tx.waiters.is_empty() || available.next().is_none(),
            "no socket waits in vain"
        );
        for id in self.tx.available(&self.psocks) {
            let psock = self.psocks.get(id.0);
            assert!(psock.is_some_and(|psock| psock.tx.owner == TxOwner::Nobody
                && !psock.tx.stopped
                && !psock.tx.in_flight));
        }
    }
}
