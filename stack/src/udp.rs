//! UDP sockets (RFC 768): bind, connect, send, receive, errors from ICMP. Queues are bounded by
//! bytes; what does not fit is dropped and counted, as UDP promises.

use std::collections::{BTreeMap, VecDeque};

use smoltcp::wire::{IpProtocol, UdpPacket};

use crate::addr::{Endpoint, FourTuple, Ip};
use crate::error::{Cause, RecvError, SendError, SocketError};
use crate::events::Ready;
use crate::iface::{Iface, IpMeta};
use crate::limits::{EPHEMERAL_PORTS, UDP_OVERHEAD_BYTES, UDP_RCVBUF_BYTES};
use crate::secret::{Key, Rng};
use crate::stack::{Datagram, UdpId};
use crate::time::Instant;

const HEADER: usize = 8;
const CHECKSUM_AT: usize = 6;

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
    queue: VecDeque<Datagram>,
    queued_bytes: usize,
    rcvbuf: usize,
    error: Option<Cause>,
    events: Ready,
    event_queued: bool,
}

/// All UDP sockets.
#[derive(Debug)]
pub(crate) struct Udp {
    sockets: Vec<Socket>,
    free: Vec<u32>,
    /// By port; the sockets on it, few.
    by_port: BTreeMap<u16, Vec<u32>>,
    events: VecDeque<u32>,
    rng: Rng,
    pub(crate) stats: UdpStats,
}

