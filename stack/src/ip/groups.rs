//! Multicast groups we are in, and when routers and switches are told: the host's half of IGMPv3
//! (RFC 3376) and MLDv2 (RFC 3810), and of their older versions, which know no lists of senders, where an
//! older router speaks. Decides what to report and when; composes nothing.

use core::time::Duration;
use std::collections::BTreeMap;

use super::filter::{FilterMode, Merged, SourceFilter};
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

/// What a report says of a group: the types of records (RFC 3376 §4.2.12). Older versions know the modes,
/// as members and others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The answer to a query.
    Is(FilterMode),
    /// The mode is new.
    To(FilterMode),
    /// Senders are heard from now on.
    Allow,
    /// Senders are heard no longer.
    Block,
}

/// A report to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GroupReport {
    pub(super) iface: IfaceId,
    pub(super) group: Ip,
    pub(super) change: Change,
    pub(super) sources: Vec<Ip>,
    pub(super) version: Version,
}

/// A query that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    /// `None` asks for all groups.
    pub(super) group: Option<Ip>,
    /// Asks for these senders to the group, unless it is empty.
    pub(super) sources: Vec<Ip>,
    pub(super) version: Version,
    /// The longest time an answer may take.
    pub(super) within: Duration,
}

#[derive(Debug)]
struct Group {
    /// What sockets, and the IP layer itself, want of it; nobody is in it while the leave is being told.
    filter: Merged,
    /// How often it is still to be told, in an older version, that somebody is in it, or nobody.
    presence_untold: u8,
    /// When to tell the last change next.
    change_due: Instant,
    /// When to answer a query.
    answer_due: Instant,
    /// The answer is about the senders only that routers have asked for.
    only_asked: bool,
    /// Older versions: the last report about the group was ours, so the leave is ours to tell.
    last_reporter: bool,
}

impl Group {
    const NEW: Self = Self {
        filter: Merged::NEW,
        presence_untold: 0,
        change_due: Instant::FAR_FUTURE,
        answer_due: Instant::FAR_FUTURE,
        only_asked: false,
        last_reporter: false,
    };

    fn untold(&self) -> u8 {
        self.filter.untold().max(self.presence_untold)
    }

    fn is_gone(&self) -> bool {
        self.filter.users() == 0 && self.untold() == 0
    }

    /// Nothing is to be told any more.
    fn settle(&mut self) {
        self.filter.settle();
        self.presence_untold = 0;
        self.change_due = Instant::FAR_FUTURE;
    }

    /// A router asks, also for the senders it names: answered at `due` at the latest.
    fn ask(&mut self, sources: &[Ip], due: Instant) {
        let is_running = self.answer_due != Instant::FAR_FUTURE;
        self.only_asked = !sources.is_empty() && (self.only_asked || !is_running);
        if !self.only_asked || self.filter.ask(sources) {
            self.answer_due = self.answer_due.min(due);
        }
    }

    /// The answer to a router; none if what it asks for is not wanted.
    fn answer(&mut self) -> Option<(Change, Vec<Ip>)> {
        self.answer_due = Instant::FAR_FUTURE;
        let mode = self.filter.mode();
        let list = self
            .filter
            .answer(self.only_asked && mode == FilterMode::Include);
        let is_empty = mode == FilterMode::Include && list.is_empty();
        (!is_empty).then_some((Change::Is(mode), list))
    }

    /// What is said of the last change, in the current version.
    fn tell(&mut self) -> Vec<(Change, Vec<Ip>)> {
        let told = self.filter.tell();
        let mode = self.filter.mode();
        let (entered, left) = match mode {
            FilterMode::Include => (Change::Allow, Change::Block),
            FilterMode::Exclude => (Change::Block, Change::Allow),
        };
        let mut records = vec![(entered, told.entered), (left, told.left)];
        records.retain(|(_, sources)| !sources.is_empty());
        if told.is_new_mode {
            records.push((Change::To(mode), self.filter.list().collect()));
            // It answers whoever asked, too.
            self.answer_due = Instant::FAR_FUTURE;
        }
        records
    }

