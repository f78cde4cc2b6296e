//! Where UDP sockets live in a process with several engines: where their port belongs, except that those
//! which share an address (SO_REUSEPORT) are spread over the engines, so that a thread with one of them
//! works with one engine. Who hands frames out is told of such ports ([`SharedPorts`]); a flow stays with
//! one socket while the same sockets are there, as in the kernel.

use core::net::SocketAddr;
use std::sync::Arc;

use kcm_stack::{Reuse, SharedPorts, UdpBindOptions, UdpId};

use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::net::cells::{self, EngineGuard, NetCell};
use crate::net::listeners::{PLACING, Placing};
use crate::net::socket::State;
use crate::net::{errors, homes};
use crate::sys;

/// bind(2): the socket, and the engine it is in.
pub(super) fn bind(
    local: SocketAddr,
    options: &UdpBindOptions,
) -> Outcome<(&'static NetCell, UdpId)> {
    let home = homes::of_udp(local.port());
    if !cells::are_several() || local.port() == 0 {
        return bind_in(home, local, options);
    }
    let placing = PLACING.lock()?;
    let spreads = matches!(options.reuse, Reuse::Port | Reuse::Both);
    let is_shared = home.lock()?.stack.udp_shared().has(local.port());
    if !spreads && !is_shared {
        return bind_in(home, local, options);
    }
    let least = least_used(local, options)?;
    let cell = if spreads { least } else { home };
    let options = UdpBindOptions {
        on_any_shard: true,
        ..*options
    };
    let (cell, id) = bind_in(cell, local, &options)?;
    if let Err(why) = tell(&placing, local.port(), None) {
        cell.lock()?.stack.udp_close(id);
        return Err(why);
    }
    Ok((cell, id))
}

fn bind_in(
    cell: &'static NetCell,
    local: SocketAddr,
    options: &UdpBindOptions,
) -> Outcome<(&'static NetCell, UdpId)> {
    let mut engine = cell.lock()?;
    let id = engine.stack.udp_bind_with(local, options);
    Ok((cell, id.map_err(errors::socket)?))
}

/// The engine with the fewest sockets of the address, from the one that its port belongs to on.
///
/// # Errors
/// `EADDRINUSE` if a socket is in the way, wherever it is.
fn least_used(local: SocketAddr, options: &UdpBindOptions) -> Outcome<&'static NetCell> {
    let mut best: Option<(usize, &'static NetCell)> = None;
    for cell in homes::from_port(local.port()) {
        let engine = cell.lock()?;
        if engine.stack.udp_is_taken(local, options) {
            return Err(Errno::EADDRINUSE.into());
        }
        let bindings = engine.stack.udp_bindings(local.port());
        let twins = { bindings.filter(|(_, one)| one.is_twin_of(local, options)) }.count();
        if best.is_none_or(|(fewest, _)| twins < fewest) {
            best = Some((twins, cell));
        }
    }
    Ok(best.map_or(cells::first(), |(_, cell)| cell))
}

/// The socket is about to be closed: its flows are others' from now on.
pub(in crate::net) fn leave(file: &File) {
    if let Some((port, leaving)) = on_shared(file)
        && let Ok(placing) = PLACING.lock()
    {
        let _ = tell(&placing, port, Some(leaving));
    }
}

/// The socket has another peer, or another interface: it is others' flows that it hears.
pub(in crate::net) fn changed(file: &File) {
    if let Some((port, _)) = on_shared(file)
        && let Ok(placing) = PLACING.lock()
    {
        let _ = tell(&placing, port, None);
    }
}

/// The port of a socket which is one of several engines', and the socket.
fn on_shared(file: &File) -> Option<(u16, (u8, UdpId))> {
    if !cells::are_several() || file.is_stream() {
        return None;
    }
    let mut engine = cells::lock(file).ok()?;
    let State::Udp(id) = engine.socket(file).ok()?.state else {
        return None;
    };
    let (local, _) = engine.stack.udp_addresses(id)?;
    let is_shared = engine.stack.udp_shared().has(local.port());
    is_shared.then_some((local.port(), (engine.index, id)))
}

/// Who hands frames out learns of the sockets on a port, but for one that is about to go.
fn tell(_placing: &Placing, port: u16, leaving: Option<(u8, UdpId)>) -> Outcome<()> {
    let known = cells::first().lock()?.stack.udp_shared().clone();
    let mut sockets = Vec::new();
    for cell in cells::all() {
        let engine: EngineGuard = cell.lock()?;
        let bindings = engine.stack.udp_bindings(port);
        let staying = bindings.filter(|(id, _)| leaving != Some((cell.index(), *id)));
        sockets.extend(staying.map(|(_, binding)| (cell.index(), binding)));
    }
    let new = match known.is_empty() {
        true => {
            let seed = sys::random().unwrap_or_else(sys::now) as u32;
            SharedPorts::new(seed, cells::count()).with(port, sockets)
        }
        false => known.with(port, sockets),
    };
    if new == *known || new.is_empty() && known.is_empty() {
        return Ok(());
    }
    let new = Arc::new(new);
    for cell in cells::all() {
        cell.lock()?.share_ports(&new);
    }
    Ok(())
}
