//! Frames handed over as a batch have the effect of the same frames one by one.

use std::net::SocketAddr;

use kcm_stack::{Config, ConnectOptions, Instant, Key, ListenOptions, Received, Stack, TcpId};

const PORT: u16 = 80;
/// More flows than share a cache by themselves, so that batches warm it up.
const FLOWS: u16 = 80;

fn stack(side: u8) -> Stack {
    let now = Instant::ZERO;
    let mut stack = Stack::new(&Config::new([2, 0, 0, 0, 0, side], Key([side; 16])), now);
    stack.add_address([10, 0, 0, side].into(), 24).unwrap();
    let other = 3 - side;
    stack.add_neighbor([10, 0, 0, other].into(), [2, 0, 0, 0, 0, other], now);
    stack
}

fn output(stack: &mut Stack, now: Instant) -> Vec<Vec<u8>> {
    let mut frame = vec![0; stack.frame_bytes_max()];
    let mut frames = Vec::new();
    while let Some(sent) = stack.poll_transmit(now, &mut frame) {
        frames.push(frame[..sent.len].to_vec());
    }
    frames
}

fn singly(stack: &mut Stack, now: Instant, frames: &[Vec<u8>]) {
    for frame in frames {
        stack.handle_frame(now, frame, Received::default());
    }
}

fn as_batch(stack: &mut Stack, now: Instant, frames: &[Vec<u8>]) {
    let frames = frames.iter().map(|f| (&f[..], Received::default()));
    stack.handle_frames(now, frames);
}

/// Everything one side has to say to another that hears it in one of two ways.
type Hear = fn(&mut Stack, Instant, &[Vec<u8>]);

/// Frames of a conversation over many flows, some segments out of order, up to the last FIN.
fn conversation(hear: Hear) -> Vec<Vec<Vec<u8>>> {
    let mut now = Instant::ZERO;
    let (mut client, mut server) = (stack(1), stack(2));
    let listening = ListenOptions {
        backlog: FLOWS.into(),
        ..ListenOptions::default()
    };
    let server_at = SocketAddr::from(([10, 0, 0, 2], PORT));
    let listener = server.tcp_listen(server_at, &listening).unwrap();
    let connect = |n: u16, client: &mut Stack| {
        let local = Some(SocketAddr::from(([10, 0, 0, 1], 40_000 + n)));
        let options = ConnectOptions {
            local,
            ..ConnectOptions::default()
        };
        client
            .tcp_connect(Instant::ZERO, server_at, &options)
            .unwrap()
    };
    let clients: Vec<TcpId> = (0..FLOWS).map(|n| connect(n, &mut client)).collect();
    let mut said = Vec::new();
    let (mut accepted, mut closed) = (Vec::new(), 0);
    for round in 0..12 {
        now += std::time::Duration::from_millis(1);
        for &id in &clients {
            match round {
                2..6 => drop(client.tcp_send(now, id, &[&[round; 5_000]], false)),
                8 => client.tcp_close(now, id),
                _ => {}
            }
        }
        let mut frames = output(&mut client, now);
        if round == 4 {
            frames.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        }
        hear(&mut server, now, &frames);
        while let Some(id) = server.tcp_accept(listener) {
            accepted.push(id);
        }
        while server.poll_event().is_some() {}
        let mut buffer = [0; 3_000];
        for &id in &accepted {
            while let Ok(n) = server.tcp_recv(now, id, &mut buffer) {
                if n == 0 {
                    server.tcp_close(now, id);
                    closed += 1;
                    break;
                }
            }
        }
        let answers = output(&mut server, now);
        hear(&mut client, now, &answers);
        said.extend([frames, answers]);
        for stack in [&mut client, &mut server] {
            while stack.poll_event().is_some() {}
            stack.check_invariants();
        }
    }
    assert_eq!((accepted.len(), closed), (FLOWS.into(), usize::from(FLOWS)));
    said
}

