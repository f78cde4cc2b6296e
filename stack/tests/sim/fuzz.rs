//! Hostile frames: nothing panics, every invariant holds, memory stays bounded.

use std::time::Duration;

use kcm_stack::{ConnectOptions, EcnMode, ListenOptions, Received, SockFlag, TcpId};

use crate::link::{LinkConfig, Rng};
use crate::net::{MAC, Net, at, checksum, ip, ip6, too_big_v4, too_big_v6};
use crate::world::World;

const TRUSTED: Received = Received { checksum_ok: true };

/// Fixes the IPv4 header checksum, so that mutations reach the layers above.
fn mend(frame: &mut [u8]) {
    if frame.len() < 34 || frame[12..14] != [8, 0] {
        return;
    }
    let header = (usize::from(frame[14] & 15) * 4).clamp(20, frame.len() - 14);
    frame[24..26].fill(0);
    let mut sum: u32 = frame[14..14 + header]
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// A damaged relative of a real frame. Mostly header bytes: that is where decisions are made.
fn mutate(rng: &mut Rng, frame: &[u8]) -> Vec<u8> {
    let mut f = frame.to_vec();
    for _ in 0..=rng.below(4) {
        let span = if rng.below(4) == 0 {
            f.len()
        } else {
            f.len().min(90)
        };
        let at = rng.below(span as u64) as usize;
        match rng.below(4) {
            0 => f[at] = rng.next() as u8,
            1 => f[at] ^= 1 << rng.below(8),
            2 => f[at] = [0, 255, 128, 127][rng.below(4) as usize],
            _ => f[at] = f[at].wrapping_add(1),
        }
    }
    if rng.below(8) == 0 {
        f.truncate(rng.below(f.len() as u64 + 1) as usize);
    }
    if rng.below(4) > 0 && f.len() > 6 {
        let n = MAC[0].len();
        f[..n].copy_from_slice(&frame[..n]);
    }
    mend(&mut f);
    f
}

/// An ICMP error about a frame that side `to` sent, of any kind, with the quote whole or damaged.
fn icmp_lie(rng: &mut Rng, to: usize, frame: &[u8]) -> Option<Vec<u8>> {
    let mut quote = frame.get(14..)?.to_vec();
    let six = *quote.first()? >> 4 == 6;
    if rng.below(3) == 0 {
        let at = rng.below(quote.len() as u64) as usize;
        quote[at] = rng.next() as u8;
    }
    if rng.below(4) == 0 {
        quote.truncate(rng.below(80) as usize);
    }
    let mtu = [0, 68, 552, 576, 1_279, 1_280, 1_400, 1_500, 0xffff][rng.below(9) as usize];
    let mut p = if six {
        too_big_v6(ip6(1 - to), ip6(to), mtu, &quote)
    } else {
        too_big_v4(ip(1 - to), ip(to), mtu as u16, &quote)
    };
    // The message behind the fixed header becomes one of another kind, and true again.
    let at = if six { 40 } else { 20 };
    let kinds: &[u8] = if six {
        &[1, 2, 3, 4, 128]
    } else {
        &[3, 3, 4, 5, 11, 12, 8]
    };
    if rng.below(2) == 0 {
        p[at] = kinds[rng.below(kinds.len() as u64) as usize];
        p[at + 1] = rng.below(16) as u8;
    }
    p[at + 2..at + 4].fill(0);
    let covered = if six {
        let len = (p.len() - 40) as u32;
        [&p[8..40], &len.to_be_bytes(), &[0, 0, 0, 58], &p[40..]].concat()
    } else {
        p[20..].to_vec()
    };
    let sum = checksum(&covered);
    p[at + 2..at + 4].copy_from_slice(&sum);
    Some(crate::net::frame(MAC[to], MAC[1 - to], &p))
}

/// A TCP segment over IPv4 with its options replaced by whatever comes to mind.
fn strange_options(rng: &mut Rng, frame: &[u8]) -> Option<Vec<u8>> {
    if frame.get(12..14)? != [8, 0] || *frame.get(23)? != 6 || frame[14] != 0x45 {
        return None;
    }
    let header = usize::from(frame.get(46)? >> 4) * 4;
    let payload = frame.get(34 + header..)?;
    let words = rng.below(11) as usize;
    let mut options = Vec::new();
    while options.len() < words * 4 {
        let kind = [0, 1, 2, 3, 4, 5, 8, 30, 34, 254][rng.below(10) as usize];
        let len = [2, 3, 4, 10, 18, 34, rng.below(256) as u8][rng.below(7) as usize];
        options.extend([kind, len]);
        options.extend((0..rng.below(12)).map(|_| rng.next() as u8));
    }
    options.truncate(words * 4);
    let mut f = [&frame[..54], &options, payload].concat();
    f[46] = (f[46] & 15) | (5 + words as u8) << 4;
    if rng.below(4) == 0 {
        f[47] ^= 1 << rng.below(6);
    }
    let total = (f.len() - 14) as u16;
    f[16..18].copy_from_slice(&total.to_be_bytes());
    mend(&mut f);
    Some(f)
}

fn poke(net: &mut Net, rng: &mut Rng, ids: &mut [Vec<TcpId>; 2]) {
    let side = rng.below(2) as usize;
    let now = net.now;
    let stack = &mut net.stacks[side];
    let Some(id) = (!ids[side].is_empty()).then(|| rng.below(ids[side].len() as u64) as usize)
    else {
        return;
    };
    let tcp = ids[side][id];
    let mut buf = [0; 3_000];
    match rng.below(14) {
        0..=4 => drop(stack.tcp_send(
            now,
            tcp,
            &[&buf[..rng.below(3_000) as usize]],
            rng.below(8) == 0,
        )),
        5..=8 => drop(stack.tcp_recv(now, tcp, &mut buf)),
        9 => drop(stack.tcp_send_urgent(now, tcp, b"!")),
        10 => drop(stack.tcp_recv_urgent(now, tcp, false)),
        11 => drop(stack.tcp_set_flag(now, tcp, SockFlag::Cork, rng.below(2) == 0)),
        12 if rng.below(20) == 0 => {
            ids[side].swap_remove(id);
            stack.tcp_close(now, tcp);
        }
        13 if rng.below(20) == 0 => drop(stack.tcp_shutdown(now, tcp, false, true)),
        _ => {}
    }
}

#[test]
fn mutated_frames_and_random_calls_break_nothing() {
    for seed in 0..24u64 {
        let mut rng = Rng(seed ^ 0xf00d);
        let link = || LinkConfig {
            delay: Duration::from_millis(2),
            loss: 10_000,
            ..LinkConfig::default()
        };
        let mut net = Net::with([link(), link()], seed, |_, c| {
            c.tcp.ecn = EcnMode::Active;
            c.tcp.stream_bytes_max = 2 << 20;
        });
        net.tap = Some(Vec::new());
        let options = ListenOptions {
            backlog: 8,
            ..ListenOptions::default()
        };
        let mut listeners = Vec::new();
        for side in 0..2 {
            let any6 = std::net::SocketAddr::new(ip6(side), 81);
            listeners.push((
                side,
                net.stacks[side].tcp_listen(at(side, 80), &options).unwrap(),
            ));
            listeners.push((side, net.stacks[side].tcp_listen(any6, &options).unwrap()));
            net.stacks[side]
                .udp_bind(std::net::SocketAddr::new(ip(side), 53), false)
                .unwrap();
        }
        let mut ids = [Vec::new(), Vec::new()];
        let end = net.now + Duration::from_secs(20);
        let mut seen: Vec<(usize, Vec<u8>)> = Vec::new();
        for step in 0..1_200 {
            if step % 20 == 0 && ids[0].len() + ids[1].len() < 40 {
                let side = rng.below(2) as usize;
                let to = if rng.below(2) == 0 {
                    at(1 - side, 80)
                } else {
                    std::net::SocketAddr::new(ip6(1 - side), 81)
                };
                if let Ok(id) =
                    net.stacks[side].tcp_connect(net.now, to, &ConnectOptions::default())
                {
                    ids[side].push(id);
                }
            }
            for &(side, l) in &listeners {
                while let Some(id) = net.stacks[side].tcp_accept(l) {
                    ids[side].push(id);
                }
            }
            for _ in 0..4 {
                poke(&mut net, &mut rng, &mut ids);
            }
            if !net.step(end) {
                break;
            }
            let fresh = net.tap.as_mut().map(std::mem::take).unwrap_or_default();
            seen.extend(fresh);
            let excess = seen.len().saturating_sub(200);
            seen.drain(..excess);
            for _ in 0..3 {
                if seen.is_empty() {
                    break;
                }
                let (from, frame) = &seen[rng.below(seen.len() as u64) as usize];
                let bad = mutate(&mut rng, frame);
                let now = net.now;
                net.stacks[1 - from].handle_frame(now, &bad, TRUSTED);
                net.stacks[1 - from].check_invariants();
                if let Some(bad) = strange_options(&mut rng, frame) {
                    net.stacks[1 - from].handle_frame(now, &bad, TRUSTED);
                    net.stacks[1 - from].check_invariants();
                }
                if let Some(bad) = icmp_lie(&mut rng, *from, frame) {
                    net.stacks[*from].handle_frame(now, &bad, TRUSTED);
                    net.stacks[*from].check_invariants();
                }
            }
        }
        for s in &net.stacks {
            assert!(s.stream_bytes() <= 2 << 20, "seed {seed}");
        }
    }
}

#[test]
fn noise_breaks_nothing() {
    let mut rng = Rng(5);
    let mut net = Net::new([LinkConfig::default(), LinkConfig::default()], 5);
    net.stacks[0]
        .tcp_listen(at(0, 80), &ListenOptions::default())
        .unwrap();
    for _ in 0..60_000 {
        let mut f: Vec<u8> = (0..rng.below(140)).map(|_| rng.next() as u8).collect();
        if f.len() > 40 {
            f[..6].copy_from_slice(&MAC[0]);
            let kind = [[8, 0], [0x86, 0xdd], [8, 6]][rng.below(3) as usize];
            f[12..14].copy_from_slice(&kind);
            match kind {
                [8, 0] => {
                    f[14] = 0x40 | (5 + rng.below(3) as u8);
                    let total = (f.len() - 14) as u16;
                    f[16..18].copy_from_slice(&total.to_be_bytes());
                    f[20..22].fill(0);
                    f[23] = [1, 6, 17][rng.below(3) as usize];
                    f[30..34].copy_from_slice(&[10, 0, 0, 1]);
                }
                [0x86, 0xdd] if f.len() > 54 => {
                    f[14] = 0x60;
                    let total = (f.len() - 54) as u16;
                    f[18..20].copy_from_slice(&total.to_be_bytes());
                    f[20] = [6, 17, 58, 0, 43, 44, 60][rng.below(7) as usize];
                    let std::net::IpAddr::V6(a) = ip6(0) else {
                        unreachable!()
                    };
                    f[38..54].copy_from_slice(&a.octets());
                }
                _ => {}
            }
            mend(&mut f);
        }
        net.stacks[0].handle_frame(net.now, &f, TRUSTED);
        net.flush();
        while net.links[0]
            .arrive(kcm_stack::Instant::FAR_FUTURE)
            .is_some()
        {}
    }
    assert!(net.stacks[0].link_stats().malformed > 0);
}
