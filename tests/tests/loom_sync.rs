//! Models of the shim's locks and doorbells: every interleaving of two or three threads, in the C11
//! memory order. Run with `RUSTFLAGS="--cfg loom" cargo test -p kcm-tests --test loom_sync --release`.
//!
//! What is here is what the kernel does not take part in. `BiasedMutex` appears without its bias,
//! whose `membarrier(2)` has no model (see `shim/src/sync/mod.rs`).

#![cfg(loom)]

#[path = "../../shim/src/sync/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "the models use a part of the module"
)]
mod sync;

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use sync::{BiasedMutex, Doorbell, Mutex, Reentered};

/// A counter that loom watches: two accesses that no lock orders fail the model.
struct Watched(UnsafeCell<usize>);

impl Watched {
    fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn bump(&self) {
        // SAFETY: loom checks that this access races with no other.
        self.0.with_mut(|count| unsafe { *count += 1 });
    }

    fn count(&self) -> usize {
        // SAFETY: as above.
        self.0.with(|count| unsafe { *count })
    }
}

/// Explores with at most `preemptions` involuntary switches, which keeps three threads affordable.
fn model(preemptions: Option<usize>, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(body);
}

#[test]
fn mutex_orders_the_sections_of_two_threads_and_loses_no_wake_up() {
    model(None, || {
        let lock = Arc::new(Mutex::new(Watched::new()));
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.lock().unwrap().bump())
        };
        lock.lock().unwrap().bump();
        other.join().unwrap();
        assert_eq!(lock.lock().unwrap().count(), 2);
    });
}

#[test]
fn mutex_wakes_each_of_two_sleepers() {
    model(Some(3), || {
        let lock = Arc::new(Mutex::new(Watched::new()));
        let others: Vec<_> = (0..2)
            .map(|_| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || lock.lock().unwrap().bump())
            })
            .collect();
        lock.lock().unwrap().bump();
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(lock.lock().unwrap().count(), 3);
    });
}

#[test]
fn mutex_knows_its_owner_while_another_waits() {
    model(None, || {
        let lock = Arc::new(Mutex::new(()));
        let guard = lock.lock().unwrap();
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || drop(lock.lock().unwrap()))
        };
        assert!(matches!(lock.lock(), Err(Reentered)));
        assert!(lock.try_lock().is_none());
        drop(guard);
        other.join().unwrap();
    });
}

#[test]
fn try_lock_never_lets_two_in() {
    model(None, || {
        let lock = Arc::new(Mutex::new(Watched::new()));
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.try_lock().map(|inside| inside.bump()).is_some())
        };
        let mine = lock.try_lock().map(|inside| inside.bump()).is_some();
        let theirs = other.join().unwrap();
        assert_eq!(
            lock.lock().unwrap().count(),
            usize::from(mine) + usize::from(theirs)
        );
    });
}

#[test]
fn biased_mutex_without_bias_is_a_mutex() {
    model(None, || {
        let lock = Arc::new(BiasedMutex::new(Watched::new()));
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.lock().unwrap().bump())
        };
        lock.lock().unwrap().bump();
        other.join().unwrap();
        assert_eq!(lock.lock().unwrap().count(), 2);
    });
}

/// One side of the protocol that `doorbell.rs` prescribes: sleeps until `work` is true.
fn wait_for(work: &AtomicBool, bell: &Doorbell) {
    loop {
        bell.arm();
        if work.load(Ordering::Relaxed) {
            bell.disarm(false);
            return;
        }
        bell.bell().sleep();
        bell.disarm(true);
    }
}

#[test]
fn ring_after_publishing_ends_every_sleep() {
    model(None, || {
        let shared = Arc::new((AtomicBool::new(false), Doorbell::new()));
        let ringer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.0.store(true, Ordering::Relaxed);
                shared.1.ring();
            })
        };
        wait_for(&shared.0, &shared.1);
        ringer.join().unwrap();
    });
}

#[test]
fn second_sleep_is_ended_too_although_the_first_ring_may_come_late() {
    model(Some(3), || {
        let shared = Arc::new((
            [AtomicBool::new(false), AtomicBool::new(false)],
            Doorbell::new(),
        ));
        let ringer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for work in &shared.0 {
                    work.store(true, Ordering::Relaxed);
                    shared.1.ring();
                }
            })
        };
        for work in &shared.0 {
            wait_for(work, &shared.1);
        }
        ringer.join().unwrap();
    });
}

#[test]
fn two_ringers_end_the_sleep_of_one() {
    model(Some(3), || {
        let shared = Arc::new((
            [AtomicBool::new(false), AtomicBool::new(false)],
            Doorbell::new(),
        ));
        let ringers: Vec<_> = (0..2)
            .map(|index| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.0[index].store(true, Ordering::Relaxed);
                    shared.1.ring();
                })
            })
            .collect();
        for work in &shared.0 {
            wait_for(work, &shared.1);
        }
        for ringer in ringers {
            ringer.join().unwrap();
        }
    });
}
