//! Receiving: bytes out of the queue, copied or lent, and the urgent byte.

use crate::error::{Cause, RecvError};
use crate::stack::TcpId;
use crate::tcp::conn::{Flags, Urgent};
use crate::tcp::state::State;
use crate::tcp::{Engine, Tcb};
use crate::time::Instant;

impl Engine {
    /// Whether a read would find something, or why not.
    fn readable(&mut self, i: u32) -> Result<usize, RecvError> {
        let c = &self.conns[i];
        let queued = self.busy_of(c).map_or(0, |b| b.rx.len());
        if queued > 0 {
            return Ok(queued);
        }
        let c = &mut self.conns[i];
        if let Some(cause) = c.error.take() {
            c.flags.set(Flags::ERROR_TAKEN);
            return match cause {
                // Data and FIN were received before: a reader sees end of stream.
                Cause::BrokenPipe => Ok(0),
                _ => Err(RecvError::Failed(cause)),
            };
        }
        match c.state {
            _ if c.flags.any(Flags::FIN_RECEIVED | Flags::RECV_SHUTDOWN) => Ok(0),
            State::SynSent | State::SynReceived => Err(RecvError::WouldBlock),
            State::Closed if c.flags.has(Flags::ERROR_TAKEN) || c.bytes_received > 0 => Ok(0),
            State::Closed => Err(RecvError::NotConnected),
            s if s.may_recv() => Err(RecvError::WouldBlock),
            _ => Ok(0),
        }
    }

    /// Copies received bytes out. `Ok(0)` is end of stream. With `peek` they stay queued.
    pub(crate) fn recv(
        &mut self,
        id: TcpId,
        out: &mut [u8],
        peek: bool,
        now: Instant,
    ) -> Result<usize, RecvError> {
        let room = out.len();
        let copied = self.recv_with(id, room, peek, now, |pieces, n| {
            let mut rest = &mut out[..n];
            for piece in pieces {
                let (to, left) = rest.split_at_mut(piece.len().min(rest.len()));
                to.copy_from_slice(&piece[..to.len()]);
                rest = left;
            }
            Ok::<_, core::convert::Infallible>(())
        });
        copied.map(|Ok(n)| n)
    }

    /// Lends up to `room` received bytes to `take`, which leaves them queued if it fails.
    pub(crate) fn recv_with<E>(
        &mut self,
        id: TcpId,
        room: usize,
        peek: bool,
        now: Instant,
        take: impl FnOnce(&mut dyn Iterator<Item = &[u8]>, usize) -> Result<(), E>,
    ) -> Result<Result<usize, E>, RecvError> {
        let i = self.index(id).ok_or(RecvError::BadHandle)?;
        if self.readable(i)? == 0 {
            return Ok(Ok(0));
        }
        let mut t = self.tcb(i, now);
        let (skip, limit) = t.before_urgent();
        let n = (t.b.rx.len() - skip).min(limit).min(room);
        let mut passed = skip;
        let mut pieces = t.b.rx.slices().filter_map(|piece| {
            let from = passed.min(piece.len());
            passed -= from;
            Some(&piece[from..]).filter(|rest| !rest.is_empty())
        });
        let taken = take(&mut pieces, n);
        drop(pieces);
        if let Err(why) = taken {
            return Ok(Err(why));
        }
        if peek {
            return Ok(Ok(n));
        }
        let ack_at = t.b.timers.delayed_ack;
        t.consume(skip + n);
        // Most reads change nothing that is filed.
        let is_ack_due = t.b.holds_ack || t.b.timers.delayed_ack != ack_at;
        if is_ack_due || t.wants_output() || t.b.is_idle() {
            self.settle(i, now);
        }
        if n == 0 && room > 0 {
            // Only a passed urgent byte was queued: now it is gone, what does the stream say?
            return self.readable(i).map(|_| Ok(0));
        }
        Ok(Ok(n))
    }

    /// Whether what is queued is all that one read can get, however long it waits.
    pub(crate) fn at_limit(&self, id: TcpId) -> bool {
        let Some(c) = self.conn(id) else { return false };
        let Some(b) = self.busy_of(c) else {
            return false;
        };
        b.urgent.rcv_at.is_some() || b.rx.len() as u32 >= c.rcvbuf
    }

    /// The readable bytes in place.
    pub(crate) fn peek_slices(&self, id: TcpId) -> impl Iterator<Item = &[u8]> {
        self.conn(id)
            .and_then(|c| self.busy_of(c))
            .into_iter()
            .flat_map(|b| b.rx.slices())
    }

    /// Drops `n` readable bytes, as if they had been received.
    pub(crate) fn consume(&mut self, id: TcpId, n: usize, now: Instant) {
        if let Some(i) = self.index(id) {
            let mut t = self.tcb(i, now);
            let n = n.min(t.b.rx.len());
            t.consume(n);
            self.settle(i, now);
        }
    }

    /// MSG_OOB receive.
    pub(crate) fn recv_urgent(
        &mut self,
        id: TcpId,
        peek: bool,
        now: Instant,
    ) -> Result<u8, RecvError> {
        let i = self.index(id).ok_or(RecvError::BadHandle)?;
        let t = self.tcb(i, now);
        if t.c.flags.has(Flags::OOB_INLINE) {
            return Err(RecvError::NoUrgent);
        }
        let byte = match (t.b.urgent.byte, t.b.urgent.rcv_at) {
            (Some(b), _) if !t.b.urgent.taken => Ok(b),
            (None, Some(_)) => Err(RecvError::WouldBlock),
            _ => Err(RecvError::NoUrgent),
        };
        if byte.is_ok() && !peek {
            t.b.urgent.taken = true;
        }
        self.settle(i, now);
        byte
    }

    /// SIOCATMARK: the next byte read is the one after the urgent mark.
    pub(crate) fn at_mark(&self, id: TcpId) -> bool {
        self.conn(id)
            .and_then(|c| self.busy_of(c).map(|b| (c, b)))
            .is_some_and(|(c, b)| {
                b.urgent
                    .rcv_at
                    .is_some_and(|at| at == c.rcv_nxt - b.rx.len() as u32)
            })
    }
}

impl Tcb<'_> {
    fn consume(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        let more_ahead = !self.b.reasm.is_empty();
        self.b.rx.consume(&mut self.env.pool, n, more_ahead);
        let first = self.c.rcv_nxt - self.b.rx.len() as u32;
        if self.b.urgent.rcv_at.is_some_and(|at| at.before(first)) {
            self.b.urgent = Urgent {
                snd_up: self.b.urgent.snd_up,
                ..Default::default()
            };
        }
        self.tune_rcvbuf(n as u32);
        self.maybe_update_window();
    }

    /// How many queued bytes to skip (a passed urgent byte that is not in line) and how many may
    /// be read before the mark.
    fn before_urgent(&self) -> (usize, usize) {
        let Some(at) = self.b.urgent.rcv_at else {
            return (0, usize::MAX);
        };
        let first = self.c.rcv_nxt - self.b.rx.len() as u32;
        let ahead = at.since(first) as usize;
        if ahead > 0 {
            // A read stops at the mark, so that SIOCATMARK can be asked there.
            return (0, ahead);
        }
        if self.c.flags.has(Flags::OOB_INLINE) {
            (0, usize::MAX)
        } else {
            (1, usize::MAX)
        }
    }
}
