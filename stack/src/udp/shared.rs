//! UDP ports whose sockets are not all where the port belongs ([`Shard`](crate::Shard)): several sockets
//! share such a port by SO_REUSEPORT, each in a shard of its own, and a datagram belongs to the shard of the
//! socket that Linux would choose.

use std::collections::BTreeMap;

use super::UdpBinding;
use crate::addr::{Endpoint, Ip};
use crate::ip::iface::IfaceId;
use crate::stack::{Belongs, GOLDEN, datagram_of, shard_of, shard_of_udp};

/// A socket of such a port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    shard: u8,
    binding: UdpBinding,
}

/// All such ports, with all sockets on them. A value that who hands out frames and every shard have alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedPorts {
    /// What the choice among sockets depends on besides the flow.
    seed: u32,
    /// How many shards there are.
    count: u8,
    ports: BTreeMap<u16, Vec<Member>>,
}

impl SharedPorts {
    /// For `count` shards; `seed` is what peers shall not know.
    pub fn new(seed: u32, count: u8) -> Self {
        Self {
            seed,
            count,
            ports: BTreeMap::new(),
        }
    }

    /// The same with other sockets on `port`, each with the shard it is in, in the order in which flows are
    /// spread over them. A port whose sockets all are where it belongs is shared no more.
    #[must_use]
    pub fn with(&self, port: u16, sockets: impl IntoIterator<Item = (u8, UdpBinding)>) -> Self {
        let member = |(shard, binding)| Member { shard, binding };
        let members: Vec<_> = sockets.into_iter().map(member).collect();
        let home = shard_of_udp(port, self.count);
        let mut new = self.clone();
        match members.iter().all(|member| member.shard == home) {
            true => drop(new.ports.remove(&port)),
            false => drop(new.ports.insert(port, members)),
        }
        new
    }

    /// How many shards there are.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Whether the port is one of them.
    pub fn has(&self, port: u16) -> bool {
        self.ports.contains_key(&port)
    }

    /// Whom a frame that came by `iface` is for: [`shard_of`](crate::shard_of), which knows nothing of such
    /// ports.
    pub fn shard_of(&self, frame: &[u8], iface: IfaceId) -> Belongs {
        match datagram_of(frame).filter(|(_, local)| self.has(local.port)) {
            Some((remote, local)) => {
                let to_group = frame.first().is_some_and(|first| first & 1 != 0);
                self.shard_of_datagram(local, remote, iface, to_group)
            }
            None => shard_of(frame, self.count),
        }
    }

    /// Whom a datagram is for. Of one to a group each socket that listens gets a copy.
    pub(crate) fn shard_of_datagram(
        &self,
        local: Endpoint,
        remote: Endpoint,
        iface: IfaceId,
        to_group: bool,
    ) -> Belongs {
        let home = || Belongs::To(shard_of_udp(local.port, self.count));
        let Some(members) = self.ports.get(&local.port) else {
            return home();
        };
        if to_group || local.ip.is_multicast() {
            return Belongs::All;
        }
        let score = |member: &Member| member.binding.score(local, remote, Some(iface));
        let scored = members
            .iter()
            .filter_map(|member| Some((score(member)?, member)));
        let Some((best, newest)) = scored.max_by_key(|(score, _)| *score) else {
            return home();
        };
        if !newest.binding.reuse.spreads() {
            return Belongs::To(newest.shard);
        }
        let group = members.iter().filter(|member| score(member) == Some(best));
        let chosen = choose(
            mix(self.seed, remote.ip),
            remote.port,
            group.clone().count(),
        );
        group
            .clone()
            .nth(chosen)
            .map_or_else(home, |member| Belongs::To(member.shard))
    }

    /// The groups that whoever knows only the sender of a datagram can choose from, and that the choice is
    /// by [`mix`] and [`choose`]: port, and the shard of each member.
    pub(crate) fn plain(&self) -> impl Iterator<Item = (u16, impl ExactSizeIterator<Item = u8>)> {
        self.ports.iter().filter_map(|(port, members)| {
            let first = members.first()?.binding;
            let alike = |member: &Member| member.binding == first;
            let plain =
                first.reuse.spreads() && first.remote.is_none() && members.iter().all(alike);
            plain.then(|| (*port, members.iter().map(|member| member.shard)))
        })
    }

    pub(crate) fn seed(&self) -> u32 {
        self.seed
    }
}

/// An address and the seed in 32 bits.
pub(crate) fn mix(seed: u32, ip: Ip) -> u32 {
    let (hi, lo) = ip.words();
    let folded = match ip.is_v4() {
        true => lo as u32,
        false => (hi >> 32) as u32 ^ hi as u32 ^ (lo >> 32) as u32 ^ lo as u32,
    };
    (folded ^ seed).wrapping_mul(GOLDEN)
}

/// One of `count`, by the sender's address, mixed, and its port. Fibonacci hashing, as for ports alone.
pub(crate) fn choose(mixed: u32, port: u16, count: usize) -> usize {
    let fraction = (mixed ^ u32::from(port)).wrapping_mul(GOLDEN) >> 16;
    (fraction as usize * count) >> 16
}

#[cfg(test)]
mod tests;
