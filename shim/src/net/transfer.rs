//! sendfile(2) and splice(2) with a stack connection at one end. The bytes pass through a buffer of
//! ours; what the other side does not take stays where it was.

use rustix::fd::BorrowedFd;
use rustix::fs::FileType;
use rustix::io::{self, ReadWriteFlags};
use rustix::net::RecvFlags;

use super::cells;
use super::socket::waits;
use super::{sleep, stream};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::sys;
use crate::user_mem::{self, Iovecs, UserPtr};

/// Bytes moved at a time: the size of a pipe.
const PIECE_BYTES: usize = 64 << 10;
/// What a pipe that is ready to be written takes for certain.
const PIPE_BUF: usize = 4096;

/// A buffer of ours in the place of one of the program's.
fn own(bytes: &[u8]) -> Iovecs<'_> {
    Iovecs::one(UserPtr::new(bytes.as_ptr().cast_mut().cast()), bytes.len())
}

/// sendfile(2) to a connection. `at` is where the program keeps the position, null for the file's own.
pub(crate) fn sendfile(
    file: &'static File,
    fd: i32,
    from: i32,
    at: UserPtr,
    length: usize,
) -> Outcome<isize> {
    let source = sys::borrow(from);
    let start = match at.is_null() {
        true => io_position(source)?,
        false => user_mem::copy_in::<u64>(at)?,
    };
    let mut bytes: Vec<u8> = Vec::with_capacity(length.min(PIECE_BYTES));
    let mut sent = 0;
    let mut failed = None;
    while sent < length {
        bytes.clear();
        let room = (length - sent).min(PIECE_BYTES);
        bytes.resize(room, 0);
        let count = match io::pread(source, &mut bytes[..], start + sent as u64) {
            Ok(count) => count,
            Err(err) => {
                failed = Some(err.into());
                break;
            }
        };
        if count == 0 {
            break;
        }
        let more = if sent + count < length {
            libc::MSG_MORE
        } else {
            0
        };
        let piece = bytes.get(..count).unwrap_or_default();
        match stream::send(file, fd, own(piece), more) {
            Ok(taken) => {
                sent += taken;
                if taken < count {
                    break;
                }
            }
            Err(why) => {
                failed = Some(why);
                break;
            }
        }
    }
    if let Some(why) = failed.filter(|_| sent == 0) {
        return Err(why);
    }
    let end = start + sent as u64;
    match at.is_null() {
        true => drop(rustix::fs::seek(source, rustix::fs::SeekFrom::Start(end))),
        false => user_mem::copy_out(at, &end)?,
    }
    Ok(sent as isize)
}

/// Where the next read of a file starts; a pipe has no such place (EINVAL, sendfile(2)).
fn io_position(file: BorrowedFd<'_>) -> Outcome<u64> {
    rustix::fs::tell(file).map_err(|_| Errno::EINVAL.into())
}

/// The checks of splice(2) for a pipe at one end and a socket at the other.
fn check_ends(pipe: i32, pipe_at: UserPtr, socket_at: UserPtr) -> Outcome<()> {
    let stat = rustix::fs::fstat(sys::borrow(pipe))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(Errno::EINVAL.into());
    }
    if !pipe_at.is_null() || !socket_at.is_null() {
        return Err(Errno::ESPIPE.into());
    }
    Ok(())
}

