//! Behaviour that takes more than one connection or more than TCP.

use std::net::SocketAddr;
use std::time::Duration;

use kcm_stack::limits::EPHEMERAL_PORTS;
use kcm_stack::{
    Cause, ConnectOptions, Event, ListenOptions, PmtuDiscovery, Ready, Received, RecvError,
    SendError, SockFlag, SockOpts, SocketError, State, UdpOpts,
};

use crate::basic::{establish, listen, perfect};
use crate::link::LinkConfig;
use crate::net::{MAC, Net, at, ip, ip6};
use crate::transfer::transfer;
use crate::world::World;

const SOON: Duration = Duration::from_secs(5);

/// A SYN from an address that will never answer.
fn spoofed_syn(i: u32) -> Vec<u8> {
    let mut f = vec![0u8; 58];
    f[..6].copy_from_slice(&MAC[1]);
    f[6..12].copy_from_slice(&MAC[0]);
    f[12..17].copy_from_slice(&[8, 0, 0x45, 0, 0]);
    f[17] = 44;
    f[22] = 64;
    f[23] = 6;
    f[26..30].copy_from_slice(&(0x0a00_0010 + (i >> 16)).to_be_bytes());
    f[30..34].copy_from_slice(&[10, 0, 0, 2]);
    let sum: u32 = f[14..34]
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(c[1]))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    f[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    f[34..36].copy_from_slice(&(i as u16 | 1).to_be_bytes());
    f[37] = 80;
    f[38..42].copy_from_slice(&i.to_be_bytes());
    f[46] = 0x60;
    f[47] = 2;
    f[48] = 0xff;
    f[54..58].copy_from_slice(&[2, 4, 5, 180]);
    f
}

#[test]
fn a_syn_flood_leaves_bounded_state_and_cookies_let_others_in() {
    let mut net = perfect();
    let l = listen(&mut net, 80);
    let mut buf = vec![0; 2048];
    for i in 0..20_000 {
        let now = net.now;
        net.stacks[1].handle_frame(now, &spoofed_syn(i), Received { checksum_ok: true });
        while net.stacks[1].poll_transmit(now, &mut buf).is_some() {}
    }
    assert!(
        net.stacks[1].flow_count() <= 1024,
        "{} embryos",
        net.stacks[1].flow_count()
    );
    assert!(net.stacks[1].tcp_stats().cookies_sent > 15_000);
    let c = net.stacks[0]
        .tcp_connect(net.now, at(1, 80), &ConnectOptions::default())
        .unwrap();
    net.run_until(SOON, "connection by cookie", |n| {
        n.stacks[1].tcp_accept_queue_len(l) == Some(1)
    });
    assert_eq!(net.stacks[1].tcp_stats().cookies_ok, 1);
    let s = net.stacks[1].tcp_accept(l).unwrap();
    let info = net.stacks[1].tcp_info(net.now, s).unwrap();
    // The timestamp carried what the cookie could not.
    assert!(info.sack && info.window_scale && info.timestamps);
    assert_eq!((info.snd_wscale, info.snd_mss), (7, 1448));
    let now = net.now;
    net.stacks[0]
        .tcp_send(now, c, &[&[1; 50_000]], false)
        .unwrap();
    net.run_until(SOON, "data", |n| {
        n.stacks[1].tcp_queues(s).is_some_and(|q| q.0 == 50_000)
    });
}

#[test]
fn reuseport_listeners_share_connections() {
    let mut net = perfect();
    let options = ListenOptions {
        backlog: 200,
        reuse_port: true,
        ..ListenOptions::default()
    };
    let group: Vec<_> = (0..4)
        .map(|_| net.stacks[1].tcp_listen(at(1, 80), &options).unwrap())
        .collect();
    for _ in 0..100 {
        net.stacks[0]
            .tcp_connect(net.now, at(1, 80), &ConnectOptions::default())
            .unwrap();
    }
    net.run_for(Duration::from_secs(1));
    let counts: Vec<_> = group
        .iter()
        .map(|l| net.stacks[1].tcp_accept_queue_len(*l).unwrap())
        .collect();
    assert_eq!(counts.iter().sum::<usize>(), 100);
    assert!(counts.iter().all(|c| *c > 5), "{counts:?}");
}

