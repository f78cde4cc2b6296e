//! Neighbour cache for ARP (RFC 826) and NDP (RFC 4861 §7): states, probing, and the frames that
//! wait for an address. Decides when to solicit; composes nothing.

use std::collections::{BTreeMap, VecDeque};

use smoltcp::wire::EthernetAddress;

use super::iface::IfaceId;
use crate::addr::Ip;
use crate::limits::{
    NEIGHBOR_PENDING_BYTES_MAX, NEIGHBOR_PROBES, NEIGHBOR_REACHABLE, NEIGHBORS_MAX,
};
use crate::time::Instant;
use core::time::Duration;

/// RetransTimer.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// DELAY_FIRST_PROBE_TIME: the time upper layers have to confirm a stale neighbour by progress.
const DELAY: Duration = Duration::from_secs(5);

/// Names a cache entry; checked against the entry's generation on use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct NeighborRef {
    index: u16,
    generation: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reachability {
    Incomplete {
        probes: u8,
        next: Instant,
    },
    Reachable {
        until: Instant,
    },
    /// Usable; used since its confirmation ran out, so to be probed at `next` unless confirmed.
    Probing {
        probes: u8,
        next: Instant,
    },
    /// Did not answer, or was not asked yet: the next frame asks again, as on Linux.
    Failed,
}

#[derive(Debug)]
struct Neighbor {
    iface: IfaceId,
    ip: Ip,
    mac: EthernetAddress,
    state: Reachability,
    generation: u16,
    pending: VecDeque<Vec<u8>>,
    pending_bytes: usize,
    last_used: Instant,
}

/// Answer to "what is the address of this neighbour?"
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    Known(EthernetAddress),
    /// Not yet: hand the frame to [`NeighborCache::hold`].
    Pending,
}

/// A neighbour to solicit: unicast if an address is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Solicitation {
    pub(crate) iface: IfaceId,
    pub(crate) ip: Ip,
    pub(crate) known: Option<EthernetAddress>,
}

/// What the cache wants done.
#[derive(Debug, Default)]
pub(crate) struct NeighborWork {
    pub(crate) solicit: Vec<Solicitation>,
    /// Frames whose neighbour failed to answer.
    pub(crate) undeliverable: Vec<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) struct NeighborCache {
    entries: Vec<Neighbor>,
    by_ip: BTreeMap<(IfaceId, Ip), u16>,
    next_at: Instant,
    work: NeighborWork,
    /// Counts what may make an answer differ from the one before.
    changes: u64,
}

