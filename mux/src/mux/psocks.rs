//! Psocks of a [`Mux`]: attach, unattach, connection state and errors (kcm-semantics §3, §6.1).

use alloc::vec::Vec;

use super::receive::Rcvbuf;
use super::{Event, Mux, Nanos, PsockId};
use crate::chunk::Slice;
use crate::error::EPIPE;
use crate::psock::{Psock, ReadGate, TxOwner};
use crate::strparser::Parser;

/// What an unattached psock leaves to its TCP fd.
#[derive(Debug, Default)]
pub struct Unattached {
    /// Bytes read from TCP that no message consumed, in order: still readable on the TCP fd.
    pub unread: Vec<Slice>,
    /// The pending error; 0 for none.
    pub error: i32,
    /// Part of a message has gone out and the rest never will: the peer is in the middle of it.
    /// Attached again, the connection is for receiving only ([`Mux::attach_torn`]).
    pub torn: bool,
}

impl Mux {
    /// Attaches a TCP connection. `rcvbuf` is its SO_RCVBUF as getsockopt reports it, the
    /// longest message accepted; `msg_timeout` its SO_RCVTIMEO, the time one message may
    /// take to assemble.
    pub fn attach(&mut self, program: Parser, rcvbuf: u32, msg_timeout: Option<Nanos>) -> PsockId {
        self.attach_psock(program, rcvbuf, msg_timeout, false)
    }

    /// As [`attach`](Self::attach), for a connection that an earlier attach left
    /// [`torn`](Unattached::torn): nothing is sent on it (TxStop), since whatever came would
    /// continue the fragment of a message at its peer (§15.6).
    pub fn attach_torn(
        &mut self,
        program: Parser,
        rcvbuf: u32,
        msg_timeout: Option<Nanos>,
    ) -> PsockId {
        self.attach_psock(program, rcvbuf, msg_timeout, true)
    }

    fn attach_psock(
        &mut self,
        program: Parser,
        rcvbuf: u32,
        msg_timeout: Option<Nanos>,
        torn: bool,
    ) -> PsockId {
        let serial = self.next_serial();
        let mut psock = Psock::new(serial, program, rcvbuf, msg_timeout);
        psock.tx.stopped = torn;
        let id = PsockId(self.psocks.insert(psock));
        self.stats.psock_attach += 1;
        self.tx_side().make_available(id);
        self.check_invariants();
        id
    }

    /// Unattaches a psock: a parked message and the consumed part of an incomplete one are
    /// dropped, a message partly sent on it restarts on another psock (§3.4).
    pub fn unattach(&mut self, psock: PsockId) -> Unattached {
        let torn = self.is_mid_message(psock);
        let carried_for = self.tx_side().unattach(psock);
        self.stop_timer(psock);
        let Some(mut gone) = self.psocks.remove(psock.0) else {
            return Unattached::default();
        };
        self.stats.psock_unattach += 1;
        if let Some(run) = gone.ready.take() {
            self.stats.rx_ready_drops += 1;
            self.rx.ready.retain(|&ready| ready != psock);
            self.pool.give_run(run);
        }
        gone.strp.abort();
        self.retired += gone.stats;
        if let Some(kcm) = carried_for {
            self.tx_side().psock_gone(kcm);
        }
        self.check_invariants();
        Unattached {
            unread: gone.strp.take_unread(),
            error: gone.error,
            torn,
        }
    }

    /// Whether part of a message, but not all, has gone out on the psock.
    fn is_mid_message(&self, psock: PsockId) -> bool {
        let owner = self.psocks.get(psock.0).map(|psock| psock.tx.owner);
        match owner {
            Some(TxOwner::Kcm(id)) => self
                .kcms
                .get(id.0)
                .is_some_and(|kcm| kcm.tx.queue.mid_message()),
            _ => false,
        }
    }

    /// Bytes that a stopped parser leaves to the TCP fd although it is still attached (§9.5);
    /// nothing while the parser runs. [`Event::Unread`] tells when.
    pub fn take_unread(&mut self, psock: PsockId) -> Vec<Slice> {
        self.psocks
            .get_mut(psock.0)
            .map(|psock| psock.strp.take_unread())
            .unwrap_or_default()
    }

    /// Tells the current SO_RCVBUF of the TCP socket. A parse that waits for it goes on.
    pub fn set_psock_rcvbuf(&mut self, psock: PsockId, rcvbuf: u32) {
        let Some(state) = self.psocks.get_mut(psock.0) else {
            return;
        };
        state.rcvbuf = rcvbuf;
        if core::mem::replace(&mut state.gate, ReadGate::Open) == ReadGate::NeedRcvbuf {
            self.parse(psock, None, Rcvbuf::Current);
            self.announce_resumed(psock);
        }
        self.check_invariants();
    }

    /// Tells SO_RCVTIMEO of the TCP socket; messages started later obey it (§9.4).
    pub fn set_msg_timeout(&mut self, psock: PsockId, timeout: Option<Nanos>) {
        if let Some(psock) = self.psocks.get_mut(psock.0) {
            psock.msg_timeout = timeout;
        }
    }

    /// The pending error of the TCP socket; 0 for none.
    #[must_use]
    pub fn pending_error(&self, psock: PsockId) -> i32 {
        self.psocks.get(psock.0).map_or(0, |psock| psock.error)
    }

    /// Reads and clears the pending error, as SO_ERROR does.
    pub fn take_error(&mut self, psock: PsockId) -> i32 {
        self.psocks
            .get_mut(psock.0)
            .map_or(0, |psock| core::mem::take(&mut psock.error))
    }

    /// The TCP state changed: local shutdown, connect completed, FIN acknowledged. Posts EPIPE
    /// (§6.1). The peer's FIN and a reset have calls of their own, which count once.
    pub fn handle_state_change(&mut self, psock: PsockId) {
        self.post_error(psock, EPIPE);
    }

    /// The peer's FIN arrived. [`ReadResult::Eof`](crate::ReadResult::Eof) implies it; a psock that is not read
    /// learns it from here.
    pub fn handle_fin(&mut self, psock: PsockId) {
        if let Some(state) = self.psocks.get_mut(psock.0)
            && !core::mem::replace(&mut state.fin_seen, true)
        {
            self.post_error(psock, EPIPE);
        }
    }

    /// The connection was reset or timed out: a message partly sent on it fails over at once.
    /// [`ReadResult::Failed`](crate::ReadResult::Failed) implies it.
    pub fn handle_reset(&mut self, psock: PsockId) {
        let Some(state) = self.psocks.get_mut(psock.0) else {
            return;
        };
        if !core::mem::replace(&mut state.dead, true) {
            self.post_error(psock, EPIPE);
            self.tx_side().handle_reset(psock);
        }
        self.check_invariants();
    }

    pub(super) fn post_error(&mut self, psock: PsockId, errno: i32) {
        if let Some(state) = self.psocks.get_mut(psock.0) {
            state.error = errno;
            self.events.push(Event::PsockError(psock));
        }
    }
}
