//! The engine's IP layer against Linux: fragments both ways, multicast groups as the kernel sees them.
#![allow(
    clippy::disallowed_methods,
    reason = "a test that waits for a kernel needs a clock"
)]
#![allow(dead_code, reason = "support that other tests use more of")]

mod device_support;
mod linux_support;

use device_support::{Rights, in_namespace, ip, open_one, veth};
use kcm_stack::device::{Fault, LinkFaults, OpenOptions};
use kcm_stack::{Datagram, IfaceId, SendError, UdpId};
use linux_support::{Host, Stream};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

const ENGINE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1)),
];
const KERNEL: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2)),
];
const PORT: u16 = 5_000;

fn host(faults: &LinkFaults, offloads: bool) -> Host {
    veth(1);
    let options = OpenOptions {
        offloads,
        ..OpenOptions::default()
    };
    let device = open_one("packet:v0", &options);
    ip("addr add 10.99.0.2/24 dev v1");
    std::fs::write("/proc/sys/net/ipv6/conf/v1/disable_ipv6", "0").unwrap();
    ip("addr add fd99::2/64 dev v1 nodad");
    Host::new(device, 3, faults, &[(ENGINE[0], 24), (ENGINE[1], 64)])
}

/// Runs the engine until it has a datagram.
fn receive(host: &mut Host, id: UdpId) -> Datagram {
    loop {
        if let Ok(datagram) = host.stack.udp_recv(id) {
            return datagram;
        }
        host.run();
    }
}

fn send(host: &mut Host, id: UdpId, to: SocketAddr, data: &[u8]) {
    loop {
        let now = host.now();
        match host.stack.udp_send(now, id, Some(to), &[data]) {
            Ok(_) => break,
            Err(SendError::WouldBlock) => drop(host.run()),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Datagrams of many sizes there and back; both sides cut and join.
fn echo(faults: &LinkFaults, offloads: bool) {
    let mut host = host(faults, offloads);
    for (engine, kernel) in ENGINE.into_iter().zip(KERNEL) {
        let server = UdpSocket::bind((kernel, 0)).unwrap();
        let to = server.local_addr().unwrap();
        let sizes = [1, 1_452, 1_453, 1_472, 1_473, 3_000, 9_001, 65_000];
        let echoing = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let mut len = 0;
            // A link that doubles frames doubles datagrams.
            while len != sizes[sizes.len() - 1] {
                let from;
                (len, from) = server.recv_from(&mut buffer).unwrap();
                server.send_to(&buffer[..len], from).unwrap();
            }
        });
        let id = host
            .stack
            .udp_bind(SocketAddr::new(engine, PORT), false)
            .unwrap();
        for size in sizes {
            let mut data = vec![0; size];
            Stream::new(size as u64).fill(&mut data);
            send(&mut host, id, to, &data);
            let mut back = receive(&mut host, id);
            while back.data.len() != size {
                back = receive(&mut host, id);
            }
            assert_eq!(back.from, to);
            assert!(*back.data == *data, "{size} bytes");
        }
        echoing.join().unwrap();
    }
    let stats = host.stack.link_stats();
    assert!(
        stats.fragments_out > 100 && stats.reassembled >= 8,
        "{stats:?}"
    );
    assert_eq!((stats.fragment_overlaps, stats.fragment_malformed), (0, 0));
}

#[test]
fn large_datagrams_are_cut_and_joined_by_both() {
    in_namespace(
        "large_datagrams_are_cut_and_joined_by_both",
        Rights::User,
        || {
            echo(&LinkFaults::default(), true);
        },
    );
}

#[test]
fn fragments_in_any_order_and_twice_are_joined_by_both() {
    in_namespace(
        "fragments_in_any_order_and_twice_are_joined_by_both",
        Rights::User,
        || {
            let faults = LinkFaults {
                duplicate: 0.1,
                reorder: 0.2,
                reorder_by: Duration::from_millis(1),
                ..LinkFaults::default()
            };
            echo(&faults, false);
        },
    );
}

/// The kernel asks for addresses that nobody has, and would not ask again while the test runs.
#[test]
fn who_asked_too_early_hears_the_announcement() {
    let test = "who_asked_too_early_hears_the_announcement";
    in_namespace(test, Rights::User, || {
        let mut host = host(&LinkFaults::default(), true);
        for cache in ["arp_cache", "ndisc_cache"] {
            ip(&format!(
                "ntable change name {cache} dev v1 retrans 1000000"
            ));
        }
        let early = ENGINE.map(|to| {
            let socket = UdpSocket::bind((KERNEL[usize::from(to.is_ipv6())], 0)).unwrap();
            socket.send_to(b"early", (to, PORT)).unwrap();
            socket
        });
        // The questions are lost.
        drop(host.device);
        let device = open_one("packet:v0", &OpenOptions::default());
        host.device = Fault::new(device, 3, LinkFaults::default(), LinkFaults::default());
        let ids = ENGINE.map(|at| {
            let at = SocketAddr::new(at, PORT);
            host.stack.udp_bind(at, false).unwrap()
        });
        let now = host.now();
        host.stack.announce(now, IfaceId::FIRST).unwrap();
        for (id, socket) in ids.into_iter().zip(early) {
            let got = receive(&mut host, id);
            assert_eq!(
                (&*got.data, got.from),
                (&b"early"[..], socket.local_addr().unwrap())
            );
        }
    });
}

#[test]
fn groups_reach_members_on_both_sides() {
    in_namespace("groups_reach_members_on_both_sides", Rights::User, || {
        let mut host = host(&LinkFaults::default(), true);
        let group = Ipv4Addr::new(239, 1, 2, 3);
        ip("route add 239.0.0.0/8 dev v1");
        let IpAddr::V4(kernel) = KERNEL[0] else {
            unreachable!()
        };
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        socket.join_multicast_v4(&group, &kernel).unwrap();
        socket.set_multicast_loop_v4(false).unwrap();
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
        let id = host.stack.udp_bind(any, false).unwrap();
        host.stack.udp_join(id, group.into(), None).unwrap();
        let to = SocketAddr::new(group.into(), PORT);
        // The engine to the kernel, and its own copy.
        send(&mut host, id, to, b"from the engine");
        assert_eq!(*receive(&mut host, id).data, *b"from the engine");
        host.run();
        let mut buffer = [0; 100];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(
            (&buffer[..len], from.ip()),
            (&b"from the engine"[..], ENGINE[0])
        );
        // And back.
        socket.send_to(b"from the kernel", to).unwrap();
        let datagram = receive(&mut host, id);
        assert_eq!(
            (&*datagram.data, datagram.to),
            (&b"from the kernel"[..], to)
        );
        assert_eq!(datagram.from.ip(), KERNEL[0]);
    });
}
