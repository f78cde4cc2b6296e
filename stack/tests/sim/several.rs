//! Several stacks, several interfaces.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use kcm_stack::{
    Cause, ConnectOptions, IfaceId, ListenOptions, RecvError, SendError, SocketError, State,
    Strangers, TcpId, UdpBindOptions, UdpOpts, UdpSendOptions,
};

use crate::fabric::{Fabric, ip, ip6};
use crate::link::{LinkConfig, Rng};
use crate::world::World;

const SOON: Duration = Duration::from_secs(10);

fn second() -> IfaceId {
    IfaceId::from_index(1).unwrap()
}

fn backlog(n: usize) -> ListenOptions {
    ListenOptions {
        backlog: n,
        ..ListenOptions::default()
    }
}

/// A connection between two hosts and the stream in one direction.
struct Flow {
    from: (usize, TcpId),
    to: (usize, TcpId),
    seed: u64,
    sent: usize,
    got: usize,
}

fn byte(seed: u64, i: usize) -> u8 {
    (Rng(seed ^ i as u64).next() >> 11) as u8
}

impl Flow {
    /// Moves what moves of `len` bytes; true once all arrived.
    fn pump(&mut self, f: &mut Fabric, len: usize) -> bool {
        let mut buf = [0; 4_096];
        while self.sent < len {
            let n = (len - self.sent).min(1_777);
            let data: Vec<u8> = (0..n).map(|i| byte(self.seed, self.sent + i)).collect();
            match f.stacks[self.from.0].tcp_send(f.now, self.from.1, &[&data], false) {
                Ok(k) => self.sent += k,
                Err(SendError::WouldBlock) => break,
                Err(e) => panic!("{e:?}"),
            }
        }
        loop {
            match f.stacks[self.to.0].tcp_recv(f.now, self.to.1, &mut buf) {
                Ok(n) => {
                    for b in &buf[..n] {
                        assert_eq!(*b, byte(self.seed, self.got), "byte {}", self.got);
                        self.got += 1;
                    }
                }
                Err(RecvError::WouldBlock) => return self.got == len,
                Err(e) => panic!("{e:?}"),
            }
        }
    }
}

fn connect(f: &mut Fabric, from: usize, to: usize, remote: SocketAddr, o: &ConnectOptions) -> Flow {
    let wild = if remote.is_ipv4() { "0.0.0.0" } else { "::" };
    let any = SocketAddr::new(wild.parse().unwrap(), remote.port());
    let options = ListenOptions {
        v6_only: true,
        ..backlog(4)
    };
    let l = f.stacks[to].tcp_listen(any, &options).unwrap();
    let c = f.stacks[from].tcp_connect(f.now, remote, o).unwrap();
    let mut s = None;
    f.run_until(SOON, "handshake", |f| {
        s = s.or_else(|| f.stacks[to].tcp_accept(l));
        s.is_some()
    });
    let now = f.now;
    f.stacks[to].tcp_unlisten(now, l);
    Flow {
        from: (from, c),
        to: (to, s.unwrap()),
        seed: remote.port().into(),
        sent: 0,
        got: 0,
    }
}

#[test]
fn six_stacks_on_one_lossy_switch_all_talk_to_each_other() {
    for seed in 0..4 {
        let link = LinkConfig {
            rate: 50_000_000,
            queue_bytes: 30_000,
            loss: 10_000,
            duplicate: 2_000,
            reorder: 5_000,
            corrupt: 1_000,
            ..LinkConfig::default()
        };
        let mut f = Fabric::new(&[&[0][..]; 6], &link, seed);
        let mut flows = Vec::new();
        for from in 0..6 {
            for to in (0..6).filter(|to| *to != from) {
                let port = (1_000 + from * 10 + to) as u16;
                let remote = if from < to { ip(0, to) } else { ip6(0, to) };
                let remote = SocketAddr::new(remote, port);
                flows.push(connect(
                    &mut f,
                    from,
                    to,
                    remote,
                    &ConnectOptions::default(),
                ));
            }
        }
        f.run_until(Duration::from_secs(300), &format!("seed {seed}"), |f| {
            flows
                .iter_mut()
                .filter(|flow| flow.got < 40_000)
                .all(|flow| flow.pump(f, 40_000))
        });
        for flow in &flows {
            let now = f.now;
            f.stacks[flow.from.0].tcp_close(now, flow.from.1);
            f.stacks[flow.to.0].tcp_close(now, flow.to.1);
        }
        f.run_for(Duration::from_secs(400));
        for s in &f.stacks {
            assert_eq!((s.flow_count(), s.stream_bytes()), (0, 0), "seed {seed}");
        }
    }
}

