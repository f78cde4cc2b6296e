//! The end of an owner while others hold its sockets: a process without a program, the *broker*,
//! goes on as owner until the last of them is closed.

use core::sync::atomic::{AtomicBool, Ordering};

use super::owner;
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

/// The process is about to become another program: its sockets with FD_CLOEXEC close, as they will,
/// and whoever holds the others needs an owner.
pub(crate) fn at_exec() {
    if owner::has_lines() && owner::is_needed() || net::ending::has_sockets() {
        hand_over();
    }
}

/// Forks the broker. In this process nothing of ours works any more.
pub(crate) fn hand_over() {
    if process::succeed(fork_apart, leave_program) == 0 {
        run();
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
    if !net::lend::is_needed() {
        net::ending::give_up_addresses();
    }
    sys::close_all_but(table::ours_in(0, u32::MAX).filter(|fd| own::has(*fd)));
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
    if !MuxCell::any() && !net::ending::is_unfinished() {
        end();
    }
    net::ending::give_up_addresses();
}
