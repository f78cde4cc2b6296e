//! Active and passive open, and the choice of ports.

use std::collections::BTreeMap;

use crate::addr::{Endpoint, FourTuple, Ip};
use crate::error::SocketError;
use crate::ip::IpLayer;
use crate::ip::iface::IfaceId;
use crate::limits::{BACKLOG_MAX, EPHEMERAL_PORTS};
use crate::stack::{EcnMode, ListenerId, TcpId};
use crate::tcp::conn::Flags;
use crate::tcp::demux::Entry;
use crate::tcp::handshake::new_conn;
use crate::tcp::listener::ListenAddr;
use crate::tcp::seq::Seq;
use crate::tcp::sockopt::{SockFlag, SockOpts};
use crate::tcp::state::State;
use crate::tcp::{Engine, cc, mss};
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
            Some(port) if !self.shard.has_flow(port, remote.port) => {
                return Err(SocketError::AddressNotAvailable);
            }
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
        c.window = cc::Window::initial(u32::from(c.mss));
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
    /// As Linux, no port is left untried whose packets come back to this shard.
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
            if !self.shard.has_flow(port, remote.port) || self.binds.ports.contains_key(&port) {
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
}
