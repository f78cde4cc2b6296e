//! Whom a host hears in a multicast group (RFC 3376 §3, RFC 3810 §4): what a socket asks for, and what an
//! interface makes of what all of its sockets ask for.

use core::net::IpAddr;
use std::collections::BTreeMap;

use crate::addr::Ip;
use crate::error::SocketError;
use crate::limits::{GROUP_SOURCES_MAX, SOCKET_SOURCES_MAX_V4, SOCKET_SOURCES_MAX_V6};

/// What a list of senders means (MCAST_INCLUDE, MCAST_EXCLUDE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterMode {
    /// Only those are heard.
    Include,
    /// All others are heard.
    Exclude,
}

/// A change of whom a socket hears in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceChange {
    /// One more is heard, the first by joining the group (IP_ADD_SOURCE_MEMBERSHIP).
    Join,
    /// One less, the last by leaving the group (IP_DROP_SOURCE_MEMBERSHIP).
    Leave,
    /// All but this one are heard (IP_BLOCK_SOURCE).
    Block,
    /// It is heard again (IP_UNBLOCK_SOURCE).
    Unblock,
}

impl SourceChange {
    const fn mode(self) -> FilterMode {
        match self {
            Self::Join | Self::Leave => FilterMode::Include,
            Self::Block | Self::Unblock => FilterMode::Exclude,
        }
    }
}

/// Whether a socket is still in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// It is.
    Yes,
    /// It wants to hear nobody any more: that is to leave.
    No,
}

/// Whom a socket hears in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFilter {
    pub(crate) mode: FilterMode,
    /// `None` until the first is named: until then the mode may change.
    pub(crate) sources: Option<Vec<Ip>>,
}

impl SourceFilter {
    /// Everybody.
    pub const ALL: Self = Self {
        mode: FilterMode::Exclude,
        sources: None,
    };

    /// One sender.
    #[must_use]
    pub fn only(source: IpAddr) -> Self {
        Self {
            mode: FilterMode::Include,
            sources: Some(vec![source.into()]),
        }
    }

    /// Senders that a socket may list for a group.
    pub(crate) const fn sources_max(of: Ip) -> usize {
        match of.is_v4() {
            true => SOCKET_SOURCES_MAX_V4,
            false => SOCKET_SOURCES_MAX_V6,
        }
    }

    /// One sender more or less.
    ///
    /// # Errors
    /// `InvalidState` if senders of the other kind are listed, `AddressNotAvailable` if this one is already,
    /// or is not, `LimitReached`. As in Linux, the kind of a list without senders changes all the same.
    pub fn change(&mut self, change: SourceChange, source: IpAddr) -> Result<Stays, SocketError> {
        let source = Ip::from(source);
        if self.mode != change.mode() && self.sources.is_some() {
            return Err(SocketError::InvalidState);
        }
        self.mode = change.mode();
        let listed = self.list().iter().position(|other| *other == source);
        match (change, listed) {
            (SourceChange::Join | SourceChange::Block, None) => {
                if self.list().len() >= Self::sources_max(source) {
                    return Err(SocketError::LimitReached);
                }
                self.sources.get_or_insert_default().push(source);
            }
            (SourceChange::Leave, Some(_)) if self.list().len() == 1 => return Ok(Stays::No),
            (SourceChange::Leave | SourceChange::Unblock, Some(at)) => {
                if let Some(list) = &mut self.sources {
                    list.remove(at);
                }
            }
            _ => return Err(SocketError::AddressNotAvailable),
        }
        Ok(Stays::Yes)
    }

    pub(crate) fn list(&self) -> &[Ip] {
        self.sources.as_deref().unwrap_or_default()
    }

    pub(crate) fn hears(&self, source: Ip) -> bool {
        self.list().contains(&source) == (self.mode == FilterMode::Include)
    }

    /// The list, each once.
    fn distinct(&self) -> impl Iterator<Item = Ip> {
        let list = self.list();
        let first = |(at, source): &(usize, &Ip)| !list[..*at].contains(source);
        list.iter().enumerate().filter(first).map(|(_, s)| *s)
    }
}

/// A sender that somebody lists, or did until a moment ago.
#[derive(Debug, Default)]
struct Source {
    includers: u32,
    excluders: u32,
    /// How often it is still to be told that it is in the interface's list now, or no longer.
    untold: u8,
    /// A router asked for it.
    asked: bool,
}

/// What the sockets in a group ask for together.
#[derive(Debug)]
pub(super) struct Merged {
    /// How many ask for the senders of a list, and for all others.
    includers: u32,
    excluders: u32,
    sources: BTreeMap<Ip, Source>,
    /// How often the mode is still to be told.
    untold: u8,
}

