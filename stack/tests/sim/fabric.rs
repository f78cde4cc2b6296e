//! Any number of stacks on any number of switched networks in virtual time.

use std::net::IpAddr;

use kcm_stack::{Config, IfaceId, Instant, InterfaceConfig, Key, Received, Stack};

use crate::link::{Link, LinkConfig, Watchdog};
use crate::world::World;

/// Where a host's interface is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) host: usize,
    pub(crate) iface: IfaceId,
    pub(crate) lan: usize,
}

pub(crate) fn mac(port: Port) -> [u8; 6] {
    [2, 0, 0, port.lan as u8, port.host as u8, 1]
}

/// Address of a host on a network.
pub(crate) fn ip(lan: usize, host: usize) -> IpAddr {
    IpAddr::from([10, 0, lan as u8, 1 + host as u8])
}

pub(crate) fn ip6(lan: usize, host: usize) -> IpAddr {
    IpAddr::from([0xfd00, 0, 0, lan as u16, 0, 0, 0, 1 + host as u16])
}

pub(crate) struct Fabric {
    watchdog: Watchdog,
    pub(crate) now: Instant,
    pub(crate) stacks: Vec<Stack>,
    ports: Vec<Port>,
    /// From the switch to each port.
    links: Vec<Link>,
    /// Frames each port sent.
    pub(crate) sent: Vec<u64>,
    buf: Vec<u8>,
    /// Copies of frames sent, with the port they came from, if wanted.
    pub(crate) tap: Option<Vec<(usize, Vec<u8>)>>,
}

impl Fabric {
    /// Host `h` has an interface on each of `lans[h]`, in that order, with an address of each family.
    pub(crate) fn new(lans: &[&[usize]], link: &LinkConfig, seed: u64) -> Self {
        let now = Instant::from_millis(1_000);
        let (mut stacks, mut ports) = (Vec::new(), Vec::new());
        for (host, lans) in lans.iter().enumerate() {
            let port = |n: usize| Port {
                host,
                iface: IfaceId::from_index(n).unwrap(),
                lan: lans[n],
            };
            let mut key = [host as u8; 16];
            key[8..].copy_from_slice(&seed.to_le_bytes());
            let mut stack = Stack::new(&Config::new(mac(port(0)), Key(key)), now);
            for n in 0..lans.len() {
                if n > 0 {
                    let id = stack.add_interface(&InterfaceConfig::new(mac(port(n))));
                    assert_eq!(id, Ok(port(n).iface));
                }
                stack
                    .add_address_on(port(n).iface, ip(lans[n], host), 24)
                    .unwrap();
                stack
                    .add_address_on(port(n).iface, ip6(lans[n], host), 64)
                    .unwrap();
                ports.push(port(n));
            }
            stacks.push(stack);
        }
        let seeds = (0u64..).map(|n| seed ^ n << 32);
        let links = ports
            .iter()
            .zip(seeds)
            .map(|(_, s)| Link::new(link.clone(), s));
        Self {
            now,
            buf: vec![0; 2_000],
            tap: None,
            watchdog: Watchdog::default(),
            links: links.collect(),
            sent: vec![0; ports.len()],
            stacks,
            ports,
        }
    }

    pub(crate) fn port(&self, host: usize, lan: usize) -> usize {
        let at = |p: &Port| p.host == host && p.lan == lan;
        self.ports.iter().position(at).unwrap()
    }

    fn flush(&mut self) {
        for n in 0..self.ports.len() {
            let from = self.ports[n];
            let stack = &mut self.stacks[from.host];
            while let Some(t) = stack.poll_transmit_on(self.now, from.iface, &mut self.buf) {
                assert_eq!(t.iface, from.iface);
                let frame = &self.buf[..t.len];
                assert_eq!(frame[6..12], mac(from), "source address of the interface");
                self.sent[n] += 1;
                if let Some(tap) = &mut self.tap {
                    tap.push((n, frame.to_vec()));
                }
                for (to, link) in self.ports.iter().zip(&mut self.links) {
                    let wanted = frame[0] & 1 != 0 || frame[..6] == mac(*to);
                    if wanted && to.lan == from.lan && *to != from {
                        link.send(self.now, frame);
                    }
                }
            }
            stack.check_invariants();
        }
    }

    /// A frame from nobody, to everyone on a network.
    pub(crate) fn inject(&mut self, lan: usize, frame: &[u8]) {
        for port in self.ports.iter().filter(|p| p.lan == lan) {
            let stack = &mut self.stacks[port.host];
            stack.handle_frame_on(self.now, port.iface, frame, Received::default());
        }
    }
}

impl World for Fabric {
    fn now(&self) -> Instant {
        self.now
    }

    fn step(&mut self, until: Instant) -> bool {
        self.flush();
        let arrivals = self.links.iter().filter_map(Link::next_arrival);
        let deadlines = self.stacks.iter().filter_map(Stack::next_deadline);
        let Some(next) = arrivals.chain(deadlines).min().filter(|n| *n <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        self.watchdog.step(self.now);
        for (port, link) in self.ports.iter().zip(&mut self.links) {
            let stack = &mut self.stacks[port.host];
            while let Some(frame) = link.arrive(self.now) {
                stack.handle_frame_on(self.now, port.iface, &frame, Received::default());
            }
            stack.handle_timeout(self.now);
        }
        self.flush();
        true
    }
}
