//! Sending: bytes into the queue, urgent ones too.

use crate::error::SendError;
use crate::stack::TcpId;
use crate::tcp::Engine;
use crate::tcp::conn::Flags;
use crate::tcp::state::State;
use crate::time::Instant;

impl Engine {
    /// Queues bytes from a scatter list; how many were taken.
    pub(crate) fn send(
        &mut self,
        id: TcpId,
        parts: &[&[u8]],
        more: bool,
        now: Instant,
    ) -> Result<usize, SendError> {
        let i = self.index(id).ok_or(SendError::BadHandle)?;
        let c = &mut self.conns[i];
        if let Some(cause) = c.error.take() {
            c.flags.set(Flags::ERROR_TAKEN);
            return Err(SendError::Failed(cause));
        }
        if c.flags.has(Flags::FIN_QUEUED) {
            return Err(SendError::Closed);
        }
        match c.state {
            State::Established | State::CloseWait => {}
            State::SynSent | State::SynReceived => {
                c.flags.set(Flags::WANTS_WRITE);
                return Err(SendError::WouldBlock);
            }
            _ => return Err(SendError::Closed),
        }
        let t = self.tcb(i, now);
        let total: usize = parts.iter().map(|p| p.len()).sum();
        let mut room = (t.c.sndbuf() as usize).saturating_sub(t.b.tx.len());
        if t.env.pool.under_pressure() && t.b.tx.len() > 0 {
            room = 0;
        }
        let mut taken = 0;
        for p in parts {
            let n = p.len().min(room);
            let pushed = t.b.tx.push(&mut t.env.pool, &p[..n]);
            taken += pushed;
            room -= pushed;
            if pushed < p.len() {
                break;
            }
        }
        if taken < total {
            t.c.flags.set(Flags::WANTS_WRITE);
        }
        t.c.flags.put(Flags::MORE, more);
        if taken > 0 && t.wants_output() {
            // No deadline changes before something leaves.
            self.mark_dirty(i);
        } else {
            self.settle(i, now);
        }
        if taken == 0 && total > 0 {
            Err(SendError::WouldBlock)
        } else {
            Ok(taken)
        }
    }

    /// MSG_OOB: the last byte of `data` becomes the urgent byte.
    pub(crate) fn send_urgent(
        &mut self,
        id: TcpId,
        data: &[u8],
        now: Instant,
    ) -> Result<usize, SendError> {
        let n = self.send(id, &[data], false, now)?;
        if n == data.len() && n > 0 {
            let i = self.index(id).ok_or(SendError::BadHandle)?;
            let t = self.tcb(i, now);
            t.b.urgent.snd_up = Some(t.c.snd_una + t.b.tx.len() as u32);
            self.settle(i, now);
        }
        Ok(n)
    }

    /// Bytes the send buffer takes now.
    pub(crate) fn send_room(&self, id: TcpId) -> usize {
        let Some(c) = self.conn(id).filter(|c| c.state.may_send()) else {
            return 0;
        };
        let queued = self.busy_of(c).map_or(0, |b| b.tx.len());
        match self.env.pool.under_pressure() {
            true => 0,
            false => (c.sndbuf() as usize).saturating_sub(queued),
        }
    }
}
