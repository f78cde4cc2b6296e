//! What a process asks the owner of a stack socket of which it holds a copy (`net::lend`).

use rustix::fd::{BorrowedFd, OwnedFd};

use super::owner::{self, Reply};
use super::wire::{Op, Request};
use super::{parcel, remote};
use crate::errno::{Errno, Exit, Outcome};
use crate::net::question::{self, Question};
use crate::sys;

/// `Request::a` of each kind of question.
const SHARE: u64 = 0;
const GET: u64 = 1;
const SET: u64 = 2;
const IOCTL: u64 = 3;
const NAME: u64 = 5;
const FAILURE: u64 = 6;
/// As [`SET`], and nobody waits for the answer.
const TELL: u64 = 4;
const ATTACH: u64 = 7;
/// In `Answer::more`: the socket beneath has the answer. Else the length of it.
const NATIVE: u64 = u64::MAX;
/// An answer no longer than this is `Answer::value`; a longer one comes in a file.
const SHORT: usize = 8;

fn request(question: Question<'_>) -> (Request, &[u8]) {
    let option = |level: i32, name: i32| (level as u64) << 32 | u64::from(name as u32);
    let (a, b, data) = match question {
        Question::Share => (SHARE, 0, &[][..]),
        Question::Attach => (ATTACH, 0, &[][..]),
        Question::Name => (NAME, 0, &[][..]),
        Question::Failure => (FAILURE, 0, &[][..]),
        Question::Get(level, name) => (GET, option(level, name), &[][..]),
        Question::Set(level, name, value) => (SET, option(level, name), value),
        Question::Ioctl(request) => (IOCTL, request.into(), &[][..]),
    };
    let (op, handle) = (Op::Stack, 0);
    (Request { op, handle, a, b }, data)
}

/// Asks `owner` about the socket behind `fd`.
pub(crate) fn ask(owner: &[u8], fd: i32, question: Question<'_>) -> Outcome<Vec<u8>> {
    if owner::is_ours(owner) {
        let copy = sys::dup_high(sys::borrow(fd))?;
        return question::answer(&copy, question);
    }
    let (request, data) = request(question);
    let fds = [sys::borrow(fd)];
    let asked = remote::call(owner, request, data, &fds);
    // Another process may have become the owner meanwhile.
    let asked = match asked {
        Err(Exit::Failed(Errno::EPIPE)) => remote::call(owner, request, data, &fds),
        asked => asked,
    };
    let (answer, passed) = asked?;
    match (answer.more, passed.first()) {
        (NATIVE, _) => Err(Exit::Native),
        (_, Some(file)) => parcel::open(file),
        (length, None) => {
            let bytes = answer.value.to_ne_bytes();
            Ok(bytes.get(..length as usize).unwrap_or(&bytes).to_vec())
        }
    }
}

/// Sets an option of the socket behind `fd`, whose value is known to be good, without waiting.
pub(crate) fn tell(owner: &[u8], fd: i32, level: i32, name: i32, value: &[u8]) -> Outcome<()> {
    let question = Question::Set(level, name, value);
    if owner::is_ours(owner) {
        return ask(owner, fd, question).map(drop);
    }
    let (mut request, data) = request(question);
    request.a = TELL;
    remote::tell(owner, request, data, &[sys::borrow(fd)])
}

/// As [`ask`] with [`Question::Share`], in a process that runs in the memory of another.
pub(super) fn share_apart(owner: &[u8], fd: BorrowedFd<'_>) -> Outcome<()> {
    remote::ask_apart(owner, request(Question::Share).0, fd)
}

/// Whether the one who asks does not wait for an answer.
pub(super) fn is_told(request: &Request) -> bool {
    request.op == Op::Stack && request.a == TELL
}

/// The owner's side.
pub(super) fn answer(request: Request, data: &[u8], copy: Option<&OwnedFd>) -> Outcome<Reply> {
    let copy = copy.ok_or(Errno::EINVAL)?;
    let (level, name) = ((request.b >> 32) as i32, request.b as i32);
    let question = match request.a {
        SHARE => Question::Share,
        ATTACH => Question::Attach,
        NAME => Question::Name,
        FAILURE => Question::Failure,
        GET => Question::Get(level, name),
        SET | TELL => Question::Set(level, name, data),
        IOCTL => Question::Ioctl(request.b as u32),
        _ => return Err(Errno::EINVAL.into()),
    };
    match question::answer(copy, question) {
        Err(Exit::Native) => Ok((0, NATIVE, Vec::new())),
        Err(why) => Err(why),
        Ok(bytes) if bytes.len() <= SHORT => {
            let mut word = [0; SHORT];
            let part = word.get_mut(..bytes.len()).unwrap_or_default();
            part.copy_from_slice(&bytes);
            Ok((u64::from_ne_bytes(word), bytes.len() as u64, Vec::new()))
        }
        Ok(bytes) => Ok((0, bytes.len() as u64, vec![parcel::post(&bytes)?])),
    }
}
