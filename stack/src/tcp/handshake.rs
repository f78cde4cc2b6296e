//! Passive open: the SYN queue of embryonic connections, and cookies where it is full.
//!
//! An embryo is SYN-RECEIVED of RFC 9293 in a record of its own; a full connection exists only
//! once the handshake is complete and the accept queue has room.

use core::time::Duration;

use smoltcp::wire::IpProtocol;

use super::conn::{Conn, Flags, NONE};
use super::cookie::{self, Extras};
use super::demux::Entry;
use super::options::{OptionBytes, Options, Timestamps};
use super::rack::Widening;
use super::rto::RttEstimate;
use super::segment::{Control, Plan, Segment};
use super::seq::Seq;
use super::sockopt::SockOpts;
use super::state::State;
use super::{CHECKSUM_AT, Engine, cc, mss};
use crate::addr::FourTuple;
use crate::events::Ready;
use crate::ip::iface::IfaceId;
use crate::ip::neighbor::NeighborRef;
use crate::ip::{IpLayer, IpMeta};
use crate::limits::{self, RTO_INITIAL, RTO_MAX, SYN_BACKLOG, SYNACK_RETRIES};
use crate::stack::{EcnMode, ListenerId};
use crate::time::Instant;

/// SYN received, SYN-ACK sent: what the connection will start from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Embryo {
    pub(crate) tuple: FourTuple,
    listener: ListenerId,
    irs: Seq,
    isn: Seq,
    /// The peer's MSS option.
    mss: u16,
    window: u16,
    snd_wscale: u8,
    rcv_wscale: u8,
    /// TIMESTAMPS, SACK, WINDOW_SCALE, ECN as negotiated.
    flags: Flags,
    ts_recent: u32,
    ts_offset: u32,
    tag: u32,
    /// What the SYN arrived on, and whether nothing else will do.
    iface: IfaceId,
    pub(crate) bound: Option<IfaceId>,
    retries: u8,
    /// A bare ACK came that does not count: the peer is there and has nothing to say.
    acked: bool,
    sent_at: Instant,
}

impl Embryo {
    /// How long a SYN-ACK waits for its answer.
    fn wait(&self) -> Duration {
        (RTO_INITIAL * (1 << self.retries.min(7))).min(RTO_MAX)
    }

    /// As [`Conn::hears`].
    pub(super) fn hears(&self, iface: Option<IfaceId>) -> bool {
        self.bound.is_none() || iface.is_none() || self.bound == iface
    }
}

