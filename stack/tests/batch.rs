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