#[test]
fn each_network_is_reached_by_its_interface_and_from_its_address() {
    let mut f = Fabric::new(&[&[0, 1], &[0], &[1]], &LinkConfig::default(), 1);
    for (lan, host) in [(0, 1), (1, 2)] {
        for remote in [ip(lan, host), ip6(lan, host)] {
            let remote = SocketAddr::new(remote, 80);
            let mut flow = connect(&mut f, 0, host, remote, &ConnectOptions::default());
            let (local, _) = f.stacks[0].tcp_addresses(flow.from.1).unwrap();
            assert!(
                local.ip() == ip(lan, 0) || local.ip() == ip6(lan, 0),
                "{local}"
            );
            f.run_until(SOON, "data", |f| flow.pump(f, 20_000));
        }
    }
    // The other way: a host off the network is reached through the one that is on both? No: we are
    // no router, and there is no route.
    let far = SocketAddr::new(ip(1, 2), 80);
    let refused = f.stacks[1].tcp_connect(f.now, far, &ConnectOptions::default());
    assert_eq!(refused, Err(SocketError::NoRoute));
    assert_eq!(f.stacks[0].interface_for(ip(1, 2)), Some(second()));
}

#[test]
fn a_connection_follows_its_route_to_another_interface() {
    let mut f = Fabric::new(&[&[0, 1], &[0, 1]], &LinkConfig::default(), 2);
    f.stacks[0].set_mtu(second(), 1_000).unwrap();
    let remote = SocketAddr::new(ip(0, 1), 80);
    let mut flow = connect(&mut f, 0, 1, remote, &ConnectOptions::default());
    f.run_until(SOON, "first half", |f| flow.pump(f, 100_000));
    let (a, b) = (f.port(0, 0), f.port(0, 1));
    let before = (f.sent[a], f.sent[b]);
    assert!(before.0 > 60);
    // The peer's first address is now behind its second (Linux's weak host model).
    f.stacks[0]
        .add_route_on(second(), ip(0, 1), 32, Some(ip(1, 1)))
        .unwrap();
    f.run_until(SOON, "second half", |f| flow.pump(f, 200_000));
    assert_eq!(f.sent[a], before.0, "nothing leaves by the old way");
    let info = f.stacks[0].tcp_info(f.now, flow.from.1).unwrap();
    assert_eq!(info.snd_mss, 1_000 - 40 - 12, "the new link's MTU rules");
    // And back.
    assert!(f.stacks[0].remove_route(second(), ip(0, 1), 32));
    let there = f.sent[b];
    f.run_until(SOON, "third part", |f| flow.pump(f, 300_000));
    assert_eq!(f.sent[b], there);
}

