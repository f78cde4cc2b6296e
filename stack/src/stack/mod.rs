//! `Stack`: the one public state machine. Joins IP, UDP and TCP; no algorithm of its own.

mod config;
mod dhcp;
mod frames;
mod handles;
mod input;
mod prediction;
mod report;
mod shard;
mod tcp;
mod transmit;
mod udp;

use core::net::{IpAddr, SocketAddr};
use std::collections::VecDeque;

use smoltcp::wire::EthernetAddress;

pub use config::{Checksums, Config, EcnMode, InterfaceConfig, TcpConfig};
pub use frames::{Gso, LinkStats, PartialChecksum, Received, Transmit};
pub use handles::{ListenerId, TcpId, UdpId};
pub use shard::{Belongs, Shard, Strangers, shard_of, shard_of_flow, shard_of_udp};
pub(crate) use shard::{GOLDEN, UDP_OF_FIRST, datagram_of};

use crate::addr::Ip;
use crate::dhcp::Client;
use crate::error::SocketError;
use crate::events::Event;
use crate::ip::iface::IfaceId;
use crate::ip::{Addressing, IpLayer};
use crate::limits;
use crate::rate::RateLimit;
use crate::secret::Key;
use crate::tcp::Engine;
use crate::time::Instant;
use crate::udp::Udp;
use prediction::Prediction;

/// A TCP/IP stack with one or several interfaces.
///
/// Order of calls in a loop: [`handle_frame`](Self::handle_frame) for each received frame,
/// [`handle_timeout`](Self::handle_timeout) if the deadline passed, [`poll_event`](Self::poll_event)
/// until `None`, socket calls, [`poll_transmit`](Self::poll_transmit) until `None` or the device is
/// full, then sleep until [`next_deadline`](Self::next_deadline), which every one of these calls may
/// change. `now` must not go backwards.
///
/// A stack is made with its first interface, and every call that names none means that one; with
/// more, each device has its own [`handle_frame_on`](Self::handle_frame_on) and
/// [`poll_transmit_on`](Self::poll_transmit_on).
#[derive(Debug)]
pub struct Stack {
    ip: IpLayer,
    tcp: Engine,
    udp: Udp,
    /// Clients by interface.
    dhcp: Vec<(IfaceId, Client)>,
    dhcp_key: Key,
    icmp_budget: RateLimit,
    shard: Shard,
    /// Frames of ours to ourselves that another shard is to see.
    strays: VecDeque<(IfaceId, Vec<u8>)>,
    /// Within a batch, what the next frame is likely to look like.
    prediction: Option<Prediction>,
    /// The last frame was a TCP packet that was delivered.
    was_segment: bool,
    stats: LinkStats,
}

impl Stack {
    /// A stack with one interface, without addresses.
    pub fn new(config: &Config, now: Instant) -> Self {
        let (first, shard) = (config.first_interface(), config.shard);
        Self {
            ip: IpLayer::new(&first, config.key.derive(102), shard),
            tcp: Engine::new(&config.tcp, config.key.derive(100), &first, shard, now),
            udp: Udp::new(config.key.derive(101), shard),
            dhcp: Vec::new(),
            dhcp_key: config.key.derive(103),
            icmp_budget: RateLimit::new(limits::ICMP_ERRORS_PER_SEC / u32::from(shard.count())),
            shard,
            strays: VecDeque::new(),
            prediction: None,
            was_segment: false,
            stats: LinkStats::default(),
        }
    }

    // ---- interfaces, addresses, routes ----

    /// Adds an interface.
    ///
    /// # Errors
    /// `LimitReached` beyond [`IFACES_MAX`](limits::IFACES_MAX).
    pub fn add_interface(&mut self, config: &InterfaceConfig) -> Result<IfaceId, SocketError> {
        let id = self.ip.add_iface(config)?;
        self.tcp.add_link(config);
        Ok(id)
    }

    /// Changes the MTU of an interface. Connections follow when they next learn of their path.
    ///
    /// # Errors
    /// `NoInterface`.
    pub fn set_mtu(&mut self, iface: IfaceId, mtu: u16) -> Result<(), SocketError> {
        self.ip.set_mtu(iface, mtu)?;
        self.tcp.set_link_mtu(iface, mtu);
        Ok(())
    }

    /// Adds an address to the first interface, and the on-link route of its prefix.
    ///
    /// # Errors
    /// `InvalidAddress` for addresses no host may use, `LimitReached`.
    pub fn add_address(&mut self, ip: IpAddr, prefix_len: u8) -> Result<(), SocketError> {
        self.add_address_on(IfaceId::FIRST, ip, prefix_len)
    }

    /// Adds an address to an interface, and the on-link route of its prefix.
    ///
    /// # Errors
    /// `InvalidAddress` for addresses no host may use, `LimitReached`, `NoInterface`.
    pub fn add_address_on(
        &mut self,
        iface: IfaceId,
        ip: IpAddr,
        prefix_len: u8,
    ) -> Result<(), SocketError> {
        self.ip.add_address(iface, ip.into(), prefix_len)
    }

    /// Removes an address; connections from it stay and find no answers, as in Linux. False if the
    /// interface does not have it.
    pub fn remove_address(&mut self, iface: IfaceId, ip: IpAddr) -> bool {
        self.ip.remove_address(iface, ip.into())
    }

    /// How what concerns none of the stack's sockets is treated from now on.
    pub fn set_strangers(&mut self, strangers: Strangers) {
        self.ip.strangers = strangers;
    }

