//! Readiness of one file of ours, as poll(2) bits, and the descriptors a waiting thread watches on
//! its behalf.

use crate::errno::Outcome;
use crate::fd::file::Link;
use crate::fd::{File, Kind};
use crate::share::native;
use crate::{epoll, net, tcp};

/// What waits for a file need besides the file's own bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Beneath {
    /// The real descriptor says nothing about the file: it is not polled.
    Mute,
    /// The real descriptor tells of input only: a socket shared between processes.
    Queue,
    /// The real descriptor's bits count too.
    Speaks,
}

const OUT: u32 = (libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND) as u32;
const IN: u32 = (libc::POLLIN | libc::POLLRDNORM) as u32;

/// What the descriptor beneath `file` has to say.
pub(crate) fn beneath(file: &File) -> Beneath {
    match (file.kind(), file.link()) {
        (Kind::Kcm, Link::Private | Link::Tied) => Beneath::Mute,
        (Kind::Stack, _) if !file.speaks() => Beneath::Mute,
        (Kind::Kcm, Link::Shared | Link::Remote) => Beneath::Queue,
        _ => Beneath::Speaks,
    }
}

/// The bits of `file`, at the number `fd`, now. Reads what the connections hold first.
pub(crate) fn bits(file: &'static File, fd: i32) -> u32 {
    match file.kind() {
        Kind::Kcm if beneath(file) == Beneath::Queue => native::bits(file, fd),
        Kind::Kcm => kcm(file).unwrap_or(0),
        Kind::Tcp | Kind::Inherited => tcp::extra_bits(file),
        Kind::Stack if file.was_attached() => tcp::extra_bits(file) | net::bits(file),
        Kind::Stack => net::bits(file),
        Kind::Epoll if epoll::any_ready(file) => IN,
        Kind::Epoll | Kind::Bpf | Kind::Own | Kind::Free => 0,
    }
}

/// OUT always; IN while a message is queued; never ERR or HUP (kcm-semantics §8.2).
fn kcm(file: &'static File) -> Outcome<u32> {
    Ok(if has_message(file)? { OUT | IN } else { OUT })
}

/// Whether a message is there, after accounting for those the program has taken: the room they
/// leave may let a parked connection go on.
fn has_message(file: &'static File) -> Outcome<bool> {
    let mut rx = file.rx.lock()?;
    if !rx.is_empty() {
        return Ok(true);
    }
    let mut engine = file.mux()?.lock()?;
    let id = file.kcm_id();
    if engine.mux.refill(id, &mut rx) {
        return Ok(true);
    }
    engine.pump();
    Ok(engine.mux.refill(id, &mut rx))
}
