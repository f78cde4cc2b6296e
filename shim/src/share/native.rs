//! Receiving from a shared socket: the kernel's queue holds whole KCM messages.

use core::sync::atomic::Ordering;

use kcm_mux::SocketType;

use super::remote;
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::fd::file::Link;
use crate::interpose::message::native_recv;
use crate::kcm::recv::Received;
use crate::sys;
use crate::user_mem::Iovecs;

/// Most a receive asks for: longer than any message the kernel's queue can hold.
const ROOM_MAX: usize = 64 << 20;

/// recvmsg(2) and its kin on the shared socket `fd`. Blocks in the kernel: waking one reader per
/// message, SO_RCVTIMEO, SA_RESTART and cancellation are as for any socket.
pub(crate) fn recv(file: &'static File, fd: i32, dst: Iovecs<'_>, flags: i32) -> Outcome<Received> {
    if file.link() == Link::Remote {
        remote::hold(file, fd);
    }
    let peek = flags & libc::MSG_PEEK;
    let mut bytes = Vec::with_capacity(dst.total().clamp(1, ROOM_MAX));
    let wait = flags & libc::MSG_DONTWAIT;
    let now = peek | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    let mut got = native_recv(fd, &mut bytes, now);
    if got == Err(Errno::EAGAIN) && file.link() == Link::Shared {
        file.mux()?.lock()?.pump();
        got = native_recv(fd, &mut bytes, now);
    }
    if got == Err(Errno::EAGAIN) && wait == 0 && !sys::is_nonblocking(fd) {
        got = native_recv(fd, &mut bytes, peek | libc::MSG_TRUNC);
    }
    let length = match got {
        Err(Errno(libc::ECONNRESET)) => 0, // the owner was killed
        got => got.map_err(Exit::Failed)?,
    };
    if length == 0 {
        return Ok(Received { bytes: 0, flags: 0 });
    }
    if peek == 0
        && let Some(taken) = file.taken.get()
    {
        taken.fetch_add(1, Ordering::Release);
    }
    let count = bytes.len().min(dst.total());
    dst.scatter(core::iter::once(bytes.as_slice()), count)?;
    let seqpacket = file.socket_type() == SocketType::Seqpacket;
    let flags = match (length == count, seqpacket) {
        _ if peek != 0 => 0,
        (true, _) => libc::MSG_EOR,
        (false, true) => 0,
        (false, false) => libc::MSG_EOR | libc::MSG_TRUNC,
    };
    Ok(Received {
        bytes: count,
        flags,
    })
}

/// Poll bits of a shared socket: OUT always, as of any KCM socket; IN for a message, or once the
/// owner is gone.
pub(crate) fn bits(file: &'static File, fd: i32) -> u32 {
    if file.link() == Link::Remote {
        remote::hold(file, fd);
    }
    let input = libc::POLLIN | libc::POLLRDNORM;
    let mut seen = sys::poll_bits(fd, input);
    if seen == 0
        && file.link() == Link::Shared
        && let Some(cell) = file.cell.get()
        && let Ok(mut engine) = cell.lock()
    {
        engine.pump();
        drop(engine);
        seen = sys::poll_bits(fd, input);
    }
    let output = libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND;
    (if seen != 0 { input | output } else { output }) as u32
}
