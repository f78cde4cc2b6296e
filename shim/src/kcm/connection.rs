//! One attached TCP socket: the descriptor it is read and written through, and what is known of it
//! without asking.

use std::collections::VecDeque;
use std::io::Read;

use kcm_mux::{Nanos, ReadResult, TxResult};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io::{self, IoSlice};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};

use super::connections::Few;
use crate::fd::File;
use crate::net::cells::Engines;
use crate::net::psock::Source;
use crate::{own, sys, tcp};

/// One attached TCP socket.
pub(crate) struct Connection {
    fd: ConnFd,
    /// The file behind the program's own descriptor, until the program closes it.
    pub(crate) file: Option<&'static File>,
    /// SO_COOKIE: names the socket whatever its number.
    pub(super) cookie: u64,
    /// There may be something to read; kept in step with the list of such connections.
    pub(super) readable: bool,
    /// A thread reads it without the lock of the mux: nobody else may, and its descriptor stays.
    pub(super) being_read: bool,
    /// Somebody waits for the end of such a read.
    pub(super) claimed: bool,
    /// Something was heard of it during that read, which may not have seen it.
    pub(super) heard: bool,
    /// The stream has ended or failed; reading shows how, once the data is drained.
    pub(super) hup: bool,
    /// The peer's FIN came before the attach: its end is no news (no state change to report).
    pub(super) half_closed: bool,
    /// Bytes of the stream that an earlier attach took from the socket and did not consume: read
    /// before the socket is.
    pub(super) unread: VecDeque<u8>,
    /// SO_RCVBUF of a stack connection that processes share, as the process with the engine has told.
    pub(crate) told_rcvbuf: Option<u32>,
}

/// The descriptor a connection is read and written through.
enum ConnFd {
    /// The program's own, while it has it open.
    Lent(i32),
    /// Ours, since the program closed its own.
    Kept(own::Kept),
    /// None: the connection is the stack's in this process, and this tells of it.
    Stack(Source),
}

impl Connection {
    /// The connection behind the program's number `fd`.
    pub(crate) fn new(fd: i32, file: &'static File, cookie: u64) -> Self {
        Self::over(ConnFd::Lent(fd), Some(file), cookie)
    }

    /// A connection whose descriptor came from another process.
    pub(crate) fn apart(fd: own::Kept, cookie: u64) -> Self {
        Self::over(ConnFd::Kept(fd), None, cookie)
    }

    /// The stack connection `source` of `file`.
    pub(crate) fn on_stack(source: Source, file: &'static File, cookie: u64) -> Self {
        Self::over(ConnFd::Stack(source), Some(file), cookie)
    }

    /// The engine it lives in, if it is on the stack.
    pub(crate) fn engines(&self) -> Engines {
        self.source().map_or(Engines::NONE, Source::engines)
    }

    /// The stack connection it is, if it is one.
    pub(crate) fn source(&self) -> Option<&Source> {
        match &self.fd {
            ConnFd::Stack(source) => Some(source),
            ConnFd::Lent(_) | ConnFd::Kept(_) => None,
        }
    }

    fn over(fd: ConnFd, file: Option<&'static File>, cookie: u64) -> Self {
        Self {
            fd,
            file,
            cookie,
            readable: false,
            being_read: false,
            claimed: false,
            heard: false,
            hup: false,
            half_closed: false,
            unread: VecDeque::new(),
            told_rcvbuf: None,
        }
    }

