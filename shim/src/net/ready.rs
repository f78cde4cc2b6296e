//! Readiness of stack sockets as poll(2) bits, by the rules of Linux's `tcp_poll`: what each bit
//! means is in poll(2) and tcp(7).

use kcm_stack::{Ready, State};

/// poll(2) bits.
pub(crate) type Bits = u32;

pub(crate) const IN: Bits = (libc::POLLIN | libc::POLLRDNORM) as Bits;
pub(crate) const OUT: Bits = (libc::POLLOUT | libc::POLLWRNORM) as Bits;
pub(crate) const RDHUP: Bits = libc::POLLRDHUP as Bits;
pub(crate) const HUP: Bits = libc::POLLHUP as Bits;
pub(crate) const ERR: Bits = libc::POLLERR as Bits;
const PRI: Bits = libc::POLLPRI as Bits;

/// A socket that is neither connected nor listening.
pub(crate) const UNCONNECTED: Bits = OUT | HUP;

/// One that was shut down, or whose connect has failed.
pub(crate) const ENDED: Bits = UNCONNECTED | IN | RDHUP;

/// What an event tells anew.
pub(crate) fn edge(ready: Ready) -> Bits {
    let pairs = [
        (Ready::READABLE, IN),
        (Ready::WRITABLE, OUT),
        (Ready::READ_CLOSED, IN | RDHUP),
        (Ready::CLOSED, IN | OUT | RDHUP | HUP),
        (Ready::ERROR, IN | OUT | ERR),
        (Ready::URGENT, PRI),
        (Ready::CONNECTED, OUT),
        (Ready::FLUSHED, OUT),
    ];
    pairs
        .into_iter()
        .filter(|(bit, _)| ready.contains(*bit))
        .fold(0, |all, (_, bits)| all | bits)
}

/// What a connection shows now.
pub(crate) fn level(ready: Ready, state: Option<State>) -> Bits {
    let mut bits = 0;
    if ready.contains(Ready::READABLE) {
        bits |= IN;
    }
    if ready.contains(Ready::WRITABLE) {
        bits |= OUT;
    }
    if ready.contains(Ready::READ_CLOSED) {
        bits |= IN | RDHUP;
    }
    if ready.contains(Ready::CLOSED) || matches!(state, None | Some(State::Closed)) {
        bits |= IN | OUT | RDHUP | HUP;
    }
    if ready.contains(Ready::ERROR) {
        bits |= ERR;
    }
    if ready.contains(Ready::URGENT) {
        bits |= PRI;
    }
    bits
}

/// What a UDP socket shows now, by the rules of `datagram_poll`: an error alone is not data.
pub(crate) fn datagrams(ready: Ready, is_queued: bool) -> Bits {
    let mut bits = 0;
    if is_queued {
        bits |= IN;
    }
    if ready.contains(Ready::WRITABLE) {
        bits |= OUT;
    }
    if ready.contains(Ready::ERROR) {
        bits |= ERR;
    }
    bits
}
