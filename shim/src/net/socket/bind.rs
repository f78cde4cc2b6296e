//! bind(2): which addresses a socket can have, and which port.

use core::net::SocketAddr;

use kcm_stack::IfaceId;

use super::{Socket, State};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::net::address::{self, Address};
use crate::net::engine::Engine;
use crate::net::{cells, handover, lend, listeners};
use crate::user_mem::UserPtr;
use crate::{route, sys};

/// bind(2) on a stack socket.
pub(crate) fn bind(file: &'static File, addr: UserPtr, length: u32) -> Outcome<i32> {
    let local = match address::read(addr, length)? {
        Address::Inet(local) => address::canonical(local),
        Address::Unspecified | Address::Other => return Err(Errno::EINVAL.into()),
    };
    {
        let mut engine = cells::lock(file)?;
        check_local(&engine, local)?;
        if engine.socket(file)?.state != State::Unbound {
            return Err(Errno::EINVAL.into());
        }
    }
    bind_in(file, local).map(|()| 0)
}

fn check_local(engine: &Engine, local: SocketAddr) -> Outcome<()> {
    match local.ip().is_unspecified() || engine.stack.is_local(local.ip()) {
        true => Ok(()),
        false => Err(Errno::EADDRNOTAVAIL.into()),
    }
}

/// Gives an unbound socket a local address. Tries once more if what was in the way has lost its last holder,
/// in another process.
pub(crate) fn bind_in(file: &'static File, local: SocketAddr) -> Outcome<()> {
    let bind = || {
        let _placing = listeners::PLACING.lock()?;
        bind_placed(file, local).map(drop)
    };
    match bind() {
        Err(Exit::Failed(Errno::EADDRINUSE)) if lend::has_door() => {
            handover::look_now();
            bind()
        }
        done => done,
    }
}

/// As [`bind_in`] for a thread that is placing sockets; the address with its port.
pub(in crate::net) fn bind_placed(file: &'static File, local: SocketAddr) -> Outcome<SocketAddr> {
    let claim = {
        let mut engine = cells::lock(file)?;
        check_local(&engine, local)?;
        let settings = &engine.socket(file)?.settings;
        Claim {
            file,
            reuse_address: settings.reuse_address,
            reuse_port: settings.reuse_port,
            device: settings.device,
        }
    };
    let local = match local.port() {
        0 => SocketAddr::new(local.ip(), claim.free_port(local)?),
        _ if claim.is_taken(local) || !claim.reuses() && is_left(local) => {
            return Err(Errno::EADDRINUSE.into());
        }
        _ => local,
    };
    let mut engine = cells::lock(file)?;
    let socket = engine.socket(file)?;
    if socket.state != State::Unbound {
        return Err(Errno::EINVAL.into()); // another thread was faster
    }
    socket.bound = Some(local);
    engine.set_state(file, State::Bound(local))?;
    Ok(local)
}

/// Who wants an address, and how far it shares one.
struct Claim {
    file: &'static File,
    reuse_address: bool,
    reuse_port: bool,
    device: Option<IfaceId>,
}

impl Claim {
    /// Whether another socket has the address, and does not share it.
    fn is_taken(&self, local: SocketAddr) -> bool {
        let clashes = |other: &Socket| {
            let Some(at) = other
                .bound
                .filter(|_| !core::ptr::eq(other.file, self.file))
            else {
                return false;
            };
            let overlaps = at.ip() == local.ip()
                || at.ip().is_unspecified() && at.is_ipv4() == local.is_ipv4()
                || local.ip().is_unspecified() && at.is_ipv4() == local.is_ipv4();
            let theirs = &other.settings;
            let apart =
                self.device.is_some() && theirs.device.is_some() && self.device != theirs.device;
            let listens = matches!(other.state, State::Listening(_));
            let shared = self.reuse_address && theirs.reuse_address && !listens
                || self.reuse_port && theirs.reuse_port;
            at.port() == local.port() && overlaps && !apart && !shared
        };
        cells::all().any(|cell| { cell.lock() }.is_ok_and(|engine| engine.sockets().any(clashes)))
    }

    fn reuses(&self) -> bool {
        self.reuse_address || self.reuse_port
    }

    fn free_port(&self, local: SocketAddr) -> Outcome<u16> {
        let range = kcm_stack::limits::EPHEMERAL_PORTS;
        let count = u64::from(range.end() - range.start()) + 1;
        let start = sys::random().unwrap_or(sys::now()) % count;
        (0..count)
            .map(|n| range.start() + ((start + n) % count) as u16)
            .map(|port| SocketAddr::new(local.ip(), port))
            .find(|local| !self.is_taken(*local) && !is_left(*local))
            .map(|local| local.port())
            .ok_or(Exit::Failed(Errno::EADDRINUSE))
    }
}

/// Whether a program that has ended has left connections at the address.
fn is_left(local: SocketAddr) -> bool {
    let left = { cells::first().lock() }.map(|mut engine| engine.left());
    let (Ok(Some(left)), Some(plan)) = (left, route::plan()) else {
        return false;
    };
    match local.ip().is_unspecified() {
        false => left.has_port(local),
        true => {
            plan.interfaces
                .iter()
                .flat_map(|interface| &interface.addresses)
        }
        .filter(|own| own.ip.is_ipv4() == local.is_ipv4())
        .any(|own| left.has_port(SocketAddr::new(own.ip, local.port()))),
    }
}
