//! `Stack`: the one public state machine. Joins interface, ICMP, UDP and TCP; no algorithm of its
//! own.

use core::net::{IpAddr, SocketAddr};

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet,
};

use crate::addr::{Endpoint, Ip};
use crate::checksum::Sum;
use crate::error::{Cause, RecvError, SendError, SocketError};
use crate::events::{Event, Ready};
use crate::icmp::{self, Report, ReportKind};
use crate::iface::{ETHERNET, Iface};
use crate::limits;
use crate::rate::RateLimit;
use crate::secret::Key;
use crate::tcp::{
    ConnectOptions, Engine, ListenOptions, SockFlag, SockOpts, State, TcpInfo, TcpStats,
};
use crate::time::Instant;
use crate::udp::{Udp, UdpStats};

/// Which checksums the device takes care of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksums {
    /// The device finishes TCP and UDP checksums: frames carry the pseudo header's sum and
    /// [`Transmit::checksum`] says where.
    pub tx_offload: bool,
    /// Every received frame's transport checksum is already verified.
    pub rx_verified: bool,
}

/// Explicit congestion notification (tcp_ecn).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EcnMode {
    /// Never.
    Off,
    /// When the peer asks for it; Linux's default.
    #[default]
    Passive,
    /// Also asked for on connect.
    Active,
}

/// TCP's system-wide settings; defaults are Linux's.
#[derive(Debug, Clone)]
pub struct TcpConfig {
    /// tcp_timestamps.
    pub timestamps: bool,
    /// tcp_sack.
    pub sack: bool,
    /// tcp_window_scaling.
    pub window_scaling: bool,
    /// Shift of our windows when scaling is negotiated, at most 14.
    pub rcv_wscale: u8,
    /// tcp_ecn.
    pub ecn: EcnMode,
    /// tcp_syncookies.
    pub syn_cookies: bool,
    /// Initial receive buffer in bytes (tcp_rmem\[1\]).
    pub rcvbuf: u32,
    /// Bytes in stream buffers over all connections (tcp_mem).
    pub stream_bytes_max: usize,
    /// Connections the demultiplexing table is sized for at start; it grows beyond.
    pub expected_connections: usize,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            timestamps: true,
            sack: true,
            window_scaling: true,
            rcv_wscale: 7,
            ecn: EcnMode::Passive,
            syn_cookies: true,
            rcvbuf: limits::RCVBUF_BYTES,
            stream_bytes_max: limits::STREAM_BYTES_MAX,
            expected_connections: 0,
        }
    }
}

/// What a stack is made with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our Ethernet address.
    pub mac: [u8; 6],
    /// Largest IP packet the link carries, in bytes.
    pub mtu: u16,
    /// Secret from which everything unpredictable derives.
    pub key: Key,
    /// Checksum offload of the device.
    pub checksums: Checksums,
    /// Largest TCP payload the device segments by itself (TSO), in bytes; 0 without.
    pub tso_bytes: u32,
    /// TCP settings.
    pub tcp: TcpConfig,
}

impl Config {
    /// Defaults for an Ethernet link of MTU 1500 without offloads.
    pub fn new(mac: [u8; 6], key: Key) -> Self {
        Self {
            mac,
            mtu: 1500,
            key,
            checksums: Checksums::default(),
            tso_bytes: 0,
            tcp: TcpConfig::default(),
        }
    }
}

/// Names a TCP connection. Stale handles are recognised and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Names a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Names a UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UdpId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl TcpId {
    /// Dense index of the slot, for tables beside the stack; reused after close.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// A received datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Sender.
    pub from: SocketAddr,
    /// The address of ours it was sent to (IP_PKTINFO).
    pub to: SocketAddr,
    /// Payload.
    pub data: Box<[u8]>,
}

/// Where a device has to finish a checksum, as virtio's `csum_start` and `csum_offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte covered, from the start of the frame.
    pub start: u16,
    /// Where the result goes, from `start`.
    pub offset: u16,
}

/// A frame for a device to segment, as virtio's `gso_size` and `hdr_len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// Payload bytes of each segment.
    pub segment_bytes: u16,
    /// Bytes of headers in front.
    pub header_bytes: u16,
    /// TCPv6 rather than TCPv4.
    pub ipv6: bool,
}