#[test]
fn sockets_bound_to_an_interface_hear_and_use_no_other() {
    let mut f = Fabric::new(&[&[0, 1], &[0, 1]], &LinkConfig::default(), 3);
    let any: SocketAddr = "0.0.0.0:80".parse().unwrap();
    let on = |iface| ListenOptions {
        iface,
        ..backlog(4)
    };
    let first = f.stacks[1]
        .tcp_listen(any, &on(Some(IfaceId::FIRST)))
        .unwrap();
    let taken = f.stacks[1].tcp_listen(any, &on(None));
    assert_eq!(taken, Err(SocketError::AddressInUse));
    let other = f.stacks[1].tcp_listen(any, &on(Some(second()))).unwrap();
    for lan in 0..2 {
        let to = SocketAddr::new(ip(lan, 1), 80);
        f.stacks[0]
            .tcp_connect(f.now, to, &ConnectOptions::default())
            .unwrap();
    }
    f.run_for(Duration::from_secs(1));
    for l in [first, other] {
        assert_eq!(f.stacks[1].tcp_accept_queue_len(l), Some(1));
    }
    // Connecting over an interface that has no route: its link is asked, in vain.
    let bound = ConnectOptions {
        iface: Some(second()),
        ..ConnectOptions::default()
    };
    let to = SocketAddr::new(ip(0, 77), 80);
    let c = f.stacks[0].tcp_connect(f.now, to, &bound).unwrap();
    f.run_for(Duration::from_secs(5));
    assert_eq!(f.stacks[0].tcp_take_error(c), Some(Cause::HostUnreachable));
    let nowhere = ConnectOptions {
        iface: IfaceId::from_index(7),
        ..ConnectOptions::default()
    };
    let refused = f.stacks[0].tcp_connect(f.now, to, &nowhere);
    assert_eq!(refused, Err(SocketError::NoInterface));
    // UDP: the bound socket is preferred where it hears, and deaf elsewhere.
    let options = |iface| UdpBindOptions {
        reuse: kcm_stack::Reuse::Address,
        iface,
        ..UdpBindOptions::default()
    };
    let port: SocketAddr = "0.0.0.0:53".parse().unwrap();
    let narrow = f.stacks[1]
        .udp_bind_with(port, &options(Some(second())))
        .unwrap();
    let wide = f.stacks[1].udp_bind_with(port, &options(None)).unwrap();
    let u = f.stacks[0]
        .udp_bind("0.0.0.0:0".parse().unwrap(), false)
        .unwrap();
    for lan in 0..2u8 {
        let to = SocketAddr::new(ip(lan.into(), 1), 53);
        f.stacks[0].udp_send(f.now, u, Some(to), &[&[lan]]).unwrap();
    }
    f.run_for(Duration::from_secs(1));
    let d = f.stacks[1].udp_recv(narrow).unwrap();
    assert_eq!(
        (&d.data[..], d.iface, d.from.ip()),
        (&[1][..], second(), ip(1, 0))
    );
    let d = f.stacks[1].udp_recv(wide).unwrap();
    assert_eq!(
        (&d.data[..], d.iface, d.to.ip()),
        (&[0][..], IfaceId::FIRST, ip(0, 1))
    );
}

#[test]
fn link_local_addresses_mean_what_their_scope_says() {
    let mut f = Fabric::new(&[&[0, 1], &[0], &[1]], &LinkConfig::default(), 4);
    let local = |n: u16| IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, n]);
    for iface in [IfaceId::FIRST, second()] {
        f.stacks[0].add_address_on(iface, local(1), 64).unwrap();
    }
    // Both neighbours have the same address, each on its own link.
    for host in [1, 2] {
        f.stacks[host].add_address(local(9), 64).unwrap();
        f.stacks[host]
            .tcp_listen("[::]:80".parse().unwrap(), &backlog(4))
            .unwrap();
        let u = f.stacks[host]
            .udp_bind("[::]:53".parse().unwrap(), false)
            .unwrap();
        let IpAddr::V6(nine) = local(9) else {
            unreachable!()
        };
        let scope = IfaceId::from_index(host - 1).unwrap().scope_id();
        let to = |port| SocketAddr::V6(SocketAddrV6::new(nine, port, 0, scope));
        let c = f.stacks[0]
            .tcp_connect(f.now, to(80), &ConnectOptions::default())
            .unwrap();
        let mine = f.stacks[0]
            .udp_bind("[::]:0".parse().unwrap(), false)
            .unwrap();
        f.stacks[0]
            .udp_send(f.now, mine, Some(to(53)), &[&[host as u8]])
            .unwrap();
        f.run_for(Duration::from_secs(1));
        assert!(f.stacks[0].tcp_may_send(c), "host {host}");
        let d = f.stacks[host].udp_recv(u).unwrap();
        assert_eq!((d.data[0], d.from.ip()), (host as u8, local(1)));
        f.stacks[host]
            .udp_send(f.now, u, Some(d.from), &[b"back"])
            .unwrap();
        f.run_for(Duration::from_secs(1));
        assert_eq!(f.stacks[0].udp_recv(mine).unwrap().from, to(53));
    }
}

