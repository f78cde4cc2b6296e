//! ioctl(2) on stack sockets.

use super::socket::State;
use super::{cells, stream};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::user_mem::{self, UserPtr};

const FIONREAD: u32 = libc::FIONREAD as u32;
/// TIOCOUTQ.
const SIOCOUTQ: u32 = 0x5411;
const SIOCOUTQNSD: u32 = 0x894b;
const SIOCATMARK: u32 = 0x8905;
/// Requests that belong to the protocol (SIOCPROTOPRIVATE): TCP and UDP have none, the AF_UNIX socket
/// beneath has.
const PROTOCOL: core::ops::RangeInclusive<u32> = 0x89e0..=0x89ef;

/// sockatmark(3).
pub(crate) fn at_mark(file: &'static File) -> Outcome<i32> {
    let mut engine = cells::lock(file)?;
    match engine.socket(file)?.state {
        State::Connecting(id) | State::Connected(id) => Ok(engine.stack.tcp_at_mark(id).into()),
        State::Unbound | State::Bound(_) => Ok(0),
        State::Listening(_) | State::Udp(_) => Err(Errno::ENOTTY.into()),
    }
}

/// One request. What is not about the stream is answered by the socket beneath, which knows of no
/// network.
pub(crate) fn ioctl(file: &'static File, request: u32, arg: UserPtr) -> Outcome<i32> {
    if PROTOCOL.contains(&request) {
        return Err(Errno::ENOTTY.into());
    }
    if !matches!(request, FIONREAD | SIOCOUTQ | SIOCOUTQNSD | SIOCATMARK) {
        file.not_plain();
        return Err(Exit::Native);
    }
    let mut engine = cells::lock(file)?;
    let answer = match engine.socket(file)?.state {
        State::Connecting(id) | State::Connected(id) => {
            let unread = stream::unread(&mut engine, id);
            let (_, unacked, unsent) = engine.stack.tcp_queues(id).unwrap_or_default();
            match request {
                FIONREAD => unread,
                SIOCOUTQ => unacked,
                SIOCOUTQNSD => unsent,
                _ => engine.stack.tcp_at_mark(id).into(),
            }
        }
        State::Udp(id) => {
            engine.pump();
            match request {
                FIONREAD => engine.stack.udp_peek(id).map_or(0, |d| d.data.len()),
                SIOCOUTQ => 0,
                _ => return Err(Errno::ENOTTY.into()),
            }
        }
        State::Listening(_) => return Err(Errno::EINVAL.into()),
        State::Unbound | State::Bound(_) => 0,
    };
    drop(engine);
    user_mem::copy_out(arg, &(answer.min(i32::MAX as usize) as i32))?;
    Ok(0)
}
