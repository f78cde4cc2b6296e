//! Receiving from a shared socket: the kernel's queue holds whole KCM messages.

use core::sync::atomic::Ordering;

use kcm_mux::SocketType;
use rustix::fd::{AsRawFd, BorrowedFd};

use super::line::WHOLE_MAX;
use super::{parcel, remote};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::fd::file::Link;
use crate::interpose::message::{Natively, native_recv};
use crate::kcm::recv::Received;
use crate::sys;
use crate::user_mem::Iovecs;

/// Most a receive asks for: longer than most messages. What is longer is cut off.
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
    if matches!(got, Err(Errno::EAGAIN)) && file.link() == Link::Shared {
        file.mux()?.lock()?.pump();
        got = native_recv(fd, &mut bytes, now);
    }
    if matches!(got, Err(Errno::EAGAIN)) && wait == 0 && !sys::is_nonblocking(fd) {
        got = native_recv(fd, &mut bytes, peek | libc::MSG_TRUNC);
    }
    let length = match got {
        Err(Errno(libc::ECONNRESET)) => 0, // the owner was killed
        got => whole(got.map_err(Exit::Failed)?, &mut bytes)?,
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

/// The next message of the kernel's queue, whatever its length.
pub(super) fn take_whole(fd: BorrowedFd<'_>) -> Option<Box<[u8]>> {
    let mut bytes = Vec::with_capacity(WHOLE_MAX);
    let got = native_recv(fd.as_raw_fd(), &mut bytes, libc::MSG_DONTWAIT).ok()?;
    match got.passed {
        Some(file) => parcel::open(file).ok().map(Vec::into_boxed_slice),
        None => (got.length != 0).then(|| bytes.as_slice().into()),
    }
}

/// The message that was received, and its length. A long one came as a file, with its first bytes for
/// those who do not know.
fn whole(got: Natively, bytes: &mut Vec<u8>) -> Outcome<usize> {
    if got.lost {
        return Err(Errno::EMFILE.into());
    }
    match got.passed {
        Some(file) => parcel::open_into(&file, bytes),
        None => Ok(got.length),
    }
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
