//! 64-byte echoes over many connections: what a packet costs the serving engine.

use std::time::{Duration, Instant as Wall};

use kcm_stack::{ListenOptions, ListenerId, Stack, TcpId};

use crate::generator::{ACK, PSH, SERVER_PORT, deliver, open, parse, segment};
use crate::pair::{Batch, Clock, MAC, at, median, stack};

/// Frames between two looks at the clock; also how many a device would hand over at once.
const BATCH: u32 = 256;
const PAYLOAD: [u8; 64] = [7; 64];

pub(crate) fn server(expected: usize) -> (Stack, ListenerId) {
    let mut s = stack(1, |c| c.tcp.expected_connections = expected);
    s.add_route([11, 0, 0, 0].into(), 8, Some([10, 0, 0, 1].into()))
        .expect("route");
    s.add_neighbor([10, 0, 0, 1].into(), MAC[0], Clock::new().0);
    let options = ListenOptions {
        backlog: 4096,
        ..ListenOptions::default()
    };
    let l = s.tcp_listen(at(1, SERVER_PORT), &options).expect("listen");
    (s, l)
}

pub(crate) fn run(connections: u32) {
    let mut clock = Clock::new();
    let (mut s, l) = server(connections as usize);
    let mut ids: Vec<TcpId> = Vec::with_capacity(connections as usize);
    open(&mut s, 0..connections, clock.0, |s| {
        while let Some(id) = s.tcp_accept(l) {
            ids.push(id);
        }
    });
    assert_eq!(ids.len(), connections as usize);
    while s.poll_event().is_some() {}
    // Server sequence numbers are learned from the first echo's ACK field.
    let mut seqs: Vec<(u32, u32)> = (0..connections).map(|i| (i + 1, 0)).collect();
    let mut input = Batch::default();
    let mut output = Batch::default();
    let rounds = (2_000_000 / connections).clamp(6, 400);
    let mut per_packet = Vec::new();
    let mut order: Vec<u32> = (0..connections).collect();
    // A fixed shuffle: neighbours in the slab are not neighbours in time.
    for i in (1..order.len()).rev() {
        let j = ((i as u64 * 0x9e37_79b9_7f4a_7c15) >> 33) as usize % (i + 1);
        order.swap(i, j);
    }
    for round in 0..rounds {
        let (mut spent, mut packets) = (Duration::ZERO, 0);
        for chunk in order.chunks(BATCH as usize) {
            // As fast as the goal: ten million packets a second.
            let now = clock.tick(50);
            input.clear();
            for &i in chunk {
                let (seq, ack) = seqs[i as usize];
                // The first request of a client needs a valid ACK: its handshake's.
                let flags = ACK | PSH;
                segment(&mut input, i, seq, ack, flags, &PAYLOAD);
            }
            if round == 0 {
                // Learn the server's sequence: an unacceptable ACK would be dropped, so ask by
                // sending nothing new.
                input.clear();
                for &i in chunk {
                    segment(&mut input, i, i, 0, ACK, &[]);
                }
            }
            let t = Wall::now();
            deliver(&input, &mut s, now);
            while let Some(e) = s.poll_event() {
                if let kcm_stack::Event::Tcp(id, r) = e
                    && r.contains(kcm_stack::Ready::READABLE)
                {
                    let mut buf = [0; 256];
                    if let Ok(n) = s.tcp_recv(now, id, &mut buf)
                        && n > 0
                    {
                        s.tcp_send(now, id, &[&buf[..n]], false).expect("send");
                    }
                }
            }
            output.fill(&mut s, now, usize::MAX);
            s.handle_timeout(now);
            spent += t.elapsed();
            packets += input.len() + output.len();
            for f in output.iter() {
                if let Some(r) = parse(f) {
                    seqs[r.client as usize] = (r.ack, r.seq.wrapping_add(r.len));
                }
            }
        }
        if round > 0 {
            per_packet.push(spent.as_secs_f64() * 1e9 / packets as f64);
        }
    }
    let ns = median(per_packet);
    println!(
        "echo 64 B, {connections:>8} connections: {ns:6.0} ns a packet, {:5.2} M packets/s (in + out)",
        1e3 / ns
    );
}