    /// Queues an announcement of each address of an interface (RFC 5227 §2.3, RFC 4861 §7.2.6), for
    /// when it can send: neighbours that asked in vain before need not ask again. An address granted by
    /// DHCP is announced without this.
    ///
    /// # Errors
    /// `NoInterface`.
    pub fn announce(&mut self, now: Instant, iface: IfaceId) -> Result<(), SocketError> {
        self.ip.iface(iface).ok_or(SocketError::NoInterface)?;
        self.ip.announce_all(iface, now);
        Ok(())
    }

    /// Adds or replaces a route; `via` is a router, or `None` for an on-link prefix. It leaves by
    /// the interface that reaches the router, the first if none does.
    ///
    /// # Errors
    /// `LimitReached`.
    pub fn add_route(
        &mut self,
        net: IpAddr,
        prefix_len: u8,
        via: Option<IpAddr>,
    ) -> Result<(), SocketError> {
        self.ip
            .add_route(net.into(), prefix_len, None, via.map(Ip::from))
    }

    /// Adds or replaces a route over an interface.
    ///
    /// # Errors
    /// `LimitReached`, `NoInterface`.
    pub fn add_route_on(
        &mut self,
        iface: IfaceId,
        net: IpAddr,
        prefix_len: u8,
        via: Option<IpAddr>,
    ) -> Result<(), SocketError> {
        self.ip
            .add_route(net.into(), prefix_len, Some(iface), via.map(Ip::from))
    }

    /// Removes the route of a prefix over an interface; false if there is none.
    pub fn remove_route(&mut self, iface: IfaceId, net: IpAddr, prefix_len: u8) -> bool {
        self.ip.remove_route(net.into(), prefix_len, iface)
    }

    /// The addresses and routes of all interfaces.
    pub fn addressing(&self) -> Addressing {
        self.ip.addressing()
    }

    /// Replaces the addresses and routes of all interfaces by those of another stack, which shares
    /// them: all of them, or none.
    ///
    /// # Errors
    /// `NoInterface` if they name one that this stack does not have, `LimitReached`.
    pub fn set_addressing(&mut self, to: &Addressing) -> Result<(), SocketError> {
        self.ip.set_addressing(to)
    }

    /// Enters a neighbour's Ethernet address, as if it had announced itself on the interface that
    /// leads to it.
    pub fn add_neighbor(&mut self, ip: IpAddr, mac: [u8; 6], now: Instant) {
        let ip = ip.into();
        let iface = self.ip.egress(ip, None).unwrap_or(IfaceId::FIRST);
        self.ip.learn(iface, ip, EthernetAddress(mac), true, now);
    }

    /// Our addresses, those of all interfaces.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ip.addresses()
    }

    /// Whether `ip` is one of our addresses.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        self.ip.is_ours(ip.into())
    }

    /// Whether `ip` is the limited broadcast address or that of one of our IPv4 prefixes.
    pub fn is_broadcast(&self, ip: IpAddr) -> bool {
        self.ip.is_broadcast(ip.into())
    }

    /// The address a socket would use towards `remote`.
    ///
    /// # Errors
    /// `NoRoute`, `AddressNotAvailable`.
    pub fn source_for(&self, remote: IpAddr) -> Result<IpAddr, SocketError> {
        self.ip.source_for(remote.into(), None).map(Ip::to_std)
    }

    /// The interface packets for `remote` leave by; `None` without a route.
    pub fn interface_for(&self, remote: IpAddr) -> Option<IfaceId> {
        self.ip.egress(remote.into(), None)
    }

    // ---- time, events, numbers ----

    /// Runs what is due at `now`. A bounded amount per call; the deadline says if more is left.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tcp.timers_expire(&mut self.ip, now);
        for frame in self.ip.run_neighbors(now) {
            self.undeliverable(&frame, now);
        }
        self.fragments_expire(now);
        self.ip.run_groups(now);
        self.dhcp_run(now);
    }

    /// No later than the time `handle_timeout` has something to do; `None` if never.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let at = self
            .tcp
            .next_deadline()
            .min(self.ip.next_deadline())
            .min(self.dhcp_next_deadline());
        (at != Instant::FAR_FUTURE).then_some(at)
    }

    /// The next readiness change; `None` when all are collected.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.tcp
            .poll_event()
            .or_else(|| self.udp.poll_event().map(|(id, r)| Event::Udp(id, r)))
    }

    /// Counters of frames.
    pub fn link_stats(&self) -> LinkStats {
        let f = self.ip.fragments.counts;
        LinkStats {
            control_drops: self.ip.control_drops,
            reassembled: f.whole,
            fragment_duplicates: f.duplicates,
            fragment_overlaps: f.overlaps,
            fragment_malformed: self.stats.fragment_malformed + f.malformed,
            fragment_timeouts: f.timeouts,
            fragment_evictions: f.evicted,
            fragments_out: self.ip.fragments_out,
            ..self.stats.clone()
        }
    }

    /// Panics if an internal relation does not hold. For simulations, after each event.
    pub fn check_invariants(&self) {
        self.tcp.check_invariants();
    }
}

/// The interface a link-local IPv6 address names by its scope id.
fn scope_of(a: SocketAddr) -> Option<IfaceId> {
    match a {
        SocketAddr::V6(v6) if Ip::v6(*v6.ip()).is_link_local_v6() => {
            IfaceId::from_scope(v6.scope_id())
        }
        _ => None,
    }
}
