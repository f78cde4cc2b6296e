//! What happens to connections when the path changes under them, or the peer's word does.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use kcm_stack::{ConnectOptions, ListenOptions, TcpId};

use crate::link::{LinkConfig, Rng};
use crate::net::{Net, at, fill_ipv4_checksum, ip6};
use crate::transfer::Peer;
use crate::world::World;

const SOON: Duration = Duration::from_secs(10);

/// A connection over either family.
fn establish(net: &mut Net, six: bool) -> (TcpId, TcpId) {
    let to = if six {
        SocketAddr::new(ip6(1), 80)
    } else {
        at(1, 80)
    };
    let l = net.stacks[1]
        .tcp_listen(to, &ListenOptions::default())
        .unwrap();
    let c = net.stacks[0]
        .tcp_connect(net.now, to, &ConnectOptions::default())
        .unwrap();
    let mut s = None;
    net.run_until(SOON, "handshake", |n| {
        s = s.or_else(|| n.stacks[1].tcp_accept(l));
        s.is_some()
    });
    (c, s.unwrap())
}

/// Sends `len` bytes from side 0, calling `event` before each step.
fn carry(
    net: &mut Net,
    ids: (TcpId, TcpId),
    len: u64,
    what: &str,
    mut event: impl FnMut(&mut Net, u64),
) {
    let mut from = Peer::new(0, ids.0, len, 1);
    let mut to = Peer::new(1, ids.1, 0, 2);
    net.run_until(Duration::from_secs(600), what, |n| {
        from.pump(n);
        to.pump(n);
        event(n, to.received);
        to.received == len && to.eof
    });
}

#[test]
fn the_path_narrows_and_widens_in_the_middle_of_a_flow() {
    for six in [false, true] {
        for tells in [true, false] {
            for seed in 0..2 {
                let link = LinkConfig {
                    delay: Duration::from_millis(5),
                    rate: 20_000_000,
                    queue_bytes: 60_000,
                    loss: 2_000,
                    tells,
                    ..LinkConfig::default()
                };
                let mut net = Net::new([link.clone(), link], seed);
                let ids = establish(&mut net, six);
                let what = format!("six {six} tells {tells} seed {seed}");
                let mut least = u16::MAX;
                carry(&mut net, ids, 1_000_000, &what, |n, got| {
                    // 1500, then 1400, 1300, and 1500 again.
                    n.links[0].config.mtu = match got {
                        0..200_000 => usize::MAX,
                        200_000..400_000 => 1_414,
                        400_000..800_000 => 1_314,
                        _ => usize::MAX,
                    };
                    if let Some(info) = n.stacks[0].tcp_info(n.now, ids.0) {
                        least = least.min(info.snd_mss);
                    }
                });
                let headers = if six { 72 } else { 52 };
                if tells {
                    assert_eq!(least, 1_300 - headers, "{what}");
                } else {
                    // Nobody said a word: the black hole was found by its silence (RFC 8899).
                    assert!(least <= 1_300 - headers, "{what}: {least}");
                    assert!(net.stacks[0].tcp_stats().black_holes > 0, "{what}");
                }
            }
        }
    }
}

/// Adds to a pure ACK a SACK block over bytes the receiver does not have.
fn lie(frame: &mut Vec<u8>, rng: &mut Rng, snd_nxt: u32) -> bool {
    let header = usize::from(frame[46] >> 4) * 4;
    if frame.len() != 34 + header || header + 12 > 60 || frame[47] != 0x10 {
        return false;
    }
    let ack = u32::from_be_bytes(frame[42..46].try_into().unwrap());
    let ahead = snd_nxt.wrapping_sub(ack);
    if !(2..=1 << 30).contains(&ahead) {
        return false;
    }
    let left = 1 + rng.below(u64::from(ahead - 1)) as u32;
    let right = left + 1 + rng.below(u64::from(ahead - left)) as u32;
    frame.extend([1, 1, 5, 10]);
    frame.extend(ack.wrapping_add(left).to_be_bytes());
    frame.extend(ack.wrapping_add(right).to_be_bytes());
    frame[46] = (header + 12) as u8 / 4 * 16;
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    fill_ipv4_checksum(&mut frame[14..]);
    true
}

#[test]
fn a_receiver_that_reneges_on_sacks_slows_a_flow_but_does_not_stop_it() {
    let mut total = 0;
    // RFC 2018 §8: what was SACKed may be dropped, and has to be sent again.
    for seed in 0..8 {
        let link = LinkConfig {
            delay: Duration::from_millis(5),
            rate: 20_000_000,
            queue_bytes: 60_000,
            loss: 10_000,
            reorder: 5_000,
            ..LinkConfig::default()
        };
        let mut net = Net::new([link.clone(), link], seed);
        let ids = establish(&mut net, false);
        let mut rng = Rng(seed);
        let lies = Rc::new(Cell::new(0));
        let (told, mut snd_nxt) = (Rc::clone(&lies), 0);
        net.mangle = Some(Box::new(move |side, frame| {
            if frame[12..14] != [8, 0] || frame[23] != 6 {
                return false;
            }
            if side == 0 {
                let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
                let payload = total - 20 - usize::from(frame[46] >> 4) * 4;
                let seq = u32::from_be_bytes(frame[38..42].try_into().unwrap());
                let end = seq.wrapping_add(payload as u32);
                if snd_nxt == 0 || (end.wrapping_sub(snd_nxt) as i32) > 0 {
                    snd_nxt = end;
                }
                return false;
            }
            let lied = rng.below(12) == 0 && lie(frame, &mut rng, snd_nxt);
            told.set(told.get() + i32::from(lied));
            lied
        }));
        carry(&mut net, ids, 400_000, &format!("seed {seed}"), |_, _| {});
        total += lies.get();
    }
    assert!(total > 50, "{total} lies");
}
