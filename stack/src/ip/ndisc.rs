//! Neighbour discovery (RFC 4861).

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscNeighborFlags, NdiscRepr,
    RawHardwareAddress,
};

use super::icmp::CHECKSUM_AT;
use super::iface::IfaceId;
use super::route::Hop;
use super::{IpLayer, IpMeta};
use crate::addr::Ip;
use crate::time::Instant;

/// RFC 4861 §7.1: anything less has crossed a router.
pub(super) const HOPS: u8 = 255;

impl IpLayer {
    /// RFC 4861 §7.2.3 to §7.2.5.
    pub(super) fn neighbor_message(&mut self, iface: IfaceId, src: Ip, bytes: &[u8], now: Instant) {
        let p = Icmpv6Packet::new_unchecked(bytes);
        let ethernet = |l: RawHardwareAddress| {
            (l.as_bytes().len() == 6).then(|| EthernetAddress::from_bytes(l.as_bytes()))
        };
        match NdiscRepr::parse(&p) {
            Ok(NdiscRepr::NeighborSolicit {
                target_addr,
                lladdr,
            }) => {
                let target = Ip::v6(target_addr);
                if !self.addresses.is_on(iface, target) {
                    return;
                }
                // Duplicate address detection asks from nowhere, and is answered to all.
                let dad = src.is_unspecified();
                if !dad && let Some(mac) = lladdr.and_then(ethernet) {
                    self.learn(iface, src, mac, true, now);
                }
                if !self.speaks_for_addresses() {
                    return;
                }
                if dad {
                    self.advertise_to_all(iface, target, now);
                } else {
                    let flags = NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::SOLICITED;
                    self.advertise(iface, target, src, flags, now);
                }
            }
            Ok(NdiscRepr::NeighborAdvert {
                target_addr,
                lladdr,
                ..
            }) => {
                if let Some(mac) = lladdr.and_then(ethernet) {
                    self.learn(iface, Ip::v6(target_addr), mac, false, now);
                }
            }
            _ => {}
        }
    }

    /// Queues an advertisement of `target`, which is ours, that nobody has to have asked for (§7.2.6).
    pub(super) fn advertise_to_all(&mut self, iface: IfaceId, target: Ip, now: Instant) {
        let flags = NdiscNeighborFlags::OVERRIDE;
        self.advertise(iface, target, Ip::ALL_NODES, flags, now);
    }

    fn advertise(
        &mut self,
        iface: IfaceId,
        target: Ip,
        dst: Ip,
        flags: NdiscNeighborFlags,
        now: Instant,
    ) {
        let repr = NdiscRepr::NeighborAdvert {
            flags,
            target_addr: target.to_v6(),
            lladdr: Some(self.hardware_address(iface)),
        };
        self.send_ndisc(iface, target, dst, repr, now);
    }

    /// Queues a neighbour solicitation.
    pub(super) fn solicit_ndisc(&mut self, iface: IfaceId, target: Ip, now: Instant) {
        let hop = Hop { iface, ip: target };
        let Some(source) = self.addresses.source(target, hop) else {
            return;
        };
        let repr = NdiscRepr::NeighborSolicit {
            target_addr: target.to_v6(),
            lladdr: Some(self.hardware_address(iface)),
        };
        self.send_ndisc(iface, source, target.solicited_node(), repr, now);
    }

    fn hardware_address(&self, iface: IfaceId) -> RawHardwareAddress {
        RawHardwareAddress::from_bytes(self.ifaces[iface.index()].mac.as_bytes())
    }

    fn send_ndisc(&mut self, iface: IfaceId, src: Ip, dst: Ip, repr: NdiscRepr<'_>, now: Instant) {
        let mut meta = IpMeta::new(src, dst, IpProtocol::Icmpv6);
        meta.hop_limit = HOPS;
        meta.iface = Some(iface);
        let repr = Icmpv6Repr::Ndisc(repr);
        let len = repr.buffer_len();
        self.send(now, &meta, len, Some(CHECKSUM_AT), |out| {
            let caps = ChecksumCapabilities::ignored();
            repr.emit(
                &meta.src.to_v6(),
                &meta.dst.to_v6(),
                &mut Icmpv6Packet::new_unchecked(out),
                &caps,
            );
            out[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
        });
    }
}
