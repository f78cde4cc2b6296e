//! Receiving from and sending on a stack connection.

use core::sync::atomic::Ordering;

use kcm_stack::{RecvError, SendError, TcpId};

use super::cells::{self, EngineGuard};
use super::engine::Engine;
use super::socket::{State, waits};
use super::{errors, ready, sleep};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::kcm::recv::{Received, deadline};
use crate::signal;
use crate::user_mem::{Efault, Iovecs};

/// The connection of a socket, for a receive; `None` where there is none and reads find the end.
pub(super) fn source(engine: &mut Engine, file: &File) -> Outcome<Option<TcpId>> {
    let socket = engine.socket(file)?;
    match socket.state {
        State::Connecting(id) | State::Connected(id) => Ok(Some(id)),
        _ if socket.ended => Ok(None),
        State::Unbound | State::Bound(_) | State::Listening(_) => Err(Errno::ENOTCONN.into()),
        State::Udp(_) => Err(Errno::EBADF.into()),
    }
}

/// recv(2) and its kin on a connection.
pub(crate) fn recv(file: &'static File, fd: i32, dst: Iovecs<'_>, flags: i32) -> Outcome<Received> {
    let mut engine = cells::lock(file)?;
    if flags & libc::MSG_OOB != 0 {
        return urgent(&mut engine, file, dst, flags);
    }
    if flags & libc::MSG_ERRQUEUE != 0 {
        return Err(Errno::EAGAIN.into());
    }
    let mut receiving = Receiving {
        dst,
        flags,
        total: dst.total(),
        moved: 0,
        kept: Vec::new(),
    };
    let mut pin = None;
    let mut until = None;
    let mut slept = false;
    loop {
        let id = match source(&mut engine, file) {
            Ok(Some(id)) => id,
            Ok(None) => return receiving.finish(),
            // Shared with another process meanwhile.
            Err(Exit::Native) if receiving.moved > 0 => return receiving.finish(),
            Err(why) => return Err(why),
        };
        let target = receiving.target(&engine, id);
        match receiving.take(&mut engine, id)? {
            Step::Moved if receiving.moved >= target => return receiving.finish(),
            Step::Moved => {}
            Step::End => return receiving.finish(),
            Step::Failed(_) if receiving.moved > 0 => return receiving.finish(),
            Step::Failed(why) => return Err(why),
        }
        // Nothing here, or not enough: perhaps it is in the device.
        if !slept || receiving.moved > 0 {
            engine.pump();
            match receiving.take(&mut engine, id)? {
                Step::Moved if receiving.moved >= target => return receiving.finish(),
                Step::Moved => {}
                Step::End => return receiving.finish(),
                Step::Failed(_) if receiving.moved > 0 => return receiving.finish(),
                Step::Failed(why) => return Err(why),
            }
        }
        drop(engine);
        if !slept {
            if !waits(file, fd, flags) {
                return match receiving.moved {
                    0 => Err(Errno::EAGAIN.into()),
                    _ => receiving.finish(),
                };
            }
            until = deadline(file.rcvtimeo.load(Ordering::Relaxed));
            slept = true;
        }
        receiving.keep_before_sleep();
        let low = target - receiving.moved;
        let done = sleep::until(file, until, &mut pin, |engine| {
            is_readable(engine, file, low)
        });
        if let Err(why) = done {
            return match receiving.moved {
                0 => Err(why),
                _ => receiving.finish(),
            };
        }
        engine = cells::lock(file)?;
    }
}

/// Whether a receive that waits for `low` bytes has something to do.
fn is_readable(engine: &mut Engine, file: &File, low: usize) -> bool {
    let Ok(Some(id)) = source(engine, file) else {
        return true;
    };
    let queued = engine.stack.tcp_queues(id).map_or(0, |(unread, ..)| unread);
    if queued >= low {
        return true;
    }
    let other = ready::ERR | ready::RDHUP | ready::HUP;
    // Bytes short of the mark, and a full buffer, have to be taken as they are.
    engine.conn_bits(id) & other != 0 || queued > 0 && engine.stack.tcp_at_limit(id)
}