impl Engine {
    /// A segment for which there is no flow: RFC 9293 §3.10.7.2 (LISTEN), else §3.10.7.1.
    #[allow(clippy::too_many_arguments, reason = "as packet_arrives")]
    pub(crate) fn listener_segment(
        &mut self,
        ip: &mut IpLayer,
        arrival: IfaceId,
        tuple: &FourTuple,
        tag: u32,
        seg: &Segment<'_>,
        isn: Option<Seq>,
        now: Instant,
    ) {
        let Some(l) = self.listeners.lookup(tuple.local, arrival, tag) else {
            self.reset_stranger(ip, arrival, tuple, seg, now);
            return;
        };
        if seg.has(Control::RST) {
            return;
        }
        if seg.has(Control::ACK) {
            if !seg.has(Control::SYN) && self.cookie_returns(ip, arrival, tuple, tag, l, seg, now) {
                return;
            }
            self.reset_stranger(ip, arrival, tuple, seg, now);
            return;
        }
        if !seg.has(Control::SYN)
            || seg.has(Control::FIN)
            || !tuple.remote.ip.is_valid_source()
            || tuple.remote.port == 0
        {
            return;
        }
        self.syn_arrives(ip, arrival, tuple, tag, l, seg, isn, now);
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "one caller; a struct would only rename them"
    )]
    fn syn_arrives(
        &mut self,
        ip: &mut IpLayer,
        arrival: IfaceId,
        tuple: &FourTuple,
        tag: u32,
        l: u32,
        seg: &Segment<'_>,
        isn: Option<Seq>,
        now: Instant,
    ) {
        if self.listeners.is_full(l) {
            self.env.stats.listen_overflows += 1;
            return;
        }
        let o = Options::parse(seg.options, true);
        let config = &self.env.config;
        let mut flags = Flags::default();
        flags.put(
            Flags::TIMESTAMPS,
            config.timestamps && o.timestamps.is_some(),
        );
        flags.put(Flags::SACK, config.sack && o.sack_permitted);
        flags.put(
            Flags::WINDOW_SCALE,
            config.window_scaling && o.window_scale.is_some(),
        );
        flags.put(
            Flags::ECN,
            config.ecn != EcnMode::Off && seg.has(Control::ECE) && seg.has(Control::CWR),
        );
        let default = if tuple.remote.ip.is_v4() {
            limits::MSS_DEFAULT_V4
        } else {
            limits::MSS_DEFAULT_V6
        };
        let peer_mss = o.mss.unwrap_or(default).max(limits::MSS_MIN);
        let listener = &self.listeners.list[l as usize];
        let id = ListenerId {
            index: l,
            generation: listener.generation,
        };
        let flooded = listener.embryos >= SYN_BACKLOG.max(listener.backlog);
        let mut e = Embryo {
            tuple: *tuple,
            listener: id,
            irs: seg.seq,
            isn: isn.unwrap_or_else(|| self.initial_sequence(tuple, now)),
            mss: peer_mss,
            window: seg.window,
            snd_wscale: o.window_scale.unwrap_or(0),
            rcv_wscale: if flags.has(Flags::WINDOW_SCALE) {
                self.env.config.rcv_wscale
            } else {
                0
            },
            flags,
            ts_recent: o.timestamps.map_or(0, |t| t.val),
            ts_offset: self.timestamp_offset(tuple),
            tag,
            iface: arrival,
            bound: listener
                .bound
                .or(IpLayer::reply_by(tuple.remote.ip, arrival)),
            retries: 0,
            acked: false,
            sent_at: now,
        };
        if flooded {
            if !self.env.config.syn_cookies {
                self.env.stats.listen_overflows += 1;
                return;
            }
            e.isn = cookie::make(self.cookie_key, tuple, seg.seq, peer_mss, now);
            if !flags.has(Flags::TIMESTAMPS) {
                // Nowhere to remember these.
                e.flags.clear(Flags::SACK | Flags::ECN);
                e.flags.clear(Flags::WINDOW_SCALE);
            }
            self.env.stats.cookies_sent += 1;
            self.send_syn_ack(ip, &e, true, now);
            return;
        }
        self.listeners.list[l as usize].embryos += 1;
        let i = self.embryos.insert(|_| e);
        self.demux.insert(tag, Entry::Embryo(i));
        self.embryo_wheel.set(i, now + RTO_INITIAL);
        self.send_syn_ack(ip, &e, false, now);
    }

    fn send_syn_ack(&mut self, ip: &mut IpLayer, e: &Embryo, as_cookie: bool, now: Instant) {
        let mut val = (now.as_millis() as u32).wrapping_add(e.ts_offset);
        if as_cookie {
            let extras = Extras {
                window_scale: e.flags.has(Flags::WINDOW_SCALE).then_some(e.snd_wscale),
                sack: e.flags.has(Flags::SACK),
                ecn: e.flags.has(Flags::ECN),
            };
            val = cookie::encode_ts(val, extras);
        }
        let ts = e.flags.has(Flags::TIMESTAMPS).then_some(Timestamps {
            val,
            ecr: e.ts_recent,
        });
        let scale = e
            .flags
            .has(Flags::WINDOW_SCALE)
            .then_some(self.env.config.rcv_wscale);
        let egress = ip.egress(e.tuple.remote.ip, e.bound).unwrap_or(e.iface);
        let mut our_mss = mss::of_mtu(e.tuple.local.ip, self.env.links[egress.index()].mtu);
        if let Some(max) = self.listener_opts(e).and_then(|opts| opts.max_seg) {
            our_mss = our_mss.min(max);
        }
        let plan = Plan {
            seq: e.isn,
            ack: e.irs + 1,
            control: Control::SYN
                .with(Control::ACK)
                .with_if(Control::ECE, e.flags.has(Flags::ECN)),
            window: self.embryo_window(e) as u16,
            options: OptionBytes::syn(our_mss, scale, e.flags.has(Flags::SACK), ts),
            ..Plan::new()
        };
        self.env.stats.segments_out += 1;
        let t = e.tuple;
        let mut meta = IpMeta::new(t.local.ip, t.remote.ip, IpProtocol::Tcp);
        meta.iface = e.bound;
        ip.send(now, &meta, plan.len(), Some(CHECKSUM_AT), |out| {
            plan.write_header(t.local.port, t.remote.port, out);
        });
    }

    /// What the connection will offer first: the receive buffer its listener gives it, as far as an
    /// unscaled window goes.
    fn embryo_window(&self, e: &Embryo) -> u32 {
        let given = self.listener_opts(e).and_then(|opts| opts.rcvbuf);
        let rcvbuf = given.unwrap_or(self.env.config.rcvbuf);
        rcvbuf.min(u32::from(u16::MAX))
    }

    /// The options that the connection will have, where they are not the defaults.
    fn listener_opts(&self, e: &Embryo) -> Option<&SockOpts> {
        let listener = self.listeners.list.get(e.listener.index as usize);
        let own = listener.filter(|l| l.generation == e.listener.generation);
        own?.opts.as_deref()
    }

    /// SYN-RECEIVED of RFC 9293 §3.10.7.4 for a passive open.
    pub(crate) fn embryo_segment(
        &mut self,
        ip: &mut IpLayer,
        i: u32,
        tuple: &FourTuple,
        seg: &Segment<'_>,
        now: Instant,
    ) {
        let e = self.embryos[i];
        let o = Options::parse(seg.options, seg.has(Control::SYN));
        if seg.has(Control::SYN)
            && !seg.has(Control::ACK)
            && seg.seq == e.irs
            && !seg.has(Control::RST)
        {
            // Our SYN-ACK was lost. The next has its full time to be answered, the last one, too.
            self.embryo_wheel.set(i, now + e.wait());
            self.send_syn_ack(ip, &e, false, now);
            return;
        }
        let stale = e.flags.has(Flags::TIMESTAMPS)
            && o.timestamps
                .is_some_and(|t| (t.val.wrapping_sub(e.ts_recent) as i32) < 0);
        let window = self.embryo_window(&e);
        let in_window = seg.seq.between(e.irs + 1, e.irs + 1 + window);
        if stale && !seg.has(Control::RST) || !in_window {
            if !seg.has(Control::RST) && self.env.challenge.take(now) {
                self.env.stats.out_of_window += 1;
                self.send_embryo_ack(ip, &e, now);
            }
            return;
        }
        if seg.has(Control::RST) {
            // RFC 5961 §3.2 holds here too.
            if seg.seq == e.irs + 1 {
                self.remove_embryo(i);
            }
            return;
        }
        if seg.has(Control::SYN) {
            if self.env.challenge.take(now) {
                self.send_embryo_ack(ip, &e, now);
            }
            return;
        }
        if !seg.has(Control::ACK) {
            return;
        }
        if seg.ack != e.isn + 1 {
            self.env.stats.bad_ack += 1;
            self.reset_reply(ip, e.iface, tuple, seg, now);
            return;
        }
        let Some(l) = self.listeners.get(e.listener) else {
            self.remove_embryo(i);
            self.reset_reply(ip, e.iface, tuple, seg, now);
            return;
        };
        if e.retries < l.defer_accept && seg.payload.is_empty() && !seg.has(Control::FIN) {
            // Its data completes the handshake.
            self.embryos[i].acked = true;
            return;
        }
        if self.listeners.is_full(e.listener.index) {
            self.env.stats.listen_overflows += 1;
            return;
        }
        self.remove_embryo(i);
        self.promote(ip, &e, seg, now);
    }

    /// Resets the handshakes whose listener is gone: what comes of the peers is not waited for.
    pub(crate) fn refuse_handshakes(&mut self, ip: &mut IpLayer, now: Instant) {
        let mut orphans = Vec::new();
        for (i, e) in (0..).zip(self.embryos.slots()) {
            if self.listeners.get(e.listener).is_none() && self.is_filed(e.tag, Entry::Embryo(i)) {
                orphans.push((i, *e));
            }
        }
        for (i, e) in orphans {
            self.remove_embryo(i);
            self.env.stats.resets_out += 1;
            let plan = Plan::bare(e.isn + 1, e.irs + 1, Control::RST.with(Control::ACK));
            self.send_bare(ip, e.bound, &e.tuple, &plan, now);
        }
    }

    fn send_embryo_ack(&mut self, ip: &mut IpLayer, e: &Embryo, now: Instant) {
        let mut plan = Plan::bare(e.isn + 1, e.irs + 1, Control::ACK);
        plan.timestamps = e.flags.has(Flags::TIMESTAMPS).then(|| Timestamps {
            val: (now.as_millis() as u32).wrapping_add(e.ts_offset),
            ecr: e.ts_recent,
        });
        plan.window = (self.embryo_window(e) >> e.rcv_wscale) as u16;
        self.send_bare(ip, e.bound, &e.tuple, &plan, now);
    }

    fn remove_embryo(&mut self, i: u32) {
        let e = self.embryos[i];
        self.demux.remove(e.tag, Entry::Embryo(i));
        self.embryo_wheel.cancel(i);
        self.embryos.remove(i);
        if let Some(l) = self.listeners.list.get_mut(e.listener.index as usize)
            && l.generation == e.listener.generation
        {
            l.embryos -= 1;
        }
    }

    /// SYN-ACK retransmission (tcp_synack_retries).
    pub(crate) fn embryo_timer(&mut self, ip: &mut IpLayer, i: u32, now: Instant) {
        let e = &mut self.embryos[i];
        let before = e.retries;
        e.retries = before.saturating_add(1);
        let e = *e;
        let Some(defer) = self.listeners.get(e.listener).map(|l| l.defer_accept) else {
            self.remove_embryo(i);
            return;
        };
        let waits_for_data = e.acked && before < defer;
        if before >= SYNACK_RETRIES && !waits_for_data {
            self.remove_embryo(i);
            return;
        }
        self.embryo_wheel.set(i, now + e.wait());
        // Who has answered is asked again at the end only, for the ACK that completes the handshake.
        if !e.acked || e.retries >= defer {
            self.send_syn_ack(ip, &e, false, now);
        }
    }

    /// An ACK to a listener may complete a handshake of which only the cookie remembers.
    #[allow(clippy::too_many_arguments, reason = "as syn_arrives")]
    fn cookie_returns(
        &mut self,
        ip: &mut IpLayer,
        arrival: IfaceId,
        tuple: &FourTuple,
        tag: u32,
        l: u32,
        seg: &Segment<'_>,
        now: Instant,
    ) -> bool {
        if !self.env.config.syn_cookies {
            return false;
        }
        let (irs, isn) = (seg.seq - 1, seg.ack - 1);
        let Some(peer_mss) = cookie::check(self.cookie_key, tuple, irs, isn, now) else {
            self.env.stats.cookies_failed += 1;
            return false;
        };
        if self.listeners.is_full(l) {
            self.env.stats.listen_overflows += 1;
            return true;
        }
        self.env.stats.cookies_ok += 1;
        let o = Options::parse(seg.options, false);
        let ts_offset = self.timestamp_offset(tuple);
        let mut flags = Flags::default();
        let mut snd_wscale = 0;
        let mut ts_recent = 0;
        if let Some(ts) = o.timestamps.filter(|_| self.env.config.timestamps) {
            let extras = cookie::decode_ts(ts.ecr);
            flags.set(Flags::TIMESTAMPS);
            flags.put(Flags::SACK, extras.sack);
            flags.put(Flags::ECN, extras.ecn);
            flags.put(Flags::WINDOW_SCALE, extras.window_scale.is_some());
            snd_wscale = extras.window_scale.unwrap_or(0);
            ts_recent = ts.val;
        }
        let listener = &self.listeners.list[l as usize];
        let e = Embryo {
            tuple: *tuple,
            listener: ListenerId {
                index: l,
                generation: listener.generation,
            },
            irs,
            isn,
            mss: peer_mss,
            window: seg.window,
            snd_wscale,
            rcv_wscale: if flags.has(Flags::WINDOW_SCALE) {
                self.env.config.rcv_wscale
            } else {
                0
            },
            flags,
            ts_recent,
            ts_offset,
            tag,
            iface: arrival,
            bound: listener
                .bound
                .or(IpLayer::reply_by(tuple.remote.ip, arrival)),
            // The time of our SYN-ACK is not known: no RTT sample.
            retries: 1,
            acked: false,
            sent_at: now,
        };
        self.promote(ip, &e, seg, now);
        true
    }

    /// The handshake is complete: a connection in ESTABLISHED, and its first segment.
    fn promote(&mut self, ip: &mut IpLayer, e: &Embryo, seg: &Segment<'_>, now: Instant) {
        let remote = e.tuple.remote.ip;
        let mtu = ip.path_mtu(remote, e.bound, now);
        let Some(l) = self.listeners.get(e.listener) else {
            return;
        };
        let mut conn = new_conn(&e.tuple, e.tag, e.isn, l.opts.clone());
        conn.flags = e.flags | l.flags | Flags::OWNED | Flags::FILED | Flags::TS_RECENT;
        conn.flags
            .put(Flags::TS_RECENT, e.flags.has(Flags::TIMESTAMPS));
        conn.flags.set(Flags::IN_ACCEPT_QUEUE);
        conn.state = State::Established;
        conn.snd_wscale = e.snd_wscale;
        conn.rcv_wscale = e.rcv_wscale;
        conn.snd_una = e.isn + 1;
        conn.snd_nxt = conn.snd_una;
        conn.snd_wnd = u32::from(e.window);
        conn.max_window = conn.snd_wnd;
        conn.snd_wl1 = e.irs;
        conn.rcv_nxt = e.irs + 1;
        conn.rcv_wup = conn.rcv_nxt;
        conn.rcvbuf = conn.opts().rcvbuf.unwrap_or(self.env.config.rcvbuf);
        conn.rcv_wnd = conn.rcvbuf.min(u32::from(u16::MAX));
        conn.ts_recent = e.ts_recent;
        conn.ts_recent_at = super::conn::ts_recent_clock(now);
        conn.ts_offset = e.ts_offset;
        conn.peer_mss = e.mss;
        conn.bound = e.bound;
        conn.iface = ip.egress(remote, e.bound).unwrap_or(e.iface);
        conn.quick_acks = limits::QUICKACKS;
        conn.last_recv_ms = now.as_millis() as u32;
        conn.last_send_ms = conn.last_recv_ms;
        mss::sync(&mut conn, mtu);
        conn.rcv_mss = conn.mss.min(limits::MSS_DEFAULT_V4);
        // Timeouts of a deferred accept sent nothing.
        let sent_again = if e.acked { 0 } else { e.retries.into() };
        conn.open_window(sent_again);
        let rtt_us = if e.retries == 0 {
            Some(now.since(e.sent_at).as_micros().min(u128::from(u32::MAX)) as u32)
        } else {
            conn.echoed_rtt_us(&Options::parse(seg.options, false), now)
        };
        conn.sample_handshake(rtt_us, now);
        let i = self.file(conn);
        let l = &mut self.listeners.list[e.listener.index as usize];
        l.accept.push_back(i);
        if !l.event_queued {
            l.event_queued = true;
            self.listeners.events.push_back(e.listener.index);
        }
        self.env.stats.established += 1;
        self.conn_segment(ip, i, e.iface, &e.tuple, seg, now);
    }

    /// Stores a connection and files it under its tuple.
    pub(crate) fn file(&mut self, conn: Conn) -> u32 {
        let tag = conn.tag;
        let i = self.conns.insert(|old| Conn {
            generation: old.map_or(0, |o| o.generation.wrapping_add(1)),
            ..conn
        });
        self.demux.insert(tag, Entry::Conn(i));
        i
    }
}

