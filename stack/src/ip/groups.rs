//! Multicast groups we are in, and when routers and switches are told: the host's half of IGMPv3
//! (RFC 3376) and MLDv2 (RFC 3810) without source filters, and of their older versions where an older
//! router speaks. Decides what to report and when; composes nothing.

use core::time::Duration;
use std::collections::BTreeMap;

use super::iface::IfaceId;
use crate::addr::Ip;
use crate::error::SocketError;
use crate::limits::GROUPS_MAX;
use crate::secret::{Key, Rng};
use crate::stack::Shard;
use crate::time::Instant;

/// Robustness Variable: how often a change is reported, in case a report is lost.
const ROBUSTNESS: u8 = 2;
/// Unsolicited Report Interval of the current versions; the older ones wait up to ten times as long.
const UNSOLICITED: Duration = Duration::from_secs(1);
/// How long an older router is remembered: twice the query interval and the longest answer.
const OLD_ROUTER: Duration = Duration::from_secs(260);

/// What the routers of a link speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Version {
    /// IGMPv1.
    One,
    /// IGMPv2, MLDv1.
    Two,
    /// IGMPv3, MLDv2.
    #[default]
    Three,
}

/// What a report says of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// We are in it: the answer to a query.
    Is,
    Joined,
    Left,
}

/// A report to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupReport {
    pub(super) iface: IfaceId,
    pub(super) group: Ip,
    pub(super) change: Change,
    pub(super) version: Version,
}

/// A query that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Query {
    /// `None` asks for all groups.
    pub(super) group: Option<Ip>,
    pub(super) version: Version,
    /// The longest time an answer may take.
    pub(super) within: Duration,
}

#[derive(Debug)]
struct Group {
    /// Sockets, and the IP layer itself, that are in it; none while the leave is being told.
    users: u32,
    /// How often the last change is still to be told.
    untold: u8,
    /// When to tell it next.
    change_due: Instant,
    /// When to answer a query.
    answer_due: Instant,
    /// Older versions: the last report about the group was ours, so the leave is ours to tell.
    last_reporter: bool,
}

/// Groups by interface.
#[derive(Debug)]
pub(crate) struct Groups {
    groups: BTreeMap<(IfaceId, Ip), Group>,
    /// Older routers by interface and family.
    routers: BTreeMap<(IfaceId, bool), (Version, Instant)>,
    next_at: Instant,
    rng: Rng,
    shard: Shard,
}

impl Groups {
    pub(crate) fn new(key: Key, shard: Shard) -> Self {
        Self {
            groups: BTreeMap::new(),
            routers: BTreeMap::new(),
            next_at: Instant::FAR_FUTURE,
            rng: Rng::new(key),
            shard,
        }
    }

    pub(crate) fn is_member(&self, iface: IfaceId, group: Ip) -> bool {
        let found = self.groups.get(&(iface, group));
        found.is_some_and(|g| g.users > 0)
    }

    /// One more user of a group.
    pub(crate) fn join(&mut self, iface: IfaceId, group: Ip) -> Result<(), SocketError> {
        if let Some(g) = self.groups.get_mut(&(iface, group)) {
            g.users += 1;
            if g.users > 1 {
                return Ok(());
            }
        } else if self.groups.len() >= GROUPS_MAX {
            return Err(SocketError::LimitReached);
        }
        self.changed(iface, group, 1);
        Ok(())
    }

    /// One user less.
    pub(crate) fn leave(&mut self, iface: IfaceId, group: Ip) {
        let Some(g) = self.groups.get_mut(&(iface, group)) else {
            return;
        };
        g.users = g.users.saturating_sub(1);
        if g.users == 0 {
            self.changed(iface, group, 0);
        }
    }

