//! A host that has no address asks for one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use kcm_stack::{ConnectOptions, IfaceId, ListenOptions, SocketError, UdpId, UdpOpts};
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr};

use crate::fabric::{Fabric, ip, ip6};
use crate::link::LinkConfig;
use crate::world::World;

const LEASED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);

/// What a server on host 0 answers to what its socket received; the kinds of message it saw.
fn serve(f: &mut Fabric, socket: UdpId) -> Vec<DhcpMessageType> {
    let IpAddr::V4(server) = ip(0, 0) else {
        unreachable!()
    };
    let mut seen = Vec::new();
    while let Ok(d) = f.stacks[0].udp_recv(socket) {
        let packet = DhcpPacket::new_checked(&d.data[..]).unwrap();
        let asked = DhcpRepr::parse(&packet).unwrap();
        seen.push(asked.message_type);
        let message_type = match asked.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request => DhcpMessageType::Ack,
            _ => continue,
        };
        let repr = DhcpRepr {
            message_type,
            your_ip: LEASED,
            server_identifier: Some(server),
            subnet_mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            router: Some(server),
            dns_servers: None,
            parameter_request_list: None,
            max_size: None,
            requested_ip: None,
            lease_duration: Some(1_000),
            ..asked
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..]))
            .unwrap();
        // To the address that is to be: the client answers for no address yet, so to everybody.
        let to = match d.from.ip() {
            IpAddr::V4(a) if a.is_unspecified() => Ipv4Addr::BROADCAST.into(),
            known => known,
        };
        let to = Some(SocketAddr::new(to, 68));
        f.stacks[0].udp_send(f.now, socket, to, &[&bytes]).unwrap();
    }
    seen
}

#[test]
fn a_host_gets_an_address_keeps_it_and_gives_it_back() {
    let link = LinkConfig {
        loss: 100_000,
        ..LinkConfig::default()
    };
    for seed in 0..6 {
        let mut f = Fabric::new(&[&[0], &[0]], &link, seed);
        let first = IfaceId::FIRST;
        assert!(f.stacks[1].remove_address(first, ip(0, 1)));
        assert!(f.stacks[1].remove_address(first, ip6(0, 1)));
        let socket = f.stacks[0]
            .udp_bind("0.0.0.0:67".parse().unwrap(), false)
            .unwrap();
        let opts = UdpOpts {
            broadcast: true,
            ..UdpOpts::default()
        };
        f.stacks[0].udp_set_opts(socket, opts).unwrap();
        let now = f.now;
        f.stacks[1].dhcp_start(now, first).unwrap();
        assert_eq!(
            f.stacks[1].dhcp_start(now, first),
            Err(SocketError::InvalidState)
        );
        let mut seen = Vec::new();
        f.run_until(Duration::from_secs(600), "lease", |f| {
            seen.extend(serve(f, socket));
            f.stacks[1].dhcp_lease(first).is_some()
        });
        assert_eq!(seen[0], DhcpMessageType::Discover);
        assert!(f.stacks[1].is_local(LEASED.into()));
        assert_eq!(
            f.stacks[1].source_for("192.0.2.1".parse().unwrap()),
            Ok(LEASED.into())
        );
        // It is good for something.
        let l = f.stacks[0]
            .tcp_listen("0.0.0.0:80".parse().unwrap(), &ListenOptions::default())
            .unwrap();
        let to = SocketAddr::new(ip(0, 0), 80);
        let c = f.stacks[1]
            .tcp_connect(f.now, to, &ConnectOptions::default())
            .unwrap();
        f.run_until(Duration::from_secs(60), "connection", |f| {
            f.stacks[0].tcp_accept_queue_len(l) == Some(1) && f.stacks[1].tcp_may_send(c)
        });
        // Extended for as long as the server answers.
        let until = f.stacks[1].dhcp_lease(first).unwrap().until;
        let end = f.now + Duration::from_secs(5_000);
        while f.step(end) {
            serve(&mut f, socket);
            assert!(f.stacks[1].dhcp_lease(first).is_some(), "seed {seed}");
        }
        assert!(f.stacks[1].dhcp_lease(first).unwrap().until > until + Duration::from_secs(3_000));
        // Not any longer: the address goes when the lease ends.
        f.run_for(Duration::from_secs(1_001));
        assert_eq!(f.stacks[1].dhcp_lease(first), None);
        assert!(!f.stacks[1].is_local(LEASED.into()));
        // And back, and given back.
        f.run_until(Duration::from_secs(600), "second lease", |f| {
            serve(f, socket);
            f.stacks[1].dhcp_lease(first).is_some()
        });
        let now = f.now;
        f.stacks[1].dhcp_stop(now, first).unwrap();
        assert!(!f.stacks[1].is_local(LEASED.into()));
        assert_eq!(
            f.stacks[1].dhcp_stop(now, first),
            Err(SocketError::InvalidState)
        );
    }
}