/// A record with everything at its start value.
pub(crate) fn new_conn(t: &FourTuple, tag: u32, iss: Seq, opts: Option<Box<SockOpts>>) -> Conn {
    Conn {
        local_ip: t.local.ip,
        remote_ip: t.remote.ip,
        local_port: t.local.port,
        remote_port: t.remote.port,
        flags: Flags::default(),
        state: State::Closed,
        snd_wscale: 0,
        rcv_wscale: 0,
        probes: 0,
        min_rtt_at: 0,
        widening: Widening::default(),
        mss: 0,
        peer_mss: 0,
        snd_una: iss,
        snd_nxt: iss,
        snd_wnd: 0,
        snd_wl1: Seq(0),
        max_window: 0,
        rcv_nxt: Seq(0),
        rcv_wup: Seq(0),
        rcv_wnd: 0,
        rcvbuf: 0,
        ts_recent: 0,
        ts_recent_at: 0,
        copied: 0,
        copied_since_ms: 0,
        ts_offset: 0,
        window: cc::Window::initial(0),
        rtt: RttEstimate::new(),
        last_recv_ms: 0,
        last_send_ms: 0,
        bytes_acked: 0,
        bytes_received: 0,
        segs_in: 0,
        segs_out: 0,
        total_retrans: 0,
        tag,
        generation: 0,
        neighbor: NeighborRef::default(),
        iface: IfaceId::FIRST,
        bound: None,
        busy: NONE,
        rcv_mss: limits::MSS_DEFAULT_V4,
        quick_acks: 0,
        events: Ready::NONE,
        error: None,
        soft_error: None,
        opts,
    }
}
