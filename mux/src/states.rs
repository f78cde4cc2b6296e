//! Where KCM sockets and psocks stand, as /proc/net/kcm tells it (kcm-semantics §12).

use crate::kcm::Kcm;
use crate::mux::{KcmId, Mux, PsockId};
use crate::psock::{Psock, TxOwner};

/// Where a KCM socket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KcmState {
    /// Messages received and not read, those of the batch included.
    pub rx_msgs: usize,
    /// What they are charged, compared with SO_RCVBUF.
    pub rx_charge: usize,
    /// Messages sent and not written.
    pub tx_msgs: usize,
    /// The psock reserved for sending.
    pub psock: Option<PsockId>,
    /// On the list of sockets that wait for a psock (TxWait).
    pub tx_waiting: bool,
    /// Messages wait for a send without MSG_BATCH (WMore).
    pub wait_more: bool,
    /// On the list of sockets that receive next (RxWait).
    pub rx_waiting: bool,
}

/// Where a psock stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PsockState {
    /// The KCM socket that has reserved it (Rsvd).
    pub reserved_by: Option<KcmId>,
    /// It sends no more (TxStop).
    pub tx_stopped: bool,
    /// Its parser has stopped (RxStop).
    pub rx_stopped: bool,
    /// It holds a complete message nobody has room for (RxPause, RdyRx).
    pub rx_ready: bool,
    /// It holds bytes that are no message yet.
    pub rx_begun: bool,
    /// Bytes that its parser knows to be missing, 0 when it does not know (RxWait).
    pub rx_needs: usize,
}

impl From<&Kcm> for KcmState {
    fn from(kcm: &Kcm) -> Self {
        Self {
            rx_msgs: kcm.rx.len() + kcm.rx.in_batch,
            rx_charge: kcm.rx.charge,
            tx_msgs: kcm.tx.msgs_queued(),
            psock: kcm.tx.psock,
            tx_waiting: kcm.tx.waiting,
            wait_more: kcm.tx.wait_more,
            rx_waiting: kcm.rx.waiting,
        }
    }
}

impl From<&Psock> for PsockState {
    fn from(psock: &Psock) -> Self {
        Self {
            reserved_by: match psock.tx.owner {
                TxOwner::Kcm(kcm) => Some(kcm),
                TxOwner::Nobody | TxOwner::Closed => None,
            },
            tx_stopped: psock.tx.stopped,
            rx_stopped: psock.strp.stopped(),
            rx_ready: psock.ready.is_some(),
            rx_begun: psock.strp.held() > psock.strp.consumed(),
            rx_needs: psock.strp.need_bytes(),
        }
    }
}

impl Mux {
    /// Where a KCM socket stands; [`account`](Self::account) its batch first for exact numbers.
    #[must_use]
    pub fn kcm_state(&self, id: KcmId) -> Option<KcmState> {
        self.kcm(id).map(KcmState::from)
    }

    /// Where a psock stands.
    #[must_use]
    pub fn psock_state(&self, id: PsockId) -> Option<PsockState> {
        self.psock(id).map(PsockState::from)
    }
}
