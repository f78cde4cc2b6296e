//! Shutdown, close and abort.

use crate::error::SocketError;
use crate::events::Ready;
use crate::stack::TcpId;
use crate::tcp::conn::Flags;
use crate::tcp::state::State;
use crate::tcp::{Engine, Tcb};
use crate::time::Instant;

impl Engine {
    /// shutdown(2).
    pub(crate) fn shutdown(
        &mut self,
        id: TcpId,
        read: bool,
        write: bool,
        now: Instant,
    ) -> Result<(), SocketError> {
        let i = self.index(id).ok_or(SocketError::BadHandle)?;
        if matches!(self.conns[i].state, State::Closed) {
            return Err(SocketError::InvalidState);
        }
        let mut t = self.tcb(i, now);
        if read {
            t.c.flags.set(Flags::RECV_SHUTDOWN);
            t.notify(Ready::READABLE | Ready::READ_CLOSED);
        }
        if write {
            t.queue_fin();
        }
        self.settle(i, now);
        Ok(())
    }

    /// close(2) without linger: the handle is gone, the connection ends in its own time.
    pub(crate) fn close(&mut self, id: TcpId, now: Instant) {
        let Some(i) = self.index(id) else { return };
        let t = self.tcb(i, now);
        t.c.flags.clear(Flags::OWNED);
        t.c.events = Ready::NONE;
        match t.c.state {
            State::Closed | State::TimeWait => {}
            State::SynSent => t.c.state = State::Closed,
            _ if t.b.rx.len() > 0 => {
                // RFC 2525 §2.17: unread data means loss, and the peer is told.
                t.c.flags.set(Flags::SEND_RST);
            }
            state => {
                t.c.flags.set(Flags::RECV_SHUTDOWN);
                if state == State::FinWait2 {
                    t.b.timers.fin_wait = now + t.c.opts().fin_wait;
                }
                let mut t = self.tcb(i, now);
                t.queue_fin();
            }
        }
        self.settle(i, now);
    }

    /// close(2) with SO_LINGER of zero seconds: RST.
    pub(crate) fn abort(&mut self, id: TcpId, now: Instant) {
        let Some(i) = self.index(id) else { return };
        let c = &mut self.conns[i];
        c.flags.clear(Flags::OWNED);
        c.events = Ready::NONE;
        match c.state {
            State::Closed | State::TimeWait => {}
            State::SynSent => c.state = State::Closed,
            _ => c.flags.set(Flags::SEND_RST),
        }
        self.settle(i, now);
    }
}

impl Tcb<'_> {
    /// Our side is done once what is queued has been sent.
    fn queue_fin(&mut self) {
        if self.c.flags.has(Flags::FIN_QUEUED) {
            return;
        }
        self.c.state = match self.c.state {
            State::Established => State::FinWait1,
            State::CloseWait => State::LastAck,
            // The handshake goes on; establish() turns to FIN-WAIT-1.
            other => other,
        };
        self.c.flags.set(Flags::FIN_QUEUED);
        self.c.flags.clear(Flags::MORE);
    }
}
