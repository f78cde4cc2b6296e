//! Requests to an owner and its answers: one SEQPACKET message each, descriptors alongside.

use core::mem::MaybeUninit;

use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::IoSlice;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::errno::{Errno, Outcome};
use crate::own::{self, Kept};

/// Descriptors one message may carry.
const FDS_MAX: usize = 3;
/// Bytes of a message after its head; longer data travels in a file.
pub(super) const DATA_MAX: usize = 32 << 10;
pub(super) const HEAD_BYTES: usize = 32;

/// What a holder asks of the owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Op {
    /// Share the socket whose copy comes along. Answers its handle, and its type and the place of
    /// its counter in the page that comes along. `a`: so many more of its copies may be with
    /// processes that do not count what they take.
    Hold = 1,
    /// Send the data, or the contents of the file that comes along; `a`: 1 if it ends a message.
    Send,
    /// Discard the open message.
    Abort,
    /// Another KCM socket of the mux; it comes with the answer.
    Clone,
    /// Attach the TCP socket that comes along, and with it the parser program: its descriptor, or if `a`
    /// is 1 a file that it is packed in. The data, or the contents of a third descriptor, are bytes of
    /// the stream taken before; `b` is made of [`attach`].
    Attach,
    /// Unattach the TCP socket with cookie `a`. Answers the error posted on it and whether the peer is in
    /// the middle of a message; with a file, if bytes of the stream were taken that nobody consumed.
    Unattach,
    /// KCM_RECV_DISABLE as set.
    Disabled,
    /// Socket option `a` has become `b`; 0 stands for KCM_RECV_DISABLE. The socket comes along.
    Option,
    /// A page of /proc/net, which comes with the answer: `a` is 0 for kcm, 1 for kcm_stats.
    Page,
    /// A question about the stack socket whose copy comes along (`super::stack`).
    Stack,
    /// A stack socket of the owner's engine, for a process that has none (`super::guest`).
    Open,
}

/// What `b` of [`Op::Attach`] is made of.
pub(super) mod attach {
    /// The peer is in the middle of a message.
    pub(crate) const TORN: u64 = 1;
    /// The socket is a stack's, and processes share it.
    pub(crate) const ON_STACK: u64 = 2;
    /// Where the word of its [`Standing`](crate::net::psock::Standing) begins.
    pub(crate) const STANDING: u32 = 2;
}

impl Op {
    fn parse(code: u64) -> Option<Self> {
        const ALL: [Op; 11] = [
            Op::Hold,
            Op::Send,
            Op::Abort,
            Op::Clone,
            Op::Attach,
            Op::Unattach,
            Op::Disabled,
            Op::Option,
            Op::Page,
            Op::Stack,
            Op::Open,
        ];
        ALL.into_iter().find(|op| *op as u64 == code)
    }
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) op: Op,
    /// The socket, as the owner named it in its answer to [`Op::Hold`].
    pub(super) handle: u64,
    pub(super) a: u64,
    pub(super) b: u64,
}

impl Request {
    pub(super) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        words([self.op as u64, self.handle, self.a, self.b])
    }

    /// `None` for what no request looks like.
    pub(super) fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let ([op, handle, a, b], data) = parse_words(bytes)?;
        let op = Op::parse(op)?;
        Some((Self { op, handle, a, b }, data))
    }
}

/// The owner's answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer {
    /// 0, or why the request failed.
    pub(super) errno: i32,
    pub(super) value: u64,
    pub(super) more: u64,
}

impl Answer {
    pub(super) fn to_bytes(self) -> [u8; HEAD_BYTES] {
        words([self.errno as u64, self.value, self.more, 0])
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let ([errno, value, more, _], _) = parse_words(bytes)?;
        let errno = errno as i32;
        Some(Self { errno, value, more })
    }
}

fn words(words: [u64; HEAD_BYTES / 8]) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn parse_words(bytes: &[u8]) -> Option<([u64; HEAD_BYTES / 8], &[u8])> {
    let (head, data) = bytes.split_at_checked(HEAD_BYTES)?;
    let mut words = [0; HEAD_BYTES / 8];
    for (word, from) in words.iter_mut().zip(head.chunks_exact(8)) {
        *word = u64::from_ne_bytes(from.try_into().ok()?);
    }
    Some((words, data))
}

/// Sends a head, its data and descriptors as one message.
pub(super) fn send(
    to: impl AsFd,
    head: &[u8],
    data: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Outcome<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [IoSlice::new(head), IoSlice::new(data)];
    let flags = flags | SendFlags::NOSIGNAL;
    loop {
        match rustix::net::sendmsg(to.as_fd(), &parts, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// One message and its descriptors, which are no program's. ENOTCONN at the end.
pub(super) fn receive(
    from: impl AsFd,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> Outcome<(usize, Vec<Kept>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = loop {
        let mut parts = [rustix::io::IoSliceMut::new(bytes)];
        match rustix::net::recvmsg(from.as_fd(), &mut parts, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            got => break got?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed.map(own::keep));
        }
    }
    if got.bytes == 0 || got.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::ENOTCONN.into());
    }
    Ok((got.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{own, sys};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    /// No program closes, nor a forked child keeps, what has come and is not handed out yet.
    #[test]
    fn what_comes_is_no_programs() {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (here, there) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let passed = [here.as_fd(), there.as_fd()];
        send(&there, b"head", b"", &passed, SendFlags::empty()).unwrap();
        let (count, fds) = receive(&here, &mut [0; HEAD_BYTES], RecvFlags::empty()).unwrap();
        assert_eq!((count, fds.len()), (4, 2));
        for fd in fds {
            let number = sys::number(&fd);
            assert!(own::has(number) && number >= sys::floor());
            let handed_out = fd.for_program().unwrap();
            assert!(!own::has(sys::number(&handed_out)));
            drop(fd);
            assert!(!own::has(number));
        }
    }
}
