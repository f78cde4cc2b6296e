//! The IP layer: interfaces, addresses, routes, neighbours, path MTUs, fragments, and the sending
//! half that every protocol above shares.

mod addresses;
mod addressing;
mod arp;
mod extensions;
pub(crate) mod filter;
mod fragment;
mod groups;
pub(crate) mod icmp;
pub(crate) mod iface;
mod membership;
mod ndisc;
pub(crate) mod neighbor;
mod output;
pub(crate) mod pmtu;
pub(crate) mod reassembly;
mod route;

use std::collections::VecDeque;

use smoltcp::wire::EthernetAddress;

use crate::addr::Ip;
use crate::error::SocketError;
use crate::limits::{CONTROL_FRAMES_MAX, IFACES_MAX};
use crate::secret::Key;
use crate::stack::{InterfaceConfig, Shard, Strangers, Transmit};
use crate::time::Instant;
use addresses::Addresses;
pub use addressing::Addressing;
pub(crate) use extensions::Extensions;
use fragment::Idents;
use groups::Groups;
use iface::{Iface, IfaceId};
use neighbor::{NeighborCache, NeighborRef};
pub(crate) use output::{ETHERNET, IpMeta, NextHop, NoWay, sum_without_ident};
use pmtu::PathMtus;
use reassembly::Reassembler;
use route::{Hop, RouteTable};

/// What all interfaces share.
#[derive(Debug)]
pub(crate) struct IpLayer {
    ifaces: Vec<Iface>,
    addresses: Addresses,
    routes: RouteTable,
    pub(crate) neighbors: NeighborCache,
    pmtu: PathMtus,
    /// Frames to addresses of our own, with the interface they seem to come from.
    looped: VecDeque<(IfaceId, Vec<u8>)>,
    /// Emptied frames, for reuse.
    spare: Vec<Vec<u8>>,
    /// Identification of packets no router may cut: any value serves (RFC 6864 §4.1).
    ident: u16,
    idents: Idents,
    pub(crate) fragments: Reassembler,
    pub(crate) groups: Groups,
    pub(crate) fragments_out: u64,
    pub(crate) control_drops: u64,
    shard: Shard,
    pub(crate) strangers: Strangers,
}

impl IpLayer {
    /// With one interface, without addresses.
    pub(crate) fn new(first: &InterfaceConfig, key: Key, shard: Shard) -> Self {
        Self {
            ifaces: vec![Iface::new(first)],
            addresses: Addresses::default(),
            routes: RouteTable::default(),
            neighbors: NeighborCache::new(),
            pmtu: PathMtus::default(),
            looped: VecDeque::new(),
            spare: Vec::new(),
            ident: 0,
            idents: Idents::new(key, shard),
            fragments: Reassembler::default(),
            groups: Groups::new(key.derive(1), shard),
            fragments_out: 0,
            control_drops: 0,
            shard,
            strangers: Strangers::default(),
        }
    }

    /// Whether this stack tells whose an address is. One whose addresses another stack may have does too: there
    /// may be none, both say the same, and a neighbour that hears nothing gives up what is not finished.
    pub(crate) fn speaks_for_addresses(&self) -> bool {
        self.shard.speaks_for_host()
    }

    /// Whether this stack answers what the host as a whole is asked.
    pub(crate) fn speaks_for_host(&self) -> bool {
        self.shard.speaks_for_host() && self.strangers != Strangers::Ignored
    }

    pub(crate) fn add_iface(&mut self, config: &InterfaceConfig) -> Result<IfaceId, SocketError> {
        let id = IfaceId::from_index(self.ifaces.len()).ok_or(SocketError::LimitReached)?;
        self.ifaces.push(Iface::new(config));
        Ok(id)
    }

    pub(crate) fn iface(&self, id: IfaceId) -> Option<&Iface> {
        self.ifaces.get(id.index())
    }

    pub(crate) fn mac_of(&self, id: IfaceId) -> EthernetAddress {
        self.ifaces[id.index()].mac
    }

    pub(crate) fn set_mtu(&mut self, id: IfaceId, mtu: u16) -> Result<(), SocketError> {
        let iface = self.ifaces.get_mut(id.index());
        iface.ok_or(SocketError::NoInterface)?.mtu = mtu;
        Ok(())
    }

    pub(crate) fn iface_ids(&self) -> impl Iterator<Item = IfaceId> + use<> {
        (0..self.ifaces.len()).filter_map(IfaceId::from_index)
    }