    /// The first user came or the last one went: told at once, and again.
    fn changed(&mut self, iface: IfaceId, group: Ip, users: u32) {
        let silent = is_never_reported(group, self.shard);
        let last_reporter = self
            .groups
            .get(&(iface, group))
            .is_some_and(|g| g.last_reporter);
        if silent && users == 0 {
            self.groups.remove(&(iface, group));
            return;
        }
        let g = Group {
            users,
            untold: if silent { 0 } else { ROBUSTNESS },
            change_due: if silent {
                Instant::FAR_FUTURE
            } else {
                Instant::ZERO
            },
            answer_due: Instant::FAR_FUTURE,
            last_reporter,
        };
        self.next_at = self.next_at.min(g.change_due);
        self.groups.insert((iface, group), g);
    }

    fn version(&self, iface: IfaceId, v4: bool, now: Instant) -> Version {
        match self.routers.get(&(iface, v4)) {
            Some(&(version, until)) if now < until => version,
            _ => Version::Three,
        }
    }

    /// A router asks: every answer waits a random while, so that not all hosts speak at once.
    pub(super) fn query_arrives(&mut self, iface: IfaceId, v4: bool, q: &Query, now: Instant) {
        let version = q.version.min(self.version(iface, v4, now));
        if q.version < Version::Three {
            self.routers
                .insert((iface, v4), (version, now + OLD_ROUTER));
        }
        for ((on, group), g) in &mut self.groups {
            let asked = *on == iface
                && group.is_v4() == v4
                && q.group.is_none_or(|wanted| wanted == *group)
                && g.users > 0
                && !is_never_reported(*group, self.shard);
            if asked {
                let wait = self.rng.below(q.within.as_micros() as u64 + 1);
                g.answer_due = g.answer_due.min(now.plus_us(wait));
                self.next_at = self.next_at.min(g.answer_due);
            }
        }
    }

    /// Another host reported the group in an older version: ours would say the same (RFC 2236 §3).
    pub(super) fn report_arrives(&mut self, iface: IfaceId, group: Ip, now: Instant) {
        if self.version(iface, group.is_v4(), now) == Version::Three {
            return;
        }
        if let Some(g) = self.groups.get_mut(&(iface, group)).filter(|g| g.users > 0) {
            g.answer_due = Instant::FAR_FUTURE;
            g.change_due = Instant::FAR_FUTURE;
            g.untold = 0;
            g.last_reporter = false;
        }
    }

    pub(crate) fn next_deadline(&self) -> Instant {
        self.next_at
    }

    /// What is to be reported now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<GroupReport> {
        let mut reports = Vec::new();
        if now < self.next_at {
            return reports;
        }
        self.next_at = Instant::FAR_FUTURE;
        for (&(iface, group), g) in &mut self.groups {
            let v4 = group.is_v4();
            let version = match self.routers.get(&(iface, v4)) {
                Some(&(version, until)) if now < until => version,
                _ => Version::Three,
            };
            let report = |change| GroupReport {
                iface,
                group,
                change,
                version,
            };
            if g.change_due <= now {
                g.untold = g.untold.saturating_sub(1);
                if g.users > 0 {
                    reports.push(report(Change::Joined));
                    g.last_reporter = true;
                    // It answers whoever asked, too.
                    g.answer_due = Instant::FAR_FUTURE;
                } else {
                    if version == Version::Three || g.last_reporter {
                        reports.push(report(Change::Left));
                    }
                    if version < Version::Three {
                        // Said once, by one.
                        g.untold = 0;
                    }
                }
                let scale = if version == Version::Three { 1 } else { 10 };
                let within = UNSOLICITED.as_micros() as u64 * scale;
                g.change_due = match g.untold {
                    0 => Instant::FAR_FUTURE,
                    _ => now.plus_us(self.rng.below(within)),
                };
            }
            if g.answer_due <= now {
                g.answer_due = Instant::FAR_FUTURE;
                g.last_reporter = true;
                reports.push(report(Change::Is));
            }
            self.next_at = self.next_at.min(g.change_due).min(g.answer_due);
        }
        self.groups.retain(|_, g| g.users > 0 || g.untold > 0);
        reports
    }
}

