//! The TCP engine: connection table, timers, egress list. Owns every record and decides which
//! connection runs; what a connection does is in the files beside this one.
//!
//! RFCs to read first: 9293 (protocol), 7323 (timestamps, PAWS), 5961 (validation), 6298 (RTO),
//! 6675 and 8985 (recovery), 9438 (CUBIC).

mod ack;
mod api;
mod arrivals;
mod batch;
pub(crate) mod buffer;
pub(crate) mod cc;
pub(crate) mod conn;
mod cookie;
mod defer;
mod delivery;
mod demux;
mod egress;
mod handshake;
mod info;
mod input;
mod invariants;
mod listener;
mod mss;
mod mtu_search;
mod options;
mod output;
mod path;
mod rack;
mod reassembly;
mod receive;
mod recovery;
mod rto;
mod run;
mod scoreboard;
mod segment;
mod seq;
mod settle;
mod sockopt;
mod state;
mod stats;
mod timer_wheel;
mod timers;
mod timewait;
mod undo;

use std::collections::VecDeque;

pub use api::{ConnectOptions, ListenOptions};
pub use cc::CongestionControl;
pub use defer::{defer_repeats, defer_seconds};
pub use info::TcpInfo;
pub use seq::Seq;
pub use sockopt::{SockFlag, SockOpts};
pub use state::State;
pub use stats::TcpStats;

use crate::addr::FourTuple;
use crate::events::{Event, Ready};
use crate::ip::iface::IfaceId;
use crate::limits::{CHALLENGE_ACKS_PER_SEC, IFACES_MAX};
use crate::rate::RateLimit;
use crate::secret::{Key, Rng};
use crate::slab::Slab;
use crate::stack::{InterfaceConfig, Shard, TcpConfig, TcpId};
use crate::time::Instant;
use buffer::BlockPool;
use conn::{Busy, Conn, Flags, NONE};
use demux::{Demux, Entry};
use egress::Egress;
use handshake::Embryo;
use listener::Listeners;
use run::Run;
use timer_wheel::TimerWheel;
use timewait::{TimeWait, TimeWaits};

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
    /// Of the connection that sent last.
    run: Option<Run>,
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
    shard: Shard,
}

impl Engine {
    pub(crate) fn new(
        config: &TcpConfig,
        key: Key,
        first: &InterfaceConfig,
        shard: Shard,
        now: Instant,
    ) -> Self {
        let mut engine = Self {
            conns: Slab::new(),
            busy: Slab::new(),
            demux: Demux::new(key.derive(1), config.expected_connections),
            wheel: TimerWheel::new(now),
            egress: Vec::new(),
            run: None,
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
            shard,
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

    fn initial_sequence(&self, t: &FourTuple, now: Instant) -> Seq {
        initial_sequence(&self.isn_key, t, now)
    }

    /// Hides the clock, and makes timestamps of one flow monotonic over its incarnations.
    fn timestamp_offset(&self, t: &FourTuple) -> u32 {
        self.ts_key.siphash(&flow_words(t)) as u32
    }

    /// Connections, embryos and TIME-WAIT records.
    pub(crate) fn flow_count(&self) -> usize {
        self.demux.len()
    }

    /// Connections, in whatever state but TIME-WAIT.
    pub(crate) fn connections(&self) -> impl Iterator<Item = FourTuple> {
        let conns = self.conns.slots().filter(|c| c.flags.has(Flags::FILED));
        conns.map(Conn::tuple)
    }

    /// Those in TIME-WAIT.
    pub(crate) fn time_waits(&self) -> impl Iterator<Item = FourTuple> {
        self.waits().map(|(_, record)| record.tuple())
    }

    fn waits(&self) -> impl Iterator<Item = (u32, &TimeWait)> {
        let records = (0..).zip(self.time_waits.records.slots());
        records.filter(|(i, record)| self.is_filed(record.tag, Entry::TimeWait(*i)))
    }

    fn is_filed(&self, tag: u32, entry: Entry) -> bool {
        self.demux.find(tag, |other| other == entry).is_some()
    }

    /// Ends every TIME-WAIT.
    pub(crate) fn forget_time_waits(&mut self) {
        for i in self.waits().map(|(i, _)| i).collect::<Vec<_>>() {
            self.end_time_wait(i);
        }
    }

    /// Whether a connection still has something to get across.
    pub(crate) fn is_unfinished(&self) -> bool {
        let busy = |c: &Conn| {
            matches!(c.state, State::FinWait1 | State::Closing | State::LastAck)
                || c.flags.has(Flags::SEND_RST)
        };
        self.conns.slots().any(busy)
    }
}

/// RFC 6528: a clock of 4 µs ticks plus a keyed hash of the flow.
fn initial_sequence(key: &Key, t: &FourTuple, now: Instant) -> Seq {
    Seq((key.siphash(&flow_words(t)) as u32).wrapping_add((now.as_micros() / 4) as u32))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Endpoint, Ip};
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    /// RFC 6528 §3: a flow's numbers follow a clock, so that its next incarnation begins beyond the last;
    /// nothing is learnt from them about another flow's, or by who has not the key.
    #[test]
    fn sequence_numbers_follow_the_clock_within_a_flow_and_tell_nothing_of_another() {
        let end = |port| Endpoint {
            ip: Ip::from(IpAddr::from([192, 0, 2, 1])),
            port,
        };
        let flow = |port| FourTuple {
            local: end(80),
            remote: end(port),
        };
        let at = |key, port, us| initial_sequence(&Key(key), &flow(port), Instant::from_micros(us));
        let (key, other) = ([1; 16], [2; 16]);
        assert_eq!(at(key, 5, 8_000).since(at(key, 5, 0)), 2_000);
        let firsts = (0..1_000).map(|port| at(key, port, 0).0);
        let steps: BTreeSet<u32> = (0..1_000)
            .map(|port| at(key, port + 1, 0).0.wrapping_sub(at(key, port, 0).0))
            .collect();
        assert_eq!(firsts.collect::<BTreeSet<u32>>().len(), 1_000);
        assert_eq!(steps.len(), 1_000);
        let under_another_key = at(other, 5, 0).0.wrapping_sub(at(key, 5, 0).0);
        assert_ne!(
            under_another_key,
            at(other, 6, 0).0.wrapping_sub(at(key, 6, 0).0)
        );
    }
}