#[test]
fn wildcards_and_both_families_find_their_listener() {
    let mut net = perfect();
    let any: SocketAddr = "[::]:80".parse().unwrap();
    let l = net.stacks[1]
        .tcp_listen(
            any,
            &ListenOptions {
                backlog: 9,
                ..Default::default()
            },
        )
        .unwrap();
    let exact = net.stacks[1]
        .tcp_listen(at(1, 80), &ListenOptions::default())
        .unwrap();
    let v6 = SocketAddr::new(ip6(1), 80);
    for to in [at(1, 80), v6] {
        net.stacks[0]
            .tcp_connect(net.now, to, &ConnectOptions::default())
            .unwrap();
    }
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.stacks[1].tcp_accept_queue_len(exact), Some(1));
    assert_eq!(net.stacks[1].tcp_accept_queue_len(l), Some(1));
    let now = net.now;
    net.stacks[1].tcp_unlisten(now, exact);
    assert_eq!(net.stacks[1].tcp_accept_queue_len(exact), None);
    net.stacks[0]
        .tcp_connect(net.now, at(1, 80), &ConnectOptions::default())
        .unwrap();
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.stacks[1].tcp_accept_queue_len(l), Some(2));
}

#[test]
fn a_full_accept_queue_delays_but_does_not_lose() {
    let mut net = perfect();
    let options = ListenOptions {
        backlog: 1,
        ..ListenOptions::default()
    };
    let l = net.stacks[1].tcp_listen(at(1, 80), &options).unwrap();
    for _ in 0..6 {
        net.stacks[0]
            .tcp_connect(net.now, at(1, 80), &ConnectOptions::default())
            .unwrap();
    }
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.stacks[1].tcp_accept_queue_len(l), Some(2));
    let mut accepted = 0;
    net.run_until(Duration::from_secs(60), "all six", |n| {
        accepted += usize::from(n.stacks[1].tcp_accept(l).is_some());
        accepted == 6
    });
}

#[test]
fn a_path_that_swallows_large_packets_is_survived() {
    let link = || LinkConfig {
        mtu: 1200,
        ..LinkConfig::default()
    };
    let (took, net) = transfer(
        [link(), link()],
        3,
        [60_000, 0],
        Duration::from_secs(60),
        |_, _| {},
        &ConnectOptions::default(),
    );
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(net.stacks[0].tcp_stats().black_holes > 0);
}

#[test]
fn a_reader_that_stops_stops_the_writer_and_wakes_it_again() {
    let mut net = perfect();
    let (c, s) = establish(&mut net, 80);
    let chunk = [3u8; 10_000];
    let mut written = 0;
    for _ in 0..400 {
        let now = net.now;
        match net.stacks[0].tcp_send(now, c, &[&chunk], false) {
            Ok(n) => written += n,
            Err(SendError::WouldBlock) => {
                net.run_for(Duration::from_millis(50));
            }
            Err(e) => panic!("{e}"),
        }
    }
    let held = net.stacks[1].tcp_queues(s).unwrap().0;
    assert!((100_000..=131_072).contains(&held), "{held}");
    assert!(!net.stacks[0].tcp_can_send(c));
    net.events[0].clear();
    let mut read = 0;
    let mut buf = [0; 65_536];
    net.run_until(Duration::from_secs(30), "all read", |n| {
        while let Ok(k) = n.stacks[1].tcp_recv(n.now, s, &mut buf) {
            read += k;
        }
        read == written
    });
    let woken =
        |e: &Event| matches!(e, Event::Tcp(id, r) if *id == c && r.contains(Ready::WRITABLE));
    assert!(
        net.events[0].iter().any(woken),
        "WRITABLE follows WouldBlock"
    );
}

