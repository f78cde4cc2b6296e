//! UDP sockets (RFC 768): bind, connect, options, receive queues, errors from ICMP. Queues are
//! bounded by bytes; what does not fit is dropped and counted, as UDP promises.

mod binding;
mod membership;
mod options;
mod receive;
mod send;
mod shared;

use core::net::SocketAddr;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use binding::UdpBinding;
use membership::Membership;
pub use options::{PmtuDiscovery, Reuse, UdpBindOptions, UdpOpts, UdpSendOptions};
pub(crate) use receive::Arrival;
pub use shared::SharedPorts;

use crate::addr::{Endpoint, FourTuple};
use crate::error::{Cause, RecvError, SocketError};
use crate::events::Ready;
use crate::ip::IpLayer;
use crate::ip::iface::IfaceId;
use crate::limits::{CONTROL_FRAMES_MAX, EPHEMERAL_PORTS, UDP_OVERHEAD_BYTES, UDP_RCVBUF_BYTES};
use crate::secret::{Key, Rng};
use crate::stack::{Shard, UdpId};
use crate::time::Instant;

const HEADER: usize = 8;
const CHECKSUM_AT: usize = 6;

/// A received datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Sender.
    pub from: SocketAddr,
    /// The address of ours, or the group, it was sent to (IP_PKTINFO).
    pub to: SocketAddr,
    /// The interface it arrived on (IP_PKTINFO).
    pub iface: IfaceId,
    /// Its time to live, or hop limit (IP_RECVTTL).
    pub ttl: u8,
    /// Its type of service, or traffic class (IP_RECVTOS).
    pub tos: u8,
    /// When it arrived (SO_TIMESTAMP).
    pub at: Instant,
    /// Payload.
    pub data: Box<[u8]>,
}

/// Counters of UDP; in brackets the kernel's SNMP names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UdpStats {
    /// Datagrams delivered (InDatagrams).
    pub datagrams_in: u64,
    /// Datagrams sent (OutDatagrams).
    pub datagrams_out: u64,
    /// No socket (NoPorts).
    pub no_ports: u64,
    /// Malformed or wrong checksum (InErrors).
    pub errors_in: u64,
    /// Receive queue full (RcvbufErrors).
    pub rcvbuf_errors: u64,
}

#[derive(Debug)]
struct Socket {
    generation: u32,
    open: bool,
    local: Endpoint,
    remote: Option<Endpoint>,
    reuse: Reuse,
    v6_only: bool,
    opts: UdpOpts,
    memberships: Vec<Membership>,
    queue: VecDeque<Datagram>,
    queued_bytes: usize,
    rcvbuf: usize,
    error: Option<Cause>,
    events: Ready,
    event_queued: bool,
    /// Found the transmit queue of this interface full, and waits for WRITABLE.
    waits_for: Option<IfaceId>,
}

impl Socket {
    /// Whether it wants what was sent to a group, or to everybody.
    fn hears_group(&self, a: &Arrival) -> bool {
        !a.dst.is_multicast() || self.hears_in(a.iface, a.dst, a.src)
    }

    fn binding(&self) -> UdpBinding {
        UdpBinding {
            local: self.local,
            remote: self.remote,
            reuse: self.reuse,
            v6_only: self.v6_only,
            iface: self.opts.iface,
        }
    }
}

/// All UDP sockets.
#[derive(Debug)]
pub(crate) struct Udp {
    sockets: Vec<Socket>,
    free: Vec<u32>,
    /// By port; the sockets on it, few.
    by_port: BTreeMap<u16, Vec<u32>>,
    events: VecDeque<u32>,
    /// Sockets with `waits_for`.
    waiting: Vec<u32>,
    rng: Rng,
    /// Spreads flows over SO_REUSEPORT sockets.
    port_key: Key,
    shard: Shard,
    /// Ports of which other shards have sockets too.
    pub(crate) shared: Arc<SharedPorts>,
    pub(crate) stats: UdpStats,
}

impl Udp {
    pub(crate) fn new(key: Key, shard: Shard) -> Self {
        Self {
            sockets: Vec::new(),
            free: Vec::new(),
            by_port: BTreeMap::new(),
            events: VecDeque::new(),
            waiting: Vec::new(),
            rng: Rng::new(key),
            port_key: key.derive(1),
            shard,
            shared: Arc::default(),
            stats: UdpStats::default(),
        }
    }

    fn get(&mut self, id: UdpId) -> Option<&mut Socket> {
        self.sockets
            .get_mut(id.index as usize)
            .filter(|s| s.open && s.generation == id.generation)
    }

