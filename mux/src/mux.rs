//! [`Mux`]: owns the KCM sockets and psocks and has every entry point; the algorithms are in
//! the modules it delegates to.

use alloc::collections::{BTreeSet, VecDeque};

use crate::batch::RxBatch;
use crate::bpf::Env;
use crate::kcm::Kcm;
use crate::pool::Pool;
use crate::psock::Psock;
use crate::rx_steer::RxSteer;
use crate::slots::Slots;
use crate::stats::{KcmStats, MuxStats, PsockStats};
use crate::tap::{Passed, Tap};
use crate::tx_steer::{TxSide, TxSteer};

pub use self::psocks::Unattached;

mod invariants;
mod psocks;
mod receive;
mod send;
mod timers;

/// Monotonic time in nanoseconds, as the caller passes it in.
pub type Nanos = u64;

/// Index of a KCM socket in its mux, as /proc/net/kcm shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KcmId(pub u32);

/// Index of a psock in its mux, as /proc/net/kcm shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PsockId(pub u32);

/// Type of the KCM sockets of a mux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketType {
    /// SOCK_DGRAM.
    Dgram,
    /// SOCK_SEQPACKET.
    Seqpacket,
}

/// Something the caller has to pass on or act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Messages were queued on the KCM socket.
    Readable(KcmId),
    /// The KCM socket's queue was worked on: a waiting sender may try again.
    Writable(KcmId),
    /// An error was posted on the attached TCP socket (POLLERR, SO_ERROR).
    PsockError(PsockId),
    /// [`Mux::wants_read`] has become true again.
    Resumed(PsockId),
    /// A stopped parser leaves bytes to the TCP fd: [`Mux::take_unread`].
    Unread(PsockId),
    /// As [`ReadOutcome::NeedRcvbuf`](crate::ReadOutcome::NeedRcvbuf), found while a paused parse went on.
    NeedRcvbuf(PsockId),
    /// Messages passed while [`Mux::set_tap`] is in force: [`Mux::take_tapped`].
    Tapped,
}

/// Events not yet polled, and what a tracer wants to see.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: VecDeque<Event>,
    pub(crate) tap: Tap,
}

impl Events {
    pub(crate) fn push(&mut self, event: Event) {
        if self.queue.back() != Some(&event) {
            self.queue.push_back(event);
        }
    }
}

/// A multiplexor: N KCM sockets over M psocks.
///
/// Inputs are the `handle_*` calls, `finish_*` and the socket operations; after any of them
/// drain [`poll_event`](Self::poll_event) and [`begin_transmit`](Self::begin_transmit). The
/// deadline may have changed after any `finish_read`, `refill`, `set_*`, `unattach` and
/// `handle_deadline`.
#[derive(Debug)]
pub struct Mux {
    ty: SocketType,
    rcvbuf_default: u32,
    sndbuf_default: u32,
    kcms: Slots<Kcm>,
    psocks: Slots<Psock>,
    rx: RxSteer,
    tx: TxSteer,
    timers: BTreeSet<(Nanos, PsockId)>,
    /// What parser programs may know of the world.
    env: Env,
    events: Events,
    pool: Pool,
    /// The last serial given out; see [`Psock::serial`].
    serial: u64,
    stats: MuxStats,
    /// Counters of psocks already unattached.
    retired: PsockStats,
}

/// Life of the mux and its KCM sockets.
impl Mux {
    /// A mux with its first KCM socket. The buffer sizes are those of every new KCM socket.
    #[must_use]
    pub fn new(ty: SocketType, rcvbuf_default: u32, sndbuf_default: u32) -> (Self, KcmId) {
        let mut mux = Self {
            ty,
            rcvbuf_default,
            sndbuf_default,
            kcms: Slots::new(),
            psocks: Slots::new(),
            rx: RxSteer::default(),
            tx: TxSteer::default(),
            timers: BTreeSet::new(),
            env: Env::default(),
            events: Events::default(),
            pool: Pool::default(),
            serial: 0,
            stats: MuxStats::default(),
            retired: PsockStats::default(),
        };
        let kcm = mux.clone_kcm();
        (mux, kcm)
    }

    /// Type of the mux's KCM sockets.
    #[must_use]
    pub fn socket_type(&self) -> SocketType {
        self.ty
    }

    /// Adds a KCM socket with default options. It takes held and parked messages and joins
    /// the tail of the waiters (kcm-semantics §3.5).
    pub fn clone_kcm(&mut self) -> KcmId {
        let serial = self.next_serial();
        let kcm = Kcm::new(
            serial,
            self.rcvbuf_default.max(1),
            self.sndbuf_default.max(1),
        );
        let id = KcmId(self.kcms.insert(kcm));
        self.resume(id);
        self.check_invariants();
        id
    }