/// One receive under way.
struct Receiving<'a> {
    dst: Iovecs<'a>,
    flags: i32,
    total: usize,
    moved: usize,
    /// What was taken before a sleep: MSG_WAITALL takes what fits no buffer of the engine's.
    kept: Vec<u8>,
}

enum Step {
    /// As many bytes as there were, perhaps none.
    Moved,
    /// The stream has ended.
    End,
    Failed(Exit),
}

impl Receiving<'_> {
    /// Bytes with which the call is content.
    fn target(&self, engine: &Engine, id: TcpId) -> usize {
        let low = match self.flags & libc::MSG_WAITALL {
            0 => engine.stack.tcp_opts(id).map_or(1, |o| o.rcvlowat as usize),
            _ => self.total,
        };
        low.min(self.total).max(1)
    }

    /// Moves what there is.
    fn take(&mut self, engine: &mut EngineGuard, id: TcpId) -> Outcome<Step> {
        let now = engine.now();
        let peek = self.flags & libc::MSG_PEEK != 0;
        let room = self.total - self.moved;
        let (dst, discard) = (self.dst, self.flags & libc::MSG_TRUNC != 0);
        let (kept, waits) = (&mut self.kept, self.flags & libc::MSG_WAITALL != 0);
        let taken = engine
            .stack
            .tcp_recv_with(now, id, room, peek, |pieces, bytes| {
                if discard {
                    return Ok(());
                }
                if kept.is_empty() && (!waits || bytes == room) {
                    return dst.scatter(pieces, bytes);
                }
                let mut left = bytes;
                for piece in pieces {
                    let count = piece.len().min(left);
                    kept.extend_from_slice(piece.get(..count).unwrap_or_default());
                    left -= count;
                }
                Ok::<_, Efault>(())
            });
        match taken {
            // The end, or no room: a call without room ends once there is something to read.
            Ok(Ok(0)) => Ok(Step::End),
            Ok(Ok(bytes)) => {
                // A peek starts again from the front.
                self.moved = if peek { bytes } else { self.moved + bytes };
                if peek {
                    self.kept.clear();
                }
                Ok(Step::Moved)
            }
            Ok(Err(Efault)) => Err(Errno::EFAULT.into()),
            Err(RecvError::WouldBlock) => Ok(Step::Moved),
            Err(why) => Ok(Step::Failed(errors::recv(why))),
        }
    }

    fn keep_before_sleep(&mut self) {
        if self.flags & libc::MSG_PEEK != 0 {
            self.moved = 0;
        }
    }

    fn finish(self) -> Outcome<Received> {
        if !self.kept.is_empty() {
            self.dst.scatter([&*self.kept], self.moved)?;
        }
        Ok(Received {
            bytes: self.moved,
            flags: 0,
        })
    }
}

/// MSG_OOB.
fn urgent(engine: &mut EngineGuard, file: &File, dst: Iovecs<'_>, flags: i32) -> Outcome<Received> {
    engine.pump();
    let now = engine.now();
    let id = source(engine, file)?.ok_or(Errno::EINVAL)?;
    let peek = flags & libc::MSG_PEEK != 0;
    let byte = engine
        .stack
        .tcp_recv_urgent(now, id, peek)
        .map_err(errors::recv)?;
    let bytes = dst.total().min(1);
    dst.scatter([&[byte][..]], bytes)?;
    let cut = if bytes == 0 { libc::MSG_TRUNC } else { 0 };
    Ok(Received {
        bytes,
        flags: libc::MSG_OOB | cut,
    })
}

/// send(2) and its kin on a connection.
pub(crate) fn send(file: &'static File, fd: i32, src: Iovecs<'_>, flags: i32) -> Outcome<usize> {
    let parts = src.gather()?;
    let mut engine = cells::lock(file)?;
    let mut sent = 0;
    match some(&mut engine, file, &parts, src.total(), flags)? {
        Sent::All => return Ok(src.total()),
        Sent::Part(count) => sent += count,
        Sent::Failed(why) => return Err(fail(why, flags)),
    }
    if !waits(file, fd, flags) {
        return match sent {
            0 => {
                // The acknowledgements may be in the device already.
                engine.pump();
                match some(&mut engine, file, &parts, src.total(), flags)? {
                    Sent::All => Ok(src.total()),
                    Sent::Part(0) => Err(Errno::EAGAIN.into()),
                    Sent::Part(count) => Ok(count),
                    Sent::Failed(why) => Err(fail(why, flags)),
                }
            }
            _ => Ok(sent),
        };
    }
    drop(engine);
    rest(file, &parts, src.total(), sent, flags)
}