impl Merged {
    pub(super) const NEW: Self = Self {
        includers: 0,
        excluders: 0,
        sources: BTreeMap::new(),
        untold: 0,
    };

    pub(super) fn users(&self) -> u32 {
        self.includers + self.excluders
    }

    /// RFC 3376 §3.2: who wants all but some outweighs who wants some.
    pub(super) fn mode(&self) -> FilterMode {
        match self.excluders {
            0 => FilterMode::Include,
            _ => FilterMode::Exclude,
        }
    }

    /// Whether a sender is in the list: one that somebody wants, or one that nobody does.
    fn lists(&self, source: &Source) -> bool {
        match self.mode() {
            FilterMode::Include => source.includers > 0,
            FilterMode::Exclude => source.includers == 0 && source.excluders == self.excluders,
        }
    }

    pub(super) fn hears(&self, source: Ip) -> bool {
        let listed = self.sources.get(&source).is_some_and(|s| self.lists(s));
        listed == (self.mode() == FilterMode::Include)
    }

    /// The list.
    pub(super) fn list(&self) -> impl Iterator<Item = Ip> {
        let listed = self.sources.iter().filter(|(_, s)| self.lists(s));
        listed.map(|(ip, _)| *ip)
    }

    /// A socket that asked for `from` asks for `to`; `None` while it is not in the group. What changes by
    /// that is to be told so many times. False: nothing.
    pub(super) fn change(
        &mut self,
        from: Option<&SourceFilter>,
        to: Option<&SourceFilter>,
        times: u8,
    ) -> Result<bool, SocketError> {
        self.make_room(to)?;
        let mode = self.mode();
        let before: Vec<Ip> = self.list().collect();
        for (filter, by) in [(to, 1), (from, u32::MAX)] {
            let Some(filter) = filter else { continue };
            self.count(filter.mode, by);
            for ip in filter.distinct() {
                let source = self.sources.entry(ip).or_default();
                let count = match filter.mode {
                    FilterMode::Include => &mut source.includers,
                    FilterMode::Exclude => &mut source.excluders,
                };
                *count = count.wrapping_add(by);
            }
        }
        let after: Vec<Ip> = self.list().collect();
        let is_new_mode = self.mode() != mode;
        let mut changes = is_new_mode;
        for (ip, source) in &mut self.sources {
            let was = before.binary_search(ip).is_ok();
            if is_new_mode {
                // The new mode is told with the whole list.
                source.untold = 0;
            } else if was != after.binary_search(ip).is_ok() {
                source.untold = times;
                changes = true;
            }
        }
        if is_new_mode {
            self.untold = times;
        }
        self.forget_gone();
        Ok(changes)
    }

    fn count(&mut self, mode: FilterMode, by: u32) {
        let count = match mode {
            FilterMode::Include => &mut self.includers,
            FilterMode::Exclude => &mut self.excluders,
        };
        *count = count.wrapping_add(by);
    }

    /// Of senders that are told of no more for want of room, routers learn by asking.
    fn make_room(&mut self, to: Option<&SourceFilter>) -> Result<(), SocketError> {
        let new = to.map_or(0, |to| {
            let is_new = |ip: &Ip| !self.sources.contains_key(ip);
            to.distinct().filter(is_new).count()
        });
        if self.sources.len() + new > GROUP_SOURCES_MAX {
            self.sources.retain(|_, s| s.includers + s.excluders > 0);
            if self.sources.len() + new > GROUP_SOURCES_MAX {
                return Err(SocketError::LimitReached);
            }
        }
        Ok(())
    }

    fn forget_gone(&mut self) {
        self.sources
            .retain(|_, s| s.includers + s.excluders > 0 || s.untold > 0);
    }

    /// How often something is still to be told.
    pub(super) fn untold(&self) -> u8 {
        let sources = self.sources.values().map(|s| s.untold).max();
        sources.unwrap_or(0).max(self.untold)
    }

    /// Nothing is to be told any more.
    pub(super) fn settle(&mut self) {
        self.untold = 0;
        for source in self.sources.values_mut() {
            source.untold = 0;
        }
        self.forget_gone();
    }

    /// What is to be told, once: senders that entered the list and that left it, and whether the mode is new.
    pub(super) fn tell(&mut self) -> Untold {
        let mut told = Untold {
            is_new_mode: self.untold > 0,
            ..Untold::default()
        };
        for (ip, source) in self.sources.iter().filter(|(_, s)| s.untold > 0) {
            match self.lists(source) {
                true => told.entered.push(*ip),
                false => told.left.push(*ip),
            }
        }
        self.untold = self.untold.saturating_sub(1);
        for source in self.sources.values_mut() {
            source.untold = source.untold.saturating_sub(1);
        }
        self.forget_gone();
        told
    }

