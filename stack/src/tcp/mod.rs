//! The TCP engine: connection table, timers, egress list. Owns every record and decides which
//! connection runs; what a connection does is in the files beside this one.
//!
//! RFCs to read first: 9293 (protocol), 7323 (timestamps, PAWS), 5961 (validation), 6298 (RTO),
//! 6675 and 8985 (recovery), 9438 (CUBIC).

mod ack;
mod api;
pub(crate) mod buffer;
pub(crate) mod cc;
pub(crate) mod conn;
mod cookie;
mod defer;
mod demux;
mod info;
mod input;
mod listener;
mod mss;
mod options;
mod output;
mod rack;
mod reassembly;
mod receive;
mod rto;
mod scoreboard;
mod segment;
mod seq;
mod sockopt;
mod state;
mod stats;
mod timer_wheel;
mod timers;
mod timewait;

use core::hint::black_box;
use std::collections::VecDeque;

use smoltcp::wire::{EthernetAddress, IpProtocol};

pub use api::{ConnectOptions, ListenOptions};
pub use cc::CongestionControl;
pub use defer::{defer_repeats, defer_seconds};
pub use info::TcpInfo;
pub use seq::Seq;
pub use sockopt::{SockFlag, SockOpts};
pub use state::State;
pub use stats::TcpStats;

use crate::addr::{Endpoint, FourTuple, Ip};
use crate::error::Cause;
use crate::events::{Event, Ready};
use crate::ip::iface::IfaceId;
use crate::ip::{IpLayer, IpMeta, NextHop};
use crate::limits::{
    CHALLENGE_ACKS_PER_SEC, EGRESS_QUANTUM_FRAMES, IFACES_MAX, TIME_WAIT_MAX, TIMERS_PER_POLL_MAX,
};
use crate::rate::RateLimit;
use crate::secret::{Key, Rng};
use crate::slab::Slab;
use crate::stack::{Gso, InterfaceConfig, TcpConfig, TcpId, Transmit};
use crate::time::Instant;
use buffer::BlockPool;
use conn::{Busy, Conn, Flags, NONE};
use demux::{Demux, Entry};
use input::Answer;
use listener::{Embryo, Listeners};
use segment::{Control, Plan, Segment};
use timer_wheel::TimerWheel;
use timewait::{Last, TimeWaits, Verdict};

/// Connections whose records are brought into the cache together: enough to overlap misses, few
/// enough to fit in the first-level cache.
pub(crate) const WARM_MAX: usize = 32;

/// TCP's checksum field within its header.
const CHECKSUM_AT: usize = 16;

/// What TCP needs to know of an interface.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Link {
    pub(crate) mtu: u16,
    /// Largest payload handed to a device that segments; zero without TSO.
    pub(crate) tso_bytes: u32,
}

/// Connections that may have something to send on one interface.
#[derive(Debug, Default)]
struct Egress {
    dirty: VecDeque<u32>,
    /// Frames the connection at the front has sent in its turn.
    quantum: u32,
}

/// What connections share.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) pool: BlockPool,
    pub(crate) stats: TcpStats,
    pub(crate) challenge: RateLimit,
    /// By interface.
    pub(crate) links: [Link; IFACES_MAX],
    pub(crate) config: TcpConfig,
}

/// A connection at work: record, busy state and surroundings.
pub(crate) struct Tcb<'a> {
    pub(crate) c: &'a mut Conn,
    pub(crate) b: &'a mut Busy,
    pub(crate) env: &'a mut Env,
    pub(crate) now: Instant,
    /// The peer acknowledged something: its neighbour entry is confirmed.
    pub(crate) progress: bool,
}

impl Tcb<'_> {
    /// The link the connection's packets leave by.
    pub(crate) fn link(&self) -> &Link {
        &self.env.links[self.c.iface.index()]
    }
}

/// All of TCP.
#[derive(Debug)]
pub(crate) struct Engine {
    conns: Slab<Conn>,
    busy: Slab<Busy>,
    demux: Demux,
    wheel: TimerWheel,
    /// By interface.
    egress: Vec<Egress>,
    /// Connections with uncollected readiness.
    events: VecDeque<u32>,
    /// Connections that may hold an ACK, since the last release.
    held: Vec<u32>,
    listeners: Listeners,
    embryos: Slab<Embryo>,
    embryo_wheel: TimerWheel,
    time_waits: TimeWaits,
    binds: api::Binds,
    /// Frames are coming in one after the other.
    is_batch: bool,
    /// Within a batch, the connection of the last segment, not settled yet; else `NONE`.
    train: u32,
    pub(crate) env: Env,
    isn_key: Key,
    ts_key: Key,
    port_key: Key,
    cookie_key: Key,
    rng: Rng,
}

