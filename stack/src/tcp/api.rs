//! What the application asks of TCP (RFC 9293 §3.9.1): open, send, receive, close, abort, status.

use core::time::Duration;
use std::collections::BTreeMap;

use super::conn::{Busy, Conn, Flags, NONE};
use super::demux::Entry;
use super::info::TcpInfo;
use super::listener::{ListenAddr, new_conn};
use super::seq::Seq;
use super::sockopt::{SockFlag, SockOpts};
use super::state::State;
use super::{Engine, Tcb, mss};
use crate::addr::{Endpoint, FourTuple, Ip};
use crate::error::{Cause, RecvError, SendError, SocketError};
use crate::events::Ready;
use crate::ip::IpLayer;
use crate::ip::iface::IfaceId;
use crate::limits::{self, BACKLOG_MAX, EPHEMERAL_PORTS};
use crate::stack::{EcnMode, ListenerId, TcpId};
use crate::time::Instant;

/// Connections per explicitly chosen local port, so that ephemeral choice avoids listeners and
/// reservations.
#[derive(Debug, Default)]
pub(crate) struct Binds {
    /// Ports with a listener or a reservation, and how many.
    ports: BTreeMap<u16, u32>,
}

impl Binds {
    fn reserve(&mut self, port: u16) {
        *self.ports.entry(port).or_default() += 1;
    }

    fn unreserve(&mut self, port: u16) {
        if let Some(n) = self.ports.get_mut(&port) {
            *n -= 1;
            if *n == 0 {
                self.ports.remove(&port);
            }
        }
    }
}

/// What connect needs to know beyond the remote address.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Local address; unspecified parts are chosen.
    pub local: Option<core::net::SocketAddr>,
    /// SO_BINDTODEVICE: use this interface only. A link-local remote address with a scope id says
    /// the same.
    pub iface: Option<IfaceId>,
    /// Options that differ from the defaults.
    pub opts: Option<SockOpts>,
    /// Flags to start with.
    pub flags: Vec<SockFlag>,
}

/// What listen needs to know beyond the address.
#[derive(Debug, Clone, Default)]
pub struct ListenOptions {
    /// listen(2)'s backlog; one more connection than this may wait.
    pub backlog: usize,
    /// SO_REUSEPORT: share the address with other such listeners.
    pub reuse_port: bool,
    /// SO_BINDTODEVICE: hear this interface only.
    pub iface: Option<IfaceId>,
    /// IPV6_V6ONLY for a wildcard IPv6 address.
    pub v6_only: bool,
    /// TCP_DEFER_ACCEPT, in SYN-ACKs after whose repetition a bare ACK is enough (see
    /// [`defer_repeats`](crate::defer_repeats)); 0 is off.
    pub defer_accept: u8,
    /// Options inherited by accepted connections.
    pub opts: Option<SockOpts>,
    /// Flags inherited by accepted connections.
    pub flags: Vec<SockFlag>,
}

impl SockFlag {
    const fn flag(self) -> Flags {
        match self {
            Self::NoDelay => Flags::NODELAY,
            Self::Cork => Flags::CORK,
            Self::QuickAck => Flags::QUICKACK,
            Self::KeepAlive => Flags::KEEPALIVE,
            Self::OobInline => Flags::OOB_INLINE,
        }
    }
}