    /// Whether a packet has a choice of ways out.
    pub(crate) fn has_several(&self) -> bool {
        self.ifaces.len() > 1
    }

    /// Adds an address and the on-link route of its prefix.
    pub(crate) fn add_address(
        &mut self,
        iface: IfaceId,
        ip: Ip,
        prefix_len: u8,
    ) -> Result<(), SocketError> {
        self.iface(iface).ok_or(SocketError::NoInterface)?;
        if self.addresses.add(iface, ip, prefix_len)? {
            if !ip.is_v4() {
                // RFC 4291 §2.8; switches that listen to MLD pass solicitations only so.
                self.groups.join(iface, ip.solicited_node())?;
            }
            self.routes.add(ip, prefix_len, iface, None)?;
            self.neighbors.forget_references();
        }
        Ok(())
    }

    /// Removes an address, and the on-link route of its prefix unless another address shares it.
    pub(crate) fn remove_address(&mut self, iface: IfaceId, ip: Ip) -> bool {
        let Some(removed) = self.addresses.remove(iface, ip) else {
            return false;
        };
        if !ip.is_v4() {
            self.groups.leave(iface, ip.solicited_node());
        }
        if !self.addresses.has_prefix(iface, removed) {
            self.routes.remove(ip, removed.prefix_len, iface);
        }
        self.neighbors.forget_references();
        true
    }

    /// Adds or replaces a route. Without `iface` it leaves by the interface that reaches the router.
    pub(crate) fn add_route(
        &mut self,
        net: Ip,
        prefix_len: u8,
        iface: Option<IfaceId>,
        via: Option<Ip>,
    ) -> Result<(), SocketError> {
        let reached = || {
            via.and_then(|v| self.routes.next_hop(v, None))
                .map(|h| h.iface)
        };
        let iface = iface.or_else(reached).unwrap_or(IfaceId::FIRST);
        self.iface(iface).ok_or(SocketError::NoInterface)?;
        self.routes.add(net, prefix_len, iface, via)?;
        self.neighbors.forget_references();
        Ok(())
    }

    pub(crate) fn remove_route(&mut self, net: Ip, prefix_len: u8, iface: IfaceId) -> bool {
        let removed = self.routes.remove(net, prefix_len, iface);
        self.neighbors.forget_references();
        removed
    }