    /// Closes a KCM socket; `unread` is its batch. Its messages go to the first waiter or are
    /// held, what it queued for sending is dropped (§6.5, §7.6).
    ///
    /// Returns `true` for the last one: the caller then unattaches every psock.
    pub fn close_kcm(&mut self, kcm: KcmId, unread: &mut RxBatch) -> bool {
        self.tx_side().close(kcm);
        if let Some(closing) = self.kcms.get_mut(kcm.0) {
            self.rx.leave_waiters(kcm, closing);
            closing.rx.disabled = true;
        }
        self.account(kcm, unread);
        self.take_back(kcm, unread);
        self.kcms.remove(kcm.0);
        let last = self.kcms.len() == 0;
        if last {
            let pool = &mut self.pool;
            self.rx.hold.drain(..).for_each(|run| pool.give_run(run));
        }
        self.check_invariants();
        last
    }

    /// KCM sockets by index.
    pub fn kcms(&self) -> impl Iterator<Item = KcmId> {
        self.kcms.iter().map(|(index, _)| KcmId(index))
    }

    /// Psocks by index.
    pub fn psocks(&self) -> impl Iterator<Item = PsockId> {
        self.psocks.iter().map(|(index, _)| PsockId(index))
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn tx_side(&mut self) -> TxSide<'_> {
        TxSide {
            kcms: &mut self.kcms,
            psocks: &mut self.psocks,
            steer: &mut self.tx,
            pool: &mut self.pool.tx,
            events: &mut self.events,
            stats: &mut self.stats,
            retired: &mut self.retired,
        }
    }
}

/// Options of a KCM socket; values are those getsockopt reports.
impl Mux {
    /// SO_RCVBUF.
    pub fn set_rcvbuf(&mut self, kcm: KcmId, bytes: u32) {
        if let Some(kcm) = self.kcms.get_mut(kcm.0) {
            kcm.rx.rcvbuf = bytes.max(1);
        }
    }

    /// SO_SNDBUF.
    pub fn set_sndbuf(&mut self, kcm: KcmId, bytes: u32) {
        if let Some(state) = self.kcms.get_mut(kcm.0) {
            state.tx.sndbuf = bytes.max(1);
            self.events.push(Event::Writable(kcm));
        }
    }

    /// SO_RCVLOWAT: the charge below which a full socket receives again (§7.3).
    pub fn set_rcvlowat(&mut self, kcm: KcmId, bytes: u32) {
        if let Some(kcm) = self.kcms.get_mut(kcm.0) {
            kcm.rx.rcvlowat = bytes.max(1);
        }
    }

    /// KCM_RECV_DISABLE; `unread` is the socket's batch. Disabling moves its messages to the
    /// first waiter or holds them, enabling takes held and parked messages (§7.5).
    pub fn set_rx_disabled(&mut self, kcm: KcmId, disabled: bool, unread: &mut RxBatch) {
        let Some(state) = self.kcms.get_mut(kcm.0) else {
            return;
        };
        let changed = core::mem::replace(&mut state.rx.disabled, disabled) != disabled;
        if disabled {
            self.rx.leave_waiters(kcm, state);
        }
        self.account(kcm, unread);
        match (changed, disabled) {
            (false, _) => {}
            (true, true) => self.take_back(kcm, unread),
            (true, false) => self.resume(kcm),
        }
        self.check_invariants();
    }

    /// KCM_RECV_DISABLE as set.
    #[must_use]
    pub fn rx_disabled(&self, kcm: KcmId) -> bool {
        self.kcms.get(kcm.0).is_some_and(|kcm| kcm.rx.disabled)
    }
}

/// Output.
impl Mux {
    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.queue.pop_front()
    }

    /// From now on [`Event::Tapped`] announces messages that passed, with up to `head` bytes of
    /// each; `None` ends that.
    pub fn set_tap(&mut self, head: Option<usize>) {
        self.events.tap.set(head);
    }

    /// Shows `each` what passed since the last call, in order. Returns how many messages more there
    /// were than [`TAP_BYTES_MAX`](crate::limits::TAP_BYTES_MAX) has room for.
    pub fn take_tapped(&mut self, each: impl FnMut(Passed<'_>)) -> u64 {
        self.events.tap.take(each)
    }

    /// Counters of the mux itself.
    #[must_use]
    pub fn stats(&self) -> MuxStats {
        self.stats
    }

    /// Counters of one KCM socket.
    #[must_use]
    pub fn kcm_stats(&self, kcm: KcmId) -> KcmStats {
        self.kcms
            .get(kcm.0)
            .map(|kcm| kcm.stats)
            .unwrap_or_default()
    }

    /// Counters of one psock.
    #[must_use]
    pub fn psock_stats(&self, psock: PsockId) -> PsockStats {
        self.psocks
            .get(psock.0)
            .map(|psock| psock.stats)
            .unwrap_or_default()
    }

    /// Counters of all psocks, unattached ones included.
    #[must_use]
    pub fn psock_totals(&self) -> PsockStats {
        let mut totals = self.retired;
        self.psocks
            .iter()
            .for_each(|(_, psock)| totals += psock.stats);
        totals
    }

    pub(crate) fn kcm(&self, id: KcmId) -> Option<&Kcm> {
        self.kcms.get(id.0)
    }

    pub(crate) fn psock(&self, id: PsockId) -> Option<&Psock> {
        self.psocks.get(id.0)
    }
}