impl Engine {
    /// Active open. The SYN leaves with the next transmission.
    pub(crate) fn connect(
        &mut self,
        ip: &mut IpLayer,
        remote: Endpoint,
        iface: Option<IfaceId>,
        options: &ConnectOptions,
        now: Instant,
    ) -> Result<TcpId, SocketError> {
        if remote.port == 0
            || remote.ip.is_unspecified()
            || remote.ip.is_multicast()
            || ip.is_broadcast(remote.ip)
        {
            return Err(SocketError::InvalidAddress);
        }
        if iface.is_some_and(|i| ip.iface(i).is_none()) {
            return Err(SocketError::NoInterface);
        }
        let wanted = options.local.map(Endpoint::from);
        let local_ip = match wanted.map(|w| w.ip).filter(|w| !w.is_unspecified()) {
            Some(w) if w.is_v4() != remote.ip.is_v4() => return Err(SocketError::InvalidAddress),
            Some(w) if !ip.is_ours(w) => return Err(SocketError::AddressNotAvailable),
            Some(w) => {
                ip.source_for(remote.ip, iface)?;
                w
            }
            None => ip.source_for(remote.ip, iface)?,
        };
        let (tuple, isn) = match wanted.map(|w| w.port).filter(|p| *p != 0) {
            Some(port) => {
                let t = FourTuple {
                    local: Endpoint { ip: local_ip, port },
                    remote,
                };
                let isn = self.claim_tuple(&t, now).ok_or(SocketError::AddressInUse)?;
                (t, isn)
            }
            None => self
                .ephemeral(local_ip, remote, now)
                .ok_or(SocketError::PortsExhausted)?,
        };
        let tag = self.demux.hash(&tuple);
        let opts = options
            .opts
            .clone()
            .filter(|o| *o != SockOpts::DEFAULT)
            .map(Box::new);
        let config = &self.env.config;
        let mut c = new_conn(&tuple, tag, isn, opts);
        c.state = State::SynSent;
        c.bound = iface;
        c.iface = ip.egress(remote.ip, iface).unwrap_or(IfaceId::FIRST);
        c.flags = Flags::OWNED | Flags::FILED | Flags::SEND_SYN;
        c.flags.put(Flags::TIMESTAMPS, config.timestamps);
        c.flags.put(Flags::SACK, config.sack);
        c.flags.put(Flags::WINDOW_SCALE, config.window_scaling);
        c.flags.put(Flags::ECN, config.ecn == EcnMode::Active);
        for f in &options.flags {
            c.flags.set(f.flag());
        }
        c.rcv_wscale = if config.window_scaling {
            config.rcv_wscale
        } else {
            0
        };
        c.rcvbuf = c.opts().rcvbuf.unwrap_or(config.rcvbuf);
        c.ts_offset = self.timestamp_offset(&tuple);
        c.peer_mss = mss::of_mtu(remote.ip, ip.path_mtu(remote.ip, iface, now));
        c.last_recv_ms = now.as_millis() as u32;
        mss::sync(&mut c, ip.path_mtu(remote.ip, iface, now));
        c.window = super::cc::Window::initial(u32::from(c.mss));
        let i = self.file(c);
        self.settle(i, now);
        Ok(TcpId {
            index: i,
            generation: self.conns[i].generation,
        })
    }

    /// Whether the tuple is free; an ISN for it. A TIME-WAIT record gives way if its timestamps
    /// make that safe.
    fn claim_tuple(&mut self, t: &FourTuple, now: Instant) -> Option<Seq> {
        let tag = self.demux.hash(t);
        match self.find(tag, t, None) {
            None => Some(self.initial_sequence(t, now)),
            Some(Entry::TimeWait(i)) if self.time_waits.records[i].reusable(now) => {
                let isn = self.time_waits.records[i].snd_nxt + 65_537;
                self.end_time_wait(i);
                Some(isn)
            }
            Some(_) => None,
        }
    }

    /// RFC 6056 algorithm 3: a keyed offset per destination plus a random one, skipping taken ports.
    /// As Linux, no port is left untried.
    fn ephemeral(
        &mut self,
        local_ip: Ip,
        remote: Endpoint,
        now: Instant,
    ) -> Option<(FourTuple, Seq)> {
        let (lo, hi) = (
            u32::from(*EPHEMERAL_PORTS.start()),
            u32::from(*EPHEMERAL_PORTS.end()),
        );
        let range = hi - lo + 1;
        let (rh, rl) = remote.ip.words();
        let (lh, ll) = local_ip.words();
        let h = self
            .port_key
            .siphash(&[rh, rl, lh, ll, u64::from(remote.port)]) as u32;
        let first = h % range + self.rng.below(u64::from(range)) as u32;
        for n in 0..range {
            let port = (lo + (first + n) % range) as u16;
            if self.binds.ports.contains_key(&port) {
                continue;
            }
            let t = FourTuple {
                local: Endpoint { ip: local_ip, port },
                remote,
            };
            if let Some(isn) = self.claim_tuple(&t, now) {
                return Some((t, isn));
            }
        }
        None
    }

    /// Passive open.
    pub(crate) fn listen(
        &mut self,
        ip: &IpLayer,
        local: Endpoint,
        options: &ListenOptions,
    ) -> Result<ListenerId, SocketError> {
        let addr = if !local.ip.is_unspecified() {
            if !ip.is_ours(local.ip) {
                return Err(SocketError::AddressNotAvailable);
            }
            ListenAddr::Exact(local.ip)
        } else if local.ip.is_v4() {
            ListenAddr::Family { v4: true }
        } else if options.v6_only {
            ListenAddr::Family { v4: false }
        } else {
            ListenAddr::Any
        };
        let port = match local.port {
            0 => self.free_listen_port().ok_or(SocketError::PortsExhausted)?,
            p => p,
        };
        if !options.reuse_port && self.listeners.is_taken(addr, port, options.iface) {
            return Err(SocketError::AddressInUse);
        }
        let id = self
            .listeners
            .insert(addr, port, options.backlog.min(BACKLOG_MAX));
        self.binds.reserve(port);
        if let Some(l) = self.listeners.get(id) {
            l.bound = options.iface;
            l.defer_accept = options.defer_accept;
            l.opts = options
                .opts
                .clone()
                .filter(|o| *o != SockOpts::DEFAULT)
                .map(Box::new);
            for f in &options.flags {
                l.flags.set(f.flag());
            }
        }
        Ok(id)
    }