impl NeighborCache {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            by_ip: BTreeMap::new(),
            next_at: Instant::FAR_FUTURE,
            work: NeighborWork::default(),
            changes: 0,
        }
    }

    /// While it is the same, so is what [`resolve`](Self::resolve) answers at one time.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// The entry for a next hop, created if absent.
    pub(crate) fn entry(&mut self, iface: IfaceId, ip: Ip, now: Instant) -> NeighborRef {
        if let Some(&index) = self.by_ip.get(&(iface, ip)) {
            return NeighborRef {
                index,
                generation: self.entries[usize::from(index)].generation,
            };
        }
        self.changes += 1;
        let state = Reachability::Failed;
        let mut fresh = Neighbor {
            iface,
            ip,
            mac: EthernetAddress([0; 6]),
            state,
            generation: 1,
            pending: VecDeque::new(),
            pending_bytes: 0,
            last_used: now,
        };
        let index = if self.entries.len() < NEIGHBORS_MAX {
            self.entries.push(fresh);
            self.entries.len() - 1
        } else {
            // The least recently used makes room; references to it notice by generation.
            let oldest = self
                .entries
                .iter()
                .enumerate()
                .min_by_key(|(_, e)| e.last_used)
                .map_or(0, |(i, _)| i);
            let old = &mut self.entries[oldest];
            self.by_ip.remove(&(old.iface, old.ip));
            fresh.generation = next_generation(old.generation);
            *old = fresh;
            oldest
        };
        self.by_ip.insert((iface, ip), index as u16);
        NeighborRef {
            index: index as u16,
            generation: self.entries[index].generation,
        }
    }

    /// Makes every reference stale: routes changed, and each has to look up its own again.
    pub(crate) fn forget_references(&mut self) {
        self.changes += 1;
        for e in &mut self.entries {
            e.generation = next_generation(e.generation);
        }
    }

    /// The interface a neighbour is on; `None`: the reference is stale.
    pub(crate) fn iface_of(&self, r: NeighborRef) -> Option<IfaceId> {
        let e = self.entries.get(usize::from(r.index))?;
        (e.generation == r.generation).then_some(e.iface)
    }

    /// `None`: the reference is stale, look the route up again.
    pub(crate) fn resolve(
        &mut self,
        r: NeighborRef,
        now: Instant,
    ) -> Option<(IfaceId, Resolution)> {
        let e = self
            .entries
            .get_mut(usize::from(r.index))
            .filter(|e| e.generation == r.generation)?;
        e.last_used = now;
        let resolution = match e.state {
            Reachability::Reachable { until } if now < until => Resolution::Known(e.mac),
            Reachability::Reachable { .. } => {
                let next = now + DELAY;
                e.state = Reachability::Probing { probes: 0, next };
                self.next_at = self.next_at.min(next);
                Resolution::Known(e.mac)
            }
            Reachability::Probing { .. } => Resolution::Known(e.mac),
            Reachability::Incomplete { .. } => Resolution::Pending,
            Reachability::Failed => {
                let next = now + PROBE_INTERVAL;
                e.state = Reachability::Incomplete { probes: 1, next };
                self.next_at = self.next_at.min(next);
                self.work.solicit.push(Solicitation {
                    iface: e.iface,
                    ip: e.ip,
                    known: None,
                });
                Resolution::Pending
            }
        };
        Some((e.iface, resolution))
    }

    /// Keeps a complete frame until the address is known; the oldest make room.
    pub(crate) fn hold(&mut self, r: NeighborRef, frame: &[u8]) {
        let Some(e) = self.entries.get_mut(usize::from(r.index)) else {
            return;
        };
        while e.pending_bytes + frame.len() > NEIGHBOR_PENDING_BYTES_MAX {
            let Some(old) = e.pending.pop_front() else {
                return;
            };
            e.pending_bytes -= old.len();
        }
        e.pending_bytes += frame.len();
        e.pending.push_back(frame.to_vec());
    }

    /// An address was learned. `create`: the message was meant for us, so that an entry may be
    /// made. Returns the frames that waited for it.
    pub(crate) fn learn(
        &mut self,
        iface: IfaceId,
        ip: Ip,
        mac: EthernetAddress,
        create: bool,
        now: Instant,
    ) -> (EthernetAddress, VecDeque<Vec<u8>>) {
        if !create && !self.by_ip.contains_key(&(iface, ip)) || !mac.is_unicast() {
            return (mac, VecDeque::new());
        }
        let r = self.entry(iface, ip, now);
        self.changes += 1;
        let e = &mut self.entries[usize::from(r.index)];
        e.mac = mac;
        e.state = Reachability::Reachable {
            until: now + NEIGHBOR_REACHABLE,
        };
        e.pending_bytes = 0;
        (mac, core::mem::take(&mut e.pending))
    }

    /// An upper layer made progress with this neighbour (RFC 4861 §7.3.1).
    pub(crate) fn confirm(&mut self, r: NeighborRef, now: Instant) {
        if let Some(e) = self.entries.get_mut(usize::from(r.index))
            && e.generation == r.generation
            && matches!(
                e.state,
                Reachability::Reachable { .. } | Reachability::Probing { .. }
            )
        {
            e.state = Reachability::Reachable {
                until: now + NEIGHBOR_REACHABLE,
            };
        }
    }

    /// Solicitations are waiting to be sent.
    pub(crate) fn has_work(&self) -> bool {
        !self.work.solicit.is_empty() || !self.work.undeliverable.is_empty()
    }

    pub(crate) fn next_deadline(&self) -> Instant {
        self.next_at
    }

    /// Advances probing; then the collected work is for the caller to do.
    pub(crate) fn take_work(&mut self, now: Instant) -> NeighborWork {
        if self.next_at <= now {
            self.advance(now);
        }
        core::mem::take(&mut self.work)
    }

    fn advance(&mut self, now: Instant) {
        self.next_at = Instant::FAR_FUTURE;
        for e in &mut self.entries {
            let (probes, next, known) = match e.state {
                Reachability::Incomplete { probes, next } => (probes, next, false),
                Reachability::Probing { probes, next } => (probes, next, true),
                _ => continue,
            };
            if next > now {
                self.next_at = self.next_at.min(next);
            } else if probes < NEIGHBOR_PROBES {
                let next = now + PROBE_INTERVAL;
                self.next_at = self.next_at.min(next);
                self.work.solicit.push(Solicitation {
                    iface: e.iface,
                    ip: e.ip,
                    known: known.then_some(e.mac),
                });
                e.state = if known {
                    Reachability::Probing {
                        probes: probes + 1,
                        next,
                    }
                } else {
                    Reachability::Incomplete {
                        probes: probes + 1,
                        next,
                    }
                };
            } else {
                self.changes += 1;
                e.state = Reachability::Failed;
                e.pending_bytes = 0;
                self.work.undeliverable.extend(e.pending.drain(..));
            }
        }
    }
}