impl Udp {
    pub(crate) fn new(key: Key) -> Self {
        Self {
            sockets: Vec::new(),
            free: Vec::new(),
            by_port: BTreeMap::new(),
            events: VecDeque::new(),
            rng: Rng::new(key),
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
        iface: &Iface,
        local: Endpoint,
        reuse: bool,
    ) -> Result<UdpId, SocketError> {
        if !local.ip.is_unspecified() && !iface.is_ours(local.ip) && !local.ip.is_multicast() {
            return Err(SocketError::AddressNotAvailable);
        }
        let port = match local.port {
            0 => self.free_port().ok_or(SocketError::PortsExhausted)?,
            p => p,
        };
        let clash = |s: &Socket| {
            s.local.ip == local.ip || s.local.ip.is_unspecified() || local.ip.is_unspecified()
        };
        let taken = self.by_port.get(&port);
        if !reuse && taken.is_some_and(|l| l.iter().any(|i| clash(&self.sockets[*i as usize]))) {
            return Err(SocketError::AddressInUse);
        }
        let socket = |generation| Socket {
            generation,
            open: true,
            local: Endpoint { ip: local.ip, port },
            remote: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            rcvbuf: UDP_RCVBUF_BYTES,
            error: None,
            events: Ready::NONE,
            event_queued: false,
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

    fn free_port(&mut self) -> Option<u16> {
        let n = u64::from(EPHEMERAL_PORTS.end() - EPHEMERAL_PORTS.start()) + 1;
        let start = self.rng.below(n);
        (0..n)
            .map(|i| EPHEMERAL_PORTS.start() + ((start + i) % n) as u16)
            .find(|p| !self.by_port.contains_key(p))
    }

    /// Fixes the peer: only its datagrams and its ICMP errors arrive. `None` dissolves.
    pub(crate) fn connect(
        &mut self,
        iface: &Iface,
        id: UdpId,
        remote: Option<Endpoint>,
    ) -> Result<(), SocketError> {
        let s = self.get(id).ok_or(SocketError::BadHandle)?;
        if let Some(r) = remote {
            if r.port == 0 {
                return Err(SocketError::InvalidAddress);
            }
            let source = iface.source_for(r.ip)?;
            if s.local.ip.is_unspecified() {
                s.local.ip = source;
            }
        }
        s.remote = remote;
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

    pub(crate) fn close(&mut self, id: UdpId) {
        let Some(s) = self.get(id) else { return };
        s.open = false;
        s.queue = VecDeque::new();
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

    pub(crate) fn send(
        &mut self,
        iface: &mut Iface,
        id: UdpId,
        to: Option<Endpoint>,
        parts: &[&[u8]],
        now: Instant,
    ) -> Result<usize, SendError> {
        let s = self.get(id).ok_or(SendError::BadHandle)?;
        if let Some(cause) = s.error.take() {
            return Err(SendError::Failed(cause));
        }
        let to = to.or(s.remote).ok_or(SendError::NoDestination)?;
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let local = s.local;
        let src = if local.ip.is_unspecified() {
            iface
                .source_for(to.ip)
                .map_err(|_| SendError::Failed(Cause::NetUnreachable))?
        } else {
            local.ip
        };
        let meta = IpMeta::new(src, to.ip, IpProtocol::Udp);
        // Without fragmentation on output, a datagram is what one packet carries.
        if meta.header_len() + HEADER + len > usize::from(iface.path_mtu(to.ip, now)) {
            return Err(SendError::TooBig);
        }
        if iface.control_is_full() {
            return Err(SendError::WouldBlock);
        }
        iface.send(now, &meta, HEADER + len, Some(CHECKSUM_AT), |out| {
            let mut p = UdpPacket::new_unchecked(&mut *out);
            p.set_src_port(local.port);
            p.set_dst_port(to.port);
            p.set_len((HEADER + len) as u16);
            p.set_checksum(0);
            let mut at = HEADER;
            for part in parts {
                out[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
        });
        self.stats.datagrams_out += 1;
        Ok(len)
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
        let mut r = Ready::WRITABLE;
        if !s.queue.is_empty() || s.error.is_some() {
            r.insert(Ready::READABLE);
        }
        if s.error.is_some() {
            r.insert(Ready::ERROR);
        }
        r
    }

    /// The socket for a flow: connected beats bound to an address beats wildcard.
    fn lookup(&self, local: Endpoint, remote: Endpoint) -> Option<u32> {
        let score = |i: &u32| {
            let s = &self.sockets[*i as usize];
            let wild = s.local.ip.is_unspecified()
                && (s.local.ip.is_v4() == local.ip.is_v4() || s.local.ip == Ip::UNSPECIFIED_V6);
            let addr = match (s.local.ip == local.ip, wild) {
                (true, _) => 1,
                (_, true) => 0,
                _ => return None,
            };
            match s.remote {
                Some(r) if r == remote => Some(addr + 2),
                Some(_) => None,
                None => Some(addr),
            }
        };
        let list = self.by_port.get(&local.port)?;
        list.iter()
            .filter_map(|i| score(i).map(|n| (n, *i)))
            .max()
            .map(|(_, i)| i)
    }

    /// A UDP packet for us, `checksum_ok` if a device vouches for it. False: no socket, tell the
    /// sender.
    pub(crate) fn packet_arrives(
        &mut self,
        src: Ip,
        dst: Ip,
        bytes: &[u8],
        checksum_ok: bool,
    ) -> bool {
        let Ok(p) = UdpPacket::new_checked(bytes) else {
            self.stats.errors_in += 1;
            return true;
        };
        let len = usize::from(p.len());
        let missing_allowed = p.checksum() == 0 && src.is_v4();
        if !checksum_ok && !missing_allowed {
            let sum = crate::checksum::Sum::default().pseudo(src, dst, IpProtocol::Udp.into(), len);
            if !sum.bytes(&bytes[..len]).is_valid() {
                self.stats.errors_in += 1;
                return true;
            }
        }
        let local = Endpoint {
            ip: dst,
            port: p.dst_port(),
        };
        let remote = Endpoint {
            ip: src,
            port: p.src_port(),
        };
        let Some(i) = self.lookup(local, remote) else {
            self.stats.no_ports += 1;
            return false;
        };
        let s = &mut self.sockets[i as usize];
        let cost = len - HEADER + UDP_OVERHEAD_BYTES;
        if s.queued_bytes + cost > s.rcvbuf {
            self.stats.rcvbuf_errors += 1;
            return true;
        }
        s.queued_bytes += cost;
        s.queue.push_back(Datagram {
            from: remote.to_std(),
            to: local.to_std(),
            data: bytes[HEADER..len].into(),
        });
        self.stats.datagrams_in += 1;
        self.notify(i, Ready::READABLE);
        true
    }

    /// An ICMP error about one of our datagrams; only connected sockets hear of it, as in Linux.
    pub(crate) fn icmp_error(&mut self, tuple: &FourTuple, cause: Cause) {
        if let Some(i) = self.lookup(tuple.local, tuple.remote) {
            let s = &mut self.sockets[i as usize];
            if s.remote.is_some() {
                s.error = Some(cause);
                self.notify(i, Ready::ERROR | Ready::READABLE);
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
