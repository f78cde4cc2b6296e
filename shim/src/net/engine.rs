//! A TCP/IP engine with its devices, behind one lock ([`super::cells`]). Whoever holds the lock moves
//! frames; what the engine has to say is passed on when the lock is given back.

use std::collections::BTreeMap;
use std::sync::Arc;

use kcm_mux::Nanos;
use kcm_stack::device::{Counters, Ingress};
use kcm_stack::{Event, Instant, ListenerId, SharedPorts, Stack, Strangers, TcpId, UdpId};
use libc::pollfd;

use super::channel::Channel;
use super::devices::Devices;
use super::lease::Leases;
use super::leaving::{Leaving, Left, Ports};
use super::ready::{self, Bits};
use super::relay::{Relay, Through};
use super::socket::{Socket, State};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{File, Kind};
use crate::wait::{self, BellId};
use crate::{housekeeper, own, publish, route, sys};

/// The engine's time for a moment of CLOCK_MONOTONIC.
pub(crate) fn instant(now: Nanos) -> Instant {
    Instant::from_micros(now / 1000)
}

/// The moment of CLOCK_MONOTONIC of an engine time.
pub(super) fn nanos(at: Instant) -> Nanos {
    at.as_micros().saturating_mul(1000)
}

/// What the lock guards.
pub(crate) struct Engine {
    /// Which of the process's engines this is.
    pub(super) index: u8,
    pub(crate) stack: Stack,
    devices: Devices,
    /// Interfaces that get their address by DHCP.
    pub(super) leases: Leases,
    /// Keep the addresses from other processes.
    claims: Vec<own::Kept>,
    /// Tells them that the addresses are left, and which ports are still used.
    leaving: Option<Leaving>,
    /// What a process that leaves the addresses still uses of them.
    left: Option<Arc<Left>>,
    /// Segments that may have been for a process which leaves them, when that was last looked for.
    spared: u64,
    /// Sockets by the index their file has.
    sockets: Vec<Option<Socket>>,
    free: Vec<u32>,
    /// Socket of a connection, by the connection's index.
    by_conn: Vec<u32>,
    by_listener: BTreeMap<ListenerId, u32>,
    by_udp: BTreeMap<UdpId, u32>,
    /// Connections that other processes hold copies of.
    pub(super) relays: BTreeMap<u32, Relay>,
    pub(super) through: Through,
    /// UDP sockets that they hold copies of; the numbers are of the same count.
    pub(super) channels: BTreeMap<u32, Channel>,
    /// Those of them that have something to do.
    due: Vec<u32>,
    /// The sleeping thread that also watches the device.
    leader: Option<BellId>,
    /// The other threads asleep on files of this engine.
    followers: Vec<BellId>,
    /// Frames have moved, or a device has failed, since the timers were last looked at.
    has_worked: bool,
    /// The [`publish::epoch`] in which a change was last told.
    published: u32,
    /// It has just been looked at for the page.
    is_published: bool,
}

/// In `by_conn`: no socket.
const NOBODY: u32 = u32::MAX;

impl Engine {
    pub(super) fn new(
        index: u8,
        stack: Stack,
        devices: Devices,
        leases: Leases,
        claims: Vec<own::Kept>,
    ) -> Self {
        Self {
            index,
            stack,
            devices,
            leases,
            claims,
            leaving: None,
            left: None,
            spared: 0,
            sockets: Vec::new(),
            free: Vec::new(),
            by_conn: Vec::new(),
            by_listener: BTreeMap::new(),
            by_udp: BTreeMap::new(),
            relays: BTreeMap::new(),
            through: Through::default(),
            channels: BTreeMap::new(),
            due: Vec::new(),
            leader: None,
            followers: Vec::new(),
            has_worked: false,
            published: 0,
            is_published: false,
        }
    }

    /// In a forked child, before the copy of it is forgotten.
    pub(super) fn leave_to_parent(&mut self) {
        self.devices.leave_to_parent();
    }