/// A frame written by [`Stack::poll_transmit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Its length in bytes.
    pub len: usize,
    /// Set if the device has to finish the checksum.
    pub checksum: Option<PartialChecksum>,
    /// Set if the device has to segment it.
    pub gso: Option<Gso>,
}

/// What a device knows about a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// The transport checksum was verified, or never computed because the frame did not leave the
    /// machine.
    pub checksum_ok: bool,
}

/// Counters of frames, by fate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// Frames handed in.
    pub frames_in: u64,
    /// Frames written out.
    pub frames_out: u64,
    /// Not for our Ethernet or IP address.
    pub not_ours: u64,
    /// Truncated, inconsistent or of an unknown protocol.
    pub malformed: u64,
    /// Wrong IP or transport checksum.
    pub bad_checksum: u64,
    /// Source address no host may use.
    pub bad_source: u64,
    /// Fragments; see the crate's list of what is not done.
    pub fragments: u64,
    /// Control frames dropped for a full queue or want of a route.
    pub control_drops: u64,
}

/// A TCP/IP stack for one interface.
///
/// Order of calls in a loop: [`handle_frame`](Self::handle_frame) for each received frame,
/// [`handle_timeout`](Self::handle_timeout) if the deadline passed, [`poll_event`](Self::poll_event)
/// until `None`, socket calls, [`poll_transmit`](Self::poll_transmit) until `None` or the device is
/// full, then sleep until [`next_deadline`](Self::next_deadline), which every one of these calls may
/// change. `now` must not go backwards.
#[derive(Debug)]
pub struct Stack {
    iface: Iface,
    tcp: Engine,
    udp: Udp,
    icmp_budget: RateLimit,
    stats: LinkStats,
    tso_bytes: u32,
}

impl Stack {
    /// A stack without addresses.
    pub fn new(config: &Config, now: Instant) -> Self {
        Self {
            iface: Iface::new(config),
            tcp: Engine::new(
                &config.tcp,
                config.key.derive(100),
                config.mtu,
                config.tso_bytes,
                now,
            ),
            udp: Udp::new(config.key.derive(101)),
            icmp_budget: RateLimit::new(limits::ICMP_ERRORS_PER_SEC),
            stats: LinkStats::default(),
            tso_bytes: config.tso_bytes,
        }
    }

    /// Adds a local address and the on-link route of its prefix.
    ///
    /// # Errors
    /// `InvalidAddress` for addresses no host may use, `LimitReached`.
    pub fn add_address(&mut self, ip: IpAddr, prefix_len: u8) -> Result<(), SocketError> {
        self.iface.add_address(ip.into(), prefix_len)
    }

    /// Adds or replaces a route; `via` is a router, or `None` for an on-link prefix.
    ///
    /// # Errors
    /// `LimitReached`.
    pub fn add_route(
        &mut self,
        net: IpAddr,
        prefix_len: u8,
        via: Option<IpAddr>,
    ) -> Result<(), SocketError> {
        self.iface
            .routes
            .add(net.into(), prefix_len, via.map(Ip::from))
    }

    /// Enters a neighbour's Ethernet address, as if it had announced itself.
    pub fn add_neighbor(&mut self, ip: IpAddr, mac: [u8; 6], now: Instant) {
        self.iface.learn(ip.into(), EthernetAddress(mac), true, now);
    }