    /// What is watched for input, and of a kernel socket for room too.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            ConnFd::Lent(fd) => sys::borrow(*fd),
            ConnFd::Kept(fd) => fd.as_fd(),
            ConnFd::Stack(source) => source.fd(),
        }
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        match &self.fd {
            ConnFd::Lent(fd) => *fd,
            ConnFd::Kept(fd) => sys::number(fd),
            ConnFd::Stack(source) => source.fd().as_raw_fd(),
        }
    }

    /// The program closes the number it lent: from now on the connection lives on one of ours.
    pub(crate) fn keep(&mut self) -> io::Result<()> {
        if let ConnFd::Lent(fd) = self.fd {
            self.fd = ConnFd::Kept(own::copy(sys::borrow(fd))?);
        }
        Ok(())
    }

    /// The number it lent stays open, and is ours from now on.
    pub(crate) fn keep_number(&mut self) {
        if let ConnFd::Lent(fd) = self.fd {
            self.fd = ConnFd::Kept(own::keep_raised(sys::take(fd)));
        }
    }

    /// SO_RCVBUF: the longest message its psock accepts.
    pub(crate) fn rcvbuf(&self) -> u32 {
        match &self.fd {
            ConnFd::Stack(source) => source.rcvbuf(),
            ConnFd::Lent(_) | ConnFd::Kept(_) => {
                self.told_rcvbuf.unwrap_or_else(|| rcvbuf(self.fd()))
            }
        }
    }

    /// SO_RCVTIMEO: how long a message may take to arrive.
    pub(crate) fn rcvtimeo(&self) -> Option<Nanos> {
        match &self.fd {
            ConnFd::Stack(source) => source.rcvtimeo(),
            ConnFd::Lent(_) | ConnFd::Kept(_) => tcp::rcvtimeo(self.fd()),
        }
    }

    /// Bytes that TCP holds to be read, and to be sent.
    pub(crate) fn queues(&self) -> (u32, u32) {
        match &self.fd {
            ConnFd::Stack(source) => {
                let (unread, unsent) = source.queues();
                (unread as u32, unsent as u32)
            }
            ConnFd::Lent(_) | ConnFd::Kept(_) => {
                (sys::unread_bytes(self.fd()), sys::unsent_bytes(self.fd()))
            }
        }
    }

    /// Writes `parts` without waiting and without SIGPIPE. A short count means that TCP is full.
    pub(super) fn send<'a>(&self, parts: impl Iterator<Item = &'a [u8]>) -> TxResult {
        match &self.fd {
            ConnFd::Stack(source) => source.send(&parts.collect::<Few<_>>()),
            ConnFd::Lent(_) | ConnFd::Kept(_) => send_parts(self.fd(), parts),
        }
    }

    /// One read of a stack connection; see [`recv`](Self::recv).
    fn recv_on_stack(&mut self, buf: &mut [u8], wants_write: bool) -> Option<ReadResult> {
        let (read, more) = self.source()?.recv(buf, wants_write);
        self.readable = more;
        Some(match read {
            ReadResult::Eof if self.half_closed => {
                self.readable = false;
                ReadResult::WouldBlock
            }
            read => read,
        })
    }

    /// One recv(2) into `buf` without waiting. Afterwards `readable` says whether another may find
    /// more. `wants_write`: somebody waits for room to send, too.
    pub(super) fn recv(&mut self, buf: &mut [u8], wants_write: bool) -> ReadResult {
        let room = buf.len();
        if !self.unread.is_empty() {
            let n = self.unread.read(buf).unwrap_or(0);
            return ReadResult::Bytes(n);
        }
        if let Some(read) = self.recv_on_stack(buf, wants_write) {
            return read;
        }
        let read = read_now(self.fd(), buf);
        self.take_in(read, room)
    }

    /// What a read of `room` bytes says of the connection.
    pub(super) fn take_in(&mut self, read: ReadResult, room: usize) -> ReadResult {
        // A short read drains the socket; what comes later is reported anew.
        self.readable = matches!(read, ReadResult::Bytes(n) if self.hup || n == room);
        match read {
            ReadResult::Eof if self.half_closed => ReadResult::WouldBlock,
            read => read,
        }
    }
}

/// One recv(2) into `buf` without waiting.
pub(super) fn read_now(fd: BorrowedFd<'_>, buf: &mut [u8]) -> ReadResult {
    loop {
        return match rustix::net::recv(fd, &mut *buf, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => ReadResult::Eof,
            Ok((_, n)) => ReadResult::Bytes(n),
            Err(io::Errno::INTR) => continue,
            Err(io::Errno::AGAIN) => ReadResult::WouldBlock,
            Err(err) => ReadResult::Failed(err.raw_os_error()),
        };
    }
}

/// SO_RCVBUF of a TCP socket: the longest message its psock accepts.
pub(crate) fn rcvbuf(fd: BorrowedFd<'_>) -> u32 {
    sockopt::socket_recv_buffer_size(fd)
        .unwrap_or(0)
        .min(u32::MAX as usize) as u32
}

/// Writes `parts` without waiting and without SIGPIPE. A short count means that the socket is full.
fn send_parts<'a>(fd: BorrowedFd<'_>, mut parts: impl Iterator<Item = &'a [u8]>) -> TxResult {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let Some(first) = parts.next() else {
        return TxResult::Sent(0);
    };
    let rest: Vec<IoSlice<'_>> = parts.map(IoSlice::new).collect();
    loop {
        let sent = if rest.is_empty() {
            rustix::net::send(fd, first, flags)
        } else {
            let all: Vec<_> = [IoSlice::new(first)]
                .into_iter()
                .chain(rest.iter().copied())
                .collect();
            rustix::net::sendmsg(fd, &all, &mut SendAncillaryBuffer::default(), flags)
        };
        return match sent {
            Ok(n) => TxResult::Sent(n),
            Err(io::Errno::INTR) => continue,
            Err(io::Errno::AGAIN) => TxResult::Sent(0),
            // AF_UNIX does not say why, as TCP does.
            Err(io::Errno::PIPE) => match sockopt::socket_error(fd) {
                Ok(Err(why)) => TxResult::Failed(why.raw_os_error()),
                _ => TxResult::Failed(libc::EPIPE),
            },
            Err(err) => TxResult::Failed(err.raw_os_error()),
        };
    }
}
