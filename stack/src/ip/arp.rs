//! ARP (RFC 826).

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
};

use super::iface::IfaceId;
use super::route::Hop;
use super::{ETHERNET, IpLayer};
use crate::addr::Ip;
use crate::time::Instant;

impl IpLayer {
    /// Queues a request for `ip`, to everybody or to the address believed so far.
    pub(super) fn solicit_arp(&mut self, iface: IfaceId, ip: Ip, to: Option<EthernetAddress>) {
        let Some(source) = self.addresses.source(ip, Hop { iface, ip }) else {
            return;
        };
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: self.ifaces[iface.index()].mac,
            source_protocol_addr: source.to_v4(),
            target_hardware_addr: to.unwrap_or(EthernetAddress([0; 6])),
            target_protocol_addr: ip.to_v4(),
        };
        self.queue_arp(iface, &repr, to.unwrap_or(EthernetAddress::BROADCAST));
    }

    /// Queues an announcement of `ip`, which is ours, to everybody (RFC 5227 §2.3).
    pub(super) fn announce_arp(&mut self, iface: IfaceId, ip: Ip) {
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: self.ifaces[iface.index()].mac,
            source_protocol_addr: ip.to_v4(),
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: ip.to_v4(),
        };
        self.queue_arp(iface, &repr, EthernetAddress::BROADCAST);
    }

    fn queue_arp(&mut self, iface: IfaceId, repr: &ArpRepr, dst: EthernetAddress) {
        let link = &mut self.ifaces[iface.index()];
        if link.control_room() == 0 {
            self.control_drops += 1;
            return;
        }
        let mut frame = vec![0; ETHERNET + repr.buffer_len()];
        let mut eth = EthernetFrame::new_unchecked(&mut frame[..]);
        eth.set_dst_addr(dst);
        eth.set_src_addr(link.mac);
        eth.set_ethertype(EthernetProtocol::Arp);
        repr.emit(&mut ArpPacket::new_unchecked(eth.payload_mut()));
        link.push((frame, None));
    }

    /// A packet arrived; false if it is malformed. Only the interface that has the address answers,
    /// so that two interfaces on one link do not contradict each other, and only the shard that speaks
    /// for the host.
    pub(crate) fn arp_arrives(&mut self, iface: IfaceId, bytes: &[u8], now: Instant) -> bool {
        let Ok(packet) = ArpPacket::new_checked(bytes) else {
            return false;
        };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: sha,
            source_protocol_addr: spa,
            target_protocol_addr: tpa,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return false;
        };
        let (sender, target) = (Ip::v4(spa), Ip::v4(tpa));
        let for_us = self.addresses.is_on(iface, target);
        if sender.is_valid_source() && !self.is_ours(sender) {
            self.learn(iface, sender, sha, for_us, now);
        }
        let asked = for_us && operation == ArpOperation::Request && sha.is_unicast();
        if asked && self.speaks_for_addresses() {
            let repr = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: self.ifaces[iface.index()].mac,
                source_protocol_addr: tpa,
                target_hardware_addr: sha,
                target_protocol_addr: spa,
            };
            self.queue_arp(iface, &repr, sha);
        }
        true
    }
}