impl Engine {
    pub(crate) fn new(config: &TcpConfig, key: Key, first: &InterfaceConfig, now: Instant) -> Self {
        let mut engine = Self {
            conns: Slab::new(),
            busy: Slab::new(),
            demux: Demux::new(key.derive(1), config.expected_connections),
            wheel: TimerWheel::new(now),
            egress: Vec::new(),
            events: VecDeque::new(),
            held: Vec::new(),
            listeners: Listeners::default(),
            embryos: Slab::new(),
            embryo_wheel: TimerWheel::new(now),
            time_waits: TimeWaits::new(),
            binds: api::Binds::default(),
            is_batch: false,
            train: NONE,
            env: Env {
                pool: BlockPool::new(config.stream_bytes_max),
                stats: TcpStats::default(),
                challenge: RateLimit::new(CHALLENGE_ACKS_PER_SEC),
                links: [Link::default(); IFACES_MAX],
                config: config.clone(),
            },
            isn_key: key.derive(2),
            ts_key: key.derive(3),
            port_key: key.derive(4),
            cookie_key: key.derive(5),
            rng: Rng::new(key.derive(6)),
        };
        engine.add_link(first);
        engine
    }

    /// The next interface; the IP layer has counted them.
    pub(crate) fn add_link(&mut self, config: &InterfaceConfig) {
        self.env.links[self.egress.len()] = Link {
            mtu: config.mtu,
            tso_bytes: config.tso_bytes,
        };
        self.egress.push(Egress::default());
    }

    pub(crate) fn set_link_mtu(&mut self, iface: IfaceId, mtu: u16) {
        self.env.links[iface.index()].mtu = mtu;
    }

    /// One TCP packet for one of our addresses, checksum already judged. Whether it belongs to the same
    /// connection as the one before it in the batch.
    #[allow(clippy::too_many_arguments, reason = "the fields of one parsed packet")]
    pub(crate) fn packet_arrives(
        &mut self,
        ip: &mut IpLayer,
        arrival: IfaceId,
        src: Ip,
        dst: Ip,
        bytes: &[u8],
        ce: bool,
        now: Instant,
    ) -> bool {
        let Some(seg) = Segment::parse(bytes, ce) else {
            self.env.stats.malformed += 1;
            return false;
        };
        self.env.stats.segments_in += 1;
        let tuple = FourTuple {
            local: Endpoint {
                ip: dst,
                port: seg.dst_port,
            },
            remote: Endpoint {
                ip: src,
                port: seg.src_port,
            },
        };
        if self.train != NONE {
            let c = &self.conns[self.train];
            if c.tuple() == tuple && c.hears(Some(arrival)) {
                self.conn_segment(ip, self.train, arrival, &tuple, &seg, now);
                return true;
            }
            self.leave_train(now);
        }
        let tag = self.demux.hash(&tuple);
        match self.find(tag, &tuple, Some(arrival)) {
            Some(Entry::Conn(i)) => self.conn_segment(ip, i, arrival, &tuple, &seg, now),
            Some(Entry::Embryo(i)) => self.embryo_segment(ip, i, &tuple, &seg, now),
            Some(Entry::TimeWait(i)) => {
                self.time_wait_segment(ip, i, arrival, &tuple, tag, &seg, now);
            }
            None => self.listener_segment(ip, arrival, &tuple, tag, &seg, None, now),
        }
        false
    }

    /// Hash tag of the flow a segment from `src` to `dst` belongs to.
    pub(crate) fn tag_of(&self, src: Ip, dst: Ip, src_port: u16, dst_port: u16) -> u32 {
        let local = Endpoint {
            ip: dst,
            port: dst_port,
        };
        let remote = Endpoint {
            ip: src,
            port: src_port,
        };
        self.demux.hash(&FourTuple { local, remote })
    }

