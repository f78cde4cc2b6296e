//! Goodput through a bad link, engine to kernel beside kernel to kernel, and what an engine's flow
//! takes of a queue it shares with a kernel's.
//!
//! Two senders, an engine (10.0.0.1) and a kernel in a network namespace of its own (10.0.0.3), and a
//! receiving kernel in another (10.0.0.2), meet in a switch that runs here: all frames to the receiver
//! pass one queue, one rate and the faults of [`LinkFaults`]. Every interface carries single segments,
//! as a wire would; both senders use the same congestion control.

mod peers;
mod switch;

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{scope, sleep};
use std::time::Duration;

use kcm_stack::CongestionControl;
use kcm_stack::device::{LinkFaults, Loss};

use crate::pair::median;
use crate::report::{Row, row};
use peers::{Peer, prepare_kernel, veth};
use switch::switch;

pub(crate) use peers::is_child;

const ENGINE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SENDER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const PORT: u16 = 5000;

/// 100 Mbit/s, slow enough for one thread to carry on a busy machine without being the bottleneck.
const RATE_BYTES_PER_S: u64 = 12_500_000;

/// 20 ms at that rate.
const QUEUE_BYTES: usize = 250_000;

const LOSSES: [f64; 4] = [0.0001, 0.001, 0.01, 0.05];
const DELAYS_MS: [u64; 2] = [0, 10];

/// How long a run lasts and how often it is repeated.
struct Effort {
    rounds: u64,
    goodput_time: Duration,
    fairness_time: Duration,
}

pub(crate) fn run(congestion: CongestionControl, quick: bool) -> Vec<Row> {
    let effort = if quick {
        Effort {
            rounds: 1,
            goodput_time: Duration::from_millis(300),
            fairness_time: Duration::from_secs(1),
        }
    } else {
        Effort {
            rounds: 9,
            goodput_time: Duration::from_secs(2),
            fairness_time: Duration::from_secs(6),
        }
    };
    if !kernel_has(congestion) {
        return vec![no_rival(congestion)];
    }
    let mut lab = Lab::new();
    let mut rows = Vec::new();
    for delay_ms in DELAYS_MS {
        for loss in LOSSES {
            rows.push(lab.goodput(congestion, loss, delay_ms, &effort));
        }
    }
    rows.push(lab.fairness(congestion, &effort));
    rows
}

/// Whether this kernel can send by the same algorithm.
fn kernel_has(congestion: CongestionControl) -> bool {
    let name = congestion.name();
    let _ = Command::new("modprobe").arg(format!("tcp_{name}")).output();
    let available = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    let available = std::fs::read_to_string(available).unwrap_or_default();
    available.split_whitespace().any(|a| a == name)
}

fn no_rival(congestion: CongestionControl) -> Row {
    row(
        format!("goodput, engine : kernel, {}", congestion.name()),
        "≥ 0.9 ×",
        "this kernel does not have it".into(),
        false,
    )
}