    /// Whether `ip` is one of our addresses.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        self.iface.is_ours(ip.into())
    }

    /// The address a socket would use towards `remote`.
    ///
    /// # Errors
    /// `NoRoute`, `AddressNotAvailable`.
    pub fn source_for(&self, remote: IpAddr) -> Result<IpAddr, SocketError> {
        self.iface.source_for(remote.into()).map(Ip::to_std)
    }

    // ---- input ----

    /// Processes one received Ethernet frame. Anything wrong with it is counted and dropped.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8], received: Received) {
        self.stats.frames_in += 1;
        let Ok(eth) = EthernetFrame::new_checked(frame) else {
            self.stats.malformed += 1;
            return;
        };
        let dst = eth.dst_addr();
        if dst != self.iface.mac && !dst.is_multicast() {
            self.stats.not_ours += 1;
            return;
        }
        match eth.ethertype() {
            EthernetProtocol::Ipv4 => self.ipv4(now, &frame[ETHERNET..], received),
            EthernetProtocol::Ipv6 => self.ipv6(now, &frame[ETHERNET..], received),
            EthernetProtocol::Arp => {
                if !self.iface.arp_arrives(&frame[ETHERNET..], now) {
                    self.stats.malformed += 1;
                }
            }
            EthernetProtocol::Unknown(_) => self.stats.malformed += 1,
        }
    }

    /// As [`handle_frame`](Self::handle_frame) for a batch in order. With many connections this is
    /// several times cheaper: the records of a batch are brought into the cache together.
    pub fn handle_frames<'a, I>(&mut self, now: Instant, frames: I)
    where
        I: Iterator<Item = (&'a [u8], Received)> + Clone,
    {
        let mut rest = frames;
        loop {
            let mut tags = [0; WARM_FRAMES];
            let mut known = 0;
            let mut taken = 0;
            for (frame, _) in rest.clone().take(WARM_FRAMES) {
                taken += 1;
                if let Some((src, dst, ports)) = tcp_flow(frame) {
                    tags[known] = self.tcp.tag_of(src, dst, ports[0], ports[1]);
                    known += 1;
                }
            }
            if taken == 0 {
                return;
            }
            self.tcp.warm(&tags[..known]);
            for (frame, received) in rest.by_ref().take(taken) {
                self.handle_frame(now, frame, received);
            }
        }
    }

    /// Runs what is due at `now`. A bounded amount per call; the deadline says if more is left.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tcp.timers_expire(&mut self.iface, now);
        for frame in self.iface.run_neighbors(now) {
            self.undeliverable(&frame, now);
        }
    }

    /// No later than the time `handle_timeout` has something to do; `None` if never.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let at = self
            .tcp
            .next_deadline()
            .min(self.iface.neighbors.next_deadline());
        (at != Instant::FAR_FUTURE).then_some(at)
    }

    // ---- output ----

    /// Bytes [`poll_transmit`](Self::poll_transmit) needs room for.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        ETHERNET + usize::from(self.iface.mtu).max(self.tso_bytes as usize + 100)
    }

    /// Writes the next frame to send into `out`, which must hold
    /// [`frame_bytes_max`](Self::frame_bytes_max) bytes; `None` when there is none.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        loop {
            while let Some(frame) = self.iface.take_looped() {
                self.handle_frame(now, &frame, Received { checksum_ok: true });
            }
            if self.iface.neighbors.has_work() {
                for frame in self.iface.run_neighbors(now) {
                    self.undeliverable(&frame, now);
                }
            }
            let sent = self
                .iface
                .poll_control(out)
                .or_else(|| self.tcp.poll_transmit(&mut self.iface, out, now));
            if sent.is_some() {
                self.stats.frames_out += 1;
                return sent;
            }
            if !self.iface.has_output() && !self.iface.neighbors.has_work() {
                return None;
            }
        }
    }

    /// Whether `poll_transmit` may have something.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.tcp.has_output() || self.iface.has_output() || self.iface.neighbors.has_work()
    }

    /// The next readiness change; `None` when all are collected.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.tcp
            .poll_event()
            .or_else(|| self.udp.poll_event().map(|(id, r)| Event::Udp(id, r)))
    }

    // ---- TCP ----

    /// Starts a connection; CONNECTED and WRITABLE, or ERROR, follow as an event.
    ///
    /// # Errors
    /// `InvalidAddress`, `AddressNotAvailable`, `AddressInUse`, `PortsExhausted`, `NoRoute`.
    pub fn tcp_connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        options: &ConnectOptions,
    ) -> Result<TcpId, SocketError> {
        self.tcp
            .connect(&mut self.iface, remote.into(), options, now)
    }

    /// Listens on an address; port 0 chooses one.
    ///
    /// # Errors
    /// `AddressNotAvailable`, `AddressInUse`, `PortsExhausted`.
    pub fn tcp_listen(
        &mut self,
        local: SocketAddr,
        options: &ListenOptions,
    ) -> Result<ListenerId, SocketError> {
        self.tcp.listen(&self.iface, local.into(), options)
    }

    /// Takes the oldest established connection of a listener.
    pub fn tcp_accept(&mut self, id: ListenerId) -> Option<TcpId> {
        self.tcp.accept(id)
    }

    /// Connections waiting to be accepted; `None` for a stale handle.
    pub fn tcp_accept_queue_len(&mut self, id: ListenerId) -> Option<usize> {
        self.tcp.accept_queue_len(id)
    }

    /// The port a listener holds.
    pub fn tcp_listener_port(&mut self, id: ListenerId) -> Option<u16> {
        self.tcp.listener_port(id)
    }

    /// Stops listening; connections not accepted are reset.
    pub fn tcp_unlisten(&mut self, now: Instant, id: ListenerId) {
        self.tcp.unlisten(id, now);
    }

    /// Queues bytes of a scatter list; returns how many were taken. `more` (MSG_MORE) holds back a
    /// partial segment.
    ///
    /// # Errors
    /// `WouldBlock` (WRITABLE follows), `Closed`, `Failed` once per latched error, `BadHandle`.
    pub fn tcp_send(
        &mut self,
        now: Instant,
        id: TcpId,
        parts: &[&[u8]],
        more: bool,
    ) -> Result<usize, SendError> {
        self.tcp.send(id, parts, more, now)
    }

    /// As `tcp_send`; the last byte becomes the urgent byte (MSG_OOB).
    ///
    /// # Errors
    /// As `tcp_send`.
    pub fn tcp_send_urgent(
        &mut self,
        now: Instant,
        id: TcpId,
        data: &[u8],
    ) -> Result<usize, SendError> {
        self.tcp.send_urgent(id, data, now)
    }

    /// Copies received bytes out; `Ok(0)` is end of stream.
    ///
    /// # Errors
    /// `WouldBlock` (READABLE follows), `NotConnected`, `Failed` once per latched error,
    /// `BadHandle`.
    pub fn tcp_recv(
        &mut self,
        now: Instant,
        id: TcpId,
        out: &mut [u8],
    ) -> Result<usize, RecvError> {
        self.tcp.recv(id, out, false, now)
    }

    /// As `tcp_recv`, leaving the bytes queued (MSG_PEEK).
    ///
    /// # Errors
    /// As `tcp_recv`.
    pub fn tcp_peek(
        &mut self,
        now: Instant,
        id: TcpId,
        out: &mut [u8],
    ) -> Result<usize, RecvError> {
        self.tcp.recv(id, out, true, now)
    }

    /// As `tcp_recv`, or `tcp_peek`, of at most `room` bytes, which are lent in place: `take` gets them
    /// as contiguous pieces, perhaps with more behind, and how many it is to take. When it fails they
    /// stay queued, and its error is the inner one.
    ///
    /// # Errors
    /// As `tcp_recv`.
    pub fn tcp_recv_with<E>(
        &mut self,
        now: Instant,
        id: TcpId,
        room: usize,
        peek: bool,
        take: impl FnOnce(&mut dyn Iterator<Item = &[u8]>, usize) -> Result<(), E>,
    ) -> Result<Result<usize, E>, RecvError> {
        self.tcp.recv_with(id, room, peek, now, take)
    }

    /// Whether no more bytes can be queued before some are read: the buffer is full, or an urgent mark
    /// ends what one read returns.
    pub fn tcp_at_limit(&self, id: TcpId) -> bool {
        self.tcp.at_limit(id)
    }

    /// The readable bytes in place, as contiguous pieces; nothing for a stale handle. Take them
    /// with [`tcp_consume`](Self::tcp_consume).
    pub fn tcp_peek_slices(&self, id: TcpId) -> impl Iterator<Item = &[u8]> {
        self.tcp.peek_slices(id)
    }

    /// Drops `n` readable bytes and opens the window accordingly.
    pub fn tcp_consume(&mut self, now: Instant, id: TcpId, n: usize) {
        self.tcp.consume(id, n, now);
    }

    /// The urgent byte (MSG_OOB).
    ///
    /// # Errors
    /// `NoUrgent`, `WouldBlock` if announced but not here, `BadHandle`.
    pub fn tcp_recv_urgent(
        &mut self,
        now: Instant,
        id: TcpId,
        peek: bool,
    ) -> Result<u8, RecvError> {
        self.tcp.recv_urgent(id, peek, now)
    }

    /// SIOCATMARK.
    pub fn tcp_at_mark(&self, id: TcpId) -> bool {
        self.tcp.at_mark(id)
    }

    /// shutdown(2).
    ///
    /// # Errors
    /// `BadHandle`; `InvalidState` if not connected.
    pub fn tcp_shutdown(
        &mut self,
        now: Instant,
        id: TcpId,
        read: bool,
        write: bool,
    ) -> Result<(), SocketError> {
        self.tcp.shutdown(id, read, write, now)
    }

    /// Gives the handle up. Queued data and FIN are still delivered; unread data makes it a reset.
    pub fn tcp_close(&mut self, now: Instant, id: TcpId) {
        self.tcp.close(id, now);
    }

    /// Gives the handle up and resets the connection (SO_LINGER with zero).
    pub fn tcp_abort(&mut self, now: Instant, id: TcpId) {
        self.tcp.abort(id, now);
    }

    /// SO_ERROR: the latched error, cleared by reading.
    pub fn tcp_take_error(&mut self, id: TcpId) -> Option<Cause> {
        self.tcp.take_error(id)
    }

    /// State of the connection; `None` for a stale handle.
    pub fn tcp_state(&self, id: TcpId) -> Option<State> {
        self.tcp.state(id)
    }

    /// Local and remote address.
    pub fn tcp_addresses(&self, id: TcpId) -> Option<(SocketAddr, SocketAddr)> {
        self.tcp
            .addresses(id)
            .map(|(l, r)| (l.to_std(), r.to_std()))
    }

    /// Levels of all readiness bits, whatever events were collected.
    pub fn tcp_ready(&mut self, id: TcpId) -> Ready {
        self.tcp.ready(id)
    }

    /// The connection is ESTABLISHED or CLOSE-WAIT: the state allows sending.
    pub fn tcp_may_send(&self, id: TcpId) -> bool {
        self.tcp.state(id).is_some_and(State::may_send)
    }

    /// The state allows sending and there is room.
    pub fn tcp_can_send(&mut self, id: TcpId) -> bool {
        self.tcp_may_send(id) && self.tcp.ready(id).contains(Ready::WRITABLE)
    }

    /// ESTABLISHED, FIN-WAIT-1 or FIN-WAIT-2, or bytes are queued: more may be read.
    pub fn tcp_may_recv(&self, id: TcpId) -> bool {
        self.tcp.state(id).is_some_and(State::may_recv) || self.tcp_can_recv(id)
    }

    /// Bytes are queued.
    pub fn tcp_can_recv(&self, id: TcpId) -> bool {
        self.tcp.queues(id).is_some_and(|(rx, _, _)| rx > 0)
    }

    /// Bytes to read (FIONREAD), not yet acknowledged (SIOCOUTQ), not yet sent (SIOCOUTQNSD).
    pub fn tcp_queues(&self, id: TcpId) -> Option<(usize, usize, usize)> {
        self.tcp.queues(id)
    }

    /// Sets an on/off option.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn tcp_set_flag(
        &mut self,
        now: Instant,
        id: TcpId,
        flag: SockFlag,
        on: bool,
    ) -> Result<(), SocketError> {
        self.tcp.set_flag(id, flag, on, now)
    }

    /// Reads an on/off option.
    pub fn tcp_flag(&self, id: TcpId, flag: SockFlag) -> Option<bool> {
        self.tcp.flag(id, flag)
    }

    /// The valued options in force.
    pub fn tcp_opts(&self, id: TcpId) -> Option<&SockOpts> {
        self.tcp.opts(id)
    }

    /// Replaces the valued options.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn tcp_set_opts(
        &mut self,
        now: Instant,
        id: TcpId,
        opts: SockOpts,
    ) -> Result<(), SocketError> {
        self.tcp.set_opts(id, opts, now)
    }

    /// TCP_INFO.
    pub fn tcp_info(&self, now: Instant, id: TcpId) -> Option<TcpInfo> {
        self.tcp.info(id, now)
    }

    // ---- UDP ----

    /// Opens a UDP socket; port 0 chooses one. `reuse`: SO_REUSEADDR or SO_REUSEPORT.
    ///
    /// # Errors
    /// `AddressNotAvailable`, `AddressInUse`, `PortsExhausted`.
    pub fn udp_bind(&mut self, local: SocketAddr, reuse: bool) -> Result<UdpId, SocketError> {
        self.udp.bind(&self.iface, local.into(), reuse)
    }

    /// Fixes or (with `None`) dissolves the peer.
    ///
    /// # Errors
    /// `BadHandle`, `InvalidAddress`, `NoRoute`.
    pub fn udp_connect(
        &mut self,
        id: UdpId,
        remote: Option<SocketAddr>,
    ) -> Result<(), SocketError> {
        self.udp
            .connect(&self.iface, id, remote.map(Endpoint::from))
    }

    /// Sends one datagram from a scatter list.
    ///
    /// # Errors
    /// `NoDestination`, `TooBig` beyond the path MTU, `WouldBlock` while the transmit queue is full,
    /// `Failed`, `BadHandle`.
    pub fn udp_send(
        &mut self,
        now: Instant,
        id: UdpId,
        to: Option<SocketAddr>,
        parts: &[&[u8]],
    ) -> Result<usize, SendError> {
        self.udp
            .send(&mut self.iface, id, to.map(Endpoint::from), parts, now)
    }

    /// Takes the oldest datagram.
    ///
    /// # Errors
    /// `WouldBlock`, `Failed` once per ICMP error, `BadHandle`.
    pub fn udp_recv(&mut self, id: UdpId) -> Result<Datagram, RecvError> {
        self.udp.recv(id)
    }

    /// The oldest datagram, left queued.
    pub fn udp_peek(&mut self, id: UdpId) -> Option<&Datagram> {
        self.udp.peek(id)
    }

    /// SO_ERROR.
    pub fn udp_take_error(&mut self, id: UdpId) -> Option<Cause> {
        self.udp.take_error(id)
    }

    /// Levels of READABLE, WRITABLE and ERROR.
    pub fn udp_ready(&mut self, id: UdpId) -> Ready {
        self.udp.ready(id)
    }

    /// Local address, and the peer if connected.
    pub fn udp_addresses(&mut self, id: UdpId) -> Option<(SocketAddr, Option<SocketAddr>)> {
        self.udp
            .addresses(id)
            .map(|(l, r)| (l.to_std(), r.map(Endpoint::to_std)))
    }

    /// SO_RCVBUF in bytes.
    pub fn udp_set_rcvbuf(&mut self, id: UdpId, bytes: usize) {
        self.udp.set_rcvbuf(id, bytes);
    }

    /// Closes a UDP socket.
    pub fn udp_close(&mut self, id: UdpId) {
        self.udp.close(id);
    }

    // ---- numbers ----

    /// Counters of TCP.
    pub fn tcp_stats(&self) -> &TcpStats {
        &self.tcp.env.stats
    }

    /// Counters of UDP.
    pub fn udp_stats(&self) -> &UdpStats {
        &self.udp.stats
    }

    /// Counters of frames.
    pub fn link_stats(&self) -> LinkStats {
        LinkStats {
            control_drops: self.iface.control_drops,
            ..self.stats.clone()
        }
    }

    /// Connections, embryonic connections and TIME-WAIT records.
    pub fn flow_count(&self) -> usize {
        self.tcp.flow_count()
    }

    /// Bytes held in stream buffers.
    pub fn stream_bytes(&self) -> usize {
        self.tcp.env.pool.used_bytes()
    }

    /// Panics if an internal relation does not hold. For simulations, after each event.
    pub fn check_invariants(&self) {
        self.tcp.check_invariants();
    }

    // ---- IP input ----

    fn ipv4(&mut self, now: Instant, bytes: &[u8], received: Received) {
        let Ok(p) = Ipv4Packet::new_checked(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let header = usize::from(p.header_len());
        if p.version() != 4 || !Sum::default().bytes(&bytes[..header]).is_valid() {
            self.stats.bad_checksum += 1;
            return;
        }
        let packet = &bytes[..usize::from(p.total_len())];
        let (src, dst) = (Ip::v4(p.src_addr()), Ip::v4(p.dst_addr()));
        if p.more_frags() || p.frag_offset() != 0 {
            self.stats.fragments += 1;
            return;
        }
        let ours = self.iface.is_ours(dst);
        if !ours && !self.iface.is_broadcast(dst) {
            self.stats.not_ours += 1;
            return;
        }
        if !src.is_valid_source() || self.iface.is_broadcast(src) {
            self.stats.bad_source += 1;
            return;
        }
        let transport = &packet[header..];
        if p.next_header() == IpProtocol::Icmp {
            if let Some(report) = icmp::v4_arrives(&mut self.iface, src, dst, transport, now) {
                self.icmp_report(&report, now);
            }
            return;
        }
        self.transport(
            now,
            src,
            dst,
            p.next_header(),
            transport,
            packet,
            p.ecn() == 3,
            received,
        );
    }

    fn ipv6(&mut self, now: Instant, bytes: &[u8], received: Received) {
        let Ok(p) = Ipv6Packet::new_checked(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        if p.version() != 6 {
            self.stats.malformed += 1;
            return;
        }
        let packet = &bytes[..p.total_len()];
        let (src, dst) = (Ip::v6(p.src_addr()), Ip::v6(p.dst_addr()));
        if !self.iface.is_ours(dst) && !self.iface.is_our_multicast(dst) {
            self.stats.not_ours += 1;
            return;
        }
        // Duplicate address detection solicits from the unspecified address.
        let unspecified_icmp = src.is_unspecified() && p.next_header() == IpProtocol::Icmpv6;
        // A v4-mapped source would pass for an IPv4 peer in the compact form.
        if !src.is_valid_source() && !unspecified_icmp || src.is_v4() {
            self.stats.bad_source += 1;
            return;
        }
        let Some((protocol, transport)) = skip_extensions(p.next_header(), &packet[40..]) else {
            self.stats.fragments += 1;
            return;
        };
        if protocol == IpProtocol::Icmpv6 {
            let report = icmp::v6_arrives(&mut self.iface, src, dst, p.hop_limit(), transport, now);
            if let Some(report) = report {
                self.icmp_report(&report, now);
            }
            return;
        }
        let ce = p.traffic_class() & 3 == 3;
        self.transport(now, src, dst, protocol, transport, packet, ce, received);
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one parsed packet")]
    fn transport(
        &mut self,
        now: Instant,
        src: Ip,
        dst: Ip,
        protocol: IpProtocol,
        transport: &[u8],
        packet: &[u8],
        ce: bool,
        received: Received,
    ) {
        let checksum_ok = received.checksum_ok || self.iface.checksums.rx_verified;
        match protocol {
            IpProtocol::Tcp => {
                if !self.iface.is_ours(dst) {
                    // RFC 9293 §3.9.2.3: TCP ignores broadcast and multicast.
                    self.stats.not_ours += 1;
                    return;
                }
                let sum = || {
                    let p = IpProtocol::Tcp.into();
                    Sum::default()
                        .pseudo(src, dst, p, transport.len())
                        .bytes(transport)
                        .is_valid()
                };
                if !checksum_ok && !sum() {
                    self.stats.bad_checksum += 1;
                    return;
                }
                self.tcp
                    .packet_arrives(&mut self.iface, src, dst, transport, ce, now);
            }
            IpProtocol::Udp => {
                let found = self.udp.packet_arrives(src, dst, transport, checksum_ok);
                if !found && self.iface.is_ours(dst) && self.icmp_budget.take(now) {
                    icmp::port_unreachable(&mut self.iface, src, dst, packet, now);
                }
            }
            _ => self.stats.malformed += 1,
        }
    }

    fn icmp_report(&mut self, r: &Report, now: Instant) {
        match (r.kind, r.protocol) {
            (ReportKind::PacketTooBig { mtu }, IpProtocol::Tcp) => {
                let dst = r.tuple.remote.ip;
                let floor = if dst.is_v4() {
                    limits::PMTU_MIN_V4
                } else {
                    limits::PMTU_MIN_V6
                };
                // The connection vouches for the quote before the path cache believes it.
                if self
                    .tcp
                    .path_mtu_shrank(&r.tuple, r.seq, mtu.max(floor), now)
                {
                    self.iface.learn_pmtu(dst, mtu, now);
                }
            }
            (ReportKind::PacketTooBig { mtu }, IpProtocol::Udp) => {
                self.iface.learn_pmtu(r.tuple.remote.ip, mtu, now);
                self.udp.icmp_error(&r.tuple, Cause::MessageTooBig);
            }
            (ReportKind::Unreachable { cause, hard }, IpProtocol::Tcp) => {
                self.tcp.icmp_error(&r.tuple, r.seq, cause, hard, now);
            }
            (ReportKind::Unreachable { cause, .. }, IpProtocol::Udp) => {
                self.udp.icmp_error(&r.tuple, cause);
            }
            _ => {}
        }
    }

    /// A frame of ours whose neighbour never answered: as if a router had said so.
    fn undeliverable(&mut self, frame: &[u8], now: Instant) {
        let kind = ReportKind::Unreachable {
            cause: Cause::HostUnreachable,
            hard: true,
        };
        if let Some(report) = icmp::quoted_packet(&frame[ETHERNET..], kind) {
            self.icmp_report(&report, now);
        }
    }
}

/// Frames whose records are brought into the cache together: enough to overlap misses, few enough
/// to fit in the first-level cache.
const WARM_FRAMES: usize = 32;

/// Addresses and ports of a plain TCP frame, nothing verified; for cache warming only.
fn tcp_flow(frame: &[u8]) -> Option<(Ip, Ip, [u16; 2])> {
    let word = |at: usize| {
        frame
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(u32::from_be_bytes)
    };
    let half = |at: usize| {
        frame
            .get(at..at + 2)?
            .try_into()
            .ok()
            .map(u16::from_be_bytes)
    };
    let wide = |at: usize| {
        frame
            .get(at..at + 16)?
            .try_into()
            .ok()
            .map(u128::from_be_bytes)
    };
    match (*frame.get(12)?, *frame.get(13)?) {
        (8, 0) if *frame.get(14)? == 0x45 && *frame.get(23)? == 6 => {
            let ip = |w: u32| Ip::v4(w.into());
            Some((ip(word(26)?), ip(word(30)?), [half(34)?, half(36)?]))
        }
        (0x86, 0xdd) if *frame.get(20)? == 6 => {
            let ip = |w: u128| Ip::v6(w.into());
            Some((ip(wide(22)?), ip(wide(38)?), [half(54)?, half(56)?]))
        }
        _ => None,
    }
}

/// Walks IPv6 extension headers that a host may skip (RFC 8200 §4); `None` for fragments, routing
/// headers with segments left, and malformed chains.
fn skip_extensions(mut next: IpProtocol, mut bytes: &[u8]) -> Option<(IpProtocol, &[u8])> {
    /// More headers than any honest packet has.
    const HEADERS_MAX: usize = 8;
    for _ in 0..HEADERS_MAX {
        match next {
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                let &[proto, units, _, left, ..] = bytes else {
                    return None;
                };
                if next == IpProtocol::Ipv6Route && left != 0 {
                    return None;
                }
                bytes = bytes.get((usize::from(units) + 1) * 8..)?;
                next = proto.into();
            }
            IpProtocol::Ipv6Frag => {
                // An atomic fragment is a whole packet (RFC 6946).
                let &[proto, _, hi, lo, ..] = bytes else {
                    return None;
                };
                if u16::from_be_bytes([hi, lo]) & !6 != 0 {
                    return None;
                }
                bytes = bytes.get(8..)?;
                next = proto.into();
            }
            _ => return Some((next, bytes)),
        }
    }
    None
}