    /// Reads, for a batch, every slot of the table, then every record, then every busy state, then
    /// what that points at, so that the cache misses of the batch overlap instead of adding up.
    /// Changes nothing.
    pub(crate) fn warm(&self, tags: &[u32]) {
        for &tag in tags {
            black_box(self.demux.peek(tag));
        }
        let guessed = |tag: &u32| match self.demux.guess(*tag) {
            Some(Entry::Conn(i)) => Some(i),
            _ => None,
        };
        let mut known = [NONE; WARM_MAX];
        let found = tags.iter().filter_map(guessed);
        let n = known.iter_mut().zip(found).map(|(k, i)| *k = i).count();
        self.warm_records(&known[..n]);
    }

    /// As [`Self::warm`] for connections by index.
    fn warm_records(&self, indices: &[u32]) {
        for &i in indices {
            self.conns[i].warm();
            black_box(self.wheel.peek(i));
        }
        let busy = || {
            let at_work = indices.iter().map(|i| self.conns[*i].busy);
            at_work.filter(|b| *b != NONE).map(|b| &self.busy[b])
        };
        for b in busy() {
            b.warm();
        }
        for b in busy() {
            black_box((b.tx.peek_first(), b.board.front().map(|s| s.at)));
        }
    }

    /// What follows, up to [`Self::end_batch`], is frames and nothing else.
    pub(crate) fn begin_batch(&mut self) {
        self.is_batch = true;
    }

    /// Settles what the batch left open.
    pub(crate) fn end_batch(&mut self, now: Instant) {
        self.is_batch = false;
        self.leave_train(now);
    }

    /// Settles the connection whose segments came one after the other.
    fn leave_train(&mut self, now: Instant) {
        let i = core::mem::replace(&mut self.train, NONE);
        if i != NONE {
            self.settle(i, now);
        }
    }

    /// The flow of a tuple, as a segment that arrives on `arrival` would find it.
    fn find(&self, tag: u32, tuple: &FourTuple, arrival: Option<IfaceId>) -> Option<Entry> {
        self.demux.find(tag, |e| match e {
            Entry::Conn(i) => self.conns[i].tuple() == *tuple && self.conns[i].hears(arrival),
            Entry::Embryo(i) => self.embryos[i].tuple == *tuple && self.embryos[i].hears(arrival),
            Entry::TimeWait(i) => self.time_waits.records[i].tuple() == *tuple,
        })
    }

    fn conn_segment(
        &mut self,
        ip: &mut IpLayer,
        i: u32,
        arrival: IfaceId,
        tuple: &FourTuple,
        seg: &Segment<'_>,
        now: Instant,
    ) {
        let mut t = self.tcb(i, now);
        let answer = t.segment_arrives(seg);
        if t.progress {
            ip.neighbors.confirm(t.c.neighbor, now);
        }
        if answer == Answer::Reset {
            self.reset_reply(ip, arrival, tuple, seg, now);
        }
        if self.is_batch && self.conns[i].state == State::Established {
            // More of the same flow may follow at once: it is settled when it ends.
            self.train = i;
        } else {
            self.train = NONE;
            self.settle(i, now);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "as packet_arrives")]
    fn time_wait_segment(
        &mut self,
        ip: &mut IpLayer,
        i: u32,
        arrival: IfaceId,
        tuple: &FourTuple,
        tag: u32,
        seg: &Segment<'_>,
        now: Instant,
    ) {
        match self.time_waits.records[i].arrives(seg, now) {
            Verdict::Ignore => {}
            Verdict::Acknowledge => {
                let r = self.time_waits.records[i];
                if self.env.challenge.take(now) {
                    let mut plan = Plan::bare(r.snd_nxt, r.rcv_nxt, Control::ACK);
                    plan.timestamps = r.has_ts.then(|| options::Timestamps {
                        val: (now.as_millis() as u32).wrapping_add(r.ts_offset),
                        ecr: r.ts_recent(),
                    });
                    let via = IpLayer::reply_by(tuple.remote.ip, arrival);
                    self.send_bare(ip, via, tuple, &plan, now);
                }
            }
            Verdict::Reopen { isn } => {
                self.end_time_wait(i);
                self.listener_segment(ip, arrival, tuple, tag, seg, Some(isn), now);
            }
        }
    }