    /// Opens a socket on `local`; port 0 chooses one at random (RFC 6056 §3.3.1).
    pub(crate) fn bind(
        &mut self,
        ip: &IpLayer,
        local: Endpoint,
        options: &UdpBindOptions,
    ) -> Result<UdpId, SocketError> {
        let may_be = ip.is_ours(local.ip) || local.ip.is_multicast() || ip.is_broadcast(local.ip);
        if !local.ip.is_unspecified() && !may_be {
            return Err(SocketError::AddressNotAvailable);
        }
        if options.iface.is_some_and(|i| ip.iface(i).is_none()) {
            return Err(SocketError::NoInterface);
        }
        let port = match local.port {
            0 => self.free_port().ok_or(SocketError::PortsExhausted)?,
            p if !self.shard.has_udp(p) && !options.on_any_shard => {
                return Err(SocketError::AddressNotAvailable);
            }
            p => p,
        };
        let local = Endpoint { port, ..local };
        if self.is_taken(local, options) {
            return Err(SocketError::AddressInUse);
        }
        let socket = |generation| Socket {
            generation,
            open: true,
            local,
            remote: None,
            reuse: options.reuse,
            v6_only: options.v6_only,
            opts: UdpOpts {
                iface: options.iface,
                ..UdpOpts::default()
            },
            memberships: Vec::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            rcvbuf: UDP_RCVBUF_BYTES,
            error: None,
            events: Ready::NONE,
            event_queued: false,
            waits_for: None,
        };
        let index = match self.free.pop() {
            Some(i) => {
                self.sockets[i as usize] =
                    socket(self.sockets[i as usize].generation.wrapping_add(1));
                i
            }
            None => {
                self.sockets.push(socket(0));
                self.sockets.len() as u32 - 1
            }
        };
        self.by_port.entry(port).or_default().push(index);
        Ok(UdpId {
            index,
            generation: self.sockets[index as usize].generation,
        })
    }

    /// Whether a socket is in the way of one that is to be bound.
    pub(crate) fn is_taken(&self, local: Endpoint, options: &UdpBindOptions) -> bool {
        let new = UdpBinding::new(local, options);
        let mut there = self.bindings(local.port);
        there.any(|(_, other)| other.clashes(&new))
    }

    /// The sockets on a port, oldest first.
    pub(crate) fn bindings(&self, port: u16) -> impl Iterator<Item = (UdpId, UdpBinding)> {
        let list = self.by_port.get(&port).map_or(&[][..], Vec::as_slice);
        list.iter().map(|index| {
            let socket = &self.sockets[*index as usize];
            let id = UdpId {
                index: *index,
                generation: socket.generation,
            };
            (id, socket.binding())
        })
    }

    fn free_port(&mut self) -> Option<u16> {
        let n = u64::from(EPHEMERAL_PORTS.end() - EPHEMERAL_PORTS.start()) + 1;
        let start = self.rng.below(n);
        (0..n)
            .map(|i| EPHEMERAL_PORTS.start() + ((start + i) % n) as u16)
            .find(|p| {
                let elsewhere = self.shared.has(*p);
                self.shard.has_udp(*p) && !self.by_port.contains_key(p) && !elsewhere
            })
    }

    /// Fixes the peer: only its datagrams and its ICMP errors arrive. `None` dissolves.
    pub(crate) fn connect(
        &mut self,
        ip: &IpLayer,
        id: UdpId,
        remote: Option<Endpoint>,
    ) -> Result<(), SocketError> {
        let s = self.get(id).ok_or(SocketError::BadHandle)?;
        if let Some(r) = remote {
            if r.port == 0 {
                return Err(SocketError::InvalidAddress);
            }
            let source = ip.source_for(r.ip, s.opts.iface)?;
            if s.local.ip.is_unspecified() {
                s.local.ip = source;
            }
        }
        s.remote = remote;
        Ok(())
    }

    pub(crate) fn opts(&self, id: UdpId) -> Option<&UdpOpts> {
        let s = self.sockets.get(id.index as usize)?;
        (s.open && s.generation == id.generation).then_some(&s.opts)
    }

    pub(crate) fn set_opts(
        &mut self,
        ip: &IpLayer,
        id: UdpId,
        opts: UdpOpts,
    ) -> Result<(), SocketError> {
        let s = self.get(id).ok_or(SocketError::BadHandle)?;
        let mut named = [opts.iface, opts.multicast_iface].into_iter().flatten();
        if named.any(|i| ip.iface(i).is_none()) {
            return Err(SocketError::NoInterface);
        }
        s.opts = opts;
        Ok(())
    }

