//! The end of an owner while others hold its sockets: a process without a program, the *broker*,
//! goes on as owner until the last of them is closed.

use core::sync::atomic::{AtomicBool, Ordering};

use rustix::fd::AsFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::owner;
use crate::errno::{Errno, Outcome};
use crate::fd::{File, Kind, lookup, table};
use crate::interpose::process::{end, fork_apart};
use crate::kcm::MuxCell;
use crate::silence::Silence;
use crate::{net, own, process, signal, sys};

/// This process is a broker.
static IS_BROKER: AtomicBool = AtomicBool::new(false);

/// The process is about to end: closes its KCM sockets and sees whether others need them, and its
/// stack sockets and sees whether they have something left to do.
pub(crate) fn at_exit() {
    if !table::is_used() || process::is_foreign() {
        return;
    }
    let mut silence = Silence::default();
    net::ending::close_numbers(&mut silence);
    if owner::has_lines() {
        for fd in table::ours_in(0, u32::MAX) {
            let is_kcm = lookup(fd).is_some_and(|file| file.kind() == Kind::Kcm);
            if is_kcm && !silence.fall(fd, false) {
                let _ = sys::close(fd);
            }
        }
    }
    let is_needed = owner::is_needed();
    let unfinished = net::ending::finish(!is_needed);
    silence.stay();
    if unfinished || is_needed {
        hand_over();
    }
}

/// Forks the broker. In this process nothing of ours works any more.
fn hand_over() {
    let (child, locks) = process::succeed(fork_apart, leave_program);
    if child == 0 {
        run();
    }
    core::mem::forget(locks);
}

/// The process is about to become another program: its sockets with FD_CLOEXEC close, as they will,
/// and whoever holds the others needs an owner. What comes back is dropped if it does not become one: everything
/// is here as it was, then.
pub(crate) fn at_exec() -> Option<impl Sized> {
    if !(owner::has_lines() && owner::is_needed() || net::ending::has_sockets()) {
        return None;
    }
    let pipe = ExecPipe::new().ok();
    let ends = pipe.as_ref().map(ExecPipe::numbers);
    let fork = move || {
        let child = fork_apart();
        if child == 0 {
            signal::block_all();
            ends.inspect(|ends| await_program(*ends));
        }
        child
    };
    let (child, locks) = process::succeed(fork, leave_program);
    if child == 0 {
        run();
    }
    let Some(pipe) = pipe else {
        core::mem::forget(locks); // without descriptors to spare, there is no way back
        return None;
    };
    Some((pipe.back(), locks))
}

/// Both ways between a process that is about to execute a program and the broker that it has forked, which does nothing
/// before that is certain: the kernel closes the process's end then, by FD_CLOEXEC.
struct ExecPipe {
    process: own::Kept,
    broker: own::Kept,
}

impl ExecPipe {
    fn new() -> Outcome<Self> {
        let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
        let (process, broker) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        let (process, broker) = (own::keep(process), own::keep(broker));
        Ok(Self { process, broker })
    }

    fn numbers(&self) -> [i32; 2] {
        [&self.process, &self.broker].map(|fd| sys::number(fd))
    }

    /// What brings the process back, should no program be executed.
    fn back(self) -> Return {
        Return(self.process)
    }
}

/// In the broker: returns when a program is executed, or whoever was to do it has ended.
fn await_program([process, broker]: [i32; 2]) {
    own::close(process);
    if is_called(sys::borrow(broker)) {
        end();
    }
    own::close(broker);
}

/// Waits for a byte, or until nobody is at the other end. Whether a byte came.
fn is_called(fd: impl AsFd) -> bool {
    loop {
        match rustix::net::recv(&fd, &mut [0; 1], RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            got => return matches!(got, Ok((_, 1))),
        }
    }
}

/// The program was not executed: the broker is told to end, and has ended.
struct Return(own::Kept);

impl Drop for Return {
    fn drop(&mut self) {
        let errno = Errno::current();
        let _ = rustix::net::send(&self.0, &[1], SendFlags::NOSIGNAL);
        is_called(&self.0);
        errno.set();
    }
}

/// Closes what was the program's, before any other thread can make descriptors.
fn leave_program() {
    IS_BROKER.store(true, Ordering::Relaxed);
    MuxCell::keep_connections();
    for fd in table::ours_in(0, u32::MAX) {
        if lookup(fd).is_some_and(|file| file.kind() != Kind::Own)
            && let Some(file) = table::remove(fd)
        {
            let _ = sys::close(fd);
            file.release();
        }
    }
    net::ending::close_rest(false);
    sys::close_all_but(table::ours_in(0, u32::MAX).filter(|fd| own::has(*fd)));
    if !net::lend::is_needed() {
        net::ending::give_up_addresses();
    }
}

fn run() {
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let _ = rustix::thread::set_name(c"kcmshim-broker");
    end_if_idle();
    signal::block_all();
    loop {
        // The housekeeper does all the work, and ends the process.
        let _ = rustix::event::poll(&mut [], None);
    }
}

/// A broker whose last socket was closed has nothing left to do.
pub(crate) fn end_if_idle() {
    if !IS_BROKER.load(Ordering::Relaxed) || net::lend::is_needed() {
        return;
    }
    File::take_down_deferred(); // a relay that has just ended leaves a connection to be closed
    net::ending::refuse_handshakes();
    if !MuxCell::any() && !net::ending::is_unfinished() {
        end();
    }
    net::ending::give_up_addresses();
}