/// Sends what a blocking call has left, as there is room.
#[cold]
fn rest(
    file: &'static File,
    parts: &[&[u8]],
    total: usize,
    mut sent: usize,
    flags: i32,
) -> Outcome<usize> {
    let until = deadline(file.sndtimeo.load(Ordering::Relaxed));
    let mut pin = None;
    let partial = |sent: usize, why: Exit| if sent > 0 { Ok(sent) } else { Err(why) };
    loop {
        let waited = sleep::until(file, until, &mut pin, |engine| has_room(engine, file));
        if let Err(why) = waited {
            return partial(sent, why);
        }
        let mut engine = cells::lock(file)?;
        if sent > 0 && has_failed(&mut engine, file) {
            return Ok(sent); // the error is the next call's
        }
        let left = after(parts, sent);
        let taken = match some(&mut engine, file, &left, total - sent, flags) {
            Err(why) => return partial(sent, why),
            Ok(taken) => taken,
        };
        match taken {
            Sent::All => return Ok(total),
            Sent::Part(count) => sent += count,
            Sent::Failed(_) if sent > 0 => return Ok(sent),
            Sent::Failed(why) => {
                drop(engine);
                return Err(fail(why, flags));
            }
        }
    }
}

/// What follows the first `done` bytes.
fn after<'a>(parts: &[&'a [u8]], mut done: usize) -> Vec<&'a [u8]> {
    let rest = |part: &&'a [u8]| {
        let skip = done.min(part.len());
        done -= skip;
        part.get(skip..).filter(|rest| !rest.is_empty())
    };
    parts.iter().filter_map(rest).collect()
}

enum Sent {
    All,
    /// So many, perhaps none.
    Part(usize),
    Failed(Errno),
}

/// Hands the engine as much as it takes.
fn some(
    engine: &mut EngineGuard,
    file: &File,
    parts: &[&[u8]],
    total: usize,
    flags: i32,
) -> Outcome<Sent> {
    let now = engine.now();
    let socket = engine.socket(file)?;
    let Some(id) = socket.conn() else {
        return Ok(Sent::Failed(match core::mem::take(&mut socket.error) {
            0 => Errno::EPIPE,
            error => Errno(error),
        }));
    };
    let taken = if flags & libc::MSG_OOB != 0 {
        engine.stack.tcp_send_urgent(now, id, &parts.concat())
    } else {
        let more = flags & libc::MSG_MORE != 0;
        engine.stack.tcp_send(now, id, parts, more)
    };
    Ok(match taken {
        Ok(count) if count == total => Sent::All,
        Ok(count) => Sent::Part(count),
        Err(SendError::WouldBlock) => Sent::Part(0),
        Err(why) => Sent::Failed(errors::send(why)),
    })
}

fn has_room(engine: &mut Engine, file: &File) -> bool {
    match engine.socket(file).map(|s| s.state) {
        Ok(State::Connecting(id) | State::Connected(id)) => {
            engine.conn_bits(id) & (libc::POLLOUT | libc::POLLERR | libc::POLLHUP) as u32 != 0
        }
        _ => true,
    }
}

/// Whether an error waits to be reported.
fn has_failed(engine: &mut Engine, file: &File) -> bool {
    let conn = engine.socket(file).ok().and_then(|socket| socket.conn());
    conn.is_some_and(|id| engine.conn_bits(id) & libc::POLLERR as u32 != 0)
}

/// A send on a broken connection raises SIGPIPE unless it asked for none.
fn fail(why: Errno, flags: i32) -> Exit {
    if why == Errno::EPIPE && flags & libc::MSG_NOSIGNAL == 0 {
        signal::raise(libc::SIGPIPE);
    }
    why.into()
}

/// Bytes to read, for FIONREAD.
pub(crate) fn unread(engine: &mut EngineGuard, id: TcpId) -> usize {
    engine.pump();
    engine.stack.tcp_queues(id).map_or(0, |(unread, ..)| unread)
}