    fn free_listen_port(&mut self) -> Option<u16> {
        let range = EPHEMERAL_PORTS.end() - EPHEMERAL_PORTS.start();
        let start = self.rng.below(u64::from(range)) as u16;
        (0..=range)
            .map(|n| EPHEMERAL_PORTS.start() + (start + n) % (range + 1))
            .find(|p| !self.binds.ports.contains_key(p))
    }

    pub(crate) fn listener_port(&mut self, id: ListenerId) -> Option<u16> {
        self.listeners.get(id).map(|l| l.port)
    }

    pub(crate) fn unlisten(&mut self, id: ListenerId, now: Instant) {
        if let Some(port) = self.listener_port(id) {
            self.binds.unreserve(port);
            self.close_listener(id, now);
        }
    }

    fn index(&self, id: TcpId) -> Option<u32> {
        self.conns
            .get(id.index)
            .filter(|c| c.generation == id.generation && c.is_owned())
            .map(|_| id.index)
    }

    fn conn(&self, id: TcpId) -> Option<&Conn> {
        self.index(id).map(|i| &self.conns[i])
    }

    fn busy_of(&self, c: &Conn) -> Option<&Busy> {
        (c.busy != NONE).then(|| &self.busy[c.busy])
    }

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
        self.settle(i, now);
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
        t.consume(skip + n);
        self.settle(i, now);
        if n == 0 && room > 0 {
            // Only a passed urgent byte was queued: now it is gone, what does the stream say?
            return self.readable(i).map(|_| Ok(0));
        }
        Ok(Ok(n))
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

    /// SO_ERROR: reads and clears.
    pub(crate) fn take_error(&mut self, id: TcpId) -> Option<Cause> {
        let i = self.index(id)?;
        let c = &mut self.conns[i];
        let error = c.error.take().or_else(|| c.soft_error.take());
        if error.is_some() {
            c.flags.set(Flags::ERROR_TAKEN);
        }
        error
    }

    pub(crate) fn state(&self, id: TcpId) -> Option<State> {
        self.conn(id).map(|c| c.state)
    }

    pub(crate) fn addresses(&self, id: TcpId) -> Option<(Endpoint, Endpoint)> {
        self.conn(id).map(|c| (c.local(), c.remote()))
    }

    /// The level behind READABLE, WRITABLE, READ_CLOSED, CLOSED, ERROR and URGENT.
    pub(crate) fn ready(&mut self, id: TcpId) -> Ready {
        let Some(i) = self.index(id) else {
            return Ready::NONE;
        };
        let pressure = self.env.pool.under_pressure();
        let c = &self.conns[i];
        let busy = self.busy_of(c);
        let (rx, tx) = busy.map_or((0, 0), |b| (b.rx.len(), b.tx.len() as u32));
        let mut r = Ready::NONE;
        let eof = c.flags.any(Flags::FIN_RECEIVED | Flags::RECV_SHUTDOWN);
        let closed = c.state == State::Closed;
        if rx >= c.opts().rcvlowat as usize || eof || closed {
            r.insert(Ready::READABLE);
        }
        if eof {
            r.insert(Ready::READ_CLOSED);
        }
        if closed || eof && c.flags.has(Flags::FIN_QUEUED) {
            r.insert(Ready::CLOSED);
        }
        if c.error.is_some() {
            r.insert(Ready::ERROR);
        }
        let sndbuf = c.sndbuf();
        let room = c.state.may_send() && tx + tx / 2 <= sndbuf && !pressure;
        if room || closed || c.flags.has(Flags::FIN_QUEUED) {
            r.insert(Ready::WRITABLE);
        } else {
            // Whoever asks and hears "no" wants the edge.
            self.conns[i].flags.set(Flags::WANTS_WRITE);
        }
        let c = &self.conns[i];
        if self
            .busy_of(c)
            .is_some_and(|b| b.urgent.rcv_at.is_some() && !b.urgent.taken)
        {
            r.insert(Ready::URGENT);
        }
        r
    }