#[test]
fn control_messages_choose_source_interface_and_lifetime() {
    let mut f = Fabric::new(&[&[0, 1], &[0, 1]], &LinkConfig::default(), 5);
    let u = f.stacks[0]
        .udp_bind("0.0.0.0:0".parse().unwrap(), false)
        .unwrap();
    let s = f.stacks[1]
        .udp_bind("0.0.0.0:53".parse().unwrap(), false)
        .unwrap();
    let to = Some(SocketAddr::new(ip(0, 1), 53));
    let options = UdpSendOptions {
        source: Some(ip(1, 0)),
        iface: Some(second()),
        ttl: Some(7),
        tos: Some(0x2e << 2),
    };
    // Nobody answers for 10.0.0.2 on the second network, but a router leads there.
    let via = Some(ip(1, 1));
    f.stacks[0]
        .add_route_on(second(), ip(0, 1), 32, via)
        .unwrap();
    let sent = f.stacks[0].udp_send_with(f.now, u, to, &options, &[b"x"]);
    assert_eq!(sent, Ok(1));
    f.run_for(Duration::from_secs(1));
    let d = f.stacks[1].udp_recv(s).unwrap();
    assert_eq!(
        (d.from.ip(), d.to.ip(), d.iface),
        (ip(1, 0), ip(0, 1), second())
    );
    assert_eq!((d.ttl, d.tos), (7, 0xb8));
    // The socket's own.
    assert!(f.stacks[0].remove_route(second(), ip(0, 1), 32));
    let opts = UdpOpts {
        ttl: 9,
        tos: 4,
        ..UdpOpts::default()
    };
    f.stacks[0].udp_set_opts(u, opts).unwrap();
    f.stacks[0].udp_send(f.now, u, to, &[b"y"]).unwrap();
    f.run_for(Duration::from_secs(1));
    let d = f.stacks[1].udp_recv(s).unwrap();
    assert_eq!((d.ttl, d.tos, d.iface), (9, 4, IfaceId::FIRST));
    let alien = UdpSendOptions {
        source: Some(ip(0, 1)),
        ..UdpSendOptions::default()
    };
    let refused = f.stacks[0].udp_send_with(f.now, u, to, &alien, &[b"x"]);
    assert_eq!(refused, Err(SendError::Failed(Cause::SourceNotOurs)));
}

#[test]
fn broadcasts_need_leave_and_reach_every_socket_of_the_network() {
    let mut f = Fabric::new(&[&[0], &[0], &[0]], &LinkConfig::default(), 6);
    let port: SocketAddr = "0.0.0.0:67".parse().unwrap();
    let listeners: Vec<_> = [1, 1, 2]
        .into_iter()
        .map(|h| (h, f.stacks[h].udp_bind(port, true).unwrap()))
        .collect();
    let u = f.stacks[0]
        .udp_bind("0.0.0.0:0".parse().unwrap(), false)
        .unwrap();
    let to = Some("10.0.0.255:67".parse().unwrap());
    let denied = f.stacks[0].udp_send(f.now, u, to, &[b"hey"]);
    assert_eq!(denied, Err(SendError::Failed(Cause::BroadcastDenied)));
    let opts = UdpOpts {
        broadcast: true,
        ..UdpOpts::default()
    };
    f.stacks[0].udp_set_opts(u, opts).unwrap();
    f.stacks[0].udp_send(f.now, u, to, &[b"hey"]).unwrap();
    f.run_for(Duration::from_secs(1));
    for (host, id) in listeners {
        assert_eq!(&f.stacks[host].udp_recv(id).unwrap().data[..], b"hey");
    }
}

/// A stack that ends tells whoever is in the middle of a handshake: it will not be there for the ACK.
#[test]
fn a_handshake_whose_listener_is_gone_is_reset() {
    let mut f = Fabric::new(&[&[0], &[0]], &LinkConfig::default(), 1);
    let listen = |f: &mut Fabric, port| {
        let any = SocketAddr::new("0.0.0.0".parse().unwrap(), port);
        f.stacks[1].tcp_listen(any, &backlog(4)).unwrap()
    };
    let (gone, stays) = (listen(&mut f, 80), listen(&mut f, 81));
    let [lost, kept] = [80, 81].map(|port| {
        let remote = SocketAddr::new(ip(0, 1), port);
        f.stacks[0].tcp_connect(f.now, remote, &ConnectOptions::default())
    });
    f.run_until(SOON, "two handshakes", |f| f.stacks[1].flow_count() == 2);
    let now = f.now;
    f.stacks[1].tcp_unlisten(now, gone);
    f.stacks[1].tcp_refuse_handshakes(now);
    assert_eq!(f.stacks[1].flow_count(), 1);
    f.stacks[1].set_strangers(Strangers::Ignored);
    f.run_until(SOON, "an end and a beginning", |f| {
        f.stacks[0]
            .tcp_state(lost.unwrap())
            .is_none_or(|s| s == State::Closed)
            && f.stacks[1].tcp_accept(stays).is_some()
    });
    assert_eq!(
        f.stacks[0].tcp_state(kept.unwrap()),
        Some(State::Established)
    );
}
