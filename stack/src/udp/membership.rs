//! Groups that a socket is in, and whom it hears there (RFC 3678; errors as in Linux).

use core::net::IpAddr;

use super::{Socket, Udp};
use crate::addr::Ip;
use crate::error::SocketError;
use crate::ip::IpLayer;
use crate::ip::filter::{FilterMode, SourceChange, SourceFilter, Stays};
use crate::ip::iface::IfaceId;
use crate::limits::SOCKET_GROUPS_MAX;
use crate::stack::UdpId;

/// A group that a socket is in. It counts in the IP layer.
#[derive(Debug)]
pub(super) struct Membership {
    iface: IfaceId,
    group: Ip,
    filter: SourceFilter,
}

impl Socket {
    /// Where it is in the group on an interface, or on the first if none is named.
    fn membership(&self, group: Ip, iface: Option<IfaceId>) -> Option<usize> {
        let is_it =
            |m: &Membership| m.group == group && iface.is_none_or(|wanted| wanted == m.iface);
        self.memberships.iter().position(is_it)
    }

    /// Whether it hears what `source` sends to a group. Of one that it is not in, IP_MULTICAST_ALL decides.
    pub(super) fn hears_in(&self, iface: IfaceId, group: Ip, source: Ip) -> bool {
        match self.membership(group, Some(iface)) {
            Some(at) => self.memberships[at].filter.hears(source),
            None => self.opts.multicast_all,
        }
    }
}

impl Udp {
    /// The interface on which a socket means to be in a group.
    fn group_iface(
        &mut self,
        ip: &IpLayer,
        id: UdpId,
        group: Ip,
        iface: Option<IfaceId>,
    ) -> Result<IfaceId, SocketError> {
        let s = self.get(id).ok_or(SocketError::BadHandle)?;
        if !group.is_multicast() {
            return Err(SocketError::InvalidAddress);
        }
        let iface = iface.or_else(|| ip.egress(group, s.opts.iface));
        let iface = iface.unwrap_or(IfaceId::FIRST);
        ip.iface(iface).ok_or(SocketError::NoInterface)?;
        Ok(iface)
    }

    /// IP_ADD_MEMBERSHIP, IPV6_JOIN_GROUP. Without `iface`, on the one that leads to the group.
    pub(crate) fn join(
        &mut self,
        ip: &mut IpLayer,
        id: UdpId,
        group: Ip,
        iface: Option<IfaceId>,
    ) -> Result<(), SocketError> {
        let iface = self.group_iface(ip, id, group, iface)?;
        self.join_as(ip, id, (iface, group), SourceFilter::ALL)
    }

    fn join_as(
        &mut self,
        ip: &mut IpLayer,
        id: UdpId,
        (iface, group): (IfaceId, Ip),
        filter: SourceFilter,
    ) -> Result<(), SocketError> {
        let s = self.get(id).ok_or(SocketError::BadHandle)?;
        if s.membership(group, Some(iface)).is_some() {
            return Err(SocketError::AddressInUse);
        }
        if s.memberships.len() >= SOCKET_GROUPS_MAX {
            return Err(SocketError::LimitReached);
        }
        ip.groups.change(iface, group, None, Some(&filter))?;
        s.memberships.push(Membership {
            iface,
            group,
            filter,
        });
        Ok(())
    }

    /// IP_DROP_MEMBERSHIP, IPV6_LEAVE_GROUP. Without `iface`, on the first it joined on.
    pub(crate) fn leave(
        &mut self,
        ip: &mut IpLayer,
        id: UdpId,
        group: Ip,
        iface: Option<IfaceId>,
    ) -> Result<(), SocketError> {
        let s = self.get(id).ok_or(SocketError::BadHandle)?;
        let at = s.membership(group, iface);
        let m = s
            .memberships
            .swap_remove(at.ok_or(SocketError::AddressNotAvailable)?);
        // Who leaves needs no room.
        let _ = ip.groups.change(m.iface, m.group, Some(&m.filter), None);
        Ok(())
    }

    /// Changes whom a member hears.
    pub(crate) fn change_source(
        &mut self,
        ip: &mut IpLayer,
        id: UdpId,
        (group, iface): (Ip, Option<IfaceId>),
        source: IpAddr,
        change: SourceChange,
    ) -> Result<(), SocketError> {
        let iface = self.group_iface(ip, id, group, iface)?;
        let s = self.get(id).ok_or(SocketError::BadHandle)?;
        let Some(at) = s.membership(group, Some(iface)) else {
            return match change {
                SourceChange::Join => {
                    self.join_as(ip, id, (iface, group), SourceFilter::only(source))
                }
                _ => Err(SocketError::InvalidState),
            };
        };
        let m = &mut s.memberships[at];
        let mut filter = m.filter.clone();
        let done = filter.change(change, source);
        if done == Ok(Stays::No) {
            return self.leave(ip, id, group, Some(iface));
        }
        if filter != m.filter {
            ip.groups
                .change(iface, group, Some(&m.filter), Some(&filter))?;
            m.filter = filter;
        }
        done.map(drop)
    }

    /// IP_MSFILTER, MCAST_MSFILTER: replaces the list. Who wants to hear nobody leaves.
    pub(crate) fn set_filter(
        &mut self,
        ip: &mut IpLayer,
        id: UdpId,
        (group, iface): (Ip, Option<IfaceId>),
        mode: FilterMode,
        sources: Vec<Ip>,
    ) -> Result<(), SocketError> {
        let iface = self.group_iface(ip, id, group, iface)?;
        if sources.len() > SourceFilter::sources_max(group) {
            return Err(SocketError::LimitReached);
        }
        if mode == FilterMode::Include && sources.is_empty() {
            return self.leave(ip, id, group, Some(iface));
        }
        let s = self.get(id).ok_or(SocketError::BadHandle)?;
        let at = s.membership(group, Some(iface));
        let m = &mut s.memberships[at.ok_or(SocketError::InvalidState)?];
        let filter = SourceFilter {
            mode,
            sources: (!sources.is_empty()).then_some(sources),
        };
        ip.groups
            .change(iface, group, Some(&m.filter), Some(&filter))?;
        m.filter = filter;
        Ok(())
    }

    /// Whom a member hears.
    pub(crate) fn filter(
        &mut self,
        ip: &IpLayer,
        id: UdpId,
        (group, iface): (Ip, Option<IfaceId>),
    ) -> Result<&SourceFilter, SocketError> {
        let iface = self.group_iface(ip, id, group, iface)?;
        let s = self.get(id).ok_or(SocketError::BadHandle)?;
        let at = s.membership(group, Some(iface));
        let at = at.ok_or(SocketError::AddressNotAvailable)?;
        Ok(&s.memberships[at].filter)
    }

    /// A socket closes.
    pub(super) fn leave_all(ip: &mut IpLayer, memberships: Vec<Membership>) {
        for m in memberships {
            let _ = ip.groups.change(m.iface, m.group, Some(&m.filter), None);
        }
    }
}