fn faults(loss: f64, delay_ms: u64) -> LinkFaults {
    LinkFaults {
        loss: Loss::Random(loss),
        delay: Duration::from_millis(delay_ms),
        rate: Some(RATE_BYTES_PER_S),
        queue_bytes: QUEUE_BYTES,
        ..LinkFaults::default()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum From {
    Engine,
    Kernel,
}

/// One run: who sends by which algorithm, and when it counts.
struct Run<'a> {
    from: &'a [From],
    congestion: CongestionControl,
    seed: u64,
    warm_up: Duration,
    time: Duration,
}

/// The namespaces and who is in them.
struct Lab {
    receiver: Peer,
    sender: Peer,
}

impl Lab {
    fn new() -> Self {
        prepare_kernel();
        veth("s0", "s1");
        veth("r0", "r1");
        let sender = Peer::start("sender", "s0", SENDER);
        let receiver = Peer::start("receiver", "r0", RECEIVER);
        Self { receiver, sender }
    }

    /// Each alone on the link, in turns. The ratio is of the medians over the seeds: chance decides which
    /// of two flows loses its first segments, and one such round, or one in which the machine was busy
    /// with something else, would outweigh the others in a mean.
    fn goodput(
        &mut self,
        congestion: CongestionControl,
        loss: f64,
        delay_ms: u64,
        effort: &Effort,
    ) -> Row {
        let faults = faults(loss, delay_ms);
        let (mut ours, mut kernels) = (Vec::new(), Vec::new());
        for seed in 0..effort.rounds {
            let [engine, kernel] = [From::Engine, From::Kernel].map(|from| {
                let run = Run {
                    from: &[from],
                    congestion,
                    seed,
                    // Slow start counts.
                    warm_up: Duration::ZERO,
                    time: effort.goodput_time,
                };
                self.measure(&faults, &run)[0]
            });
            ours.push(engine);
            kernels.push(kernel);
        }
        let mut ratios: Vec<f64> = ours.iter().zip(&kernels).map(|(e, k)| e / k).collect();
        ratios.sort_by(f64::total_cmp);
        let (ours, kernels) = (median(ours), median(kernels));
        let ratio = ours / kernels;
        row(
            format!(
                "goodput, {}% loss, {delay_ms} ms, engine : kernel, {}",
                loss * 100.0,
                congestion.name()
            ),
            "≥ 0.9 ×",
            format!(
                "{ratio:.2} × ({:.1} : {:.1} Mbit/s; rounds {:.2} to {:.2})",
                ours,
                kernels,
                ratios[0],
                ratios[ratios.len() - 1]
            ),
            ratio >= 0.9,
        )
    }

    /// Both at once. They need time to find their shares.
    fn fairness(&mut self, congestion: CongestionControl, effort: &Effort) -> Row {
        let shares = (0..effort.rounds).map(|seed| {
            let run = Run {
                from: &[From::Engine, From::Kernel],
                congestion,
                seed,
                warm_up: effort.fairness_time,
                time: effort.fairness_time,
            };
            let got = self.measure(&faults(0.0, 10), &run);
            got[0] / (got[0] + got[1])
        });
        let share = median(shares.collect());
        row(
            format!(
                "fairness: engine's share beside a kernel flow, one queue, 10 ms, {}",
                congestion.name()
            ),
            "0.4 to 0.6",
            format!("{share:.2}"),
            (0.4..=0.6).contains(&share),
        )
    }

    /// Mbit/s that the receiver counts of each flow, all of them at once.
    fn measure(&mut self, faults: &LinkFaults, run: &Run<'_>) -> Vec<f64> {
        let is_over = AtomicBool::new(false);
        let is_open = Barrier::new(2);
        let Self { receiver, sender } = self;
        let by_engine = run.from.contains(&From::Engine);
        let by_kernel = run.from.contains(&From::Kernel);
        scope(|scope| {
            receiver.say(&format!(
                "{} {} {}",
                run.from.len(),
                run.warm_up.as_millis(),
                run.time.as_millis()
            ));
            let engine = by_engine.then_some(run.congestion);
            let (is_open, is_over) = (&is_open, &is_over);
            scope.spawn(move || switch(faults, run.seed, engine, is_open, is_over));
            // A first SYN that finds no switch costs a second.
            is_open.wait();
            if by_kernel {
                sender.say(run.congestion.name());
            }
            let answer = receiver.hear();
            if by_kernel {
                sender.hear();
            }
            // What is on its way ends before the next round.
            sleep(Duration::from_millis(100));
            is_over.store(true, Relaxed);
            let mut flows: Vec<(IpAddr, f64)> = answer
                .split(' ')
                .filter_map(|flow| {
                    let (peer, bytes) = flow.split_once('=')?;
                    let mbit = bytes.parse::<f64>().ok()? * 8.0 / run.time.as_secs_f64() / 1e6;
                    Some((peer.parse().ok()?, mbit))
                })
                .collect();
            flows.sort_by_key(|flow| flow.0);
            flows.into_iter().map(|flow| flow.1).collect()
        })
    }
}