    /// Adds a socket; its file is to be bound to the index.
    pub(crate) fn add(&mut self, socket: Socket) -> u32 {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.sockets.push(None);
                self.sockets.len() as u32 - 1
            }
        };
        self.register(index, &socket.state);
        if let Some(slot) = self.sockets.get_mut(index as usize) {
            *slot = Some(socket);
        }
        index
    }

    /// Takes a socket out.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Socket> {
        let socket = self.sockets.get_mut(index as usize)?.take()?;
        self.unregister(&socket.state);
        self.free.push(index);
        Some(socket)
    }

    /// The socket behind `file`.
    ///
    /// # Errors
    /// `EBADF` when it was closed meanwhile; native when it was shared with other processes meanwhile.
    #[inline]
    pub(crate) fn socket(&mut self, file: &File) -> Outcome<&mut Socket> {
        let at = file.net_index() as usize;
        let here = self.sockets.get(at).and_then(Option::as_ref);
        if !here.is_some_and(|socket| core::ptr::eq(socket.file, file)) {
            return self.copy_or(file);
        }
        let here = self.sockets.get_mut(at).and_then(Option::as_mut);
        here.ok_or(Errno::EBADF.into())
    }

    /// The socket behind `file` where its home is another engine, or none of these any more.
    #[cold]
    fn copy_or(&mut self, file: &File) -> Outcome<&mut Socket> {
        let copy = self.copy_of(file).map(|(index, _)| index as usize);
        match copy.and_then(|index| self.sockets.get_mut(index)?.as_mut()) {
            Some(copy) => Ok(copy),
            None if file.kind() == Kind::Inherited => Err(Exit::Native),
            None => Err(Errno::EBADF.into()),
        }
    }

    /// The copy of a listener that has its home elsewhere.
    pub(super) fn copy_of(&self, file: &File) -> Option<(u32, ListenerId)> {
        let mut listeners = self.by_listener.iter();
        listeners.find_map(|(id, index)| {
            let socket = self.sockets.get(*index as usize)?.as_ref()?;
            (socket.is_copy && core::ptr::eq(socket.file, file)).then_some((*index, *id))
        })
    }

    /// The socket's handle in the engine changes.
    pub(crate) fn set_state(&mut self, file: &File, state: State) -> Outcome<State> {
        let index = file.net_index();
        let old = core::mem::replace(&mut self.socket(file)?.state, state);
        self.unregister(&old);
        self.register(index, &state);
        Ok(old)
    }

    fn register(&mut self, index: u32, state: &State) {
        match state {
            State::Unbound | State::Bound(_) => {}
            State::Listening(id) => drop(self.by_listener.insert(*id, index)),
            State::Udp(id) => drop(self.by_udp.insert(*id, index)),
            State::Connecting(id) | State::Connected(id) => {
                if self.by_conn.len() <= id.index() {
                    self.by_conn.resize(id.index() + 1, NOBODY);
                }
                if let Some(slot) = self.by_conn.get_mut(id.index()) {
                    *slot = index;
                }
            }
        }
    }

    fn unregister(&mut self, state: &State) {
        match state {
            State::Unbound | State::Bound(_) => {}
            State::Listening(id) => drop(self.by_listener.remove(id)),
            State::Udp(id) => drop(self.by_udp.remove(id)),
            State::Connecting(id) | State::Connected(id) => {
                if let Some(slot) = self.by_conn.get_mut(id.index()) {
                    *slot = NOBODY;
                }
            }
        }
    }

    /// Every socket.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.sockets.iter().flatten()
    }

    /// Whoever has the engine now has looked at it for the page: there is nothing to tell of before
    /// somebody else has it.
    pub(super) fn note_published(&mut self) {
        self.is_published = true;
    }

    /// Which UDP ports have sockets in several engines.
    pub(super) fn share_ports(&mut self, ports: &Arc<SharedPorts>) {
        self.stack.udp_set_shared(ports.clone());
        self.devices.steer(ports);
    }

    /// What the devices count, all of them together.
    pub(super) fn device_counters(&self) -> Counters {
        self.devices.counters()
    }

    /// Frames that the devices have received.
    pub(super) fn received(&self) -> u64 {
        self.devices.received()
    }

    /// Where the kernel sees the frames that the devices receive.
    pub(super) fn ingresses(&self) -> Vec<Ingress> {
        self.devices.ingresses().collect()
    }

    /// One round of the devices: what has arrived, what is due, what is to be sent.
    pub(super) fn exchange(&mut self, now: Nanos) {
        self.stack.tcp_release_acks(instant(now));
        self.has_worked |= self.devices.pump(&mut self.stack, now);
        self.leases.follow(self.index, &mut self.stack);
        if self.stack.tcp_stats().strangers_spared != self.spared {
            self.spared = self.stack.tcp_stats().strangers_spared;
            self.look_for_left();
        }
    }

    /// Another process still uses some of the addresses.
    pub(super) fn spare(&mut self, left: Arc<Left>) {
        self.stack.set_strangers(Strangers::Spared);
        self.left = Some(left);
    }

    /// What another process still uses of the addresses, if it has not ended.
    #[inline]
    pub(super) fn left(&mut self) -> Option<Arc<Left>> {
        self.left.as_ref()?;
        self.look_for_left();
        self.left.clone()
    }

    #[cold]
    fn look_for_left(&mut self) {
        let is_there = |left: &Arc<Left>| route::plan().is_some_and(|plan| left.is_there(plan));
        if !self.left.as_ref().is_some_and(is_there) {
            self.stack.set_strangers(Strangers::Answered);
            self.left = None;
        }
    }

    /// Sends what the engine has composed.
    pub(super) fn flush(&mut self, now: Nanos) {
        self.has_worked = true;
        self.devices.flush(&mut self.stack, now);
    }

    /// Passes on what the engine has to say. When it next has something to do by itself, if that may
    /// have changed.
    #[inline]
    pub(super) fn tell_all(&mut self) -> Option<Nanos> {
        let epoch = publish::epoch();
        if core::mem::take(&mut self.is_published) {
            self.published = epoch.wrapping_sub(1);
        } else if self.published != epoch {
            self.published = epoch;
            publish::changed();
        }
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::Tcp(id, ready) => {
                    self.tell(self.by_conn.get(id.index()).copied(), ready::edge(ready))
                }
                Event::Accept(id) => self.tell(self.by_listener.get(&id).copied(), ready::IN),
                Event::Udp(id, ready) => {
                    self.tell(self.by_udp.get(&id).copied(), ready::edge(ready))
                }
            }
        }
        // Timers start and end with frames.
        match core::mem::take(&mut self.has_worked) {
            true => self.next_deadline(),
            false => None,
        }
    }

    fn tell(&mut self, index: Option<u32>, bits: Bits) {
        let socket = index.and_then(|i| self.sockets.get(i as usize));
        if let Some(socket) = socket.and_then(Option::as_ref) {
            socket.file.watch.notify(bits);
            if let Some(bell) = &socket.psock {
                bell.ring();
            }
            if socket.door.is_some() {
                housekeeper::wake_by(sys::now());
            }
            if let Some(number) = socket.relay {
                self.relay_is_due(number);
            }
        }
    }

    /// The shared connections that have something to do.
    #[inline]
    pub(super) fn take_due_relays(&mut self) -> Vec<u32> {
        core::mem::take(&mut self.due)
    }

    /// A shared connection has something to do.
    pub(super) fn relay_is_due(&mut self, number: u32) {
        let shared = self.relays.get(&number).is_some_and(|r| r.is_shared)
            || self.channels.get(&number).is_some_and(|c| c.is_shared);
        if shared && !self.due.contains(&number) {
            self.due.push(number);
        }
    }

    /// Copies of a UDP socket may be with other processes.
    pub(super) fn add_channel(&mut self, channel: Channel) {
        let number = channel.name.number;
        housekeeper::add_relay(self.index, number, &channel.fd);
        self.channels.insert(number, channel);
    }

    /// Copies of a connection may be with other processes.
    pub(super) fn add_relay(&mut self, relay: Relay) {
        let number = relay.name.number;
        housekeeper::add_relay(self.index, number, &relay.fd);
        self.relays.insert(number, relay);
    }

    /// When the engine or a device next has something to do although nothing arrives.
    pub(crate) fn next_deadline(&self) -> Option<Nanos> {
        self.devices.next_deadline(self.stack.next_deadline())
    }

    /// The descriptor that says when a device has something, as poll(2) takes it, while one works.
    pub(crate) fn device_entry(&self) -> Option<pollfd> {
        self.devices.entry()
    }

    /// This thread is about to sleep on files of the engine. The first one watches the device.
    pub(crate) fn enter_sleep(&mut self, bell: BellId) {
        match self.leader {
            None => self.leader = Some(bell),
            Some(_) => self.followers.push(bell),
        }
    }

    /// Whether the thread with this bell is the one that watches the device.
    pub(super) fn is_led_by(&self, bell: BellId) -> bool {
        self.leader == Some(bell)
    }

    /// A thread that sleeps once more, on another bell, keeps its place.
    pub(super) fn rename_sleeper(&mut self, old: BellId, new: BellId) {
        let mut all = self.leader.iter_mut().chain(&mut self.followers);
        if let Some(bell) = all.find(|bell| **bell == old) {
            *bell = new;
        }
    }

    /// The thread is awake again. If it watched the device, another is woken to do so when it goes
    /// back to sleep.
    pub(super) fn leave_sleep(&mut self, bell: BellId) {
        if self.leader != Some(bell) {
            self.followers.retain(|b| *b != bell);
            return;
        }
        self.leader = None;
        if let Some(next) = self.followers.last() {
            wait::ring(*next);
        }
    }

    /// Runs what is due, unless a thread of the program has, and asks to be woken for the next.
    pub(super) fn run_due(&mut self, now: Nanos) {
        self.has_worked = true;
        if self.next_deadline().is_some_and(|at| at <= now) {
            self.exchange(now);
        }
    }

    /// Lets other processes have the addresses: nothing new starts here. `leaving` tells them of it.
    pub(super) fn give_up_addresses(&mut self, leaving: Option<Leaving>) {
        self.stack.set_strangers(Strangers::Ignored);
        self.stack.tcp_forget_time_waits(); // as if the process had ended
        self.leaving = leaving;
        self.claims.clear();
    }

    /// Other processes may have the ports that are not used any more.
    pub(super) fn give_up_ports_but(&mut self, used: &Ports) {
        if let Some(leaving) = &mut self.leaving {
            leaving.keep_only(used);
        }
    }

    /// What keeps the addresses from other processes.
    pub(super) fn claims(&self) -> &[own::Kept] {
        &self.claims
    }

    /// Whoever slept is not in this process.
    pub(crate) fn forget_sleepers(&mut self) {
        (self.leader, self.followers) = (None, Vec::new());
    }

    /// Poll bits of a connection.
    pub(crate) fn conn_bits(&mut self, id: TcpId) -> Bits {
        ready::level(self.stack.tcp_ready(id), self.stack.tcp_state(id))
    }

    /// What a UDP socket shows now.
    pub(crate) fn udp_bits(&mut self, id: UdpId) -> Bits {
        let is_queued = self.stack.udp_peek(id).is_some();
        ready::datagrams(self.stack.udp_ready(id), is_queued)
    }
}
