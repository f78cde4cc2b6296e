//! Which process this is, and what a fork means for our state.

use core::sync::atomic::{AtomicI32, Ordering};

use crate::fd::{File, place, table};
use crate::kcm::MuxCell;
use crate::net::{cells, revive};
use crate::share::{self, owner, remote};
use crate::{descriptor, heap, housekeeper, net, own, publish, route, sync, wait};

/// The process our state belongs to.
static OWNER: AtomicI32 = AtomicI32::new(0);

fn me() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Takes note of the process at start.
pub(crate) fn init() {
    OWNER.store(me(), Ordering::Relaxed);
}

/// Whether this process is not the one our state belongs to: the child of a vfork or of
/// posix_spawn, which runs in its parent's memory but closes descriptors of its own, or the child
/// of a fork that we did not see.
pub(crate) fn is_foreign() -> bool {
    OWNER.load(Ordering::Relaxed) != me()
}

/// fork(2) by `real`. The child's KCM sockets become those of another owner.
pub(crate) fn fork(real: impl FnOnce() -> i32) -> i32 {
    let held = before_fork();
    let child = real();
    if child == 0 {
        after_fork(held);
    }
    child
}

/// Prepares for a child with memory of its own. What is returned is dropped by the parent when there is
/// one, and given to [`after_fork`] by the child.
pub(crate) fn before_fork() -> impl Sized {
    before_borrowed();
    freeze()
}

/// The child of a fork, before anything else of ours.
pub(crate) fn after_fork(held: impl Sized) {
    enter_child(held);
    net::lend::inherit();
    cells::reset_in_child();
    share::child::inherit();
}

/// Prepares for a child that runs in our memory until it executes a program.
pub(crate) fn before_borrowed() {
    if table::is_used() && !is_foreign() {
        owner::tie_all();
        net::lend::lend_all();
    }
}

/// fork(2) by `real`, where it is the child that goes on with our muxes, after it has done `first`,
/// and this process ends: its threads, the housekeeper among them, find every mux locked, and take in nobody who
/// calls, for as long as what comes back beside the result is kept. `None` where nothing is.
pub(crate) fn succeed(
    real: impl FnOnce() -> i32 + 'static,
    first: impl FnOnce() + 'static,
) -> (i32, Option<impl Sized>) {
    let (in_flight, published) = (owner::in_flight(), publish::freeze()); // they come before the muxes
    let engines = (MuxCell::freeze_all(), cells::freeze());
    let quiet = freeze();
    let child = real();
    match child {
        0 => {
            enter_child((in_flight, published, engines, quiet));
            first();
            share::child::take_over();
            net::ending::take_over();
            housekeeper::look_now(); // the parent's has not seen to all that was due
            (child, None)
        }
        1.. => (child, Some((publish::close(), engines, in_flight))),
        _ => (child, None),
    }
}

/// Holds still what other threads may be changing, so that a child gets it whole. In the order of locks:
/// one that is taken and may not be waited for would be the child's, and taken, for good.
fn freeze() -> impl Sized {
    (
        remote::freeze(),
        owner::in_flight(),
        revive::freeze(),
        publish::freeze(),
        MuxCell::freeze_live(),
        cells::freeze(),
        owner::freeze(),
        housekeeper::freeze(),
        MuxCell::freeze(),
        File::freeze(),
        place::freeze(),
        own::freeze(),
        route::freeze(),
        publish::freeze_tracers(),
        heap::freeze(),
    )
}

/// First thing in a child; `quiet` is what was held still.
fn enter_child(quiet: impl Sized) {
    OWNER.store(me(), Ordering::Relaxed);
    sync::enter_child();
    drop(quiet);
    wait::reset_in_child();
    descriptor::reset_in_child();
    housekeeper::reset_in_child();
    publish::reset_in_child();
}