    pub(crate) fn addresses(&mut self, id: UdpId) -> Option<(Endpoint, Option<Endpoint>)> {
        self.get(id).map(|s| (s.local, s.remote))
    }

    pub(crate) fn set_rcvbuf(&mut self, id: UdpId, bytes: usize) {
        if let Some(s) = self.get(id) {
            s.rcvbuf = bytes.max(UDP_OVERHEAD_BYTES * 8);
        }
    }

    pub(crate) fn close(&mut self, ip: &mut IpLayer, id: UdpId) {
        let Some(s) = self.get(id) else { return };
        Self::leave_all(ip, core::mem::take(&mut s.memberships));
        s.open = false;
        s.queue = VecDeque::new();
        s.queued_bytes = 0;
        s.waits_for = None;
        let (port, queued) = (s.local.port, s.event_queued);
        if let Some(l) = self.by_port.get_mut(&port) {
            l.retain(|i| *i != id.index);
            if l.is_empty() {
                self.by_port.remove(&port);
            }
        }
        if !queued {
            self.free.push(id.index);
        }
    }

    /// Takes the oldest datagram.
    pub(crate) fn recv(&mut self, id: UdpId) -> Result<Datagram, RecvError> {
        let s = self.get(id).ok_or(RecvError::BadHandle)?;
        if let Some(cause) = s.error.take() {
            return Err(RecvError::Failed(cause));
        }
        let d = s.queue.pop_front().ok_or(RecvError::WouldBlock)?;
        s.queued_bytes -= d.data.len() + UDP_OVERHEAD_BYTES;
        Ok(d)
    }

    /// The oldest datagram, left in place (MSG_PEEK, FIONREAD).
    pub(crate) fn peek(&mut self, id: UdpId) -> Option<&Datagram> {
        self.get(id)?.queue.front()
    }

    pub(crate) fn take_error(&mut self, id: UdpId) -> Option<Cause> {
        self.get(id)?.error.take()
    }

    pub(crate) fn ready(&mut self, id: UdpId) -> Ready {
        let Some(s) = self.get(id) else {
            return Ready::NONE;
        };
        let mut r = if s.waits_for.is_none() {
            Ready::WRITABLE
        } else {
            Ready::NONE
        };
        if !s.queue.is_empty() || s.error.is_some() {
            r.insert(Ready::READABLE);
        }
        if s.error.is_some() {
            r.insert(Ready::ERROR);
        }
        r
    }

    /// An ICMP error about one of our datagrams; only connected sockets hear of it, as in Linux.
    pub(crate) fn icmp_error(&mut self, tuple: &FourTuple, cause: Cause) {
        if let Some(i) = self.lookup(tuple.local, tuple.remote, None) {
            let s = &mut self.sockets[i as usize];
            if s.remote.is_some() {
                s.error = Some(cause);
                self.notify(i, Ready::ERROR | Ready::READABLE);
            }
        }
    }

    /// An interface's transmit queue got shorter: whoever found it full may send once half of it is
    /// free.
    pub(crate) fn room_again(&mut self, ip: &IpLayer, iface: IfaceId) {
        if self.waiting.is_empty()
            || ip
                .iface(iface)
                .is_none_or(|i| i.control_room() < CONTROL_FRAMES_MAX / 2)
        {
            return;
        }
        for i in core::mem::take(&mut self.waiting) {
            let s = &mut self.sockets[i as usize];
            if s.waits_for == Some(iface) {
                s.waits_for = None;
                self.notify(i, Ready::WRITABLE);
            } else if s.waits_for.is_some() {
                self.waiting.push(i);
            }
        }
    }

    fn notify(&mut self, i: u32, ready: Ready) {
        let s = &mut self.sockets[i as usize];
        s.events.insert(ready);
        if !s.event_queued {
            s.event_queued = true;
            self.events.push_back(i);
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<(UdpId, Ready)> {
        while let Some(i) = self.events.pop_front() {
            let s = &mut self.sockets[i as usize];
            s.event_queued = false;
            if !s.open {
                self.free.push(i);
                continue;
            }
            let ready = core::mem::replace(&mut s.events, Ready::NONE);
            return Some((
                UdpId {
                    index: i,
                    generation: s.generation,
                },
                ready,
            ));
        }
        None
    }
}