    /// A router asks for some senders. False: there is nothing to answer.
    pub(super) fn ask(&mut self, wanted: &[Ip]) -> bool {
        if self.mode() == FilterMode::Exclude {
            return wanted.iter().any(|ip| self.hears(*ip));
        }
        let mut any = false;
        for ip in wanted {
            if let Some(source) = self.sources.get_mut(ip).filter(|s| s.includers > 0) {
                source.asked = true;
                any = true;
            }
        }
        any
    }

    /// The list, or those of it that a router has asked for, which is forgotten.
    pub(super) fn answer(&mut self, only_asked: bool) -> Vec<Ip> {
        let wanted = |(_, s): &(&Ip, &Source)| self.lists(s) && (!only_asked || s.asked);
        let found = self.sources.iter().filter(wanted);
        let list = found.map(|(ip, _)| *ip).collect();
        for source in self.sources.values_mut() {
            source.asked = false;
        }
        list
    }
}

/// See [`Merged::tell`].
#[derive(Debug, Default)]
pub(super) struct Untold {
    pub(super) is_new_mode: bool,
    pub(super) entered: Vec<Ip>,
    pub(super) left: Vec<Ip>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    fn ip(n: u16) -> Ip {
        Ip::v4(Ipv4Addr::from_bits(0x0a00_0000 + u32::from(n)))
    }

    fn filter(mode: FilterMode, sources: &[u16]) -> SourceFilter {
        let sources = Some(sources.iter().map(|n| ip(*n)).collect());
        SourceFilter { mode, sources }
    }

    /// RFC 3376 §3.2's examples, and what is told of each step.
    #[test]
    fn an_interface_hears_whomever_one_of_its_sockets_wants() {
        use FilterMode::{Exclude, Include};
        let mut merged = Merged::NEW;
        let sockets = [
            filter(Exclude, &[1, 2, 3, 4]),
            filter(Exclude, &[2, 3, 4, 5]),
            filter(Include, &[4, 5, 6, 6]),
        ];
        let steps: [(&[u16], &[u16]); 3] =
            [(&[1, 2, 3, 4], &[]), (&[2, 3, 4], &[1]), (&[2, 3], &[4])];
        for (n, (socket, (list, left))) in sockets.iter().zip(steps).enumerate() {
            assert_eq!(merged.change(None, Some(socket), 2), Ok(true));
            assert!(merged.list().eq(list.iter().map(|n| ip(*n))));
            let told = merged.tell();
            assert_eq!((told.is_new_mode, &told.entered[..]), (n == 0, &[][..]));
            assert!(told.left.into_iter().eq(left.iter().map(|n| ip(*n))));
            merged.settle();
        }
        assert!([1, 4, 5, 6, 7].iter().all(|n| merged.hears(ip(*n))));
        assert!(!merged.hears(ip(2)));
        for socket in &sockets[..2] {
            merged.change(Some(socket), None, 2).unwrap();
        }
        assert_eq!(merged.mode(), Include);
        assert!(merged.list().eq([4, 5, 6].map(ip)));
        assert_eq!((merged.untold(), merged.users()), (2, 1));
        assert!(merged.tell().is_new_mode);
        merged.settle();
        // The last to leave takes its list along, of which is told.
        merged.change(Some(&sockets[2]), None, 2).unwrap();
        for _ in 0..2 {
            assert_eq!(merged.tell().left, [4, 5, 6].map(ip));
        }
        assert_eq!((merged.untold(), merged.sources.len()), (0, 0));
    }

    #[test]
    fn sources_are_bounded_and_those_that_left_make_room() {
        let mut merged = Merged::NEW;
        let one = |n: usize| filter(FilterMode::Include, &[n as u16]);
        for n in 0..GROUP_SOURCES_MAX {
            merged.change(None, Some(&one(n)), 2).unwrap();
        }
        let beyond = one(GROUP_SOURCES_MAX);
        let full = merged.change(None, Some(&beyond), 2);
        assert_eq!(full, Err(SocketError::LimitReached));
        assert_eq!(merged.users() as usize, GROUP_SOURCES_MAX);
        merged.change(Some(&one(0)), None, 2).unwrap();
        assert_eq!(merged.change(None, Some(&beyond), 2), Ok(true));
        assert_eq!(merged.sources.len(), GROUP_SOURCES_MAX);
    }
}
