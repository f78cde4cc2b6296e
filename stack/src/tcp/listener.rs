//! Listeners and their accept queues.

use std::collections::{BTreeMap, VecDeque};

use super::Engine;
use super::conn::Flags;
use super::sockopt::SockOpts;
use crate::addr::{Endpoint, Ip};
use crate::events::Ready;
use crate::ip::iface::IfaceId;
use crate::stack::{ListenerId, TcpId};
use crate::time::Instant;

/// Which destination addresses a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ListenAddr {
    /// One address.
    Exact(Ip),
    /// 0.0.0.0, or \[::\] with IPV6_V6ONLY.
    Family { v4: bool },
    /// \[::\]: both families.
    Any,
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) addr: ListenAddr,
    pub(crate) port: u16,
    pub(super) generation: u32,
    open: bool,
    /// SO_BINDTODEVICE.
    pub(crate) bound: Option<IfaceId>,
    pub(crate) backlog: usize,
    pub(super) embryos: usize,
    pub(super) accept: VecDeque<u32>,
    pub(super) event_queued: bool,
    /// TCP_DEFER_ACCEPT: a bare ACK completes the handshake after so many repetitions only.
    pub(crate) defer_accept: u8,
    pub(crate) flags: Flags,
    pub(crate) opts: Option<Box<SockOpts>>,
}

/// All listeners, by port and address.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    pub(super) list: Vec<Listener>,
    free: Vec<u32>,
    /// SO_REUSEPORT groups; one member otherwise.
    groups: BTreeMap<(u16, ListenAddr), Vec<u32>>,
    pub(super) events: VecDeque<u32>,
}

impl Listeners {
    pub(crate) fn insert(&mut self, addr: ListenAddr, port: u16, backlog: usize) -> ListenerId {
        let fresh = |generation| Listener {
            addr,
            port,
            generation,
            open: true,
            bound: None,
            backlog,
            embryos: 0,
            accept: VecDeque::new(),
            event_queued: false,
            defer_accept: 0,
            flags: Flags::default(),
            opts: None,
        };
        let index = match self.free.pop() {
            Some(i) => {
                let g = self.list[i as usize].generation.wrapping_add(1);
                self.list[i as usize] = fresh(g);
                i
            }
            None => {
                self.list.push(fresh(0));
                self.list.len() as u32 - 1
            }
        };
        self.groups.entry((port, addr)).or_default().push(index);
        ListenerId {
            index,
            generation: self.list[index as usize].generation,
        }
    }

    pub(crate) fn get(&mut self, id: ListenerId) -> Option<&mut Listener> {
        self.list
            .get_mut(id.index as usize)
            .filter(|l| l.open && l.generation == id.generation)
    }

    /// Whether a listener already holds the address, on an interface in common.
    pub(crate) fn is_taken(&self, addr: ListenAddr, port: u16, bound: Option<IfaceId>) -> bool {
        let clash = |i: &u32| {
            let other = self.list[*i as usize].bound;
            other.is_none() || bound.is_none() || other == bound
        };
        let group = self.groups.get(&(port, addr));
        group.is_some_and(|g| g.iter().any(clash))
    }

    /// The listener for a SYN: exact address, then its family, then both. Within a reuseport group
    /// the flow's hash chooses.
    pub(super) fn lookup(&self, local: Endpoint, arrival: IfaceId, tag: u32) -> Option<u32> {
        [
            ListenAddr::Exact(local.ip),
            ListenAddr::Family {
                v4: local.ip.is_v4(),
            },
            ListenAddr::Any,
        ]
        .into_iter()
        .find_map(|a| self.choose(self.groups.get(&(local.port, a))?, arrival, tag))
    }

    /// Who is bound to the interface comes before who is bound to none.
    fn choose(&self, group: &[u32], arrival: IfaceId, tag: u32) -> Option<u32> {
        let nth = |n: usize| ((u64::from(tag) * n as u64) >> 32) as usize;
        let bound = |i: u32| self.list[i as usize].bound;
        if group.iter().all(|i| bound(*i).is_none()) {
            return group.get(nth(group.len())).copied();
        }
        [Some(arrival), None].into_iter().find_map(|wanted| {
            let mut members = group.iter().copied().filter(|i| bound(*i) == wanted);
            members.nth(nth(members.clone().count()))
        })
    }

    pub(super) fn is_full(&self, i: u32) -> bool {
        let l = &self.list[i as usize];
        l.accept.len() > l.backlog
    }

    pub(crate) fn poll_event(&mut self) -> Option<ListenerId> {
        while let Some(i) = self.events.pop_front() {
            let l = &mut self.list[i as usize];
            l.event_queued = false;
            if !l.open {
                self.free.push(i);
                continue;
            }
            if !l.accept.is_empty() {
                return Some(ListenerId {
                    index: i,
                    generation: l.generation,
                });
            }
        }
        None
    }

    /// Removes a listener; the connections nobody accepted.
    fn remove(&mut self, id: ListenerId) -> Option<VecDeque<u32>> {
        let l = self.get(id)?;
        l.open = false;
        l.opts = None;
        let queued = l.event_queued;
        let (key, orphans) = ((l.port, l.addr), core::mem::take(&mut l.accept));
        if let Some(g) = self.groups.get_mut(&key) {
            g.retain(|i| *i != id.index);
            if g.is_empty() {
                self.groups.remove(&key);
            }
        }
        // A queued event still names the slot: it is freed when that comes by.
        if !queued {
            self.free.push(id.index);
        }
        Some(orphans)
    }
}

impl Engine {
    /// Takes the oldest completed connection.
    pub(crate) fn accept(&mut self, id: ListenerId) -> Option<TcpId> {
        let i = self.listeners.get(id)?.accept.pop_front()?;
        let c = &mut self.conns[i];
        c.flags.clear(Flags::IN_ACCEPT_QUEUE);
        if c.state.may_send() {
            c.events.insert(Ready::WRITABLE);
        }
        let id = TcpId {
            index: i,
            generation: c.generation,
        };
        self.queue_event(i);
        Some(id)
    }

    /// Connections ready to be accepted.
    pub(crate) fn accept_queue_len(&mut self, id: ListenerId) -> Option<usize> {
        self.listeners.get(id).map(|l| l.accept.len())
    }

    /// Whether none is under way to it, or waits there.
    pub(crate) fn listener_is_idle(&mut self, id: ListenerId) -> bool {
        let listener = self.listeners.get(id);
        listener.is_none_or(|l| l.embryos == 0 && l.accept.is_empty())
    }

    /// close(2) on a listener: waiting connections are reset.
    pub(crate) fn close_listener(&mut self, id: ListenerId, now: Instant) {
        let Some(orphans) = self.listeners.remove(id) else {
            return;
        };
        for i in orphans {
            let c = &mut self.conns[i];
            c.flags.clear(Flags::IN_ACCEPT_QUEUE);
            let id = TcpId {
                index: i,
                generation: c.generation,
            };
            self.abort(id, now);
        }
    }
}