    /// The same in an older version.
    fn tell_presence(&mut self) -> Option<Change> {
        let is_due = self.presence_untold > 0;
        self.filter.settle();
        if self.filter.users() > 0 {
            self.presence_untold = self.presence_untold.saturating_sub(1);
            self.last_reporter |= is_due;
            self.answer_due = Instant::FAR_FUTURE;
            return is_due.then_some(Change::To(FilterMode::Exclude));
        }
        // Said once, by one.
        self.presence_untold = 0;
        (is_due && self.last_reporter).then_some(Change::To(FilterMode::Include))
    }
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
        found.is_some_and(|g| g.filter.users() > 0)
    }

    /// Whether anybody in the group wants what `source` sends there. Groups that nobody is in are not
    /// asked about.
    pub(crate) fn hears(&self, iface: IfaceId, group: Ip, source: Ip) -> bool {
        let found = self.groups.get(&(iface, group));
        found.is_none_or(|g| g.filter.users() == 0 || g.filter.hears(source))
    }

    /// One more user of a group, who hears everybody.
    pub(crate) fn join(&mut self, iface: IfaceId, group: Ip) -> Result<(), SocketError> {
        self.change(iface, group, None, Some(&SourceFilter::ALL))
    }

    /// One of those less.
    pub(crate) fn leave(&mut self, iface: IfaceId, group: Ip) {
        // Who leaves needs no room.
        let _ = self.change(iface, group, Some(&SourceFilter::ALL), None);
    }

    /// A user of a group who asked for `from` asks for `to`; `None` while it is no user. Routers are told at
    /// once, and again, if that changes anything for the interface.
    pub(crate) fn change(
        &mut self,
        iface: IfaceId,
        group: Ip,
        from: Option<&SourceFilter>,
        to: Option<&SourceFilter>,
    ) -> Result<(), SocketError> {
        let key = (iface, group);
        if !self.groups.contains_key(&key) {
            match to {
                None => return Ok(()),
                Some(_) if self.groups.len() >= GROUPS_MAX => {
                    return Err(SocketError::LimitReached);
                }
                Some(_) => {}
            }
        }
        let g = self.groups.entry(key).or_insert(Group::NEW);
        if from.is_some() && g.filter.users() == 0 {
            return Ok(()); // it has left
        }
        let was_used = g.filter.users() > 0;
        let done = g.filter.change(from, to, ROBUSTNESS);
        let is_used = g.filter.users() > 0;
        if !is_used {
            g.answer_due = Instant::FAR_FUTURE;
        }
        if is_never_reported(group, self.shard) {
            g.settle();
        } else if was_used != is_used || done == Ok(true) {
            if was_used != is_used {
                g.presence_untold = ROBUSTNESS;
            }
            g.change_due = Instant::ZERO;
            self.next_at = Instant::ZERO;
        }
        if g.is_gone() {
            self.groups.remove(&key);
        }
        done.map(drop)
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
                && g.filter.users() > 0
                && !is_never_reported(*group, self.shard);
            if asked {
                let wait = self.rng.below(q.within.as_micros() as u64 + 1);
                g.ask(&q.sources, now.plus_us(wait));
                self.next_at = self.next_at.min(g.answer_due);
            }
        }
    }

    /// Another host reported the group in an older version: ours would say the same (RFC 2236 §3).
    pub(super) fn report_arrives(&mut self, iface: IfaceId, group: Ip, now: Instant) {
        if self.version(iface, group.is_v4(), now) == Version::Three {
            return;
        }
        let found = self.groups.get_mut(&(iface, group));
        if let Some(g) = found.filter(|g| g.filter.users() > 0) {
            g.settle();
            g.answer_due = Instant::FAR_FUTURE;
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
            let mut report = |(change, sources)| {
                reports.push(GroupReport {
                    iface,
                    group,
                    change,
                    sources,
                    version,
                });
            };
            if g.change_due <= now {
                let scale = if version == Version::Three {
                    g.presence_untold = g.presence_untold.saturating_sub(1);
                    g.last_reporter |= g.filter.users() > 0;
                    g.tell().into_iter().for_each(&mut report);
                    1
                } else {
                    let said = g.tell_presence().map(|change| (change, Vec::new()));
                    said.into_iter().for_each(&mut report);
                    10
                };
                let within = UNSOLICITED.as_micros() as u64 * scale;
                g.change_due = match g.untold() {
                    0 => Instant::FAR_FUTURE,
                    _ => now.plus_us(self.rng.below(within)),
                };
            }
            if g.answer_due <= now {
                g.last_reporter = true;
                g.answer().into_iter().for_each(&mut report);
            }
            self.next_at = self.next_at.min(g.change_due).min(g.answer_due);
        }
        self.groups.retain(|_, g| !g.is_gone());
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
    const JOINED: Change = Change::To(FilterMode::Exclude);
    const LEFT: Change = Change::To(FilterMode::Include);

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
        assert_eq!(said(&mut g, now), [(JOINED, Version::Three)]);
        now = g.next_deadline();
        assert!(now <= Instant::from_millis(1_010));
        assert_eq!(said(&mut g, now), [(JOINED, Version::Three)]);
        assert_eq!(g.next_deadline(), Instant::FAR_FUTURE);
        g.leave(ON, group(1));
        assert!(g.is_member(ON, group(1)));
        g.leave(ON, group(1));
        assert!(!g.is_member(ON, group(1)));
        for _ in 0..2 {
            now = now.max(g.next_deadline());
            assert_eq!(said(&mut g, now), [(LEFT, Version::Three)]);
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
            sources: Vec::new(),
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
                sources: Vec::new(),
                version: Version::Two,
                within,
            };
            g.query_arrives(ON, true, &specific, now);
        }
        g.report_arrives(ON, group(4), now);
        now = g.next_deadline();
        assert_eq!(
            said(&mut g, now),
            [(Change::Is(FilterMode::Exclude), Version::Two)]
        );
        assert_eq!(g.next_deadline(), Instant::FAR_FUTURE);
        // The leave is told by who reported last.
        g.leave(ON, group(3));
        g.leave(ON, group(4));
        assert_eq!(said(&mut g, now), [(LEFT, Version::Two)]);
        g.join(ON, group(3)).unwrap();
        assert_eq!(said(&mut g, now + OLD_ROUTER), [(JOINED, Version::Three)]);
    }

    fn host(n: u8) -> Ip {
        Ip::v4(Ipv4Addr::new(10, 0, 0, n))
    }

    fn only(hosts: &[u8]) -> SourceFilter {
        SourceFilter {
            mode: FilterMode::Include,
            sources: Some(hosts.iter().map(|n| host(*n)).collect()),
        }
    }

    /// Runs until all is said; the records, one after the other.
    fn all_said(g: &mut Groups, now: &mut Instant) -> Vec<(Change, Vec<Ip>)> {
        let mut all = Vec::new();
        while g.next_deadline() != Instant::FAR_FUTURE {
            *now = g.next_deadline().max(*now);
            all.extend(g.due(*now).into_iter().map(|r| (r.change, r.sources)));
        }
        all
    }

    #[test]
    fn routers_hear_of_the_senders_that_are_wanted_and_ask_for_them() {
        let mut g = Groups::new(Key([4; 16]), Shard::ONLY);
        let mut now = Instant::from_millis(10);
        let list = |hosts: &[u8]| hosts.iter().map(|n| host(*n)).collect::<Vec<_>>();
        let twice = |change, hosts: &[u8]| vec![(change, list(hosts)); 2];
        g.change(ON, group(1), None, Some(&only(&[1]))).unwrap();
        assert_eq!(all_said(&mut g, &mut now), twice(Change::Allow, &[1]));
        assert!(g.hears(ON, group(1), host(1)) && !g.hears(ON, group(1), host(2)));
        let now_two = only(&[1, 2]);
        g.change(ON, group(1), Some(&only(&[1])), Some(&now_two))
            .unwrap();
        assert_eq!(all_said(&mut g, &mut now), twice(Change::Allow, &[2]));
        let query = |hosts: &[u8]| Query {
            group: Some(group(1)),
            sources: list(hosts),
            version: Version::Three,
            within: Duration::from_secs(1),
        };
        let ask = |g: &mut Groups, hosts: &[u8]| g.query_arrives(ON, true, &query(hosts), now);
        // Some of its senders, none of them, and all while an answer about some is due.
        let is = Change::Is(FilterMode::Include);
        ask(&mut g, &[2, 3]);
        assert_eq!(all_said(&mut g, &mut now.clone()), [(is, list(&[2]))]);
        ask(&mut g, &[3, 4]);
        assert_eq!(g.next_deadline(), Instant::FAR_FUTURE);
        ask(&mut g, &[1]);
        ask(&mut g, &[]);
        assert_eq!(all_said(&mut g, &mut now.clone()), [(is, list(&[1, 2]))]);
        // Somebody who wants everybody outweighs them, and blocks nobody whom they want.
        let but = SourceFilter {
            mode: FilterMode::Exclude,
            sources: Some(list(&[2, 3])),
        };
        g.change(ON, group(1), None, Some(&but)).unwrap();
        let now = &mut now;
        assert_eq!(all_said(&mut g, now), twice(JOINED, &[3]));
        assert!(g.hears(ON, group(1), host(2)) && !g.hears(ON, group(1), host(3)));
        g.change(ON, group(1), Some(&now_two), None).unwrap();
        assert_eq!(all_said(&mut g, now), twice(Change::Block, &[2]));
        g.query_arrives(ON, true, &query(&[2, 3]), *now);
        assert_eq!(g.next_deadline(), Instant::FAR_FUTURE);
        g.query_arrives(ON, true, &query(&[1, 2]), *now);
        let is = Change::Is(FilterMode::Exclude);
        assert_eq!(all_said(&mut g, now), [(is, list(&[2, 3]))]);
        g.change(ON, group(1), Some(&but), None).unwrap();
        assert_eq!(all_said(&mut g, now), twice(LEFT, &[]));
        assert!(g.groups.is_empty());
    }

    /// Older versions know members only.
    #[test]
    fn lists_of_senders_concern_no_older_router() {
        let mut g = Groups::new(Key([5; 16]), Shard::ONLY);
        let mut now = Instant::from_millis(10);
        let query = Query {
            group: None,
            sources: Vec::new(),
            version: Version::Two,
            within: Duration::from_secs(1),
        };
        g.query_arrives(ON, true, &query, now);
        let (one, two) = (only(&[1]), only(&[1, 2]));
        g.change(ON, group(1), None, Some(&one)).unwrap();
        let said = all_said(&mut g, &mut now);
        assert_eq!(said, vec![(JOINED, Vec::new()); 2]);
        g.change(ON, group(1), Some(&one), Some(&two)).unwrap();
        assert_eq!(all_said(&mut g, &mut now), []);
        g.change(ON, group(1), Some(&two), None).unwrap();
        assert_eq!(all_said(&mut g, &mut now), [(LEFT, Vec::new())]);
        assert!(g.groups.is_empty());
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
