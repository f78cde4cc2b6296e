//! Datagrams in pieces, over links that mistreat them.

use std::net::SocketAddr;
use std::time::Duration;

use kcm_stack::{PmtuDiscovery, Received, RecvError, SendError, UdpOpts};

use crate::basic::perfect;
use crate::link::{LinkConfig, Rng};
use crate::net::{MAC, Net, at, ip, ip6};
use crate::world::World;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    (0..len).map(|_| rng.next() as u8).collect()
}

#[test]
fn datagrams_of_every_size_arrive_whole_in_both_families() {
    let link = || LinkConfig {
        reorder: 200_000,
        duplicate: 100_000,
        ..LinkConfig::default()
    };
    let mut net = Net::new([link(), link()], 3);
    let sizes = [0, 1, 1452, 1453, 1472, 1473, 1480, 2952, 9_000, 65_507];
    for (six, sizes) in [
        (false, &sizes[..]),
        (true, &[&sizes[..], &[65_527]].concat()),
    ] {
        let addr = |side| if six { ip6(side) } else { ip(side) };
        let a = net.stacks[0]
            .udp_bind(SocketAddr::new(addr(0), 0), false)
            .unwrap();
        let b = net.stacks[1]
            .udp_bind(SocketAddr::new(addr(1), 53), false)
            .unwrap();
        for &len in sizes {
            let data = noise(len, len as u64);
            let to = Some(SocketAddr::new(addr(1), 53));
            let now = net.now;
            let (head, tail) = data.split_at(len / 3);
            assert_eq!(net.stacks[0].udp_send(now, a, to, &[head, tail]), Ok(len));
            net.run_for(Duration::from_millis(200));
            let got = net.stacks[1]
                .udp_recv(b)
                .unwrap_or_else(|e| panic!("{len}: {e:?}"));
            assert!(*got.data == *data, "{len}");
            // Duplicated whole datagrams are datagrams.
            while net.stacks[1].udp_recv(b).is_ok() {}
        }
    }
    let stats = (net.stacks[0].link_stats(), net.stacks[1].link_stats());
    assert!(stats.0.fragments_out > 150);
    assert!(stats.1.reassembled >= 12 && stats.1.fragment_overlaps == 0);
    assert!(stats.1.fragment_duplicates > 5);
}

#[test]
fn a_lost_fragment_costs_its_datagram_and_is_reported_after_a_while() {
    for six in [false, true] {
        let mut net = perfect();
        let addr = |side| if six { ip6(side) } else { ip(side) };
        let a = net.stacks[0]
            .udp_bind(SocketAddr::new(addr(0), 0), false)
            .unwrap();
        let b = net.stacks[1]
            .udp_bind(SocketAddr::new(addr(1), 53), false)
            .unwrap();
        let to = SocketAddr::new(addr(1), 53);
        // A first datagram resolves the neighbour.
        let now = net.now;
        net.stacks[0].udp_send(now, a, Some(to), &[b"x"]).unwrap();
        net.run_for(Duration::from_millis(100));
        net.stacks[0].udp_connect(a, Some(to)).unwrap();
        let now = net.now;
        net.stacks[0]
            .udp_send(now, a, None, &[&[7; 5_000]])
            .unwrap();
        let mut buf = vec![0; 2_000];
        let (mut nth, mut first) = (0, Vec::new());
        while let Some(t) = net.stacks[0].poll_transmit(now, &mut buf) {
            if nth == 0 {
                first = buf[..t.len].to_vec();
            }
            if nth != 2 {
                net.stacks[1].handle_frame(now, &buf[..t.len], Received::default());
            }
            nth += 1;
        }
        assert_eq!(nth, 4);
        assert_eq!(net.stacks[1].udp_recv(b).unwrap().data.len(), 1);
        net.tap = Some(Vec::new());
        net.run_for(Duration::from_secs(if six { 59 } else { 29 }));
        assert_eq!(net.stacks[1].link_stats().fragment_timeouts, 0);
        assert_eq!(net.stacks[0].udp_recv(a), Err(RecvError::WouldBlock));
        net.run_for(Duration::from_secs(2));
        assert_eq!(net.stacks[1].link_stats().fragment_timeouts, 1);
        // Time exceeded, code 1, about the first fragment. Linux keeps it from sockets that did not
        // ask for it.
        let (kind, at) = if six { ([3, 1], 54) } else { ([11, 1], 34) };
        let told = net.tap.take().unwrap();
        let told = told
            .iter()
            .find(|(side, f)| *side == 1 && f[at..at + 2] == kind);
        let quote = &told.expect("time exceeded").1[at + 8..];
        assert_eq!(quote[..at - 14], first[14..at]);
        assert_eq!(net.stacks[0].udp_recv(a), Err(RecvError::WouldBlock));
        assert_eq!(net.stacks[1].udp_recv(b), Err(RecvError::WouldBlock));
    }
}