    fn end_time_wait(&mut self, i: u32) {
        let tag = self.time_waits.records[i].tag;
        self.demux.remove(tag, Entry::TimeWait(i));
        self.time_waits.remove(i);
    }

    /// RFC 9293 §3.10.7.1: the reset for a segment that finds no connection.
    fn reset_reply(
        &mut self,
        ip: &mut IpLayer,
        arrival: IfaceId,
        tuple: &FourTuple,
        seg: &Segment<'_>,
        now: Instant,
    ) {
        if seg.has(Control::RST) {
            return;
        }
        self.env.stats.resets_out += 1;
        let plan = if seg.has(Control::ACK) {
            Plan::bare(seg.ack, Seq(0), Control::RST)
        } else {
            Plan::bare(Seq(0), seg.end(), Control::RST.with(Control::ACK))
        };
        let via = IpLayer::reply_by(tuple.remote.ip, arrival);
        self.send_bare(ip, via, tuple, &plan, now);
    }

    /// Sends a segment that belongs to no connection record, over `via` only if that is given.
    fn send_bare(
        &mut self,
        ip: &mut IpLayer,
        via: Option<IfaceId>,
        tuple: &FourTuple,
        plan: &Plan,
        now: Instant,
    ) {
        let mut meta = IpMeta::new(tuple.local.ip, tuple.remote.ip, IpProtocol::Tcp);
        meta.iface = via;
        self.env.stats.segments_out += 1;
        ip.send(now, &meta, plan.len(), Some(CHECKSUM_AT), |out| {
            plan.write_header(tuple.local.port, tuple.remote.port, out);
        });
    }