/// The generation after `g`; never 0, which references start with.
const fn next_generation(g: u16) -> u16 {
    if g == u16::MAX { 1 } else { g + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: IfaceId = IfaceId::FIRST;
    const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 9]);

    fn ip(n: u8) -> Ip {
        Ip::v4(core::net::Ipv4Addr::new(10, 0, 0, n))
    }

    #[test]
    fn incomplete_is_probed_three_times_then_fails_with_its_frames() {
        let mut c = NeighborCache::new();
        let mut now = Instant::from_millis(1);
        let r = c.entry(FIRST, ip(1), now);
        assert_eq!(c.resolve(r, now), Some((FIRST, Resolution::Pending)));
        c.hold(r, b"frame");
        let mut solicited = c.take_work(now).solicit.len();
        for _ in 0..2 {
            now = c.next_deadline();
            solicited += c.take_work(now).solicit.len();
        }
        assert_eq!(solicited, 3);
        now = c.next_deadline();
        assert_eq!(c.take_work(now).undeliverable, [b"frame".to_vec()]);
        assert_eq!(c.resolve(r, now), Some((FIRST, Resolution::Pending)));
        assert_eq!(c.take_work(now).solicit.len(), 1);
    }

    #[test]
    fn learning_releases_frames_and_confirmation_prevents_probes() {
        let mut c = NeighborCache::new();
        let now = Instant::from_millis(1);
        let r = c.entry(FIRST, ip(1), now);
        assert_eq!(c.resolve(r, now), Some((FIRST, Resolution::Pending)));
        let asked = c.take_work(now).solicit;
        assert_eq!((asked[0].ip, asked[0].known), (ip(1), None));
        c.hold(r, b"a");
        assert_eq!(c.learn(FIRST, ip(1), MAC, false, now).1.len(), 1);
        let late = now + NEIGHBOR_REACHABLE;
        assert_eq!(c.resolve(r, late), Some((FIRST, Resolution::Known(MAC))));
        c.confirm(r, late);
        assert!(c.take_work(late + DELAY).solicit.is_empty());
        // Unknown neighbours are not learned from messages that were not meant for us.
        c.learn(FIRST, ip(7), MAC, false, now);
        assert!(!c.by_ip.contains_key(&(FIRST, ip(7))));
    }

    #[test]
    fn the_cache_and_its_queues_are_bounded() {
        let mut c = NeighborCache::new();
        let first = c.entry(FIRST, ip(0), Instant::ZERO);
        for i in 0..2 * NEIGHBORS_MAX as u32 {
            let a = Ip::v4(core::net::Ipv4Addr::from_bits(i + 1_000));
            let r = c.entry(FIRST, a, Instant::from_millis(u64::from(i) + 1));
            c.hold(r, &[0; 4096]);
            c.hold(r, &vec![0; NEIGHBOR_PENDING_BYTES_MAX]);
        }
        assert_eq!(c.entries.len(), NEIGHBORS_MAX);
        assert_eq!(c.by_ip.len(), NEIGHBORS_MAX);
        assert_eq!(c.resolve(first, Instant::ZERO), None);
        assert!(
            c.entries
                .iter()
                .all(|e| e.pending_bytes <= NEIGHBOR_PENDING_BYTES_MAX)
        );
    }
}