#[test]
fn a_full_queue_takes_all_of_a_datagram_or_nothing() {
    let mut net = perfect();
    let a = net.stacks[0].udp_bind(at(0, 0), false).unwrap();
    net.stacks[0].add_neighbor(ip(1), MAC[1], net.now);
    let now = net.now;
    let mut whole = 0;
    let full = loop {
        match net.stacks[0].udp_send(now, a, Some(at(1, 53)), &[&[1; 20_000]]) {
            Ok(_) => whole += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(full, SendError::WouldBlock);
    assert!(
        !net.stacks[0]
            .udp_ready(a)
            .contains(kcm_stack::Ready::WRITABLE)
    );
    let mut buf = vec![0; 2_000];
    let mut frames = 0;
    while net.stacks[0].poll_transmit(now, &mut buf).is_some() {
        frames += 1;
    }
    assert_eq!(frames, whole * 14);
    let event = net.stacks[0].poll_event();
    assert_eq!(
        event,
        Some(kcm_stack::Event::Udp(a, kcm_stack::Ready::WRITABLE))
    );
    let again = net.stacks[0].udp_send(now, a, Some(at(1, 53)), &[&[1; 20_000]]);
    assert_eq!(again, Ok(20_000));
}

#[test]
fn what_the_path_carries_decides_over_fragments() {
    let mut net = perfect();
    net.tap = Some(Vec::new());
    let a = net.stacks[0].udp_bind(at(0, 0), false).unwrap();
    let b = net.stacks[1].udp_bind(at(1, 53), false).unwrap();
    let try_as = |net: &mut Net, pmtu_discovery, len: usize| {
        let opts = UdpOpts {
            pmtu_discovery,
            ..UdpOpts::default()
        };
        net.stacks[0].udp_set_opts(a, opts).unwrap();
        let now = net.now;
        let sent = net.stacks[0].udp_send(now, a, Some(at(1, 53)), &[&vec![0; len]]);
        net.run_for(Duration::from_millis(100));
        while net.stacks[1].udp_recv(b).is_ok() {}
        let udp = |f: &Vec<u8>| f[12..14] == [8, 0] && f[23] == 17;
        let frames = net.tap.replace(Vec::new()).unwrap();
        let frames = frames.into_iter().filter(|(side, f)| *side == 0 && udp(f));
        let flags: Vec<u8> = frames.map(|(_, f)| f[20] >> 5).collect();
        sent.map(|_| flags)
    };
    use PmtuDiscovery::{Do, Dont, Probe, Want};
    let (df, mf) = (2, 1);
    assert_eq!(try_as(&mut net, Want, 1_472), Ok(vec![df]));
    assert_eq!(try_as(&mut net, Want, 1_473), Ok(vec![mf, 0]));
    assert_eq!(try_as(&mut net, Dont, 100), Ok(vec![0]));
    assert_eq!(try_as(&mut net, Do, 1_473), Err(SendError::TooBig));
    assert_eq!(try_as(&mut net, Do, 1_472), Ok(vec![df]));
    // A router says 1000: Want and Do obey, Probe and Dont do not ask.
    let mut quote = vec![0u8; 28];
    quote[0] = 0x45;
    quote[9] = 17;
    quote[12..16].copy_from_slice(&[10, 0, 0, 1]);
    quote[16..20].copy_from_slice(&[10, 0, 0, 2]);
    let port = net.stacks[0].udp_addresses(a).unwrap().0.port();
    quote[20..22].copy_from_slice(&port.to_be_bytes());
    quote[23] = 53;
    let icmp = crate::net::too_big_v4(ip(1), ip(0), 1_000, &quote);
    let frame = crate::net::frame(MAC[0], MAC[1], &icmp);
    let now = net.now;
    net.stacks[0].handle_frame(now, &frame, Received::default());
    assert_eq!(try_as(&mut net, Want, 1_000), Ok(vec![mf, 0]));
    assert_eq!(try_as(&mut net, Do, 1_000), Err(SendError::TooBig));
    assert_eq!(try_as(&mut net, Probe, 1_000), Ok(vec![df]));
    assert_eq!(try_as(&mut net, Dont, 1_000), Ok(vec![0]));
}

/// One fragment of a UDP datagram to side 1, at will.
fn hostile_fragment(rng: &mut Rng) -> Vec<u8> {
    let six = rng.below(2) == 0;
    let len = 8 * rng.below(180) as usize
        + if rng.below(4) == 0 {
            rng.below(8) as usize
        } else {
            0
        };
    let offset = 8 * if rng.below(8) == 0 {
        rng.below(8_192)
    } else {
        rng.below(400)
    };
    let more = rng.below(3) > 0;
    let ident = rng.below(2_000) as u16;
    let payload = noise(len, rng.next());
    let mut p;
    if six {
        p = vec![0x60, 0, 0, 0, 0, 0, 44, 64];
        for side in 0..2 {
            let std::net::IpAddr::V6(a) = ip6(side) else {
                unreachable!()
            };
            p.extend(a.octets());
        }
        p[23] = rng.below(3) as u8 + 1;
        let next = [17, 6, 58, 44, 0, 43, 60][rng.below(7) as usize];
        p.extend([next, 0]);
        p.extend((offset as u16 | u16::from(more)).to_be_bytes());
        p.extend(u32::from(ident).to_be_bytes());
        p.extend(&payload);
        let len = (p.len() - 40) as u16;
        p[4..6].copy_from_slice(&len.to_be_bytes());
    } else {
        p = vec![
            0x45,
            rng.below(4) as u8,
            0,
            0,
            0,
            0,
            0,
            0,
            64,
            17,
            0,
            0,
            10,
            0,
            0,
            1,
            10,
            0,
            0,
            2,
        ];
        p[15] = rng.below(3) as u8 + 1;
        p[4..6].copy_from_slice(&ident.to_be_bytes());
        let field = (offset / 8) as u16 | u16::from(more) << 13;
        p[6..8].copy_from_slice(&field.to_be_bytes());
        p.extend(&payload);
        let len = p.len() as u16;
        p[2..4].copy_from_slice(&len.to_be_bytes());
        crate::net::fill_ipv4_checksum(&mut p);
    }
    crate::net::frame(MAC[1], MAC[0], &p)
}

#[test]
fn hostile_fragments_leave_bounded_state_and_honest_datagrams_alone() {
    for seed in 0..6 {
        let mut net = Net::new([LinkConfig::default(), LinkConfig::default()], seed);
        let mut rng = Rng(seed);
        let a = net.stacks[0].udp_bind(at(0, 0), false).unwrap();
        let b = net.stacks[1].udp_bind(at(1, 53), false).unwrap();
        let mut honest = 0;
        for round in 0..150u32 {
            for _ in 0..40 {
                let frame = hostile_fragment(&mut rng);
                let now = net.now;
                net.stacks[1].handle_frame(now, &frame, Received { checksum_ok: true });
            }
            let now = net.now;
            let data = noise(6_000, u64::from(round));
            net.stacks[0]
                .udp_send(now, a, Some(at(1, 53)), &[&data])
                .unwrap();
            net.run_for(Duration::from_millis(300));
            while let Ok(d) = net.stacks[1].udp_recv(b) {
                honest += u32::from(*d.data == *data);
            }
        }
        // An attacker who guesses an identification can spoil that datagram, no more.
        assert!(honest > 130, "seed {seed}: {honest}");
        let s = net.stacks[1].link_stats();
        assert!(s.fragment_overlaps > 20 && s.fragments > 6_000, "{s:?}");
    }
}

/// A fragment of an IPv6 packet between the two sides.
fn fragment6(next: u8, offset: u16, more: bool, ident: u32, data: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0, 0, 8 + data.len() as u8, 44, 64];
    for side in 0..2 {
        let std::net::IpAddr::V6(a) = ip6(side) else {
            unreachable!()
        };
        p.extend(a.octets());
    }
    p.extend([next, 0]);
    p.extend((offset | u16::from(more)).to_be_bytes());
    p.extend(ident.to_be_bytes());
    p.extend(data);
    crate::net::frame(MAC[1], MAC[0], &p)
}

#[test]
fn a_fragment_within_fragments_is_refused() {
    let mut net = perfect();
    let now = net.now;
    // The outer datagram is itself a fragment, the last of number 2.
    let inner = &fragment6(17, 8, false, 2, &[0; 16])[54..];
    for (data, offset) in [(&inner[..8], 0), (&inner[8..], 8)] {
        let frame = fragment6(44, offset, offset == 0, 1, data);
        net.stacks[1].handle_frame(now, &frame, Received::default());
    }
    let stats = net.stacks[1].link_stats();
    assert_eq!((stats.reassembled, stats.fragment_malformed), (1, 1));
    // It is not remembered either: number 2 never becomes whole.
    let first = fragment6(17, 0, true, 2, &[0; 8]);
    net.stacks[1].handle_frame(now, &first, Received::default());
    assert_eq!(net.stacks[1].link_stats().reassembled, 1);
}
