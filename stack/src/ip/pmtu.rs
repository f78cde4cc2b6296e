//! What routers said about path MTUs (RFC 1191, RFC 8201).

use std::collections::BTreeMap;

use crate::addr::Ip;
use crate::limits::{PMTU_ENTRIES_MAX, PMTU_EXPIRES, PMTU_MIN_V4, PMTU_MIN_V6};
use crate::time::Instant;

/// Path MTUs below the link's, by destination, each believed for a while.
#[derive(Debug, Default)]
pub(crate) struct PathMtus {
    entries: BTreeMap<Ip, (u16, Instant)>,
}

impl PathMtus {
    /// The MTU towards `dst` over a link of `link_mtu`.
    pub(crate) fn get(&self, dst: Ip, link_mtu: u16, now: Instant) -> u16 {
        match self.entries.get(&dst) {
            Some(&(mtu, until)) if now < until => mtu.min(link_mtu),
            _ => link_mtu,
        }
    }

    /// Believes a report that lowers `current`, within reason: no claim goes below what every link
    /// of the family carries.
    pub(crate) fn learn(&mut self, dst: Ip, claimed: u16, current: u16, now: Instant) {
        let mtu = claimed.max(floor(dst));
        if mtu >= current {
            return;
        }
        if self.entries.len() >= PMTU_ENTRIES_MAX && !self.entries.contains_key(&dst) {
            self.entries.retain(|_, (_, until)| now < *until);
            if self.entries.len() >= PMTU_ENTRIES_MAX {
                self.entries.pop_first();
            }
        }
        self.entries.insert(dst, (mtu, now + PMTU_EXPIRES));
    }
}

/// Smallest path MTU a report may claim.
pub(crate) const fn floor(dst: Ip) -> u16 {
    if dst.is_v4() {
        PMTU_MIN_V4
    } else {
        PMTU_MIN_V6
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    #[test]
    fn reports_lower_expire_and_are_bounded() {
        let mut p = PathMtus::default();
        let ip = |n: u32| Ip::v4(Ipv4Addr::from_bits(n));
        let t = Instant::from_millis(1);
        p.learn(ip(1), 1400, 1500, t);
        p.learn(ip(2), 68, 1500, t);
        p.learn(ip(3), 9000, 1500, t);
        assert_eq!(p.get(ip(1), 1500, t), 1400);
        assert_eq!(p.get(ip(1), 1300, t), 1300);
        assert_eq!(p.get(ip(2), 1500, t), PMTU_MIN_V4);
        assert_eq!(p.get(ip(3), 1500, t), 1500);
        assert_eq!(p.get(ip(1), 1500, t + PMTU_EXPIRES), 1500);
        for n in 0..2 * PMTU_ENTRIES_MAX as u32 {
            p.learn(ip(n), 1000, 1500, t);
        }
        assert_eq!(p.entries.len(), PMTU_ENTRIES_MAX);
    }
}