/// All hosts and all nodes are everywhere, and what stays in the host concerns no router (RFC 3376
/// §6, RFC 3810 §6). Of stacks that share their addresses, one reports the groups that come with these.
fn is_never_reported(group: Ip, shard: Shard) -> bool {
    group == Ip::ALL_HOSTS
        || group == Ip::ALL_NODES
        || group.is_solicited_node() && !shard.speaks_for_host()
        || !group.is_v4() && group.to_v6().octets()[1] & 0xf < 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    const ON: IfaceId = IfaceId::FIRST;

    fn group(n: u8) -> Ip {
        Ip::v4(Ipv4Addr::new(239, 0, 0, n))
    }

    fn said(g: &mut Groups, now: Instant) -> Vec<(Change, Version)> {
        g.due(now).iter().map(|r| (r.change, r.version)).collect()
    }

    #[test]
    fn changes_are_told_twice_and_only_the_first_and_last_user_change_anything() {
        let mut g = Groups::new(Key([1; 16]), Shard::ONLY);
        let mut now = Instant::from_millis(10);
        for _ in 0..2 {
            g.join(ON, group(1)).unwrap();
        }
        assert_eq!(said(&mut g, now), [(Change::Joined, Version::Three)]);
        now = g.next_deadline();
        assert!(now <= Instant::from_millis(1_010));
        assert_eq!(said(&mut g, now), [(Change::Joined, Version::Three)]);
        assert_eq!(g.next_deadline(), Instant::FAR_FUTURE);
        g.leave(ON, group(1));
        assert!(g.is_member(ON, group(1)));
        g.leave(ON, group(1));
        assert!(!g.is_member(ON, group(1)));
        for _ in 0..2 {
            now = now.max(g.next_deadline());
            assert_eq!(said(&mut g, now), [(Change::Left, Version::Three)]);
        }
        assert!(g.groups.is_empty());
        g.leave(ON, group(1));
    }

    #[test]
    fn queries_are_answered_in_time_and_older_routers_in_their_version() {
        let mut g = Groups::new(Key([2; 16]), Shard::ONLY);
        let mut now = Instant::from_millis(10);
        for n in 0..20 {
            g.join(ON, group(n)).unwrap();
        }
        g.join(ON, Ip::ALL_HOSTS).unwrap();
        while g.next_deadline() != Instant::FAR_FUTURE {
            now = now.max(g.next_deadline());
            g.due(now);
        }
        let within = Duration::from_secs(10);
        let general = Query {
            group: None,
            version: Version::Three,
            within,
        };
        g.query_arrives(ON, true, &general, now);
        let (mut answers, asked) = (0, now);
        while g.next_deadline() != Instant::FAR_FUTURE {
            now = g.next_deadline();
            answers += said(&mut g, now).len();
        }
        assert_eq!(answers, 20);
        assert!(now.since(asked) <= within && now.since(asked) > within / 2);
        // An older router about one group; another host is faster for a second one.
        for n in [3, 4] {
            let specific = Query {
                group: Some(group(n)),
                version: Version::Two,
                within,
            };
            g.query_arrives(ON, true, &specific, now);
        }
        g.report_arrives(ON, group(4), now);
        now = g.next_deadline();
        assert_eq!(said(&mut g, now), [(Change::Is, Version::Two)]);
        assert_eq!(g.next_deadline(), Instant::FAR_FUTURE);
        // The leave is told by who reported last.
        g.leave(ON, group(3));
        g.leave(ON, group(4));
        assert_eq!(said(&mut g, now), [(Change::Left, Version::Two)]);
        g.join(ON, group(3)).unwrap();
        assert_eq!(
            said(&mut g, now + OLD_ROUTER),
            [(Change::Joined, Version::Three)]
        );
    }

    #[test]
    fn groups_are_bounded() {
        let mut g = Groups::new(Key([3; 16]), Shard::ONLY);
        let ip = |n: usize| Ip::v4(Ipv4Addr::from_bits(0xef00_0000 + n as u32));
        for n in 0..GROUPS_MAX {
            g.join(ON, ip(n)).unwrap();
        }
        assert_eq!(g.join(ON, ip(GROUPS_MAX)), Err(SocketError::LimitReached));
        assert_eq!(g.join(ON, ip(0)), Ok(()));
    }
}