    /// Borrows a connection to work on, lending it busy state if it has none.
    #[inline(always)]
    fn tcb(&mut self, i: u32, now: Instant) -> Tcb<'_> {
        if self.conns[i].busy == NONE {
            self.lend_busy(i);
        }
        let c = &mut self.conns[i];
        let b = &mut self.busy[c.busy];
        Tcb {
            c,
            b,
            env: &mut self.env,
            now,
            progress: false,
        }
    }

    /// Apart, so that the common case does not pay for room on the stack.
    #[cold]
    #[inline(never)]
    fn lend_busy(&mut self, i: u32) {
        let c = &mut self.conns[i];
        c.busy = self.busy.insert(|_| Busy::default());
        self.busy[c.busy].rack.reordering_seen = c.flags.has(Flags::REORDERING);
    }

    /// After any work on a connection: files its deadline, its readiness and its wish to send, and
    /// lets go of what it needs no longer.
    fn settle(&mut self, i: u32, now: Instant) {
        match self.conns[i].state {
            State::TimeWait => self.enter_time_wait(i, now),
            State::Closed => {}
            _ => {
                let t = self.tcb(i, now);
                let wants_output = t.wants_output();
                let deadline = t.b.timers.earliest().min(t.keepalive_at());
                let idle = t.b.is_idle();
                let is_new = t.b.holds_ack && !core::mem::replace(&mut t.b.is_held, true);
                self.wheel.set(i, deadline);
                if is_new {
                    self.held.push(i);
                }
                if wants_output {
                    self.mark_dirty(i);
                } else if idle {
                    self.release_busy(i);
                }
                self.queue_event(i);
                return;
            }
        }
        self.bury(i);
    }

    /// The ACKs held so far go out.
    pub(crate) fn release_acks(&mut self, now: Instant) {
        for i in core::mem::take(&mut self.held) {
            // The connection may have ended, and another have its place.
            let c = &mut self.conns[i];
            if c.busy == NONE {
                continue;
            }
            let b = &mut self.busy[c.busy];
            b.is_held = false;
            if core::mem::take(&mut b.holds_ack) && c.state != State::Closed {
                c.flags.set(Flags::ACK_NOW);
                self.settle(i, now);
            }
        }
    }

    fn mark_dirty(&mut self, i: u32) {
        let c = &mut self.conns[i];
        if !c.flags.has(Flags::DIRTY) {
            c.flags.set(Flags::DIRTY);
            self.egress[c.iface.index()].dirty.push_back(i);
        }
    }

    fn queue_event(&mut self, i: u32) {
        let c = &mut self.conns[i];
        if c.events.is_empty()
            || c.flags.any(Flags::EVENT_QUEUED | Flags::IN_ACCEPT_QUEUE)
            || !c.is_owned()
        {
            return;
        }
        c.flags.set(Flags::EVENT_QUEUED);
        self.events.push_back(i);
    }

    fn release_busy(&mut self, i: u32) {
        let c = &mut self.conns[i];
        if c.busy == NONE {
            return;
        }
        let b = &mut self.busy[c.busy];
        if b.rack.reordering_seen {
            c.flags.set(Flags::REORDERING);
        }
        b.reset(&mut self.env.pool);
        self.busy.remove(c.busy);
        c.busy = NONE;
    }

    /// Replaces a finished connection's place in the table by a compact record.
    fn enter_time_wait(&mut self, i: u32, now: Instant) {
        // The ACK of the peer's FIN is still owed; the compact record cannot send by itself, so it
        // goes out first and the move happens when the egress list comes by.
        let c = &mut self.conns[i];
        if c.flags.has(Flags::ACK_NOW) {
            return;
        }
        c.state = State::Closed;
        if !c.flags.has(Flags::FILED) || self.time_waits.records.len() >= TIME_WAIT_MAX {
            self.env.stats.time_wait_overflow += 1;
            return;
        }
        let last = Last {
            tuple: c.tuple(),
            snd_nxt: c.snd_nxt,
            rcv_nxt: c.rcv_nxt,
            ts: c.flags.has(Flags::TS_RECENT).then_some(c.ts_recent),
            ts_offset: c.ts_offset,
            tag: c.tag,
        };
        let record = self.time_waits.insert(&last, now);
        let c = &mut self.conns[i];
        self.demux
            .replace(c.tag, Entry::Conn(i), Entry::TimeWait(record));
        c.flags.clear(Flags::FILED);
    }

    /// Takes a closed connection out of every index; frees it once the application let go.
    fn bury(&mut self, i: u32) {
        let c = &mut self.conns[i];
        if c.state == State::TimeWait {
            self.mark_dirty(i);
            self.queue_event(i);
            return;
        }
        if c.flags.has(Flags::FILED) {
            c.flags.clear(Flags::FILED);
            self.demux.remove(c.tag, Entry::Conn(i));
        }
        self.wheel.cancel(i);
        if c.is_owned() {
            // Unread data stays readable; nothing more is sent.
            let keep = c.busy != NONE && self.busy[c.busy].rx.len() > 0;
            if keep {
                let b = &mut self.busy[c.busy];
                b.tx.clear(&mut self.env.pool);
                b.board.clear();
                b.timers = Default::default();
            } else {
                self.release_busy(i);
            }
            self.queue_event(i);
        } else if !c.flags.any(Flags::DIRTY | Flags::EVENT_QUEUED) {
            self.free(i);
        } else {
            // Freed when the list that still names it comes by.
            self.release_busy(i);
        }
    }

    fn free(&mut self, i: u32) {
        self.release_busy(i);
        let c = &mut self.conns[i];
        c.generation = c.generation.wrapping_add(1);
        c.opts = None;
        self.conns.remove(i);
    }

    /// Runs due timers, a bounded number per call.
    pub(crate) fn timers_expire(&mut self, ip: &mut IpLayer, now: Instant) {
        for _ in 0..TIMERS_PER_POLL_MAX / WARM_MAX {
            let mut due = [NONE; WARM_MAX];
            let expired = core::iter::from_fn(|| self.wheel.pop_expired(now));
            let n = due.iter_mut().zip(expired).map(|(d, i)| *d = i).count();
            if n == 0 {
                break;
            }
            self.warm_records(&due[..n]);
            for &i in &due[..n] {
                if self.conns[i].state != State::Closed {
                    self.tcb(i, now).timers_expire();
                    self.settle(i, now);
                }
            }
        }
        for _ in 0..TIMERS_PER_POLL_MAX {
            let Some(i) = self.embryo_wheel.pop_expired(now) else {
                break;
            };
            self.embryo_timer(ip, i, now);
        }
        for _ in 0..TIMERS_PER_POLL_MAX {
            let Some(i) = self.time_waits.pop_expired(now) else {
                break;
            };
            self.end_time_wait(i);
        }
    }

    /// No later than the next timer.
    pub(crate) fn next_deadline(&self) -> Instant {
        let far = Instant::FAR_FUTURE;
        self.wheel
            .next_deadline()
            .unwrap_or(far)
            .min(self.embryo_wheel.next_deadline().unwrap_or(far))
            .min(self.time_waits.next_deadline())
    }

    pub(crate) fn has_output(&self) -> bool {
        self.egress.iter().any(|e| !e.dirty.is_empty())
    }

    pub(crate) fn has_output_on(&self, iface: IfaceId) -> bool {
        let e = self.egress.get(iface.index());
        e.is_some_and(|e| !e.dirty.is_empty())
    }

    /// Composes the next frame of some connection that leaves by `iface` into `out`.
    pub(crate) fn poll_transmit(
        &mut self,
        ip: &mut IpLayer,
        iface: IfaceId,
        out: &mut [u8],
        now: Instant,
    ) -> Option<Transmit> {
        let here = iface.index();
        while let Some(&i) = self.egress.get(here)?.dirty.front() {
            let transmit = self.conn_transmit(ip, i, out, now);
            let egress = &mut self.egress[here];
            match transmit {
                Sent::Nothing => {
                    egress.dirty.pop_front();
                    egress.quantum = 0;
                    self.conns[i].flags.clear(Flags::DIRTY);
                    self.settle_quietly(i, now);
                }
                Sent::Frame(t) => {
                    egress.quantum += 1;
                    if egress.quantum >= EGRESS_QUANTUM_FRAMES && egress.dirty.len() > 1 {
                        egress.quantum = 0;
                        egress.dirty.rotate_left(1);
                    }
                    return Some(t);
                }
                Sent::Elsewhere => {}
                Sent::Moved(to) => {
                    egress.dirty.pop_front();
                    egress.quantum = 0;
                    self.egress[to.index()].dirty.push_back(i);
                }
            }
        }
        None
    }

    /// As `settle`, for a connection that just said it has nothing to send: what blocks it will
    /// mark it again.
    fn settle_quietly(&mut self, i: u32, now: Instant) {
        match self.conns[i].state {
            State::TimeWait => {
                self.enter_time_wait(i, now);
                self.bury(i);
            }
            State::Closed => self.bury(i),
            _ => {
                let t = self.tcb(i, now);
                let deadline = t.b.timers.earliest().min(t.keepalive_at());
                let idle = t.b.is_idle();
                self.wheel.set(i, deadline);
                if idle {
                    self.release_busy(i);
                }
                self.queue_event(i);
            }
        }
    }

    fn conn_transmit(&mut self, ip: &mut IpLayer, i: u32, out: &mut [u8], now: Instant) -> Sent {
        if self.conns[i].state == State::Closed {
            return Sent::Nothing;
        }
        if ip.has_several()
            && let Some(to) = self.moves(ip, i, now)
        {
            return Sent::Moved(to);
        }
        let mut t = self.tcb(i, now);
        let mut plan = Plan::new();
        if !t.next_segment(&mut plan) {
            return Sent::Nothing;
        }
        t.env.stats.segments_out += 1;
        let Tcb { c, b, .. } = t;
        let opts = c.opts();
        let meta = IpMeta {
            src: c.local_ip,
            dst: c.remote_ip,
            protocol: IpProtocol::Tcp,
            tos: opts.tos & !3 | plan.ecn,
            hop_limit: opts.hop_limit,
            iface: c.bound,
            dont_fragment: true,
            loops: false,
        };
        let mut neighbor = c.neighbor;
        let hop = ip.next_hop(&mut neighbor, meta.dst, c.bound, now);
        c.neighbor = neighbor;
        let offset = meta.transport_offset();
        let frame = &mut out[..offset + plan.len()];
        let transport = &mut frame[offset..];
        b.tx.copy_to(plan.data_offset, &mut transport[plan.header_len()..]);
        plan.write_header(c.local_port, c.remote_port, transport);
        let mss = c.mss;
        let (iface, to) = match hop {
            NextHop::Link(iface, mac) => (iface, mac),
            NextHop::Local(iface) => (iface, ip.mac_of(iface)),
            NextHop::Pending(iface, _) => (iface, EthernetAddress([0; 6])),
            NextHop::NoRoute => {
                let mut t = self.tcb(i, now);
                t.unreachable(Cause::NetUnreachable);
                return Sent::Elsewhere;
            }
        };
        ip.write_headers(frame, &meta, iface, to, plan.len());
        let transport = &mut frame[offset..];
        match hop {
            NextHop::Link(..) => {
                let checksum = ip.fill_checksum(iface, &meta, transport, CHECKSUM_AT);
                let gso = (plan.data_len > usize::from(mss)).then(|| Gso {
                    segment_bytes: mss,
                    header_bytes: (offset + plan.header_len()) as u16,
                    ipv6: !meta.src.is_v4(),
                });
                Sent::Frame(Transmit {
                    iface,
                    len: frame.len(),
                    checksum,
                    gso,
                })
            }
            _ => {
                ip.fill_full_checksum(&meta, transport, CHECKSUM_AT);
                match hop {
                    NextHop::Pending(_, r) => ip.neighbors.hold(r, frame),
                    _ => ip.loop_back(iface, frame),
                }
                Sent::Elsewhere
            }
        }
    }

    /// Routes may have changed: the interface a connection moves to, with the segment size its path
    /// allows.
    fn moves(&mut self, ip: &IpLayer, i: u32, now: Instant) -> Option<IfaceId> {
        let c = &mut self.conns[i];
        let to = ip.egress_of(c.neighbor, c.remote_ip, c.bound)?;
        if to == c.iface {
            return None;
        }
        c.iface = to;
        mss::sync(c, ip.path_mtu(c.remote_ip, c.bound, now));
        Some(to)
    }

    /// The next readiness change.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        while let Some(i) = self.events.pop_front() {
            let c = &mut self.conns[i];
            c.flags.clear(Flags::EVENT_QUEUED);
            if !c.is_owned() {
                if c.state == State::Closed && !c.flags.has(Flags::DIRTY) {
                    self.free(i);
                }
                continue;
            }
            let ready = core::mem::replace(&mut c.events, Ready::NONE);
            if !ready.is_empty() {
                return Some(Event::Tcp(
                    TcpId {
                        index: i,
                        generation: c.generation,
                    },
                    ready,
                ));
            }
        }
        self.listeners.poll_event().map(Event::Accept)
    }

    /// RFC 6528: a clock of 4 µs ticks plus a keyed hash of the flow.
    fn initial_sequence(&self, t: &FourTuple, now: Instant) -> Seq {
        Seq((self.isn_key.siphash(&flow_words(t)) as u32)
            .wrapping_add((now.as_micros() / 4) as u32))
    }

    /// Hides the clock, and makes timestamps of one flow monotonic over its incarnations.
    fn timestamp_offset(&self, t: &FourTuple) -> u32 {
        self.ts_key.siphash(&flow_words(t)) as u32
    }

    /// Connections, embryos and TIME-WAIT records.
    pub(crate) fn flow_count(&self) -> usize {
        self.demux.len()
    }

    /// Whether a connection still has something to get across.
    pub(crate) fn is_unfinished(&self) -> bool {
        let busy = |c: &Conn| {
            matches!(c.state, State::FinWait1 | State::Closing | State::LastAck)
                || c.flags.has(Flags::SEND_RST)
        };
        self.conns.slots().any(busy)
    }

    /// Checks every invariant that must hold between calls; for simulations.
    pub(crate) fn check_invariants(&self) {
        let mut dirty: Vec<u32> = Vec::new();
        for e in &self.egress {
            dirty.extend(&e.dirty);
        }
        let n = dirty.len();
        dirty.sort_unstable();
        assert_eq!(
            dirty
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            n
        );
        for &i in &dirty {
            let c = &self.conns[i];
            assert!(c.flags.has(Flags::DIRTY));
            if c.busy != NONE {
                c.check_invariants(&self.busy[c.busy]);
            }
        }
    }
}

/// What became of a connection's turn to send.
enum Sent {
    Nothing,
    Frame(Transmit),
    /// Held for a neighbour, looped back or dropped: look for the next.
    Elsewhere,
    /// It is another interface's from now on.
    Moved(IfaceId),
}

fn flow_words(t: &FourTuple) -> [u64; 5] {
    let (lh, ll) = t.local.ip.words();
    let (rh, rl) = t.remote.ip.words();
    [
        lh,
        ll,
        rh,
        rl,
        u64::from(t.local.port) << 16 | u64::from(t.remote.port),
    ]
}
