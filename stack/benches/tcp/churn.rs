//! Connect, one byte, close: the serving engine's share of short connections.

use std::time::Duration;

use crate::echo::server;
use crate::generator::{ACK, FIN, PSH, SYN, deliver, parse, segment};
use crate::pair::{Batch, Clock, CpuTime, median};
use crate::report::{Row, row};

const BATCH: u32 = 128;

pub(crate) fn run(quick: bool) -> Vec<Row> {
    let (connections, rounds) = if quick { (12_800, 1) } else { (200_000, 5) };
    let mut clock = Clock::new();
    let (mut s, l) = server(0);
    let mut rates = Vec::new();
    let (mut input, mut output) = (Batch::default(), Batch::default());
    let mut next = 0u32;
    for _ in 0..rounds {
        let mut spent = Duration::ZERO;
        let end = next + connections;
        while next < end {
            let now = clock.tick(100);
            let chunk = next..next + BATCH;
            next += BATCH;
            let mut timed = |input: &Batch, output: &mut Batch, s: &mut kcm_stack::Stack| {
                let t = CpuTime::now();
                deliver(input, s, now);
                while let Some(id) = s.tcp_accept(l) {
                    let _ = id;
                }
                while let Some(e) = s.poll_event() {
                    let kcm_stack::Event::Tcp(id, _) = e else {
                        continue;
                    };
                    let mut buf = [0; 8];
                    match s.tcp_recv(now, id, &mut buf) {
                        Ok(n) if n > 0 => {
                            let _ = s.tcp_send(now, id, &[&buf[..n]], false);
                        }
                        Ok(_) => s.tcp_close(now, id),
                        Err(_) => {}
                    }
                }
                output.fill(s, now, usize::MAX);
                s.handle_timeout(now);
                spent += t.elapsed();
            };
            input.clear();
            chunk
                .clone()
                .for_each(|i| segment(&mut input, i, i, 0, SYN, &[]));
            timed(&input, &mut output, &mut s);
            input.clear();
            for f in output.iter() {
                if let Some(r) = parse(f) {
                    segment(
                        &mut input,
                        r.client,
                        r.client + 1,
                        r.seq + 1,
                        ACK | PSH,
                        b"x",
                    );
                }
            }
            timed(&input, &mut output, &mut s);
            // The client closes first: FIN with the ACK of the byte.
            input.clear();
            for f in output.iter() {
                if let Some(r) = parse(f).filter(|r| r.len == 1) {
                    segment(
                        &mut input,
                        r.client,
                        r.client + 2,
                        r.seq + 1,
                        ACK | FIN,
                        &[],
                    );
                }
            }
            timed(&input, &mut output, &mut s);
            input.clear();
            for f in output.iter() {
                if let Some(r) = parse(f).filter(|r| r.flags & FIN != 0) {
                    segment(&mut input, r.client, r.client + 3, r.seq + 1, ACK, &[]);
                }
            }
            timed(&input, &mut output, &mut s);
        }
        rates.push(f64::from(connections) / spent.as_secs_f64());
    }
    assert_eq!(s.flow_count(), 0, "every connection ended");
    let rate = median(rates) / 1e3;
    vec![row(
        "connect + 1 byte + close, per second (the serving side)".into(),
        "≥ 500 k",
        format!("{rate:.0} k"),
        rate >= 500.0,
    )]
}
