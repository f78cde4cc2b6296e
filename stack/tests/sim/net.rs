//! Two stacks joined by two links in virtual time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kcm_stack::{Config, Event, Instant, Key, Received, Stack};

use crate::link::{Link, LinkConfig};

pub(crate) const MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

pub(crate) fn ip(side: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, 1 + side as u8])
}

pub(crate) fn ip6(side: usize) -> IpAddr {
    format!("fd00::{}", side + 1).parse().unwrap()
}

pub(crate) fn at(side: usize, port: u16) -> SocketAddr {
    SocketAddr::new(ip(side), port)
}

pub(crate) struct Net {
    pub(crate) now: Instant,
    pub(crate) stacks: [Stack; 2],
    /// `links[i]` carries what `stacks[i]` sends.
    pub(crate) links: [Link; 2],
    pub(crate) events: [Vec<Event>; 2],
    buf: Vec<u8>,
    /// Copies of frames sent, with the side they came from, if wanted.
    pub(crate) tap: Option<Vec<(usize, Vec<u8>)>>,
    /// Check invariants after every event.
    pub(crate) check: bool,
}

impl Net {
    pub(crate) fn new(links: [LinkConfig; 2], seed: u64) -> Self {
        Self::with(links, seed, |_, _| {})
    }

    pub(crate) fn with(
        links: [LinkConfig; 2],
        seed: u64,
        tweak: impl Fn(usize, &mut Config),
    ) -> Self {
        let now = Instant::from_millis(1_000);
        let stacks = [0, 1].map(|i| {
            let mut key = [i as u8; 16];
            key[8..].copy_from_slice(&seed.to_le_bytes());
            let mut config = Config::new(MAC[i], Key(key));
            tweak(i, &mut config);
            let mut s = Stack::new(&config, now);
            s.add_address(ip(i), 24).unwrap();
            s.add_address(ip6(i), 64).unwrap();
            s
        });
        let [a, b] = links;
        let buf = vec![0; stacks.iter().map(Stack::frame_bytes_max).max().unwrap()];
        Self {
            now,
            stacks,
            links: [Link::new(a, seed), Link::new(b, seed ^ 0xabcd)],
            events: [Vec::new(), Vec::new()],
            buf,
            tap: None,
            check: true,
        }
    }

    /// Lets both stacks say all they have to say at this instant.
    pub(crate) fn flush(&mut self) {
        for i in 0..2 {
            while let Some(t) = self.stacks[i].poll_transmit(self.now, &mut self.buf) {
                if let Some(tap) = &mut self.tap {
                    tap.push((i, self.buf[..t.len].to_vec()));
                }
                self.links[i].send(self.now, &self.buf[..t.len]);
            }
            while let Some(e) = self.stacks[i].poll_event() {
                self.events[i].push(e);
            }
            if self.check {
                self.stacks[i].check_invariants();
            }
        }
    }

    /// Advances to the next thing that happens; false if nothing will.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        self.flush();
        let next = self
            .links
            .iter()
            .filter_map(Link::next_arrival)
            .chain(self.stacks.iter().filter_map(Stack::next_deadline))
            .min();
        let Some(next) = next.filter(|n| *n <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        for i in 0..2 {
            while let Some(frame) = self.links[i].arrive(self.now) {
                self.stacks[1 - i].handle_frame(self.now, &frame, Received::default());
            }
            self.stacks[i].handle_timeout(self.now);
        }
        self.flush();
        true
    }

    pub(crate) fn run_for(&mut self, d: Duration) {
        let until = self.now + d;
        while self.step(until) {}
    }

    /// Steps until `done` holds; panics when `limit` of virtual time has passed.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut(&mut Self) -> bool,
    ) {
        let until = self.now + limit;
        while !done(self) {
            let more = self.step(until);
            assert!(more || done(self), "not reached within {limit:?}: {what}");
            if !more {
                return;
            }
        }
    }
}
