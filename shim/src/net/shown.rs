//! The stack's sockets as `kcmctl ss` shows them, and its frames as `kcmctl pcap` does.

use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::Ordering;

use kcm_stack::device::{
    Capabilities, Counters, DeviceError, NetDevice, RxFrame, TransmitError, Wait, Written,
};
use kcm_stack::{TcpInfo, TcpStats, UdpStats};
use rustix::fd::BorrowedFd;

use super::cells::EngineGuard;
use super::engine::Engine;
use super::info;
use super::socket::State;
use crate::fd::{File, lookup, table};
use crate::publish::trace;
use crate::sys;

/// One socket of the stack.
pub(crate) struct Shown {
    pub(crate) is_udp: bool,
    /// As `tcpi_state` numbers it.
    pub(crate) state: u8,
    pub(crate) inode: u64,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// Bytes to read; connections in the queue of a listener.
    pub(crate) recv_q: u64,
    /// Bytes not acknowledged.
    pub(crate) send_q: u64,
    pub(crate) info: Option<TcpInfo>,
}

/// What the devices count, all of them together, and TCP and UDP.
pub(crate) type Tallies = (Counters, TcpStats, UdpStats);

impl EngineGuard {
    /// The engine's counters.
    pub(crate) fn tallies(&self) -> Tallies {
        let tcp = self.stack.tcp_stats().clone();
        (self.device_counters(), tcp, self.stack.udp_stats().clone())
    }

    /// How many sockets are connections, listeners, and of UDP. A listener counts in its home.
    pub(crate) fn kinds(&self) -> [u64; 3] {
        let mut kinds = [0; 3];
        for socket in self.sockets().filter(|socket| !socket.is_copy) {
            match socket.state {
                State::Connecting(_) | State::Connected(_) => kinds[0] += 1,
                State::Listening(_) => kinds[1] += 1,
                State::Udp(_) => kinds[2] += 1,
                State::Unbound | State::Bound(_) => {}
            }
        }
        kinds
    }

    /// The first `max` sockets, for the page: a program may have very many, and waits meanwhile.
    pub(crate) fn shown(&mut self, max: usize) -> Vec<Shown> {
        let now = self.now();
        find_inodes(self.sockets().take(max).map(|s| s.file));
        let sockets: Vec<_> = self
            .sockets()
            .filter(|socket| !socket.is_copy)
            .take(max)
            .map(|s| (s.state, s.v6, s.file.ino.load(Ordering::Relaxed)))
            .collect();
        let engine = &mut **self;
        engine.note_published();
        sockets
            .into_iter()
            .map(|(state, v6, inode)| {
                let mut shown = blank(v6, inode);
                engine.describe(&mut shown, state);
                if let Some(id) = conn(state) {
                    shown.info = engine.stack.tcp_info(now, id);
                }
                shown
            })
            .collect()
    }
}

impl EngineGuard {
    /// What waits here for listeners that have their home in another engine: their inodes, and how many
    /// connections.
    pub(crate) fn waiting_for_others(&mut self) -> Vec<(u64, u64)> {
        let copies: Vec<_> = { self.sockets() }
            .filter(|socket| socket.is_copy)
            .map(|socket| (socket.file.ino.load(Ordering::Relaxed), socket.state))
            .collect();
        let waiting = |(inode, state)| match state {
            State::Listening(id) => Some((inode, self.stack.tcp_accept_queue_len(id)? as u64)),
            _ => None,
        };
        copies.into_iter().filter_map(waiting).collect()
    }
}

/// Asks for the inodes that are not known yet: a short connection is over before anybody looks.
fn find_inodes(files: impl Iterator<Item = &'static File>) {
    let unknown = |file: &&File| file.ino.load(Ordering::Relaxed) == 0;
    let mut files: Vec<*const File> = files.filter(unknown).map(core::ptr::from_ref).collect();
    files.sort_unstable();
    for fd in table::ours_in(0, u32::MAX) {
        if files.is_empty() {
            return;
        }
        if let Some(file) = lookup(fd)
            && let Ok(at) = files.binary_search(&core::ptr::from_ref(file))
        {
            files.remove(at);
            file.ino
                .store(sys::inode(sys::borrow(fd)), Ordering::Relaxed);
        }
    }
}

fn conn(state: State) -> Option<kcm_stack::TcpId> {
    match state {
        State::Connecting(id) | State::Connected(id) => Some(id),
        _ => None,
    }
}

fn blank(v6: bool, inode: u64) -> Shown {
    let unspecified = match v6 {
        true => IpAddr::from([0u16; 8]),
        false => IpAddr::from([0u8; 4]),
    };
    let nowhere = SocketAddr::new(unspecified, 0);
    Shown {
        is_udp: false,
        state: info::CLOSE,
        inode,
        local: nowhere,
        remote: nowhere,
        recv_q: 0,
        send_q: 0,
        info: None,
    }
}

impl Engine {
    fn describe(&mut self, shown: &mut Shown, state: State) {
        match state {
            State::Unbound => {}
            State::Bound(local) => shown.local = local,
            State::Listening(id) => {
                shown.state = info::LISTEN;
                let port = self.stack.tcp_listener_port(id).unwrap_or(0);
                shown.local.set_port(port);
                shown.recv_q = self.stack.tcp_accept_queue_len(id).unwrap_or(0) as u64;
            }
            State::Connecting(id) | State::Connected(id) => {
                if let Some((local, remote)) = self.stack.tcp_addresses(id) {
                    (shown.local, shown.remote) = (local, remote);
                }
                shown.state = self.stack.tcp_state(id).map_or(info::CLOSE, info::state);
                let (recv_q, send_q, _) = self.stack.tcp_queues(id).unwrap_or_default();
                (shown.recv_q, shown.send_q) = (recv_q as u64, send_q as u64);
            }
            State::Udp(id) => {
                shown.is_udp = true;
                if let Some((local, remote)) = self.stack.udp_addresses(id) {
                    shown.local = local;
                    shown.remote = remote.unwrap_or(shown.remote);
                }
            }
        }
    }
}

/// A device whose frames are shown to tracers.
pub(super) struct Traced<'a>(pub(super) &'a mut dyn NetDevice);

impl NetDevice for Traced<'_> {
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        self.0.receive(budget, &mut |frames| {
            frames
                .iter()
                .for_each(|frame| trace::frame(true, frame.data));
            visit(frames);
        })
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        self.0.transmit_with(room, &mut |buffer| {
            let written = write(buffer)?;
            trace::frame(false, buffer.get(..written.len)?);
            Some(written)
        })
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        self.0.kick()
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        self.0.wait_fd(wait)
    }

    fn counters(&self) -> Counters {
        self.0.counters()
    }
}