#[test]
fn borrowed_slices_are_the_stream() {
    let mut net = perfect();
    let (c, s) = establish(&mut net, 80);
    let data: Vec<u8> = (0..30_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let now = net.now;
    net.stacks[0]
        .tcp_send(now, c, &[&data[..9], &data[9..]], false)
        .unwrap();
    net.run_until(SOON, "data", |n| {
        n.stacks[1].tcp_queues(s).is_some_and(|q| q.0 == 30_000)
    });
    let joined: Vec<u8> = net.stacks[1]
        .tcp_peek_slices(s)
        .flatten()
        .copied()
        .collect();
    assert_eq!(joined, data);
    let now = net.now;
    net.stacks[1].tcp_consume(now, s, 10_001);
    let rest: Vec<u8> = net.stacks[1]
        .tcp_peek_slices(s)
        .flatten()
        .copied()
        .collect();
    assert_eq!(rest, data[10_001..]);
}

#[test]
fn stale_handles_are_refused_everywhere() {
    let mut net = perfect();
    let (c, _) = establish(&mut net, 80);
    let now = net.now;
    net.stacks[0].tcp_close(now, c);
    let mut buf = [0; 8];
    let s = &mut net.stacks[0];
    assert_eq!(
        s.tcp_send(now, c, &[b"x"], false),
        Err(SendError::BadHandle)
    );
    assert_eq!(s.tcp_recv(now, c, &mut buf), Err(RecvError::BadHandle));
    assert_eq!(s.tcp_state(c), None);
    assert!(s.tcp_info(now, c).is_none() && s.tcp_peek_slices(c).next().is_none());
    assert!(s.tcp_set_flag(now, c, SockFlag::NoDelay, true).is_err());
    assert!(s.tcp_set_opts(now, c, SockOpts::DEFAULT).is_err());
    s.tcp_close(now, c);
    s.tcp_abort(now, c);
}

#[test]
fn memory_stays_below_its_limit_and_traffic_goes_on() {
    let mut net = Net::with([LinkConfig::default(), LinkConfig::default()], 1, |_, c| {
        c.tcp.stream_bytes_max = 1 << 20;
    });
    let l = net.stacks[1]
        .tcp_listen(
            at(1, 80),
            &ListenOptions {
                backlog: 100,
                ..Default::default()
            },
        )
        .unwrap();
    let ids: Vec<_> = (0..60)
        .map(|_| {
            net.stacks[0]
                .tcp_connect(net.now, at(1, 80), &ConnectOptions::default())
                .unwrap()
        })
        .collect();
    net.run_for(Duration::from_secs(1));
    let mut servers = Vec::new();
    while let Some(s) = net.stacks[1].tcp_accept(l) {
        servers.push(s);
    }
    assert_eq!(servers.len(), 60);
    let mut left: Vec<usize> = vec![100_000; 60];
    let mut read = 0;
    let mut buf = [0; 4096];
    let end = net.now + Duration::from_secs(600);
    while read < 60 * 100_000 {
        let now = net.now;
        for (id, left) in ids.iter().zip(&mut left) {
            if *left > 0
                && let Ok(n) = net.stacks[0].tcp_send(now, *id, &[&buf[..(*left).min(4096)]], false)
            {
                *left -= n;
            }
        }
        // One slow reader at a time.
        let s = servers[read / 4096 % 60];
        for s in std::iter::once(&s).chain(&servers) {
            if let Ok(n) = net.stacks[1].tcp_recv(now, *s, &mut buf[..512]) {
                read += n;
            }
        }
        for s in &net.stacks {
            assert!(s.stream_bytes() <= 1 << 20);
        }
        net.run_for(Duration::from_millis(1));
        assert!(net.now < end, "stuck with {read} bytes read");
    }
}

#[test]
fn ports_are_random_and_tuples_unique() {
    let mut net = perfect();
    listen(&mut net, 80);
    let mut ports = std::collections::BTreeSet::new();
    let mut in_order = 0;
    let mut last = 0;
    for _ in 0..2_000 {
        let c = net.stacks[0]
            .tcp_connect(net.now, at(1, 80), &ConnectOptions::default())
            .unwrap();
        let port = net.stacks[0].tcp_addresses(c).unwrap().0.port();
        assert!(ports.insert(port), "port {port} twice towards one peer");
        in_order += usize::from(port == last + 1);
        last = port;
    }
    assert!(in_order < 20, "{in_order} of 2000 are guessable");
}

#[test]
fn every_ephemeral_port_serves_before_they_are_exhausted() {
    let mut net = perfect();
    net.check = false;
    let ports = usize::from(*EPHEMERAL_PORTS.end() - *EPHEMERAL_PORTS.start()) + 1;
    let mut connect = |port| {
        let options = ConnectOptions::default();
        net.stacks[0].tcp_connect(net.now, at(1, port), &options)
    };
    for n in 0..ports {
        assert!(connect(80).is_ok(), "{n} of {ports}");
    }
    assert_eq!(connect(80), Err(SocketError::PortsExhausted));
    assert!(connect(81).is_ok());
}

#[test]
fn udp_round_trip_refusal_and_bounds() {
    let mut net = perfect();
    let a = net.stacks[0].udp_bind(at(0, 0), false).unwrap();
    let b = net.stacks[1]
        .udp_bind("0.0.0.0:53".parse().unwrap(), false)
        .unwrap();
    let now = net.now;
    assert_eq!(
        net.stacks[0].udp_send(now, a, None, &[b"x"]),
        Err(SendError::NoDestination)
    );
    let mut send = |len: usize| net.stacks[0].udp_send(now, a, Some(at(1, 53)), &[&vec![0; len]]);
    assert_eq!(send(65_508), Err(SendError::TooBig));
    let strict = UdpOpts {
        pmtu_discovery: PmtuDiscovery::Do,
        ..UdpOpts::default()
    };
    net.stacks[0].udp_set_opts(a, strict).unwrap();
    let mut send = |len: usize| net.stacks[0].udp_send(now, a, Some(at(1, 53)), &[&vec![0; len]]);
    assert_eq!(send(1473), Err(SendError::TooBig));
    net.stacks[0]
        .udp_send(now, a, Some(at(1, 53)), &[b"que", b"ry"])
        .unwrap();
    net.run_for(Duration::from_millis(100));
    let d = net.stacks[1].udp_recv(b).unwrap();
    assert_eq!((&d.data[..], d.to), (&b"query"[..], at(1, 53)));
    let now = net.now;
    net.stacks[1]
        .udp_send(now, b, Some(d.from), &[b"answer"])
        .unwrap();
    net.run_for(Duration::from_millis(100));
    assert_eq!(&net.stacks[0].udp_recv(a).unwrap().data[..], b"answer");
    // Nobody listens on 54: a connected socket hears of it.
    net.stacks[0].udp_connect(a, Some(at(1, 54))).unwrap();
    let now = net.now;
    net.stacks[0].udp_send(now, a, None, &[b"x"]).unwrap();
    net.run_for(Duration::from_millis(100));
    assert_eq!(
        net.stacks[0].udp_recv(a),
        Err(RecvError::Failed(Cause::Refused))
    );
    // A queue is bounded by bytes.
    net.stacks[0].udp_connect(a, None).unwrap();
    for _ in 0..2_000 {
        let now = net.now;
        let _ = net.stacks[0].udp_send(now, a, Some(at(1, 53)), &[&[0; 1000]]);
        net.run_for(Duration::from_millis(2));
    }
    assert!(net.stacks[1].udp_stats().rcvbuf_errors > 1_000);
    let mut queued = 0;
    while net.stacks[1].udp_recv(b).is_ok() {
        queued += 1;
    }
    assert!(queued < 180, "{queued}");
}

#[test]
fn ping_is_answered_in_both_families() {
    let mut net = perfect();
    net.tap = Some(Vec::new());
    let mut echo = vec![8, 0, 0, 0, 0, 7, 0, 1, b'p', b'i'];
    let sum: u32 = echo
        .chunks(2)
        .map(|c: &[u8]| u32::from(c[0]) << 8 | u32::from(c[1]))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    echo[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let mut f = spoofed_syn(0);
    f.truncate(34);
    f[17] = 30;
    f[23] = 1;
    f[24..26].fill(0);
    f[26..30].copy_from_slice(&[10, 0, 0, 1]);
    let sum: u32 = f[14..34]
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(c[1]))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    f[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    f.extend(&echo);
    let now = net.now;
    net.stacks[1].add_neighbor(ip(0), MAC[0], now);
    net.stacks[1].handle_frame(now, &f, Received::default());
    net.flush();
    let (from, reply) = net.tap.take().unwrap().pop().unwrap();
    assert_eq!((from, reply[23], reply[34]), (1, 1, 0));
    assert_eq!(reply[38..], echo[4..]);
}

#[test]
fn time_wait_gives_its_port_to_a_new_connection() {
    let mut net = perfect();
    let local = Some(SocketAddr::new(ip(0), 4000));
    let options = ConnectOptions {
        local,
        ..ConnectOptions::default()
    };
    let l = listen(&mut net, 80);
    for round in 0..3 {
        let c = net.stacks[0]
            .tcp_connect(net.now, at(1, 80), &options)
            .unwrap();
        net.run_until(SOON, "handshake", |n| {
            n.stacks[1].tcp_accept_queue_len(l) == Some(1)
        });
        let s = net.stacks[1].tcp_accept(l).unwrap();
        let now = net.now;
        net.stacks[0].tcp_close(now, c);
        net.run_for(Duration::from_millis(100));
        let now = net.now;
        net.stacks[1].tcp_close(now, s);
        net.run_for(Duration::from_millis(500));
        assert_eq!(net.stacks[0].flow_count(), 1, "round {round}: TIME-WAIT");
        // tcp_tw_reuse asks for a second of silence.
        assert!(
            net.stacks[0]
                .tcp_connect(net.now, at(1, 80), &options)
                .is_err()
        );
        net.run_for(Duration::from_secs(1));
    }
}

#[test]
fn simultaneous_open_across_the_network() {
    let mut net = perfect();
    let [a, b] = [0, 1].map(|i| ConnectOptions {
        local: Some(at(i, 7000)),
        ..Default::default()
    });
    let c = net.stacks[0].tcp_connect(net.now, at(1, 7000), &a).unwrap();
    let s = net.stacks[1].tcp_connect(net.now, at(0, 7000), &b).unwrap();
    net.run_until(SOON, "both established", |n| {
        n.stacks[0].tcp_state(c) == Some(State::Established)
            && n.stacks[1].tcp_state(s) == Some(State::Established)
    });
    let now = net.now;
    net.stacks[0].tcp_send(now, c, &[b"hi"], false).unwrap();
    net.run_until(SOON, "data", |n| n.stacks[1].tcp_can_recv(s));
}

/// How many segments side `side` has sent since the last look.
fn sent(net: &mut Net, side: usize) -> usize {
    let all = net.tap.replace(Vec::new()).unwrap_or_default();
    let is_tcp = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 6;
    let ours = all.iter().filter(|(from, f)| *from == side && is_tcp(f));
    ours.count()
}

#[test]
fn held_acknowledgements_go_with_what_the_program_says_next() {
    let link = || LinkConfig {
        delay: Duration::from_micros(100),
        ..LinkConfig::default()
    };
    let mut net = Net::with([link(), link()], 7, |_, config| config.tcp.hold_acks = true);
    let l = listen(&mut net, 80);
    net.tap = Some(Vec::new());
    let moment = Duration::from_millis(1);
    let c = net.stacks[0].tcp_connect(net.now, at(1, 80), &ConnectOptions::default());
    let c = c.unwrap();
    net.run_for(moment);
    assert_eq!(net.stacks[0].tcp_state(c), Some(State::Established));
    assert_eq!(sent(&mut net, 0), 1, "the SYN alone");
    net.stacks[0].tcp_send(net.now, c, &[b"q"], false).unwrap();
    net.run_for(moment);
    assert_eq!(sent(&mut net, 0), 1, "the question ends the handshake");

    let s = net.stacks[1].tcp_accept(l).unwrap();
    let mut byte = [0];
    assert_eq!(net.stacks[1].tcp_recv(net.now, s, &mut byte), Ok(1));
    net.stacks[1].tcp_send(net.now, s, &[b"a"], false).unwrap();
    net.run_for(moment);
    // Of side 1 only the SYN-ACK was counted away above.
    assert_eq!(sent(&mut net, 1), 1, "the answer acknowledges");
    assert_eq!(net.stacks[0].tcp_recv(net.now, c, &mut byte), Ok(1));

    // Side 1 ends: side 0 has nothing to say yet, then ends too.
    net.stacks[1].tcp_shutdown(net.now, s, false, true).unwrap();
    net.run_for(moment);
    assert_eq!(sent(&mut net, 0), 0);
    net.stacks[0].tcp_close(net.now, c);
    net.run_for(moment);
    assert_eq!(sent(&mut net, 0), 1, "the FIN acknowledges that of side 1");
}

#[test]
fn held_acknowledgements_are_released_by_call_and_by_time() {
    let mut net = Net::with(Default::default(), 8, |_, config| {
        config.tcp.hold_acks = true
    });
    listen(&mut net, 80);
    let connect = |net: &mut Net| {
        let c = net.stacks[0].tcp_connect(net.now, at(1, 80), &ConnectOptions::default());
        let c = c.unwrap();
        net.run_until(SOON, "the SYN-ACK", |n| {
            n.stacks[0].tcp_state(c) == Some(State::Established)
        });
        net.tap = Some(Vec::new());
    };
    connect(&mut net);
    let now = net.now;
    net.stacks[0].tcp_release_acks(now);
    net.flush();
    assert_eq!(sent(&mut net, 0), 1);
    net.stacks[0].tcp_release_acks(now);
    net.flush();
    assert_eq!(sent(&mut net, 0), 0, "once");

    connect(&mut net);
    net.flush();
    assert_eq!(sent(&mut net, 0), 0);
    net.run_for(kcm_stack::limits::ACK_HOLD * 2);
    assert_eq!(sent(&mut net, 0), 1, "nobody came");
}
