//! The owner's end of a tied socket, and the traffic over it. Lives behind the lock of its mux.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::VecDeque;

use kcm_mux::{KcmId, RxBatch, SendFlags as MuxFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{self, IoSlice};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sockopt};

use super::ledger::{self, Counter};
use super::{native, parcel};
use crate::kcm::Engine;
use crate::{housekeeper, log, own, sys};

/// The owner's end of one tied socket.
pub(crate) struct Line {
    end: own::Kept,
    /// SO_COOKIE of the socket at the other end, by which its holders prove that they hold it.
    pub(super) cookie: u64,
    /// The kernel's queue is the socket's receive queue.
    pub(crate) shared: bool,
    /// Taken out of the mux, waiting for room in the kernel's queue.
    pub(crate) rx: RxBatch,
    /// Messages in the kernel's queue that nobody is known to have taken.
    queued: VecDeque<Box<[u8]>>,
    /// Counts messages taken by those who know how.
    taken: &'static AtomicU32,
    taken_seen: u32,
    pub(super) counter: Counter,
    /// Copies given away that may be with a process which does not count what it takes.
    pub(super) strangers: u32,
    /// The kernel's queue is full: the housekeeper waits for room.
    pub(crate) full: bool,
}

/// Messages known as queued beyond which the kernel is asked whether they really are: a process
/// that was killed between taking and counting leaves one behind.
const DOUBT_AT: usize = 256;

/// Messages kept for a socket that a stranger may read from: more than the kernel queues by default.
const QUEUED_MAX: usize = 1024;

/// A longer message is not offered to the kernel's queue as it is, but as a file with the first
/// [`START_BYTES`] of it: the kernel wants much of it in one piece, and has no such pieces of megabytes.
pub(super) const WHOLE_MAX: usize = 512 << 10;
/// What a holder that knows nothing of files gets to see of such a message.
const START_BYTES: usize = 64 << 10;

/// A counter and its value.
type Lent = (Counter, &'static AtomicU32);

/// What became of a message offered to the kernel's queue.
enum Offered {
    Queued,
    Full,
    /// Nobody is there to take it.
    Gone,
}

impl Drop for Line {
    fn drop(&mut self) {
        ledger::give_back(self.counter);
    }
}

impl Line {
    pub(super) fn new(end: OwnedFd, cookie: u64, (counter, taken): Lent) -> Self {
        Self {
            end: own::keep(end),
            cookie,
            shared: false,
            rx: RxBatch::empty(),
            queued: VecDeque::new(),
            taken,
            taken_seen: taken.load(Ordering::Relaxed),
            counter,
            strangers: 0,
            full: false,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Whether no process holds a copy of the socket any more.
    pub(crate) fn is_gone(&self) -> bool {
        sys::poll_bits(sys::number(&self.end), 0) & libc::POLLHUP != 0
    }

    /// Forgets the messages that were taken meanwhile.
    fn settle(&mut self) {
        let now = self.taken.load(Ordering::Acquire);
        let count = now.wrapping_sub(self.taken_seen) as usize;
        self.taken_seen = now;
        self.queued.drain(..count.min(self.queued.len()));
        let doubtful = self.strangers != 0 || self.queued.len() > DOUBT_AT;
        if doubtful && sys::unsent_bytes(self.fd()) == 0 {
            self.queued.clear();
        }
    }

    /// Messages in the kernel's queue that died with it.
    pub(super) fn untaken(&mut self) -> VecDeque<Box<[u8]>> {
        self.settle();
        if self.strangers != 0 && !self.queued.is_empty() {
            log::warn("messages queued on a socket that its last holder closed may be lost");
            self.queued.clear();
        }
        core::mem::take(&mut self.queued)
    }

    fn offer<'a>(&mut self, len: usize, parts: impl Iterator<Item = &'a [u8]>) -> Offered {
        let parts: Vec<&[u8]> = parts.collect();
        let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut sent = if len <= WHOLE_MAX {
            self.send(&slices, &[])
        } else {
            Err(io::Errno::MSGSIZE)
        };
        if sent == Err(io::Errno::MSGSIZE) && len <= WHOLE_MAX {
            let wanted = len.saturating_mul(2);
            if sockopt::set_socket_send_buffer_size_force(&self.end, wanted).is_err() {
                let _ = sockopt::set_socket_send_buffer_size(&self.end, wanted);
            }
            sent = self.send(&slices, &[]);
        }
        if sent == Err(io::Errno::MSGSIZE) {
            let Ok(file) = parcel::post_parts(parts.iter().copied()) else {
                return Offered::Full; // no memory now
            };
            let start: Vec<u8> = parts
                .iter()
                .copied()
                .flatten()
                .copied()
                .take(START_BYTES)
                .collect();
            sent = self.send(&[IoSlice::new(&start)], &[file.as_fd()]);
        }
        match sent {
            Ok(()) => {
                self.queued.push_back(parts.concat().into_boxed_slice());
                if self.strangers != 0 && self.queued.len() > QUEUED_MAX {
                    self.queued.pop_front();
                }
                Offered::Queued
            }
            Err(io::Errno::AGAIN | io::Errno::NOBUFS | io::Errno::TOOMANYREFS) => Offered::Full,
            Err(_) => Offered::Gone,
        }
    }

    /// One message through the line, and a descriptor.
    fn send(&self, slices: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match rustix::net::sendmsg(&self.end, slices, &mut control, flags) {
                Err(io::Errno::INTR) => {}
                sent => return sent.map(drop),
            }
        }
    }

    /// The next message sent through the socket, into `buf`.
    fn take_sent(&self, buf: &mut Vec<u8>) -> Option<usize> {
        loop {
            let len = sys::unread_bytes(self.fd()) as usize;
            if buf.len() < len.max(1) {
                buf.resize(len.max(1), 0);
            }
            match rustix::net::recv(&self.end, buf.as_mut_slice(), RecvFlags::DONTWAIT) {
                // An empty message, or the end: told by what lies behind it.
                Ok((_, 0)) if sys::unread_bytes(self.fd()) == 0 && self.is_gone() => return None,
                Ok((_, 0)) | Err(io::Errno::INTR) => {}
                Ok((_, n)) => return Some(n),
                Err(_) => return None,
            }
        }
    }
}

/// The lines of one mux by KCM socket.
#[derive(Default)]
pub(crate) struct Lines {
    slots: Vec<Option<Box<Line>>>,
    /// Messages whose socket died before they were taken: for the next shared socket.
    pub(super) adrift: VecDeque<Box<[u8]>>,
    /// What was sent through a line, on its way to the mux.
    buf: Vec<u8>,
}

impl Lines {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether messages wait for a socket that receives.
    pub(crate) fn any_adrift(&self) -> bool {
        !self.adrift.is_empty()
    }

    pub(crate) fn get(&self, id: KcmId) -> Option<&Line> {
        self.slots.get(id.0 as usize)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, id: KcmId) -> Option<&mut Line> {
        self.slots.get_mut(id.0 as usize)?.as_deref_mut()
    }

    pub(super) fn take(&mut self, id: KcmId) -> Option<Box<Line>> {
        self.slots.get_mut(id.0 as usize)?.take()
    }

    pub(super) fn put(&mut self, id: KcmId, line: Box<Line>) {
        let at = id.0 as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = Some(line);
        }
    }

    /// Lines by KCM socket.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (KcmId, &Line)> {
        let lines = self.slots.iter().enumerate();
        lines.filter_map(|(at, line)| Some((KcmId(at as u32), line.as_deref()?)))
    }

    pub(super) fn ids(&self) -> Vec<KcmId> {
        self.iter().map(|(id, _)| id).collect()
    }
}

