//! UDP sockets that other processes have copies of. What they hold is an AF_UNIX SEQPACKET socket, whose other
//! end the owner has: each message is a datagram behind a [`Head`], which says from or to whom. As with
//! connections ([`super::relay`]), the owner goes on by its engine until another process uses the socket.

use rustix::buffer::spare_capacity;
use rustix::io::Errno as Sys;
use rustix::net::{RecvFlags, SendFlags};

use kcm_stack::{RecvError, SendError, UdpId, UdpSendOptions};

use super::engine::{Engine, instant};
use super::name::Name;
use super::socket::State;
use super::{errors, lend, ready};
use crate::errno::{Errno, Exit};
use crate::fd::File;
use crate::{own, sys};

pub(super) mod head;
pub(crate) mod holder;

use head::{HEAD_BYTES, Head};

/// The largest payload of a datagram (udp(7)).
pub(super) const PAYLOAD_MAX: usize = 65_507;
/// Datagrams moved for one socket before the others have their turn.
const PIECES_MAX: usize = 64;

/// A UDP socket that others hold copies of.
pub(crate) struct Channel {
    pub(super) name: Name,
    /// The owner's end.
    pub(super) fd: own::Kept,
    /// The socket's file: the program's, until others use it.
    pub(super) file: &'static File,
    /// Others use it: datagrams are moved.
    pub(super) is_shared: bool,
    /// A message that the others have no room for yet.
    inbound: Option<Vec<u8>>,
    /// One of theirs that the engine has no room for yet.
    outbound: Option<Vec<u8>>,
    gone: bool,
}

impl Channel {
    pub(super) fn new(name: Name, fd: own::Kept, file: &'static File, is_shared: bool) -> Self {
        let (inbound, outbound, gone) = (None, None, false);
        Self {
            name,
            fd,
            file,
            is_shared,
            inbound,
            outbound,
            gone,
        }
    }

    /// Whether no copy of the other end is left anywhere.
    pub(super) fn is_gone(&self) -> bool {
        self.gone || sys::poll_bits(sys::number(&self.fd), 0) & libc::POLLHUP != 0
    }
}

/// Something has happened at our end of a socket: others have sent, or closed it (`gone`).
pub(super) fn on_event(engine: &mut Engine, number: u32, gone: bool) -> Option<&'static File> {
    let channel = engine.channels.get_mut(&number)?;
    channel.gone |= gone;
    if channel.is_shared {
        engine.relay_is_due(number);
    } else if sys::unread_bytes(rustix::fd::AsFd::as_fd(&channel.fd)) > 0 {
        lend::share_channel(engine, number);
    } else if gone {
        return Some(channel.file);
    }
    None
}

impl Engine {
    /// Moves datagrams both ways.
    pub(super) fn move_channel(&mut self, number: u32) {
        let Some(mut channel) = self.channels.remove(&number) else {
            return;
        };
        let Ok(State::Udp(id)) = self.socket(channel.file).map(|socket| socket.state) else {
            return channel.file.release();
        };
        let mut more = false;
        for piece in 0..PIECES_MAX {
            let moved = [channel.feed_process(self, id), channel.feed_peer(self, id)];
            more = piece + 1 == PIECES_MAX;
            if moved == [false, false] {
                break;
            }
        }
        if channel.gone && !more && channel.outbound.is_none() {
            if let Ok(socket) = self.socket(channel.file) {
                socket.relay = None;
            }
            return channel.file.release();
        }
        // Asks for the events.
        let _ = self.udp_bits(id);
        self.channels.insert(number, channel);
        if more {
            self.relay_is_due(number);
        }
    }

    /// Sends what others have sent so far, before something else is done to the socket on their behalf: where
    /// a datagram goes, and how, was settled when it was sent.
    pub(super) fn move_outbound(&mut self, number: u32) {
        /// More than the others' end holds, unless somebody has raised net.core.wmem_default.
        const MESSAGES_MAX: usize = 512;
        let Some(mut channel) = self.channels.remove(&number) else {
            return;
        };
        if let Ok(State::Udp(id)) = self.socket(channel.file).map(|socket| socket.state) {
            let _ = (0..MESSAGES_MAX).all(|_| channel.feed_peer(self, id));
        }
        self.channels.insert(number, channel);
        self.relay_is_due(number);
    }
}

impl Channel {
    /// One datagram, or one error, from the engine to the other processes.
    fn feed_process(&mut self, engine: &mut Engine, id: UdpId) -> bool {
        let message = match self.inbound.take() {
            Some(message) => message,
            None => match engine.stack.udp_recv(id) {
                Ok(datagram) => {
                    let wants = engine.socket(self.file).map(|socket| socket.settings.wants);
                    let head = Head::of_datagram(&datagram, wants.unwrap_or_default());
                    head.before(&datagram.data)
                }
                Err(RecvError::WouldBlock) => return false,
                Err(why) => match errors::recv(why) {
                    Exit::Failed(why) => Head::of_error(why).before(&[]),
                    Exit::Native => return false,
                },
            },
        };
        self.post(message)
    }

    fn post(&mut self, message: Vec<u8>) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.fd, &message, flags) {
            Err(Sys::AGAIN | Sys::INTR | Sys::NOBUFS) => {
                self.inbound = Some(message);
                false
            }
            _ => true, // or nobody is there to miss it
        }
    }

    /// One datagram from the other processes to the engine. Errors come to whoever receives next.
    fn feed_peer(&mut self, engine: &mut Engine, id: UdpId) -> bool {
        let message = match self.outbound.take() {
            Some(message) => message,
            None => {
                let mut message = Vec::with_capacity(HEAD_BYTES + PAYLOAD_MAX);
                let room = spare_capacity(&mut message);
                match rustix::net::recv(&self.fd, room, RecvFlags::DONTWAIT) {
                    Ok((1.., _)) => message,
                    Ok((0, _)) | Err(Sys::CONNRESET) => {
                        self.gone = true;
                        return false;
                    }
                    Err(_) => return false,
                }
            }
        };
        let Some((head, payload)) = Head::parse(&message) else {
            return true; // from a program that knows nothing of heads
        };
        let (to, options): (_, UdpSendOptions) = head.of_send();
        let now = instant(sys::now());
        let stack = &mut engine.stack;
        match stack.udp_send_with(now, id, to, &options, &[payload]) {
            Err(SendError::WouldBlock) => {
                self.outbound = Some(message);
                false
            }
            Err(why) if self.inbound.is_none() => {
                let why: Errno = errors::send(why);
                self.post(Head::of_error(why).before(&[]))
            }
            _ => true,
        }
    }
}

/// What a socket shows at once to who watches it.
pub(super) const ALL: ready::Bits = ready::IN | ready::OUT;
