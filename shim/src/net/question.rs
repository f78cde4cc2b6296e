//! What other processes ask about the sockets that they have copies of: options, queues, names. They come
//! over the control connection of `share`, each with a copy, which proves that they have it.

use core::net::SocketAddr;

use rustix::fd::{AsFd, OwnedFd};
use rustix::net::sockopt;

use super::engine::Engine;
use super::lend::{share, share_channel};
use super::name::{Door, Name};
use super::relay::Relay;
use super::socket::Socket;
use super::{cells, host, ioctl, options, psock};
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::share::owner;
use crate::user_mem::UserPtr;

/// The socket of which `copy` is a copy, from now on shared.
fn shared_by(copy: &OwnedFd) -> Outcome<&'static File> {
    let Some(name) = Name::of(copy.as_fd()) else {
        return handed_over(copy);
    };
    if !owner::is_ours(&name.owner) {
        return Err(Errno::EBADF.into());
    }
    // Nobody else can have the whole name while the socket lives.
    let named = |relay: Option<&Relay>| relay.is_some_and(|relay| relay.name == name);
    let connection = find(|engine| {
        if named(engine.relays.get(&name.number)) {
            share(engine, name.number);
        }
        if engine
            .channels
            .get(&name.number)
            .is_some_and(|c| c.name == name)
        {
            share_channel(engine, name.number);
            engine.move_outbound(name.number);
            return engine
                .channels
                .get(&name.number)
                .map(|channel| channel.file);
        }
        let relay = engine.relays.get(&name.number);
        relay.filter(|relay| named(Some(relay))).map(|r| r.file)
    });
    if let Some(file) = connection? {
        return Ok(file);
    }
    if !sockopt::socket_acceptconn(copy)? && rustix::net::getpeername(copy).is_ok() {
        return Err(Errno::EBADF.into()); // only connected to the listener
    }
    let is_it = |socket: &&Socket| socket.door.as_ref().is_some_and(|door| door.name == name);
    let listener = find(|engine| { engine.sockets() }.find(is_it).map(|socket| socket.file));
    Ok(listener?.ok_or(Errno::EBADF)?)
}

/// The socket of a connection that was handed over at a listener of the kernel's, of which `copy` is the
/// end that was accepted there.
fn handed_over(copy: &OwnedFd) -> Outcome<&'static File> {
    let inet = |name: rustix::net::SocketAddrAny| SocketAddr::try_from(name).ok();
    let peer = rustix::net::getpeername(copy)?.and_then(inet);
    let peer = peer
        .filter(|peer| Door::may_hand_over(*peer))
        .ok_or(Errno::EBADF)?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let is_it = |relay: &&Relay| {
        relay.is_tcp() && rustix::net::getsockname(&relay.fd).ok().and_then(inet) == Some(peer)
    };
    let found = find(|engine| {
        { engine.relays.values() }
            .find(is_it)
            .map(|relay| relay.file)
    });
    Ok(found?.ok_or(Errno::EBADF)?)
}

/// What one of the engines has.
pub(super) fn find(
    mut look: impl FnMut(&mut Engine) -> Option<&'static File>,
) -> Outcome<Option<&'static File>> {
    for cell in cells::all() {
        if let Some(found) = look(&mut *cell.lock()?) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What another process asks of the socket of which `copy` is a copy.
pub(crate) fn answer(copy: &OwnedFd, question: Question<'_>) -> Outcome<Vec<u8>> {
    /// Room for the longest option, `struct tcp_info`.
    const ANSWER_MAX: usize = 256;
    if matches!(question, Question::Failure) {
        return Ok(host::failure(copy)?.to_ne_bytes().to_vec());
    }
    let file = shared_by(copy)?;
    let mut room = [0; ANSWER_MAX];
    let mut length = ANSWER_MAX as u32;
    let value = UserPtr::new(room.as_mut_ptr().cast());
    match question {
        Question::Share | Question::Failure => return Ok(Vec::new()),
        Question::Attach => return Ok(psock::stand(file)?.pack().to_ne_bytes().to_vec()),
        Question::Name => {
            let mut engine = cells::lock(file)?;
            let number = engine.socket(file)?.relay.ok_or(Errno::EBADF)?;
            let relay = engine.relays.get(&number).ok_or(Errno::EBADF)?;
            return Ok(relay.name.encode());
        }
        Question::Get(level, name) => {
            let length = UserPtr::new(core::ptr::from_mut(&mut length).cast());
            options::get(file, level, name, value, length)?;
        }
        Question::Set(level, name, bytes) => {
            let value = UserPtr::new(bytes.as_ptr().cast_mut().cast());
            let length = bytes.len() as u32;
            // What only the socket beneath has, the asking process has set there.
            options::set(file, -1, level, name, value, length, || 0)?;
            return Ok(Vec::new());
        }
        Question::Ioctl(request) => {
            ioctl::ioctl(file, request, value)?;
            length = size_of::<i32>() as u32;
        }
    }
    Ok(room.get(..length as usize).unwrap_or_default().to_vec())
}

/// What may be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question<'a> {
    /// That it be shared.
    Share,
    /// How it stands for a mux that is going to attach it.
    Attach,
    /// What it is called.
    Name,
    /// Why it could not be connected.
    Failure,
    /// An option's value: level and name.
    Get(i32, i32),
    /// That an option get a value.
    Set(i32, i32, &'a [u8]),
    /// An ioctl(2) that stores an int.
    Ioctl(u32),
}
