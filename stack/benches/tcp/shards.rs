//! Engines that share an address, a thread each: what the second core is worth, and what it costs to
//! tell their frames apart.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;

use kcm_stack::{Shard, shard_of};

use crate::echo::Echo;
use crate::generator::{ACK, PSH, segment};
use crate::pair::{Batch, CpuTime, median};
use crate::report::{Row, row};

/// Engines, and threads.
const ENGINES: u8 = 2;
const CLIENTS: u32 = 1_000;

fn engines(count: u8) -> Vec<Echo> {
    let shards = (0..count).filter_map(|index| Shard::new(index, count));
    shards.map(|shard| Echo::of_shard(CLIENTS, shard)).collect()
}

/// Seconds that every client of every engine takes to ask `times`, all engines at once: those of the
/// busiest thread, so that waiting for a core does not count and waiting for each other does.
fn seconds(engines: &mut [Echo], times: usize) -> f64 {
    let start = Barrier::new(engines.len());
    thread::scope(|s| {
        let work = |echo| {
            let start = &start;
            s.spawn(move || {
                let echo: &mut Echo = echo;
                start.wait();
                let t = CpuTime::now();
                for _ in 0..times {
                    echo.ask();
                }
                t.elapsed().as_secs_f64()
            })
        };
        let threads: Vec<_> = engines.iter_mut().map(work).collect();
        let each = threads.into_iter().filter_map(|t| t.join().ok());
        each.fold(0.0, f64::max)
    })
}

/// Nanoseconds to say whose a frame is.
fn sorting(frames: u32) -> f64 {
    let mut batch = Batch::default();
    for i in 0..frames {
        segment(&mut batch, i, i, 1, ACK | PSH, &[7; 64]);
    }
    let t = CpuTime::now();
    for frame in batch.iter() {
        black_box(shard_of(black_box(frame), ENGINES));
    }
    t.elapsed().as_secs_f64() * 1e9 / f64::from(frames)
}

/// One engine and two take turns with the same clients.
pub(crate) fn run(quick: bool) -> Vec<Row> {
    let (times, rounds) = if quick { (50, 1) } else { (1_000, 7) };
    let (mut one, mut two) = (engines(1), engines(ENGINES));
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (alone, together) = (seconds(&mut one, times), seconds(&mut two, times));
        rates.push(f64::from(CLIENTS) * times as f64 / together / 1e6);
        ratios.push(alone / together);
    }
    let (rate, ratio) = (median(rates), median(ratios));
    let ns = median((0..rounds).map(|_| sorting(10_000)).collect());
    vec![
        row(
            format!("echoes of 64 B, {ENGINES} engines on {ENGINES} threads against one"),
            "≥ 1.8 ×",
            format!("{ratio:.2} × ({rate:.1} M echoes/s, clients included)"),
            ratio >= 1.8,
        ),
        row(
            "telling whose a frame is".into(),
            "≤ 10 ns",
            format!("{ns:.1} ns"),
            ns <= 10.0,
        ),
    ]
}
