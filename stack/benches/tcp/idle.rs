//! What an idle established connection occupies, nothing excluded.

use std::time::Instant as Wall;

use crate::echo::server;
use crate::generator::{ACK, PSH, deliver, open, parse, segment};
use crate::pair::{Batch, Clock, resident};
use crate::report::{Row, row};

/// Needs a process of its own: what an earlier case freed would be reused unseen.
pub(crate) fn run(connections: u32) -> Vec<Row> {
    let clock = Clock::new();
    let before = resident();
    let (mut s, l) = server(0);
    let start = Wall::now();
    let mut ids = 0u32;
    open(&mut s, 0..connections, clock.0, |s| {
        while s.tcp_accept(l).is_some() {
            ids += 1;
        }
        while s.poll_event().is_some() {}
    });
    assert_eq!(ids, connections);
    let took = start.elapsed().as_secs_f64();
    let per = || (resident() - before) as f64 / f64::from(connections);
    let opened = per();
    answer_once(&mut s, connections, clock);
    let answered = per();
    vec![row(
        format!("idle established connection at {connections}, RSS"),
        "≤ 256 B",
        format!(
            "{opened:.0} B; {answered:.0} B after every one answered an echo \
             (all opened in {took:.1} s)"
        ),
        opened.max(answered) <= 256.0,
    )]
}

/// Every client sends eight bytes and gets them back.
fn answer_once(s: &mut kcm_stack::Stack, connections: u32, mut clock: Clock) {
    let mut input = Batch::default();
    let mut output = Batch::default();
    let mut answered = 0u32;
    for first in (0..connections).step_by(256) {
        let now = clock.tick(50);
        let chunk = first..(first + 256).min(connections);
        // An empty segment before the window makes the server tell its sequence number.
        input.clear();
        chunk
            .clone()
            .for_each(|i| segment(&mut input, i, i, 0, ACK, &[]));
        deliver(&input, s, now);
        output.fill(s, now, usize::MAX);
        input.clear();
        for f in output.iter() {
            if let Some(r) = parse(f) {
                segment(&mut input, r.client, r.ack, r.seq, ACK | PSH, b"whoareu?");
            }
        }
        deliver(&input, s, now);
        while let Some(e) = s.poll_event() {
            if let kcm_stack::Event::Tcp(id, _) = e {
                let mut buf = [0; 64];
                if let Ok(n) = s.tcp_recv(now, id, &mut buf) {
                    s.tcp_send(now, id, &[&buf[..n]], false).expect("send");
                }
            }
        }
        output.fill(s, now, usize::MAX);
        input.clear();
        for f in output.iter() {
            if let Some(r) = parse(f).filter(|r| r.len == 8) {
                answered += 1;
                segment(&mut input, r.client, r.ack, r.seq + r.len, ACK, &[]);
            }
        }
        deliver(&input, s, now);
        s.handle_timeout(now);
    }
    assert_eq!(answered, connections);
}
