//! The interposed functions: the C names, by man-page family. Each is a thin skin: look the
//! descriptor up, hand decoded arguments to the code that knows, turn its outcome into what C
//! expects. A descriptor that is not ours costs one compare, one load and one branch.

#![allow(unsafe_code)]
#![allow(
    clippy::missing_safety_doc,
    reason = "the hooks! macro writes the section"
)]

pub(crate) mod epoll;
pub(crate) mod exec;
pub(crate) mod fd;
pub(crate) mod files;
pub(crate) mod io;
pub(crate) mod memory;
pub(crate) mod message;
pub(crate) mod numbers;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod socket;
pub(crate) mod stdio;
pub(crate) mod transfer;
mod twins;

use crate::errno::{Exit, Outcome};
use crate::fd::{File, lookup, table};
use crate::real::Failure;

/// Resolves the definitions behind ours.
pub(crate) fn resolve() {
    crate::real::resolve_undeclared();
    epoll::next::resolve();
    exec::next::resolve();
    fd::next::resolve();
    files::next::resolve();
    io::next::resolve();
    memory::next::resolve();
    message::next::resolve();
    numbers::next::resolve();
    poll::next::resolve();
    process::next::resolve();
    process::resolve();
    raw::next::resolve();
    socket::next::resolve();
    stdio::next::resolve();
    transfer::next::resolve();
}

/// The life of one call: `native` unless `fd` is ours, else `ours`, which may still leave the
/// answer to `native`. errno is written only on failure.
#[inline(always)]
fn on<T: Failure>(
    fd: i32,
    ours: impl FnOnce(&'static File) -> Outcome<T>,
    native: impl FnOnce() -> T,
) -> T {
    match lookup(fd) {
        None => native(),
        Some(file) => conclude(ours(file), native),
    }
}

/// As [`on`], for a call that moves bytes: of files of ours, only sockets answer it themselves, and no
/// other's arguments are looked at.
#[inline(always)]
fn on_socket<T: Failure>(
    fd: i32,
    ours: impl FnOnce(&'static File) -> Outcome<T>,
    native: impl FnOnce() -> T,
) -> T {
    match lookup(fd) {
        Some(file) if file.is_socket() => conclude(ours(file), native),
        _ => native(),
    }
}

#[inline(always)]
fn conclude<T: Failure>(outcome: Outcome<T>, native: impl FnOnce() -> T) -> T {
    match outcome {
        Ok(value) => value,
        Err(Exit::Native) => native(),
        Err(Exit::Failed(err)) => {
            err.set();
            T::FAILURE
        }
    }
}

/// A number that the kernel has just handed out.
#[inline]
fn fresh(fd: i32) -> i32 {
    if fd >= 0 {
        crate::net::pristine::changed(fd);
        table::fresh(fd);
    }
    fd
}
