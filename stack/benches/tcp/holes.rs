//! The receive queue under a peer that sends nothing but holes.

use crate::echo::server;
use crate::generator::{ACK, PSH, deliver, open, parse, segment};
use crate::pair::{Batch, Clock, CpuTime, median, resident};
use crate::report::{Row, row};

/// Connections under attack at once, so that memory shows in the resident set.
const CONNECTIONS: u32 = 256;

/// The attack stays inside the first window.
const WINDOW: u32 = 60_000;

/// An order: its name, and which byte comes in the place of the n-th.
type Order = (&'static str, fn(u32) -> u32);

/// Orders in which bytes arrive; each leaves a hole beside every byte.
const ORDERS: [Order; 4] = [
    ("ascending", |n| 2 * n),
    ("descending", |n| WINDOW - 2 * n),
    ("scattered", |n| {
        n.wrapping_mul(2_654_435_761) % (WINDOW / 2) * 2
    }),
    ("from both ends", |n| {
        if n % 2 == 0 { n } else { WINDOW - n - 1 }
    }),
];

pub(crate) fn run(quick: bool) -> Vec<Row> {
    let rounds = if quick { 1 } else { 7 };
    let segments = if quick { 512 } else { WINDOW / 2 - 1 };
    let mut worst = ("", 0.0f64);
    let (mut bytes_max, mut grown_max) = (0, 0);
    for (name, order) in ORDERS {
        let mut figures = Vec::new();
        for _ in 0..rounds {
            let attack = attack(order, segments);
            figures.push(attack.ns);
            bytes_max = bytes_max.max(attack.stream_bytes);
            grown_max = grown_max.max(attack.resident);
        }
        let ns = median(figures);
        if ns > worst.1 {
            worst = (name, ns);
        }
    }
    let us = worst.1 / 1e3;
    let queued_kib = bytes_max as f64 / f64::from(CONNECTIONS) / 1024.0;
    let resident_kib = grown_max as f64 / f64::from(CONNECTIONS) / 1024.0;
    // A connection's receive buffer, twice: what is charged and what lies around it.
    let bound_kib = 256.0;
    vec![row(
        format!("reassembly, {segments} one-byte segments with holes between them"),
        "bounded memory, ≤ 5 µs a segment",
        format!(
            "{us:.2} µs ({}); {queued_kib:.0} KiB of buffer, {resident_kib:.0} KiB resident \
             a connection",
            worst.0
        ),
        us <= 5.0 && queued_kib.max(resident_kib) <= bound_kib,
    )]
}

struct Attack {
    ns: f64,
    stream_bytes: usize,
    resident: usize,
}

fn attack(order: fn(u32) -> u32, segments: u32) -> Attack {
    let mut clock = Clock::new();
    let (mut s, l) = server(CONNECTIONS as usize);
    open(&mut s, 0..CONNECTIONS, clock.0, |s| {
        while s.tcp_accept(l).is_some() {}
    });
    let (mut input, mut output) = (Batch::default(), Batch::default());
    // An empty segment before the window makes the server tell its sequence number.
    let now = clock.tick(50);
    (0..CONNECTIONS).for_each(|i| segment(&mut input, i, i, 0, ACK, &[]));
    deliver(&input, &mut s, now);
    output.fill(&mut s, now, usize::MAX);
    let acks: Vec<(u32, u32)> = output
        .iter()
        .filter_map(|f| Some((parse(f)?.client, parse(f)?.seq)))
        .collect();
    assert_eq!(acks.len(), CONNECTIONS as usize);
    let before = resident();
    let (mut spent, mut count) = (0, 0);
    for n in 0..segments {
        let now = clock.tick(50);
        input.clear();
        for &(i, ack) in &acks {
            // Past the byte that never comes.
            segment(&mut input, i, i + 2 + order(n), ack, ACK | PSH, b"x");
        }
        let t = CpuTime::now();
        deliver(&input, &mut s, now);
        output.fill(&mut s, now, usize::MAX);
        s.handle_timeout(now);
        spent += t.elapsed().as_nanos();
        count += input.len();
    }
    Attack {
        ns: spent as f64 / count as f64,
        stream_bytes: s.stream_bytes(),
        resident: resident().saturating_sub(before),
    }
}