#[test]
fn a_batch_has_the_effect_of_its_frames() {
    let (one, other) = (conversation(singly), conversation(as_batch));
    assert!(one.iter().map(Vec::len).sum::<usize>() > 2_000);
    for (round, (one, other)) in one.iter().zip(&other).enumerate() {
        assert_eq!(one.len(), other.len(), "frames of turn {round}");
        for (a, b) in one.iter().zip(other) {
            assert_eq!(a, b, "turn {round}");
        }
    }
}

type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

/// What a stack made of the frames of one flow, one of them damaged: counters and the bytes read.
fn train(hear: Hear, damage: Damage<'_>) -> (String, Vec<u8>) {
    let now = Instant::ZERO;
    let (mut client, mut server) = (stack(1), stack(2));
    let server_at = SocketAddr::from(([10, 0, 0, 2], PORT));
    let listening = ListenOptions {
        backlog: 1,
        ..ListenOptions::default()
    };
    let listener = server.tcp_listen(server_at, &listening).unwrap();
    let options = ConnectOptions::default();
    let id = client.tcp_connect(now, server_at, &options).unwrap();
    for _ in 0..2 {
        let asked = output(&mut client, now);
        singly(&mut server, now, &asked);
        let answers = output(&mut server, now);
        singly(&mut client, now, &answers);
    }
    let accepted = server.tcp_accept(listener).unwrap();
    let text: Vec<u8> = (0..10_000u32).map(|i| (i / 7) as u8).collect();
    assert_eq!(client.tcp_send(now, id, &[&text], false), Ok(text.len()));
    let mut frames = output(&mut client, now);
    assert_eq!(frames.len(), 7);
    damage(&mut frames[4]);
    hear(&mut server, now, &frames);
    let answers = output(&mut server, now);
    let mut got = vec![0; 20_000];
    let n = server.tcp_recv(now, accepted, &mut got).unwrap();
    got.truncate(n);
    let (link, tcp) = (server.link_stats(), server.tcp_stats());
    (format!("{link:?} {tcp:?} {answers:?}"), got)
}

/// Makes the IPv4 header's checksum right again.
fn mend(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let halves = frame[14..34].chunks(2);
    let sum: u32 = halves.map(|h| u32::from(h[0]) << 8 | u32::from(h[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[test]
fn a_frame_that_only_looks_like_the_one_before_is_found_out() {
    let damages: [(&str, Damage); 18] = [
        ("none", &|_| {}),
        ("another station", &|f| f[5] ^= 1),
        ("not IPv4", &|f| f[13] = 0xdd),
        ("header length", &|f| f[14] = 0x46),
        ("congestion", &|f| (f[15] |= 3, mend(f)).1),
        ("too long", &|f| (f[16] += 1, mend(f)).1),
        ("too short", &|f| (f[16], f[17]) = (0, 30)),
        ("shorter than its header", &|f| {
            (f[16], f[17]) = (0, 15);
            mend(f);
        }),
        ("header checksum", &|f| f[24] ^= 1),
        ("fragment", &|f| (f[20] |= 0x20, mend(f)).1),
        ("not TCP", &|f| (f[23] = 17, mend(f)).1),
        ("another sender", &|f| (f[29] ^= 4, mend(f)).1),
        ("everybody as sender", &|f| (f[29] = 255, mend(f)).1),
        ("a group as sender", &|f| (f[26] = 224, mend(f)).1),
        ("loopback as sender", &|f| (f[26] = 127, mend(f)).1),
        ("another address", &|f| (f[33] ^= 4, mend(f)).1),
        ("another port", &|f| f[35] ^= 1),
        ("cut", &|f| f.truncate(36)),
    ];
    let (_, whole) = train(singly, damages[0].1);
    assert_eq!(whole.len(), 10_000);
    for (name, damage) in damages {
        let (one, other) = (train(singly, damage), train(as_batch, damage));
        assert_eq!(one.0, other.0, "{name}");
        assert!(one.1 == other.1, "{name}");
        assert!(
            name == "none" || name == "congestion" || one.1.len() < 10_000,
            "{name}"
        );
    }
}
