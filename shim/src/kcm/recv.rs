//! Receiving on a KCM socket: one message a call (kcm-semantics §8).

use kcm_mux::{Message, RxBatch, SocketType};

use super::{MuxCell, socket};
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::fd::file::Link;
use crate::share::native;
use crate::sync::{Guard, RawBiased};
use crate::user_mem::Iovecs;
use crate::{heap, sys, wait};

/// What one receive call hands to the program.
#[derive(Clone, Copy)]
pub(crate) struct Received {
    pub(crate) bytes: usize,
    /// msg_flags.
    pub(crate) flags: i32,
}

/// A private flag: the message leaves by splice, which the kernel does not count in RX-Msgs
/// (kcm-semantics §12). No MSG_* flag has this bit.
pub(crate) const SPLICED: i32 = 1 << 28;

type Rx = Guard<'static, RawBiased, RxBatch>;

/// recvmsg(2) and its kin on the socket `fd`; `dst` is where the program wants the bytes.
#[inline(always)]
pub(crate) fn recv(file: &'static File, fd: i32, dst: Iovecs<'_>, flags: i32) -> Outcome<Received> {
    let mut rx = file.rx.lock()?;
    if rx.is_empty() {
        return recv_awaited(file, fd, rx, dst, flags);
    }
    deliver(file, &mut rx, dst, flags)
}

#[cold]
fn recv_awaited(
    file: &'static File,
    fd: i32,
    rx: Rx,
    dst: Iovecs<'_>,
    flags: i32,
) -> Outcome<Received> {
    let mut pin = None; // let go of after the lock
    match await_message(file, fd, rx, flags, &mut pin)? {
        Some(mut rx) => deliver(file, &mut rx, dst, flags),
        None => native::recv(file, fd, dst, flags),
    }
}

/// Where the messages of one recvmmsg(2) go.
pub(crate) trait Destinations {
    /// The buffers of an entry, and whether it has room for an address.
    fn get<'a>(&self, index: usize) -> Outcome<(bool, Iovecs<'a>)>;

    /// An entry, with room for an address or not, got its message.
    fn finish(&self, index: usize, named: bool, got: Received) -> Outcome<()>;
}

/// recvmmsg(2): up to `count` messages in one go. `until` is the deadline, looked at between messages
/// as the kernel does.
pub(crate) fn recv_many(
    file: &'static File,
    fd: i32,
    count: usize,
    mut flags: i32,
    until: Option<u64>,
    into: impl Destinations,
) -> Outcome<usize> {
    let mut done = 0;
    while done < count {
        match recv_present(file, count, flags, until, &into, &mut done) {
            Ok(()) => {}
            Err(_) if done > 0 => break,
            Err(err) => return Err(err),
        }
        if done == count || (done > 0 && is_past(until)) {
            break;
        }
        if done > 0 && flags & libc::MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT;
        }
        let awaited = into.get(done).and_then(|(named, dst)| {
            let got = recv(file, fd, dst, flags)?;
            into.finish(done, named, got)
        });
        match awaited {
            Ok(()) => done += 1,
            Err(_) if done > 0 => break,
            Err(err) => return Err(err),
        }
        if is_past(until) {
            break;
        }
    }
    Ok(done)
}

/// The part of [`recv_many`] that needs no waiting: what the batch holds, under one lock.
#[inline(always)]
fn recv_present(
    file: &'static File,
    count: usize,
    flags: i32,
    until: Option<u64>,
    into: &impl Destinations,
    done: &mut usize,
) -> Outcome<()> {
    let mut rx = file.rx.lock()?;
    let mut index = *done;
    let end = loop {
        if index == count || rx.is_empty() {
            break Ok(());
        }
        let one = into.get(index).and_then(|(named, dst)| {
            let got = deliver(file, &mut rx, dst, flags)?;
            into.finish(index, named, got)
        });
        if one.is_err() {
            break one;
        }
        index += 1;
        if is_past(until) {
            break Ok(());
        }
    };
    *done = index;
    end
}