impl Engine {
    /// Moves messages of a shared socket from the mux to the kernel's queue, as far as it has room.
    pub(crate) fn push(&mut self, cell: u32, id: KcmId) {
        let Some(mut line) = self.lines.take(id) else {
            return;
        };
        if line.shared {
            line.settle();
            let was_full = line.full;
            line.full = self.fill(&mut line, id);
            self.mux.account(id, &mut line.rx);
            if line.full != was_full {
                housekeeper::watch_line(cell, id, &line);
            }
        }
        self.lines.put(id, line);
    }

    /// True when the kernel's queue is full.
    fn fill(&mut self, line: &mut Line, id: KcmId) -> bool {
        while !self.mux.rx_disabled(id)
            && let Some(message) = self.lines.adrift.pop_front()
        {
            match line.offer(message.len(), core::iter::once(&*message)) {
                Offered::Queued => {}
                Offered::Full | Offered::Gone => {
                    self.lines.adrift.push_front(message);
                    return true;
                }
            }
        }
        let mut rx = core::mem::take(&mut line.rx);
        let mut full = false;
        while !rx.is_empty() || self.mux.refill(id, &mut rx) {
            let Some(message) = rx.front() else { break };
            let len = message.len();
            match line.offer(len, message.parts()) {
                Offered::Queued => rx.consume(len, true),
                Offered::Full => {
                    full = true;
                    break;
                }
                Offered::Gone => break,
            }
        }
        line.rx = rx;
        full
    }

    /// Takes messages back from the kernel's queue of the socket `copy`, which receives no more.
    pub(super) fn pull_back(&mut self, id: KcmId, copy: BorrowedFd<'_>) {
        let Some(line) = self.lines.take(id) else {
            return;
        };
        if line.shared && sockopt::socket_cookie(copy) == Ok(line.cookie) {
            while let Some(message) = native::take_whole(copy) {
                line.taken.fetch_add(1, Ordering::Release);
                self.lines.adrift.push_back(message);
            }
        }
        self.lines.put(id, line);
    }

    /// Hands what was sent through a tied socket to the mux, while its queue has room.
    pub(crate) fn drain(&mut self, id: KcmId) {
        let Some(line) = self.lines.take(id) else {
            return;
        };
        let mut buf = core::mem::take(&mut self.lines.buf);
        let flags = MuxFlags {
            end: true,
            batch: false,
        };
        loop {
            let mut count = 0;
            while self.mux.may_start(id)
                && let Some(len) = line.take_sent(&mut buf)
            {
                count += 1;
                let bytes = buf.get(..len).unwrap_or(&[]);
                if self.mux.send(id, &[bytes], flags).is_err() {
                    log::warn("no memory for a message sent by another process: it is dropped");
                }
            }
            self.write_all();
            if count == 0 {
                break;
            }
        }
        self.lines.buf = buf;
        self.lines.put(id, line);
    }
}