    /// (bytes to read, bytes not yet acknowledged, bytes not yet sent): FIONREAD, SIOCOUTQ,
    /// SIOCOUTQNSD.
    pub(crate) fn queues(&self, id: TcpId) -> Option<(usize, usize, usize)> {
        let c = self.conn(id)?;
        Some(self.busy_of(c).map_or((0, 0, 0), |b| {
            let unsent = b.tx.len().saturating_sub(c.flight() as usize);
            (b.rx.len(), b.tx.len(), unsent)
        }))
    }

    pub(crate) fn set_flag(
        &mut self,
        id: TcpId,
        f: SockFlag,
        on: bool,
        now: Instant,
    ) -> Result<(), SocketError> {
        let i = self.index(id).ok_or(SocketError::BadHandle)?;
        let c = &mut self.conns[i];
        c.flags.put(f.flag(), on);
        if f == SockFlag::QuickAck {
            c.quick_acks = if on { limits::QUICKACKS } else { 0 };
            c.flags.put(Flags::PINGPONG, !on);
        }
        if f == SockFlag::KeepAlive {
            c.probes = 0;
        }
        self.settle(i, now);
        Ok(())
    }

    pub(crate) fn flag(&self, id: TcpId, f: SockFlag) -> Option<bool> {
        self.conn(id).map(|c| c.flags.has(f.flag()))
    }

    pub(crate) fn opts(&self, id: TcpId) -> Option<&SockOpts> {
        self.conn(id).map(Conn::opts)
    }

    pub(crate) fn set_opts(
        &mut self,
        id: TcpId,
        opts: SockOpts,
        now: Instant,
    ) -> Result<(), SocketError> {
        let i = self.index(id).ok_or(SocketError::BadHandle)?;
        let c = &mut self.conns[i];
        let mtu = self.env.links[c.iface.index()].mtu;
        if let Some(n) = opts.rcvbuf {
            // A promised window is never taken back (RFC 9293 §3.8.6).
            c.rcvbuf = n
                .min(limits::RCVBUF_BYTES_MAX)
                .max(2 * u32::from(c.rcv_mss));
        }
        let max_seg_changed = opts.max_seg != c.opts().max_seg;
        c.opts = (opts != SockOpts::DEFAULT).then(|| Box::new(opts));
        if max_seg_changed {
            mss::sync(c, mtu);
        }
        if !c.has_model() && c.busy != NONE {
            self.busy[c.busy].cc.bbr = None;
        }
        self.settle(i, now);
        Ok(())
    }

    pub(crate) fn info(&self, id: TcpId, now: Instant) -> Option<TcpInfo> {
        let c = self.conn(id)?;
        let b = self.busy_of(c);
        let ms = |then: u32| {
            Duration::from_millis(u64::from((now.as_millis() as u32).wrapping_sub(then)))
        };
        let us = |n: u32| Duration::from_micros(u64::from(n));
        Some(TcpInfo {
            state: c.state,
            local: c.local().to_std(),
            remote: c.remote().to_std(),
            congestion: c.opts().congestion,
            timestamps: c.flags.has(Flags::TIMESTAMPS),
            sack: c.flags.has(Flags::SACK),
            window_scale: c.flags.has(Flags::WINDOW_SCALE),
            ecn: c.flags.has(Flags::ECN),
            snd_wscale: c.snd_wscale,
            rcv_wscale: c.rcv_wscale,
            rto: Duration::from_micros(c.rtt.backed_off_us(b.map_or(0, |b| b.backoff))),
            retransmits: b.map_or(0, |b| b.backoff),
            probes: c.probes,
            backoff: b.map_or(0, |b| b.backoff),
            snd_mss: c.mss,
            rcv_mss: c.rcv_mss,
            unacked: c.flight(),
            sacked: b.map_or(0, |b| b.board.sacked_bytes()),
            lost: b.map_or(0, |b| b.board.lost_bytes()),
            retrans: b.map_or(0, |b| b.board.retrans_bytes()),
            total_retrans: c.total_retrans,
            rtt: us(c.rtt.srtt_us),
            rttvar: us(c.rtt.rttvar_us),
            min_rtt: (c.rtt.min_us != u32::MAX).then(|| us(c.rtt.min_us)),
            snd_ssthresh: (c.window.ssthresh < limits::CWND_BYTES_MAX).then_some(c.window.ssthresh),
            snd_cwnd: c.window.cwnd,
            snd_wnd: c.snd_wnd,
            rcv_wnd: c.receive_window(),
            rcv_space: c.rcvbuf,
            bytes_acked: c.bytes_acked,
            bytes_received: c.bytes_received,
            segs_in: c.segs_in,
            segs_out: c.segs_out,
            notsent_bytes: b.map_or(0, |b| (b.tx.len() as u32).saturating_sub(c.flight())),
            last_data_sent: ms(c.last_send_ms),
            last_recv: ms(c.last_recv_ms),
            reordering_seen: c.flags.has(Flags::REORDERING)
                || b.is_some_and(|b| b.rack.reordering_seen),
        })
    }

