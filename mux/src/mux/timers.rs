//! The assembly timers of a [`Mux`]: how long one message may take to arrive (kcm-semantics §9.4).

use super::{Mux, Nanos, PsockId};
use crate::error::ETIMEDOUT;
use crate::psock::Timer;

impl Mux {
    pub(super) fn start_timer(&mut self, id: PsockId, now: Option<Nanos>) {
        let Some(psock) = self.psocks.get_mut(id.0) else {
            return;
        };
        let Some(timeout) = psock.msg_timeout else {
            return;
        };
        psock.timer = match now {
            Some(now) => Timer::At(now.saturating_add(timeout)),
            None => Timer::Unarmed,
        };
        let due = match psock.timer {
            Timer::At(deadline) => deadline,
            Timer::Off | Timer::Unarmed => 0,
        };
        self.timers.insert((due, id));
    }

    pub(super) fn stop_timer(&mut self, id: PsockId) {
        let Some(psock) = self.psocks.get_mut(id.0) else {
            return;
        };
        match core::mem::replace(&mut psock.timer, Timer::Off) {
            Timer::Off => {}
            Timer::Unarmed => drop(self.timers.remove(&(0, id))),
            Timer::At(deadline) => drop(self.timers.remove(&(deadline, id))),
        }
    }

    /// When [`handle_deadline`](Self::handle_deadline) is due; 0 means now.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.timers.first().map(|&(due, _)| due)
    }

    /// Aborts the psocks whose message took too long to assemble.
    pub fn handle_deadline(&mut self, now: Nanos) {
        while let Some(&(due, id)) = self.timers.first()
            && due <= now
        {
            self.timers.pop_first();
            let Some(psock) = self.psocks.get_mut(id.0) else {
                continue;
            };
            match core::mem::replace(&mut psock.timer, Timer::Off) {
                Timer::Off => {}
                Timer::Unarmed => self.start_timer(id, Some(now)),
                Timer::At(_) => {
                    psock.stats.rx_msg_timeouts += 1;
                    self.abort_rx(id, ETIMEDOUT);
                }
            }
        }
        self.check_invariants();
    }
}
