//! Two stacks joined by two links in virtual time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kcm_stack::{Config, Event, Instant, Key, Received, Stack};

use crate::link::{Link, LinkConfig, Rng, Watchdog};
use crate::world::World;

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

/// Someone in the middle.
pub(crate) type Mangle = Box<dyn FnMut(usize, &mut Vec<u8>) -> bool>;

pub(crate) struct Net {
    pub(crate) now: Instant,
    pub(crate) stacks: [Stack; 2],
    /// `links[i]` carries what `stacks[i]` sends.
    pub(crate) links: [Link; 2],
    pub(crate) events: [Vec<Event>; 2],
    buf: Vec<u8>,
    /// Copies of frames sent, with the side they came from, if wanted.
    pub(crate) tap: Option<Vec<(usize, Vec<u8>)>>,
    /// Sees each frame before it arrives, with the side it comes from; true if it changed it.
    pub(crate) mangle: Option<Mangle>,
    /// Check invariants after every event.
    pub(crate) check: bool,
    /// Side 0 runs in a thread of a busy machine.
    late: Option<Late>,
    watchdog: Watchdog,
}

/// A thread that the scheduler wakes up to so many microseconds after there is something to do.
struct Late {
    us: u64,
    rng: Rng,
    /// When it runs next, once there is.
    wakes: Option<Instant>,
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
            mangle: None,
            check: true,
            late: None,
            watchdog: Watchdog::default(),
        }
    }

    /// From now on side 0 acts up to `us` microseconds late.
    pub(crate) fn make_late(&mut self, us: u64, seed: u64) {
        let rng = Rng(seed);
        let wakes = None;
        self.late = (us > 0).then_some(Late { us, rng, wakes });
    }

    fn is_asleep(&self, side: usize) -> bool {
        let late = self.late.as_ref().filter(|_| side == 0);
        late.is_some_and(|late| late.wakes.is_some_and(|at| at > self.now))
    }

    /// When `side` has something to do.
    fn due(&self, side: usize) -> Option<Instant> {
        let arrival = self.links[1 - side].next_arrival();
        arrival
            .into_iter()
            .chain(self.stacks[side].next_deadline())
            .min()
    }

    /// When `side` does something, or learns that there is something to do.
    fn acts(&self, side: usize) -> Option<Instant> {
        let late = self.late.as_ref().filter(|_| side == 0);
        late.and_then(|late| late.wakes).or_else(|| self.due(side))
    }

    /// Sends a late side back to sleep when it has just heard the alarm.
    fn oversleeps(&mut self, side: usize) -> bool {
        let is_due = self.due(side).is_some_and(|at| at <= self.now);
        let Some(late) = self.late.as_mut().filter(|_| side == 0) else {
            return false;
        };
        match late.wakes {
            None if is_due => {
                late.wakes = Some(self.now + Duration::from_micros(late.rng.below(late.us)))
            }
            Some(at) if at <= self.now => late.wakes = None,
            _ => {}
        }
        late.wakes.is_some()
    }

    /// Lets both stacks say all they have to say at this instant.
    pub(crate) fn flush(&mut self) {
        for i in 0..2 {
            if self.is_asleep(i) {
                continue;
            }
            while let Some(t) = self.stacks[i].poll_transmit(self.now, &mut self.buf) {
                if let Some(tap) = &mut self.tap {
                    tap.push((i, self.buf[..t.len].to_vec()));
                }
                let frame = &self.buf[..t.len];
                // MLD reports (a hop-by-hop header comes first) are for routers, and shall not take
                // part in what the links' seeds decide.
                if frame[12..14] != [0x86, 0xdd] || frame[20] != 0 {
                    self.links[i].send(self.now, frame);
                }
            }
            self.tell_too_big(i);
            while let Some(e) = self.stacks[i].poll_event() {
                self.events[i].push(e);
            }
            if self.check {
                self.stacks[i].check_invariants();
            }
        }
    }

    /// A router's complaints about what side `i` sent.
    fn tell_too_big(&mut self, i: usize) {
        for frame in std::mem::take(&mut self.links[i].too_big) {
            let mtu = self.links[i].config.mtu - 14;
            let packet = &frame[14..];
            let icmp = if packet[0] >> 4 == 4 {
                too_big_v4(ip(1 - i), ip(i), mtu as u16, packet)
            } else {
                too_big_v6(ip6(1 - i), ip6(i), mtu as u32, packet)
            };
            let frame = crate::net::frame(MAC[i], MAC[1 - i], &icmp);
            self.stacks[i].handle_frame(self.now, &frame, Received::default());
        }
    }
}

impl World for Net {
    fn now(&self) -> Instant {
        self.now
    }

    fn step(&mut self, until: Instant) -> bool {
        self.flush();
        let next = (0..2).filter_map(|side| self.acts(side)).min();
        let Some(next) = next.filter(|n| *n <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        self.watchdog.step(self.now);
        let sleeps = [0, 1].map(|side| self.oversleeps(side));
        for i in 0..2 {
            while !sleeps[1 - i]
                && let Some(mut frame) = self.links[i].arrive(self.now)
            {
                let received = Received {
                    checksum_ok: self.mangle.as_mut().is_some_and(|m| m(i, &mut frame)),
                };
                self.stacks[1 - i].handle_frame(self.now, &frame, received);
            }
            if !sleeps[i] {
                self.stacks[i].handle_timeout(self.now);
            }
        }
        self.flush();
        true
    }
}

/// An Ethernet frame around an IP packet.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [&to[..], &from, &kind, packet].concat()
}

/// The Internet checksum (RFC 1071) of bytes whose own field is zero.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |c: &[u8]| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

pub(crate) fn fill_ipv4_checksum(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
}

/// What a router says about an IPv4 packet that does not fit its next link (RFC 1191).
pub(crate) fn too_big_v4(from: IpAddr, to: IpAddr, mtu: u16, packet: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
        panic!("IPv4")
    };
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend(mtu.to_be_bytes());
    icmp.extend(&packet[..packet.len().min(28)]);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let mut p = vec![0x45, 0, 0, 20 + icmp.len() as u8, 0, 0, 0, 0, 64, 1, 0, 0];
    p.extend(from.octets());
    p.extend(to.octets());
    fill_ipv4_checksum(&mut p);
    p.extend(icmp);
    p
}

/// The same of an IPv6 packet (RFC 4443 §3.2).
pub(crate) fn too_big_v6(from: IpAddr, to: IpAddr, mtu: u32, packet: &[u8]) -> Vec<u8> {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) else {
        panic!("IPv6")
    };
    let mut icmp = vec![2, 0, 0, 0];
    icmp.extend(mtu.to_be_bytes());
    icmp.extend(&packet[..packet.len().min(1_232)]);
    let len = icmp.len() as u16;
    let mut pseudo = [&from.octets()[..], &to.octets()].concat();
    pseudo.extend(u32::from(len).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    let sum = checksum(&[&pseudo[..], &icmp].concat());
    icmp[2..4].copy_from_slice(&sum);
    let mut p = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
    p[4..6].copy_from_slice(&len.to_be_bytes());
    p.extend(from.octets());
    p.extend(to.octets());
    p.extend(icmp);
    p
}