    /// An ICMP error quoted a segment of ours (RFC 5927: only if it names bytes in flight).
    pub(crate) fn icmp_error(
        &mut self,
        tuple: &FourTuple,
        seq: Seq,
        cause: Cause,
        hard: bool,
        now: Instant,
    ) {
        let tag = self.demux.hash(tuple);
        let Some(Entry::Conn(i)) = self.find(tag, tuple, None) else {
            return;
        };
        let mut t = self.tcb(i, now);
        if !seq.between(t.c.snd_una, t.c.snd_nxt) {
            t.env.stats.icmp_out_of_window += 1;
        } else if hard && matches!(t.c.state, State::SynSent | State::SynReceived) {
            t.die(cause);
        } else {
            // RFC 1122 §4.2.3.9: synchronized connections only note it.
            t.c.soft_error = Some(cause);
        }
        self.settle(i, now);
    }

    /// The path to `tuple.remote` carries at most `mtu` bytes.
    pub(crate) fn path_mtu_shrank(
        &mut self,
        tuple: &FourTuple,
        seq: Seq,
        mtu: u16,
        now: Instant,
    ) -> bool {
        let tag = self.demux.hash(tuple);
        let Some(Entry::Conn(i)) = self.find(tag, tuple, None) else {
            return false;
        };
        let t = self.tcb(i, now);
        let plausible = seq.between(t.c.snd_una, t.c.snd_nxt);
        if plausible {
            let before = t.c.mss;
            mss::sync(t.c, mtu);
            if t.c.mss < before {
                // Everything larger is lost for a known reason: resend, without blaming
                // congestion (RFC 1191 §6.5).
                let max = u32::from(t.c.mss);
                t.b.board.mark_lost(|s| s.end.since(s.start) > max);
            }
        } else {
            t.env.stats.icmp_out_of_window += 1;
        }
        self.settle(i, now);
        plausible
    }
}

impl Tcb<'_> {
    /// Whether anything might be sent now; the egress pass decides.
    pub(crate) fn wants_output(&self) -> bool {
        let c = &*self.c;
        if c.flags.any(Flags::OUTPUT) {
            return true;
        }
        c.state.transmits()
            && (self.b.board.lost_bytes() > self.b.board.retrans_bytes()
                || self.unsent() > 0
                || c.flags.has(Flags::FIN_QUEUED) && c.flight() <= self.b.tx.len() as u32)
    }

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

    fn consume(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        let more_ahead = !self.b.reasm.is_empty();
        self.b.rx.consume(&mut self.env.pool, n, more_ahead);
        let first = self.c.rcv_nxt - self.b.rx.len() as u32;
        if self.b.urgent.rcv_at.is_some_and(|at| at.before(first)) {
            self.b.urgent = super::conn::Urgent {
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

    /// A segment could not be handed to the link.
    pub(crate) fn unreachable(&mut self, cause: Cause) {
        if matches!(self.c.state, State::SynSent | State::SynReceived) {
            self.die(cause);
        } else {
            self.c.soft_error = Some(cause);
        }
    }
}

impl Conn {
    /// Relations between the variables that hold between events; for simulations.
    pub(crate) fn check_invariants(&self, b: &Busy) {
        b.board.check_invariants();
        assert!(self.snd_una.at_or_before(self.snd_nxt), "SND.UNA ≤ SND.NXT");
        if let Some(front) = b.board.front() {
            assert_eq!(
                front.start, self.snd_una,
                "the scoreboard starts at SND.UNA"
            );
            assert_eq!(
                b.board.back().map(|s| s.end),
                Some(self.snd_nxt),
                "and ends at SND.NXT"
            );
        } else if self.state != State::Closed {
            // A reset connection keeps what it received, and forgets what was in flight.
            assert_eq!(self.snd_una, self.snd_nxt, "no flight without entries");
        }
        assert!(
            self.window.cwnd > 0,
            "a closed congestion window never opens"
        );
        if self.state.is_synchronized() {
            assert!(
                self.rcv_wup.at_or_before(self.rcv_nxt),
                "ACKs do not run ahead"
            );
            assert!(
                b.rx.len() as u32 <= limits::RCVBUF_BYTES_MAX,
                "receive queue within limits"
            );
        }
    }
}
