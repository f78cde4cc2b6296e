//! Receive steering: which KCM socket gets the next message (kcm-semantics §7).
//!
//! * *waiters*: KCM sockets willing to receive, longest waiting first (RxWait).
//! * *ready*: psocks each holding one complete message nobody had room for.
//! * *hold*: messages taken back from disabled or closed KCM sockets.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::batch::{Desc, Run};
use crate::chunk::Slice;
use crate::kcm::Kcm;
use crate::mux::{Event, Events, KcmId, PsockId};
use crate::pool::Pool;
use crate::slots::Slots;
use crate::strparser::{Flow, Sink};

/// The three lists of one mux.
#[derive(Debug, Default)]
pub(crate) struct RxSteer {
    pub(crate) waiters: VecDeque<KcmId>,
    pub(crate) ready: VecDeque<PsockId>,
    pub(crate) hold: VecDeque<Run>,
}

impl RxSteer {
    /// Takes the head waiter that has room off the list; full ones leave the rotation.
    fn next_receiver(&mut self, kcms: &mut Slots<Kcm>) -> Option<KcmId> {
        while let Some(id) = self.waiters.pop_front() {
            let Some(kcm) = kcms.get_mut(id.0) else {
                continue;
            };
            if kcm.rx.has_room() {
                return Some(id);
            }
            kcm.rx.waiting = false;
        }
        None
    }

    pub(crate) fn join_waiters(&mut self, id: KcmId, kcm: &mut Kcm) {
        kcm.rx.waiting = true;
        self.waiters.push_back(id);
    }

    pub(crate) fn leave_waiters(&mut self, id: KcmId, kcm: &mut Kcm) {
        if core::mem::take(&mut kcm.rx.waiting) {
            self.waiters.retain(|&waiter| waiter != id);
        }
    }

    /// Gives messages taken back from a KCM socket to the first waiter, the next one when
    /// it is full, and holds what nobody has room for (§7.5).
    pub(crate) fn requeue(
        &mut self,
        runs: VecDeque<Run>,
        kcms: &mut Slots<Kcm>,
        pool: &mut Pool,
        events: &mut Events,
    ) {
        for run in runs {
            let mut left = Some(run);
            while let Some(run) = left.take() {
                let Some(&id) = self.waiters.front() else {
                    self.hold.push_back(run);
                    break;
                };
                let Some(kcm) = kcms.get_mut(id.0) else {
                    self.waiters.pop_front();
                    left = Some(run);
                    continue;
                };
                let before = kcm.rx.len();
                left = kcm.rx.fill(run, pool);
                if kcm.rx.len() > before {
                    events.push(Event::Readable(id));
                }
                if left.is_some() {
                    kcm.rx.waiting = false;
                    self.waiters.pop_front();
                }
            }
        }
    }
}

/// One read pass: the first message takes the head waiter, later ones follow it while it
/// has room, and at the end it goes to the tail (§7.2).
pub(crate) struct RxPass<'a> {
    pub(crate) kcms: &'a mut Slots<Kcm>,
    pub(crate) steer: &'a mut RxSteer,
    pub(crate) pool: &'a mut Pool,
    pub(crate) events: &'a mut Events,
    /// Whose bytes these are.
    psock: PsockId,
    receiver: Option<KcmId>,
    /// Receive charge of the receiver, with the messages of `run`; its SO_RCVBUF is `limit`.
    charge: usize,
    limit: usize,
    run: Run,
    run_charge: usize,
    /// The message nobody had room for.
    parked: Option<Run>,
}

impl<'a> RxPass<'a> {
    pub(crate) fn new(
        kcms: &'a mut Slots<Kcm>,
        steer: &'a mut RxSteer,
        pool: &'a mut Pool,
        events: &'a mut Events,
        psock: PsockId,
    ) -> Self {
        let run = Run {
            descs: pool.take_descs(),
            ..Run::default()
        };
        Self {
            kcms,
            steer,
            pool,
            events,
            psock,
            receiver: None,
            charge: 0,
            limit: 0,
            run,
            run_charge: 0,
            parked: None,
        }
    }

    /// Ends the pass; returns the message to park on the psock.
    pub(crate) fn finish(mut self) -> Option<Run> {
        self.flush();
        if let Some(id) = self.receiver
            && let Some(kcm) = self.kcms.get_mut(id.0)
        {
            self.steer.join_waiters(id, kcm);
        }
        self.pool.give_run(core::mem::take(&mut self.run));
        self.parked
    }

    /// Hands the messages collected so far to the receiver.
    fn flush(&mut self) {
        if self.run.is_empty() {
            return;
        }
        let next = Run {
            chunk: self.run.chunk.clone(),
            descs: self.pool.take_descs(),
            ..Run::default()
        };
        let run = core::mem::replace(&mut self.run, next);
        let charge = core::mem::take(&mut self.run_charge);
        if let Some(id) = self.receiver
            && let Some(kcm) = self.kcms.get_mut(id.0)
        {
            self.events.tap_received(id, self.psock, &run);
            kcm.rx.enqueue(run, charge);
            self.events.push(Event::Readable(id));
        }
    }

    /// Keeps a message of the current chunk that nobody has room for.
    #[cold]
    fn park(&mut self, desc: Desc) {
        let mut descs = self.pool.take_descs();
        descs.push(desc);
        let chunk = self.run.chunk.clone();
        self.parked = Some(Run {
            chunk,
            descs,
            ..Run::default()
        });
    }

    /// Finds a receiver with room for one more message.
    #[cold]
    fn change_receiver(&mut self) -> bool {
        self.flush();
        if let Some(full) = self.receiver.take()
            && let Some(kcm) = self.kcms.get_mut(full.0)
        {
            kcm.rx.waiting = false;
        }
        self.receiver = self.steer.next_receiver(self.kcms);
        let receiver = self.receiver.and_then(|id| self.kcms.get_mut(id.0));
        self.charge = receiver.as_ref().map_or(0, |kcm| kcm.rx.charge);
        self.limit = receiver.map_or(0, |kcm| kcm.rx.rcvbuf as usize);
        self.charge < self.limit
    }
}

impl Sink for RxPass<'_> {
    fn enter_chunk(&mut self, chunk: &Arc<[u8]>) {
        self.flush();
        if let Some(old) = self.run.chunk.replace(chunk.clone()) {
            self.pool.give_chunk(old);
        }
    }

    #[inline(always)]
    fn packed(&mut self, desc: Desc) -> Flow {
        if self.charge >= self.limit && !self.change_receiver() {
            self.park(desc);
            return Flow::Pause;
        }
        self.run.descs.push(desc);
        self.run_charge += desc.charge();
        self.charge += desc.charge();
        Flow::Continue
    }

    fn spanning(&mut self, parts: Vec<Slice>, len: u32) -> Flow {
        let run = Run::spanning(parts, len, self.pool.take_descs());
        if self.charge >= self.limit && !self.change_receiver() {
            self.parked = Some(run);
            return Flow::Pause;
        }
        self.flush();
        let charge = run.charge();
        self.charge += charge;
        if let Some(id) = self.receiver
            && let Some(kcm) = self.kcms.get_mut(id.0)
        {
            self.events.tap_received(id, self.psock, &run);
            kcm.rx.enqueue(run, charge);
            self.events.push(Event::Readable(id));
        }
        Flow::Continue
    }
}