    /// Our addresses, those of all interfaces.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = core::net::IpAddr> {
        self.addresses.iter().map(|address| address.ip.to_std())
    }

    /// Whether `ip` is one of our addresses, on whatever interface.
    pub(crate) fn is_ours(&self, ip: Ip) -> bool {
        self.addresses.is_ours(ip)
    }

    /// Whether packets for `ip` that arrive on `iface` are for us: Linux's weak host model, in which
    /// an address belongs to the host. Link-local addresses belong to their link.
    pub(crate) fn is_ours_on(&self, iface: IfaceId, ip: Ip) -> bool {
        if ip.is_link_local_v6() {
            self.addresses.is_on(iface, ip)
        } else {
            self.addresses.is_ours(ip)
        }
    }

    /// Limited broadcast, or the all-ones address of one of our IPv4 prefixes.
    pub(crate) fn is_broadcast(&self, ip: Ip) -> bool {
        self.addresses.is_broadcast(ip)
    }

    /// A group the interface is in: everyone's, a solicited-node group, or one that a socket joined.
    pub(crate) fn is_our_multicast(&self, iface: IfaceId, ip: Ip) -> bool {
        ip.is_multicast()
            && (ip == Ip::ALL_NODES || ip == Ip::ALL_HOSTS || self.groups.is_member(iface, ip))
    }

    /// The interface packets for `dst` leave by; `None` without a route.
    pub(crate) fn egress(&self, dst: Ip, bound: Option<IfaceId>) -> Option<IfaceId> {
        self.routes.next_hop(dst, bound).map(|h| h.iface)
    }

    /// The address to speak to `dst` from (RFC 6724 §5; for IPv4, Linux's choice).
    pub(crate) fn source_for(&self, dst: Ip, bound: Option<IfaceId>) -> Result<Ip, SocketError> {
        if self.is_ours(dst) {
            return Ok(dst);
        }
        let hop = match self.routes.next_hop(dst, bound) {
            Some(hop) => hop,
            // Groups need no route, as long as there is an interface.
            None if dst.is_multicast() || dst.is_limited_broadcast() => Hop {
                iface: IfaceId::FIRST,
                ip: dst,
            },
            None => return Err(SocketError::NoRoute),
        };
        self.addresses
            .source(dst, hop)
            .ok_or(SocketError::AddressNotAvailable)
    }

    /// The interface a reply to `peer` has to leave by: the one its packet came from when the peer's
    /// address means nothing elsewhere.
    pub(crate) fn reply_by(peer: Ip, arrival: IfaceId) -> Option<IfaceId> {
        peer.is_link_local_v6().then_some(arrival)
    }

    /// MTU of the path to `dst`.
    pub(crate) fn path_mtu(&self, dst: Ip, bound: Option<IfaceId>, now: Instant) -> u16 {
        self.pmtu.get(dst, self.link_mtu(dst, bound), now)
    }

    /// MTU of the link on which the path to `dst` begins.
    pub(crate) fn link_mtu(&self, dst: Ip, bound: Option<IfaceId>) -> u16 {
        let iface = if self.has_several() {
            self.egress(dst, bound).unwrap_or(IfaceId::FIRST)
        } else {
            IfaceId::FIRST
        };
        self.ifaces[iface.index()].mtu
    }

    /// Believes an ICMP report, within reason.
    pub(crate) fn learn_pmtu(&mut self, dst: Ip, claimed: u16, now: Instant) {
        let current = self.path_mtu(dst, None, now);
        self.pmtu.learn(dst, claimed, current, now);
    }

    /// The interface a connection's packets leave by, by its cached neighbour if that still holds.
    pub(crate) fn egress_of(
        &self,
        cached: NeighborRef,
        dst: Ip,
        bound: Option<IfaceId>,
    ) -> Option<IfaceId> {
        self.neighbors
            .iface_of(cached)
            .or_else(|| self.egress(dst, bound))
    }

    /// Records a neighbour's address and sends what waited for it.
    pub(crate) fn learn(
        &mut self,
        iface: IfaceId,
        ip: Ip,
        mac: EthernetAddress,
        create: bool,
        now: Instant,
    ) {
        let (mac, frames) = self.neighbors.learn(iface, ip, mac, create, now);
        for f in frames {
            if !self.ifaces[iface.index()].release(f, mac) {
                self.control_drops += 1;
            }
        }
    }

    /// Sends due solicitations; returns frames that found no neighbour.
    pub(crate) fn run_neighbors(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let work = self.neighbors.take_work(now);
        for s in work.solicit {
            if s.ip.is_v4() {
                self.solicit_arp(s.iface, s.ip, s.known);
            } else {
                self.solicit_ndisc(s.iface, s.ip, now);
            }
        }
        work.undeliverable
    }

    pub(crate) fn next_deadline(&self) -> Instant {
        self.neighbors
            .next_deadline()
            .min(self.fragments.next_deadline())
            .min(self.groups.next_deadline())
    }

    /// A frame to one of our own addresses: it comes back in by `take_looped`.
    pub(crate) fn loop_back(&mut self, iface: IfaceId, frame: &[u8]) {
        if self.looped.len() < CONTROL_FRAMES_MAX {
            self.looped.push_back((iface, frame.to_vec()));
        } else {
            self.control_drops += 1;
        }
    }

    pub(crate) fn take_looped(&mut self) -> Option<(IfaceId, Vec<u8>)> {
        self.looped.pop_front()
    }

    /// Whether frames wait that `poll_control` or `take_looped` would give.
    pub(crate) fn has_output(&self) -> bool {
        !self.looped.is_empty() || self.ifaces.iter().any(Iface::has_output)
    }

    /// As [`has_output`](Self::has_output), for one interface's device.
    pub(crate) fn has_output_on(&self, iface: IfaceId) -> bool {
        !self.looped.is_empty() || self.iface(iface).is_some_and(Iface::has_output)
    }

    /// Moves the next control frame of an interface into `out`.
    pub(crate) fn poll_control(&mut self, id: IfaceId, out: &mut [u8]) -> Option<Transmit> {
        let (transmit, frame) = self.ifaces.get_mut(id.index())?.poll_control(id, out)?;
        self.recycle(frame);
        Some(transmit)
    }

    fn recycle(&mut self, frame: Vec<u8>) {
        /// Enough for a burst of replies, and no more memory than a batch of frames.
        const SPARE_MAX: usize = 64;
        if self.spare.len() < SPARE_MAX {
            self.spare.push(frame);
        }
    }
}

const _: () = assert!(
    IFACES_MAX < u8::MAX as usize,
    "an IfaceId is a byte, not zero"
);
