//! One KCM socket: its receive queue and charge, its open message and its transmit queue.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::batch::Run;
use crate::mux::PsockId;
use crate::pool::Pool;
use crate::stats::KcmStats;
use crate::tx_queue::TxQueue;

/// Bytes a KCM socket is writing while the mux is free for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flight {
    None,
    /// Buffers of the queue are out in a [`Transmit`](crate::Transmit).
    Queued,
    /// The caller writes its own memory to this psock, attached under this serial.
    Direct(PsockId, u64),
}

/// Receive side of a KCM socket.
#[derive(Debug)]
pub(crate) struct KcmRx {
    queue: VecDeque<Run>,
    /// Messages in `queue`.
    len: usize,
    /// Messages moved to the socket's batch and not known to be consumed.
    pub(crate) in_batch: usize,
    /// Charge of both.
    pub(crate) charge: usize,
    pub(crate) rcvbuf: u32,
    pub(crate) rcvlowat: u32,
    /// On the list of waiters, or receiver of the pass under way.
    pub(crate) waiting: bool,
    pub(crate) disabled: bool,
}

impl KcmRx {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A socket accepts a message while its charge is below SO_RCVBUF (kcm-semantics §7.3).
    pub(crate) fn has_room(&self) -> bool {
        self.charge < self.rcvbuf as usize
    }

    /// Appends messages whose charge has been checked.
    pub(crate) fn enqueue(&mut self, run: Run, charge: usize) {
        self.len += run.len();
        self.charge += charge;
        self.queue.push_back(run);
    }

    /// Appends messages of `run` while there is room; returns those that found none.
    pub(crate) fn fill(&mut self, mut run: Run, pool: &mut Pool) -> Option<Run> {
        let mut room = (self.rcvbuf as usize).saturating_sub(self.charge);
        let mut fits = 0;
        let mut charge = 0;
        for desc in run.left() {
            if room == 0 {
                break;
            }
            room = room.saturating_sub(desc.charge());
            charge += desc.charge();
            fits += 1;
        }
        if fits == run.len() {
            self.enqueue(run, charge);
            return None;
        }
        if fits > 0 {
            let front = run.split_front(fits, pool.take_descs());
            self.enqueue(front, charge);
        }
        Some(run)
    }

    /// Moves the queue out; returns it with its number of messages.
    pub(crate) fn take_queue(&mut self) -> (VecDeque<Run>, usize) {
        (
            core::mem::take(&mut self.queue),
            core::mem::take(&mut self.len),
        )
    }

    /// Puts messages in front of the queue; their charge is already counted.
    pub(crate) fn put_front(&mut self, mut runs: VecDeque<Run>) {
        self.len += runs.iter().map(Run::len).sum::<usize>();
        runs.append(&mut self.queue);
        self.queue = runs;
    }
}

/// Transmit side of a KCM socket.
#[derive(Debug)]
pub(crate) struct KcmTx {
    pub(crate) queue: TxQueue,
    /// The open message, if its first bytes were sent without completing it.
    pub(crate) open: Option<Vec<u8>>,
    /// Payload bytes queued or open, not yet written: compared with SO_SNDBUF.
    pub(crate) queued_bytes: usize,
    pub(crate) sndbuf: u32,
    /// Completed messages wait for a send without MSG_BATCH (WMore).
    pub(crate) wait_more: bool,
    pub(crate) psock: Option<PsockId>,
    /// On the list of sockets waiting for a psock (TxWait).
    pub(crate) waiting: bool,
    pub(crate) flight: Flight,
}

impl KcmTx {
    /// Complete messages queued or being written (Send-Q).
    pub(crate) fn msgs_queued(&self) -> usize {
        self.queue.msgs() + usize::from(matches!(self.flight, Flight::Direct(..)))
    }
}

/// One KCM socket.
#[derive(Debug)]
pub(crate) struct Kcm {
    /// Differs from every other socket's: an index may be reused.
    pub(crate) serial: u64,
    pub(crate) rx: KcmRx,
    pub(crate) tx: KcmTx,
    pub(crate) stats: KcmStats,
}

impl Kcm {
    pub(crate) fn new(serial: u64, rcvbuf: u32, sndbuf: u32) -> Self {
        Self {
            serial,
            rx: KcmRx {
                queue: VecDeque::new(),
                len: 0,
                in_batch: 0,
                charge: 0,
                rcvbuf,
                rcvlowat: 1,
                waiting: false,
                disabled: false,
            },
            tx: KcmTx {
                queue: TxQueue::default(),
                open: None,
                queued_bytes: 0,
                sndbuf,
                wait_more: false,
                psock: None,
                waiting: false,
                flight: Flight::None,
            },
            stats: KcmStats::default(),
        }
    }

    pub(crate) fn check_invariants(&self) {
        debug_assert_eq!(
            self.rx.len,
            self.rx.queue.iter().map(Run::len).sum::<usize>()
        );
        debug_assert!(
            self.rx.charge >= self.rx.queue.iter().map(Run::charge).sum::<usize>(),
            "queued messages are charged"
        );
        debug_assert!(
            !(self.rx.waiting && self.rx.disabled),
            "a disabled socket waits for nothing"
        );
        debug_assert!(!(self.tx.waiting && self.tx.psock.is_some()));
    }
}
