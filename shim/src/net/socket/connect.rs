//! connect(2): its start, its outcome, and AF_UNSPEC.

use core::net::SocketAddr;
use core::sync::atomic::Ordering;

use kcm_stack::{State as TcpState, TcpId};

use super::{State, waits};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::kcm::recv::deadline;
use crate::net::address::{self, Address};
use crate::net::cells::{self, EngineGuard};
use crate::net::engine::Engine;
use crate::net::{errors, homes, lend, listeners, sleep, udp};
use crate::user_mem::UserPtr;

/// connect(2).
pub(crate) fn connect(file: &'static File, fd: i32, addr: UserPtr, length: u32) -> Outcome<i32> {
    match address::read(addr, length)? {
        Address::Inet(remote) => connect_to(file, fd, address::canonical(remote)),
        Address::Unspecified => disconnect(file),
        Address::Other => Err(match length {
            0..16 => Errno::EINVAL.into(),
            _ => Errno::EAFNOSUPPORT.into(),
        }),
    }
}

/// connect(2) to an address whose family is the socket's.
pub(crate) fn connect_to(file: &'static File, fd: i32, remote: SocketAddr) -> Outcome<i32> {
    lend::take_back(file, fd)?;
    homes::before_connect(file, remote)?;
    let mut engine = cells::lock(file)?;
    match engine.socket(file)?.state {
        State::Connected(_) | State::Listening(_) => return Err(Errno::EISCONN.into()),
        State::Connecting(id) => {
            engine.pump();
            if !is_settled(&mut engine, id) && !waits(file, fd, 0) {
                return Err(Errno::EALREADY.into());
            }
        }
        State::Udp(_) => return connect_datagrams(engine, file, Some(remote)),
        State::Unbound | State::Bound(_) => {
            start(&mut engine, file, remote)?;
            engine.pump();
        }
    }
    await_connection(engine, file, fd)
}

fn connect_datagrams(
    mut engine: EngineGuard,
    file: &'static File,
    remote: Option<SocketAddr>,
) -> Outcome<i32> {
    let done = udp::connect(&mut engine, file, remote);
    drop(engine);
    udp::ports::changed(file);
    done
}

/// Sends the SYN.
pub(in crate::net) fn start(
    engine: &mut EngineGuard,
    file: &'static File,
    remote: SocketAddr,
) -> Outcome<()> {
    let socket = engine.socket(file)?;
    let options = kcm_stack::ConnectOptions {
        local: socket.bound,
        opts: Some(socket.settings.tcp.clone()),
        flags: socket.settings.flags(),
        iface: socket.settings.device,
    };
    let id = open(engine, remote, &options)?;
    let socket = engine.socket(file)?;
    (socket.ended, socket.error) = (false, 0);
    engine.set_state(file, State::Connecting(id))?;
    Ok(())
}

/// Makes a connection that nobody has. One that an ended program has left at the same address would be reset by its
/// SYN; as on Linux a port of the program's choice may be used with other peers, and another port is chosen.
fn open(
    engine: &mut EngineGuard,
    remote: SocketAddr,
    options: &kcm_stack::ConnectOptions,
) -> Outcome<TcpId> {
    /// Of the ports that may be chosen, a seventh is left at most, where there are 16 engines; mostly a hundredth.
    const TRIES: u32 = 64;
    let now = engine.now();
    let is_chosen = options.local.is_some_and(|local| local.port() != 0);
    let tries = if is_chosen { 1 } else { TRIES };
    for _ in 0..tries {
        // Linux takes the wildcard for this host.
        let id = engine.stack.tcp_connect(now, remote, options);
        let id = id.map_err(errors::connect)?;
        let Some(left) = engine.left() else {
            return Ok(id);
        };
        let is_left = |(local, remote)| match is_chosen {
            true => left.has_flow(local, remote),
            false => left.has_port(local),
        };
        if !engine.stack.tcp_addresses(id).is_some_and(is_left) {
            return Ok(id);
        }
        engine.stack.tcp_abort(now, id); // nothing of it has left yet
    }
    Err(Errno::EADDRNOTAVAIL.into())
}

/// Whether the outcome of a connect is known.
fn is_settled(engine: &mut Engine, id: TcpId) -> bool {
    !matches!(
        engine.stack.tcp_state(id),
        Some(TcpState::SynSent | TcpState::SynReceived)
    )
}

/// Tells the outcome of a connect, and waits for it if the socket does.
fn await_connection(mut engine: EngineGuard, file: &'static File, fd: i32) -> Outcome<i32> {
    let mut pin = None;
    let mut until = None;
    let mut slept = false;
    loop {
        let State::Connecting(id) = engine.socket(file)?.state else {
            return Ok(0); // another thread has seen it through
        };
        if is_settled(&mut engine, id) {
            return conclude(&mut engine, file, id);
        }
        drop(engine);
        if !slept {
            if !waits(file, fd, 0) {
                return Err(Errno::EINPROGRESS.into());
            }
            until = deadline(file.sndtimeo.load(Ordering::Relaxed));
            slept = true;
        }
        let done = sleep::until(file, until, &mut pin, |engine| is_settled(engine, id));
        match done {
            Err(Exit::Failed(Errno::EAGAIN)) => return Err(Errno::EINPROGRESS.into()),
            done => done?,
        }
        engine = cells::lock(file)?;
    }
}

/// The handshake is over: the socket is connected, or free for another try.
fn conclude(engine: &mut Engine, file: &'static File, id: TcpId) -> Outcome<i32> {
    if engine
        .stack
        .tcp_state(id)
        .is_some_and(|s| s != TcpState::Closed)
    {
        engine.set_state(file, State::Connected(id))?;
        return Ok(0);
    }
    let cause = engine.stack.tcp_take_error(id);
    lose(engine, file)?;
    engine.stack.tcp_close(kcm_stack::Instant::ZERO, id);
    Err(cause.map_or(Errno::ECONNABORTED, errors::cause).into())
}

/// A connect has failed: the socket is free for another try.
pub(crate) fn lose(engine: &mut Engine, file: &File) -> Outcome<()> {
    let socket = engine.socket(file)?;
    socket.ended = true;
    let state = socket.bound.map_or(State::Unbound, State::Bound);
    engine.set_state(file, state).map(drop)
}

/// connect(2) with AF_UNSPEC.
fn disconnect(file: &'static File) -> Outcome<i32> {
    let mut engine = cells::lock(file)?;
    let now = engine.now();
    match engine.socket(file)?.state {
        State::Udp(_) => return connect_datagrams(engine, file, None),
        State::Connecting(id) | State::Connected(id) => {
            // tcp_disconnect resets a connection, and reports it as one that was.
            let open = engine
                .stack
                .tcp_state(id)
                .is_some_and(|s| s != TcpState::Closed);
            engine.stack.tcp_abort(now, id);
            let socket = engine.socket(file)?;
            socket.error = if open { libc::ECONNRESET } else { 0 };
            let state = socket.bound.map_or(State::Unbound, State::Bound);
            engine.set_state(file, state)?;
        }
        State::Listening(_) => {
            drop(engine);
            listeners::close(file);
            let mut engine = cells::lock(file)?;
            let old = engine.set_state(file, State::Unbound)?;
            if let State::Listening(id) = old {
                engine.stack.tcp_unlisten(now, id);
            }
        }
        State::Unbound | State::Bound(_) => {}
    }
    Ok(0)
}
