//! UDP sockets, as the application sees them.

use core::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Stack, UdpId, scope_of};
use crate::addr::Endpoint;
use crate::error::{Cause, RecvError, SendError, SocketError};
use crate::events::Ready;
use crate::ip::filter::{FilterMode, SourceChange};
use crate::ip::iface::IfaceId;
use crate::time::Instant;
use crate::udp::{
    Datagram, Reuse, SharedPorts, UdpBindOptions, UdpBinding, UdpOpts, UdpSendOptions, UdpStats,
};

impl Stack {
    /// Opens a UDP socket; port 0 chooses one. `reuse`: SO_REUSEADDR or SO_REUSEPORT.
    ///
    /// # Errors
    /// `AddressNotAvailable` (also for a port of another [shard](crate::Shard)), `AddressInUse`,
    /// `PortsExhausted`.
    pub fn udp_bind(&mut self, local: SocketAddr, reuse: bool) -> Result<UdpId, SocketError> {
        let reuse = if reuse { Reuse::Address } else { Reuse::No };
        let options = UdpBindOptions {
            reuse,
            ..UdpBindOptions::default()
        };
        self.udp_bind_with(local, &options)
    }

    /// As [`udp_bind`](Self::udp_bind), with options. A link-local address with a scope id binds to
    /// that interface.
    ///
    /// # Errors
    /// `AddressNotAvailable`, `AddressInUse`, `PortsExhausted`, `NoInterface`.
    pub fn udp_bind_with(
        &mut self,
        local: SocketAddr,
        options: &UdpBindOptions,
    ) -> Result<UdpId, SocketError> {
        let options = UdpBindOptions {
            iface: options.iface.or(scope_of(local)),
            ..*options
        };
        self.udp.bind(&self.ip, local.into(), &options)
    }

    /// Whether a socket is in the way of one that is to be bound to `local`.
    pub fn udp_is_taken(&self, local: SocketAddr, options: &UdpBindOptions) -> bool {
        self.udp.is_taken(local.into(), options)
    }

    /// The sockets on a port, oldest first.
    pub fn udp_bindings(&self, port: u16) -> impl Iterator<Item = (UdpId, UdpBinding)> {
        self.udp.bindings(port)
    }

    /// From now on these are the ports of which other shards have sockets too.
    pub fn udp_set_shared(&mut self, ports: Arc<SharedPorts>) {
        self.udp.shared = ports;
    }

    /// The ports of which other shards have sockets too.
    pub fn udp_shared(&self) -> &Arc<SharedPorts> {
        &self.udp.shared
    }

    /// The options in force; `None` for a stale handle.
    pub fn udp_opts(&self, id: UdpId) -> Option<&UdpOpts> {
        self.udp.opts(id)
    }

    /// Replaces the options.
    ///
    /// # Errors
    /// `BadHandle`, `NoInterface`.
    pub fn udp_set_opts(&mut self, id: UdpId, opts: UdpOpts) -> Result<(), SocketError> {
        self.udp.set_opts(&self.ip, id, opts)
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
        self.udp.connect(&self.ip, id, remote.map(Endpoint::from))
    }

    /// Sends one datagram from a scatter list, in fragments if the path asks for it.
    ///
    /// # Errors
    /// `NoDestination`, `TooBig` beyond what UDP carries, `WouldBlock` while the transmit queue is
    /// full (WRITABLE follows), `Failed`, `BadHandle`.
    pub fn udp_send(
        &mut self,
        now: Instant,
        id: UdpId,
        to: Option<SocketAddr>,
        parts: &[&[u8]],
    ) -> Result<usize, SendError> {
        self.udp_send_with(now, id, to, &UdpSendOptions::default(), parts)
    }

    /// As [`udp_send`](Self::udp_send), with control messages.
    ///
    /// # Errors
    /// As [`udp_send`](Self::udp_send); `TooBig` beyond the path MTU if fragments are forbidden.
    pub fn udp_send_with(
        &mut self,
        now: Instant,
        id: UdpId,
        to: Option<SocketAddr>,
        options: &UdpSendOptions,
        parts: &[&[u8]],
    ) -> Result<usize, SendError> {
        let options = UdpSendOptions {
            iface: options.iface.or(to.and_then(scope_of)),
            ..*options
        };
        let to = to.map(Endpoint::from);
        self.udp.send(&mut self.ip, id, to, &options, parts, now)
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

    /// Joins a multicast group (IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP) on an interface, or on the one
    /// that leads to the group. Routers are told by IGMP or MLD.
    ///
    /// # Errors
    /// `InvalidAddress` if it is no group, `AddressInUse` if the socket is in it, `LimitReached`,
    /// `NoInterface`, `BadHandle`.
    pub fn udp_join(
        &mut self,
        id: UdpId,
        group: IpAddr,
        iface: Option<IfaceId>,
    ) -> Result<(), SocketError> {
        self.udp.join(&mut self.ip, id, group.into(), iface)
    }

    /// Leaves a multicast group.
    ///
    /// # Errors
    /// `AddressNotAvailable` if the socket is not in it, `BadHandle`.
    pub fn udp_leave(
        &mut self,
        id: UdpId,
        group: IpAddr,
        iface: Option<IfaceId>,
    ) -> Result<(), SocketError> {
        self.udp.leave(&mut self.ip, id, group.into(), iface)
    }

    /// Changes whom a socket hears in a group, by one sender.
    ///
    /// # Errors
    /// `InvalidAddress` if it is no group, `InvalidState` if the socket is not in it or lists the other
    /// kind, `AddressNotAvailable` if the sender is listed already or not, `LimitReached`, `NoInterface`,
    /// `BadHandle`.
    pub fn udp_change_source(
        &mut self,
        id: UdpId,
        group: IpAddr,
        iface: Option<IfaceId>,
        source: IpAddr,
        change: SourceChange,
    ) -> Result<(), SocketError> {
        let of = (group.into(), iface);
        self.udp.change_source(&mut self.ip, id, of, source, change)
    }

    /// Replaces the list of whom a socket hears in a group, or does not; to hear nobody is to leave.
    ///
    /// # Errors
    /// As [`udp_change_source`](Self::udp_change_source).
    pub fn udp_set_filter(
        &mut self,
        id: UdpId,
        group: IpAddr,
        iface: Option<IfaceId>,
        mode: FilterMode,
        sources: &[IpAddr],
    ) -> Result<(), SocketError> {
        let sources = sources.iter().map(|source| (*source).into()).collect();
        let of = (group.into(), iface);
        self.udp.set_filter(&mut self.ip, id, of, mode, sources)
    }

    /// Whom a socket hears in a group, or does not.
    ///
    /// # Errors
    /// `AddressNotAvailable` if it is not in it, `InvalidAddress`, `NoInterface`, `BadHandle`.
    pub fn udp_filter(
        &mut self,
        id: UdpId,
        group: IpAddr,
        iface: Option<IfaceId>,
    ) -> Result<(FilterMode, Vec<IpAddr>), SocketError> {
        let filter = self.udp.filter(&self.ip, id, (group.into(), iface))?;
        let list = filter.list().iter().map(|ip| ip.to_std());
        Ok((filter.mode, list.collect()))
    }

    /// Closes a UDP socket; it leaves its groups.
    pub fn udp_close(&mut self, id: UdpId) {
        self.udp.close(&mut self.ip, id);
    }

    /// Counters of UDP.
    pub fn udp_stats(&self) -> &UdpStats {
        &self.udp.stats
    }
}