/// splice(2) from a pipe to a connection.
pub(crate) fn from_pipe(
    pipe: i32,
    pipe_at: UserPtr,
    file: &'static File,
    fd: i32,
    at: UserPtr,
    length: usize,
    flags: u32,
) -> Outcome<isize> {
    check_ends(pipe, pipe_at, at)?;
    if length == 0 {
        return Ok(0);
    }
    if flags & libc::SPLICE_F_NONBLOCK != 0 && !sys::poll_one(pipe, libc::POLLIN) {
        return Err(Errno::EAGAIN.into());
    }
    let wait = match flags & libc::SPLICE_F_NONBLOCK {
        0 => 0,
        _ => libc::MSG_DONTWAIT,
    };
    let room = await_room(file, waits(file, fd, wait))?;
    let mut bytes = vec![0; length.min(room).min(PIECE_BYTES)];
    let count = io::read(sys::borrow(pipe), &mut bytes)?;
    let more = if flags & libc::SPLICE_F_MORE != 0 {
        libc::MSG_MORE
    } else {
        0
    };
    let mut sent = 0;
    while sent < count {
        // There was room; if another thread took it, these bytes have to wait all the same.
        let rest = bytes.get(sent..count).unwrap_or_default();
        match stream::send(file, fd, own(rest), more) {
            Ok(taken) => sent += taken,
            Err(Exit::Failed(Errno::EAGAIN)) => drop(await_room(file, true)?),
            // Shared with another process meanwhile.
            Err(Exit::Native) => sent += io::write(sys::borrow(fd), rest)?,
            Err(why) => return Err(why),
        }
    }
    Ok(count as isize)
}

/// Bytes that the connection takes, at least one.
fn await_room(file: &'static File, waits: bool) -> Outcome<usize> {
    let mut pin = None;
    loop {
        let mut engine = cells::lock(file)?;
        engine.pump();
        let id = engine.socket(file)?.conn().ok_or(Errno::ENOTCONN)?;
        let room = engine.stack.tcp_send_room(id);
        if room > 0 || !engine.stack.tcp_may_send(id) {
            return Ok(room.max(1));
        }
        // Asking for readiness asks for the event too.
        let _ = engine.conn_bits(id);
        drop(engine);
        if !waits {
            return Err(Errno::EAGAIN.into());
        }
        sleep::until(file, None, &mut pin, |engine| {
            engine.conn_bits(id) & super::ready::OUT != 0
        })?;
    }
}

/// splice(2) from a connection to a pipe: what the pipe does not take stays in the connection.
/// SPLICE_F_NONBLOCK is about the pipe alone, as in the kernel.
pub(crate) fn to_pipe(
    file: &'static File,
    fd: i32,
    at: UserPtr,
    pipe: i32,
    pipe_at: UserPtr,
    length: usize,
    flags: u32,
) -> Outcome<isize> {
    check_ends(pipe, pipe_at, at)?;
    if length == 0 {
        return Ok(0);
    }
    let nonblocking = flags & libc::SPLICE_F_NONBLOCK != 0;
    if nonblocking && !sys::poll_one(pipe, libc::POLLOUT) {
        return Err(Errno::EAGAIN.into());
    }
    let mut bytes = vec![0; length.min(PIECE_BYTES)];
    let got = stream::recv(file, fd, own(&bytes), libc::MSG_PEEK)?;
    let peeked = bytes.get_mut(..got.bytes).unwrap_or_default();
    let written = write_to_pipe(sys::borrow(pipe), peeked, nonblocking)?;
    let peeked = peeked.get_mut(..written).unwrap_or_default();
    match stream::recv(file, fd, own(peeked), 0) {
        Ok(taken) => Ok(taken.bytes as isize),
        // Shared with another process meanwhile.
        Err(Exit::Native) => {
            let (_, taken) = rustix::net::recv(sys::borrow(fd), peeked, RecvFlags::WAITALL)?;
            Ok(taken as isize)
        }
        Err(why) => Err(why),
    }
}

/// Writes as much as fits; waits for the first byte's room unless told not to.
fn write_to_pipe(pipe: BorrowedFd<'_>, bytes: &[u8], nonblocking: bool) -> Outcome<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    let parts = [io::IoSlice::new(bytes)];
    match io::pwritev2(pipe, &parts, u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(count) => return Ok(count),
        Err(io::Errno::AGAIN) if nonblocking => return Err(Errno::EAGAIN.into()),
        Err(io::Errno::AGAIN | io::Errno::OPNOTSUPP | io::Errno::INVAL) => {}
        Err(err) => return Err(err.into()),
    }
    let few = bytes.get(..bytes.len().min(PIPE_BUF)).unwrap_or_default();
    Ok(io::write(pipe, few)?)
}
