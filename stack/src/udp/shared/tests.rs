use core::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::udp::{Reuse, UdpBindOptions};

fn at(text: &str) -> Endpoint {
    Endpoint::from(text.parse::<SocketAddr>().unwrap())
}

fn bound(text: &str, reuse: Reuse) -> UdpBinding {
    let options = UdpBindOptions {
        reuse,
        ..UdpBindOptions::default()
    };
    UdpBinding::new(at(text), &options)
}

fn shard(ports: &SharedPorts, local: &str, remote: &str) -> Belongs {
    ports.shard_of_datagram(at(local), at(remote), IfaceId::FIRST, false)
}

const PORT: &str = "10.9.0.2:53";

fn home() -> u8 {
    shard_of_udp(53, 4)
}

#[test]
fn a_port_is_shared_while_a_socket_of_it_is_elsewhere() {
    let none = SharedPorts::new(7, 4);
    let member = bound(PORT, Reuse::Port);
    let here = none.with(53, [(home(), member)]);
    assert_eq!(here, none);
    let both = here.with(53, [(home(), member), (home() ^ 1, member)]);
    assert!(both.has(53) && !both.has(54) && !both.is_empty());
    assert_eq!(both.with(53, []), none);
}

/// Each flow has one shard, and the flows of many peers, or of one peer's ports, are spread evenly.
#[test]
fn flows_are_spread_over_the_sockets() {
    let members = (0..3).map(|shard| (shard, bound(PORT, Reuse::Port)));
    let ports = SharedPorts::new(0x1234_5678, 4).with(53, members);
    let count = |remotes: &mut dyn Iterator<Item = String>| {
        let mut counts = [0; 4];
        for remote in remotes {
            let Belongs::To(one) = shard(&ports, PORT, &remote) else {
                panic!("a datagram of one flow")
            };
            counts[usize::from(one)] += 1;
        }
        counts
    };
    let by_port = count(&mut (0..3000).map(|n| format!("10.9.0.1:{}", 30_000 + n)));
    let by_host = count(&mut (0..3000).map(|n| format!("10.{}.{}.1:53", n / 250, n % 250)));
    let by_host6 = count(&mut (0..3000).map(|n| format!("[fd00::{n:x}]:5353")));
    for counts in [by_port, by_host, by_host6] {
        let fair = |n: &i32| n.abs_diff(1000) < 150;
        assert!(counts[..3].iter().all(fair) && counts[3] == 0, "{counts:?}");
    }
}

/// Connected beats bound to an address beats wildcard, wherever each is.
#[test]
fn the_best_socket_decides() {
    let mut connected = bound(PORT, Reuse::Port);
    connected.remote = Some(at("10.9.0.1:1000"));
    let members = [
        (0, bound("0.0.0.0:53", Reuse::Both)),
        (1, bound(PORT, Reuse::Port)),
        (2, connected),
    ];
    let ports = SharedPorts::new(1, 4).with(53, members);
    assert_eq!(shard(&ports, PORT, "10.9.0.1:1000"), Belongs::To(2));
    assert_eq!(shard(&ports, PORT, "10.9.0.1:1001"), Belongs::To(1));
    assert_eq!(
        shard(&ports, "10.9.0.3:53", "10.9.0.1:1000"),
        Belongs::To(0)
    );
    assert_eq!(
        shard(&ports, "[fd00::1]:53", "[fd00::2]:9"),
        Belongs::To(home())
    );
    // Each of them gets what is sent to a group.
    let group = at("224.0.0.251:53");
    let whose = ports.shard_of_datagram(group, at("10.9.0.1:53"), IfaceId::FIRST, true);
    assert_eq!(whose, Belongs::All);
}

#[test]
fn ports_without_such_sockets_are_as_before() {
    let ports = SharedPorts::new(1, 4).with(53, [(home() ^ 1, bound(PORT, Reuse::Port))]);
    for port in [54, 5353, 60_000] {
        let local = format!("10.9.0.2:{port}");
        let whose = shard(&ports, &local, "10.9.0.1:9");
        assert_eq!(whose, Belongs::To(shard_of_udp(port, 4)));
    }
}

proptest! {
    /// A frame says the same as what is in it.
    #[test]
    fn frames_belong_where_their_datagram_does(
        v4 in any::<bool>(),
        from in any::<u128>(),
        port in any::<u16>(),
        seed in any::<u32>(),
        count in 2..=64u8,
    ) {
        let (from, to) = match v4 {
            true => (Ip::v4((from as u32).into()), at("10.9.0.2:53")),
            false => (Ip::v6(from.into()), at("[fd00::2]:53")),
        };
        let mut binding = bound(PORT, Reuse::Port);
        binding.local = to;
        let ports = Arc::new(SharedPorts::new(seed, count).with(53, (0..count).map(|n| (n, binding))));
        let mut frame = vec![2; 12];
        let (hi, lo) = from.words();
        if v4 {
            frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0]);
            frame.extend((lo as u32).to_be_bytes());
            frame.extend(to.ip.to_v4().octets());
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64]);
            frame.extend(hi.to_be_bytes());
            frame.extend(lo.to_be_bytes());
            frame.extend(to.ip.to_v6().octets());
        }
        frame.extend(port.to_be_bytes());
        frame.extend(53u16.to_be_bytes());
        frame.extend([0, 8, 0, 0]);
        let remote = Endpoint { ip: from, port };
        let whose = ports.shard_of_datagram(to, remote, IfaceId::FIRST, false);
        prop_assert_eq!(ports.shard_of(&frame, IfaceId::FIRST), whose);
    }
}
