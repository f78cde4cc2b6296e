//! An engine on a faulty device whose other side is this machine's kernel.

use crate::device_support::wait_for;
use kcm_stack::device::{Fault, LinkFaults, NetDevice, Wait, pump};
use kcm_stack::{Config, Event, Instant, Key, Ready, Stack, TcpId};
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

/// Longest any test here runs; a connection that is stuck shows as this.
const PATIENCE: Duration = Duration::from_secs(60);

/// The engine, its device, and the time both live in.
pub(crate) struct Host {
    pub(crate) stack: Stack,
    pub(crate) device: Fault<Box<dyn NetDevice>>,
    start: std::time::Instant,
    /// How far the engine's clock runs ahead of the kernel's.
    ahead: Duration,
}

impl Host {
    /// An engine with `addresses` behind `faults` in both directions.
    pub(crate) fn new(
        device: Box<dyn NetDevice>,
        seed: u64,
        faults: &LinkFaults,
        addresses: &[(IpAddr, u8)],
    ) -> Self {
        let mut config = Config::new([0; 6], Key([7; 16]));
        device.capabilities().configure(&mut config);
        let mut stack = Stack::new(&config, Instant::ZERO);
        for &(address, prefix_len) in addresses {
            stack.add_address(address, prefix_len).unwrap();
        }
        Self {
            stack,
            device: Fault::new(device, seed, faults.clone(), faults.clone()),
            start: std::time::Instant::now(),
            ahead: Duration::ZERO,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::ZERO + self.start.elapsed() + self.ahead
    }

    /// Sets the same faults in both directions.
    pub(crate) fn set_faults(&mut self, faults: &LinkFaults) {
        self.device.set_rx_faults(faults.clone());
        self.device.set_tx_faults(faults.clone());
    }

    /// Lets the engine believe that `time` has passed, in which the kernel said nothing.
    pub(crate) fn skip(&mut self, time: Duration) {
        self.ahead += time;
        let now = self.now();
        while self.stack.next_deadline().is_some_and(|at| at <= now) {
            self.stack.handle_timeout(now);
        }
    }

    /// Moves frames, then sleeps until something may happen; tells which connections are reported.
    pub(crate) fn run(&mut self) -> Vec<(TcpId, Ready)> {
        assert!(
            self.start.elapsed() < PATIENCE,
            "stuck after {PATIENCE:?}: {} flows, {:?}, {:?}",
            self.stack.flow_count(),
            self.stack.tcp_stats(),
            self.stack.link_stats()
        );
        let now = self.now();
        let pumped = pump(&mut self.stack, &mut self.device, now, 256).unwrap();
        let mut changes = Vec::new();
        while let Some(event) = self.stack.poll_event() {
            if let Event::Tcp(id, ready) = event {
                changes.push((id, ready));
            }
        }
        if pumped.received == 0 && pumped.transmitted == 0 && changes.is_empty() {
            let deadlines = [self.stack.next_deadline(), self.device.next_deadline()];
            let wake = deadlines.into_iter().flatten().min().map(|at| at - now);
            // The test's own threads have news of which no frame tells.
            let wake = wake.unwrap_or(Duration::MAX).min(Duration::from_millis(20));
            let kind = if pumped.is_full {
                Wait::Writable
            } else {
                Wait::Readable
            };
            wait_for(&self.device, kind, Some(wake));
        }
        changes
    }
}

/// A stream of bytes that both ends can write down without telling each other (SplitMix64).
#[derive(Clone)]
pub(crate) struct Stream {
    seed: u64,
    at: u64,
}

impl Stream {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, at: 0 }
    }

    /// The next bytes.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            let mut z = self
                .seed
                .wrapping_add((self.at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (z ^ (z >> 31)).to_le_bytes()[(self.at % 8) as usize];
            self.at += 1;
        }
    }

    /// Panics unless `got` is what comes next.
    pub(crate) fn check(&mut self, got: &[u8]) {
        let from = self.at;
        let mut expected = vec![0; got.len()];
        self.fill(&mut expected);
        let wrong = got.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(
            wrong.map(|i| from + i as u64),
            None,
            "first byte that differs"
        );
    }
}

/// The kernel's TCP sockets that are connected or were, as `ss` shows them; one line each.
pub(crate) fn kernel_sockets(filter: &str) -> Vec<String> {
    let output = Command::new("ss")
        .args(["-tainHO"])
        .args(filter.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| !line.starts_with("LISTEN"))
        .map(str::to_owned)
        .collect()
}

/// A number `name:value` in a line of `ss`.
pub(crate) fn field(line: &str, name: &str) -> Option<f64> {
    line.split([' ', '/'])
        .find_map(|word| word.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| value.split(',').next()?.parse().ok())
}
