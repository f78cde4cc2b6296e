//! 64-byte echoes over many connections: what a packet costs the serving engine.

use std::time::Duration;

use kcm_stack::{ListenOptions, ListenerId, Shard, Stack};

use crate::generator::{ACK, PSH, SERVER_PORT, deliver, open, parse, port_of, segment};
use crate::pair::{Batch, Clock, CpuTime, MAC, at, median, stack};
use crate::report::{Row, row};

/// Frames between two looks at the clock; also how many a device would hand over at once.
const BATCH: u32 = 256;
const PAYLOAD: [u8; 64] = [7; 64];

pub(crate) fn server(expected: usize) -> (Stack, ListenerId) {
    server_of_shard(expected, Shard::ONLY)
}

fn server_of_shard(expected: usize, shard: Shard) -> (Stack, ListenerId) {
    let mut s = stack(1, |c| {
        c.tcp.expected_connections = expected;
        c.shard = shard;
    });
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

/// A server and the clients that have connected to it.
pub(crate) struct Echo {
    stack: Stack,
    clock: Clock,
    /// SND.NXT and RCV.NXT of each client.
    seqs: Vec<(u32, u32)>,
    /// A fixed shuffle of the clients: neighbours in the slab are not neighbours in time.
    order: Vec<u32>,
    input: Batch,
    output: Batch,
}

impl Echo {
    fn new(connections: u32) -> Self {
        Self::of_shard(connections, Shard::ONLY)
    }

    /// Of so many clients, those that belong to `shard`.
    pub(crate) fn of_shard(connections: u32, shard: Shard) -> Self {
        let clock = Clock::new();
        let (mut stack, l) = server_of_shard(connections as usize, shard);
        let mut accepted = 0;
        let is_own = |i: &u32| shard.has_flow(SERVER_PORT, port_of(*i));
        let mut order: Vec<u32> = (0..connections).filter(is_own).collect();
        open(&mut stack, order.iter().copied(), clock.0, |s| {
            while s.tcp_accept(l).is_some() {
                accepted += 1;
            }
        });
        assert_eq!(accepted, order.len());
        while stack.poll_event().is_some() {}
        for i in (1..order.len()).rev() {
            let j = ((i as u64 * 0x9e37_79b9_7f4a_7c15) >> 33) as usize % (i + 1);
            order.swap(i, j);
        }
        let mut echo = Self {
            stack,
            clock,
            seqs: vec![(0, 0); connections as usize],
            order,
            input: Batch::default(),
            output: Batch::default(),
        };
        // An empty segment before the window makes the server tell its sequence number.
        echo.round(|input, i, _| segment(input, i, i, 0, ACK, &[]));
        echo
    }

    /// Every client asks once; nanoseconds a packet, those in and those out counted alike.
    pub(crate) fn ask(&mut self) -> f64 {
        let (ns, answered) =
            self.round(|input, i, (seq, ack)| segment(input, i, seq, ack, ACK | PSH, &PAYLOAD));
        assert_eq!(answered, self.order.len(), "each was answered");
        ns
    }

    /// Nanoseconds a packet, and how many clients were answered.
    fn round(&mut self, say: impl Fn(&mut Batch, u32, (u32, u32))) -> (f64, usize) {
        let Self {
            stack: s,
            clock,
            seqs,
            order,
            input,
            output,
        } = self;
        let (mut spent, mut packets, mut answered) = (Duration::ZERO, 0, 0);
        for chunk in order.chunks(BATCH as usize) {
            // As fast as the goal: ten million packets a second.
            let now = clock.tick(50);
            input.clear();
            for &i in chunk {
                say(input, i, seqs[i as usize]);
            }
            let t = CpuTime::now();
            deliver(input, s, now);
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
            output.fill(s, now, usize::MAX);
            s.handle_timeout(now);
            spent += t.elapsed();
            packets += input.len() + output.len();
            for f in output.iter() {
                if let Some(r) = parse(f) {
                    answered += usize::from(r.len == PAYLOAD.len() as u32);
                    seqs[r.client as usize] = (r.ack, r.seq.wrapping_add(r.len));
                }
            }
        }
        (spent.as_secs_f64() * 1e9 / packets as f64, answered)
    }
}

/// A thousand connections and a million take turns, a million packets each.
pub(crate) fn run(quick: bool) -> Vec<Row> {
    let (many, rounds) = if quick { (50_000, 1) } else { (1_000_000, 7) };
    let (mut few_echo, mut many_echo) = (Echo::new(1_000), Echo::new(many));
    let (mut few_ns, mut many_ns, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let few = median((0..many / 1_000).map(|_| few_echo.ask()).collect());
        let many = many_echo.ask();
        few_ns.push(few);
        many_ns.push(many);
        ratios.push(many / few);
    }
    let (few_ns, many_ns, ratio) = (median(few_ns), median(many_ns), median(ratios));
    let rate = 1e3 / few_ns;
    vec![
        row(
            "echo of 64 B at 1 k connections, packets in and out per second".into(),
            "≥ 5 M",
            format!("{rate:.1} M ({few_ns:.0} ns a packet)"),
            rate >= 5.0,
        ),
        row(
            format!("cost per packet at {many} connections against 1 k"),
            "≤ 3 ×",
            format!("{ratio:.1} × ({many_ns:.0} ns)"),
            ratio <= 3.0,
        ),
    ]
}
