//! splice(2) and sendfile(2) with a KCM socket at one end: the bytes pass through a buffer of ours.
//!
//! Which sends end a message follows kernel 6.5 and later (kcm-semantics §5.1): on SOCK_DGRAM the
//! last piece does, unless more was announced; on SOCK_SEQPACKET none does.

use kcm_mux::SocketType;
use rustix::fs::FileType;

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{File, Kind, lookup};
use crate::kcm::recv::SPLICED;
use crate::sys;
use crate::user_mem::{self, Iovecs, UserPtr};
use crate::{kcm, net};

/// Bytes moved at a time: the size of a pipe.
const PIECE_BYTES: usize = 64 << 10;

/// One splice(2). Native when neither end is ours.
pub(crate) fn splice(
    from: i32,
    from_at: UserPtr,
    to: i32,
    to_at: UserPtr,
    length: usize,
    flags: u32,
) -> Outcome<isize> {
    let kinds = |f: &&File| matches!(f.kind(), Kind::Kcm | Kind::Tcp | Kind::Inherited);
    let ours = |fd| lookup(fd).filter(kinds);
    let nonblocking = flags & libc::SPLICE_F_NONBLOCK != 0;
    net::inherited::hold_at(from);
    let stack = |fd| lookup(fd).filter(|f| f.kind() == Kind::Stack);
    if let Some(file) = stack(to) {
        return net::transfer::from_pipe(from, from_at, file, to, to_at, length, flags);
    }
    if let Some(file) = stack(from) {
        return net::transfer::to_pipe(file, from, from_at, to, to_at, length, flags);
    }
    match (ours(from), ours(to)) {
        (_, Some(file)) if file.kind() == Kind::Kcm => {
            check_ends(from, from_at, to_at, length)?;
            let more = flags & libc::SPLICE_F_MORE != 0;
            from_pipe(from, file, to, length, nonblocking, more)
        }
        (Some(file), _) => {
            if file.kind() != Kind::Kcm && crate::tcp::unread(file) == 0 {
                return Err(Exit::Native);
            }
            check_ends(to, to_at, from_at, length)?;
            to_pipe(file, from, to, length, nonblocking)
        }
        _ => Err(Exit::Native),
    }
}

/// The checks of splice(2) for a pipe at one end and a socket at the other: neither takes an
/// offset, and nothing to move is done at once.
fn check_ends(pipe: i32, pipe_at: UserPtr, socket_at: UserPtr, length: usize) -> Outcome<()> {
    let stat = rustix::fs::fstat(sys::borrow(pipe))?;
    if length == 0 {
        return Ok(());
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(Errno::EINVAL.into());
    }
    if !pipe_at.is_null() {
        return Err(Errno::ESPIPE.into());
    }
    if !socket_at.is_null() {
        return Err(Errno::EINVAL.into());
    }
    Ok(())
}

/// MSG_MORE for a piece that does not end its message.
fn piece_flags(file: &File, ends: bool) -> i32 {
    match file.socket_type() {
        SocketType::Dgram if !ends => libc::MSG_MORE,
        _ => 0,
    }
}

fn from_pipe(
    pipe: i32,
    file: &'static File,
    fd: i32,
    length: usize,
    nonblocking: bool,
    more: bool,
) -> Outcome<isize> {
    if length == 0 {
        return Ok(0);
    }
    if nonblocking && !sys::poll_one(pipe, libc::POLLIN) {
        return Err(Errno::EAGAIN.into());
    }
    let mut bytes = vec![0; length.min(PIECE_BYTES)];
    let count = rustix::io::read(sys::borrow(pipe), &mut bytes)?;
    if count > 0 {
        let flags = piece_flags(file, !more);
        kcm::send::send(file, fd, own(&mut bytes, count), flags)?;
    }
    Ok(count as isize)
}

fn to_pipe(
    file: &'static File,
    fd: i32,
    pipe: i32,
    length: usize,
    nonblocking: bool,
) -> Outcome<isize> {
    if length == 0 {
        return Ok(0);
    }
    if nonblocking && !sys::poll_one(pipe, libc::POLLOUT) {
        return Err(Errno::EAGAIN.into());
    }
    let mut bytes = vec![0; length.min(PIECE_BYTES)];
    let wait = if nonblocking { libc::MSG_DONTWAIT } else { 0 };
    let room = bytes.len();
    let got = crate::ops::recv(file, fd, own(&mut bytes, room), wait | SPLICED)?;
    let mut rest = bytes.get(..got.bytes).unwrap_or(&[]);
    while !rest.is_empty() {
        let n = rustix::io::write(sys::borrow(pipe), rest)?;
        rest = rest.get(n..).unwrap_or(&[]);
    }
    Ok(got.bytes as isize)
}

/// One sendfile(2). A file that ends early leaves the message open: more had been announced.
pub(crate) fn sendfile(to: i32, from: i32, at: UserPtr, length: usize) -> Outcome<isize> {
    if let Some(file) = lookup(to).filter(|f| f.kind() == Kind::Stack) {
        return net::transfer::sendfile(file, to, from, at, length);
    }
    if lookup(from).is_some_and(|f| matches!(f.kind(), Kind::Kcm | Kind::Stack)) {
        return Err(Errno::EINVAL.into());
    }
    let Some(file) = lookup(to).filter(|f| f.kind() == Kind::Kcm) else {
        return Err(Exit::Native);
    };
    let source = sys::borrow(from);
    let mut position = match at.is_null() {
        true => None,
        false => Some(user_mem::copy_in::<u64>(at)?),
    };
    let mut bytes = vec![0; length.min(PIECE_BYTES)];
    let mut sent = 0;
    while sent < length {
        let room = (length - sent).min(PIECE_BYTES);
        let piece = bytes.get_mut(..room).unwrap_or(&mut []);
        let read = match position {
            Some(at) => rustix::io::pread(source, &mut *piece, at),
            None => rustix::io::read(source, &mut *piece),
        };
        let count = match read {
            Ok(0) => break,
            Ok(count) => count,
            Err(_) if sent > 0 => break,
            Err(err) => return Err(err.into()),
        };
        let flags = piece_flags(file, sent + count == length);
        kcm::send::send(file, to, own(piece, count), flags)?;
        sent += count;
        position = position.map(|at| at + count as u64);
    }
    if let Some(position) = position {
        user_mem::copy_out(at, &position)?;
    }
    Ok(sent as isize)
}

/// A buffer of ours in the place of one of the program's.
fn own(bytes: &mut [u8], count: usize) -> Iovecs<'_> {
    Iovecs::one(UserPtr::new(bytes.as_mut_ptr().cast()), count)
}
