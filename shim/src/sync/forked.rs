//! Locks in the child of a fork, where only the forking thread exists.

#![allow(unsafe_code, reason = "a fork cannot be had otherwise")]

use core::sync::atomic::Ordering;
use std::thread;

use super::biased::BARRIER_WORKS;
use super::lock::{Lock, RawLock};
use super::{BiasedMutex, Mutex, Reentered, enter_child, init};

/// Runs `body`, which neither allocates nor panics, in a child process, and asks how it went.
fn child_finds(body: impl FnOnce() -> bool) {
    // SAFETY: the child calls nothing but `body` and `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        enter_child();
        let status = if body() { 0 } else { 1 };
        // SAFETY: ends the child.
        unsafe { libc::_exit(status) }
    }
    let mut status = -1;
    // SAFETY: `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
}

/// Calls `body` while another thread is inside `lock`, having taken it `times` times.
fn while_another_holds<R: RawLock + Sync>(lock: &Lock<R, u32>, times: u32, body: impl FnOnce()) {
    use std::sync::Barrier;
    let (inside, done) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            (1..times).for_each(|_| *lock.lock().unwrap() += 1);
            let _guard = lock.lock().unwrap();
            inside.wait();
            done.wait();
        });
        inside.wait();
        body();
        done.wait();
    });
}

#[test]
fn lock_that_a_thread_left_behind_held_is_not_waited_for() {
    init();
    let plain = Mutex::new(0);
    while_another_holds(&plain, 1, || {
        child_finds(|| plain.lock().map(|_| ()) == Err(Reentered) && plain.try_lock().is_none());
    });
    let biased = BiasedMutex::new(0);
    while_another_holds(&biased, 1000, || {
        child_finds(|| {
            // Twice: the first attempt must leave the lock as it found it.
            (0..2).all(|_| biased.lock().map(|_| ()) == Err(Reentered))
                && biased.try_lock().is_none()
        });
    });
    assert_eq!((*plain.lock().unwrap(), *biased.lock().unwrap()), (0, 999));
}

#[test]
fn lock_that_was_free_works_on_whoever_had_its_bias() {
    init();
    let (mine, theirs) = (BiasedMutex::new(0), BiasedMutex::new(0));
    let take_often = |lock: &BiasedMutex<u32>| (0..1000).for_each(|_| *lock.lock().unwrap() += 1);
    take_often(&mine);
    thread::scope(|scope| {
        scope.spawn(|| take_often(&theirs));
    });
    child_finds(|| {
        let found = mine.lock().map(|v| *v) == Ok(1000) && theirs.lock().map(|v| *v) == Ok(1000);
        found && BARRIER_WORKS.load(Ordering::Relaxed)
    });
}

#[test]
fn guard_taken_before_the_fork_unlocks_in_the_child() {
    init();
    let (plain, biased) = (Mutex::new(0), BiasedMutex::new(0));
    (0..1000).for_each(|_| *biased.lock().unwrap() += 1);
    let guards = (plain.lock().unwrap(), biased.lock().unwrap());
    let mut guards = Some(guards);
    child_finds(|| {
        let held = plain.lock().is_err() && biased.lock().is_err();
        drop(guards.take());
        held && plain.lock().is_ok() && biased.lock().is_ok()
    });
}