#[inline(always)]
fn is_past(until: Option<u64>) -> bool {
    until.is_some_and(|at| at <= sys::now())
}

/// Fills the empty batch of `file`: from the mux, from its connections, or by sleeping until a
/// message is there. The lock of the batch is not held during the sleep. `None` when the messages
/// are in the kernel's queue, since other processes use the socket too.
#[cold]
fn await_message(
    file: &'static File,
    fd: i32,
    mut rx: Rx,
    flags: i32,
    pin: &mut Option<wait::Pin>,
) -> Outcome<Option<Rx>> {
    let waits = flags & libc::MSG_DONTWAIT == 0 && !file.is_nonblocking(fd);
    let mut until = None;
    let mut asleep_before = false;
    loop {
        if file.link() >= Link::Shared {
            return Ok(None);
        }
        let cell = file.mux()?;
        if fill(file, cell, &mut rx, waits)? {
            return Ok(Some(rx));
        }
        drop(rx);
        if !asleep_before {
            if !waits {
                return Err(Errno::EAGAIN.into());
            }
            until = deadline(file.rcvtimeo.load(core::sync::atomic::Ordering::Relaxed));
            asleep_before = true;
        }
        let id = file.kcm_id();
        wait::sleep(file, until, pin, |engine| {
            engine.mux.rx_len(id) != 0 || file.link() >= Link::Shared
        })?;
        rx = file.rx.lock()?;
        if !rx.is_empty() {
            return Ok(Some(rx)); // another thread refilled the batch meanwhile
        }
    }
}

/// Moves what the mux has for this socket into the batch, reading the connections if need be.
///
/// A caller that goes on to wait reads only what is known to have something: its sleep tells of the
/// rest at once. Another has to try.
fn fill(file: &'static File, cell: &'static MuxCell, rx: &mut Rx, waits: bool) -> Outcome<bool> {
    let mut engine = socket::checked(file, cell)?;
    let id = file.kcm_id();
    if engine.mux.refill(id, rx) {
        return Ok(true);
    }
    if engine.mux.kcms().nth(1).is_some() {
        engine = engine.pump_apart(waits)?;
    } else if waits {
        engine.pump_known();
    } else {
        engine.pump();
    }
    if engine.mux.refill(id, rx) {
        return Ok(true);
    }
    heap::check_room().map(|()| false) // without, nothing more can be read
}

/// A timeout of 0 nanoseconds means none.
pub(crate) fn deadline(timeout: u64) -> Option<u64> {
    (timeout != 0).then(|| sys::now().saturating_add(timeout))
}

/// Hands the first message of the batch to the program.
#[inline(always)]
fn deliver(file: &File, rx: &mut RxBatch, dst: Iovecs<'_>, flags: i32) -> Outcome<Received> {
    let Some(message) = rx.front() else {
        return Err(Errno::EAGAIN.into());
    };
    let length = message.len();
    let bytes = length.min(dst.total());
    let copied = copy(&message, dst, bytes);
    if flags & libc::MSG_PEEK != 0 {
        copied?;
        return Ok(Received { bytes, flags: 0 });
    }
    let whole = bytes == length;
    let seqpacket = file.socket_type() == SocketType::Seqpacket;
    if let Err(err) = copied {
        rx.consume(0, false); // the kernel drops the message too (kcm-semantics §8)
        return Err(err);
    }
    rx.consume(bytes, (whole || !seqpacket) && flags & SPLICED == 0);
    let flags = match (whole, seqpacket) {
        (true, _) => libc::MSG_EOR,
        (false, true) => 0,
        (false, false) => libc::MSG_EOR | libc::MSG_TRUNC,
    };
    Ok(Received { bytes, flags })
}

#[inline(always)]
fn copy(message: &Message<'_>, dst: Iovecs<'_>, bytes: usize) -> Outcome<()> {
    match message.contiguous() {
        Some(all) => Ok(dst.scatter(core::iter::once(all), bytes)?),
        None => Ok(dst.scatter(message.parts(), bytes)?),
    }
}
